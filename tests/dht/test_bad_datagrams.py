"""100,000 datagrams that nobody should send, at a node that has a live connection meanwhile."""

from __future__ import annotations

import gc
import json
import logging
import random
import struct
from pathlib import Path

import pytest
import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.rpc.messages import PING, Request, node_id
from hyperlog.dht.sockets import CLIENT, SERVER
from tests.dht.peers import LONG, sim_dht

VECTORS = Path(__file__).parent.parent / "vectors" / "dht"
COUNT = 100_000
SEEDS = range(1, 11) if LONG else [1]
BATCH = 250
FIRST_BYTES = (b"\xff\x01", b"\x03", b"\x13", b"\0", b"\xff", b"")


def captured_datagrams() -> list[bytes]:
    """Every datagram that JavaScript nodes sent in the captures."""
    found = set()
    for path in sorted(VECTORS.glob("capture-*.json")):
        for row in json.loads(path.read_text())["rows"]:
            if row["kind"] == "datagram":
                found.add(bytes.fromhex(row["hex"]))
    assert len(found) > 300
    return sorted(found)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Cut, prolonged, or with some bits turned over."""
    raw = bytearray(data)
    kind = rng.randrange(4)
    if kind == 0:
        del raw[rng.randrange(len(raw) + 1) :]
    elif kind == 1:
        raw += rng.randbytes(rng.randrange(1, 60))
    else:
        for _ in range(1 if kind == 2 else rng.randrange(2, 30)):
            if raw:
                position = rng.randrange(len(raw))
                raw[position] ^= 1 << rng.randrange(8)
    return bytes(raw)


def noise(rng: random.Random) -> bytes:
    start = rng.choice(FIRST_BYTES)
    size = rng.choice((0, 1, 2, 9, 10, 19, 20, 21, 40, rng.randrange(1500)))
    return start + rng.randbytes(size)


def redirected(data: bytes, target: bytes, stream_ids: list[int], rng: random.Random) -> bytes:
    """The datagram with our target or one of our streams' ids, so that it gets further in."""
    if data[:2] == b"\xff\x01" and len(data) >= 20 and stream_ids:
        return data[:4] + struct.pack("<I", rng.choice(stream_ids)) + data[8:]
    if data[:1] in (b"\x03", b"\x13") and len(data) > 80:
        at = rng.randrange(10, len(data) - 32)
        return data[:at] + target + data[at + 32 :]
    return data


def stranger(rng: random.Random) -> Address:
    return (f"{rng.randrange(1, 224)}.{rng.randrange(256)}.1.1", rng.randrange(65536))


class Wiretap:
    """Keeps what was sent, but for the packets of the connection that shall live on."""

    def __init__(self, network, protected: set[int]):
        self.seen: list[bytes] = []
        self.protected = protected
        self._transmit = network.transmit
        network.transmit = self

    def __call__(self, source, data, destination, ttl=64):
        if len(self.seen) < 5000 and not self._is_protected(data):
            self.seen.append(data)
        self._transmit(source, data, destination, ttl)

    def _is_protected(self, data):
        if data[:2] != b"\xff\x01" or len(data) < 8:
            return False
        return struct.unpack_from("<I", data, 4)[0] in self.protected


async def talk(connection, accepted, number):
    message = b"%d" % number * 50
    await connection.send(message)
    assert await accepted.receive() == message
    await accepted.send(message)
    assert await connection.receive() == message


def table_sizes(node: DHT) -> dict[str, int]:
    statistics = node.statistics()
    return {
        "nodes": statistics.rpc.nodes,
        "streams": statistics.sockets.streams,
        "sockets": statistics.sockets.sockets,
        "timers": len(node.sockets._timers),
        "requests": statistics.rpc.requests_active,
        "backlog": len(node.sockets._backlog),
    }


@pytest.mark.parametrize("firewalled", [False, True], ids=["open", "firewalled"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_bad_datagrams_disturb_nobody(seed, firewalled, autojump_clock, caplog):
    rng = random.Random(seed)
    caplog.set_level(logging.WARNING, "hyperlog")
    async with sim_dht(4) as net:
        server = await net.add(firewalled=firewalled, ephemeral=firewalled)
        client = await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        wiretap = Wiretap(net.network, set())
        # One connection lives on; another one's packets are known to the attacker.
        connection = await client.connect(listener.public_key)
        accepted = await listener.accept()
        wiretap.protected |= {*server.sockets._streams, *client.sockets._streams}
        wiretap.seen.clear()
        victim = await client.connect(listener.public_key)
        victim_accepted = await listener.accept()
        await talk(victim, victim_accepted, 0)
        stream_ids = [i for i in server.sockets._streams if i not in wiretap.protected]
        await server.lookup(bytes(32))
        await client.announce(bytes(32))
        genuine = wiretap.seen + captured_datagrams()
        assert any(data[:2] == b"\xff\x01" for data in wiretap.seen)

        targets = [server.sockets.local_address(SERVER), server.sockets.local_address(CLIENT)]
        sources = [net.nodes[0].address, client.address] + [stranger(rng) for _ in range(200)]
        objects = 0
        for start in range(0, COUNT, BATCH):
            for _ in range(BATCH):
                data = noise(rng) if rng.random() < 0.2 else mutated(rng, rng.choice(genuine))
                if rng.random() < 0.3:
                    data = redirected(data, listener.target, stream_ids, rng)
                if wiretap._is_protected(data):
                    continue
                net.network.transmit(rng.choice(sources), data, rng.choice(targets))
            await trio.sleep(0.05)
            if start % (COUNT // 20) == 0:
                with trio.fail_after(2):
                    await talk(connection, accepted, start)
            if start == COUNT // 2:
                gc.collect()
                objects = len(gc.get_objects())
        gc.collect()
        growth = len(gc.get_objects()) - objects
        sizes = table_sizes(server)
        print(f"\nseed {seed}: {sizes}, {growth} objects more after the second half")
        assert server.statistics().rpc.callback_failures == 0
        assert [record.message for record in caplog.records] == []
        assert sizes["nodes"] < 1000
        assert sizes["streams"] < 50
        assert sizes["sockets"] < 20
        assert sizes["timers"] < 1500
        assert growth < 50_000
        response = await client.node.ping(server.address)
        assert firewalled or response.id == node_id(server.address)
        await talk(connection, accepted, 1)
        # The victim may be lost, since a reset can be forged by whoever knows the stream; a third
        # connection must not be.
        third = await client.connect(listener.public_key)
        await talk(third, await listener.accept(), 2)
        await trio.sleep(60)
        assert len(server.sockets._streams) <= 3
        assert server.statistics().sockets.sockets <= 4


async def test_pings_are_answered_in_the_middle_of_a_flood(autojump_clock):
    rng = random.Random(2)
    async with sim_dht(2) as net:
        node, asker = net.nodes
        for _ in range(50):
            for _ in range(200):
                net.network.transmit(stranger(rng), noise(rng), node.address)
            with trio.fail_after(1):
                response = await asker.node.ping(node.address)
            assert response.to == asker.address


async def test_spoofed_requests_do_not_fill_the_tables(autojump_clock):
    """Requests with valid node ids from thousands of addresses that never answer."""
    rng = random.Random(3)
    async with sim_dht(4) as net:
        node = net.nodes[1]
        for _ in range(100):
            for _ in range(50):
                source = (stranger(rng)[0], rng.randrange(1, 65536))
                request = Request(
                    tid=rng.randrange(65536),
                    to=node.address,
                    command=PING,
                    internal=True,
                    id=node_id(source),
                )
                net.network.transmit(source, request.encode(), node.address)
            await trio.sleep(0.1)
        sizes = table_sizes(node)
        assert sizes["requests"] < 500
        assert sizes["nodes"] < 400
        await trio.sleep(600)
        # What does not answer goes again, and those who do are still there.
        known = set(node.node.known_nodes(1000))
        assert {other.address for other in net.nodes if other is not node} <= known
        found = await net.nodes[2].find_peer(bytes(32))
        assert found == []
