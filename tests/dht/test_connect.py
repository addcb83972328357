"""Connecting: from a key to a connection, or to an error that says what to do next."""

from __future__ import annotations

import os

import pytest
import trio

from hyperlog.dht.commands.handshake import HandshakeResponder
from hyperlog.dht.commands.messages import (
    Handshake,
    HolepunchInfo,
    HolepunchRelay,
    NoisePayload,
    Peer,
    UDXInfo,
)
from hyperlog.dht.constants import FIREWALL_OPEN, FIREWALL_UNKNOWN, FROM_CLIENT, REPLY
from hyperlog.dht.errors import (
    ConnectError,
    DHTError,
    HandshakeFailed,
    LocalProtocolError,
    NodeDestroyed,
    PeerConnectionFailed,
    PeerNotFound,
    ServerError,
    ServerIncompatible,
)
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.opening import open_dht
from hyperlog.dht.sockets import LINGER, SERVER
from tests.dht.peers import new_stream, sim_dht


class FakeServer:
    """Answers handshakes for a key by hand, from a node that the network announces."""

    def __init__(self, dht, *, error=0, version=1, udx=True, payload=None, noise=None):
        self.dht = dht
        self.key_pair = KeyPair.generate()
        self.error, self.version, self.udx = error, version, udx
        self.payload = payload or {}
        self.noise = noise
        self.asked = 0
        self.on_handshake = lambda responder, payload, request: None
        self.stream_id = 77
        self._inner = dht.node.on_request
        dht.node.on_request = self._on_request
        target = generic_hash(self.key_pair.public_key)
        dht._router.add_local(target, Peer(self.key_pair.public_key).encode())

    def _on_request(self, request):
        if request.command != 0:
            return self._inner(request)
        self.asked += 1
        message = Handshake.decode_untrusted(request.value)
        if message.mode != FROM_CLIENT:
            return True
        if self.noise is not None:
            request.reply(Handshake(REPLY, self.noise).encode(), token=False)
            return True
        responder = HandshakeResponder(self.key_pair, os.urandom)
        payload = responder.receive_untrusted(message.noise)
        fields = {"udx": UDXInfo(id=self.stream_id), "secret_stream": True} | self.payload
        if not self.udx:
            fields["udx"] = None
        fields = {"firewall": FIREWALL_OPEN} | fields
        raw = NoisePayload(error=self.error, **fields).encode()
        noise = responder._state.write_message(bytes((self.version,)) + raw[1:])
        self.on_handshake(responder, payload, request)
        request.reply(Handshake(REPLY, noise).encode(), token=False)
        return True


async def timed(expected, call, *args, within, **options):
    started = trio.current_time()
    with pytest.raises(expected) as caught:
        await call(*args, **options)
    assert trio.current_time() - started <= within
    assert isinstance(caught.value, DHTError)
    return caught.value


# -- it works --------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_firewalled", [None, True, False])
@pytest.mark.parametrize("server_firewalled", [None, True, False])
async def test_every_pair_of_firewall_settings_connects(
    server_firewalled, client_firewalled, autojump_clock
):
    async with sim_dht(6) as net:
        server = await net.add(firewalled=server_firewalled)
        client = await net.add(firewalled=client_firewalled)
        listener = await server.listen()
        await listener.wait_announced()
        with trio.fail_after(20):
            connection = await client.connect(listener.public_key)
            accepted = await listener.accept()
            await connection.send(b"there")
            assert await accepted.receive() == b"there"
            await accepted.send(b"and back")
            assert await connection.receive() == b"and back"
        assert connection.remote_public_key == listener.public_key
        assert accepted.remote_public_key == client.key_pair.public_key
        assert connection.handshake_hash == accepted.handshake_hash
        assert (connection.is_initiator, accepted.is_initiator) == (True, False)


@pytest.mark.parametrize("seed", range(5))
async def test_connecting_gets_through_a_network_that_loses_a_fifth(seed, autojump_clock):
    async with sim_dht(6, seed=seed) as net:
        server, client = await net.add(), await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        net.network.loss, net.network.duplicate, net.network.jitter = 0.2, 0.1, 0.05
        connection = await client.connect(listener.public_key)
        accepted = await listener.accept()
        await connection.send(b"through")
        assert await accepted.receive() == b"through"


async def test_a_cached_relay_shortens_the_second_connection(autojump_clock):
    async with sim_dht(8, delay=0.05) as net:
        server, client = await net.add(), await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        took = []
        for _ in range(2):
            started = trio.current_time()
            connection = await client.connect(listener.public_key)
            took.append(trio.current_time() - started)
            (await listener.accept()).abort()
            connection.abort()
        assert took[1] <= took[0]


@pytest.mark.parametrize("unreachable", [False, True], ids=["no-bootstrap", "dead-bootstrap"])
async def test_a_server_that_nobody_knows_is_reached_by_its_address(unreachable, autojump_clock):
    async with sim_dht(1) as net:
        server = await net.add(bootstrap=[("9.9.9.9", 9)] if unreachable else [])
        listener = await server.listen()
        client = await net.add(bootstrap=[server.address])
        with trio.fail_after(15):
            connection = await client.connect(listener.public_key)
            await connection.send(b"alone")
            assert await (await listener.accept()).receive() == b"alone"


# -- errors ----------------------------------------------------------------------------------------


async def test_a_key_that_nobody_announces_is_not_found(autojump_clock):
    async with sim_dht(6) as net:
        client = await net.add()
        key = KeyPair.generate().public_key
        error = await timed(PeerNotFound, client.connect, key, within=5)
        assert error.code == "PEER_NOT_FOUND"
        assert "is the peer running" in str(error)
        assert client.statistics().sockets.streams == 0


async def test_a_node_without_a_network_finds_nobody_in_bounded_time(autojump_clock):
    async with sim_dht(1) as net:
        client = await net.add(bootstrap=[("9.9.9.9", 9)])
        key = KeyPair.generate().public_key
        await timed(PeerNotFound, client.connect, key, within=30)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32) + b"\x01"])
async def test_what_is_no_whole_key_is_refused(key, autojump_clock):
    async with sim_dht(1) as net:
        with pytest.raises(LocalProtocolError, match="public key"):
            await net.nodes[0].connect(key)


async def test_a_relay_that_is_no_key_is_refused_and_leaves_nothing_behind(autojump_clock):
    async with sim_dht(1) as net:
        with pytest.raises(LocalProtocolError):
            await net.nodes[0].connect(KeyPair.generate().public_key, relay_through=b"short")
        assert net.nodes[0].statistics().sockets.streams == 0


async def test_a_key_that_is_no_point_of_the_curve_ends_in_a_connect_error(autojump_clock):
    async with sim_dht(3) as net:
        client = await net.add()
        await timed(ConnectError, client.connect, bytes(32), within=30)
        assert client.statistics().sockets.streams == 0


async def test_a_dead_server_behind_live_relays_fails_in_bounded_time(autojump_clock):
    async with sim_dht(6) as net:
        server, client = await net.add(), await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        for socket in list(server.sockets._sockets.values()):
            net.network._sockets.pop(socket.local_address)
        error = await timed(PeerConnectionFailed, client.connect, listener.public_key, within=20)
        assert "no handshake came back" in str(error)
        assert client.statistics().sockets.streams == 0


async def test_a_server_that_dies_after_the_handshake_fails_in_bounded_time(autojump_clock):
    async with sim_dht(4) as net:
        fake = FakeServer(net.nodes[2])
        client = await net.add()
        error = await timed(
            PeerConnectionFailed, client.connect, fake.key_pair.public_key, within=20
        )
        assert "sends nothing" in str(error)
        assert client.statistics().sockets.streams == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"error": 1}, ServerError),
        ({"version": 2}, ServerIncompatible),
        ({"udx": False}, ServerError),
        ({"payload": {"udx": UDXInfo(id=1 << 32)}}, HandshakeFailed),
        ({"noise": b""}, PeerConnectionFailed),
        ({"noise": b"x" * 200}, PeerConnectionFailed),
    ],
    ids=["refuses", "other-version", "no-stream", "no-such-stream", "no-noise", "forged"],
)
async def test_an_answer_that_is_none_says_so(options, expected, autojump_clock):
    async with sim_dht(4) as net:
        fake = FakeServer(net.nodes[2], **options)
        client = await net.add()
        await timed(expected, client.connect, fake.key_pair.public_key, within=20)
        assert client.statistics().sockets.streams == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"error": 1}, ServerError),
        ({"version": 2}, ServerIncompatible),
        ({"payload": {"udx": UDXInfo(id=1 << 32)}}, HandshakeFailed),
    ],
)
async def test_a_refusal_ends_the_attempt_whoever_was_asked_beside(
    options, expected, autojump_clock
):
    async with sim_dht(4) as net:
        fake = FakeServer(net.nodes[2], **options)
        client = await net.add()
        dead = [("9.9.9.9", 9)]
        key = fake.key_pair.public_key
        await timed(expected, client.connect, key, within=1, relay_addresses=dead)


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
async def test_a_server_that_resets_at_the_start_fails_the_connect(early, autojump_clock):
    async with sim_dht(4) as net:
        fake = FakeServer(net.nodes[2])
        client = await net.add()

        def reset(responder, payload, request):
            stream = new_stream(fake.dht.sockets)
            fake.stream_id = stream.core.local_id
            stream.connect(SERVER, payload.udx.id, request.address)
            if early:
                stream.destroy()
            else:
                stream.write_soon(b"\x01\0\0")
                stream.end_soon()

        fake.on_handshake = reset
        await timed(PeerConnectionFailed, client.connect, fake.key_pair.public_key, within=20)
        assert client.statistics().sockets.streams == 0


async def test_a_node_that_forges_answers_does_not_keep_the_genuine_one_out(autojump_clock):
    async with sim_dht(6) as net:
        server, client = await net.add(), await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        liar = next(
            node for node in net.nodes if node.address == listener.announcer.relays[0].relay_address
        )
        inner = liar.node.on_request
        lies = []

        def lie(request):
            if request.command != 0:
                return inner(request)
            lies.append(request.address)
            request.reply(Handshake(REPLY, os.urandom(180)).encode(), token=False)
            return True

        liar.node.on_request = lie
        connection = await client.connect(listener.public_key, relay_addresses=[liar.address])
        assert lies
        await connection.send(b"genuine")
        assert await (await listener.accept()).receive() == b"genuine"


async def test_a_peer_that_names_thousands_of_relays_is_remembered_by_three(autojump_clock):
    async with sim_dht(3) as net:
        client = net.nodes[1]
        client.remember_relays(bytes(32), [("9.9.9.9", port) for port in range(1, 5000)])
        assert len(client._relay_cache[bytes(32)]) == 3


async def test_a_failed_way_through_the_nats_ends_in_a_connect_error(autojump_clock):
    relays = [HolepunchRelay(("9.9.9.9", 9), ("8.8.8.8", 8))]
    payload = {"holepunch": HolepunchInfo(1, relays), "addresses4": [("8.8.8.8", 8)]}
    async with sim_dht(6) as net:
        fake = FakeServer(net.nodes[2], payload=payload)
        client = await net.add(firewalled=True)
        inner = fake.dht.node.on_request

        def pretend_relay(request):
            reply = request.reply

            def changed(value, **options):
                message = Handshake.decode_untrusted(value)
                message.peer_address = (client.address[0], 8)
                reply(message.encode(), **options)

            if request.command != 0:
                return inner(request)
            request = type(
                "Relayed",
                (),
                {
                    name: getattr(request, name)
                    for name in (
                        "command",
                        "target",
                        "value",
                        "address",
                        "socket",
                        "to",
                        "token",
                        "id",
                    )
                },
            )()
            request.reply = changed
            return inner(request)

        fake.dht.node.on_request = pretend_relay
        fake.payload["firewall"] = FIREWALL_UNKNOWN
        error = await timed(ConnectError, client.connect, fake.key_pair.public_key, within=40)
        assert error.code
        assert client.statistics().sockets.sockets == 2
        assert client.statistics().sockets.streams == 0


async def test_a_node_that_is_closed_while_a_peer_is_silent_says_so(autojump_clock):
    async with sim_dht(4) as net:
        fake = FakeServer(net.nodes[2])
        host = net.network.host("9.1.1.1")

        async def connect(dht):
            with pytest.raises(NodeDestroyed):
                await dht.connect(fake.key_pair.public_key)

        async with (
            trio.open_nursery() as nursery,  # which outlives the node
            open_dht(host="9.1.1.1", socket_factory=host, bootstrap=net.bootstrap) as dht,
        ):
            nursery.start_soon(connect, dht)
            await trio.sleep(2)
            assert fake.asked


async def test_a_cancelled_connect_leaves_nothing_behind(autojump_clock):
    async with sim_dht(6, delay=0.03) as net:
        server, client = await net.add(firewalled=True), await net.add(firewalled=True)
        listener = await server.listen()
        await listener.wait_announced()
        for hundredths in range(0, 60, 3):
            with trio.move_on_after(hundredths / 100):
                connection = await client.connect(listener.public_key, local_connection=False)
                connection.abort()
        await trio.sleep(0.1)
        assert client.statistics().sockets.streams == 0
        await trio.sleep(LINGER)
        assert client.statistics().sockets.sockets == 2
        await trio.sleep(30)
        assert server.statistics().sockets.sockets == 2
