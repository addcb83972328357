"""The node as users see it: opening, closing, listening, looking up, and whole networks at work."""

from __future__ import annotations

import gc
import hashlib
import os
import sys

import pytest
import trio
import trio.testing

from hyperlog.dht.errors import (
    KeyPairInUse,
    LocalProtocolError,
    NodeDestroyed,
    PeerNotFound,
    TooFewNodes,
)
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.opening import open_dht
from hyperlog.dht.testing import testnet
from tests.dht.peers import sim_dht, sim_network
from tests.interop.harness import js_echo


async def exchange(connection, accepted, data=b"hello"):
    await connection.send(data)
    assert await accepted.receive() == data
    await accepted.send(data[::-1])
    assert await connection.receive() == data[::-1]


# -- opening and closing ---------------------------------------------------------------------------


async def test_what_the_block_raises_comes_out_as_it_was():
    class Mine(Exception):
        pass

    async def fail():
        async with open_dht(bootstrap=[], host="127.0.0.1") as dht:
            await dht.listen()
            raise Mine

    with pytest.raises(Mine) as caught:
        await fail()
    assert caught.value.__context__ is None


async def test_a_taken_port_is_told_or_passed_over():
    async with open_dht(bootstrap=[], host="127.0.0.1") as first:
        port = first.address[1]
        with pytest.raises(OSError, match="in use"):
            async with open_dht(bootstrap=[], host="127.0.0.1", port=port, exact_port=True):
                pass
        async with open_dht(bootstrap=[], host="127.0.0.1", port=port) as second:
            assert second.address[1] != port


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
async def test_nodes_leave_no_descriptor_behind():
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with open_dht(bootstrap=[], host="127.0.0.1") as dht:
            await dht.listen()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
async def test_a_start_that_is_cancelled_leaves_no_descriptor_behind(tmp_path):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for cache in (None, tmp_path / "nodes.json"):
        with trio.CancelScope() as scope:
            scope.cancel()
            async with open_dht(bootstrap=[], host="127.0.0.1", cache=cache):
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
async def test_a_node_that_cannot_be_made_leaves_no_descriptor_behind():
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LocalProtocolError, match="not an IPv4 address"):
        async with open_dht(bootstrap=[], host="127.0.0.1", nodes=[("example.org", 1)]):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("suspended", [False, True])
async def test_a_closed_node_still_tells_what_it_was(suspended):
    async with open_dht(bootstrap=[], host="127.0.0.1") as dht:
        address = dht.address
        if suspended:
            await dht.suspend()
    statistics = dht.statistics()
    assert dht.address == statistics.address == address
    assert statistics.sockets.sockets == 0


async def test_closing_the_node_ends_its_connections_at_both_ends():
    async with testnet(3) as net, open_dht(bootstrap=net.bootstrap, host="127.0.0.1") as client:
        async with open_dht(bootstrap=net.bootstrap, host="127.0.0.1") as server:
            listener = await server.listen()
            await listener.wait_announced()
            connection = await client.connect(listener.public_key)
            accepted = await listener.accept()
        with pytest.raises(trio.ClosedResourceError):
            await accepted.receive()
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await connection.receive()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()


async def test_a_closed_node_says_that_it_is_closed(autojump_clock):
    async with sim_dht(3) as net:
        factory = net.network.host("7.7.7.7")
        nobody = KeyPair.generate().public_key
        async with trio.open_nursery() as nursery:

            async def connect_meanwhile(dht):
                with pytest.raises(NodeDestroyed):
                    await dht.connect(nobody)

            async with open_dht(
                bootstrap=net.bootstrap, host="7.7.7.7", socket_factory=factory
            ) as dht:
                await dht.bootstrapped()
                nursery.start_soon(connect_meanwhile, dht)
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(NodeDestroyed):
                await dht.connect(nobody)
            with pytest.raises(NodeDestroyed):
                await dht.listen()


async def test_a_cancelled_node_still_withdraws(autojump_clock):
    async with sim_dht(4) as net:
        pair = KeyPair.generate()
        with trio.CancelScope() as scope:
            factory = net.network.host("7.7.7.7")
            async with open_dht(
                bootstrap=net.bootstrap, host="7.7.7.7", socket_factory=factory, key_pair=pair
            ) as dht:
                listener = await dht.listen()
                await listener.wait_announced()
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await net.nodes[0].find_peer(pair.public_key) == []


# -- listening -------------------------------------------------------------------------------------


async def test_a_key_pair_is_listened_on_once_at_a_time(autojump_clock):
    async with sim_dht(2) as net:
        node = await net.add()
        first = await node.listen()
        with pytest.raises(KeyPairInUse):
            await node.listen()
        other = await node.listen(KeyPair.generate())
        await first.aclose()
        again = await node.listen()
        assert {listener.public_key for listener in (again, other)} >= {node.key_pair.public_key}


async def test_a_cancelled_listen_leaves_the_key_pair_free(autojump_clock):
    async with sim_dht(2) as net:
        node = await net.add()
        with trio.CancelScope() as scope:
            scope.cancel()
            await node.listen()
        listener = await node.listen()
        await listener.wait_announced()
        connection = await (await net.add()).connect(listener.public_key)
        await exchange(connection, await listener.accept())


async def test_one_node_serves_several_keys(autojump_clock):
    async with sim_dht(4) as net:
        node, client = await net.add(), await net.add()
        listeners = [await node.listen(KeyPair.generate()) for _ in range(5)]
        for listener in listeners:
            await listener.wait_announced()
        for listener in listeners:
            connection = await client.connect(listener.public_key)
            await exchange(connection, await listener.accept())
            assert connection.remote_public_key == listener.public_key


async def test_a_node_connects_to_itself(autojump_clock):
    async with sim_dht(3) as net:
        node = await net.add()
        listener = await node.listen()
        await listener.wait_announced()
        connection = await node.connect(listener.public_key)
        await exchange(connection, await listener.accept())


@pytest.mark.interop
@pytest.mark.parametrize("unreachable", [False, True], ids=["no-bootstrap", "dead-bootstrap"])
async def test_a_javascript_client_reaches_a_server_that_nobody_knows(unreachable):
    # Port 9 of this machine: nobody answers.
    bootstrap = [("127.0.0.1", 9)] if unreachable else []
    async with open_dht(bootstrap=bootstrap, host="127.0.0.1") as server:
        listener = await server.listen()
        with trio.fail_after(30):
            async with js_echo(
                "echo", [server.address], connect_to=listener.public_key, size=5000
            ) as client:
                connection = await listener.accept()
                async for message in connection:
                    await connection.send(message)
                await connection.aclose()
                assert (await client.event("received"))["bytes"] == 5000


@pytest.mark.parametrize("unreachable", [False, True], ids=["no-bootstrap", "dead-bootstrap"])
async def test_a_client_reaches_a_server_that_nobody_knows(unreachable):
    bootstrap = [("127.0.0.1", 9)] if unreachable else []
    async with (
        open_dht(bootstrap=bootstrap, host="127.0.0.1") as server,
        open_dht(bootstrap=[server.address], host="127.0.0.1") as client,
    ):
        listener = await server.listen()
        with trio.fail_after(15):
            connection = await client.connect(listener.public_key)
            await exchange(connection, await listener.accept())


# -- a whole network -------------------------------------------------------------------------------


async def test_twenty_nodes_find_each_others_keys_and_topics(autojump_clock):
    async with sim_dht(20) as net:
        topic = hashlib.blake2b(b"topic", digest_size=32).digest()
        pairs = [KeyPair.generate() for _ in range(8)]
        for pair, node in zip(pairs, net.nodes, strict=False):
            assert await node.announce(topic, pair) > 0
        for node in net.nodes[::5]:
            found = {peer.public_key for peer in await node.lookup(topic)}
            assert found == {pair.public_key for pair in pairs}
        for pair, node in zip(pairs, net.nodes, strict=False):
            assert await node.unannounce(topic, pair) > 0
        assert await net.nodes[3].lookup(topic) == []


async def test_an_announcement_without_a_network_says_so(autojump_clock):
    async with (
        sim_network() as network,
        open_dht(
            bootstrap=[("9.9.9.9", 9)], host="1.1.1.1", socket_factory=network.host("1.1.1.1")
        ) as node,
    ):
        with pytest.raises(TooFewNodes):
            await node.announce(bytes(32))
        assert await node.lookup(bytes(32)) == []
        assert await node.find_peer(KeyPair.generate().public_key) == []


async def test_sixty_clients_of_one_server_at_once(autojump_clock):
    async with sim_dht(6) as net:
        server = await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        clients = [await net.add() for _ in range(60)]

        async def serve():
            async for connection in as_accepted(listener):
                nursery.start_soon(echo, connection)

        async def ask(client, number):
            connection = await client.connect(listener.public_key)
            await connection.send(b"%d" % number)
            assert await connection.receive() == b"%d" % number
            await connection.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with trio.open_nursery() as asking:
                for number, client in enumerate(clients):
                    asking.start_soon(ask, client, number)
            nursery.cancel_scope.cancel()
        assert listener.statistics().accepted == 60
        await trio.sleep(30)
        assert server.statistics().sockets.streams == 0


async def as_accepted(listener):
    while True:
        yield await listener.accept()


async def echo(connection):
    async for message in connection:
        await connection.send(message)
    await connection.aclose()


async def test_a_node_that_is_gone_is_not_found_any_more(autojump_clock):
    async with sim_dht(6) as net:
        pair = KeyPair.generate()
        async with open_dht(
            bootstrap=net.bootstrap,
            host="7.7.7.7",
            socket_factory=net.network.host("7.7.7.7"),
            key_pair=pair,
        ) as server:
            listener = await server.listen()
            await listener.wait_announced()
        client = await net.add()
        started = trio.current_time()
        with pytest.raises(PeerNotFound):
            await client.connect(pair.public_key)
        assert trio.current_time() - started < 5
