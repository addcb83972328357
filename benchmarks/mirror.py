"""How fast records go from log files into MongoDB, and how fast it answers: records/s, ms.

200,000 lines of about 418 bytes, of a few applications, lie in the log files of one server; a
MongoStore with all its indexes copies them into a real mongod, a replica set of one member with
authentication on the same machine, every write acknowledged by a majority and journaled. The clock
runs from the opening of the empty store until nothing is behind. Then the store is asked, each
question twice; the second, warm answer counts. All counts are checked.

There is no JavaScript counterpart: hypertrace-logger writes files alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from benchmarks.figures import Measured, Run, Target, WrongResult, alternate
from benchmarks.machine import cost
from hyperlog.store.language import parse
from hyperlog.store.mongo import open_mongo
from hyperlog.store.query import Query
from tests.mongod import ReplicaSet
from tests.store.population import SERVER, realistic_lines

COUNT = 200_000
TIMEOUT = 300.0  # s
POLL = 0.01  # s

WAY = "log files → MongoDB"
RATE = "records into MongoDB"
SIZE = "bytes of a line"
COPIED = {RATE: "records/s", SIZE: "bytes"}
ANSWERS = (
    "newest 100",
    "newest 100 with a common word",
    "newest 100 with a rare word",
    "newest 100 of level ≥ ERROR",
    "newest 100 by a JSON field",
    "count of a common word",
    "histogram by minute and level",
    "top values of level",
    "top values of instance",
    "top values of a JSON field",
)
UNITS = COPIED | dict.fromkeys(ANSWERS, "ms")
TARGETS = {(RATE, WAY): Target(10_000)}


def _write_files(folder: Path) -> float:
    """Average bytes of a line."""
    by_source: dict[bytes, list[bytes]] = {}
    size = 0
    for source, line in realistic_lines(COUNT):
        by_source.setdefault(source, []).append(line)
        size += len(line)
    for source, lines in by_source.items():
        (folder / f"{source.hex()}.log").write_bytes(b"".join(line + b"\n" for line in lines))
    return size / COUNT


async def _milliseconds(ask: Callable[[], Awaitable[object]]) -> float:
    await ask()
    begin = time.monotonic()
    await ask()
    return (time.monotonic() - begin) * 1e3


async def _run(folder: Path, size: float, members: ReplicaSet, number: int) -> Run:
    (member,) = members.members
    assert member.process is not None
    before = cost(member.process.pid)
    begin = time.monotonic()
    store = open_mongo(members.uri(f"run{number}"), folder, server=SERVER)
    async with store:
        with trio.fail_after(TIMEOUT):
            while True:
                if store.statistics().inserted >= COUNT and not store.statistics().behind:
                    break
                await trio.sleep(POLL)
        seconds = time.monotonic() - begin
        used = cost(member.process.pid).since(before)
        held = await store.count(Query())
        if held != COUNT:
            raise WrongResult(f"{held} of {COUNT} records in MongoDB")
        common, rare = Query(parse("common")), Query(parse("rare"))
        severe, slow = Query(parse("level>=error")), Query(parse("caller.props.ms>=620"))
        bins = await store.histogram(Query(), step=60_000)
        if sum(sum(one.counts.values()) for one in bins) != COUNT:
            raise WrongResult("the histogram has other records")
        questions: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: store.search(Query()),
            lambda: store.search(common),
            lambda: store.search(rare),
            lambda: store.search(severe),
            lambda: store.search(slow),
            lambda: store.count(common),
            lambda: store.histogram(Query(), step=60_000),
            lambda: store.top(Query(), "level"),
            lambda: store.top(Query(), "instance"),
            lambda: store.top(Query(), "caller.functionName"),
        )
        times = [await _milliseconds(ask) for ask in questions]
    with members.client() as client:
        client.drop_database(f"run{number}")
    values = {RATE: COUNT / seconds, SIZE: size} | dict(zip(ANSWERS, times, strict=True))
    return Run(values, {"mongod, copying": used})


async def measure(repeats: int) -> Measured:
    measured = Measured()
    with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
        folder = Path(name) / "logs"
        folder.mkdir()
        size = _write_files(folder)
        members = ReplicaSet(Path(name) / "mongod")
        numbers = iter(range(repeats + 1))
        try:
            members.start()
            runs = await alternate(
                "mirror", repeats, {WAY: lambda: _run(folder, size, members, next(numbers))}
            )
        finally:
            members.close()
    measured.add(WAY, runs[WAY], UNITS, TARGETS)
    return measured
