"""SimNetwork, testnet and sim_testnet, which other tests and users stand on."""

from __future__ import annotations

import pytest
import trio

from hyperlog.dht.simnat import SimNat
from hyperlog.dht.simulation import MAX_INBOX, SimClock
from hyperlog.dht.testing import sim_testnet, testnet
from tests.dht.peers import sim_network
from tests.dht.scheduling import run_repeatably

DATAGRAMS = [number.to_bytes(2, "big") for number in range(2000)]


async def receive_all(sock):
    """What is in the socket after a long while."""
    await trio.sleep(10)
    return [data for data, _ in sock.receive_batch()]


async def test_datagrams_arrive_after_the_delay_with_their_source(autojump_clock):
    async with sim_network(delay=0.25) as network:
        a = network.host("1.1.1.1")("", 5)
        b = network.host("2.2.2.2")("", 0)
        started = trio.current_time()
        a.send(b"x", b.local_address)
        await b.wait_readable()
        assert trio.current_time() - started == pytest.approx(0.25)
        assert b.receive_batch() == [(b"x", ("1.1.1.1", 5))]
        assert b.receive_batch() == []


async def test_without_impairments_all_arrives_in_order(autojump_clock):
    async with sim_network() as network:
        a, b = network.host("1.1.1.1")("", 1), network.host("2.2.2.2")("", 1)
        assert a.send_batch(DATAGRAMS, b.local_address) == len(DATAGRAMS)
        assert await receive_all(b) == DATAGRAMS


async def test_impairments_come_in_the_shares_that_were_asked_for(autojump_clock):
    async with sim_network(seed=4, loss=0.1, duplicate=0.05, jitter=0.01) as network:
        a, b = network.host("1.1.1.1")("", 1), network.host("2.2.2.2")("", 1)
        a.send_batch(DATAGRAMS, b.local_address)
        received = await receive_all(b)
        statistics = network.statistics
        assert 0.08 < statistics.lost / 2000 < 0.12
        assert 0.035 < statistics.duplicated / 2000 < 0.065
        assert (
            len(received) == statistics.delivered == 2000 - statistics.lost + statistics.duplicated
        )
        assert len(set(received)) == 2000 - statistics.lost
        assert received != sorted(received)


async def test_the_same_seed_gives_the_same_fate(autojump_clock):
    fates = []
    for seed in (1, 1, 2):
        async with sim_network(seed=seed, loss=0.3, duplicate=0.1, jitter=0.05) as network:
            a, b = network.host("1.1.1.1")("", 1), network.host("2.2.2.2")("", 1)
            a.send_batch(DATAGRAMS, b.local_address)
            fates.append(await receive_all(b))
    assert fates[0] == fates[1] != fates[2]


async def test_what_nobody_takes_is_counted(autojump_clock):
    async with sim_network() as network:
        a, b = network.host("1.1.1.1")("", 1), network.host("2.2.2.2")("", 1)
        a.send(b"x", ("3.3.3.3", 3))
        for _ in range(MAX_INBOX + 10):
            a.send(b"x", b.local_address)
        assert len(await receive_all(b)) == MAX_INBOX
        b.close()
        a.send(b"x", b.local_address)
        await trio.sleep(1)
        assert network.statistics.unreachable == 12
        with pytest.raises(trio.ClosedResourceError):
            await b.wait_readable()


async def test_a_port_belongs_to_one_socket_of_a_host(autojump_clock):
    async with sim_network() as network:
        bind = network.host("1.1.1.1")
        first = bind("", 7)
        with pytest.raises(OSError, match="in use"):
            bind("", 7)
        assert network.host("2.2.2.2")("", 7).local_address == ("2.2.2.2", 7)
        assert bind("", 0).local_address != bind("", 0).local_address
        first.close()
        assert bind("", 7).local_address == ("1.1.1.1", 7)


async def test_testnet_nodes_know_each_other_and_end_with_the_context():
    async with testnet(5) as net:
        assert net.bootstrap == [net.nodes[0].address]
        addresses = {node.address for node in net.nodes}
        for node in net.nodes:
            assert set(node.node.known_nodes(10)) == addresses - {node.address}
            assert node.node.id is not None
            assert node.remote_address() == node.address
    async with testnet(1, port=net.bootstrap[0][1]) as again:  # the port is free again
        assert again.bootstrap == net.bootstrap


async def test_an_empty_testnet_is_allowed():
    async with testnet(0) as net:
        assert net.nodes == net.bootstrap == []


async def test_a_simulated_network_has_joined_nodes_on_machines_of_their_own(autojump_clock):
    async with sim_testnet(40, seed=1) as net:
        assert len({node.address[0] for node in net.nodes}) == 40
        assert all(node.node.id is not None for node in net.nodes)
        assert all(node.node.table_size > 15 for node in net.nodes)
        server = net.nodes[20]
        listener = await server.listen()
        assert await listener.wait_announced() == 3
        for node in net.nodes[1:4]:
            assert [peer.public_key for peer in await node.find_peer(listener.public_key)]
        client = await net.add(SimNat(net.network, "5.5.5.5").host("192.168.1.2"), firewalled=None)
        connection = await client.connect(listener.public_key)
        assert connection.path == "direct"
        await connection.aclose()
    assert not net.network._sockets


async def test_a_node_that_is_removed_withdraws_and_one_that_crashes_does_not(autojump_clock):
    async with sim_testnet(12, seed=1) as net:
        for crash in (False, True):
            server, witness = net.nodes[5], net.nodes[6]
            host, port = server.address
            listener = await server.listen()
            await listener.wait_announced()
            await net.remove(server, crash=crash)
            assert server not in net.nodes
            found = await witness.find_peer(listener.public_key)
            assert {peer.public_key for peer in found} == (
                {listener.public_key} if crash else set()
            )
        assert len(net.nodes) == 10
        assert len(net.network._hosts) == 10
        sock = net.network.host(host)("", port)  # free again, and not cut off
        witness.sockets.send(0, sock.local_address, b"x")
        await trio.sleep(1)
        assert sock.receive_batch()


def test_a_simulated_network_repeats_by_its_seed():
    async def main(seed):
        async with sim_testnet(10, seed=seed, jitter=0.02, loss=0.05) as net:
            await trio.sleep(300)
            return net.network.statistics, [node.node.known_nodes(50) for node in net.nodes]

    runs = [
        run_repeatably(lambda seed=seed: main(seed), seed=3, clock=SimClock()) for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
