"""The sockets of a hole punch: how many there are, and that none is left."""

from __future__ import annotations

import errno
import itertools
import random
import resource
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hyperlog.dht.constants import FIREWALL_CONSISTENT, FIREWALL_RANDOM
from hyperlog.dht.errors import CannotHolepunch, RemoteNotHolepunchable
from hyperlog.dht.holepunch.nat import Nat
from hyperlog.dht.holepunch.puncher import MIN_BIRTHDAY_SOCKETS, PROBE, SPARED_SOCKETS, Strategy
from hyperlog.dht.holepunch.punches import PunchRecord
from hyperlog.dht.opening import open_dht
from hyperlog.dht.punchsockets import PunchSockets
from hyperlog.dht.udp import UDPSocket
from tests.dht.peers import sim_dht

DESCRIPTORS = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not DESCRIPTORS.exists(), reason="the system has no /proc/self/fd")


def descriptors():
    return len(list(DESCRIPTORS.iterdir()))


def limit_for(more):
    """The RLIMIT_NOFILE that leaves the process so many more descriptors."""
    used = {int(entry.name) for entry in DESCRIPTORS.iterdir()}
    free = (number for number in itertools.count() if number not in used)
    return next(itertools.islice(free, more, None))


def nat_of(kind):
    nat = Nat()
    for number in range(4):
        nat.add(("1.1.1.1", 1000 + (number if kind == FIREWALL_RANDOM else 0)), ("9.9.9.9", number))
    assert nat.firewall == kind
    return nat


@asynccontextmanager
async def loopback_punch(local, peer, *, is_initiator=True, factory=UDPSocket):
    """A node on loopback and the sockets of a hole punch to `peer`, which is consistent."""
    async with open_dht(host="127.0.0.1", bootstrap=[], socket_factory=factory) as dht:
        sockets = PunchSockets(
            dht, is_initiator=is_initiator, remote_firewall=0, record=PunchRecord()
        )
        sockets.puncher.nat = nat_of(local)
        sockets.puncher.update_remote(
            punching=True,
            firewall=FIREWALL_CONSISTENT,
            addresses=[peer],
            verified_host=peer[0],
        )
        try:
            yield dht, sockets
        finally:
            sockets.close()


@needs_proc
async def test_256_real_sockets_probe_and_only_the_winner_stays():
    peer = UDPSocket("127.0.0.1", 0)
    async with loopback_punch(FIREWALL_RANDOM, peer.local_address) as (dht, sockets):
        before = descriptors()
        await sockets.punch()
        assert descriptors() == before + 255
        assert dht.sockets.statistics().sockets == 2 + 256
        heard = {}
        with trio.fail_after(10):
            while len(heard) < 255:
                await peer.wait_readable()
                heard |= {source: data for data, source in peer.receive_batch()}
        assert set(heard.values()) == {PROBE}
        winner = list(heard)[100]
        peer.send(PROBE, winner)
        with trio.fail_after(10):
            await sockets.connected.wait()
        socket, source = sockets.path()
        assert source == peer.local_address
        assert dht.sockets.local_address(socket) == winner
        dht.sockets.hold(socket)  # as a stream does
        sockets.close()
        assert descriptors() == before  # the first socket has gone, the winner is there
        assert dht.sockets.statistics().sockets == 2 + 1
        dht.sockets.release(socket)
        assert dht.sockets.statistics().sockets == 2
    peer.close()


async def test_opening_many_sockets_lets_other_tasks_run():
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with (
        loopback_punch(FIREWALL_RANDOM, ("127.0.0.1", 9)) as (_, sockets),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(count_turns)
        before = turns
        await sockets.punch()
        assert turns - before >= 10
        nursery.cancel_scope.cancel()


@needs_proc
async def test_closing_while_sockets_are_opened_leaves_none():
    for stop_after in (0, 1, 5, 12):
        async with loopback_punch(FIREWALL_RANDOM, ("127.0.0.1", 9)) as (dht, sockets):
            before = descriptors()

            async def close_after(turns, sockets=sockets):
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                sockets.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(close_after, stop_after)
                try:
                    await sockets.punch()
                except RemoteNotHolepunchable:
                    assert stop_after == 0
            assert descriptors() == before - 1
            assert dht.sockets.statistics().sockets == 2
            assert dht.punches.limit.running == 0


class Shortage:
    """A system that has only so many more sockets for us."""

    def __init__(self):
        self.left = 1 << 30

    def __call__(self, host, port):
        if self.left == 0:
            raise OSError(errno.EMFILE, "Too many open files")
        self.left -= 1
        return UDPSocket(host, port)


@pytest.mark.parametrize("more", [0, 30, MIN_BIRTHDAY_SOCKETS + SPARED_SOCKETS - 2])
async def test_a_shortage_of_descriptors_has_a_typed_error(more):
    shortage = Shortage()
    async with loopback_punch(FIREWALL_RANDOM, ("127.0.0.1", 9), factory=shortage) as (dht, punch):
        shortage.left = more
        with pytest.raises(CannotHolepunch, match="ulimit -n"):
            await punch.punch()
        assert dht.sockets.statistics().sockets <= 2 + MIN_BIRTHDAY_SOCKETS
        punch.close()
        assert dht.sockets.statistics().sockets == 2
        counts = dht.punches.statistics().random_local
        assert (counts.attempted, counts.failed) == (1, 1)


async def test_with_fewer_sockets_it_goes_on_and_gives_some_back():
    shortage = Shortage()
    async with loopback_punch(FIREWALL_RANDOM, ("127.0.0.1", 9), factory=shortage) as (dht, punch):
        shortage.left = 149
        await punch.punch()
        assert dht.sockets.statistics().sockets == 2 + 150 - SPARED_SOCKETS
        assert punch.puncher.punching


@needs_proc
async def test_the_systems_own_limit_is_no_crash_either():
    async with loopback_punch(FIREWALL_RANDOM, ("127.0.0.1", 9)) as (dht, punch):
        before = descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit_for(20), hard))
        try:
            with pytest.raises(CannotHolepunch):
                await punch.punch()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        punch.close()
        assert descriptors() == before - 1
        assert dht.sockets.statistics().sockets == 2


async def test_a_probe_to_any_socket_of_the_server_is_answered_from_there():
    peer = UDPSocket("127.0.0.1", 0)
    async with loopback_punch(FIREWALL_RANDOM, peer.local_address, is_initiator=False) as (
        _,
        punch,
    ):
        await punch.punch()
        with trio.fail_after(10):
            await peer.wait_readable()
            (_, source), *_ = peer.receive_batch()
            await trio.lowlevel.checkpoint()
            while peer.receive_batch():
                pass
            peer.send(PROBE, source)
            answers = set()
            while source not in answers:
                await peer.wait_readable()
                answers |= {address for _, address in peer.receive_batch()}
        assert punch.path() is None
        assert punch.puncher.strategy is Strategy.RANDOM_LOCAL
    peer.close()


async def test_the_judgement_does_not_wait_for_a_ping_that_got_lost(autojump_clock):
    async with sim_dht(8) as net:
        dht = await net.add(firewalled=True)
        await dht.bootstrapped()
        record = PunchRecord()
        sockets = PunchSockets(dht, is_initiator=True, remote_firewall=0, record=record)
        transmit = net.network.transmit
        lost = []

        def lose_one(source, data, destination, ttl):
            if not lost and source == dht.sockets.local_address(sockets.first):
                lost.append(destination)
            else:
                transmit(source, data, destination, ttl)

        net.network.transmit = lose_one
        started = trio.current_time()
        await sockets.sample()
        assert lost
        assert trio.current_time() - started < 0.1
        assert await sockets.analyze(reopen=False)
        sockets.close()


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_events_leaves_no_socket(seed, autojump_clock):
    rng = random.Random(seed)
    async with sim_dht(6, seed=seed) as net:
        dht = await net.add(firewalled=True)
        await dht.bootstrapped()
        dht.punches.limit.interval = 0.0
        sockets = PunchSockets(
            dht, is_initiator=rng.random() < 0.5, remote_firewall=0, record=PunchRecord()
        )
        local, remote = rng.choice(
            [(FIREWALL_RANDOM, FIREWALL_CONSISTENT), (FIREWALL_CONSISTENT, FIREWALL_RANDOM)]
        )

        async def act():
            for _ in range(rng.randrange(1, 12)):
                await trio.sleep(rng.random() * 0.2)
                action = rng.choice(["know", "reserve", "punch", "analyze", "probe", "session"])
                if action == "know":
                    sockets.puncher.update_remote(
                        punching=True,
                        firewall=remote,
                        addresses=[("8.0.1.1", 9)],
                        verified_host="8.0.1.1",
                    )
                    if sockets.puncher.strategy is None:
                        sockets.puncher.nat = nat_of(local)
                elif action == "reserve":
                    sockets.reserve()
                elif action == "punch":
                    nursery.start_soon(punch)
                elif action == "analyze":
                    nursery.start_soon(analyze)
                elif action == "probe":
                    net.nodes[0].sockets.send(0, dht.sockets.local_address(sockets.first), PROBE)
                else:
                    sockets.open_session(("8.0.1.1", 9))

        async def punch():
            try:
                await sockets.punch()
            except RemoteNotHolepunchable:
                pass

        async def analyze():
            await sockets.analyze(reopen=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sockets.sample)
            nursery.start_soon(sockets.send_probes)
            await act()
            if rng.random() < 0.5:
                await trio.sleep(rng.random() * 40)
            sockets.close()
            nursery.cancel_scope.deadline = trio.current_time() + 5
        assert dht.statistics().sockets.sockets == 2
        assert dht.punches.limit.running == 0
