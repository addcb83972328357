"""What the embedded store costs and how fast it answers: records/s, ms, MB.

Ingest: lines a second from `trace()` in one Python client to the log file of `hyperlog serve`,
100,000 traces of about 418 bytes, with log files alone and with the embedded store, which may lag;
then the seconds until it has caught up.

Store: 1,000,000 lines of the same size, of three applications, lie in log files; a process with
nothing but an embedded store takes them in, with full-text search over all values. Then it is
asked, each question six times; the first answer does not count.

There is no JavaScript counterpart: hypertrace-logger writes files alone.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import trio

from benchmarks.figures import Figure, Measured, Run, Target, WrongResult, alternate
from benchmarks.logfile import LogFile
from benchmarks.machine import say
from benchmarks.peers import (
    Address,
    network,
    python,
    run_peer,
    serve_command,
    trace_client_command,
)
from hyperlog.records import iso_time
from hyperlog.store.query import Compare, Query
from hyperlog.store.sqlite import DATABASE, EmbeddedStore
from tests.store.population import BEGIN, realistic_lines

TRACES = 100_000
WARM_UP = 2_000
TIMEOUT = 300.0  # s
RECORDS = 1_000_000
POLL = 0.05  # s
TRACES_ONLY = Query(Compare("kind", "=", "trace"))
RARE_EVERY = 200_000  # records

FILES = "files alone"
STORE = "with the store"
RATE = "lines in the file"
MEMORY = "peak memory of the server"
LAG = "until the store has all of them"
SHARE = "lines in the file, of those without a store"

EMBEDDED = "embedded store"
INSERTED = "records into the store"
QUESTIONS = {
    "newest 100": None,
    "newest 100 with a common word": 20.0,
    "newest 100 with a rare word": 20.0,
    "newest 100 with a phrase": 20.0,
    "newest 100 of level ≥ ERROR": None,
    "newest 100 by a JSON field": None,
    "count of a common word": None,
    "histogram by minute and level": 50.0,
    "top values of bucket": 50.0,
    "top values of instance": 50.0,
    "top values of level": 50.0,
    "top values of a JSON field": 1500.0,
}
"""and their targets, ms"""
STORE_MEMORY = "peak memory of the store's process"
DISK = "store on disk, of the log files"


async def _ingest(store: bool, bootstrap: list[Address]) -> Run:
    with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
        folder = Path(name)
        command = serve_command(folder, bootstrap)
        if store:
            command[command.index("--store") + 1] = "sqlite"
        async with (
            run_peer(command, ready="started") as server,
            run_peer(trace_client_command("python", server.public_key, bootstrap)) as client,
        ):
            await client.event("greeting")
            log = LogFile(folder / f"{client.public_key}.log")
            await client.command(send=WARM_UP)
            await log.wait_traces(WARM_UP, TIMEOUT)
            log.check(WARM_UP)
            await client.event("sent")
            before = server.cost()
            begin = time.monotonic()
            await client.command(send=TRACES)
            await log.wait_traces(TRACES, TIMEOUT)
            seconds = time.monotonic() - begin
            cost = server.cost()
            log.check(TRACES)
            log.close()
            values = {RATE: TRACES / seconds, MEMORY: cost.peak_bytes / 1e6}
            if store:
                await _wait_held(folder, WARM_UP + TRACES)
                values[LAG] = time.monotonic() - begin - seconds
                values[MEMORY] = server.cost().peak_bytes / 1e6
        return Run(values, {"server": cost.since(before)})


async def _wait_held(folder: Path, count: int) -> None:
    server = "0" * 64
    store = EmbeddedStore(folder / ".hyperlog" / DATABASE, folder, server=server)
    with trio.fail_after(TIMEOUT):
        # Another process changes it:
        while await store.count(TRACES_ONLY) != count:  # noqa: ASYNC110
            await trio.sleep(POLL)
    await store.aclose()


def _write_files(folder: Path) -> tuple[int, int]:
    """How many records there are in them, and their size."""
    files: dict[bytes, list[bytes]] = {}
    records = size = 0
    for number, (source, line) in enumerate(realistic_lines(RECORDS)):
        lines = files.setdefault(source, [])
        lines.append(line)
        if number % RARE_EVERY == RARE_EVERY // 2:
            time_text = iso_time(BEGIN / 1000 + number * 0.04)
            lines.append(b'{"time":"%b","note":"a quokka came by"}' % time_text.encode())
        if len(lines) >= 2000:
            records, size = records + len(lines), size + _append(folder, source, lines)
    for source, lines in files.items():
        records, size = records + len(lines), size + _append(folder, source, lines)
    return records, size


def _append(folder: Path, source: bytes, lines: list[bytes]) -> int:
    data = b"".join(line + b"\n" for line in lines)
    with open(folder / f"{source.hex()}.log", "ab") as file:
        file.write(data)
    lines.clear()
    return len(data)


async def _ask_store() -> Measured:
    measured = Measured()
    with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
        folder = Path(name)
        records, size = await trio.to_thread.run_sync(_write_files, folder)
        command = python("embedded_store", [], folder=str(folder), records=records)
        async with run_peer(command) as peer:
            held = await peer.event("held", TIMEOUT)
            rate = records / held["seconds"]
            measured.figures.append(Figure(INSERTED, EMBEDDED, "records/s", [rate], Target(30_000)))
            say(f"store: {rate:.0f} records/s")
            for question, bound in QUESTIONS.items():
                answer = await peer.event("answer", TIMEOUT)
                if answer["question"] != question:
                    raise WrongResult(f"asked {question!r}, got {answer}")
                target = None if bound is None else Target(bound, at_most=True)
                measured.figures.append(Figure(question, EMBEDDED, "ms", answer["ms"], target))
                say(f"store: {question} {answer['ms']}")
            await peer.event("done")
            memory = peer.cost().peak_bytes / 1e6
        target = Target(200, at_most=True)
        measured.figures.append(Figure(STORE_MEMORY, EMBEDDED, "MB", [memory], target))
        disk = (folder / ".hyperlog" / "store.sqlite").stat().st_size
        measured.figures.append(Figure(DISK, EMBEDDED, "", [disk / size]))
    return measured


async def measure(repeats: int) -> Measured:
    async with network() as bootstrap:
        runs = await alternate(
            "store",
            repeats,
            {
                FILES: lambda: _ingest(False, bootstrap),
                STORE: lambda: _ingest(True, bootstrap),
            },
        )
    measured = await _ask_store()
    units = {RATE: "lines/s", MEMORY: "MB", LAG: "s"}
    for which in (FILES, STORE):
        measured.add(which, runs[which], units, {(MEMORY, STORE): Target(200, at_most=True)})
    shares = [
        with_store.values[RATE] / alone.values[RATE]
        for with_store, alone in zip(runs[STORE], runs[FILES], strict=True)
    ]
    measured.figures.append(Figure(SHARE, STORE, "", shares, Target(0.6)))
    return measured
