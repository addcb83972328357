"""Announcer: records that follow the server and the network, in virtual time."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from hyperlog.dht import announcer as module
from hyperlog.dht.constants import ANNOUNCE, FIND_PEER
from hyperlog.dht.errors import DHTError
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.opening import open_dht
from hyperlog.dht.rpc.messages import node_id
from hyperlog.dht.rpc.table import distance
from hyperlog.dht.simnat import SimNat
from tests.dht.peers import host_name, sim_dht


def holders(nodes, listener):
    """The nodes that would forward to the listener."""
    return [
        node for node in nodes if node._router.get(listener.target, trio.current_time()) is not None
    ]


async def test_the_three_closest_nodes_hold_the_record(autojump_clock):
    async with sim_dht(20) as net:
        server = await net.add()
        listener = await server.listen()
        assert await listener.wait_announced() == 3
        closest = sorted(net.nodes, key=lambda n: distance(node_id(n.address), listener.target))
        assert set(holders(net.nodes, listener)) == set(closest[:3])
        found = await net.nodes[7].find_peer(listener.public_key)
        assert {peer.public_key for peer in found} == {listener.public_key}
        await listener.aclose()
        assert await net.nodes[7].find_peer(listener.public_key) == []
        assert holders(net.nodes, listener) == []


@pytest.mark.parametrize("delay", [0.0, 0.015, 0.03, 0.05, 0.065, 0.07, 0.075, 0.08, 0.1, 0.2])
async def test_a_close_at_any_moment_leaves_no_record_behind(delay, autojump_clock):
    async with sim_dht(6) as net:
        server = await net.add()
        await server.bootstrapped()
        listener = await server.listen()
        await trio.sleep(delay)
        await listener.aclose()
        await trio.sleep(5)
        assert holders(net.nodes, listener) == []


async def test_the_end_of_the_node_withdraws_the_record(autojump_clock):
    async with sim_dht(6) as net:
        pair = KeyPair.generate()
        host = host_name(net.machines)
        async with open_dht(
            bootstrap=net.bootstrap, host=host, socket_factory=net.network.host(host), key_pair=pair
        ) as server:
            listener = await server.listen()
            await listener.wait_announced()
            assert holders(net.nodes, listener)
        assert await net.nodes[3].find_peer(pair.public_key) == []


async def test_records_move_on_when_their_nodes_die(autojump_clock):
    async with sim_dht(20) as net:
        server = await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        closest = sorted(net.nodes, key=lambda n: distance(node_id(n.address), listener.target))
        dead, alive = closest[::2], closest[1::2]
        assert net.bootstrap[0] in {node.address for node in dead + alive}
        for node in dead:
            for socket in list(node.sockets._sockets.values()):
                net.network._sockets.pop(socket.local_address, None)
        started = trio.current_time()
        while set(holders(alive, listener)) != set(alive[:3]):
            await trio.sleep(0.5)
            assert trio.current_time() - started < 60
        assert {relay.relay_address for relay in listener.announcer.relays} == {
            node.address for node in alive[:3]
        }
        client = await net.add(bootstrap=[alive[-1].address])
        connection = await client.connect(listener.public_key)
        await connection.send(b"found")
        assert await (await listener.accept()).receive() == b"found"


async def test_records_are_renewed_every_five_minutes(autojump_clock):
    async with sim_dht(4) as net:
        server = await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        announcements = []
        for node in net.nodes:
            handle = node.node.on_request

            def count(request, handle=handle):
                if request.command == ANNOUNCE:
                    announcements.append(trio.current_time())
                return handle(request)

            node.node.on_request = count
        await trio.sleep(3600)
        rounds = len(announcements) / 3
        assert 10 <= rounds <= 12
        found = await net.nodes[2].find_peer(listener.public_key)
        assert {peer.public_key for peer in found} == {listener.public_key}


async def test_a_change_of_the_network_during_an_update_calls_for_another(autojump_clock):
    async with sim_dht(4) as net:
        server = await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        queries = []
        query = server.node.query

        async def count(command, *args, **options):
            if command == FIND_PEER:
                queries.append(trio.current_time())
                if len(queries) == 1:
                    listener.announcer.refresh()
            return await query(command, *args, **options)

        server.node.query = count
        listener.announcer.refresh()
        await trio.sleep(30)
        assert len(queries) == 2


async def test_a_server_without_a_network_announces_as_soon_as_there_is_one(autojump_clock):
    async with sim_dht(4) as net:
        machine = host_name(net.machines)
        net.network.cut(machine)
        server = await net.add()
        listener = await server.listen()
        assert await listener.wait_announced() == 0
        await trio.sleep(60)
        net.network.heal(machine)
        for _ in range(62):  # 31 s: as long as the pauses between attempts to join become
            if len(holders(net.nodes, listener)) == 3:
                break
            await trio.sleep(0.5)
        else:
            pytest.fail("not announced in 31 s")
        client = await net.add()
        connection = await client.connect(listener.public_key)
        await connection.aclose()


@pytest.mark.parametrize("addresses", [(None, None), ("203.5.6.7", "203.5.6.8")])
async def test_a_server_whose_router_has_forgotten_it_is_found_within_seconds(
    addresses, autojump_clock
):
    async with sim_dht(8) as net:
        client = await net.add()
        nat = SimNat(net.network, "198.7.6.5", port_preserving=False)
        async with open_dht(
            bootstrap=net.bootstrap, host="192.168.1.2", socket_factory=nat.host("192.168.1.2")
        ) as server:
            listener = await server.listen()
            await listener.wait_announced()
            for address in addresses:
                nat.rebind(address)  # and nothing changes on the server's own machine
                rebound = trio.current_time()
                connection = None
                while connection is None:
                    with suppress(DHTError), trio.move_on_after(2):
                        connection = await client.connect(listener.public_key)
                assert trio.current_time() - rebound < 10
                connection.abort()


async def test_a_server_restarted_at_another_address_is_found_at_once(autojump_clock):
    async with sim_dht(8) as net:
        pair = KeyPair.generate()
        client = await net.add()
        for _ in range(3):  # each time killed without a word, on a machine of another address
            host = host_name(net.machines)
            net.machines += 1
            async with open_dht(
                bootstrap=net.bootstrap,
                host=host,
                socket_factory=net.network.host(host),
                key_pair=pair,
            ) as server:
                listener = await server.listen()
                await listener.wait_announced()
                started = trio.current_time()
                connection = await client.connect(pair.public_key)
                assert trio.current_time() - started < 5
                await connection.send(b"hello")
                accepted = await listener.accept()
                assert await accepted.receive() == b"hello"
                connection.abort()
                for socket in list(server.sockets._sockets.values()):
                    net.network._sockets.pop(socket.local_address, None)


async def test_recent_relays_count_for_three_rounds(autojump_clock):
    async with sim_dht(4) as net:
        server = await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        relay = listener.announcer.relays[0].relay_address
        assert listener.announcer.is_relay(relay)
        assert not listener.announcer.is_relay(("9.9.9.9", 9))
        assert listener.announcer.target == generic_hash(listener.public_key)
        assert module.ANNOUNCE_TO == 3
