"""Reusable sockets: the next connection to a peer goes the way of the last one."""

from __future__ import annotations

import pytest
import trio

from hyperlog.dht import routes as module
from hyperlog.dht.constants import PEER_HANDSHAKE, PEER_HOLEPUNCH
from hyperlog.dht.handshaking import ROUTE_HEAD_START
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.simnat import SimNat
from hyperlog.dht.sockets import LINGER
from hyperlog.dht.testing import sim_testnet
from tests.dht.peers import sim_dht


async def behind_nats(net):
    homes = [SimNat(net.network, "5.5.5.5"), SimNat(net.network, "6.6.6.6")]
    return [
        await net.add(home.host("192.168.1.2"), ephemeral=None, firewalled=None) for home in homes
    ]


async def open_and_close(client, listener, **options):
    """One connection, both ends closed; how long it took and its statistics."""
    started = trio.current_time()
    connection = await client.connect(listener.public_key, **options)
    took = trio.current_time() - started
    accepted = await listener.accept()
    await connection.send(b"there")
    assert await accepted.receive() == b"there"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose)
        nursery.start_soon(accepted.aclose)
    return took, connection.statistics()


def commands_asked(dht):
    """Counts the requests of a node by command, from now on."""
    asked = []
    request = dht.node.request

    async def count(command, **options):
        asked.append(command)
        return await request(command, **options)

    dht.node.request = count
    return asked


async def test_the_second_connection_takes_one_round_trip_through_the_same_hole(autojump_clock):
    async with sim_testnet(8, delay=0.03) as net:
        server, client = await behind_nats(net)
        listener = await server.listen(reusable_socket=True)
        await listener.wait_announced()
        first, statistics = await open_and_close(client, listener, reusable_socket=True)
        assert statistics.path == "punched"
        asked = commands_asked(client)
        second, again = await open_and_close(client, listener, reusable_socket=True)
        assert again.path == "punched"
        assert again.remote_address == statistics.remote_address
        assert again.opening.handshakes == 1
        assert again.opening.punches == 0
        assert asked == [PEER_HANDSHAKE]
        assert second < ROUTE_HEAD_START < first
        await trio.sleep(LINGER + 1)
        assert client.statistics().sockets.sockets == server.statistics().sockets.sockets == 2
        await trio.sleep(30)
        third, _ = await open_and_close(client, listener, reusable_socket=True)
        assert third > second
        assert PEER_HOLEPUNCH in asked


@pytest.mark.parametrize(("ours", "theirs"), [(True, False), (False, True)])
async def test_both_sides_have_to_say_so(ours, theirs, autojump_clock):
    async with sim_testnet(8) as net:
        server, client = await behind_nats(net)
        listener = await server.listen(reusable_socket=theirs)
        await listener.wait_announced()
        for _ in range(2):
            await open_and_close(client, listener, reusable_socket=ours)
            assert len(client.routes) == len(server.routes) == 0


async def test_a_way_that_leads_nowhere_any_more_costs_a_moment(autojump_clock):
    async with sim_testnet(8) as net:
        server, client = await behind_nats(net)
        listener = await server.listen(reusable_socket=True)
        await listener.wait_announced()
        await open_and_close(client, listener, reusable_socket=True)
        route = client.routes.get(listener.public_key)
        server.sockets._sockets[server.routes.get(client.key_pair.public_key).socket].close()
        took, statistics = await open_and_close(client, listener, reusable_socket=True)
        assert statistics.path == "punched"
        assert statistics.remote_address != route.address
        assert took < ROUTE_HEAD_START + 3


async def test_a_connection_that_breaks_takes_its_way_along(autojump_clock):
    async with sim_dht(4) as net:
        server, client = await net.add(firewalled=False), await net.add(firewalled=False)
        listener = await server.listen(reusable_socket=True)
        await listener.wait_announced()
        connection = await client.connect(listener.public_key, reusable_socket=True)
        accepted = await listener.accept()
        assert client.routes.get(listener.public_key) is not None
        accepted.abort()
        with pytest.raises(trio.BrokenResourceError):
            await connection.receive()
        assert client.routes.get(listener.public_key) is None


async def test_another_owner_of_the_address_is_not_taken_for_the_peer(autojump_clock):
    async with sim_dht(4) as net:
        server, client = await net.add(firewalled=False), await net.add(firewalled=False)
        listener = await server.listen(reusable_socket=True)
        await listener.wait_announced()
        await open_and_close(client, listener, reusable_socket=True)
        route = client.routes.get(listener.public_key)
        assert route.address == server.address
        await listener.aclose()
        other = await server.listen(KeyPair.generate(), reusable_socket=True)
        elsewhere = await net.add(firewalled=False)
        again = await elsewhere.listen(listener.key_pair, reusable_socket=True)
        await again.wait_announced()
        connection = await client.connect(listener.public_key, reusable_socket=True)
        assert connection.remote_address == elsewhere.address
        assert client.routes.get(listener.public_key).address == elsewhere.address
        assert other.statistics().accepted == 0


async def test_ways_to_many_peers_are_bounded(monkeypatch, autojump_clock):
    monkeypatch.setattr(module, "MAX_ROUTES", 3)
    async with sim_dht(4) as net:
        server, client = await net.add(firewalled=False), await net.add(firewalled=False)
        for _ in range(5):
            listener = await server.listen(KeyPair.generate(), reusable_socket=True)
            await listener.wait_announced()
            await open_and_close(client, listener, reusable_socket=True)
        assert len(client.routes) == 3
