"""What strangers cannot do to a node: answer for others, fill it, make it talk by nonsense."""

from __future__ import annotations

import gc
import random
import sys

import pytest
import trio

from hyperlog.dht import KeyPair, RequestTimeout
from hyperlog.dht.commands.messages import Announce, Handshake, Holepunch, MutablePut, Peer
from hyperlog.dht.constants import (
    ANNOUNCE,
    FIND_PEER,
    FROM_CLIENT,
    FROM_RELAY,
    IMMUTABLE_GET,
    IMMUTABLE_PUT,
    LOOKUP,
    MUTABLE_GET,
    MUTABLE_PUT,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
    PLUGIN,
    UNANNOUNCE,
)
from hyperlog.dht.keys import generic_hash
from hyperlog.dht.rpc.messages import (
    DELAYED_PING,
    DOWN_HINT,
    FIND_NODE,
    INVALID_TOKEN,
    PING,
    PING_NAT,
    Request,
    Response,
    decode_untrusted,
    node_id,
)
from hyperlog.dht.sockets import SERVER
from tests.dht.peers import sim_dht

TARGET = bytes(range(32))
SOURCES = 100_000
FILLING = 40_000  # sources that fill every cache of a fixed size
WARM_UP = 60_000  # sources after which entries are replaced by others that take as much


def tap(network, seen):
    """Have `seen` called with what is sent, before it is on its way."""
    transmit = network.transmit

    def transmit_and_tell(source, data, destination, ttl=64):
        seen(source, bytes(data), destination)
        transmit(source, data, destination, ttl)

    network.transmit = transmit_and_tell
    return transmit


# -- answering for others --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["another host", "another port"])
async def test_an_answer_counts_only_from_the_address_that_was_asked(autojump_clock, where):
    async with sim_dht(3) as net:
        client, (host, port) = await net.add(), net.nodes[1].address
        await client.bootstrapped()
        forger = ("6.6.6.6", port) if where == "another host" else (host, port + 1)
        forged = []

        def forge(source, data, destination):
            # An attacker who even knows the tid, and is faster than the node.
            if data[:1] == b"\x03" and destination == (host, port):
                tid = decode_untrusted(data).tid
                lie = Response(tid, source, node_id(forger), value=b"lie").encode()
                forged.append(tid)
                sock = net.network._sockets[source]
                sock.deliver(lie, forger)

        tap(net.network, forge)
        answer = await client.node.request(FIND_PEER, to=(host, port), target=TARGET)
        assert forged
        assert answer.value is None
        assert answer.id == node_id((host, port))
        net.network.host(host).cut()
        with pytest.raises(RequestTimeout):
            await client.node.request(FIND_PEER, to=(host, port), target=TARGET, retries=0)
        assert await client.find_peer(KeyPair.generate().public_key) == []


async def test_a_token_is_worth_nothing_from_another_host(autojump_clock):
    async with sim_dht(2) as net:
        node = net.nodes[0]
        first, second = await net.add(), await net.add()
        token = (await first.node.request(FIND_PEER, to=node.address, target=TARGET)).token
        put = {"target": generic_hash(b"x"), "value": b"x", "token": token}
        refused = await second.node.request(IMMUTABLE_PUT, to=node.address, **put)
        assert refused.error == INVALID_TOKEN
        assert len(node._store.values) == 0
        taken = await first.node.request(IMMUTABLE_PUT, to=node.address, **put)
        assert taken.error == 0
        assert len(node._store.values) == 1


async def test_a_token_runs_out(autojump_clock):
    async with sim_dht(2) as net:
        node, client = net.nodes[0], await net.add()
        token = (await client.node.request(FIND_PEER, to=node.address, target=TARGET)).token
        for age, error in ((7.0, 0), (9.0, INVALID_TOKEN)):
            await trio.sleep(age)
            answer = await client.node.request(LOOKUP, to=node.address, target=TARGET, token=token)
            assert answer.error == error


# -- filling the node ------------------------------------------------------------------------------


def every_request(rng, node, listener_target):
    """One datagram of each kind, with what a stranger may choose chosen anew."""
    noise, target = rng.randbytes(150), rng.randbytes(32)
    token = rng.randbytes(32)
    peer = Peer(rng.randbytes(32))
    third = (f"9.{rng.randrange(256)}.{rng.randrange(256)}.1", rng.randrange(1, 65536))
    announce = Announce(peer, signature=rng.randbytes(64)).encode()
    put = MutablePut(rng.randbytes(32), 1, b"value", rng.randbytes(64)).encode()
    tid = rng.randrange(65536)

    def request(command, value=None, *, token=None, target=target, internal=False):
        return Request(tid, node, command, internal, None, token, target, value).encode()

    return [
        request(PING, internal=True),
        request(PING_NAT, rng.randbytes(2), internal=True),
        request(FIND_NODE, internal=True),
        request(DOWN_HINT, rng.randbytes(6), internal=True),
        request(DELAYED_PING, (50).to_bytes(4, "little"), internal=True),
        request(FIND_PEER),
        request(LOOKUP),
        request(ANNOUNCE, announce, token=token),
        request(ANNOUNCE, announce),
        request(UNANNOUNCE, announce, token=token),
        request(MUTABLE_PUT, put, token=token),
        request(MUTABLE_GET, b"\0"),
        request(IMMUTABLE_PUT, noise, token=token),
        request(IMMUTABLE_GET),
        request(PLUGIN, noise),
        request(rng.randrange(11, 2**32), noise),
        request(PEER_HANDSHAKE, Handshake(FROM_CLIENT, noise).encode()),
        request(PEER_HANDSHAKE, Handshake(FROM_CLIENT, noise).encode(), target=listener_target),
        request(PEER_HANDSHAKE, Handshake(FROM_RELAY, noise, third).encode()),
        request(PEER_HOLEPUNCH, Holepunch(FROM_CLIENT, 1, noise, third).encode()),
        request(PEER_HOLEPUNCH, Holepunch(FROM_RELAY, tid, noise, third).encode()),
        Response(tid, node, rng.randbytes(32), token, [third], 0, noise).encode(),
        b"\xff\x01\0\1" + rng.randbytes(16),
    ]


async def test_a_hundred_thousand_forged_sources_leave_nothing_behind(autojump_clock):
    rng = random.Random(1)
    async with sim_dht(3) as net:
        dht = net.nodes[1]
        listener = await dht.listen()
        await listener.wait_announced()
        # What goes out to the forged addresses is not delivered: the node is what counts here.
        net.network.transmit = lambda source, data, destination, ttl=64: None
        server = net.network._sockets[dht.sockets.local_address(SERVER)]
        blocks = received = 0
        for number in range(SOURCES):
            if number % 16 == 0:
                datagrams = every_request(rng, dht.address, listener.target)
            source = (f"7.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1 + number % 65535)
            if number < FILLING:  # what goes into caches, so that all of them fill
                datagram = datagrams[(3, 5, 17, 19)[number % 4]]
                if number % 4 == 0:  # the hint: about another port each time
                    datagram = datagram[:-2] + (number // 4 + 1).to_bytes(2, "little")
            else:
                datagram = datagrams[number % len(datagrams)]
            server.deliver(datagram, source)
            if number % 200 == 199:
                await trio.sleep(0.01)
            if number == WARM_UP:
                gc.collect()
                blocks = sys.getallocatedblocks()
                received = dht.statistics().sockets.datagrams_received
        await trio.sleep(30)
        gc.collect()
        assert dht.statistics().sockets.datagrams_received - received >= SOURCES - WARM_UP - 1
        # A table entry is several blocks: one for every fourth source would show.
        assert sys.getallocatedblocks() - blocks < (SOURCES - WARM_UP) / 4
        statistics = dht.statistics()
        assert statistics.rpc.callback_failures == 0
        assert statistics.rpc.nodes <= 3
        assert statistics.sockets.streams == 0
        assert len(dht._store.values) == 0
        assert dht._store.announcements.lookup(TARGET, 0.0) is None


# -- making it talk --------------------------------------------------------------------------------


async def test_malformed_requests_meet_with_silence(autojump_clock):
    rng = random.Random(2)
    async with sim_dht(2) as net:
        node = net.nodes[0]
        listener = await node.listen()
        await listener.wait_announced()
        stranger = ("7.7.7.7", 7777)
        answers = []

        def note(source, data, destination):
            if destination[0] == stranger[0]:
                answers.append(data)

        transmit = tap(net.network, note)
        whole = every_request(rng, node.address, listener.target)
        for datagram in whole:
            for size in range(len(datagram)):
                transmit(stranger, datagram[:size], node.address)
            await trio.sleep(0.05)
        assert answers == []
        for datagram in whole:
            transmit(stranger, datagram, node.address)
        await trio.sleep(1)
        assert len(answers) > 5


async def test_the_largest_reply_fits_into_one_frame(autojump_clock):
    async with sim_dht(30) as net:
        client = await net.add()
        await client.bootstrapped()
        sizes = []
        tap(net.network, lambda source, data, destination: sizes.append(len(data)))
        topic = TARGET
        for number in range(25):
            relays = [("1.2.3.4", 5)] * 5
            await client.announce(
                topic, KeyPair.from_seed(bytes([number]) * 32), relay_addresses=relays
            )
        await client.immutable_put(bytes(1274))
        await client.lookup(topic)
        await client.immutable_get(generic_hash(bytes(1274)))
        assert max(sizes) == 1472
