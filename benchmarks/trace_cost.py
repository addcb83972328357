"""Microseconds that `trace(id, props)` costs its caller: switched off, and on in several ways.

Seven props, made beforehand; the loop around the call is counted in. Each in a process of its own
that runs nothing else in its main thread:
  - switched off;
  - switched on with a function that does nothing, the tracer alone: with an id, and with props only
    (the JavaScript tracer remembers the stack by the id, and makes a new one without);
  - queued by a client that cannot reach its server, and by one that is connected: bursts of 1,000
    calls with pauses in which the client works, and 20,000 calls in a tight loop, which share the
    interpreter with the thread that ships them. JavaScript encodes and writes within the call;
  - single calls 200 times a second by a connected client, each of which has to wake it.
All that was traced while connected must be in the log file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.figures import JS, PYTHON, Measured, Run, Target, alternate
from benchmarks.logfile import LogFile
from benchmarks.peers import Address, js, network, python, run_peer, trace_server

OFF = "switched off"
BURST_UNCONNECTED = "queued, unconnected, bursts of 1,000"
LOOP_UNCONNECTED = "queued, unconnected, tight loop of 20,000"
BURST = "queued, connected, bursts of 1,000"
LOOP = "queued, connected, tight loop of 20,000"
UNITS = dict.fromkeys(
    (
        OFF,
        "tracer alone, with id",
        "tracer alone, without id",
        BURST_UNCONNECTED,
        LOOP_UNCONNECTED,
        BURST,
        LOOP,
        "single calls, connected, p50",
        "single calls, connected, p99",
    ),
    "µs",
)
QUEUED = Target(3.0, at_most=True)
TARGETS = {
    (OFF, PYTHON): Target(0.3, at_most=True),
    (BURST_UNCONNECTED, PYTHON): QUEUED,
    (LOOP_UNCONNECTED, PYTHON): QUEUED,
    (BURST, PYTHON): QUEUED,
    (LOOP, PYTHON): QUEUED,
}
TIMEOUT = 60.0  # s


async def _run(language: str, bootstrap: list[Address]) -> Run:
    with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
        folder = Path(name)
        async with trace_server(language, folder, bootstrap) as server:
            command = js if language == "js" else python
            script = "trace_cost.js" if language == "js" else "trace_cost"
            async with run_peer(command(script, bootstrap, key=server.public_key)) as peer:
                measured = await peer.event("measured")
                log = LogFile(folder / f"{peer.public_key}.log")
                await log.wait_traces(measured["traced"], TIMEOUT)
                log.check(measured["traced"])
                log.close()
                return Run(measured["microseconds"], {"process": peer.cost()})


async def measure(repeats: int) -> Measured:
    measured = Measured()
    async with network() as bootstrap:
        pairs = {
            JS: lambda: _run("js", bootstrap),
            PYTHON: lambda: _run("python", bootstrap),
        }
        runs = await alternate("trace_cost", repeats, pairs)
    for peers, some in runs.items():
        measured.add(peers, some, UNITS, TARGETS)
    return measured
