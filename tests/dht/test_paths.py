"""Paths: relayed first and direct later, without losing a byte; which relay, and none at all."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from hyperlog.dht import DHT, Connection, KeyPair, LocalProtocolError
from hyperlog.dht.errors import DoubleRandomizedNATs
from hyperlog.dht.paths import RELAY_TIMEOUT, choose_relay
from hyperlog.dht.relayserver import RelayServer
from hyperlog.dht.simnat import SimNat
from hyperlog.dht.testing import SimTestnet, sim_testnet
from tests.dht.peers import seeded_bytes

RANDOM = {"mapping": "random"}
CONSISTENT = {"mapping": "consistent"}
PATIENCE = 90  # s, simulated: a hole punch ends after 40, and may have to wait before


@dataclass
class Place:
    """A network with a relay, and two machines behind NATs."""

    net: SimTestnet
    relay: RelayServer
    server: DHT
    client: DHT


@asynccontextmanager
async def place(near, far, **network) -> AsyncIterator[Place]:
    async with sim_testnet(8, **network) as net, trio.open_nursery() as nursery:
        relay = RelayServer(await net.add())
        await nursery.start(relay.run)
        homes = [SimNat(net.network, "5.5.5.5", **near), SimNat(net.network, "6.6.6.6", **far)]
        server, client = [
            await net.add(home.host("192.168.1.2"), ephemeral=None, firewalled=None)
            for home in homes
        ]
        yield Place(net, relay, server, client)
        nursery.cancel_scope.cancel()


async def connect(here: Place, *, server=None, client=None) -> tuple[Connection, Connection]:
    """Connect with `relay_through` on either side; the client's end and the server's."""
    listener = await here.server.listen(relay_through=server)
    assert await listener.wait_announced()
    connection = await here.client.connect(listener.public_key, relay_through=client)
    return connection, await listener.accept()


SIDES = pytest.mark.parametrize("side", ["server", "client", "both"])


def named(side, key):
    return {one: key for one in ("server", "client") if side in (one, "both")}


@SIDES
async def test_two_symmetric_nats_are_bridged_by_a_relay(side, autojump_clock):
    async with place(RANDOM, RANDOM) as here:
        connection, accepted = await connect(here, **named(side, here.relay.public_key))
        assert connection.path == accepted.path == "relayed"
        for one, other in ((connection, accepted), (accepted, connection)):
            await one.send(b"x" * 50_000)
            assert await other.receive() == b"x" * 50_000
        await trio.sleep(60)
        await connection.send(b"still")
        assert await accepted.receive() == b"still"
        assert connection.statistics().opening.relays == 1
        assert here.client.statistics().connects.opened == {"direct": 1, "relayed": 1}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.aclose)
            nursery.start_soon(accepted.aclose)
        await trio.sleep(10)
        assert here.relay.statistics().pairs == here.relay.statistics().connections == 0
        assert here.client.statistics().sockets.streams == 0


async def exchange(one: Connection, other: Connection, enough) -> int:
    """Send numbered messages both ways until `enough()`; the number that arrived, each in order."""
    received = {}

    async def write(end: Connection) -> None:
        number = 0
        while not enough():
            await end.send(b"%d" % number + b"." * 3000)
            await trio.sleep(0.02)
            number += 1
        await end.send(b"%d" % number)

    async def read(end: Connection) -> None:
        number = 0
        while len(message := await end.receive()) > 3000:
            assert message == b"%d" % number + b"." * 3000
            number += 1
        assert message == b"%d" % number
        received[end] = number

    async with trio.open_nursery() as nursery:
        for end in (one, other):
            nursery.start_soon(write, end)
            nursery.start_soon(read, end)
    return min(received.values())


async def punched(here: Place, use, **who) -> tuple[Connection, Connection]:
    """Relayed connections, until both ends of one have changed over while they were in `use`.

    One attempt of a thousand to meet at a random port is in vain.
    """
    listener = await here.server.listen(relay_through=who.get("server"))
    assert await listener.wait_announced()
    for _ in range(3):
        connection = await here.client.connect(listener.public_key, relay_through=who.get("client"))
        ends = connection, await listener.accept()
        assert {end.path for end in ends} == {"relayed"}
        with trio.move_on_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends[0].path_changed)
                nursery.start_soon(ends[1].path_changed)
                await use(*ends)
            return ends
        for end in ends:
            end.abort()
    raise AssertionError("no hole was found in three attempts")


@pytest.mark.parametrize(
    ("near", "far"), [(CONSISTENT, RANDOM), (RANDOM, CONSISTENT)], ids=["far", "near"]
)
@pytest.mark.parametrize("loss", [0.0, 0.05])
@pytest.mark.parametrize("side", ["server", "client"])
async def test_a_relayed_connection_changes_over_to_the_hole_without_losing_a_byte(
    side, loss, near, far, autojump_clock
):
    async with place(near, far, seed=3, delay=0.03, loss=loss) as here:
        counts = []

        async def talk(connection, accepted):
            changed_at = math.inf

            def enough():
                nonlocal changed_at
                now = trio.current_time()
                if connection.path == accepted.path == "punched":
                    changed_at = min(changed_at, now)
                return now > changed_at + 1

            counts.append(await exchange(connection, accepted, enough))

        connection, accepted = await punched(here, talk, **named(side, here.relay.public_key))
        assert counts[-1] > 50
        assert connection.statistics().paths == accepted.statistics().paths
        assert connection.statistics().paths == ("relayed", "punched")
        assert here.client.statistics().connects.upgraded == 1
        await trio.sleep(10)
        assert here.relay.statistics().pairs == here.relay.statistics().connections == 0
        await connection.send(b"without it")
        assert await accepted.receive() == b"without it"


async def test_a_silent_connection_leaves_the_relay_too(autojump_clock):
    async with place(CONSISTENT, RANDOM, seed=1) as here:

        async def be_silent(connection, accepted):
            pass

        connection, accepted = await punched(here, be_silent, client=here.relay.public_key)
        assert connection.path == accepted.path == "punched"
        await trio.sleep(15)
        assert here.relay.statistics().connections == 0
        assert not connection.closed
        assert not accepted.closed


async def test_a_connection_may_be_closed_in_the_middle_of_its_change(autojump_clock):
    async with place(CONSISTENT, RANDOM, seed=1, delay=0.03) as here:
        changing = []

        async def close_in_the_middle(connection, accepted):
            async def write():
                while connection.path == "relayed":
                    await connection.send(bytes(3000))
                    await trio.sleep(0.02)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                await connection.path_changed()
                changing.append(connection.stream.remote_is_changing)
                await connection.aclose()

        await punched(here, close_in_the_middle, client=here.relay.public_key)
        assert changing[-1]
        assert await here.client.node.ping(here.server.address)


async def test_a_hole_that_is_faster_needs_no_relay(autojump_clock):
    async with place(CONSISTENT, CONSISTENT) as here:
        away = KeyPair.generate().public_key  # nobody's: that takes longer to find out
        connection, accepted = await connect(here, client=away, server=away)
        assert connection.path == accepted.path == "punched"
        await trio.sleep(2 * RELAY_TIMEOUT)
        assert connection.statistics().paths == ("punched",)
        await connection.send(b"through")
        assert await accepted.receive() == b"through"


async def test_the_servers_relay_goes_before_the_clients(autojump_clock):
    async with place(RANDOM, RANDOM) as here:
        away = KeyPair.generate().public_key
        connection, accepted = await connect(here, client=away, server=here.relay.public_key)
        assert connection.path == accepted.path == "relayed"


async def test_a_relay_that_is_not_there_leaves_the_error_of_the_hole_punch(autojump_clock):
    async with place(RANDOM, RANDOM) as here:
        listener = await here.server.listen()
        await listener.wait_announced()
        started = trio.current_time()
        with pytest.raises(DoubleRandomizedNATs) as caught:
            await here.client.connect(
                listener.public_key, relay_through=KeyPair.generate().public_key
            )
        assert "relay was of no help" in caught.value.__notes__[0]
        assert trio.current_time() - started < RELAY_TIMEOUT + 5
        assert here.client.statistics().connects.failed["HOLEPUNCH_DOUBLE_RANDOMIZED_NATS"] == 1
        await trio.sleep(RELAY_TIMEOUT)
        assert here.client.statistics().sockets.streams == 0
        assert here.server.statistics().sockets.streams == 0


async def test_a_cancelled_connect_leaves_the_relay_alone(autojump_clock):
    async with place(RANDOM, RANDOM) as here:
        listener = await here.server.listen(relay_through=here.relay.public_key)
        await listener.wait_announced()
        for tenths in range(1, 12):
            with trio.move_on_after(tenths / 10):
                (await here.client.connect(listener.public_key)).abort()
        await trio.sleep(60)
        assert here.relay.statistics().connections == here.relay.statistics().waiting == 0
        assert here.client.statistics().sockets.streams == 0
        assert here.server.statistics().sockets.streams == 0


def test_a_relay_is_chosen_from_what_there_is():
    first, second = KeyPair.generate().public_key, KeyPair.generate().public_key
    for choice in (first, first.hex(), [first], lambda: first, lambda: [first.hex()]):
        assert choose_relay(choice, seeded_bytes(1)) == first
    for choice in (None, [], lambda: None):
        assert choose_relay(choice, seeded_bytes(1)) is None
    rng = random.Random(1)
    chosen = {choose_relay([first, second], rng.randbytes) for _ in range(50)}
    assert chosen == {first, second}
    with pytest.raises(LocalProtocolError):
        choose_relay(b"short", seeded_bytes(1))
