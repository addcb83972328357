"""Service: a network without a kernel, of which whole hours pass in seconds and repeat exactly.

`SimNetwork` carries datagrams between simulated sockets, with delay, loss, duplicates and
reordering. Its machines have addresses that look public; machines behind a `SimNat` (simnat.py)
have addresses of their own. Time is `trio.testing.MockClock`'s or, cheaper for large networks,
`SimClock`'s.

Theory of operation. An address space is a segment: the public network is one, the inside of each
NAT is another. A datagram climbs through the NATs that its sender is behind at the moment it is
sent, which makes or renews their mappings; then it is queued; when its time has come it passes the
NATs that its receiver is behind, as their tables are then.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.udp import DEFAULT_TTL, Datagram

__all__ = [
    "SimClock",
    "SimHost",
    "SimLink",
    "SimNetwork",
    "SimNetworkStatistics",
    "SimSegment",
    "SimSocket",
]

MAX_INBOX: Final = 4096  # datagrams that wait in a simulated socket, as a kernel buffer bounds them
FIRST_PORT: Final = 49152
LAST_PORT: Final = 65535
HOPS: Final = 8  # routers between two edges of the public network: a probe with TTL 5 dies there


@dataclass(slots=True)
class SimNetworkStatistics:
    """Counts of datagrams."""

    sent: int = 0
    lost: int = 0
    duplicated: int = 0
    unreachable: int = 0
    """no socket at the address, or its inbox full"""
    blocked: int = 0
    """refused by a NAT"""
    expired: int = 0
    """too low a TTL to get there"""
    cut: int = 0
    """from or to a machine that was cut off"""
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class SimLink:
    """What one machine's access adds to the network's own delay, jitter and loss, each way."""

    delay: float = 0.0
    """s"""
    jitter: float = 0.0
    """s"""
    loss: float = 0.0
    """fraction"""


class Gateway(Protocol):
    """What owns an outside address and is no machine: a NAT."""

    def admit(self, source: Address, data: bytes, port: int, ttl: int) -> None:
        """Take a datagram that came to a port of the outside address."""


class SimSegment:
    """One address space: the public network (SimNetwork) or the inside of a NAT (SimNat)."""

    def __init__(self, network: SimNetwork) -> None:
        self.network = network
        self._sockets: dict[Address, SimSocket] = {}
        self._hosts: dict[str, SimHost] = {}
        self._gateways: dict[str, Gateway] = {}
        self._cut: set[str] = set()

    def host(self, address: str) -> SimHost:
        """The machine that has this IPv4 address here; it is a socket factory."""
        host = self._hosts.get(address)
        if host is None:
            if address in self._gateways:
                raise ValueError(f"{address} is the outside of a NAT")
            host = self._hosts[address] = SimHost(self, address)
        return host

    def cut(self, address: str) -> None:
        """Lose all datagrams from and to this machine or NAT, those on their way included."""
        self._cut.add(address)

    def heal(self, address: str) -> None:
        """Undo `cut`."""
        self._cut.discard(address)

    def attach_gateway(self, address: str, gateway: Gateway) -> None:
        """A NAT takes an outside address in this segment.

        Raises:
            ValueError: the address is somebody's.
        """
        if address in self._hosts or address in self._gateways:
            raise ValueError(f"{address} is in use")
        self._gateways[address] = gateway

    def detach_gateway(self, address: str) -> None:
        self._gateways.pop(address, None)

    def transmit(
        self, source: Address, data: bytes, destination: Address, ttl: int = DEFAULT_TTL
    ) -> None:
        """Put one datagram on its way; `source` may be forged."""
        raise NotImplementedError

    def arrive(self, source: Address, data: bytes, destination: Address, ttl: int) -> None:
        """A datagram has reached this segment, `ttl` hops before its end."""
        statistics = self.network.statistics
        if self._cut and destination[0] in self._cut:
            statistics.cut += 1
            return
        receiver = self._sockets.get(destination)
        if receiver is not None:
            if receiver.deliver(data, source):
                statistics.delivered += 1
            else:
                statistics.unreachable += 1
        elif destination[0] in self._gateways:
            self._gateways[destination[0]].admit(source, data, destination[1], ttl - 1)
        else:
            statistics.unreachable += 1

    def forget_host(self, address: str) -> None:
        """Nobody has the address any more; its machine is not to be used again."""
        self._hosts.pop(address, None)
        self._cut.discard(address)

    def sockets_of(self, address: str) -> list[SimSocket]:
        """The open sockets of a machine."""
        return [sock for sock in self._sockets.values() if sock.local_address[0] == address]

    def add_socket(self, sock: SimSocket) -> None:
        self._sockets[sock.local_address] = sock

    def close(self, sock: SimSocket) -> None:
        self._sockets.pop(sock.local_address, None)


class SimHost:
    """A machine; called with a host (which is ignored) and a port, it binds a socket."""

    def __init__(self, segment: SimSegment, address: str) -> None:
        self.segment = segment
        self.address = address
        self._ports = itertools.cycle(range(FIRST_PORT, LAST_PORT + 1))

    def __call__(self, _host: str, port: int) -> SimSocket:
        """Bind to the port, 0 for any.

        Raises:
            OSError: the port is taken.
        """
        sockets = self.segment._sockets
        if port == 0:
            port = next(p for p in self._ports if (self.address, p) not in sockets)
        if (self.address, port) in sockets:
            raise OSError(f"{self.address}:{port} is in use")
        sock = SimSocket(self.segment, (self.address, port))
        self.segment.add_socket(sock)
        return sock

    def move(self, address: str, segment: SimSegment | None = None) -> None:
        """Go to another address, perhaps behind another NAT; open sockets go along.

        Raises:
            ValueError: the address is somebody's.
        """
        target = segment or self.segment
        if address in target._hosts or address in target._gateways:
            raise ValueError(f"{address} is in use")
        mine = self.segment.sockets_of(self.address)
        del self.segment._hosts[self.address]
        for sock in mine:
            self.segment.close(sock)
            sock.move(target, (address, sock.local_address[1]))
            target.add_socket(sock)
        self.segment, self.address = target, address
        target._hosts[address] = self

    def cut(self) -> None:
        """Lose all datagrams from and to this machine."""
        self.segment.cut(self.address)

    def heal(self) -> None:
        """Undo `cut`."""
        self.segment.heal(self.address)


class SimNetwork(SimSegment):
    """Datagrams between simulated sockets; `run` it in a nursery, then make sockets by `host`.

    `delay` and `jitter` in seconds one way, `loss` and `duplicate` as fractions. Jitter reorders.
    `hops` are the routers between any two public addresses.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        delay: float = 0.01,
        jitter: float = 0.0,
        loss: float = 0.0,
        duplicate: float = 0.0,
        hops: int = HOPS,
    ) -> None:
        super().__init__(self)
        self.delay = delay
        self.jitter = jitter
        self.loss = loss
        self.duplicate = duplicate
        self.hops = hops
        self.statistics = SimNetworkStatistics()
        self._rng = random.Random(seed)
        self._links: dict[str, SimLink] = {}
        self._queue: list[tuple[float, int, SimSegment, Address, bytes, Address, int]] = []
        self._count = itertools.count()
        self._lot = trio.lowlevel.ParkingLot()
        self._scope: trio.CancelScope | None = None

    def fork_rng(self) -> random.Random:
        """A source of randomness of its own, that repeats with the network's seed."""
        return random.Random(self._rng.getrandbits(64))

    def set_link(self, address: str, link: SimLink | None) -> None:
        """Give a machine's or NAT's access to the public network a quality of its own."""
        if link is None:
            self._links.pop(address, None)
        else:
            self._links[address] = link

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver datagrams when their time has come, until cancelled."""
        task_status.started()
        while True:
            deadline = self._queue[0][0] if self._queue else math.inf
            with trio.CancelScope(deadline=deadline) as self._scope:
                await self._lot.park()
            self._scope = None
            now = trio.current_time()
            while self._queue and self._queue[0][0] <= now:
                _, _, segment, source, data, destination, ttl = heapq.heappop(self._queue)
                segment.arrive(source, data, destination, ttl)

    def transmit(
        self, source: Address, data: bytes, destination: Address, ttl: int = DEFAULT_TTL
    ) -> None:
        if self._cut and source[0] in self._cut:
            self.statistics.sent += 1
            self.statistics.cut += 1
        elif ttl <= self.hops:
            self.statistics.sent += 1
            self.statistics.expired += 1
        elif self._links and (source[0] in self._links or destination[0] in self._links):
            near = self._links.get(source[0], _NO_LINK)
            far = self._links.get(destination[0], _NO_LINK)
            self.carry(
                self,
                source,
                data,
                destination,
                ttl - self.hops,
                delay=self.delay + near.delay + far.delay,
                jitter=self.jitter + near.jitter + far.jitter,
                loss=1 - (1 - self.loss) * (1 - near.loss) * (1 - far.loss),
            )
        else:
            self.carry(
                self,
                source,
                data,
                destination,
                ttl - self.hops,
                delay=self.delay,
                jitter=self.jitter,
                loss=self.loss,
            )

    def carry(
        self,
        segment: SimSegment,
        source: Address,
        data: bytes,
        destination: Address,
        ttl: int,
        *,
        delay: float,
        jitter: float,
        loss: float,
    ) -> None:
        """Let a datagram arrive in `segment` after a while, or never."""
        self.statistics.sent += 1
        rng = self._rng.random
        if loss and rng() < loss:
            self.statistics.lost += 1
            return
        copies = 1
        if self.duplicate and rng() < self.duplicate:
            self.statistics.duplicated += 1
            copies = 2
        now = trio.current_time()
        for _ in range(copies):
            at = now + delay + rng() * jitter if jitter else now + delay
            heapq.heappush(
                self._queue, (at, next(self._count), segment, source, data, destination, ttl)
            )
        if self._scope is not None and self._queue[0][0] < self._scope.deadline:
            self._scope.deadline = self._queue[0][0]


_NO_LINK: Final = SimLink()


class SimSocket:
    """A DatagramSocket of a SimNetwork."""

    def __init__(self, segment: SimSegment, address: Address) -> None:
        self.local_address = address
        self._segment = segment
        self._inbox: deque[Datagram] = deque()
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False

    def move(self, segment: SimSegment, address: Address) -> None:
        """The machine is somewhere else; see SimHost.move."""
        self._segment = segment
        self.local_address = address

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
            self._segment.transmit(self.local_address, bytes(data), address, ttl)
        return True

    def send_batch(self, datagrams: Sequence[bytes], address: Address) -> int:
        for data in datagrams:
            self.send(data, address)
        return len(datagrams)

    def close(self) -> None:
        self._closed = True
        self._segment.close(self)
        self._lot.unpark_all()


class SimClock(trio.abc.Clock):
    """A clock that jumps to the next deadline as soon as every task waits, for `trio.run`.

    What MockClock does with `autojump_threshold=0`, at a fraction of the cost, but only for
    programs in which nothing comes from outside: it waits for no thread and no real socket.

    Args:
        grain: s; jumps end at multiples of it, so that what is due within one grain is done at
            once. 0 for exact times.
    """

    def __init__(self, grain: float = 0.0) -> None:
        self._grain = grain
        self._now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        # trio asks when no task can run, and sleeps for what it is told.
        if deadline == math.inf:
            return math.inf
        if deadline > self._now:
            self._now = math.ceil(deadline / self._grain) * self._grain if self._grain else deadline
            if self._now < deadline:  # rounding
                self._now = deadline
        return 0.0
