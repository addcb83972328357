"""SimNetwork: cables that are cut, machines that move, links, and the clock."""

from __future__ import annotations

import pytest
import trio

from hyperlog.dht.simnat import SimNat
from hyperlog.dht.simulation import SimClock, SimLink, SimNetwork
from tests.dht.peers import sim_network


async def arrivals(sock):
    await trio.sleep(1)
    return [source for _, source in sock.receive_batch()]


async def test_a_machine_that_is_cut_off_neither_hears_nor_speaks_until_healed(autojump_clock):
    async with sim_network(delay=0.5) as network:
        a, b = network.host("1.1.1.1")("", 1), network.host("2.2.2.2")("", 1)
        a.send(b"on its way", b.local_address)
        network.cut("2.2.2.2")
        b.send(b"x", a.local_address)
        assert await arrivals(a) == await arrivals(b) == []
        assert network.statistics.cut == 2
        network.heal("2.2.2.2")
        b.send(b"x", a.local_address)
        assert await arrivals(a) == [("2.2.2.2", 1)]


async def test_cutting_a_nat_cuts_what_is_behind_it_but_not_from_each_other(autojump_clock):
    async with sim_network() as network:
        nat = SimNat(network, "5.5.5.5")
        host = nat.host("192.168.1.2")
        a, b = host("", 1), nat.host("192.168.1.3")("", 1)
        c = network.host("1.1.1.1")("", 1)
        network.cut("5.5.5.5")
        a.send(b"x", c.local_address)
        a.send(b"x", b.local_address)
        assert await arrivals(c) == []
        assert await arrivals(b) == [a.local_address]
        network.heal("5.5.5.5")
        host.cut()
        a.send(b"x", c.local_address)
        a.send(b"x", b.local_address)
        assert await arrivals(c) == await arrivals(b) == []
        host.heal()
        a.send(b"x", c.local_address)
        assert await arrivals(c) == [("5.5.5.5", 1)]


async def test_a_machine_moves_with_its_sockets(autojump_clock):
    async with sim_network() as network:
        host = network.host("1.1.1.1")
        a, b = host("", 1), network.host("2.2.2.2")("", 1)
        host.move("3.3.3.3")
        assert a.local_address == ("3.3.3.3", 1)
        b.send(b"x", ("1.1.1.1", 1))
        b.send(b"x", ("3.3.3.3", 1))
        assert await arrivals(a) == [("2.2.2.2", 1)]
        nat = SimNat(network, "5.5.5.5")
        host.move("192.168.1.2", nat)
        a.send(b"x", b.local_address)
        assert await arrivals(b) == [("5.5.5.5", 1)]
        assert host("", 2).local_address == ("192.168.1.2", 2)
        with pytest.raises(ValueError, match="in use"):
            host.move("5.5.5.5", network)
        with pytest.raises(ValueError, match="outside of a NAT"):
            network.host("5.5.5.5")
        a.close()
        assert network.host("3.3.3.3")("", 1).local_address == ("3.3.3.3", 1)


async def test_a_link_adds_to_what_passes_it_both_ways(autojump_clock):
    async with sim_network(delay=0.1, seed=3) as network:
        a, b = network.host("1.1.1.1")("", 1), network.host("2.2.2.2")("", 1)
        network.set_link("2.2.2.2", SimLink(delay=0.2))
        for source, target in ((a, b), (b, a)):
            started = trio.current_time()
            source.send(b"x", target.local_address)
            await target.wait_readable()
            assert trio.current_time() - started == pytest.approx(0.3)
            assert target.receive_batch()
        network.set_link("2.2.2.2", SimLink(loss=0.5))
        for _ in range(1000):
            a.send(b"x", b.local_address)
        assert 400 < len(await arrivals(b)) < 600
        network.set_link("2.2.2.2", None)
        a.send(b"x", b.local_address)
        assert len(await arrivals(b)) == 1


@pytest.mark.parametrize("grain", [0.0, 0.25])
def test_the_clock_jumps_to_deadlines_or_to_the_grain_after_them(grain):
    async def main():
        times = []
        for pause in (0.1, 0.1, 0.3, 3600):
            await trio.sleep(pause)
            times.append(trio.current_time())
        return times

    exact = [0.1, 0.2, 0.5, 3600.5]
    coarse = [0.25, 0.5, 1.0, 3601.0]
    assert trio.run(main, clock=SimClock(grain)) == pytest.approx(coarse if grain else exact)


def test_a_network_runs_on_the_simulated_clock():
    async def main():
        network = SimNetwork(delay=0.01)
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            a, b = network.host("1.1.1.1")("", 1), network.host("2.2.2.2")("", 1)
            for _ in range(1000):
                a.send(b"x", b.local_address)
                await b.wait_readable()
                b.receive_batch()
            nursery.cancel_scope.cancel()
        return trio.current_time()

    assert trio.run(main, clock=SimClock()) == pytest.approx(10)
