"""Finding peers by key and topic; who may be believed, and what is taken back."""

from __future__ import annotations

import random

import pytest

from hyperlog.dht import KeyPair, Peer, TooFewNodes
from hyperlog.dht.commands.messages import LookupReply
from hyperlog.dht.constants import ANNOUNCE, FIND_PEER, LOOKUP, UNANNOUNCE
from tests.dht.peers import sim_dht
from tests.dht.test_storage import lie

TOPIC = bytes(range(32))


def holders(nodes, topic):
    return [node for node in nodes if node._store.announcements.lookup(topic, 0.0)]


async def test_records_of_another_key_are_not_believed(autojump_clock):
    async with sim_dht(4) as net:
        server, client = await net.add(), await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        other = Peer(KeyPair.generate().public_key).encode()
        lie(net.nodes[0], {FIND_PEER: {"value": other}})
        lie(net.nodes[1], {FIND_PEER: {"value": b"\xff"}})
        found = await client.find_peer(listener.public_key)
        assert {peer.public_key for peer in found} == {listener.public_key}


async def test_one_node_does_not_flood_a_lookup(autojump_clock):
    async with sim_dht(3) as net:
        client = await net.add()
        await net.nodes[1].announce(TOPIC)
        crowd = [Peer(number.to_bytes(32, "big")) for number in range(200)]
        lie(net.nodes[0], {LOOKUP: {"value": LookupReply(crowd).encode()}})
        found = {peer.public_key for peer in await client.lookup(TOPIC)}
        assert net.nodes[1].key_pair.public_key in found
        assert len(found) == 21


async def test_an_announcement_is_taken_back_from_nodes_that_are_not_closest_any_more(
    autojump_clock,
):
    async with sim_dht(30) as net:
        pair = KeyPair.generate()
        first = net.nodes[0]  # which everybody asks who knows nobody else
        topic = bytes(255 - byte for byte in first.node.id)  # nobody is farther off
        record = Peer(pair.public_key).encode()

        def put_on_first():  # as if the network had grown since
            first._store.announcements._records.add(topic, pair.public_key, record, 0.0)

        await (await net.add()).announce(topic, pair)
        assert len(holders(net.nodes, topic)) == 20
        put_on_first()
        assert len(holders(net.nodes, topic)) == 21
        await (await net.add()).announce(topic, pair)
        assert first in holders(net.nodes, topic)
        await (await net.add()).announce(topic, pair, clear=True)
        assert len(holders(net.nodes, topic)) == 20
        assert first not in holders(net.nodes, topic)
        put_on_first()
        assert await (await net.add()).unannounce(topic, pair) == 21
        assert holders(net.nodes, topic) == []


async def test_taking_back_what_nobody_has_is_fine(autojump_clock):
    async with sim_dht(3) as net:
        peer = await net.add()
        assert await peer.unannounce(TOPIC) == 0


async def test_a_node_forgets_its_own_record_of_a_peer_that_it_unannounces(autojump_clock):
    async with sim_dht(3) as net:
        node = net.nodes[0]
        await net.nodes[1].announce(TOPIC, node.key_pair)
        assert node in holders(net.nodes, TOPIC)
        await node.unannounce(TOPIC)
        assert node not in holders(net.nodes, TOPIC)
        assert net.nodes[1] not in holders([net.nodes[2]], TOPIC)


async def test_an_unannouncement_that_everybody_ignores_is_an_error(autojump_clock):
    async with sim_dht(2) as net:
        peer = await net.add()
        await peer.announce(TOPIC)
        for node in net.nodes:
            lie(node, {UNANNOUNCE: {"value": None, "error": 1}})
        with pytest.raises(TooFewNodes):
            await peer.unannounce(TOPIC)


async def test_the_largest_bump_is_shown(autojump_clock):
    async with sim_dht(2) as net:
        node = net.nodes[1]
        bumps = random.Random(1).sample(range(1, 1000), 5)
        for bump in bumps:
            await net.nodes[0].announce(TOPIC, KeyPair.generate(), bump=bump)
        reply = LookupReply.decode_untrusted(node._store.announcements.lookup(TOPIC, 0.0))
        assert reply.bump == max(bumps)
        assert len(reply.peers) == 5


async def test_an_announcement_that_everybody_refuses_is_an_error(autojump_clock):
    async with sim_dht(2) as net:
        for node in net.nodes:
            lie(node, {ANNOUNCE: {"value": None, "error": 1}})
        with pytest.raises(TooFewNodes):
            await (await net.add()).announce(TOPIC)
