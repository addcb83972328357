"""When a node becomes part of the network: in simulated hours, open, behind NATs, and moving."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.dht.opening import open_dht
from hyperlog.dht.rpc.messages import node_id
from hyperlog.dht.simnat import SimNat
from hyperlog.dht.sockets import SERVER
from tests.dht.peers import host_name, sim_dht

HOUR = 3600.0
OUTSIDE = "77.0.0.1"


def open_at(net, machine):
    return net.stack.enter_async_context(
        open_dht(bootstrap=net.bootstrap, socket_factory=machine, port=4000, exact_port=True)
    )


@asynccontextmanager
async def forwarded_port(nat, node):
    """Have the NAT let in whoever sends to the server socket's port, for as long as this lasts."""

    async def keep_mapped():
        while True:
            node.sockets.send(SERVER, ("9.9.9.9", 9), b"")
            await trio.sleep(30)

    nat.filtering = "endpoint"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_mapped)
        yield
        nursery.cancel_scope.cancel()


def knowing(net, address):
    """How many nodes of the network have the address in their tables."""
    return sum(address in node.node.known_nodes(99) for node in net.nodes)


async def test_an_open_node_waits_for_20_stable_minutes_and_has_a_true_id_then(autojump_clock):
    async with sim_dht(6) as net:
        node = await open_at(net, net.network.host(OUTSIDE))
        await trio.sleep(5)
        assert not node.node.firewalled
        assert (node.node.id, knowing(net, (OUTSIDE, 4000))) == (None, 0)
        await trio.sleep(1185)
        assert (node.node.id, knowing(net, (OUTSIDE, 4000))) == (None, 0)
        await trio.sleep(30)
        assert node.node.id == node_id((OUTSIDE, 4000))
        await trio.sleep(60)
        assert knowing(net, (OUTSIDE, 4000)) == len(net.nodes)


@pytest.mark.parametrize(
    ("mapping", "filtering", "port_preserving"),
    [
        ("consistent", "port", True),
        ("consistent", "address", False),
        ("random", "port", True),
        ("sequential", "port", True),
    ],
)
async def test_a_node_behind_a_nat_never_shows_an_id(
    autojump_clock, mapping, filtering, port_preserving
):
    async with sim_dht(6) as net:
        nat = SimNat(
            net.network,
            OUTSIDE,
            mapping=mapping,
            filtering=filtering,
            port_preserving=port_preserving,
        )
        node = await open_at(net, nat.host("192.168.1.2"))
        for _ in range(14):
            await trio.sleep(360)
            assert (node.node.id, node.remote_address()) == (None, None)
            assert node.node.firewalled
        assert node.node.statistics().nat_host == OUTSIDE
        assert node.node.table_size == 6
        assert all(
            address[0] != OUTSIDE for peer in net.nodes for address in peer.node.known_nodes(99)
        )


async def test_a_node_whose_port_is_forwarded_is_as_good_as_one_without_a_nat(autojump_clock):
    async with sim_dht(6) as net:
        nat = SimNat(net.network, OUTSIDE)
        node = await open_at(net, nat.host("192.168.1.2"))
        async with forwarded_port(nat, node):
            await trio.sleep(1500)
        assert node.remote_address() == (OUTSIDE, 4000)
        assert node.node.id == node_id((OUTSIDE, 4000))


async def test_a_port_that_is_opened_later_is_found_within_the_hour(autojump_clock):
    async with sim_dht(6) as net:
        nat = SimNat(net.network, OUTSIDE)
        node = await open_at(net, nat.host("192.168.1.2"))
        await trio.sleep(HOUR)
        assert node.node.id is None
        async with forwarded_port(nat, node):  # by the operator
            await trio.sleep(HOUR + 300)
        assert node.node.id == node_id((OUTSIDE, 4000))


async def test_a_node_that_is_carried_behind_a_nat_shows_no_id_there(autojump_clock):
    async with sim_dht(6) as net:
        machine = net.network.host(host_name(net.machines))
        node = await open_at(net, machine)
        await trio.sleep(1500)
        assert node.node.id is not None
        nat = SimNat(net.network, OUTSIDE)
        machine.move("192.168.1.2", nat)
        await trio.sleep(20)
        for _ in range(12):
            assert (node.node.id, node.remote_address()) == (None, None)
            await trio.sleep(600)
        assert node.node.firewalled
        assert node.node.table_size == 6


async def test_a_router_that_gets_another_address_is_noticed_though_no_interface_changes(
    autojump_clock,
):
    async with sim_dht(6) as net:
        nat = SimNat(net.network, OUTSIDE)
        node = await open_at(net, nat.host("192.168.1.2"))
        async with forwarded_port(nat, node):
            await trio.sleep(1500)
            assert node.node.id == node_id((OUTSIDE, 4000))
            net.network.detach_gateway(OUTSIDE)
            nat.outside_host = "77.0.0.2"
            net.network.attach_gateway("77.0.0.2", nat)
            for _ in range(12):  # three rounds of pings, each to two to five of the six nodes
                await trio.sleep(10)
                if node.node.statistics().nat_host == "77.0.0.2":
                    break
            assert node.node.statistics().nat_host == "77.0.0.2"
            assert node.node.id is None
            await trio.sleep(320)  # and the test that follows
            assert node.remote_address() == ("77.0.0.2", 4000)
            assert node.node.id is None  # until it has been stable again
