from __future__ import annotations

import json
import re
import time

import pytest

from hyperlog.web import linecount
from hyperlog.web.linecount import TRACE_LABELS, LineCounter
from tests.web.site import LOGS, open_session, record, site, until

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (-?[0-9.e+-]+)")


def samples(text):
    """Values by name and labels, as a scraper reads them; fails for what it could not read."""
    found, types = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types
            types[name] = kind
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] in types
            key = match[1] if match[2] is None else f"{match[1]}{{{match[2]}}}"
            assert key not in found
            found[key] = float(match[3])
    return found


async def scrape(client):
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(answer.text)


def trace(number, class_name="Order", function="f", object_id=1, **fields):
    return json.dumps(
        {
            "traceSessionId": "7",
            "traceNumber": number,
            "object": {"id": object_id, "className": class_name},
            "caller": {"filename": "a.py", "functionName": function},
            **fields,
        }
    )


async def test_counts_are_told_in_the_format_of_prometheus(tmp_path):
    async with (
        site(tmp_path, store="sqlite") as here,
        here.client(here.token()) as sender,
        here.client() as scraper,
        here.websocket(token=here.token()) as websocket,
    ):
        await open_session(websocket)
        await sender.post(LOGS, json=[{"message": "a"}, {"message": "b"}, {"message": 5}])
        await sender.post(LOGS, json={"message": 5})
        await until(lambda: not here.server.store.statistics().behind)
        told = await scrape(scraper)
        assert told["hyperlog_records_total"] == 2
        assert told["hyperlog_requests_total"] == 1
        assert told['hyperlog_connections{transport="websocket"}'] == 1
        assert told["hyperlog_written_lines_total"] == 3
        assert told['hyperlog_store_records{store="sqlite"}'] == 3
        assert told['hyperlog_store_behind_bytes{store="sqlite"}'] == 0
        assert told['hyperlog_sink_behind_bytes{sink="files"}'] == 0
        for status, count in ((207, 1), (400, 1)):
            labels = f'endpoint="post_logs",status="{status}"'
            assert told[f"hyperlog_http_requests_total{{{labels}}}"] == count
        assert told["process_resident_memory_bytes"] > 1e6


async def test_traces_are_counted_as_by_hypertrace_prometheus_once_somebody_asks(tmp_path):
    parent = {"id": 5, "className": 'The "Shop"\n'}
    counted = []  # whoever writes is answered first
    async with site(tmp_path) as here:
        tail = here.server.tail
        tail.observers = (*tail.observers, lambda source, lines: counted.extend(lines))
        async with here.client(here.token()) as sender, here.client() as scraper:
            await sender.post(LOGS, content=trace(0))  # before anybody asked
            await until(lambda: sum(b'"object":' in line for line in counted) == 1)
            await scrape(scraper)
            lines = [trace(n) for n in (1, 2)]
            lines.append(trace(3, function="g", id="listen", parentObject=parent))
            await sender.post(LOGS, content="\n".join(lines))
            await until(lambda: sum(b'"object":' in line for line in counted) == 4)
            told = await scrape(scraper)
        counts = {key: value for key, value in told.items() if key.startswith("trace_counter")}
        assert counts == {
            'trace_counter{app="cerco",object_classname="Order",object_id="1",'
            'caller_functionname="f",caller_filename="a.py"}': 2,
            'trace_counter{app="cerco",id="listen",object_classname="Order",object_id="1",'
            'parent_object_classname="The \\"Shop\\"\\n",parent_object_id="5",'
            'caller_functionname="g",caller_filename="a.py"}': 1,
        }


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"], ids=str.lower
)
async def test_metrics_are_for_this_machine_or_who_may_read_everything(tmp_path, header):
    async with site(tmp_path) as here:
        async with here.client(**{header: "203.0.113.7"}) as proxied:
            answer = await proxied.get("/metrics")
            assert (answer.status_code, answer.json()["code"]) == (401, "TOKEN_REQUIRED")
        async with here.client(here.reader(), **{header: "203.0.113.7"}) as bound:
            assert (await bound.get("/metrics")).status_code == 403
        async with here.client(here.reader("*"), **{header: "203.0.113.7"}) as reader:
            assert (await reader.get("/metrics")).status_code == 200


async def test_lost_records_are_counted_by_reason(tmp_path):
    gap = {"session": "123456789", "from": 0, "to": 41, "count": 42, "reason": "spool-full"}
    told = json.dumps(
        {"traceSessionId": "123456789", "traceNumber": 41, "note": "lost", "gap": gap}
    )
    async with site(tmp_path) as here, here.client() as scraper:
        async with here.websocket(token=here.token()) as websocket:
            await open_session(websocket)
            head = '{"batch":{"session":"123456789","from":0,"count":1}}'
            await websocket.send_message(f"{head}\n{told}")
            await websocket.get_message()
        counts = await scrape(scraper)
        assert counts['hyperlog_lost_records_total{reason="spool-full"}'] == 42


def line(text):
    return b'{"time":"2026-11-20T10:00:00.000Z","userId":"u","app":"cerco",' + text.encode()[1:]


def test_the_number_of_series_is_bounded():
    counter = LineCounter()
    counter.traces()
    total = linecount.MAX_SERIES + 500
    for n in range(total):
        counter.lines_written(b"", [line(trace(0, object_id=n))])
    assert len(counter.traces()) == linecount.MAX_WITH_OBJECTS + 1
    for n in range(total):
        counter.lines_written(b"", [line(trace(0, class_name=f"C{n}"))])
    series = counter.traces()
    assert len(series) == linecount.MAX_SERIES
    assert sum(count for _, count in series) + counter.left_out == 2 * total
    assert all(len(labels) == len(TRACE_LABELS) for labels, _ in series)


def test_traces_are_counted_as_long_as_somebody_asks():
    now = 0.0
    counter = LineCounter(lambda: now)
    counter.lines_written(b"", [line(trace(0))])
    assert counter.traces() == []
    counter.lines_written(b"", [line(trace(1))])
    now = linecount.IDLE_TIME + 1
    counter.lines_written(b"", [line(trace(2))])
    [(_, count)] = counter.traces()
    assert count == 1


def test_what_is_no_trace_or_gap_is_passed_over():
    counter = LineCounter()
    counter.traces()
    forged = '{"message":"x","attributes":{"gap":{"count":7,"reason":"spool-full"}}}'
    lines = [b"", b"torn", b"\xff", line(forged), line('{"object":{"id":"x"},"caller":{}}')]
    lines += [line('{"object":{}}'), b'{"note":"","gap":{"count":1}}', record(0)]
    counter.lines_written(b"", lines)
    assert counter.traces() == []
    assert not counter.lost


def test_no_record_can_make_the_counting_take_long():
    counter = LineCounter()
    many = ",".join(['"count":1'] * 15_000)  # eight seconds, if gaps are looked for in it
    began_at = time.perf_counter()
    counter.lines_written(b"", [line(f'{{"message":"x","attributes":{{"gap":{{{many}}}}}}}')])
    assert time.perf_counter() - began_at < 1
    assert not counter.lost
