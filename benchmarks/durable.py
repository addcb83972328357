"""What acknowledgements and the spool cost: lines a second from `trace()` to the file, of 50,000.

Everything Python, one client and `hyperlog serve`; three ways for the client to work, in turn:
  - by the JavaScript rule, records in memory only: sent and forgotten, as if the server had not
    said that it acknowledges;
  - acknowledged, records in memory only;
  - acknowledged, with the spool on disk: the default of an application.
As in end_to_end the clock runs from the command to trace to the moment when the last line can be
read in the file; "until flush() returns" ends later, when the client knows that all is there (by
the JavaScript rule: that all has reached the server's transport).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.figures import Measured, Run, Target, alternate
from benchmarks.logfile import LogFile
from benchmarks.peers import Address, network, run_peer, trace_client_command, trace_server

COUNT = 50_000
WARM_UP = 2_000
TIMEOUT = 120.0  # s

PLAIN = "JavaScript rule, memory"
ACKNOWLEDGED = "acknowledged, memory"
DURABLE = "acknowledged, spool"

RATE = "lines in the file"
DELIVERED = "traces until flush() returns"
CALLER = "in the calling thread"
SHARE = "rate beside the JavaScript rule's in the same round"
UNITS = {RATE: "lines/s", DELIVERED: "traces/s", CALLER: "µs a trace", SHARE: "%"}
TARGETS = {(SHARE, DURABLE): Target(80.0)}


async def _run(way: str, bootstrap: list[Address]) -> Run:
    with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
        folder = Path(name)
        options: dict[str, str] = {}
        if way == PLAIN:
            options["rule"] = "javascript"
        if way == DURABLE:
            options |= {"keys": f"{folder}/client.keys", "spool": f"{folder}/spool"}
        async with trace_server("python", folder, bootstrap) as server:
            command = trace_client_command("python", server.public_key, bootstrap, **options)
            async with run_peer(command) as client:
                await client.event("greeting")
                log = LogFile(folder / f"{client.public_key}.log")
                await client.command(send=WARM_UP)
                await log.wait_traces(WARM_UP, TIMEOUT)
                log.check(WARM_UP)
                await client.event("sent")
                await client.event("delivered")

                before = {"client": client.cost(), "server": server.cost()}
                begin = time.monotonic()
                await client.command(send=COUNT)
                await log.wait_traces(COUNT, TIMEOUT)
                seconds = time.monotonic() - begin
                after = {"client": client.cost(), "server": server.cost()}
                log.check(COUNT)
                log.close()
                in_caller = (await client.event("sent"))["seconds"]
                delivered = (await client.event("delivered"))["seconds"]
        return Run(
            {
                RATE: COUNT / seconds,
                DELIVERED: COUNT / delivered,
                CALLER: in_caller / COUNT * 1e6,
            },
            {process: after[process].since(before[process]) for process in before},
        )


async def measure(repeats: int) -> Measured:
    measured = Measured()
    async with network() as bootstrap:
        runs = await alternate(
            "durable",
            repeats,
            {way: lambda way=way: _run(way, bootstrap) for way in (PLAIN, ACKNOWLEDGED, DURABLE)},
        )
    for way, some in runs.items():
        for run, plain in zip(some, runs[PLAIN], strict=True):
            if way != PLAIN:
                run.values[SHARE] = run.values[RATE] / plain.values[RATE] * 100
        measured.add(way, some, UNITS, TARGETS)
    return measured
