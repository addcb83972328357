"""Megabytes (10^6 bytes) a second between two JavaScript peers: direct, and through either relay.

100 MB in messages of 64 KiB over one encrypted connection on loopback, from the writer's opening of
the connection to the reader's end of stream. What a relay itself needs for it is among the costs.
A round with checksums of all bytes on both ends comes first; of a relayed one it is checked that
the reader's node counts it as relayed.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from benchmarks.figures import Measured, Run, Target, WrongResult, alternate
from benchmarks.peers import LOCALHOST, Address, Peer, js, network, run_peer
from tests.interop.harness import NO_PATH_CLIENT, NO_PATH_NODE, NO_PATH_SERVER

SIZE = 100_000_000  # bytes
CHUNK = 65536  # bytes in a message
WHAT = "100 MB in messages of 64 KiB"
DIRECT, JS_RELAY, PYTHON_RELAY = "direct", "JS relay", "Python relay"
TARGETS = {(WHAT, PYTHON_RELAY): Target(30.0)}


def _python_relay(bootstrap: list[Address], folder: str) -> list[str | Path]:
    nodes = [part for host, port in bootstrap for part in ("--bootstrap", f"{host}:{port}")]
    keys = Path(folder) / "relay-keys.dat"
    command = [sys.executable, "-m", "hyperlog", "relay", "--json", "--host", LOCALHOST]
    return [*command, "--keys", keys, *nodes]


class _Rounds:
    def __init__(self, bootstrap: list[Address], folder: str) -> None:
        self._bootstrap = bootstrap
        self._folder = folder
        self._checked: set[str] = set()

    async def run(self, way: str) -> Run:
        """One transfer that goes this way, the first one with checksums."""
        checksum = way not in self._checked
        self._checked.add(way)
        run = Run({})
        async with AsyncExitStack() as stack:
            relay: Peer | None = None
            if way == JS_RELAY:
                relay = await stack.enter_async_context(run_peer(js("relay.js", self._bootstrap)))
            elif way == PYTHON_RELAY:
                command = _python_relay(self._bootstrap, self._folder)
                relay = await stack.enter_async_context(run_peer(command))
            received = await self._transfer(stack, relay, checksum, run)
        run.values[WHAT] = SIZE / 1e6 / received
        return run

    async def _transfer(
        self, stack: AsyncExitStack, relay: Peer | None, checksum: bool, run: Run
    ) -> float:
        no_path = relay is not None
        sink = js(
            "echo.js",
            self._bootstrap,
            role="server",
            mode="sink",
            checksum=checksum,
            dht=NO_PATH_NODE if no_path else None,
            server=NO_PATH_SERVER if no_path else None,
        )
        reader = await stack.enter_async_context(run_peer(sink))
        connect = None
        if relay is not None:
            connect = {**NO_PATH_CLIENT, "relayThrough": relay.public_key}
        source = js(
            "echo.js",
            self._bootstrap,
            role="client",
            mode="source",
            key=reader.public_key,
            bytes=SIZE,
            chunk=CHUNK,
            checksum=checksum,
            dht=NO_PATH_NODE if no_path else None,
            connect=connect,
        )
        idle = relay.cost() if relay is not None else None
        writer = await stack.enter_async_context(run_peer(source))
        opened = await reader.event("open")
        if opened["relaying"]["successes"] != int(no_path):
            raise WrongResult(f"the connection went another way: {opened}")
        received = await reader.event("received")
        if relay is not None and idle is not None:
            run.costs["relay"] = relay.cost().since(idle)
        sent = await writer.event("sent")
        if received["bytes"] != SIZE or received.get("sha256") != sent.get("sha256"):
            raise WrongResult(f"what was sent is not what was received: {sent} {received}")
        seconds: float = received["seconds"]
        return seconds


async def measure(repeats: int) -> Measured:
    measured = Measured()
    with tempfile.TemporaryDirectory(prefix="hyperlog-relay-") as folder:
        async with network() as bootstrap:
            rounds = _Rounds(bootstrap, folder)
            runs = await alternate(
                "relay",
                repeats,
                {way: partial(rounds.run, way) for way in (DIRECT, JS_RELAY, PYTHON_RELAY)},
            )
    for way, some in runs.items():
        measured.add(way, some, {WHAT: "MB/s"}, TARGETS)
    return measured
