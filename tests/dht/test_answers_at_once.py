"""Requests that a node answers before they are decoded: like all others, in every respect."""

from __future__ import annotations

import random
from dataclasses import astuple

import pytest
import trio

from hyperlog.dht.commands.messages import MutablePut, sign_mutable
from hyperlog.dht.constants import FIND_PEER, IMMUTABLE_PUT, MUTABLE_PUT
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.opening import open_dht
from hyperlog.dht.rpc.messages import PING, Request, decode_untrusted, node_id
from hyperlog.dht.sockets import CLIENT, SERVER
from tests.dht.peers import sim_network

US = "8.0.0.1"
SERVER_KEY = KeyPair.from_seed(b"s" * 32)
OWNER = KeyPair.from_seed(b"o" * 32)
VALUE = b"v" * 300
MUTABLE = generic_hash(OWNER.public_key)
TARGETS = [generic_hash(SERVER_KEY.public_key), MUTABLE, generic_hash(VALUE), bytes(32)]
LENGTHS = [0, 1, 3, 9, 0xFC, 0xFD, 0xFF, 300]


def random_datagram(rng):
    """A request of dht-rpc that mostly parses: bare ones, and others that are not quite."""
    flags = rng.choice([8, 8, 24, 24, 12, 28, 4, 0, 9, 10, 72, 136, rng.randrange(256)])
    parts = [bytes((3, flags)), rng.randbytes(8)]
    parts += [rng.randbytes(32) for flag in (1, 2) if flags & flag]
    parts.append(rng.choice([bytes((rng.randrange(16),)), b"\2", b"\7", b"\xfd\2\0"]))
    if flags & 8:
        parts.append(rng.choice(TARGETS))
    if flags & 16:
        value = bytes((rng.choice([0, 7, 8, 0xFC, 0xFD, 0xFF]),)) + rng.randbytes(400)
        length = rng.choice(LENGTHS)
        parts.append(bytes((length,)) if length <= 0xFC else b"\xfd" + length.to_bytes(2, "little"))
        parts.append(value[:length])
    data = b"".join(parts)
    shorter = data[: rng.randrange(len(data))], data[: -rng.randrange(1, 9)]
    return rng.choice([data, data, data, data, *shorter, data + b"more"])


def counts(node):
    """What the node has counted so far, by command, and the malformed datagrams."""
    statistics = node.statistics()
    found = {name: astuple(count) for name, count in statistics.commands.items()}
    return found | {"malformed": (statistics.rpc.datagrams_malformed,)}


def growth(before, after):
    return {
        name: tuple(new - old for new, old in zip(after[name], before[name], strict=True))
        for name in after
    }


@pytest.mark.parametrize("ephemeral", [False, True])
async def test_what_is_answered_at_once_is_answered_and_counted_like_all_else(
    autojump_clock, ephemeral
):
    rng = random.Random(1)
    async with (
        sim_network() as network,
        open_dht(
            bootstrap=[], host=US, socket_factory=network.host(US), ephemeral=ephemeral
        ) as node,
    ):
        await node.listen(SERVER_KEY)
        asker = network.host("8.0.1.1")("", 7)
        to = node.address
        responder = node.node._core._responder
        answer_bare = responder.answer_bare

        async def ask(*datagrams):
            """The answers to datagrams that come at one time, and what each made the node count."""
            grown = []
            for answered_at_once, socket, data in datagrams:
                responder.answer_bare = answer_bare if answered_at_once else lambda *_: False
                before = counts(node)
                node.node._receive_batch([(data, asker.local_address, socket)])
                grown.append(growth(before, counts(node)))
            await trio.sleep(0.2)
            return [data for data, _ in asker.receive_batch()], grown

        async def store(command, target, value):
            request = Request(1, to, FIND_PEER, target=target).encode()
            [data], _ = await ask((True, SERVER, request))
            token = decode_untrusted(data).token
            request = Request(2, to, command, target=target, token=token, value=value).encode()
            [data], _ = await ask((True, SERVER, request))
            assert decode_untrusted(data).error == 0

        if not ephemeral:
            signature = sign_mutable(7, b"mine", OWNER.secret_key)
            put = MutablePut(OWNER.public_key, 7, b"mine", signature)
            await store(MUTABLE_PUT, MUTABLE, put.encode())
            await store(IMMUTABLE_PUT, generic_hash(VALUE), VALUE)

        answered = full = 0
        for _ in range(800):
            for _ in range(3):  # these never answer, and are forgotten again
                address = (f"8.0.2.{rng.randrange(99)}", 7)
                ping = Request(1, to, PING, internal=True, id=node_id(address))
                node.node._receive_batch([(ping.encode(), address, SERVER)])
            data, socket = random_datagram(rng), rng.choice([SERVER, CLIENT])
            replies, (at_once, by_event) = await ask((True, socket, data), (False, socket, data))
            assert at_once == by_event, data
            assert len(replies) in (0, 2), data
            assert len(set(replies)) < 2, data
            answered += len(replies) // 2
            full += any(len(decode_untrusted(reply).closer_nodes) == 20 for reply in replies)
        counted = node.statistics()
        assert counted.rpc.datagrams_malformed > 200
        assert answered > 250
        assert full > 100
        if not ephemeral:
            assert counted.commands["FIND_PEER"].answered > 160
            assert counted.commands["MUTABLE_GET"].answered > 30
