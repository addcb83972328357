"""Lines a second from `trace()` to the server's log file, one client, loopback, 50,000 traces.

A trace is about 418 bytes of JSON (the Python client's has 22 more, line and column of the call);
the line in the file is longer by the time and the user. The clock runs from the command to trace to
the moment when the last line can be read in the file, over an open connection and after 2,000
traces of warm-up. The stock client traces 256 in a turn of its event loop, the Python client traces
all in one tight loop in its main thread. Both servers run as a user runs them, the Python one as
`hyperlog serve`. Then: the Python server's peak memory during a burst of 200,000 traces from one
Python client.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.figures import (
    JS,
    JS_TO_PYTHON,
    PYTHON,
    PYTHON_TO_JS,
    Measured,
    Run,
    Target,
    alternate,
)
from benchmarks.logfile import LogFile
from benchmarks.peers import Address, network, run_peer, trace_client_command, trace_server

COUNT = 50_000
BURST = 200_000
WARM_UP = 2_000
TIMEOUT = 120.0  # s

RATE = "lines in the file"
SIZE = "bytes of a line"
CALLER = "in the calling thread"
BURST_RATE = "lines in the file, burst of 200,000"
BURST_MEMORY = "peak memory of the server, burst of 200,000"
UNITS = {
    RATE: "lines/s",
    SIZE: "bytes",
    CALLER: "µs a trace",
    BURST_RATE: "lines/s",
    BURST_MEMORY: "MB",
}
TARGETS = {
    (RATE, PYTHON): Target(3.0, times_js=True),
    (RATE, JS_TO_PYTHON): Target(1.0, times_js=True),
    (BURST_MEMORY, PYTHON): Target(100.0, at_most=True, every=True),
}


async def _run(client: str, server: str, bootstrap: list[Address], count: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
        folder = Path(name)
        async with (
            trace_server(server, folder, bootstrap) as server_peer,
            run_peer(
                trace_client_command(client, server_peer.public_key, bootstrap)
            ) as client_peer,
        ):
            await client_peer.event("greeting")
            log = LogFile(folder / f"{client_peer.public_key}.log")
            await client_peer.command(send=WARM_UP)
            await log.wait_traces(WARM_UP, TIMEOUT)
            log.check(WARM_UP)
            await client_peer.event("sent")

            before = {"client": client_peer.cost(), "server": server_peer.cost()}
            begin = time.monotonic()
            await client_peer.command(send=count)
            await log.wait_traces(count, TIMEOUT)
            seconds = time.monotonic() - begin
            after = {"client": client_peer.cost(), "server": server_peer.cost()}
            size = log.check(count)
            log.close()
            in_caller = (await client_peer.event("sent"))["seconds"]
        return Run(
            {RATE: count / seconds, SIZE: size, CALLER: in_caller / count * 1e6},
            {process: after[process].since(before[process]) for process in before},
        )


async def measure(repeats: int) -> Measured:
    measured = Measured()
    async with network() as bootstrap:
        pairs = {
            JS: ("js", "js"),
            PYTHON: ("python", "python"),
            JS_TO_PYTHON: ("js", "python"),
            PYTHON_TO_JS: ("python", "js"),
        }
        runs = await alternate(
            "end_to_end",
            repeats,
            {
                peers: lambda pair=pair: _run(*pair, bootstrap, COUNT)
                for peers, pair in pairs.items()
            },
        )

        async def burst() -> Run:
            run = await _run("python", "python", bootstrap, BURST)
            memory = run.costs["server"].peak_bytes / 1e6
            return Run({BURST_RATE: run.values[RATE], BURST_MEMORY: memory})

        bursts = await alternate("end_to_end", repeats, {PYTHON: burst}, warm_up=0)
    for peers, some in runs.items():
        measured.add(peers, some, UNITS, TARGETS)
    measured.add(PYTHON, bursts[PYTHON], UNITS, TARGETS)
    return measured
