"""The commands around the network judge real NATs as what they are."""

from __future__ import annotations

import json

import pytest
import trio

from tests.commands import report, run, running
from tests.natlab.matrix import open_bench
from tests.natlab.nats import FORWARDED, PORT_RESTRICTED, SYMMETRIC

pytestmark = pytest.mark.natlab


def joining(bench):
    """The options of a command that joins the network."""
    return [text for host, port in bench.bootstrap for text in ("--bootstrap", f"{host}:{port}")]


async def diagnosis(bench, *arguments):
    """The exit status of the doctor behind the right router, what it found, and that by step."""
    prefix = tuple(bench.lab.inside("right"))
    status, found = await report(*arguments, *joining(bench), prefix=prefix)
    return status, found, {step["step"]: step for step in found["steps"]}


async def serve(bench, kind):
    """A peer behind the left router, both routers being of one kind; gives its key."""
    bench.lab.set_nat("left", kind)
    bench.lab.set_nat("right", kind)
    server = await bench.driver("left", "python")
    await server.call("open", bootstrap=bench.bootstrap)
    return (await server.call("listen"))["key"]


async def test_holes_are_punched_between_nats_that_are_judged_consistent():
    async with open_bench("python") as bench:
        key = await serve(bench, PORT_RESTRICTED)
        status, _, steps = await diagnosis(bench, key)
        assert status == 0
        for step in ("nat", "peerNat"):
            assert steps[step]["figures"]["kind"] == "consistent"
        assert steps["nat"]["figures"]["translated"]
        assert steps["path"]["figures"]["kind"] == "punched"
        pinging = ("ping", key, "-c", "2", "-i", "0.1", "--json", *joining(bench))
        done = await run(*pinging, prefix=tuple(bench.lab.inside("right")))
        end = json.loads(done.stdout.splitlines()[-1])
        assert (end["nat"], end["peerNat"]) == ("consistent", "consistent")
        assert (end["paths"], end["acknowledged"]) == (["punched"], 2)


async def test_between_nats_that_are_judged_random_there_is_a_way_through_a_relay_only(tmp_path):
    async with open_bench("python") as bench:
        key = await serve(bench, SYMMETRIC)
        prefix = tuple(bench.lab.inside("relay"))
        relay_options = ("--keys", tmp_path / "relay.dat", *joining(bench))
        found = {}

        async def look(name, *options):
            found[name] = await diagnosis(bench, key, *options)

        async with running("relay", *relay_options, prefix=prefix) as relay:
            relay_key = (await relay.line()).split()[-1]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look, "alone")
                nursery.start_soon(look, "by relay", "--relay", relay_key)
    status, whole, steps = found["alone"]
    assert (status, whole["failed"]) == (1, "path")
    for step in ("nat", "peerNat"):
        assert steps[step]["figures"]["kind"] == "random"
        assert steps[step]["verdict"] == "warning"
    assert steps["path"]["figures"]["code"] == "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS"
    status, _, steps = found["by relay"]
    assert status == 0
    assert steps["path"]["figures"]["kind"] == "relayed"


async def test_a_node_is_persistent_behind_a_forwarded_port_and_says_so_if_nothing_is():
    async with open_bench("python") as bench:
        bench.lab.set_nat("left", FORWARDED)
        bench.lab.set_nat("right", PORT_RESTRICTED)

        async def says(site, text):
            prefix = tuple(bench.lab.inside(site))
            arguments = ("node", "--port", "49737", *joining(bench))
            async with running(*arguments, prefix=prefix) as node:
                await node.says(text)
                assert await node.stop() == 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(says, "left", "a persistent node at 5.9.101.1:49737")
            nursery.start_soon(says, "right", "other nodes cannot reach this one at UDP port 49737")
