"""The relay as a service, in simulated time: what it pairs, what it refuses, when pairs end."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.dht import relayserver
from hyperlog.dht.errors import ConnectError, RelayAborted, RelayError, RelayRefused
from hyperlog.dht.opening import open_dht
from hyperlog.dht.relay.client import RelayClientCore
from hyperlog.dht.relay.frames import Data, Open, encode, encode_batch
from hyperlog.dht.relay.messages import PAIR, PROTOCOL, Pair
from hyperlog.dht.relayserver import RelayServer
from tests.dht.peers import sim_dht
from tests.dht.relays import relayed_network, settled

TOKEN = b"t" * 32


def token(number):
    return number.to_bytes(32, "big")


async def closed(path, limit=10.0):
    """Return when the path is no more."""
    event = trio.Event()
    path.on_closed = event.set
    if not path.closed:
        with trio.fail_after(limit):
            await event.wait()


async def test_a_pair_lives_until_both_have_left_and_is_counted(autojump_clock):
    async with relayed_network() as relay:
        [(path, a), (other, b)] = await relay.pair(TOKEN)
        await a.send_all(b"x" * 5000)
        assert await b.receive_some() == b"x" * 5000
        now = relay.server.statistics()
        assert (now.connections, now.pairs, now.waiting, now.pairs_made) == (2, 1, 0, 1)
        assert now.bytes_relayed > 5000
        path.close()
        other.close()
        await settled(relay.server.statistics, pairs=0, connections=0, ended_by_peers=1)
        assert relay.server.statistics().bytes_relayed >= now.bytes_relayed
        assert relay.dht.sockets.statistics().streams == 0


async def test_a_pair_lingers_for_the_last_packets_of_the_second(autojump_clock):
    async with relayed_network() as relay:
        [(path, a), (other, b)] = await relay.pair(TOKEN)
        path.close()
        await settled(relay.server.statistics, connections=1)
        await b.send_all(b"late")
        assert await a.receive_some() == b"late"
        assert relay.server.statistics().pairs == 1
        await closed(other, relayserver.LINGER + 2)
        assert relay.server.statistics().pairs == 0


async def test_a_destroyed_stream_ends_its_pair_but_not_the_connections(autojump_clock):
    async with relayed_network() as relay:
        [(path, a), (other, b)] = await relay.pair(TOKEN)
        a.destroy()
        await b.wait_finished()
        await settled(relay.server.statistics, pairs=0, ended_by_peers=1)
        await closed(path)
        await closed(other)


async def test_a_half_that_waits_in_vain_is_told_so(autojump_clock):
    async with relayed_network(wait_timeout=20.0) as relay:
        started = trio.current_time()
        with pytest.raises(RelayRefused):
            await relay.ask(0, TOKEN)
        assert trio.current_time() - started == pytest.approx(20.0, abs=3)
        assert relay.server.statistics().unpaired == 1
        assert relay.server.statistics().waiting == 0


async def test_whoever_leaves_waits_no_more(autojump_clock):
    async with relayed_network() as relay:
        with trio.move_on_after(3):
            await relay.ask(0, TOKEN)
        await settled(relay.server.statistics, waiting=0, connections=0)


async def test_more_pairs_than_the_limit_are_refused_at_once(autojump_clock):
    async with relayed_network(max_pairs=1) as relay:
        [(path, _), _] = await relay.pair(token(1))
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def first():
                    with trio.move_on_after(4):
                        await relay.ask(0, token(2))

                nursery.start_soon(first)
                await trio.sleep(1)
                with pytest.raises(RelayRefused):
                    await relay.ask(1, token(2))
                nursery.cancel_scope.cancel()
        assert relay.server.statistics().pairs_refused == 1
        path.close()
        await settled(relay.server.statistics, pairs=0)
        await relay.pair(token(3))


async def test_a_connection_has_a_limit_of_its_own(autojump_clock):
    async with relayed_network(max_pairs_per_connection=3) as relay:
        connection = await relay.ends[0].connect(relay.server.public_key)
        core = RelayClientCore(connection.public_key)
        for number in range(5):
            core.pair(token(number), is_initiator=True, stream_id=number)
        await connection.send_many(core.messages_to_send())
        await settled(relay.server.statistics, waiting=3, pairs_refused=2)
        connection.abort()


async def test_connections_have_a_limit(autojump_clock):
    async with relayed_network(max_connections=1) as relay:
        connection = await relay.ends[0].connect(relay.server.public_key)
        await settled(relay.server.statistics, connections=1)
        with pytest.raises(RelayError):
            await relay.ask(1, TOKEN)
        assert relay.server.statistics().connections_refused == 1
        connection.abort()


@pytest.mark.parametrize(
    ("limit", "count"),
    [({"max_pair_bytes": 100_000}, "ended_by_bytes"), ({"max_pair_time": 20.0}, "ended_by_time")],
    ids=["bytes", "time"],
)
async def test_a_pair_ends_at_its_limit_and_both_ends_hear_of_it(autojump_clock, limit, count):
    async with relayed_network(**limit) as relay:
        [(path, a), (other, b)] = await relay.pair(TOKEN)

        async def send_on():
            while not path.closed:
                a.write_soon(os.urandom(5000))
                await trio.sleep(0.5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_on)
            await closed(path, 40)
            await closed(other)
        assert getattr(relay.server.statistics(), count) == 1
        assert relay.server.statistics().bytes_relayed < 250_000
        assert not a.finished  # what to do about it is for who uses the stream
        assert not b.finished


async def test_a_pair_without_packets_ends_and_a_connection_without_pairs(autojump_clock):
    async with relayed_network(idle_timeout=30.0) as relay:
        [(path, _), (other, _)] = await relay.pair(TOKEN)
        started = trio.current_time()
        await closed(path, 40)
        await closed(other)
        assert trio.current_time() - started == pytest.approx(30, abs=3)
        assert relay.server.statistics().ended_idle == 1
        connection = await relay.ends[0].connect(relay.server.public_key)
        with trio.fail_after(40):
            assert len([message async for message in connection]) == 2  # its Open and its Close
        await connection.aclose()


async def test_bytes_per_second_are_held_for_all_pairs_together(autojump_clock):
    async with relayed_network(max_bytes_per_second=200_000) as relay:
        first, second = await relay.pair(token(1)), await relay.pair(token(2))
        started = trio.current_time()

        async def move(pair):
            [(_, a), (_, b)] = pair
            a.write_soon(bytes(500_000))
            received = 0
            while received < 500_000:
                received += len(await b.receive_some())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, first)
            nursery.start_soon(move, second)
        assert 4.5 < trio.current_time() - started < 9


@pytest.mark.parametrize(
    "messages",
    [
        [b"\xff"],
        [b"\0\x01\x05"],
        [encode(Open(1, PROTOCOL, b"k" * 32)), encode(Data(1, PAIR, b"\0" + TOKEN))],
        [os.urandom(70_000)],
    ],
    ids=["cut short", "no protocol", "half a request", "too long"],
)
async def test_who_sends_what_no_peer_sends_is_cut_off_and_nobody_else(autojump_clock, messages):
    async with relayed_network() as relay:
        connection = await relay.ends[0].connect(relay.server.public_key)
        if len(messages) == 2:  # on the channel that the relay knows this peer by
            messages = [encode(Open(1, PROTOCOL, connection.public_key)), messages[1]]
        await connection.send_many(messages)
        await settled(relay.server.statistics, malformed=1, connections=0)
        await relay.pair(TOKEN)
        connection.abort()


async def test_who_asks_without_end_is_read_slowly(autojump_clock):
    async with relayed_network() as relay:
        connection = await relay.ends[0].connect(relay.server.public_key)
        core = RelayClientCore(connection.public_key)
        await connection.send_many(core.messages_to_send())
        pair = Data(1, PAIR, Pair(True, TOKEN, 1).encode())

        async def flood():
            for _ in range(100):
                await connection.send_many([encode(pair)] * 100)

        before = relay.server.statistics()
        with trio.move_on_after(30):
            await flood()
            await trio.sleep(30)
        # The first half waits, all others are repetitions; what counts is that others are served.
        assert relay.server.statistics().waiting == before.waiting + 1
        with trio.fail_after(5):
            await relay.pair(token(9))
        connection.abort()


async def test_requests_that_come_joined_count_as_so_many(autojump_clock):
    async with relayed_network() as relay:
        connection = await relay.ends[0].connect(relay.server.public_key)
        core = RelayClientCore(connection.public_key)
        await connection.send_many(core.messages_to_send())
        requests = [Data(1, PAIR, Pair(True, token(number), 1).encode()) for number in range(1000)]
        await connection.send_many([encode_batch(requests)] * 6)
        await trio.sleep(5)
        statistics = relay.server.statistics()
        assert statistics.waiting + statistics.pairs_refused <= len(requests)
        await settled(relay.server.statistics, pairs_refused=2 * (len(requests) - 16))
        connection.abort()


async def test_a_relay_that_ends_tells_its_peers(autojump_clock):
    async with relayed_network() as relay:
        [(path, _), (other, _)] = await relay.pair(TOKEN)
        async with trio.open_nursery() as nursery:

            async def wait_in_vain():
                with pytest.raises(RelayAborted):
                    await relay.ask(0, token(2))

            nursery.start_soon(wait_in_vain)
            await settled(relay.server.statistics, waiting=1)
            relay.nursery.cancel_scope.cancel()
            await closed(path)
            await closed(other)
        assert relay.dht.sockets.statistics().streams == 0
        with trio.move_on_after(30), pytest.raises(ConnectError):
            await relay.ends[0].connect(relay.server.public_key)


async def test_a_relay_ends_with_its_node(autojump_clock):
    async with sim_dht() as net:
        client = await net.add()
        host = "9.1.1.1"
        async with trio.open_nursery() as nursery:
            async with open_dht(
                bootstrap=net.bootstrap, host=host, socket_factory=net.network.host(host)
            ) as dht:
                relay = RelayServer(dht)
                await nursery.start(relay.run)
                await relay.wait_announced()
                connection = await client.connect(relay.public_key)
                await settled(relay.statistics, connections=1)
            with trio.fail_after(5):
                await connection.stream.wait_finished()
            await settled(relay.statistics, connections=0)


@asynccontextmanager
async def relayed_connections(relay):
    """Both ends of a connection to which the relay is the only way."""
    client, server = relay.ends
    listener = await server.listen(
        relay_through=relay.server.public_key, holepunch=False, share_local_address=False
    )
    await listener.wait_announced()
    ours = await client.connect(listener.public_key, local_connection=False)
    theirs = await listener.accept()
    assert ours.path == theirs.path == "relayed"
    yield ours, theirs
    ours.abort()
    theirs.abort()


async def test_connections_run_through_the_relay_both_ways_and_end_in_order(autojump_clock):
    async with relayed_network() as relay, relayed_connections(relay) as (ours, theirs):
        data = os.urandom(300_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send, data)
            nursery.start_soon(theirs.send, data[::-1])
            assert await theirs.receive() == data
            assert await ours.receive() == data[::-1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.aclose)
            nursery.start_soon(theirs.aclose)
        await settled(relay.server.statistics, pairs=0, connections=0, ended_by_peers=1)


async def test_both_ends_hear_at_once_that_the_relay_has_ended_their_path(autojump_clock):
    async with (
        relayed_network(max_pair_time=30.0) as relay,
        relayed_connections(relay) as (ours, theirs),
    ):
        for connection in (ours, theirs):
            with trio.fail_after(40), pytest.raises(trio.BrokenResourceError) as error:
                await connection.receive()
            assert isinstance(error.value.__cause__, RelayAborted)
        assert relay.server.statistics().ended_by_time == 1


async def test_idle_connections_keep_their_pair_by_their_keep_alives(autojump_clock):
    async with (
        relayed_network(idle_timeout=20.0) as relay,
        relayed_connections(relay) as (ours, theirs),
    ):
        await trio.sleep(300)
        await ours.send(b"still there")
        assert await theirs.receive() == b"still there"
        assert relay.server.statistics().pairs == 1


async def test_many_pairs_at_once_keep_apart_and_leave_nothing_behind(autojump_clock):
    async with relayed_network() as relay:
        paths = []

        async def talk(number):
            [(path, a), (other, b)] = await relay.pair(token(number))
            paths.extend((path, other))
            for stream, text in ((a, b"to b %d" % number), (b, b"to a %d" % number)):
                await stream.send_all(text)
            assert await b.receive_some() == b"to b %d" % number
            assert await a.receive_some() == b"to a %d" % number
            a.destroy()
            b.destroy()

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(talk, number)
        assert relay.server.statistics().pairs_made == 40
        for path in paths:
            path.close()
        await settled(relay.server.statistics, pairs=0, connections=0, waiting=0)
        assert relay.dht.sockets.statistics().streams == 0
        assert not relay.server._pairings._of_session
        for end in relay.ends:
            with trio.fail_after(10):
                while end.sockets.statistics().streams:  # noqa: ASYNC110 - tells nobody
                    await trio.sleep(0.1)
