"""Requests and milliseconds of one `find_peer()` in networks of 20 and of 200 nodes on loopback.

The nodes are JavaScript ones, all in one process, the same for both languages. Searched for are
keys that nobody announces, so that every search goes to its end; one that is announced comes first,
and has to be found.
"""

from __future__ import annotations

import hashlib
import statistics

from benchmarks.figures import JS, PYTHON, Measured, Run, Target, WrongResult, alternate
from benchmarks.peers import Address, js, network, python, run_peer

SIZES = (20, 200)
SEARCHES = 40

REQUESTS = "requests of a search, {} nodes, mean"
TIME = "a search, {} nodes, median"
TARGETS = {
    (name.format(size), PYTHON): Target(1.0, times_js=True, at_most=True)
    for name in (REQUESTS, TIME)
    for size in SIZES
}
KEYS = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(SEARCHES)]


async def _run(language: str, size: int, bootstrap: list[Address], key: str) -> Run:
    given = {"key": key, "keys": KEYS}
    command = (
        js("find_peer.js", bootstrap, **given)
        if language == "js"
        else python("find_peer", bootstrap, **given)
    )
    async with run_peer(command) as searcher:
        before = searcher.cost()
        found = await searcher.event("found")
        if not found["records"]:
            raise WrongResult(f"{language}: the announced key was not found")
        costs = {f"{SEARCHES} searches, {size} nodes": searcher.cost().since(before)}
    return Run(
        {
            REQUESTS.format(size): statistics.mean(found["requests"]),
            TIME.format(size): statistics.median(found["milliseconds"]),
        },
        costs,
    )


async def measure(repeats: int) -> Measured:
    measured = Measured()
    for size in SIZES:
        await _measure_size(measured, repeats, size)
    return measured


async def _measure_size(measured: Measured, repeats: int, size: int) -> None:
    async with (
        network(size) as bootstrap,
        run_peer(js("echo.js", bootstrap, role="server", mode="echo")) as listener,
    ):
        runs = await alternate(
            f"find_peer, {size} nodes",
            repeats,
            {
                JS: lambda: _run("js", size, bootstrap, listener.public_key),
                PYTHON: lambda: _run("python", size, bootstrap, listener.public_key),
            },
        )
    units = {REQUESTS.format(size): "requests", TIME.format(size): "ms"}
    for peers, some in runs.items():
        measured.add(peers, some, units, TARGETS)
