"""What becomes of the store when its file is taken away, overwritten, or cannot grow."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio

from hyperlog.errors import StoreUnavailable
from hyperlog.store.language import parse
from hyperlog.store.query import Query
from hyperlog.store.sqlite import DATABASE, EmbeddedStore
from tests.store.population import SERVER

RATE = 2000  # records per second
SOURCES = [bytes([number]) * 32 for number in range(4)]


def line(number: int) -> bytes:
    time = f"2026-11-21T00:{number // 60_000 % 60:02}:{number // 1000 % 60:02}.{number % 1000:03}Z"
    return (
        b'{"time":"%b","traceSessionId":"s","traceNumber":%d,"level":"INFO",'
        b'"message":"record %d of many","props":{"n":%d}}'
    ) % (time.encode(), number, number, number)


class Ingest:
    """Appends RATE records per second to the log files, in a thread, as a server does."""

    def __init__(self, folder: Path, store: EmbeddedStore) -> None:
        self.count = 0
        self._folder = folder
        self._store = store
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Ingest:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping = True
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stopping:
            due = int((time.monotonic() - began) * RATE)
            for number, source in enumerate(SOURCES):
                lines = [line(n) for n in range(self.count, due) if n % len(SOURCES) == number]
                if lines:
                    with open(self._folder / f"{source.hex()}.log", "ab") as file:
                        file.write(b"\n".join(lines) + b"\n")
                    self._store.lines_written(source, lines)
            self.count = max(due, self.count)
            time.sleep(0.01)


async def wait_for(store: EmbeddedStore, count: int) -> None:
    with trio.fail_after(30):
        # A thread changes it:
        while store.follower.behind or store.statistics().records < count:  # noqa: ASYNC110
            await trio.sleep(0.02)


async def wait_until(condition) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - threads change it
            await trio.sleep(0.02)


async def assert_holds_exactly(store: EmbeddedStore, count: int) -> None:
    """All records, each once, in the tables, in the counters and in the index of words."""
    await wait_for(store, count)
    assert store.statistics().records == count
    assert await store.count(Query()) == count
    assert await store.count(Query(parse('"of many"'))) == count
    assert sum(sum(b.counts.values()) for b in await store.histogram(Query(), step=1000)) == count
    top = await store.top(Query(), "props.n", limit=1)
    assert (top.distinct, top.records) == (count, count)
    assert top.values[0][1] == 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".hyperlog" / DATABASE


@pytest.fixture
def store(tmp_path, path):
    return EmbeddedStore(path, tmp_path, server=SERVER)


def checkpoint(path: Path) -> None:
    """Let the file itself hold what is in the write-ahead log."""
    connection = sqlite3.connect(path)
    connection.execute("pragma wal_checkpoint(truncate)").fetchall()
    connection.close()


def delete(path: Path) -> None:
    path.unlink()


def delete_all(path: Path) -> None:
    for one in path.parent.glob(f"{DATABASE}*"):
        if not one.name.endswith(".lock"):
            one.unlink()


def delete_the_log(path: Path) -> None:
    path.with_name(f"{DATABASE}-wal").unlink()


def overwrite(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def overwrite_the_middle(path: Path) -> None:
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(4096)
        file.write(os.urandom(max(size - 4096, 64 * 1024)))


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize(
    "harm",
    [delete, delete_all, delete_the_log, overwrite, overwrite_the_middle, empty],
)
async def test_a_store_that_is_harmed_while_records_come_is_made_again(harm, store, path, tmp_path):
    async with store:
        with Ingest(tmp_path, store) as ingest:
            await wait_until(lambda: store.statistics().records > 1000)
            checkpoint(path)
            harm(path)
            await trio.sleep(0.5)
            with trio.fail_after(30):
                while True:
                    try:
                        await store.count(Query(parse("many")))
                    except StoreUnavailable:
                        await trio.sleep(0.05)
                        continue
                    if store.statistics().failures:
                        break
                    await trio.sleep(0.05)
        await assert_holds_exactly(store, ingest.count)


@pytest.mark.parametrize("harm", [delete, overwrite, overwrite_the_middle, empty])
async def test_a_store_that_is_harmed_while_nobody_uses_it_is_made_again(
    harm, store, path, tmp_path
):
    async with store:
        with Ingest(tmp_path, store) as ingest:
            await wait_until(lambda: ingest.count > 500)
        await wait_for(store, ingest.count)
    harm(path)
    async with EmbeddedStore(path, tmp_path, server=SERVER) as again:
        await assert_holds_exactly(again, ingest.count)


async def test_a_full_disk_delays_records_and_loses_none(store, path, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with store:
        with Ingest(tmp_path, store) as ingest:
            await wait_until(lambda: store.statistics().records > 1000)
            log = path.with_name(f"{DATABASE}-wal").stat().st_size
            # The log files are smaller: only the store's do not fit any more.
            resource.setrlimit(resource.RLIMIT_FSIZE, (log + 64 * 1024, hard))
            try:
                await wait_until(lambda: store.statistics().failures >= 2)
                statistics = store.statistics()
                assert statistics.last_error is not None
                assert DATABASE in statistics.last_error
                assert statistics.behind > 0
                assert await store.count(Query()) == statistics.records
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await wait_until(lambda: store.statistics().last_error is None)
        await assert_holds_exactly(store, ingest.count)


FOLLOW = """
import sys, trio
from pathlib import Path
from hyperlog.store.sqlite import DATABASE, EmbeddedStore

async def main(folder):
    store = EmbeddedStore(folder / ".hyperlog" / DATABASE, folder, server=sys.argv[2])
    async with store:
        print("open", flush=True)
        await trio.sleep_forever()

trio.run(main, Path(sys.argv[1]))
"""


def follower_process(folder: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", FOLLOW, str(folder), SERVER]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE)


async def test_a_server_that_is_killed_again_and_again_holds_each_record_once(
    store, path, tmp_path
):
    with Ingest(tmp_path, store) as ingest:
        for patience in (0.2, 0.5, 0.9):
            with follower_process(tmp_path) as process:
                assert process.stdout is not None
                assert await trio.to_thread.run_sync(process.stdout.readline) == b"open\n"
                await trio.sleep(patience)
                process.send_signal(signal.SIGKILL)
    async with store:
        await assert_holds_exactly(store, ingest.count)


async def test_a_store_that_another_process_uses_is_not_opened(store, tmp_path):
    with follower_process(tmp_path) as process:
        assert process.stdout is not None
        assert await trio.to_thread.run_sync(process.stdout.readline) == b"open\n"
        with pytest.raises(StoreUnavailable, match="stop it first"):
            async with store:
                raise AssertionError("it was opened")
        process.kill()
    async with store:
        assert await store.count(Query()) == 0
