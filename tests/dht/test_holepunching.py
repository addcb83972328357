"""Hole punching between nodes behind simulated firewalls, and with peers that do not play fair."""

from __future__ import annotations

import os
import random

import pytest
import trio

from hyperlog.dht import streams
from hyperlog.dht.commands.handshake import HandshakeInitiator
from hyperlog.dht.commands.messages import Handshake, Holepunch, NoisePayload, UDXInfo
from hyperlog.dht.constants import (
    FIREWALL_UNKNOWN,
    FROM_CLIENT,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
)
from hyperlog.dht.errors import (
    ConnectError,
    DoubleRandomizedNATs,
    RemoteAborted,
    RequestTimeout,
)
from hyperlog.dht.holepunch.payload import HolepunchPayload, SecurePayload
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.sockets import CLIENT, LINGER, SERVER
from tests.dht.peers import sim_dht
from tests.dht.punching import is_ping, open_behind_nat


class Gate:
    """Firewalls in front of hosts: what comes from strangers stays outside, mappings live 60 s."""

    LIFETIME = 60.0

    def __init__(self, network, hosts):
        self.hosts = set(hosts)
        self.opened = {}
        self._transmit = network.transmit
        network.transmit = self

    def __call__(self, source, data, destination, ttl):
        now = trio.current_time()
        if source[0] in self.hosts:
            self.opened[source, destination] = now
        if destination[0] in self.hosts:
            opened_at = self.opened.get((destination, source))
            if opened_at is None or now - opened_at > self.LIFETIME:
                return
        self._transmit(source, data, destination, ttl)


async def exchange(listener, connection):
    accepted = await listener.accept()
    await connection.send(b"through")
    assert await accepted.receive() == b"through"
    await accepted.send(b"and back")
    assert await connection.receive() == b"and back"
    return accepted


@pytest.mark.parametrize("seed", range(5))
async def test_peers_behind_firewalls_punch_through(seed, autojump_clock):
    async with sim_dht(8, seed=seed, jitter=0.01) as net:
        server, client = await net.add(firewalled=True), await net.add(firewalled=True)
        Gate(net.network, [server.address[0], client.address[0]])
        listener = await server.listen(share_local_address=False)
        await listener.wait_announced()
        with trio.fail_after(20):
            connection = await client.connect(listener.public_key, local_connection=False)
            accepted = await exchange(listener, connection)
        assert connection.path == accepted.path == "punched"
        await trio.sleep(600)  # keep-alives keep the mapping open, too
        await connection.send(b"still")
        assert await accepted.receive() == b"still"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.aclose)
            nursery.start_soon(accepted.aclose)
        await trio.sleep(15)
        for node in (server, client):
            assert node.statistics().sockets.sockets == 2
            assert node.statistics().sockets.streams == 0


@pytest.mark.parametrize(
    ("client_kind", "server_kind", "client_counts", "server_counts"),
    [
        ("consistent", "random", "random_remote", "random_local"),
        ("random", "consistent", "random_local", "random_remote"),
        ("sequential", "consistent", "random_local", "random_remote"),
    ],
)
async def test_a_connection_through_a_nat_with_random_ports_lives_on_its_one_socket(
    client_kind, server_kind, client_counts, server_counts, autojump_clock
):
    async with (
        sim_dht(8, seed=3) as net,
        open_behind_nat(net, 1, mapping=server_kind) as (_, server),
        open_behind_nat(net, 2, mapping=client_kind) as (_, client),
    ):
        listener = await server.listen()
        await listener.wait_announced()
        with trio.fail_after(40):
            connection = await client.connect(listener.public_key)
            accepted = await exchange(listener, connection)
        assert connection.path == accepted.path == "punched"
        for node, strategy in ((client, client_counts), (server, server_counts)):
            counts = getattr(node.statistics().punches, strategy)
            assert (counts.attempted, counts.succeeded, counts.failed) == (1, 1, 0)
            assert node.statistics().sockets.sockets == 2 + 1
            assert node.punches.limit.running == 0
        await trio.sleep(600)
        await connection.send(b"still")
        assert await accepted.receive() == b"still"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.aclose)
            nursery.start_soon(accepted.aclose)
        await trio.sleep(15)
        for node in (server, client):
            assert node.statistics().sockets.sockets == 2


async def test_two_nats_with_random_ports_are_told_apart_from_other_failures(autojump_clock):
    async with (
        sim_dht(8) as net,
        open_behind_nat(net, 1, mapping="random") as (_, server),
        open_behind_nat(net, 2, mapping="random") as (_, client),
    ):
        listener = await server.listen()
        await listener.wait_announced()
        started = trio.current_time()
        with pytest.raises(DoubleRandomizedNATs) as caught:
            await client.connect(listener.public_key)
        assert caught.value.code == "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS"
        assert trio.current_time() - started < 2
        await trio.sleep(15)
        assert server.statistics().sockets.sockets == 2


async def test_clients_with_random_ports_come_in_one_after_the_other(autojump_clock):
    async with (
        sim_dht(8, seed=1) as net,
        open_behind_nat(net, 1) as (_, server),
        open_behind_nat(net, 2, mapping="random") as (_, first),
        open_behind_nat(net, 3, mapping="random") as (_, second),
    ):
        listener = await server.listen()
        await listener.wait_announced()
        connected = []

        async def connect(client):
            connected.append(await client.connect(listener.public_key))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, first)
            await trio.sleep(0.5)
            with pytest.raises(RemoteAborted, match="busy"):
                await second.connect(listener.public_key)
        assert server.statistics().punches.try_later == 1
        await trio.sleep(20)
        await connect(second)
        assert [connection.path for connection in connected] == ["punched", "punched"]


async def test_the_end_of_a_punched_connection_is_told_again_when_it_got_lost(autojump_clock):
    async with sim_dht(8) as net:
        server, client = await net.add(firewalled=True), await net.add(firewalled=True)
        listener = await server.listen(share_local_address=False)
        await listener.wait_announced()
        connection = await client.connect(listener.public_key, local_connection=False)
        accepted = await exchange(listener, connection)
        transmit = net.network.transmit
        server_host, core = server.address[0], accepted._stream.core
        lost = []

        def lose_the_last(source, data, destination, ttl):
            # The server's word that it has the client's end, after which it forgets the stream.
            from_server = source[0] == server_host and data[:2] == b"\xff\x01"
            if core.end_received and from_server and not lost:
                lost.append(data)
            else:
                transmit(source, data, destination, ttl)

        net.network.transmit = lose_the_last
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.aclose)
            nursery.start_soon(accepted.aclose)
        assert lost
        assert trio.current_time() - started < streams.LINGER  # or else it had to be reset
        assert connection.bytes_acknowledged == connection.bytes_written


async def test_peers_punch_through_although_every_first_ping_and_probe_is_lost(autojump_clock):
    async with sim_dht(4) as net:
        server = await net.add(firewalled=True)
        client = await net.add(firewalled=True)
        listener = await server.listen()
        await listener.wait_announced()
        ordinary = {
            node.sockets.local_address(socket)
            for node in (server, client)
            for socket in (SERVER, CLIENT)
        }
        punching_hosts = {server.address[0], client.address[0]}
        lost = set()
        transmit = net.network.transmit

        def lose_first(source, data, destination, ttl):
            if source[0] in punching_hosts and source not in ordinary:
                what = (source, destination, len(data) == 1)
                if what not in lost and (len(data) == 1 or is_ping(data)):
                    lost.add(what)
                    return
            transmit(source, data, destination, ttl)

        net.network.transmit = lose_first
        with trio.fail_after(15):
            connection = await client.connect(listener.public_key)
        assert len(lost) >= 2 * 4 + 1  # both asked every node, and the client probed at once
        assert connection.path == "punched"


async def test_a_firewall_that_lets_nothing_in_ends_the_attempt_in_bounded_time(autojump_clock):
    async with sim_dht(8) as net:
        server, client = await net.add(firewalled=True), await net.add(firewalled=True)
        listener = await server.listen(share_local_address=False)
        await listener.wait_announced()
        nodes = {node.address[0] for node in net.nodes}
        transmit = net.network.transmit

        def only_by_nodes(source, data, destination, ttl):
            if source[0] in nodes or destination[0] in nodes:
                transmit(source, data, destination, ttl)

        net.network.transmit = only_by_nodes
        started = trio.current_time()
        with pytest.raises(ConnectError):
            await client.connect(listener.public_key, local_connection=False)
        assert trio.current_time() - started < 30
        assert client.statistics().sockets.sockets == 2
        await trio.sleep(30)
        assert server.statistics().sockets.sockets == 2
        assert server.statistics().sockets.streams == 0


def random_payload(rng):
    def address():
        return (f"{rng.randrange(256)}.1.{rng.randrange(256)}.1", rng.randrange(65536))

    return HolepunchPayload(
        error=rng.choice((0, 0, 0, 1, 3, 99)),
        firewall=rng.choice((0, 1, 2, 3, 7)),
        round=rng.choice((0, 1, 5, 2**32, 2**53)),
        connected=rng.random() < 0.1,
        punching=rng.random() < 0.5,
        addresses=[address() for _ in range(rng.choice((0, 1, 3, 200)))],
        remote_address=address() if rng.random() < 0.5 else None,
        token=rng.randbytes(32) if rng.random() < 0.5 else None,
        remote_token=rng.randbytes(32) if rng.random() < 0.5 else None,
    )


@pytest.mark.parametrize("seed", range(4))
async def test_a_peer_that_sends_senseless_payloads_harms_only_itself(seed, autojump_clock):
    rng = random.Random(seed)
    async with sim_dht(5) as net:
        server, client = await net.add(firewalled=True), await net.add(firewalled=True)
        listener = await server.listen(share_local_address=False)
        await listener.wait_announced()
        relay = listener.announcer.relays[0]

        async def ask(command, value, **options):
            try:
                return await client.node.request(
                    command,
                    target=listener.target,
                    value=value,
                    to=relay.relay_address,
                    socket=SERVER,
                    retries=0,
                    **options,
                )
            except RequestTimeout:
                return None

        async def attempt():
            initiator = HandshakeInitiator(KeyPair.generate(), listener.public_key, os.urandom)
            noise = initiator.send(
                NoisePayload(firewall=FIREWALL_UNKNOWN, udx=UDXInfo(id=5), secret_stream=True)
            )
            response = await ask(PEER_HANDSHAKE, Handshake(FROM_CLIENT, noise).encode())
            reply = Handshake.decode_untrusted(response.value)
            payload = initiator.receive_untrusted(reply.noise)
            secure = SecurePayload(initiator.holepunch_secret, os.urandom)
            answers = 0
            for _ in range(8):
                sealed = secure.encrypt(random_payload(rng))
                if rng.random() < 0.1:
                    sealed = rng.randbytes(len(sealed))
                message = Holepunch(
                    FROM_CLIENT, payload.holepunch.id, sealed, peer_address=reply.peer_address
                )
                answers += await ask(PEER_HOLEPUNCH, message.encode()) is not None
            return answers

        answers = 0
        for _ in range(10):
            answers += await attempt()
        assert answers > 10
        await trio.sleep(30)
        assert server.statistics().sockets.sockets == 2
        assert server.statistics().rpc.callback_failures == 0
        connection = await client.connect(listener.public_key, local_connection=False)
        await exchange(listener, connection)


async def test_punched_connections_do_not_share_their_end(autojump_clock):
    async with sim_dht(8) as net:
        server, client = await net.add(firewalled=True), await net.add(firewalled=True)
        Gate(net.network, [server.address[0], client.address[0]])
        listener = await server.listen(share_local_address=False)
        await listener.wait_announced()
        pairs = []
        for _ in range(5):
            connection = await client.connect(listener.public_key, local_connection=False)
            pairs.append((connection, await exchange(listener, connection)))
        assert client.statistics().sockets.sockets == 2 + 5
        for connection, accepted in pairs[::2]:
            connection.abort()
            with pytest.raises(trio.BrokenResourceError):
                await accepted.receive()
        for connection, accepted in pairs[1::2]:
            await connection.send(b"alive")
            assert await accepted.receive() == b"alive"
        await trio.sleep(LINGER + 1)
        assert client.statistics().sockets.sockets == 2 + 2
