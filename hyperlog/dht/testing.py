"""Service: networks to test against, for this package's tests and for its users'.

`testnet` is a private DHT of real sockets on one machine; `SimNetwork` replaces the sockets by a
simulated network with delay, loss, duplicates and reordering, which together with
`trio.testing.MockClock` plays hours in seconds and repeats exactly.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.hyperdht import DHT, open_dht
from hyperlog.dht.udp import DEFAULT_TTL, Datagram, SocketFactory, UDPSocket

__all__ = ["SimNetwork", "SimNetworkStatistics", "Testnet", "testnet"]

MAX_INBOX: Final = 4096  # datagrams that wait in a simulated socket, as a kernel buffer bounds them
FIRST_PORT: Final = 49152


class Testnet:
    """A running private network."""

    __test__ = False  # pytest: not a test class

    def __init__(self, nodes: list[DHT]) -> None:
        self.nodes = nodes
        self.bootstrap: list[Address] = [nodes[0].address] if nodes else []
        """Addresses to give to other nodes as `bootstrap`."""


@asynccontextmanager
async def testnet(
    size: int = 10,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    socket_factories: Sequence[SocketFactory] | None = None,
    hosts: Sequence[str] | None = None,
) -> AsyncIterator[Testnet]:
    """Run `size` persistent nodes on one machine, the first of them at `port`.

    With SimNetwork, give one host and one socket factory a node. Yields when all have joined; they
    end with the context. Compat: hyperdht testnet.js, but here the first node stores records too.
    """
    async with AsyncExitStack() as stack:
        nodes: list[DHT] = []
        for number in range(size):
            node = await stack.enter_async_context(
                open_dht(
                    bootstrap=[nodes[0].address] if nodes else [],
                    host=hosts[number] if hosts else host,
                    port=port if number == 0 else 0,
                    exact_port=True,
                    ephemeral=False,
                    firewalled=False,
                    socket_factory=socket_factories[number] if socket_factories else UDPSocket,
                )
            )
            await node.bootstrapped()
            nodes.append(node)
        yield Testnet(nodes)


testnet.__test__ = False  # type: ignore[attr-defined]


@dataclass(slots=True)
class SimNetworkStatistics:
    sent: int = 0
    lost: int = 0
    duplicated: int = 0
    unreachable: int = 0
    """no socket at the address, or its inbox full"""
    delivered: int = 0


class SimNetwork:
    """Datagrams between simulated sockets; `run` it in a nursery, then make sockets by `host`.

    `delay` and `jitter` in seconds one way, `loss` and `duplicate` as fractions. Jitter reorders.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        delay: float = 0.01,
        jitter: float = 0.0,
        loss: float = 0.0,
        duplicate: float = 0.0,
    ) -> None:
        self.delay = delay
        self.jitter = jitter
        self.loss = loss
        self.duplicate = duplicate
        self.statistics = SimNetworkStatistics()
        self._rng = random.Random(seed)
        self._sockets: dict[Address, SimSocket] = {}
        self._queue: list[tuple[float, int, Address, bytes, Address]] = []
        self._count = itertools.count()
        self._lot = trio.lowlevel.ParkingLot()
        self._scope: trio.CancelScope | None = None

    def host(self, address: str) -> SocketFactory:
        """A socket factory for the machine that has this IPv4 address."""

        def bind(_host: str, port: int) -> SimSocket:
            return self._bind(address, port)

        return bind

    def _bind(self, host: str, port: int) -> SimSocket:
        if port == 0:
            port = next(p for p in itertools.count(FIRST_PORT) if (host, p) not in self._sockets)
        if (host, port) in self._sockets:
            raise OSError(f"{host}:{port} is in use")
        sock = SimSocket(self, (host, port))
        self._sockets[host, port] = sock
        return sock

    def close(self, sock: SimSocket) -> None:
        self._sockets.pop(sock.local_address, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver datagrams when their time has come, until cancelled."""
        task_status.started()
        while True:
            deadline = self._queue[0][0] if self._queue else float("inf")
            with trio.CancelScope(deadline=deadline) as self._scope:
                await self._lot.park()
            self._scope = None
            now = trio.current_time()
            while self._queue and self._queue[0][0] <= now:
                _, _, source, data, destination = heapq.heappop(self._queue)
                receiver = self._sockets.get(destination)
                if receiver is None or not receiver.deliver(data, source):
                    self.statistics.unreachable += 1
                else:
                    self.statistics.delivered += 1

    def transmit(self, source: Address, data: bytes, destination: Address) -> None:
        """Put one datagram on its way."""
        self.statistics.sent += 1
        if self._rng.random() < self.loss:
            self.statistics.lost += 1
            return
        copies = 1
        if self._rng.random() < self.duplicate:
            self.statistics.duplicated += 1
            copies = 2
        for _ in range(copies):
            at = trio.current_time() + self.delay + self._rng.random() * self.jitter
            heapq.heappush(self._queue, (at, next(self._count), source, data, destination))
        if self._scope is not None and self._queue[0][0] < self._scope.deadline:
            self._scope.deadline = self._queue[0][0]


class SimSocket:
    """A DatagramSocket of a SimNetwork."""

    def __init__(self, network: SimNetwork, address: Address) -> None:
        self.local_address = address
        self._network = network
        self._inbox: deque[Datagram] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False

    def deliver(self, data: bytes, source: Address) -> bool:
        if len(self._inbox) >= MAX_INBOX:
            return False
        self._inbox.append((data, source))
        self._lot.unpark_all()
        return True

    async def wait_readable(self) -> None:
        if self._inbox:
            await trio.lowlevel.checkpoint()
            return
        if self._closed:
            raise trio.ClosedResourceError
        await self._lot.park()
        if self._closed:
            raise trio.ClosedResourceError

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def receive_batch(self) -> list[Datagram]:
        batch = list(self._inbox)
        self._inbox.clear()
        return batch

    def send(self, data: bytes, address: Address, ttl: int = DEFAULT_TTL) -> bool:
        if not self._closed:
            self._network.transmit(self.local_address, bytes(data), address)
        return True

    def send_batch(self, datagrams: Sequence[bytes], address: Address) -> int:
        for data in datagrams:
            self.send(data, address)
        return len(datagrams)

    def close(self) -> None:
        self._closed = True
        self._network.close(self)
        self._lot.unpark_all()
