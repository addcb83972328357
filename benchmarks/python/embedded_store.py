"""A process that has nothing but an embedded store, so that its memory is the store's.

Options: folder (log files), records (how many are in them). Events: ready, held (seconds until all
were in the store), answers (ms of each question, warm), memory (bytes at the most).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from benchmarks.python.driver import options, send
from hyperlog.store.answers import Top
from hyperlog.store.language import parse
from hyperlog.store.query import Query
from hyperlog.store.sqlite import DATABASE, EmbeddedStore
from tests.store.population import SERVER

POLL = 0.02  # s
REPEATS = 5  # of a question, after one that does not count


async def _ms(ask: Callable[[], Awaitable[object]]) -> list[float]:
    await ask()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        await ask()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


async def main() -> None:
    folder, count = Path(options["folder"]), options["records"]
    store = EmbeddedStore(folder / ".hyperlog" / DATABASE, folder, server=SERVER)
    everything = Query()
    reports: list[Top] = []
    questions: dict[str, Callable[[], Awaitable[object]]] = {
        "newest 100": lambda: store.search(everything),
        "newest 100 with a common word": lambda: store.search(Query(parse("alice"))),
        "newest 100 with a rare word": lambda: store.search(Query(parse("quokka"))),
        "newest 100 with a phrase": lambda: store.search(Query(parse('"cache session"'))),
        "newest 100 of level ≥ ERROR": lambda: store.search(Query(parse("level>=error"))),
        "newest 100 by a JSON field": lambda: store.search(Query(parse("caller.props.ms>599"))),
        "count of a common word": lambda: store.count(Query(parse("alice"))),
        "histogram by minute and level": lambda: store.histogram(everything, step=60_000),
        "top values of bucket": lambda: store.top(everything, "bucket"),
        "top values of instance": lambda: store.top(everything, "instance"),
        "top values of level": lambda: store.top(everything, "level"),
        "top values of a JSON field": lambda: store.top(
            everything, "caller.functionName", report=reports.append
        ),
    }
    send("ready")
    begin = time.perf_counter()
    async with store:
        while store.follower.behind:  # noqa: ASYNC110 - a thread changes it
            await trio.sleep(POLL)
        send("held", seconds=time.perf_counter() - begin, records=store.statistics().records)
        if await store.count(everything) != count:
            send("error", message="not all records are held")
        for question, ask in questions.items():
            send("answer", question=question, ms=await _ms(ask))
        if not reports:
            send("error", message="a long count did not tell of its progress")
        send("done")
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
