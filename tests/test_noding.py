from __future__ import annotations

import json
import signal
import sys
from functools import partial

import pytest
import trio

from hyperlog.cli import main
from hyperlog.dht import open_dht, sim_testnet, testnet
from hyperlog.noding import WATCH_INTERVAL, _say_standing
from tests.commands import option, running

LOOPBACK = "127.0.0.1"
needs_signal = pytest.mark.skipif(
    not hasattr(signal, "SIGUSR1"), reason=f"{sys.platform} has no SIGUSR1"
)


async def bootstrap_of(command):
    (node,) = json.loads(await command.line())["bootstrap"]
    return node["host"], node["port"]


async def is_usable(node, holders):
    """A peer announces itself and is reached, with nothing known but `node`."""
    async with (
        open_dht(bootstrap=[node]) as server,
        open_dht(bootstrap=[node]) as client,
    ):
        listener = await server.listen()
        assert await listener.wait_announced() == holders
        (await client.connect(listener.public_key)).abort()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_node_alone_is_a_network(number):
    async with running("node", "--host", LOOPBACK) as node:
        address = await bootstrap_of(node)
        await node.says(f"a persistent node at {address[0]}:{address[1]}, the first of its network")
        await is_usable(address, 1)
        assert await node.stop(number) == 0
    assert node.stdout.count(b"\n") == 1
    assert b"Traceback" not in node.stderr


async def test_a_node_on_all_addresses_tells_one_that_others_can_use():
    async with running("node") as node:
        host, port = await bootstrap_of(node)
        assert host != "0.0.0.0"
        await is_usable((host, port), 1)
        assert await node.stop() == 0


async def test_a_node_joins_others_and_is_persistent_at_once():
    async with testnet(2) as network:
        async with running("node", "--host", LOOPBACK, *option(network.bootstrap[0])) as node:
            address = await bootstrap_of(node)
            await node.says("a persistent node")
            with trio.fail_after(10):
                await is_usable(address, 3)
            assert await node.stop() == 0
        assert b"Traceback" not in node.stderr


async def test_a_node_whose_network_does_not_run_yet_waits_for_it():
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((LOOPBACK, 0))
        free_port = sock.getsockname()[1]
    async with running("node", "--host", LOOPBACK, *option((LOOPBACK, free_port))) as node:
        assert (await bootstrap_of(node))[0] == LOOPBACK
        await node.says("no bootstrap node answers yet")
        async with testnet(1, port=free_port):
            await node.says("a persistent node")
            assert await node.stop() == 0


async def test_a_node_that_waits_for_one_that_has_gone_is_no_guest_yet(autojump_clock, capsys):
    async with sim_testnet(4, seed=3) as net, trio.open_nursery() as nursery:
        await net.remove(net.nodes[-1], crash=True)
        dht = await net.start(firewalled=None)
        nursery.start_soon(partial(_say_standing, dht, alone=False))
        with trio.fail_after(60):
            await dht.bootstrapped()
            await trio.sleep(2 * WATCH_INTERVAL)
        address = "{}:{}".format(*dht.address)
        nursery.cancel_scope.cancel()
    assert capsys.readouterr().err.splitlines() == [
        f"no bootstrap node answers yet, trying on; this node answers at {address}",
        f"joining the network; this node answers at {address}",
        f"a persistent node at {address}",
    ]


@needs_signal
async def test_statistics_are_a_line_at_every_signal():
    async with running("node", "--host", LOOPBACK) as node:
        address = await bootstrap_of(node)
        async with open_dht(bootstrap=[address], host=LOOPBACK) as dht:
            await dht.bootstrapped()
            node.process.send_signal(signal.SIGUSR1)
            (first,) = json.loads(await node.line(1))["statistics"]
            assert (first["host"], first["port"]) == address
            assert not first["rpc"]["ephemeral"]
            before = first["commands"]["FIND_PEER"]["received"]
            assert await dht.find_peer(bytes(32)) == []
            node.process.send_signal(signal.SIGUSR1)
            (second,) = json.loads(await node.line(2))["statistics"]
        assert second["commands"]["FIND_PEER"]["received"] == before + 1
        assert await node.stop() == 0


@needs_signal
async def test_a_testnet_tells_statistics_of_each_node():
    async with running("testnet", "--size", "3") as network:
        host, port = await bootstrap_of(network)
        network.process.send_signal(signal.SIGUSR1)
        nodes = json.loads(await network.line(1))["statistics"]
        assert len(nodes) == 3
        assert (nodes[0]["host"], nodes[0]["port"]) == (host, port)
        assert await network.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--host", "example.org"), "no IPv4 address to bind"),
        (("--port", "65536"), "ports go from 1 to 65535"),
        (("--bootstrap", "here"), "write it like"),
    ],
)
def test_wrong_usage_is_told(arguments, reason, capsys):
    with pytest.raises(SystemExit) as end:
        main(["node", *arguments])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, reason in err) == ("", True)
