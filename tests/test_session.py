"""hyperlog.session: two ends joined by a list, and what the JavaScript ends would do."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hyperlog.errors import BadGreeting, SessionRewound
from hyperlog.records import iso_time
from hyperlog.session import (
    MAX_BAD_MESSAGES,
    MAX_SESSIONS,
    ClientSession,
    ResumeState,
    ServerSession,
)
from hyperlog.spool import MemorySpool
from hyperlog.trace import CallSite, Trace, TracedObject

CAPTURE = Path(__file__).parent / "vectors" / "dht" / "capture-trace-logger.json"
KEY = bytes.fromhex("8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394")
NOW = 1795223619.131
EVERYTHING = 2**30
SITE = CallSite("run", "/app/main.py", 1, 1)
SOURCE = TracedObject("Main", 1)


def make_trace(n: int = 0, **props) -> Trace:
    return Trace(None, SOURCE, None, None, SITE, {"n": n, **props})


def make_client(max_bytes: int = 2**20, session_id: str = "77") -> ClientSession:
    return ClientSession(session_id, MemorySpool(max_bytes))


def record(client: ClientSession, numbers) -> None:
    for n in numbers:
        client.record(make_trace(n), NOW)


def greet(client: ClientSession, session_id=None, number=None) -> None:
    client.connection_opened()
    client.receive_message(
        json.dumps({"lastSeenTraceSessionId": session_id, "lastSeenTraceNumber": number}).encode()
    )


def sent(client: ClientSession, max_bytes: int = EVERYTHING) -> list[dict]:
    return [json.loads(data) for data in client.messages_to_send(max_bytes, NOW)]


def sent_numbers(client: ClientSession, max_bytes: int = EVERYTHING) -> list[int]:
    return [message["traceNumber"] for message in sent(client, max_bytes)]


def message(number: int, session: str = "77", **more) -> bytes:
    fields = {
        "traceTimestamp": iso_time(NOW),
        "traceSessionId": session,
        "traceNumber": number,
        "object": {"id": 1, "className": "Main", "props": None},
        "caller": {"filename": "f", "functionName": "run"},
        **more,
    }
    return json.dumps(fields).encode()


def make_server(resume: ResumeState | None = None, connection_number: int = 1) -> ServerSession:
    return ServerSession(KEY, resume or ResumeState(), connection_number)


def received(server: ServerSession, *messages: bytes) -> list[dict]:
    return [json.loads(line) for line in server.receive_messages(messages, NOW)]


def notes(lines: list[dict]) -> list[str]:
    return [line["note"] for line in lines if "note" in line]


def numbers(lines: list[dict]) -> list[int]:
    return [line["traceNumber"] for line in lines if "traceNumber" in line]


# -- the client's end


def test_nothing_is_sent_before_the_greeting():
    client = make_client()
    record(client, range(3))
    assert sent(client) == []
    client.connection_opened()
    assert sent(client) == []
    client.receive_message(b'{"lastSeenTraceSessionId":null,"lastSeenTraceNumber":null}')
    assert sent_numbers(client) == [0, 1, 2]
    record(client, [3])
    assert sent_numbers(client) == [3]
    assert sent(client) == []


def test_sending_resumes_after_what_the_server_has_seen():
    client = make_client()
    record(client, range(6))
    greet(client, "77", 2)
    assert sent_numbers(client) == [3, 4, 5]


def test_another_session_seen_means_sending_everything():
    client = make_client()
    record(client, range(3))
    greet(client, "78", 9)
    assert sent_numbers(client) == [0, 1, 2]


def test_after_a_reconnect_the_unseen_comes_again():
    client = make_client()
    record(client, range(6))
    greet(client)
    assert sent_numbers(client) == list(range(6))
    client.transport_confirmed(5)
    client.connection_closed()
    assert sent(client) == []
    greet(client, "77", 3)
    assert sent_numbers(client) == [4, 5]  # delivered, but not written


def test_a_greeting_frees_the_buffer_and_delivery_alone_does_not():
    spool = MemorySpool(2**20)
    client = ClientSession("77", spool)
    record(client, range(6))
    greet(client)
    sent(client)
    client.transport_confirmed(5)
    assert client.unconfirmed == 0
    assert spool.messages == 6
    client.connection_closed()
    greet(client, "77", 5)
    assert spool.messages == 0


def test_unconfirmed_counts_what_may_be_missing():
    client = make_client()
    assert client.unconfirmed == 0
    client.trace(make_trace(), NOW)
    assert client.unconfirmed == 1
    client.drain(NOW)
    record(client, range(3))
    assert client.unconfirmed == 4
    greet(client)
    sent(client)
    assert client.last_sent_number == 3
    client.transport_confirmed(1)
    assert client.unconfirmed == 2
    client.transport_confirmed(0)
    assert client.unconfirmed == 2
    client.transport_confirmed(99)  # never sent: not believed
    assert client.unconfirmed == 2
    client.transport_confirmed(3)
    assert client.unconfirmed == 0


def test_a_server_that_forgot_makes_records_unconfirmed_again():
    client = make_client()
    record(client, range(4))
    greet(client)
    sent(client)
    client.transport_confirmed(3)
    client.connection_closed()
    greet(client, None, None)
    assert client.unconfirmed == 4
    assert sent_numbers(client) == [0, 1, 2, 3]


def test_batches_are_bounded():
    client = make_client()
    record(client, range(10))
    greet(client)
    assert sent_numbers(client, 1) == [0]
    assert sent_numbers(client, 600) == [1, 2]
    assert sent_numbers(client) == list(range(3, 10))


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"null",
        b'{"lastSeenTraceSessionId":5}',
        b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":"1"}',
        b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":1.5}',
        b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":-2}',
        b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":3}',
        b'{"lastSeenTraceSessionId":"\xff"}',
        b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b" " * 100_000 + b"{}",
    ],
    ids=range(11),
)
def test_a_bad_greeting_raises_and_changes_nothing(data):
    client = make_client()
    record(client, range(3))
    client.connection_opened()
    with pytest.raises(BadGreeting):
        client.receive_message(data)
    assert sent(client) == []
    greet(client, "77", 0)
    assert sent_numbers(client) == [1, 2]


@given(st.binary())
def test_any_bytes_are_a_greeting_or_raise_bad_greeting(data):
    client = make_client()
    client.connection_opened()
    try:
        client.receive_message(data)
    except BadGreeting:
        pass


def test_later_fields_and_messages_of_the_server_are_ignored():
    client = make_client()
    record(client, range(2))
    client.connection_opened()
    client.receive_message(b"")
    client.receive_message(b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":0,"v":2}')
    client.receive_message(b"whatever")
    assert sent_numbers(client) == [1]


def test_client_props_go_along_from_the_time_they_were_added():
    client = ClientSession("77", MemorySpool(2**20), {"app": "x"})
    client.trace(make_trace(), NOW)
    client.add_props({"alias": "bob", "app": "y"})
    client.trace(make_trace(), NOW)
    assert client.drain(NOW) == 2
    greet(client)
    assert [m["props"] for m in sent(client)] == [{"app": "x"}, {"app": "y", "alias": "bob"}]


def test_drain_numbers_in_the_order_of_arrival():
    client = make_client()
    for n in range(10):
        client.trace(make_trace(n), NOW + n)
    assert client.drain(NOW, limit=4) == 4
    assert client.drain(NOW) == 6
    greet(client)
    messages = sent(client)
    assert [m["caller"]["props"]["n"] for m in messages] == list(range(10))
    assert [m["traceNumber"] for m in messages] == list(range(10))
    assert messages[9]["traceTimestamp"] == iso_time(NOW + 9)


def test_numbers_never_contradict_the_order_of_a_thread():
    client = make_client(2**24)

    def run(thread: int) -> None:
        for n in range(500):
            client.trace(make_trace(n, thread=thread), NOW)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        client.drain(NOW)
    while client.drain(NOW):
        pass
    greet(client)
    props = [m["caller"]["props"] for m in sent(client)]
    assert len(props) == 2000
    for thread in range(4):
        assert [p["n"] for p in props if p["thread"] == thread] == list(range(500))


# -- what had to be given up

SMALL = 16 * 1024
PADDING = "x" * 1000


def test_records_given_up_before_the_connection_are_told_first():
    client = make_client(SMALL)
    for n in range(20):
        client.record(make_trace(n, text=PADDING), NOW)
    greet(client)
    first, *rest = sent(client)
    assert first["gap"] == {
        "session": "77",
        "from": 0,
        "to": rest[0]["traceNumber"] - 1,
        "count": rest[0]["traceNumber"],
        "reason": "buffer-full",
    }
    assert first["traceNumber"] == first["gap"]["to"]
    assert rest[-1]["traceNumber"] == 19
    assert client.lost == first["gap"]["count"]


def test_records_given_up_after_delivery_are_no_loss():
    client = make_client(SMALL)
    record(client, range(5))
    greet(client)
    sent(client)
    client.transport_confirmed(4)
    for n in range(5, 25):
        client.record(make_trace(n, text=PADDING), NOW)
        sent(client)
        client.transport_confirmed(n)
    client.connection_closed()
    greet(client)  # a server that knows nothing
    assert "gap" not in sent(client)[0]
    assert client.lost == 0


def test_a_server_that_lost_delivered_records_is_told_that_they_are_gone():
    client = make_client(SMALL)
    greet(client)
    for n in range(25):
        client.record(make_trace(n, text=PADDING), NOW)
        sent(client)
        client.transport_confirmed(n)
    client.connection_closed()
    greet(client, "77", 3)
    first = sent(client)[0]
    assert first["gap"]["from"] == 4
    assert client.lost == first["gap"]["count"]


def test_records_given_up_while_connected_are_told_in_their_place():
    client = make_client(SMALL)
    record(client, range(3))
    greet(client)
    assert sent_numbers(client) == [0, 1, 2]
    for n in range(3, 30):
        client.record(make_trace(n, text=PADDING), NOW)
    messages = sent(client)
    assert messages[0]["gap"]["from"] == 3
    assert messages[0]["gap"]["to"] + 1 == messages[1]["traceNumber"]
    # Told again on the next connection, as the server has not seen it, but counted once.
    lost = client.lost
    client.connection_closed()
    greet(client, "77", 2)
    assert sent(client)[0]["gap"]["from"] == 3
    assert client.lost == lost


def test_traces_given_up_before_they_had_numbers_are_told_in_their_place():
    client = make_client(SMALL)
    for n in range(20):
        client.trace(make_trace(n), NOW)
    client.drain(NOW)
    greet(client)
    first, second, *_ = sent(client)
    assert first["gap"] == {
        "session": "77",
        "from": 0,
        "to": 0,
        "count": 4,
        "reason": "queue-full",
    }
    assert second["traceNumber"] == 1
    assert second["caller"]["props"]["n"] == 4
    assert client.lost == 4


# -- the server's end


def captured(event: str) -> list[dict]:
    return [row for row in json.loads(CAPTURE.read_text())["rows"] if row.get("event") == event]


def test_greeting_equals_that_of_the_javascript_server():
    assert make_server().greeting().decode() == captured("client-data")[0]["d"]
    assert (
        make_server(ResumeState([("76", 9), ("77", 5)])).greeting()
        == b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":5}'
    )


def test_the_log_equals_that_of_the_javascript_server():
    server = make_server()
    lines = []
    for row in captured("client-write"):
        lines += server.receive_messages([row["d"].encode()], NOW)
    expected = []
    for line in captured("log-file-final")[0]["text"].splitlines():
        fields = json.loads(line)
        if not fields.get("note", "").startswith("Socket error"):
            expected.append({**fields, "time": iso_time(NOW)})
    assert [json.loads(line) for line in lines] == expected
    assert [list(json.loads(line)) for line in lines] == [list(fields) for fields in expected]


def test_a_socket_error_is_noted_as_in_the_original():
    (line,) = make_server().closing_lines(NOW, ("ECONNRESET", "connection reset by peer"))
    original = [json.loads(t) for t in captured("log-file-final")[0]["text"].splitlines()]
    expected = [fields["note"] for fields in original if "Socket error" in fields.get("note", "")]
    assert json.loads(line)["note"] in expected


def test_missing_numbers_are_noted():
    server = make_server(ResumeState([("77", 3)]))
    lines = received(server, message(4), message(7), message(8))
    assert notes(lines) == ["Skipped 2 messages! lastSeenTraceNumber=4 traceNumber=7"]
    assert numbers(lines) == [4, 7, 8]


def test_missing_numbers_at_the_start_of_a_session_are_noted_too():
    lines = received(make_server(), message(3072))
    assert notes(lines) == [
        f"New session from {KEY.hex()}. sessionId=77",
        "Skipped 3072 messages! lastSeenTraceNumber=null traceNumber=3072",
    ]


def test_repeats_are_counted_and_not_written():
    server = make_server()
    lines = received(server, message(0), message(1), message(0), message(1), message(2))
    assert numbers(lines) == [0, 1, 2]
    assert (server.records, server.repeats) == (3, 2)


def test_only_written_records_are_acknowledged():
    resume = ResumeState()
    server = make_server(resume)
    received(server, message(0), message(1))
    assert resume.last_seen == (None, None)
    server.written()
    assert resume.last_seen == ("77", 1)
    received(server, message(2))
    assert make_server(resume).greeting().endswith(b'"lastSeenTraceNumber":1}')


def test_after_a_failed_write_records_come_again_and_other_connections_must_close():
    resume = ResumeState()
    first, second = make_server(resume, 1), make_server(resume, 2)
    received(first, message(0))
    first.written()
    received(first, message(1))
    received(second, message(2))  # relies on the line of 1
    resume.rewind()
    first.written()
    second.written()
    assert resume.last_seen == ("77", 0)
    for old in (first, second):
        with pytest.raises(SessionRewound):
            received(old, message(3))
    third = make_server(resume, 3)
    assert numbers(received(third, message(1), message(2))) == [1, 2]


def test_a_failed_first_write_leaves_nothing_behind():
    resume = ResumeState()
    received(make_server(resume), message(0))
    resume.rewind()
    assert resume.last_seen == (None, None)
    lines = received(make_server(resume), message(0))
    assert len(notes(lines)) == 1  # the note of the new session is repeated too
    assert numbers(lines) == [0]


def test_two_sessions_of_one_key_do_not_disturb_each_other():
    resume = ResumeState()
    first, second = make_server(resume, 1), make_server(resume, 2)
    lines = []
    for n in range(3):
        lines += received(first, message(n, "1"))
        lines += received(second, message(n, "2"))
        first.written()
        second.written()
    assert len(notes(lines)) == 2
    assert numbers(lines) == [0, 0, 1, 1, 2, 2]
    assert resume.last_seen == ("2", 2)


def test_a_client_that_reconnects_beside_its_old_connection_is_written_once():
    resume = ResumeState()
    old, new = make_server(resume, 1), make_server(resume, 2)
    lines = received(old, message(0), message(1), message(2))
    lines += received(new, message(0), message(1), message(2), message(3))
    assert numbers(lines) == [0, 1, 2, 3]


def test_sessions_remembered_are_bounded():
    resume = ResumeState((str(n), 0) for n in range(MAX_SESSIONS * 2))
    assert len(resume.sessions) == MAX_SESSIONS
    server = make_server(resume)
    for n in range(MAX_SESSIONS * 2):
        received(server, message(0, f"new-{n}"))
    assert len(resume.sessions) == MAX_SESSIONS
    server.written()
    assert len(resume.sessions) == MAX_SESSIONS
    assert resume.last_seen == (f"new-{MAX_SESSIONS * 2 - 1}", 0)


def test_user_ids_follow_the_props():
    server = make_server(connection_number=7)
    lines = received(
        server,
        message(0),
        message(1, props={"alias": "bob"}),
        message(2, props={"alias": "bob", "username": "ann"}),
        message(3, props=None),
    )
    short = KEY.hex()[:8]
    assert [line["userId"] for line in lines if "userId" in line] == [
        f"User-7___{short}",
        f"bob___{short}",
        f"ann___{short}",
        f"User-7___{short}",
    ]
    assert server.user_id == f"User-7___{short}"


def test_bad_messages_are_noted_once_and_do_not_stop_the_others():
    server = make_server()
    lines = received(server, message(0), b"{", b"[]", message(1))
    assert numbers(lines) == [0, 1]
    assert len([note for note in notes(lines) if note.startswith("Bad message")]) == 1
    assert server.bad_messages == 2
    assert server.violation is None
    closing = [json.loads(line)["note"] for line in server.closing_lines(NOW)]
    assert closing == ["Dropped 2 bad messages!"]


def test_too_many_bad_messages_end_the_connection():
    server = make_server()
    lines = received(server, message(0), *[b"{"] * (MAX_BAD_MESSAGES + 1), message(1))
    assert server.violation is not None
    assert numbers(lines) == [0]
    assert received(server, message(1)) == []


def test_empty_messages_are_keep_alives():
    server = make_server()
    assert received(server, b"") == []
    assert server.bad_messages == 0


def test_a_gap_is_written_by_the_server_and_clipped_to_what_it_has_not_seen():
    client = make_client(SMALL)
    for n in range(20):
        client.record(make_trace(n, text=PADDING), NOW)
    greet(client)
    messages = client.messages_to_send(EVERYTHING, NOW)
    last = json.loads(messages[0])["gap"]["to"]
    for seen, start in ((-1, 0), (2, 3)):
        server = make_server(ResumeState([("77", seen)]))
        lines = received(server, *messages)
        assert lines[0] == {
            "time": iso_time(NOW),
            "note": f"Lost {last + 1 - start} messages before sending! "
            f"from={start} to={last} reason=buffer-full",
            "gap": {
                "session": "77",
                "from": start,
                "to": last,
                "count": last + 1 - start,
                "reason": "buffer-full",
            },
        }
        assert len(notes(lines)) == 1
        assert numbers(lines) == list(range(last + 1, 20))


def test_numbers_missing_before_a_gap_are_noted():
    client = make_client()
    client.record_loss(5, "queue-full", NOW)
    greet(client)
    (gap,) = client.messages_to_send(EVERYTHING, NOW)
    fields = json.loads(gap)
    fields["traceNumber"] = fields["gap"]["from"] = fields["gap"]["to"] = 8
    lines = received(make_server(ResumeState([("77", 5)])), json.dumps(fields).encode())
    assert notes(lines) == [
        "Skipped 2 messages! lastSeenTraceNumber=5 traceNumber=8",
        "Lost 5 messages before sending! from=8 to=8 reason=queue-full",
    ]


# -- both ends


class Ends(RuleBasedStateMachine):
    """Whatever happens to connections, writes and servers, each record is in the log once, or is
    told to be lost, or is still with the client."""

    def __init__(self) -> None:
        super().__init__()
        self.client = make_client(SMALL)
        self.log: list[dict] = []
        self.resume = ResumeState()
        self.server: ServerSession | None = None
        self.wire: list[bytes] = []
        self.made = 0

    @rule(size=st.integers(0, 3000), count=st.integers(1, 8))
    def trace(self, size, count):
        for _ in range(count):
            self.client.trace(make_trace(self.made, text="x" * size), NOW)
            self.made += 1

    @rule(limit=st.integers(1, 20))
    def drain(self, limit):
        self.client.drain(NOW, limit)

    @rule()
    def connect(self):
        self.disconnect()
        self.server = make_server(self.resume)
        self.client.connection_opened()
        self.client.receive_message(self.server.greeting())

    @precondition(lambda self: self.server)
    @rule(size=st.integers(1, 8000))
    def send(self, size):
        self.wire += self.client.messages_to_send(size, NOW)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def deliver(self, data):
        count = data.draw(st.integers(1, len(self.wire)))
        lines = received(self.server, *self.wire[:count])
        del self.wire[:count]
        if data.draw(st.booleans(), label="written"):
            self.log += lines
            self.server.written()
            if not self.wire:
                self.client.transport_confirmed(self.client.last_sent_number)
        else:
            self.resume.rewind()
            self.disconnect()

    @rule()
    def disconnect(self):
        self.client.connection_closed()
        self.server = None
        self.wire.clear()

    @rule()
    def restart_server(self):
        self.disconnect()
        seen: dict[str, int] = {}
        for line in self.log:
            if "traceNumber" in line:
                seen[line["traceSessionId"]] = line["traceNumber"]
            elif "gap" in line:
                seen[line["gap"]["session"]] = line["gap"]["to"]
        self.resume = ResumeState(seen.items())

    @invariant()
    def the_log_is_in_order_without_repeats(self):
        written = [line["caller"]["props"]["n"] for line in self.log if "caller" in line]
        assert written == sorted(set(written))
        assert not [note for note in notes(self.log) if note.startswith("Skipped")]

    def teardown(self):
        while self.client.drain(NOW):
            pass
        self.connect()
        self.wire = self.client.messages_to_send(EVERYTHING, NOW)
        self.log += received(self.server, *self.wire)
        written = [line for line in self.log if "caller" in line]
        gaps = [line["gap"] for line in self.log if "gap" in line]
        lost = sum(gap["count"] for gap in gaps)
        assert len(written) + lost == self.made
        assert self.client.lost == lost
        # Numbers are complete without exception.
        covered = {line["traceNumber"] for line in written}
        for gap in gaps:
            covered.update(range(gap["from"], gap["to"] + 1))
        assert covered == set(range(self.client.last_sent_number + 1))


TestEnds = Ends.TestCase
TestEnds.settings = settings(max_examples=80, deadline=None)
