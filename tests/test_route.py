"""A route on a simulated network, whose clock does not wait."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.dht import (
    DHTError,
    KeyPair,
    PeerConnectionFailed,
    PeerNotFound,
    SimNetwork,
    open_dht,
)
from hyperlog.route import EAGER_RETRY, EAGER_TIME, PATIENT_INTERVAL, SIGN_INTERVAL, Route
from tests.dht.peers import sim_dht

KEYS = KeyPair.generate()
SERVER = ("10.0.0.1", 4000)


@asynccontextmanager
async def simulated(**options):
    net = SimNetwork(seed=1, delay=0.01, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(net.run)
        yield net
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def server_on(net, host=SERVER[0]):
    """A network of its own, as `hyperlog serve --local` is."""
    async with open_dht(
        bootstrap=(),
        host=host,
        port=SERVER[1],
        firewalled=False,
        ephemeral=False,
        socket_factory=net.host(host),
    ) as dht:
        yield await dht.listen(KEYS)


@asynccontextmanager
async def client_on(net):
    async with open_dht(
        bootstrap=[SERVER], host="10.0.0.2", socket_factory=net.host("10.0.0.2")
    ) as dht:
        yield dht


async def keep_trying(route, limit=15.0):
    """Connect as a client does that has long been at its longest pauses; (channel, attempts)."""
    attempts = 0
    while True:
        attempts += 1
        try:
            return await route.connect(), attempts
        except DHTError as error:
            await route.wait_for_sign(limit, error)


@pytest.mark.parametrize("away", [5.0, 33.3, 100.0])
async def test_a_server_that_nobody_ever_reached_is_found_within_two_seconds(away, autojump_clock):
    async with simulated() as net, client_on(net) as dht:
        found_at = attempts = None
        route = Route(lambda: dht.connect(KEYS.public_key), dht, KEYS.public_key)

        async def try_on():
            nonlocal found_at, attempts
            channel, attempts = await keep_trying(route)
            found_at = trio.current_time()
            channel.abort()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_on)
            await trio.sleep(away)
            async with server_on(net):
                back_at = trio.current_time()
                with trio.fail_after(30):
                    while found_at is None:  # noqa: ASYNC110 - in steps of virtual time
                        await trio.sleep(0.01)
        assert found_at - back_at <= 2.0
        assert attempts <= 2 + away / 4  # each fails after 4 s


async def test_a_server_that_was_reached_before_is_found_within_one_second(autojump_clock):
    async with simulated() as net, client_on(net) as dht:
        route = Route(lambda: dht.connect(KEYS.public_key), dht, KEYS.public_key)
        async with server_on(net):
            channel = await route.connect()
            channel.abort()
        with pytest.raises(DHTError) as caught:
            await route.connect()
        async with trio.open_nursery() as nursery:
            await trio.sleep(50)
            nursery.start_soon(route.wait_for_sign, 15.0, caught.value)
            await trio.sleep(1)
            async with server_on(net):
                back_at = trio.current_time()
                while nursery.child_tasks:  # noqa: ASYNC110 - in steps of virtual time
                    await trio.sleep(0.01)
                (await route.connect()).abort()
                assert trio.current_time() - back_at <= 1.0


async def test_a_server_whose_old_record_is_still_there_is_found_at_its_new_address(autojump_clock):
    async with sim_dht(5, seed=2, delay=0.01) as net:
        server = await net.add(firewalled=False)
        other = await net.add(firewalled=False)
        client = await net.add()
        await (await server.listen(KEYS)).wait_announced()
        route = Route(lambda: client.connect(KEYS.public_key), client, KEYS.public_key)
        (await route.connect()).abort()
        for address in list(net.network._sockets):  # dead, and withdraws nothing
            if address[0] == server.sockets.local_address(0)[0]:
                del net.network._sockets[address]
        found_at = None

        async def try_on():
            nonlocal found_at
            channel, _ = await keep_trying(route)
            found_at = trio.current_time()
            channel.abort()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_on)
            await trio.sleep(60)
            assert found_at is None
            await (await other.listen(KEYS)).wait_announced()
            back_at = trio.current_time()
            with trio.fail_after(30):
                while found_at is None:  # noqa: ASYNC110 - in steps of virtual time
                    await trio.sleep(0.01)
        assert found_at - back_at <= 2.0


async def test_looking_for_signs_becomes_rare_when_the_server_stays_away(autojump_clock):
    looks = []

    class Node:
        async def is_announced(self, key):
            looks.append(trio.current_time())
            return False

    route = Route(trio.sleep_forever, Node(), KEYS.public_key)
    began_at = trio.current_time()
    await route.wait_for_sign(EAGER_TIME + 100, PeerNotFound("nobody"))
    assert looks[1] - looks[0] == pytest.approx(SIGN_INTERVAL)
    assert looks[-1] - looks[-2] == pytest.approx(PATIENT_INTERVAL)
    assert trio.current_time() - began_at == EAGER_TIME + 100
    began_at = trio.current_time()
    await route.wait_for_sign(15.0, PeerConnectionFailed("dead"))
    assert trio.current_time() - began_at == 15.0
    fresh = Route(trio.sleep_forever, Node(), KEYS.public_key)
    await fresh.wait_for_sign(15.0, PeerConnectionFailed("dead"))
    assert trio.current_time() - began_at == pytest.approx(15.0 + EAGER_RETRY)
