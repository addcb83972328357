"""Microseconds that `logger.info("order %d of %s placed", …)` costs its caller, by handler.

Beside a logger without a handler that does anything, and a FileHandler with a usual format, which
writes within the call: hyperlog.Handler with a connected client, Client.info called directly, and
OpenTelemetry's LoggingHandler with its batch processor and an exporter that throws all away (if it
is installed). Each in a process of its own that runs nothing else in its main thread: 20 bursts of
1,000 calls with pauses in which others work, and 20,000 calls in a tight loop. All that was logged
through hyperlog must be in the log file.

There is no JavaScript counterpart: hypertrace-logger has no log messages.
"""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.figures import Measured, Run, Target, WrongResult, alternate
from benchmarks.peers import Address, network, python, run_peer, trace_server

BURST = "bursts of 1,000"
LOOP = "tight loop of 20,000"
UNITS = {BURST: "µs", LOOP: "µs"}
HANDLERS = {
    "NullHandler": "none",
    "FileHandler": "file",
    "hyperlog.Handler": "hyperlog",
    "Client.info": "client.info",
}
TARGETS = {(name, "Client.info"): Target(3.0, at_most=True) for name in UNITS}


def _has_opentelemetry() -> bool:
    try:
        return find_spec("opentelemetry.instrumentation.logging.handler") is not None
    except ModuleNotFoundError:
        return False


async def _run(handler: str, bootstrap: list[Address]) -> Run:
    with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
        folder = Path(name)
        async with trace_server("python", folder, bootstrap) as server:
            options = {"handler": handler, "file": str(folder / "a.txt"), "key": server.public_key}
            async with run_peer(python("handler_cost", bootstrap, **options)) as peer:
                measured = await peer.event("measured")
                if peer.ready["publicKey"] is not None:
                    _check(folder / f"{peer.ready['publicKey']}.log", measured["logged"])
                values = dict(zip(UNITS, measured["microseconds"], strict=True))
                return Run(values, {"process": peer.cost()})


def _check(path: Path, count: int) -> None:
    """All messages are in the file, in order: the process has waited for that."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    numbers = [line["traceNumber"] for line in lines if "level" in line]
    if numbers[:1] != [0] or numbers != list(range(len(numbers))) or len(numbers) < count:
        raise WrongResult(f"{len(numbers)} of {count} messages are in the file, or out of order")


async def measure(repeats: int) -> Measured:
    measured = Measured()
    handlers = dict(HANDLERS)
    if _has_opentelemetry():
        handlers["OpenTelemetry LoggingHandler"] = "opentelemetry"
    async with network() as bootstrap:
        ways = {
            name: (lambda handler=handler: _run(handler, bootstrap))
            for name, handler in handlers.items()
        }
        runs = await alternate("handler_cost", repeats, ways)
    for name, some in runs.items():
        measured.add(name, some, UNITS, TARGETS)
    return measured
