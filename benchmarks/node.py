"""Requests a second that one node answers, by command, with 128 under way.

A persistent node in a private network of 24 JavaScript nodes on loopback, so that answers carry the
20 closer nodes that they mostly carry; 64 peers are announced to it, 8 of them under one topic, and
each has stored a value of 512 bytes. It is asked by one process over 16 sockets, the same for both
languages, which looks at one in a thousand answers.
"""

from __future__ import annotations

from benchmarks.figures import JS, PYTHON, Measured, Run, Target, WrongResult, alternate
from benchmarks.peers import Address, js, network, python, run_peer

NETWORK = 24
WINDOW = 128  # requests under way
SOURCES = 16
SECONDS = 2.0  # of each command, after WARM_UP
WARM_UP = 0.5
COMMANDS = ("PING", "FIND_NODE", "FIND_PEER", "LOOKUP", "MUTABLE_GET")
PER_CPU = "{}, for each CPU second of the node"
UNITS = dict.fromkeys(COMMANDS, "requests/s")
UNITS |= {PER_CPU.format(command): "requests" for command in COMMANDS}
TARGETS = {(command, PYTHON): Target(1.0, times_js=True) for command in COMMANDS}


async def _run(language: str, bootstrap: list[Address]) -> Run:
    command = js("node.js", bootstrap) if language == "js" else python("node", bootstrap)
    async with run_peer(command) as node:
        if node.ready["nodes"] < 20:
            raise WrongResult(f"the node knows {node.ready['nodes']} others, not 20")
        asked = {"host": node.ready["host"], "port": node.ready["port"]}
        load = {"window": WINDOW, "sources": SOURCES, "seconds": SECONDS, "warm_up": WARM_UP}
        async with run_peer(python("requester", [], **asked, **load)) as requester:
            before = node.cost()
            values = {}
            for name in COMMANDS:
                begin = node.cost()
                await requester.command(ask=name)
                answered = await requester.event("answered")
                if answered["wrong"]:
                    raise WrongResult(f"{language}: {answered['wrong']} wrong answers to {name}")
                values[name] = answered["count"] / answered["seconds"]
                cpu = node.cost().since(begin).cpu_seconds
                values[PER_CPU.format(name)] = answered["all"] / cpu
            costs = {f"node, {len(COMMANDS)} x {SECONDS + WARM_UP:g} s": node.cost().since(before)}
    return Run(values, costs)


async def measure(repeats: int) -> Measured:
    measured = Measured()
    async with network(NETWORK) as bootstrap:
        runs = await alternate(
            "node",
            repeats,
            {
                JS: lambda: _run("js", bootstrap),
                PYTHON: lambda: _run("python", bootstrap),
            },
        )
    for peers, some in runs.items():
        measured.add(peers, some, UNITS, TARGETS)
    return measured
