"""Milliseconds from a process's start, and from `trace()`, to the line in the file, loopback.

Start of a client: from the start of the process (interpreter included) to its first trace in the
file of a server that runs already. Start of a server: to its line that says it has started, which
comes when it is announced. Then the time from `trace()` to the line at 200 traces a second for
10 s over an open connection, after 1 s of warm-up; both ends are read from the system's monotonic
clock, and inotify tells of the writing.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import trio

from benchmarks.figures import (
    JS,
    PYTHON,
    Measured,
    Run,
    WrongResult,
    alternate,
)
from benchmarks.logfile import LogFile, watch
from benchmarks.peers import Address, network, run_peer, trace_client_command, trace_server

PER_SECOND = 200
SECONDS = 10
TIMEOUT = 30.0  # s

SERVER_START = "start of the server to `server started`"
CLIENT_START = "start of the client to its first line in the file"
UNITS = {
    SERVER_START: "ms",
    CLIENT_START: "ms",
    "trace to line, p50": "ms",
    "trace to line, p99": "ms",
    "trace to line, longest": "ms",
}


async def _client_start(language: str, key: str, folder: Path, bootstrap: list[Address]) -> float:
    """Milliseconds to the first trace in the file."""
    async with watch(folder) as watcher:
        begin = time.monotonic()
        command = trace_client_command(language, key, bootstrap, count=1)
        arrived = 0.0
        seen = trio.Event()

        async def wait_line() -> None:
            nonlocal arrived
            with trio.fail_after(TIMEOUT):
                while True:
                    for name in await watcher.changed():
                        if (
                            name.endswith(".log")
                            and b"order-placed" in await trio.Path(folder / name).read_bytes()
                        ):
                            arrived = time.monotonic()
                            seen.set()
                            return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_line)
            async with run_peer(command) as client:
                await client.event("sent")
                await seen.wait()
                # Before the client goes, which the file may get a note of.
                log = LogFile(folder / f"{client.public_key}.log")
                log.read()
                log.check(1)
                log.close()
    return (arrived - begin) * 1000


async def _trace_to_line(
    language: str, key: str, folder: Path, bootstrap: list[Address], run: Run
) -> list[float]:
    """Milliseconds of each trace, sorted."""
    command = trace_client_command(language, key, bootstrap, shape="stamped", rate=PER_SECOND)
    if language == "js":
        command = trace_client_command(
            language, key, bootstrap, shape="stamped", rate=PER_SECOND, mode="rate"
        )
    async with run_peer(command) as client:
        await client.event("greeting")
        log = LogFile(folder / f"{client.public_key}.log")
        await client.command(send=PER_SECOND)
        await log.wait_traces(PER_SECOND, TIMEOUT)
        log.check(PER_SECOND)
        await client.event("sent")
        begun = client.cost()
        milliseconds: list[float] = []
        async with watch(folder) as watcher:
            await client.command(send=PER_SECOND * SECONDS)
            with trio.move_on_after(SECONDS + TIMEOUT):
                while len(milliseconds) < PER_SECOND * SECONDS:
                    await watcher.changed()
                    log.read()
                    now = time.monotonic_ns()
                    milliseconds += [(now - stamp) / 1e6 for stamp in log.stamps()]
        log.close()
        run.costs["client, 2,000 traces at 200/s"] = client.cost().since(begun)
    if len(milliseconds) != PER_SECOND * SECONDS:
        raise WrongResult(f"{len(milliseconds)} lines of {PER_SECOND * SECONDS}")
    return sorted(milliseconds)


async def _run(language: str, bootstrap: list[Address]) -> Run:
    run = Run({})
    with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
        folder = Path(name)
        begin = time.monotonic()
        async with trace_server(language, folder, bootstrap) as server:
            run.values[SERVER_START] = (time.monotonic() - begin) * 1000
            key = server.public_key
            run.values[CLIENT_START] = await _client_start(language, key, folder, bootstrap)
            begun = server.cost()
            sorted_ms = await _trace_to_line(language, key, folder, bootstrap, run)
            run.costs["server, 2,200 traces at 200/s"] = server.cost().since(begun)
    count = len(sorted_ms)
    run.values["trace to line, p50"] = sorted_ms[count // 2]
    run.values["trace to line, p99"] = sorted_ms[count * 99 // 100]
    run.values["trace to line, longest"] = sorted_ms[-1]
    return run


async def measure(repeats: int) -> Measured:
    measured = Measured()
    async with network() as bootstrap:
        pairs = {
            JS: lambda: _run("js", bootstrap),
            PYTHON: lambda: _run("python", bootstrap),
        }
        runs = await alternate("latency", repeats, pairs)
    for peers, some in runs.items():
        measured.add(peers, some, UNITS)
    return measured
