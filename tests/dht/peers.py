"""Streams, connections and nodes in pairs, on loopback sockets and on a simulated network."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from hyperlog.dht.commands.handshake import HandshakeInitiator, HandshakeResponder
from hyperlog.dht.commands.messages import NoisePayload
from hyperlog.dht.compact import Address
from hyperlog.dht.connection import Connection
from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.noise.secretstream import SecretStreamCore
from hyperlog.dht.opening import open_dht
from hyperlog.dht.simulation import SimNetwork
from hyperlog.dht.sockets import SERVER, Sockets
from hyperlog.dht.streams import UDXStream
from hyperlog.dht.testing import testnet
from hyperlog.dht.udp import SocketFactory, UDPSocket
from hyperlog.dht.udx.stream import UDXStreamCore

LONG = bool(os.environ.get("HYPERLOG_LONG"))
_stream_ids = itertools.count(1)


def seeded_bytes(seed: int):
    """A source of random bytes that repeats."""
    return random.Random(seed).randbytes


@asynccontextmanager
async def open_sockets(
    count: int = 2, factories: Sequence[SocketFactory] | None = None
) -> AsyncIterator[list[Sockets]]:
    """`count` running Sockets, each of another node."""
    opened = [
        Sockets.open("127.0.0.1", 0, factories[number] if factories else UDPSocket)
        for number in range(count)
    ]
    async with trio.open_nursery() as nursery:
        for sockets in opened:
            await nursery.start(sockets.run)
        yield opened
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def sim_network(**options) -> AsyncIterator[SimNetwork]:
    """A running SimNetwork; keyword arguments as in its constructor."""
    network = SimNetwork(**options)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        yield network
        nursery.cancel_scope.cancel()


def host_name(number: int) -> str:
    """IPv4 address of simulated machine `number`; it looks public."""
    return f"8.{number // 250}.{number % 250 + 1}.1"


def new_stream(sockets: Sockets, **options) -> UDXStream:
    """A stream that is not connected; `options` as of UDXStreamCore."""
    return UDXStream(sockets, UDXStreamCore(next(_stream_ids), **options))


def stream_pair(
    left: Sockets,
    right: Sockets,
    *,
    to_left: Address | None = None,
    to_right: Address | None = None,
    **options,
) -> tuple[UDXStream, UDXStream]:
    """Two connected streams; the addresses to send to default to the server sockets'."""
    a, b = new_stream(left, **options), new_stream(right, **options)
    a.connect(SERVER, b.core.local_id, to_right or right.local_address(SERVER))
    b.connect(SERVER, a.core.local_id, to_left or left.local_address(SERVER))
    return a, b


def handshake_results():
    """The results of a genuine handshake, initiator's first."""
    server, client = KeyPair.generate(), KeyPair.generate()
    initiator = HandshakeInitiator(client, server.public_key, os.urandom)
    responder = HandshakeResponder(server, os.urandom)
    responder.receive_untrusted(initiator.send(NoisePayload()))
    initiator.receive_untrusted(responder.send(NoisePayload()))
    return initiator.result(), responder.result(), client.public_key, server.public_key


def connection_pair(a: UDXStream, b: UDXStream, **options) -> tuple[Connection, Connection]:
    """Encrypted connections over two streams; `options` go to both SecretStreamCores."""
    ours, theirs, client_key, server_key = handshake_results()

    def connection(stream, result, mine, remote, is_initiator):
        return Connection(
            stream,
            SecretStreamCore(result, random_bytes=os.urandom, **options),
            public_key=mine,
            remote_public_key=remote,
            handshake_hash=result.handshake_hash,
            is_initiator=is_initiator,
            path="direct",
        )

    return (
        connection(a, ours, client_key, server_key, True),
        connection(b, theirs, server_key, client_key, False),
    )


@asynccontextmanager
async def loopback_connections(**options) -> AsyncIterator[tuple[Connection, Connection]]:
    """Two ends of one connection over real sockets."""
    async with open_sockets() as (left, right):
        yield connection_pair(*stream_pair(left, right), **options)


@asynccontextmanager
async def sim_connections(
    network_options=None, **options
) -> AsyncIterator[tuple[SimNetwork, Connection, Connection]]:
    """A simulated network and two ends of one connection over it."""
    async with sim_network(**(network_options or {})) as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            yield network, *connection_pair(*stream_pair(left, right), **options)


@dataclass
class SimDHT:
    """A DHT on a simulated network; `add` runs more nodes on machines of their own."""

    network: SimNetwork
    nodes: list[DHT]
    bootstrap: list[Address]
    stack: AsyncExitStack
    machines: int

    async def add(self, **options) -> DHT:
        host = host_name(self.machines)
        self.machines += 1
        options = {"bootstrap": self.bootstrap} | options
        return await self.stack.enter_async_context(
            open_dht(host=host, socket_factory=self.network.host(host), **options)
        )


@asynccontextmanager
async def sim_dht(size: int = 4, **network_options) -> AsyncIterator[SimDHT]:
    """A network of `size` persistent nodes on a simulated network."""
    async with sim_network(**network_options) as network:
        hosts = [host_name(number) for number in range(size)]
        factories = [network.host(host) for host in hosts]
        async with (
            testnet(size, socket_factories=factories, hosts=hosts) as net,
            AsyncExitStack() as stack,
        ):
            yield SimDHT(network, net.nodes, net.bootstrap, stack, size)
