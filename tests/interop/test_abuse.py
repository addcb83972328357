"""What a stranger can make a node send to others, beside what he makes a JavaScript node send."""

from __future__ import annotations

import pytest
import trio

from hyperlog.dht import open_dht
from tests.interop.amplification import Node, measure, prepare
from tests.interop.harness import js_testnet, run_script

pytestmark = pytest.mark.interop

SLACK = 1.02
"""Lengths of fields that are chosen at random differ by a few bytes."""


async def test_no_command_amplifies_more_than_a_javascript_node_does():
    async with js_testnet(24) as bootstrap:
        nodes = [{"host": host, "port": port} for host, port in bootstrap]
        async with (
            run_script("listening.js", bootstrap=nodes) as javascript,
            open_dht(
                bootstrap=bootstrap, host="127.0.0.1", ephemeral=False, firewalled=False
            ) as dht,
        ):
            await dht.bootstrapped()
            listener = await dht.listen()
            await listener.wait_announced()
            theirs = Node(("127.0.0.1", javascript.ready["port"]), javascript.public_key)
            ours = Node(dht.address, listener.public_key)
            results = {}

            async def attack(name, node):
                await prepare(node)
                results[name] = await measure(node)

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(attack, "javascript", theirs)
                    nursery.start_soon(attack, "python", ours)

    worse = {}
    for name, (size, sent) in results["python"].items():
        size_there, sent_there = results["javascript"][name]
        ratio, ratio_there = sent / size, sent_there / size_there
        print(f"| {name} | {size} | {sent} | {ratio:.2f} | {ratio_there:.2f} |")
        if ratio > ratio_there * SLACK:
            worse[name] = round(ratio, 2), round(ratio_there, 2)
    assert worse == {}
