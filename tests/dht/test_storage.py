"""Values in the DHT: put, got back, and never taken from a node that makes them up."""

from __future__ import annotations

import pytest

from hyperlog.dht import (
    KeyPair,
    LocalProtocolError,
    SeqReused,
    SeqTooLow,
    TooFewNodes,
    open_dht,
)
from hyperlog.dht.commands.messages import MutableGet, sign_mutable
from hyperlog.dht.constants import (
    IMMUTABLE_GET,
    IMMUTABLE_PUT,
    MUTABLE_GET,
    MUTABLE_PUT,
    SEQ_TOO_LOW,
)
from hyperlog.dht.keys import generic_hash
from tests.dht.peers import sim_dht, sim_network

SIZE = 5
OWNER = KeyPair.from_seed(bytes([1]) * 32)


def lie(node, answers):
    """Let a node answer some commands as `answers` (command -> fields of the reply) say."""
    honest = node.node.on_request

    def on_request(request):
        if request.command not in answers:
            return honest(request)
        request.reply(**answers[request.command])
        return True

    node.node.answer_at_once({})
    node.node.on_request = on_request


async def test_a_mutable_value_is_read_by_everybody_and_follows_its_owner(autojump_clock):
    async with sim_dht(SIZE) as net:
        writer, reader = await net.add(), await net.add()
        assert await reader.mutable_get(OWNER.public_key) is None
        for seq in (0, 1, 7):
            stored = await writer.mutable_put(OWNER, b"value %d" % seq, seq)
            assert set(stored.addresses) == {node.address for node in net.nodes}
            assert (stored.public_key, stored.seq) == (OWNER.public_key, seq)
            for node in (*net.nodes, reader):
                found = await node.mutable_get(OWNER.public_key)
                assert (found.value, found.seq) == (b"value %d" % seq, seq)
                assert found.signature == stored.signature
                assert found.address in stored.addresses
        assert (await reader.mutable_get(OWNER.public_key, seq=7)).seq == 7
        assert await reader.mutable_get(OWNER.public_key, seq=8) is None


async def test_an_immutable_value_is_read_by_its_hash(autojump_clock):
    async with sim_dht(SIZE) as net:
        writer, reader = await net.add(), await net.add()
        for value in (b"value", bytes(1274)):
            stored = await writer.immutable_put(value)
            assert stored.target == generic_hash(value)
            assert set(stored.addresses) == {node.address for node in net.nodes}
            found = await reader.immutable_get(stored.target)
            assert found.value == value
            assert found.address in stored.addresses
        assert await reader.immutable_get(bytes(32)) is None


async def test_a_spent_number_is_refused(autojump_clock):
    async with sim_dht(SIZE) as net:
        writer, reader = await net.add(), await net.add()
        await writer.mutable_put(OWNER, b"value", 5)
        with pytest.raises(SeqTooLow):
            await writer.mutable_put(OWNER, b"value", 4)
        with pytest.raises(SeqReused):
            await writer.mutable_put(OWNER, b"other", 5)
        await writer.mutable_put(OWNER, b"value", 5)  # which renews it
        assert (await reader.mutable_get(OWNER.public_key)).value == b"value"


async def test_numbers_spent_between_the_look_and_the_put_are_refused_by_the_nodes(autojump_clock):
    async with sim_dht(SIZE) as net:
        writer = await net.add()
        await writer.mutable_put(OWNER, b"value", 5)
        for node in net.nodes:
            lie(node, {MUTABLE_GET: {"value": None}})
        with pytest.raises(SeqTooLow) as caught:
            await writer.mutable_put(OWNER, b"value", 4)
        assert isinstance(caught.value.__cause__, TooFewNodes)
        with pytest.raises(SeqReused):
            await writer.mutable_put(OWNER, b"other", 5)


async def test_a_lying_node_does_not_win(autojump_clock):
    async with sim_dht(SIZE) as net:
        writer, reader = await net.add(), await net.add()
        await writer.mutable_put(OWNER, b"old", 1)
        old = MutableGet(1, b"old", sign_mutable(1, b"old", OWNER.secret_key)).encode()
        forged = MutableGet(9, b"lie", sign_mutable(1, b"lie", OWNER.secret_key)).encode()
        answers = [{"value": forged}, {"value": old}, {"value": b"\xff\xff"}, {"value": None}]
        for node, answer in zip(net.nodes, answers, strict=False):
            lie(node, {MUTABLE_GET: answer, MUTABLE_PUT: {"value": None, "error": SEQ_TOO_LOW}})
        stored = await writer.mutable_put(OWNER, b"new", 2)
        assert stored.addresses == (net.nodes[4].address,)
        found = await reader.mutable_get(OWNER.public_key)
        assert (found.value, found.address) == (b"new", net.nodes[4].address)
        for node in net.nodes[:4]:
            lie(node, {IMMUTABLE_GET: {"value": b"lie"}})
        found = await reader.immutable_get((await writer.immutable_put(b"value")).target)
        assert (found.value, found.address) == (b"value", net.nodes[4].address)


async def test_the_first_answer_does_when_it_need_not_be_the_latest(autojump_clock):
    async with sim_dht(SIZE) as net:
        writer, reader = await net.add(), await net.add()
        await writer.mutable_put(OWNER, b"old", 1)
        for node in net.nodes[1:]:  # these keep the old value
            lie(node, {MUTABLE_PUT: {"value": None}})
        await writer.mutable_put(OWNER, b"new", 2)
        assert (await reader.mutable_get(OWNER.public_key)).value == b"new"
        assert (await reader.mutable_get(OWNER.public_key, latest=False)).value in (b"old", b"new")
        found = await reader.mutable_get(OWNER.public_key, seq=2, latest=False)
        assert found.value == b"new"


async def test_anybody_may_refresh_a_value(autojump_clock):
    async with sim_dht(SIZE) as net:
        writer, reader = await net.add(), await net.add()
        for node in net.nodes[1:]:
            lie(node, {MUTABLE_PUT: {"value": None}})
        await writer.mutable_put(OWNER, b"value", 3)
        asked = []

        def refresh(answer):
            return lambda found: asked.append(found.seq) or answer

        holders = [node for node in net.nodes if len(node._store.values)]
        assert holders == net.nodes[:1]
        for node in net.nodes[1:]:
            node.node.on_request = node._on_request
        assert (await reader.mutable_get(OWNER.public_key, refresh=refresh(False))).seq == 3
        assert sum(len(node._store.values) for node in net.nodes) == 1
        assert (await reader.mutable_get(OWNER.public_key, refresh=refresh(True))).seq == 3
        assert sum(len(node._store.values) for node in net.nodes) == SIZE
        assert await reader.mutable_get(bytes(32), refresh=refresh(True)) is None
        assert asked == [3, 3]


async def test_what_no_node_would_take_is_not_sent(autojump_clock):
    async with sim_dht(1) as net:
        node = net.nodes[0]
        for value, seq in ((b"", 0), (bytes(1207), 0), (b"value", -1), (b"value", 2**53)):
            with pytest.raises(LocalProtocolError):
                await node.mutable_put(OWNER, value, seq)
        with pytest.raises(LocalProtocolError):
            await node.immutable_put(bytes(1275))


async def test_without_a_network_nothing_is_stored(autojump_clock):
    async with (
        sim_network() as network,
        open_dht(
            bootstrap=[("9.9.9.9", 9)], host="1.1.1.1", socket_factory=network.host("1.1.1.1")
        ) as node,
    ):
        with pytest.raises(TooFewNodes):
            await node.mutable_put(OWNER, b"value")
        with pytest.raises(TooFewNodes):
            await node.immutable_put(b"value")
        assert await node.mutable_get(OWNER.public_key) is None
        assert await node.immutable_get(bytes(32)) is None


async def test_a_token_that_ran_out_is_replaced(autojump_clock):
    async with sim_dht(SIZE) as net:
        writer = await net.add()
        late = []

        def rotate_after(node):
            honest = node.node.on_request

            def on_request(request):
                handled = honest(request)
                if request.command == IMMUTABLE_GET:  # its token is gone when the put comes
                    late.append(node)
                    for _ in range(2):
                        tickets = node.node._core._responder._tickets
                        tickets._rotate(tickets._rotate_at)
                return handled

            node.node.answer_at_once({})
            node.node.on_request = on_request

        for node in net.nodes:
            rotate_after(node)
        stored = await writer.immutable_put(b"value")
        assert len(stored.addresses) == len(late) == SIZE
        refused = [node.statistics().commands["IMMUTABLE_PUT"].refused for node in net.nodes]
        assert refused == [1] * SIZE


async def test_nodes_that_take_nothing_are_not_counted(autojump_clock):
    async with sim_dht(2) as net:
        writer = await net.add()
        lie(net.nodes[0], {IMMUTABLE_PUT: {"value": None, "error": 1}})
        stored = await writer.immutable_put(b"value")
        assert stored.addresses == (net.nodes[1].address,)
