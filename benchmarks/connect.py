"""Milliseconds that `connect()` takes on loopback, one after the other and 200 at a time.

Both peers are nodes that have joined a network of 4, the path is direct. A connection counts when
it is open on the client's side; a message is then echoed through each of them. The first one finds
the server by a search, later ones may remember the way.
Among 200 at a time those that fail are counted; none should.
"""

from __future__ import annotations

import statistics

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
from benchmarks.machine import say
from benchmarks.peers import Address, js, network, python, run_peer

SEQUENTIAL = 30
PARALLEL = 200

FIRST = "the first connect()"
NEXT = f"connect(), median of {SEQUENTIAL} in turn"
SLOWEST = f"connect(), slowest of {SEQUENTIAL} in turn"
ALL = f"{PARALLEL} at a time, until all have echoed"
LOST = f"{PARALLEL} at a time, how many fail"
UNITS = {FIRST: "ms", NEXT: "ms", SLOWEST: "ms", ALL: "ms", LOST: "connections"}
TARGETS = {
    (LOST, peers): Target(0.0, at_most=True, every=True)
    for peers in (PYTHON, JS_TO_PYTHON, PYTHON_TO_JS)
}
PAIRS = {  # client, server
    JS: ("js", "js"),
    PYTHON: ("python", "python"),
    JS_TO_PYTHON: ("js", "python"),
    PYTHON_TO_JS: ("python", "js"),
}


async def _run(client: str, server: str, bootstrap: list[Address]) -> Run:
    echo = {"role": "server", "mode": "echo", "checksum": False}
    command = (
        js("echo.js", bootstrap, **echo)
        if server == "js"
        else python("raw_peer", bootstrap, **echo)
    )
    async with run_peer(command) as listener:
        options = {
            "key": listener.public_key,
            "sequential": SEQUENTIAL,
            "parallel": PARALLEL,
        }
        command = (
            js("connect.js", bootstrap, **options)
            if client == "js"
            else python("connector", bootstrap, **options)
        )
        before_server = listener.cost()
        async with run_peer(command) as connector:
            before = connector.cost()
            first, *rest = (await connector.event("sequential"))["milliseconds"]
            parallel = await connector.event("parallel")
            if parallel["lost"]:
                say(f"connect: {parallel['lost']} of {PARALLEL} failed: {parallel['reason']}")
            count = f"{1 + SEQUENTIAL + PARALLEL} connections"
            costs = {
                f"client, {count}": connector.cost().since(before),
                f"server, {count}": listener.cost().since(before_server),
            }
    return Run(
        {
            FIRST: first,
            NEXT: statistics.median(rest),
            SLOWEST: max(rest),
            ALL: parallel["milliseconds"],
            LOST: parallel["lost"],
        },
        costs,
    )


async def measure(repeats: int) -> Measured:
    measured = Measured()
    async with network() as bootstrap:
        runs = await alternate(
            "connect",
            repeats,
            {peers: lambda pair=pair: _run(*pair, bootstrap) for peers, pair in PAIRS.items()},
        )
    for peers, some in runs.items():
        measured.add(peers, some, UNITS, TARGETS)
    return measured
