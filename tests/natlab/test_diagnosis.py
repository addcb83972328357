"""The commands around the network judge real NATs as what they are."""

from __future__ import annotations

import pytest
import trio

from tests.commands import report, running
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


async def test_the_doctor_tells_kinds_of_nat_and_paths(tmp_path):
    async with open_bench("python") as bench:
        server = await bench.driver("left", "python")
        for kind, name in (PORT_RESTRICTED, "consistent"), (SYMMETRIC, "random"):
            bench.lab.set_nat("left", kind)
            bench.lab.set_nat("right", kind)
            await server.call("open", bootstrap=bench.bootstrap)
            key = (await server.call("listen"))["key"]
            status, found, steps = await diagnosis(bench, key)
            assert steps["nat"]["figures"]["kind"] == name
            assert steps["nat"]["figures"]["translated"]
            assert steps["peerNat"]["figures"]["kind"] == name
            if kind == PORT_RESTRICTED:
                assert status == 0
                assert steps["path"]["figures"]["kind"] == "punched"
            else:
                assert (status, found["failed"]) == (1, "path")
                assert steps["nat"]["verdict"] == steps["peerNat"]["verdict"] == "warning"
                assert steps["path"]["figures"]["code"] == "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS"
                relay_options = ("--keys", tmp_path / "relay.dat", *joining(bench))
                prefix = tuple(bench.lab.inside("relay"))
                async with running("relay", *relay_options, prefix=prefix) as relay:
                    relay_key = (await relay.line()).split()[-1]
                    status, _, steps = await diagnosis(bench, key, "--relay", relay_key)
                assert status == 0
                assert steps["path"]["figures"]["kind"] == "relayed"
            await server.call("close")


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
