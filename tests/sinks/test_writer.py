"""hyperlog.sinks.writer: durable lines in order, whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time

import pytest
import trio
import trio.testing

from hyperlog.errors import LogQuotaReached, SinkError
from hyperlog.sinks import files, writer
from hyperlog.sinks.files import FileSink
from hyperlog.sinks.folder import FilePolicy
from hyperlog.sinks.writer import LogWriter

KEY = bytes(range(32))
OTHER = bytes(32)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -f")


def line(number: int, session: str = "77", pad: int = 0) -> bytes:
    record = {"time": "", "traceSessionId": session, "traceNumber": number, "pad": "x" * pad}
    return json.dumps(record).encode()


def numbers(log: LogWriter, key: bytes = KEY) -> list[int]:
    lines = log.sink.path(key).read_bytes().splitlines()
    return [json.loads(line)["traceNumber"] for line in lines]


WRITER_THREAD = "hyperlog log writer"


class SlowDisk:
    """os.write and fdatasync that begin only once they are let."""

    def __init__(self, monkeypatch) -> None:
        self.go = threading.Event()
        self.go.set()
        self.writes: list[int] = []
        self.syncs = 0
        write = os.write
        sync = files._sync_data

        def slow_write(descriptor: int, data: bytes) -> int:
            # It is the os.write of the whole process, in which earlier tests may have left threads.
            if threading.current_thread().name != WRITER_THREAD:
                return write(descriptor, data)
            assert self.go.wait(20)
            self.writes.append(len(data))
            return write(descriptor, data)

        def slow_sync(descriptor: int) -> None:
            assert self.go.wait(20)
            self.syncs += 1
            sync(descriptor)

        monkeypatch.setattr(files.os, "write", slow_write)
        monkeypatch.setattr(files, "_sync_data", slow_sync)


@pytest.fixture
def disk(monkeypatch):
    return SlowDisk(monkeypatch)


@pytest.mark.parametrize("durability", ["write", "fsync"])
async def test_lines_are_in_the_file_when_write_returns(tmp_path, durability):
    sink = FileSink(tmp_path, synced=durability == "fsync")
    async with LogWriter(sink, durability=durability) as log:
        assert await log.write(KEY, [line(0), line(1)]) == 2
        assert numbers(log) == [0, 1]
        assert await log.write(KEY, []) == 0
        assert await log.write(OTHER, [line(5)]) == 1
        assert numbers(log, OTHER) == [5]
        assert await trio.to_thread.run_sync(log.resume, KEY) == [("77", 1)]
        statistics = log.statistics()
    assert (statistics.batches, statistics.lines, statistics.failures) == (2, 3, 0)
    assert statistics.queued_bytes == 0
    assert statistics.folder_keys == 2
    assert statistics.folder_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


async def test_each_write_is_a_checkpoint(tmp_path):
    async with LogWriter(FileSink(tmp_path)) as log:
        for lines in ([], [line(0)]):
            with trio.testing.assert_checkpoints():
                await log.write(KEY, lines)
            with trio.CancelScope() as scope:
                scope.cancel()
                await log.write(KEY, [line(1)])
            assert scope.cancelled_caught
        with trio.testing.assert_checkpoints():
            await log.wait_for_room(KEY)
        assert numbers(log) == [0]


async def test_lines_of_a_key_are_in_the_order_of_the_calls(tmp_path):
    async with LogWriter(FileSink(tmp_path)) as log:

        async def write(key: bytes, first: int) -> None:
            await log.write(key, [line(first), line(first + 1)])

        async with trio.open_nursery() as nursery:
            order: list[int] = []
            for n in range(0, 400, 2):
                # Tasks start in any order, so each is begun before the next.
                order.append(n)
                nursery.start_soon(write, KEY if n % 4 else OTHER, n)
                await trio.testing.wait_all_tasks_blocked()
        found = numbers(log)
        assert found == [m for n in order if n % 4 for m in (n, n + 1)]


async def test_what_waits_is_written_and_synced_together(tmp_path, disk):
    async with LogWriter(FileSink(tmp_path, synced=True), durability="fsync") as log:
        disk.go.clear()
        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(log.write, KEY, [line(n)])
                nursery.start_soon(log.write, OTHER, [line(n)])
            await trio.testing.wait_all_tasks_blocked()
            disk.go.set()
        assert sorted(numbers(log)) == sorted(numbers(log, OTHER)) == list(range(100))
        assert len(disk.writes) <= 4
        assert disk.syncs <= 8  # also of the folder


async def test_a_disk_that_blocks_holds_nobody_up_but_those_who_write(tmp_path, disk):
    async with LogWriter(FileSink(tmp_path)) as log:
        disk.go.clear()
        longest = 0.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.write, KEY, [line(0)])
            end = trio.current_time() + 1.0
            while trio.current_time() < end:
                before = time.perf_counter()
                await trio.sleep(0.001)
                longest = max(longest, time.perf_counter() - before)
            assert log.statistics().lines == 0
            disk.go.set()
        assert numbers(log) == [0]
    assert longest < 0.05


async def test_a_busy_key_does_not_starve_another(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(writer, "KEY_SHARE", 50_000)
    async with LogWriter(FileSink(tmp_path)) as log:
        disk.go.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(log.write, KEY, [line(0, pad=9_900)])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(log.write, OTHER, [line(0)])
            await trio.testing.wait_all_tasks_blocked()
            disk.go.set()
        assert len(disk.writes) >= 50
        assert max(disk.writes) < 70_000
        # What was under way, then one share of the busy key.
        assert disk.writes.index(len(line(0)) + 1) <= 2


async def taken(log: LogWriter) -> None:
    """Returns when the thread has taken what is queued: what comes now has to wait for it."""
    await trio.testing.wait_all_tasks_blocked()
    while log.statistics().queued_bytes:  # noqa: ASYNC110 - another thread takes it
        await trio.sleep(0.001)


async def test_a_server_that_waits_for_room_bounds_the_queue(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(writer, "MAX_KEY_QUEUE", 10_000)
    monkeypatch.setattr(writer, "MAX_QUEUE", 25_000)
    async with LogWriter(FileSink(tmp_path)) as log:
        disk.go.clear()
        highest = 0

        async def serve(key: bytes) -> None:
            nonlocal highest
            for n in range(20):
                await log.wait_for_room(key)
                nursery.start_soon(log.write, key, [line(n, pad=900)])
                await trio.testing.wait_all_tasks_blocked()
                highest = max(highest, log.statistics().queued_bytes)

        keys = [bytes([n]) * 32 for n in range(1, 6)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.write, bytes(32), [line(0)])
            await taken(log)
            for key in keys:
                nursery.start_soon(serve, key)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not log.statistics().keys_with_room
            disk.go.set()
        assert highest < 25_000 + 1_000 * len(keys)
        for key in keys:
            assert sorted(numbers(log, key)) == list(range(20))


@linux
async def test_a_failure_tells_every_task_how_much_of_its_own_is_there(tmp_path, disk):
    import resource

    outcomes: dict[int, int | str] = {}
    async with LogWriter(FileSink(tmp_path)) as log:
        await log.write(KEY, [line(0)])
        size = len(line(0)) + 1

        async def write(first: int) -> None:
            try:
                outcomes[first] = await log.write(KEY, [line(first), line(first + 1)])
            except SinkError as error:
                outcomes[first] = f"failed after {error.lines_written}"

        disk.go.clear()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(log.write, OTHER, [b"{}"])  # holds the thread up
                await taken(log)
                for first in (1, 3, 5):
                    nursery.start_soon(write, first)
                    await trio.testing.wait_all_tasks_blocked()
                resource.setrlimit(resource.RLIMIT_FSIZE, (size * 4 + 20, hard))
                disk.go.set()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert outcomes == {1: 2, 3: "failed after 1", 5: "failed after 0"}
        await log.write(KEY, [line(4)])
        text = log.sink.path(KEY).read_bytes().split(b"\n")
        assert [text[n] for n in (0, 1, 2, 3, 5)] == [line(n) for n in range(5)]
        assert log.resume(KEY) == [("77", 4)]
        assert log.statistics().failures == 2


async def test_a_key_takes_no_lines_until_all_have_heard_of_the_failure(tmp_path, monkeypatch):
    """What another connection has built upon the lines that failed must not be written."""
    heard: list[str] = []
    async with LogWriter(FileSink(tmp_path)) as log:
        await log.write(KEY, [line(0)])

        def fail(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        async def write(name: str, number: int) -> None:
            try:
                await log.write(KEY, [line(number)])
            except SinkError:
                heard.append(name)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "write", fail)
            log._failing[KEY] = 1  # the failure is known to the thread, not yet to the tasks
            with pytest.raises(SinkError, match="lines before these") as caught:
                await log.write(KEY, [line(2)])
            assert caught.value.lines_written == 0
            log._told(KEY)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, "a", 1)
                nursery.start_soon(write, "b", 2)
        assert sorted(heard) == ["a", "b"]
        assert not log._failing
        await log.write(KEY, [line(1)])
        assert numbers(log) == [0, 1]


async def test_what_is_cancelled_before_its_turn_is_not_written_nor_what_follows_it(tmp_path, disk):
    errors: list[SinkError] = []
    async with LogWriter(FileSink(tmp_path)) as log:
        disk.go.clear()

        async def follow() -> None:
            try:
                await log.write(KEY, [line(2)])
            except SinkError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.write, KEY, [line(0)])
            await taken(log)
            with trio.CancelScope() as scope:
                nursery.start_soon(self_cancel, scope)
                nursery.start_soon(follow_after, log, follow)
                await log.write(KEY, [line(1)])
            assert scope.cancelled_caught
            await trio.testing.wait_all_tasks_blocked()
            assert [error.lines_written for error in errors] == [0]
            disk.go.set()
        await log.write(KEY, [line(1)])
        assert numbers(log) == [0, 1]
        assert log.statistics().queued_bytes == 0


async def follow_after(log: LogWriter, follow) -> None:
    while log._queues.get(KEY) is None:
        await trio.lowlevel.checkpoint()
    await follow()


async def self_cancel(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_what_is_being_written_is_not_cancelled(tmp_path, disk):
    async with LogWriter(FileSink(tmp_path)) as log:
        disk.go.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.write, KEY, [line(0)])
            await taken(log)
            nursery.cancel_scope.cancel()
            disk.go.set()
        assert numbers(log) == [0]


async def test_a_failed_sync_fails_all_that_waited_for_it(tmp_path, monkeypatch):
    sink = FileSink(tmp_path, synced=True)
    async with LogWriter(sink, durability="fsync") as log:
        await log.write(KEY, [line(0)])

        def fail(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(files, "_sync_data", fail)
            with pytest.raises(SinkError, match="check the disk") as caught:
                await log.write(KEY, [line(1), line(2)])
        assert caught.value.lines_written == 2  # they are in the file: not to be written again
        await log.write(KEY, [line(3)])
        assert numbers(log) == [0, 1, 2, 3]


async def test_a_fault_of_ours_is_told_like_one_of_the_disk(tmp_path, monkeypatch, caplog):
    async with LogWriter(FileSink(tmp_path)) as log:

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(log.sink, "write", fail)
            with pytest.raises(SinkError, match="ZeroDivisionError"):
                await log.write(KEY, [line(0)])
        assert "writing lines failed" in caplog.text
        await log.write(KEY, [line(0)])


async def test_a_folder_that_vanishes_is_survived(tmp_path):
    above = tmp_path / "above"
    async with LogWriter(FileSink(above / "logs")) as log:
        await log.write(KEY, [line(0)])
        above.rename(tmp_path / "away")
        log.sink.close()  # what a second's passing does
        with pytest.raises(SinkError, match="create the folder above"):
            await log.write(KEY, [line(1)])
        (tmp_path / "away").rename(above)
        await log.write(KEY, [line(1)])
        assert numbers(log) == [0, 1]


async def test_long_lines_are_cut_and_counted(tmp_path):
    async with LogWriter(FileSink(tmp_path), max_line=4096) as log:
        assert await log.write(KEY, [line(0), line(1, pad=100_000), line(2)]) == 3
        assert numbers(log) == [0, 1, 2]
        first, cut, last = log.sink.path(KEY).read_bytes().splitlines()
        assert (first, last) == (line(0), line(2))
        assert json.loads(cut)["cut"] is True
        assert log.statistics().cut_lines == 1
        assert log.resume(KEY) == [("77", 2)]


async def test_a_quota_lets_a_key_wait_until_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "QUOTA_INTERVAL", 0.01)
    policy = FilePolicy(key_quota=3000, rotate_size=1000)
    async with LogWriter(FileSink(tmp_path, policy=policy)) as log:
        sent = 0
        while log.sink.table.size_of(KEY) < 3000:
            await log.write(KEY, [line(sent, pad=400)])
            sent += 1
        with pytest.raises(LogQuotaReached, match="--key-quota") as caught:
            await log.write(KEY, [line(sent)])
        assert caught.value.lines_written == 0
        await log.write(OTHER, [line(0)])
        with trio.move_on_after(0.1) as scope:
            await log.wait_for_room(KEY)
        assert scope.cancelled_caught
        assert log.statistics().quota_failures == 1
        log.sink.table.rotated_path(KEY, 1).unlink()
        with trio.fail_after(5):
            await log.wait_for_room(KEY)
        await log.write(KEY, [line(sent)])
        assert log.resume(KEY) == [("77", sent)]


async def test_the_writer_keeps_what_the_policy_says(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "TIDY_INTERVAL", 0.01)
    policy = FilePolicy(keep_bytes=3000, rotate_size=1000)
    async with LogWriter(FileSink(tmp_path, policy=policy)) as log:
        for n in range(40):
            await log.write(KEY, [line(n, pad=200)])
        with trio.fail_after(5):
            while log.statistics().folder_bytes > 3000:  # noqa: ASYNC110 - another thread's work
                await trio.sleep(0.005)
        assert log.statistics().removed_files > 5
        assert log.resume(KEY) == [("77", 39)]


async def test_what_is_queued_is_written_before_the_writer_closes(tmp_path, disk):
    async with trio.open_nursery() as nursery, LogWriter(FileSink(tmp_path)) as log:
        disk.go.clear()
        for n in range(10):
            nursery.start_soon(log.write, KEY, [line(n)])
        await trio.testing.wait_all_tasks_blocked()
        threading.Timer(0.05, disk.go.set).start()
    assert sorted(numbers(log)) == list(range(10))
    with pytest.raises(trio.ClosedResourceError):
        await log.write(KEY, [line(10)])


async def test_closing_does_not_wait_for_ever(tmp_path, disk, monkeypatch, caplog):
    monkeypatch.setattr(writer, "CLOSE_TIMEOUT", 0.05)
    async with trio.open_nursery() as nursery:
        async with LogWriter(FileSink(tmp_path)) as log:
            disk.go.clear()
            nursery.start_soon(log.write, KEY, [line(0)])
            await trio.testing.wait_all_tasks_blocked()
        assert "does not answer" in caplog.text
        disk.go.set()


async def test_a_quota_that_was_asked_about_is_looked_after(tmp_path):
    sink = FileSink(tmp_path, policy=FilePolicy(key_quota=1000, rotate_size=500))
    async with LogWriter(sink) as log:
        for number in range(2):
            await log.write(KEY, [line(number, pad=600)])
        with pytest.raises(LogQuotaReached):
            log.check_quota(KEY)
        log.check_quota(OTHER)
        (tmp_path / f"{KEY.hex()}.log.1").unlink()
        with trio.fail_after(10):
            await log.wait_for_room(KEY)
        log.check_quota(KEY)


# -- listeners


async def test_listeners_hear_of_what_stands_in_the_files(tmp_path, caplog):
    heard: list[tuple[bytes, list[bytes]]] = []

    def fail(key, lines):
        raise RuntimeError("not my day")

    async with LogWriter(FileSink(tmp_path), max_line=4096) as log:
        log.listeners = (fail, lambda key, lines: heard.append((key, list(lines))))
        await log.write(KEY, [b'{"a":1}', b'{"b":"' + b"x" * 5000 + b'"}'])
        await log.write(OTHER, [b'{"c":1}'])
    for key in (KEY, OTHER):
        told = [line for named, lines in heard if named == key for line in lines]
        assert told == (tmp_path / f"{key.hex()}.log").read_bytes().splitlines()
    assert caplog.text.count("telling of written lines failed") == 2


async def test_listeners_do_not_hear_of_what_was_not_written(tmp_path, monkeypatch):
    heard: list[bytes] = []
    write, room = os.write, [len(line(0)) + 5]

    def write_while_there_is_room(descriptor: int, data: bytes) -> int:
        if threading.current_thread() is threading.main_thread():
            return write(descriptor, data)
        count = write(descriptor, data[: room[0]]) if room[0] else 0
        room[0] -= count
        return count

    monkeypatch.setattr(files.os, "write", write_while_there_is_room)
    async with LogWriter(FileSink(tmp_path)) as log:
        log.listeners = (lambda key, lines: heard.extend(lines),)
        with pytest.raises(SinkError) as caught:
            await log.write(KEY, [line(0), line(1)])
        assert caught.value.lines_written == 1
    assert heard == [line(0)]


async def test_listeners_hear_only_of_what_was_synced(tmp_path, monkeypatch):
    heard: list[bytes] = []

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "no")

    async with LogWriter(FileSink(tmp_path, synced=True), durability="fsync") as log:
        log.listeners = (lambda key, lines: heard.extend(lines),)
        await log.write(KEY, [line(0)])
        monkeypatch.setattr(files, "_sync_data", fail)
        with pytest.raises(SinkError):
            await log.write(KEY, [line(1)])
    assert heard == [line(0)]
