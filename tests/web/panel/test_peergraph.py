import json

from hypothesis import given
from hypothesis import strategies as st

from hyperlog.store.records import record_of
from hyperlog.web.panel.peergraph import MAX_CLASSES, OTHERS, call_graph, peer_events

A, B = "aa" * 32, "bb" * 32


def record(position, source=b"s" * 32, **members):
    line = {
        "time": f"2026-11-20T00:00:{position:02}.000Z",
        "userId": "ada___01234567",
        "traceTimestamp": "2026-11-20T00:00:00.000Z",
        "traceSessionId": "1",
        "traceNumber": position,
        **members,
    }
    return record_of(json.dumps(line).encode(), source, "server")


def event(position, id, props):
    caller = {"filename": "x", "functionName": "f", "props": props}
    return record(position, id=id, object={"className": "Swarm"}, caller=caller)


def test_connections_come_and_go_as_the_traces_tell():
    stream = {"publicKey": A, "remotePublicKey": B}
    events = peer_events(
        [
            event(0, "listen", {"publicKey": A}),
            event(1, "stream-open", {"stream": stream}),
            event(2, "something", {"stream": stream}),
            event(3, "stream-close", {"stream": stream, "error": {"code": "ETIMEDOUT"}}),
        ]
    )
    assert [one[1:] for one in events] == [
        ["listen", "ada___01234567", A, None, None],
        ["stream-open", "ada___01234567", A, B, None],
        ["stream-close", "ada___01234567", A, B, "ETIMEDOUT"],
    ]
    assert events[0][0] < events[1][0]


def test_odd_events_are_left_out():
    odd = [None, 5, "x", [], {"publicKey": 5}, {"stream": {"publicKey": A}}, {"stream": None}]
    assert peer_events(event(n, "stream-open", props) for n, props in enumerate(odd)) == []
    assert peer_events([event(0, "listen", {"publicKey": "k" * 500})])[0][3] == "k" * 96


def test_names_are_one_line():
    stream = {"publicKey": "a\nb", "remotePublicKey": "\u202ec\n"}
    [found] = peer_events([event(0, "stream-open", {"stream": stream})])
    assert found[3:5] == ["a b", " c "]


def trace(position, name, parent=None, function="run"):
    more = {} if parent is None else {"parentObject": {"className": parent}}
    caller = {"filename": "x", "functionName": function}
    return record(position, id=None, object={"className": name}, caller=caller, **more)


def test_calls_are_counted_by_class_function_and_parent_over_time():
    records = [trace(0, "A"), trace(1, "B", "A"), trace(2, "B", "A", "stop"), trace(9, "B", "A")]
    graph = call_graph(records, 5)
    names = graph["classes"]
    assert sorted(names) == ["A", "B"]
    calls, edges = {}, {}
    for step in graph["steps"]:
        for number, function, count in step["calls"]:
            calls[names[number], function] = calls.get((names[number], function), 0) + count
        for parent, number, count in step["edges"]:
            edge = names[parent], names[number]
            edges[edge] = edges.get(edge, 0) + count
    assert calls == {("A", "run"): 1, ("B", "run"): 2, ("B", "stop"): 1}
    assert edges == {("A", "B"): 3}
    assert len(graph["steps"]) == 5
    assert sum(count for *_, count in graph["steps"][-1]["calls"]) == 1


def test_too_many_classes_are_put_together():
    graph = call_graph([trace(n % 60, f"C{n}") for n in range(MAX_CLASSES + 50)], 10)
    assert len(graph["classes"]) == MAX_CLASSES + 1
    assert graph["classes"][-1] == OTHERS
    total = sum(count for step in graph["steps"] for *_, count in step["calls"])
    assert total == MAX_CLASSES + 50
    assert call_graph([], 10) == {"classes": [], "steps": []}


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 20))
def test_whatever_the_lines_are_nothing_is_raised(bodies, steps):
    records = []
    for body in bodies:
        found = record_of(body, b"s" * 32, "server")
        if found is not None:
            records.append(found)
    peer_events(records)
    call_graph(records, steps)
