"""A relay and its users on a simulated network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.relaying import RelayedPath, connect_through_relay
from hyperlog.dht.relayserver import RelayLimits, RelayServer, RelayStatistics
from hyperlog.dht.streams import UDXStream
from tests.dht.peers import SimDHT, sim_dht


@dataclass
class Relayed:
    """A network with one relay; `ends` are two nodes that nobody reaches without being asked."""

    net: SimDHT
    server: RelayServer
    dht: DHT
    """the relay's node"""
    ends: tuple[DHT, DHT]
    nursery: trio.Nursery
    """of the relay: cancelling it ends the relay"""

    def ask(self, end: int, token: bytes, *, stream_id: int = 7, **options):
        """One half of a pair; the first end is the initiator."""
        return connect_through_relay(
            self.ends[end],
            self.server.public_key,
            token=token,
            is_initiator=end == 0,
            stream_id=stream_id,
            **options,
        )

    async def pair(self, token: bytes) -> list[tuple[RelayedPath, UDXStream]]:
        """Two streams that reach each other through the relay, with their paths."""
        made: dict[int, tuple[RelayedPath, UDXStream]] = {}

        async def half(end: int) -> None:
            stream = self.ends[end].create_stream()
            path = await self.ask(end, token, stream_id=stream.core.local_id)
            stream.connect(path.socket, path.remote_id, path.address)
            stream.write_soon(b"hello")
            made[end] = (path, stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(half, 0)
            nursery.start_soon(half, 1)
        for _, stream in made.values():
            assert await stream.receive_some() == b"hello"
        return [made[0], made[1]]


@asynccontextmanager
async def relayed_network(**limits) -> AsyncIterator[Relayed]:
    """`limits` as of RelayLimits."""
    async with sim_dht() as net:
        dht = await net.add(firewalled=False)
        ends = (await net.add(firewalled=True), await net.add(firewalled=True))
        server = RelayServer(dht, limits=RelayLimits(**limits))
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            assert await server.wait_announced() > 0
            yield Relayed(net, server, dht, ends, nursery)
            nursery.cancel_scope.cancel()


async def settled(statistics: Callable[[], RelayStatistics], **expected: int) -> None:
    """Return when the statistics are so."""

    def differ() -> bool:
        now = statistics()
        return any(getattr(now, name) != value for name, value in expected.items())

    with trio.fail_after(30):
        while differ():  # noqa: ASYNC110 - statistics tell nobody
            await trio.sleep(0.1)
