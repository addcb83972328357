"""Asking a relay for a path, in simulated time."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from hyperlog.dht.errors import NodeDestroyed, RelayAborted, RelayRefused, RelayUnreachable
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.relay.frames import Data, Open, Reject, decode_untrusted, encode
from hyperlog.dht.relay.messages import UNPAIR, Unpair
from hyperlog.dht.relay.server import RelayServerCore
from hyperlog.dht.relaying import connect_through_relay
from tests.dht.peers import sim_dht
from tests.dht.relays import relayed_network, settled

TOKEN = b"t" * 32
ASK = {"token": TOKEN, "is_initiator": True, "stream_id": 7}


async def test_a_path_names_the_relays_stream_and_ends_once(autojump_clock):
    async with relayed_network() as relay:
        [(path, _), (other, _)] = await relay.pair(TOKEN)
        assert path.address == other.address == (relay.dht.address[0], path.address[1])
        assert path.remote_id != other.remote_id
        told = []
        path.on_closed = lambda: told.append(path)
        path.close()
        path.close()
        assert path.closed
        assert told == [path]


async def test_the_path_is_gone_when_the_relay_is_lost(autojump_clock):
    async with relayed_network() as relay:
        [(path, _), _] = await relay.pair(TOKEN)
        gone = trio.Event()
        path.on_closed = gone.set
        for connection in list(relay.server._sessions):
            connection.connection.abort()
        with trio.fail_after(5):
            await gone.wait()
        assert path.closed


@pytest.mark.parametrize("identity", [None, KeyPair.generate()], ids=["node's", "another"])
async def test_a_relay_is_shown_the_key_that_is_asked_for(autojump_clock, identity):
    async with relayed_network() as relay, trio.open_nursery() as nursery:
        nursery.start_soon(partial(relay.ask, 0, TOKEN, key_pair=identity))
        await settled(relay.server.statistics, waiting=1)
        [session] = relay.server._sessions
        expected = identity or relay.ends[0].key_pair
        assert session.connection.remote_public_key == expected.public_key
        nursery.cancel_scope.cancel()


async def test_a_relay_that_nobody_announces_is_unreachable(autojump_clock):
    async with sim_dht() as net:
        client = await net.add()
        with pytest.raises(RelayUnreachable) as error:
            await connect_through_relay(client, KeyPair.generate().public_key, **ASK)
        assert error.value.code == "RELAY_ABORTED"
        assert error.value.__cause__.code == "PEER_NOT_FOUND"


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"\0\x02\x01", RelayRefused), (b"\xff\xff", RelayAborted), (None, RelayAborted)],
    ids=["rejects the channel", "sends nonsense", "hangs up"],
)
async def test_a_peer_that_is_no_relay_is_told_from_one(autojump_clock, answer, error):
    async with sim_dht() as net:
        client, server = await net.add(), await net.add()
        listener = await server.listen()
        await listener.wait_announced()

        async def answer_oddly():
            connection = await listener.accept()
            await connection.receive()
            if answer is not None:
                await connection.send(answer)
                await trio.sleep(5)
            connection.abort()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_oddly)
            with trio.fail_after(20), pytest.raises(error):
                await connect_through_relay(client, listener.public_key, **ASK)
            nursery.cancel_scope.cancel()
        await trio.sleep(10)
        assert client.sockets.statistics().streams == 0


class RelayByHand:
    """A relay that pairs whoever comes first, and then says what the test wants."""

    def __init__(self, connection):
        self.connection = connection
        self.core = RelayServerCore(connection.remote_public_key)

    async def pair(self, *further):
        """Answer the request; what is `further` to be said goes out in one piece with it."""
        while (event := self.core.next_event()) is None:
            self.core.receive_untrusted(await self.connection.receive())
        self.core.paired(event.pair.token, is_initiator=True, stream_id=8)
        await self.connection.send_many([*self.core.messages_to_send(), *further])


@asynccontextmanager
async def relay_by_hand():
    """A node, and a call that asks the relay for a path and gives that and the relay's side."""
    async with sim_dht() as net:
        client, server = await net.add(), await net.add()
        listener = await server.listen()
        await listener.wait_announced()

        async def ask(*further):
            made = []

            async def path():
                made.append(await connect_through_relay(client, listener.public_key, **ASK))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(path)
                relay = RelayByHand(await listener.accept())
                await relay.pair(*further)
            return made[0], relay

        yield ask


async def test_a_relay_that_offers_channels_later_is_answered(autojump_clock):
    async with relay_by_hand() as ask:
        path, relay = await ask()
        for _ in range(3):
            await relay.connection.send(encode(Open(2, "another")))
            with trio.fail_after(1):
                assert decode_untrusted(await relay.connection.receive()) == [Reject(2)]
        path.close()


async def test_a_path_that_ends_as_soon_as_it_is_made_is_gone(autojump_clock):
    async with relay_by_hand() as ask:
        path, _ = await ask(encode(Data(1, UNPAIR, Unpair(TOKEN).encode())))
        gone = trio.Event()
        path.on_closed = gone.set
        if not path.closed:
            with trio.fail_after(1):
                await gone.wait()


async def test_whoever_stops_waiting_leaves_nothing_behind(autojump_clock):
    async with relayed_network() as relay:
        with trio.move_on_after(5) as scope:
            await relay.ask(0, TOKEN)
        assert scope.cancelled_caught
        await trio.sleep(5)
        assert relay.ends[0].sockets.statistics().streams == 0
        assert relay.server.statistics().connections == 0


async def test_a_node_that_is_closed_says_so(autojump_clock):
    async with relayed_network() as relay:
        await relay.ends[0].shut_down()
        with pytest.raises(NodeDestroyed):
            await relay.ask(0, TOKEN)
