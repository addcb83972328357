"""Milliseconds that `connect()` takes on loopback, by the path that is found.

A network of 4 nodes. Direct: the server knows that it is reachable. LAN: both sides take themselves
for firewalled and share their local addresses. Punched: they do not share them. Relayed: they do
not punch either, and the server names a relay of its own language. The first connection finds the
server by a search, and the relay for the first time; it is told apart. Those that fail are counted.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import trio

from benchmarks.figures import JS, PYTHON, Measured, Run, Target, WrongResult, alternate
from benchmarks.machine import say
from benchmarks.peers import Address, js, network, python, run_peer

CONNECTIONS = 10
PAUSE = 100  # ms between them
PATHS = ("direct", "lan", "punched", "relayed")
FIRST = "{}, the first"
NEXT = "{}, median of " + str(CONNECTIONS)
LOST = "{}, how many of " + str(CONNECTIONS + 1) + " fail"
UNITS = {text.format(path): "ms" for path in PATHS for text in (FIRST, NEXT)}
UNITS |= {LOST.format(path): "connections" for path in PATHS}
TARGETS = {(NEXT.format(path), PYTHON): Target(1.0, True, True) for path in PATHS}
TARGETS |= {(LOST.format(path), PYTHON): Target(0.0, at_most=True, every=True) for path in PATHS}


async def _run(language: str, bootstrap: list[Address]) -> Run:
    values: dict[str, float] = {}

    def peer(role: str, path: str, **options: object) -> list[str | Path]:
        options = {"role": role, "path": path, **options}
        if language == "js":
            return js("paths.js", bootstrap, **options)
        return python("path_peer", bootstrap, **options)

    for path in PATHS:
        async with run_peer(peer("relay", "direct")) as relay:
            through = relay.public_key if path == "relayed" else None
            async with run_peer(peer("server", path, relay=through)) as server:
                # A JavaScript server says that it listens before its record is everywhere.
                await trio.sleep(0.2)
                options = {"key": server.public_key, "count": CONNECTIONS + 1, "pause": PAUSE}
                async with run_peer(peer("client", path, **options)) as client:
                    connected = await client.event("connected")
        # An open server on a private address is one of the local network, too.
        allowed = {path, "lan"} if path == "direct" else {path}
        wrong = set(connected.get("paths", [])) - allowed
        if wrong:
            raise WrongResult(f"{language}: connections were {wrong} instead of {path}")
        first, *rest = connected["milliseconds"]
        if connected["failures"]:
            say(f"{language}, {path}: {connected['failures'][0]}")
        values[LOST.format(path)] = len(connected["failures"])
        values[FIRST.format(path)] = first
        values[NEXT.format(path)] = statistics.median(rest)
    return Run(values, {})


async def measure(repeats: int) -> Measured:
    measured = Measured()
    async with network() as bootstrap:
        runs = await alternate(
            "paths",
            repeats,
            {JS: lambda: _run("js", bootstrap), PYTHON: lambda: _run("python", bootstrap)},
        )
    for peers, some in runs.items():
        measured.add(peers, some, UNITS, TARGETS)
    return measured
