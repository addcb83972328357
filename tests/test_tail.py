from __future__ import annotations

import json
import threading

import pytest
import trio

from hyperlog import tail as tail_module
from hyperlog.errors import QueryError
from hyperlog.records import instance_source, line_tags
from hyperlog.sinks.files import FileSink
from hyperlog.sinks.writer import LogWriter
from hyperlog.store.language import parse
from hyperlog.store.query import Text
from hyperlog.tail import MAX_WAITING, Tail

SERVER = "5e" * 32
SOURCE = instance_source("cerco", "a2b5")
TAGS = line_tags("cerco", "a2b5").decode()


def line(number, level="INFO", message="disk full", **fields):
    rest = json.dumps(
        {"traceSessionId": "1", "traceNumber": number, "level": level, "message": message, **fields}
    )
    return f'{{"time":"2026-11-20T10:00:00.000Z","userId":"u",{TAGS}{rest[1:]}'.encode()


async def seen_by(viewer, count):
    """The numbers of the next `count` records, and how many were left out meanwhile."""
    numbers, left_out = [], 0
    with trio.fail_after(10):
        while len(numbers) + left_out < count:
            seen = await viewer.receive()
            numbers += [record.number for record in seen.records]
            left_out += seen.left_out
    return numbers, left_out


async def test_viewers_see_what_is_written_and_matches(tmp_path):
    tail = Tail(SERVER)
    async with LogWriter(FileSink(tmp_path)) as writer:
        writer.listeners += (tail.lines_written,)
        with (
            tail.subscribe(None) as everything,
            tail.subscribe(parse("level>=error")) as errors,
            tail.subscribe(parse("bucket:midas")) as others,
        ):
            lines = [line(n, "ERROR" if n % 3 == 0 else "INFO") for n in range(10)]
            await writer.write(SOURCE, lines)
            assert await seen_by(everything, 10) == (list(range(10)), 0)
            assert await seen_by(errors, 4) == ([0, 3, 6, 9], 0)
            with trio.move_on_after(0.05) as scope:
                await others.receive()
            assert scope.cancelled_caught
        assert tail.statistics().viewers == 0


async def test_a_record_is_what_the_stores_make_of_the_line():
    tail = Tail(SERVER)
    with tail.subscribe(None) as viewer:
        tail.lines_written(SOURCE, [line(7, "ERROR")])
        [record] = (await viewer.receive()).records
    assert (record.server, record.source, record.key) == (SERVER, SOURCE.hex(), None)
    assert (record.bucket, record.instance, record.level) == ("cerco", "a2b5", 40)


async def test_nothing_is_parsed_and_no_thread_runs_while_nobody_watches(monkeypatch):
    def forbidden(*_):
        raise AssertionError

    tail, threads = Tail(SERVER), set(threading.enumerate())
    monkeypatch.setattr(tail_module, "record_of", forbidden)
    tail.lines_written(SOURCE, [line(0)] * 1000)
    assert tail.statistics().records == 0
    assert not set(threading.enumerate()) - threads


async def test_the_thread_ends_with_the_last_viewer_and_begins_anew_with_the_next():
    tail, threads = Tail(SERVER), set(threading.enumerate())
    for _ in range(3):
        with tail.subscribe(None) as viewer:
            [thread] = [one for one in set(threading.enumerate()) - threads if "tail" in one.name]
            tail.lines_written(SOURCE, [line(0)])
            assert await seen_by(viewer, 1) == ([0], 0)
        await trio.to_thread.run_sync(thread.join, 5)
        assert not thread.is_alive()


async def test_a_viewer_that_does_not_look_loses_records_and_is_told_how_many():
    tail = Tail(SERVER)
    with tail.subscribe(None) as slow, tail.subscribe(parse("level>=error")) as quick:
        count = 3 * MAX_WAITING
        tail.lines_written(SOURCE, [line(n) for n in range(count)])
        tail.lines_written(SOURCE, [line(count, "ERROR")])
        assert await seen_by(quick, 1) == ([count], 0)
        seen = await slow.receive()
        assert len(seen.records) == MAX_WAITING
        assert len(seen.records) + seen.left_out == count + 1
        tail.lines_written(SOURCE, [line(count + 1)])
        assert await seen_by(slow, 1) == ([count + 1], 0)


async def test_the_bytes_that_wait_for_a_viewer_are_bounded(monkeypatch):
    monkeypatch.setattr(tail_module, "MAX_WAITING_BYTES", 10_000)
    tail = Tail(SERVER)
    with tail.subscribe(None) as viewer, tail.subscribe(parse("last")) as last:
        tail.lines_written(SOURCE, [line(n, message="x" * 1000) for n in range(100)])
        tail.lines_written(SOURCE, [line(100, message="last")])
        await seen_by(last, 1)
        seen = await viewer.receive()
        assert sum(len(record.body) for record in seen.records) <= 10_000
        assert len(seen.records) + seen.left_out == 101


async def test_lines_that_come_faster_than_they_can_be_looked_at_are_counted(monkeypatch):
    monkeypatch.setattr(tail_module, "MAX_QUEUED", 5000)
    tail = Tail(SERVER)
    with tail.subscribe(None) as viewer:
        for start in range(0, 1000, 100):
            tail.lines_written(SOURCE, [line(n) for n in range(start, start + 100)])
        numbers, left_out = await seen_by(viewer, 1000)
        assert left_out > 0
        assert len(numbers) + left_out == 1000
        assert numbers == sorted(numbers)
        assert tail.statistics().left_out == left_out


async def test_a_line_that_is_no_record_hurts_nobody():
    tail = Tail(SERVER)
    with tail.subscribe(None) as viewer:
        bad = [b"", b"torn", b"{}", b"\xff", b'{"time":5}', b"[" * 100]
        tail.lines_written(SOURCE, [*bad, line(1), *bad])
        assert await seen_by(viewer, 1) == ([1], 0)


async def test_equal_questions_are_answered_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        tail_module, "predicate", lambda where: lambda reading: asked.append(reading) or True
    )
    tail = Tail(SERVER)
    with tail.subscribe(parse("disk")) as one, tail.subscribe(parse("disk")) as other:
        tail.lines_written(SOURCE, [line(0)])
        assert await seen_by(one, 1) == await seen_by(other, 1) == ([0], 0)
    assert len(asked) == 1


def test_a_question_that_is_too_large_is_refused():
    async def ask():
        with pytest.raises(QueryError), Tail(SERVER).subscribe(Text(("word",) * 1000)):
            pass

    trio.run(ask)


async def test_observers_see_all_lines_also_while_nobody_watches():
    tail, seen = Tail(SERVER), []
    tail.observers = (lambda source, lines: seen.append((source, list(lines))),)
    tail.lines_written(SOURCE, [b"a", b"b"])
    assert seen == [(SOURCE, [b"a", b"b"])]


async def test_looking_takes_a_part_of_the_time_only(monkeypatch):
    """However many lines come, and whatever is asked: who sends has the rest of the core."""
    slept, worked = [], []
    monkeypatch.setattr(tail_module.time, "sleep", slept.append)
    times = iter(range(0, 10_000, 2))
    monkeypatch.setattr(tail_module.time, "thread_time", lambda: worked.append(0) or next(times))
    tail = Tail(SERVER)
    with tail.subscribe(None) as viewer:
        tail.lines_written(SOURCE, [line(n) for n in range(1000)])
        await seen_by(viewer, 1000)
        await trio.lowlevel.checkpoint()
    assert slept
    assert set(slept) == {2 * (1 / tail_module.SHARE - 1)}
