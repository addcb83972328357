"""What strangers may send to a node: it harms neither the node nor the connections of others.

Garbage by the hundred thousand is test_bad_datagrams.py; here all that is sent means something.
"""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.dht import KeyPair, PeerConnectionFailed, PeerNotFound
from hyperlog.dht.commands.handshake import HandshakeInitiator
from hyperlog.dht.commands.messages import Handshake, NoisePayload, RelayThrough, UDXInfo
from hyperlog.dht.constants import FROM_CLIENT, FROM_RELAY, PEER_HANDSHAKE
from hyperlog.dht.handshakes import MAX_HANDSHAKES
from hyperlog.dht.listener import MAX_PUNCHES, MAX_RELAYING, OPEN_TIMEOUT
from hyperlog.dht.rpc.messages import Request, decode_untrusted
from hyperlog.dht.sockets import CLIENT, SERVER
from tests.dht.peers import sim_dht

SERVER_KEYS = KeyPair.generate()
MAX_CPU = 0.005  # s for one first message on a busy machine; measured: 0.0005


class Tap:
    """Notes every datagram that leaves one simulated machine."""

    def __init__(self, network, host):
        self.sent = []
        self._transmit = network.transmit
        self._host = host
        network.transmit = self._note

    def _note(self, source, data, destination, ttl):
        if source[0] == self._host:
            self.sent.append((data, destination))
        self._transmit(source, data, destination, ttl)

    def requests(self, command):
        """The dht-rpc requests of this command among what was sent."""
        decoded = [decode_untrusted(data) for data, _ in self.sent if data[0] == 0x03]
        return [
            request
            for request in decoded
            if (request.command, request.internal) == (command, False)
        ]


class Stranger:
    """A simulated machine that sends what it likes."""

    def __init__(self, network, host="5.5.5.5"):
        self._socket = network.host(host)("", 0)
        self._tid = 0

    def send(self, data, address):
        self._socket.send(data, address)

    def shake(self, node, listener, noise, **fields):
        """Send a first message to the listener's node."""
        self._tid += 1
        fields = {"mode": FROM_CLIENT} | fields
        value = Handshake(noise=noise, **fields).encode()
        self.send(
            Request(
                self._tid, node.address, PEER_HANDSHAKE, target=listener.target, value=value
            ).encode(),
            node.address,
        )

    def received(self):
        return [data for data, _ in self._socket.receive_batch()]


def first_message(stream_id=7):
    """A genuine first message to the server, of a peer with a key of its own."""
    initiator = HandshakeInitiator(KeyPair.generate(), SERVER_KEYS.public_key, os.urandom)
    return initiator.send(NoisePayload(udx=UDXInfo(id=stream_id), secret_stream=True))


@pytest.fixture(scope="module")
def first_messages():
    """Enough of them to fill every table; the tests share them, because they cost a second."""
    return [first_message(stream_id) for stream_id in range(3 * MAX_HANDSHAKES)]


async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except trio.BrokenResourceError:
        pass  # the victim of a flood


def first_message_naming_a_relay():
    relay = RelayThrough(KeyPair.generate().public_key, bytes(32))
    initiator = HandshakeInitiator(KeyPair.generate(), SERVER_KEYS.public_key, os.urandom)
    payload = NoisePayload(udx=UDXInfo(id=7), secret_stream=True, relay_through=relay)
    return initiator.send(payload)


@asynccontextmanager
async def serving(listener):
    async def serve():
        while True:
            nursery.start_soon(echo, await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield
        nursery.cancel_scope.cancel()


async def add_echo_server(net, *, firewalled=False, firewall=None):
    """A node with a listener that is announced and echoes: (node, listener)."""
    node = await net.add(firewalled=firewalled)
    listener = await node.listen(SERVER_KEYS, firewall=firewall)
    assert await listener.wait_announced() == 3
    await net.stack.enter_async_context(serving(listener))
    return node, listener


async def check_echo(connection):
    await connection.send(b"there?")
    assert await connection.receive() == b"there?"


# -- wrong keys, dead servers, firewalls -----------------------------------------------------------


async def test_a_key_that_nobody_has_is_not_found_within_seconds(autojump_clock):
    async with sim_dht(5) as net:
        client = await net.add()
        begin = trio.current_time()
        with pytest.raises(PeerNotFound, match="is the peer running, and on the same network"):
            await client.connect(KeyPair.generate().public_key)
        assert trio.current_time() - begin < 5
        assert client.statistics().sockets.streams == 0


@pytest.mark.parametrize("firewalled", [False, True], ids=["open", "firewalled"])
async def test_an_announced_server_that_died_fails_within_seconds(autojump_clock, firewalled):
    async with sim_dht(5) as net:
        client = await net.add()
        node, listener = await add_echo_server(net, firewalled=firewalled)
        unplug(net.network, node)
        begin = trio.current_time()
        with pytest.raises(PeerConnectionFailed, match="it has gone"):
            await client.connect(listener.public_key)
        assert trio.current_time() - begin < 20


def unplug(network, node):
    """Cut a node off from everybody without a word."""
    for socket in (SERVER, CLIENT):
        network._sockets[node.sockets.local_address(socket)].close()


def refuse(key, payload, address):
    return True


def fail(key, payload, address):
    raise RuntimeError("a bug in the application")


@pytest.mark.parametrize("through", ["directly", "through nodes"])
@pytest.mark.parametrize("firewall", [refuse, fail])
async def test_a_refused_client_gets_no_byte_of_the_server(
    autojump_clock, firewall, through, caplog
):
    firewalled = through != "directly"
    async with sim_dht(5) as net:
        node, listener = await add_echo_server(net, firewall=firewall, firewalled=firewalled)
        client = await net.add()
        server_tap = Tap(net.network, node.address[0])
        client_tap = Tap(net.network, client.address[0])
        known = [node.address] if through == "directly" else []
        begin = trio.current_time()
        with pytest.raises(PeerConnectionFailed, match="its firewall refuses our key"):
            await client.connect(listener.public_key, relay_addresses=known)
        assert trio.current_time() - begin < 30
        asked = client_tap.requests(PEER_HANDSHAKE)
        assert any(request.to == node.address for request in asked) == bool(known)
        assert listener.statistics().refused == 1
        assert not [to for _, to in server_tap.sent if to[0] == client.address[0]]
        assert server_tap.requests(PEER_HANDSHAKE) == []
        assert node.statistics().sockets.streams == 0
    assert ("the firewall callback failed" in caplog.text) == (firewall is fail)


# -- handshakes that lead nowhere ------------------------------------------------------------------


@pytest.mark.parametrize("through", ["directly", "through a node"])
async def test_a_peer_that_never_says_hello_is_forgotten(autojump_clock, through):
    async with sim_dht(5) as net:
        node, listener = await add_echo_server(net)
        stranger = Stranger(net.network)
        fields = {}
        if through != "directly":
            fields = {"mode": FROM_RELAY, "peer_address": ("7.7.7.7", 7)}
        stranger.shake(node, listener, first_message(), **fields)
        await trio.sleep(1)
        assert node.statistics().sockets.streams == 1
        await trio.sleep(OPEN_TIMEOUT + 1)
        assert node.statistics().sockets.streams == 0
        assert listener.statistics().failed == (1 if through == "directly" else 0)
        assert listener.statistics().accepted == 0


async def test_a_stream_id_that_no_packet_can_carry_harms_nobody(autojump_clock):
    async with sim_dht(5) as net:
        node, listener = await add_echo_server(net)
        connection = await (await net.add()).connect(listener.public_key)
        stranger = Stranger(net.network)
        for stream_id in (1 << 32, 1 << 63):
            stranger.shake(node, listener, first_message(stream_id))
        await trio.sleep(5)
        assert listener.statistics().failed == 2
        assert stranger.received() == []
        await check_echo(connection)


async def test_first_messages_of_garbage_get_no_answer_and_leave_nothing(autojump_clock):
    async with sim_dht(5) as net:
        node, listener = await add_echo_server(net)
        stranger = Stranger(net.network)
        size = len(first_message())
        garbage = [os.urandom(size) for _ in range(300)]
        # Impossible points for an ephemeral key, and a genuine message with one bit turned over.
        garbage += [bytes(size), b"\xff" * size, b"\1" + bytes(size - 1)]
        genuine = first_message()
        garbage += [mutated_at(genuine, position) for position in range(0, size, 7)]
        begin = time.process_time()
        for noise in garbage:
            stranger.shake(node, listener, noise)
        await trio.sleep(1)
        cpu = (time.process_time() - begin) / len(garbage)
        print(f"\n{cpu * 1e6:.0f} us each")
        assert cpu < MAX_CPU
        assert stranger.received() == []
        assert listener.statistics().failed == len(garbage)
        assert node.statistics().sockets.streams == 0
        client = await net.add()
        await check_echo(await client.connect(listener.public_key))


def mutated_at(data, position):
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


@pytest.mark.parametrize("firewalled", [False, True], ids=["open", "firewalled"])
@pytest.mark.parametrize("through", ["directly", "through a node"])
async def test_a_flood_of_first_messages_does_not_keep_others_out(
    autojump_clock, first_messages, through, firewalled
):
    async with sim_dht(5) as net:
        node, listener = await add_echo_server(net, firewalled=firewalled)
        client = await net.add()
        honest = await client.connect(listener.public_key)
        stranger = Stranger(net.network)
        begin = time.process_time()
        most_streams = most_sockets = 0
        for number, noise in enumerate(first_messages):
            fields = {}
            if through != "directly":
                fields = {"mode": FROM_RELAY, "peer_address": (f"7.7.{number % 250}.1", 7)}
            stranger.shake(node, listener, noise, **fields)
            if number % 100 == 0:
                await trio.sleep(0.03)
                sockets = node.statistics().sockets
                most_streams = max(most_streams, sockets.streams)
                most_sockets = max(most_sockets, sockets.sockets)
        cpu = (time.process_time() - begin) / len(first_messages)
        print(f"\n{cpu * 1e6:.0f} us each, {most_streams} streams, {most_sockets}")
        assert cpu < MAX_CPU
        assert most_streams <= MAX_HANDSHAKES + 2
        assert most_sockets <= MAX_PUNCHES + 4
        other = await net.add()
        with trio.fail_after(5):
            await check_echo(await other.connect(listener.public_key))
        await check_echo(honest)
        await trio.sleep(30)
        assert node.statistics().sockets.streams == 2
        assert node.statistics().sockets.sockets <= 4


async def test_a_flood_of_names_of_relays_leaves_us_requests_of_our_own(autojump_clock):
    async with sim_dht(12) as net:
        node, listener = await add_echo_server(net)
        client = await net.add()
        stranger = Stranger(net.network)
        for _ in range(3 * MAX_RELAYING):
            noise = first_message_naming_a_relay()
            stranger.shake(node, listener, noise, mode=FROM_RELAY, peer_address=("7.7.7.7", 7))
        await trio.sleep(0.05)
        assert listener.statistics().handshakes == 3 * MAX_RELAYING
        assert MAX_RELAYING < node.statistics().rpc.requests_active < 11 * MAX_RELAYING
        assert await node.node.ping(net.nodes[0].address)
        await check_echo(await client.connect(listener.public_key))
        await trio.sleep(30)
        assert node.statistics().sockets.streams == 1  # the client's
