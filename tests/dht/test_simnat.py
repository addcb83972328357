"""SimNat: what each kind of NAT lets through, and when it forgets."""

from __future__ import annotations

import itertools

import pytest
import trio

from hyperlog.dht.simnat import MAPPING_TIMEOUT, SimNat
from hyperlog.dht.simulation import HOPS
from tests.dht.peers import sim_network

ASKED, OTHER_PORT, OTHER_HOST = ("8.8.8.8", 53), ("8.8.8.8", 54), ("9.9.9.9", 53)


async def received(sock):
    """What has come after a while, each with its source."""
    await trio.sleep(1)
    return sock.receive_batch()


async def outside_addresses(inside, sockets):
    """How each of the sockets sees a socket inside."""
    seen = []
    for sock in sockets:
        inside.send(b"hello", sock.local_address)
        ((_, source),) = await received(sock)
        seen.append(source)
    return seen


def public(network):
    return [network.host(host)("", port) for host, port in (ASKED, OTHER_PORT, OTHER_HOST)]


@pytest.mark.parametrize(
    ("filtering", "let_in"),
    [
        ("endpoint", [True, True, True]),
        ("address", [True, True, False]),
        ("port", [True] + 2 * [False]),
    ],
)
@pytest.mark.parametrize("mapping", ["consistent", "random", "sequential"])
async def test_a_nat_lets_in_whom_its_filter_allows(autojump_clock, mapping, filtering, let_in):
    async with sim_network() as network:
        nat = SimNat(network, "5.5.5.5", mapping=mapping, filtering=filtering)
        inside = nat.host("192.168.1.2")("", 0)
        sockets = public(network)
        (outside,) = await outside_addresses(inside, sockets[:1])
        assert outside == ("5.5.5.5", nat.outside_port(inside.local_address, ASKED))
        for sock, expected in zip(sockets, let_in, strict=True):
            sock.send(b"answer", outside)
            assert await received(inside) == [(b"answer", sock.local_address)] * expected
        assert network.statistics.blocked == let_in.count(False)


async def test_a_consistent_mapping_keeps_the_port_when_it_is_free(autojump_clock):
    async with sim_network() as network:
        nat = SimNat(network, "5.5.5.5")
        first = nat.host("192.168.1.2")("", 7000)
        second = nat.host("192.168.1.3")("", 7000)
        sockets = public(network)
        assert await outside_addresses(first, sockets) == [("5.5.5.5", 7000)] * 3
        (address,) = set(await outside_addresses(second, sockets))
        assert address[0] == "5.5.5.5"
        assert address[1] != 7000


async def test_a_symmetric_nat_takes_a_port_for_each_destination(autojump_clock):
    async with sim_network() as network:
        sockets = public(network)
        random = SimNat(network, "5.5.5.5", mapping="random").host("192.168.1.2")("", 7000)
        ports = [port for _, port in await outside_addresses(random, sockets)]
        assert len(set(ports)) == 3
        steps = {after - before for before, after in itertools.pairwise(ports)}
        assert not steps & {1}
        in_turn = SimNat(network, "6.6.6.6", mapping="sequential").host("192.168.1.2")("", 7000)
        ports = [port for _, port in await outside_addresses(in_turn, sockets)]
        assert ports == list(range(ports[0], ports[0] + 3))


async def test_machines_behind_one_nat_reach_each_other(autojump_clock):
    async with sim_network() as network:
        nat = SimNat(network, "5.5.5.5")
        a, b = nat.host("192.168.1.2")("", 1), nat.host("192.168.1.3")("", 1)
        a.send(b"x", b.local_address)
        assert await received(b) == [(b"x", a.local_address)]
        assert nat.outside_port(a.local_address) is None


@pytest.mark.parametrize("hairpin", [False, True])
async def test_only_a_hairpin_nat_leads_back_by_its_outside_address(autojump_clock, hairpin):
    async with sim_network() as network:
        nat = SimNat(network, "5.5.5.5", hairpin=hairpin, filtering="endpoint")
        a, b = nat.host("192.168.1.2")("", 1), nat.host("192.168.1.3")("", 2)
        b.send(b"open", ASKED)
        a.send(b"x", ("5.5.5.5", 2))
        assert await received(b) == ([(b"x", ("5.5.5.5", 1))] if hairpin else [])


async def test_a_probe_with_ttl_5_opens_its_own_nat_and_dies_before_the_far_one(autojump_clock):
    async with sim_network() as network:
        near, far = SimNat(network, "5.5.5.5"), SimNat(network, "6.6.6.6", filtering="endpoint")
        a, b = near.host("192.168.1.2")("", 1), far.host("192.168.1.2")("", 1)
        b.send(b"open", ASKED)
        a.send(b"probe", ("6.6.6.6", 1), 5)
        assert await received(b) == []
        assert network.statistics.expired == 1
        b.send(b"probe", ("5.5.5.5", 1))
        assert await received(a) == [(b"probe", ("6.6.6.6", 1))]
        a.send(b"just", ("6.6.6.6", 1), HOPS + 3)  # both NATs are routers, too
        a.send(b"too far", ("6.6.6.6", 1), HOPS + 2)
        assert await received(b) == [(b"just", ("5.5.5.5", 1))]


async def test_a_mapping_lives_as_long_as_it_is_used_from_inside(autojump_clock):
    async with sim_network() as network:
        nat = SimNat(network, "5.5.5.5")
        inside = nat.host("192.168.1.2")("", 7000)
        outside = network.host(ASKED[0])("", ASKED[1])
        for _ in range(3):
            inside.send(b"x", ASKED)
            await trio.sleep(MAPPING_TIMEOUT - 1)
            outside.send(b"y", ("5.5.5.5", 7000))
            assert len(await received(inside)) == 1
        await trio.sleep(1)
        outside.send(b"y", ("5.5.5.5", 7000))
        assert await received(inside) == []


async def test_after_a_rebind_old_ports_are_dead_and_new_ones_differ(autojump_clock):
    async with sim_network() as network:
        nat = SimNat(network, "5.5.5.5", filtering="endpoint")
        inside = nat.host("192.168.1.2")("", 7000)
        sockets = public(network)
        (before,) = await outside_addresses(inside, sockets[:1])
        nat.rebind()
        sockets[0].send(b"y", before)
        assert await received(inside) == []
        (after,) = await outside_addresses(inside, sockets[:1])
        assert (after[0], after[1] != before[1]) == ("5.5.5.5", True)
        nat.rebind("7.7.7.7")
        (moved,) = await outside_addresses(inside, sockets[:1])
        assert moved[0] == "7.7.7.7"
        assert network.host("5.5.5.5").address == "5.5.5.5"  # free again


async def test_a_nat_behind_a_nat_translates_twice(autojump_clock):
    async with sim_network() as network:
        provider = SimNat(network, "5.5.5.5", mapping="random")
        home = SimNat(provider, "100.64.0.2")
        neighbour = provider.host("100.64.0.3")("", 9)
        inside = home.host("192.168.1.2")("", 7000)
        assert await outside_addresses(inside, [neighbour]) == [("100.64.0.2", 7000)]
        (sock,) = public(network)[:1]
        (outside,) = await outside_addresses(inside, [sock])
        assert outside[0] == "5.5.5.5"
        sock.send(b"back", outside)
        assert await received(inside) == [(b"back", ASKED)]


async def test_the_same_seed_gives_the_same_ports(autojump_clock):
    runs = []
    for seed in (1, 1, 2):
        async with sim_network(seed=seed) as network:
            nat = SimNat(network, "5.5.5.5", mapping="random")
            inside = nat.host("192.168.1.2")("", 1)
            runs.append(await outside_addresses(inside, public(network)))
    assert runs[0] == runs[1] != runs[2]


async def test_a_full_table_forgets_its_oldest_mapping(autojump_clock, monkeypatch):
    monkeypatch.setattr("hyperlog.dht.simnat.SWEEP_AT", 8)
    monkeypatch.setattr("hyperlog.dht.simnat.MAX_MAPPINGS", 8)
    async with sim_network() as network:
        nat = SimNat(network, "5.5.5.5", filtering="endpoint")
        sockets = [nat.host("192.168.1.2")("", port) for port in range(2000, 2010)]
        for sock in sockets:
            sock.send(b"x", ASKED)
        known = [nat.outside_port(sock.local_address) for sock in sockets]
        assert known == [None, None, *range(2002, 2010)]
