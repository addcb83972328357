"""Two stream cores joined by a simulated link with its own clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from hyperlog.dht.udx import ClosedStreams, EndReceived, Event, StreamClosed, UDXStreamCore

ADDRESSES = {"a": ("127.0.0.1", 1000), "b": ("127.0.0.1", 2000)}


class Endpoint:
    """One core and the program that uses it: writes from a source, keeps what it reads."""

    def __init__(self, name: str, core: UDXStreamCore) -> None:
        self.name = name
        self.core = core
        self.to_write: list[bytes] = []
        self.end_after_writes = False
        self.reads = True
        self.received = bytearray()
        self.events: list[Event] = []
        self.closed_streams = ClosedStreams()
        self.datagrams_sent = 0

    def work(self, now: float) -> None:
        core = self.core
        limit = core.write_high_watermark
        while self.to_write and core.write_buffer_bytes < limit and not core.closed:
            core.write(self.to_write.pop(), now)
        if self.end_after_writes and not self.to_write and not core.closed:
            self.end_after_writes = False
            core.write_end(now)
        if self.reads:
            for chunk in core.read():
                self.received += chunk
        while (event := core.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, StreamClosed):
                self.closed_streams.remember(core, now)

    @property
    def close_event(self) -> StreamClosed | None:
        closed = [event for event in self.events if isinstance(event, StreamClosed)]
        assert len(closed) <= 1
        return closed[0] if closed else None

    @property
    def saw_end(self) -> bool:
        return any(isinstance(event, EndReceived) for event in self.events)


class Link:
    """Carries datagrams between two cores with delay, loss, duplicates and reordering.

    `drop` decides before chance does: called with sender's name, datagram and time.
    `bandwidth` in bytes per second and `queue` in seconds model the bottleneck.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        delay: float = 0.001,
        loss: float = 0.0,
        duplicates: float = 0.0,
        reorder: float = 0.0,
        bandwidth: float | None = None,
        queue: float = 0.1,
        max_datagram: int = 1472,
        drop: Callable[[str, bytes, float], bool] | None = None,
        connect: bool = True,
        remember_closed: bool = True,
        **core_options,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.delay = delay
        self.loss = loss
        self.duplicates = duplicates
        self.reorder = reorder
        self.bandwidth = bandwidth
        self.queue = queue
        self.max_datagram = max_datagram
        self.drop = drop
        self.a = Endpoint("a", UDXStreamCore(0xA, **core_options))
        self.b = Endpoint("b", UDXStreamCore(0xB, **core_options))
        self.sent: list[tuple[float, str, bytes]] = []
        self.record = False
        self.remember_closed = remember_closed
        self._wire: list[tuple[float, int, Endpoint, bytes]] = []
        self._count = 0
        self._free_at = {"a": 0.0, "b": 0.0}
        if connect:
            self.a.core.connect(0xB, ADDRESSES["b"], self.now)
            self.b.core.connect(0xA, ADDRESSES["a"], self.now)

    def other(self, endpoint: Endpoint) -> Endpoint:
        return self.b if endpoint is self.a else self.a

    def _transmit(self, sender: Endpoint, datagram: bytes) -> None:
        sender.datagrams_sent += 1
        if self.record:
            self.sent.append((self.now, sender.name, datagram))
        if self.drop is not None and self.drop(sender.name, datagram, self.now):
            return
        if len(datagram) > self.max_datagram:
            return
        rng = self.rng
        copies = 2 if rng.random() < self.duplicates else 1
        for _ in range(copies):
            if rng.random() < self.loss:
                continue
            start = self.now
            if self.bandwidth is not None:
                start = max(start, self._free_at[sender.name])
                if start - self.now > self.queue:
                    continue
                start += len(datagram) / self.bandwidth
                self._free_at[sender.name] = start
            at = start + self.delay
            if rng.random() < self.reorder:
                at += rng.random() * self.delay
            self._count += 1
            heapq.heappush(self._wire, (at, self._count, self.other(sender), datagram))

    def flush(self) -> None:
        """Send what is due now and let both programs work, until neither has anything to do."""
        for endpoint in (self.a, self.b):
            for _ in range(10_000):
                endpoint.work(self.now)
                for _, _address, datagrams in endpoint.core.datagrams_to_send(self.now):
                    for datagram in datagrams:
                        self._transmit(endpoint, datagram)
                timer = endpoint.core.get_timer()
                if timer is None or timer > self.now:
                    break
            else:
                raise AssertionError("the core always wants to send")
            endpoint.work(self.now)

    def step(self) -> bool:
        """Go to the next moment at which something happens; False when nothing ever will."""
        times = [at for e in (self.a, self.b) if (at := e.core.get_timer()) is not None]
        if self._wire:
            times.append(self._wire[0][0])
        if not times:
            return False
        self.now = max(self.now, min(times))
        while self._wire and self._wire[0][0] <= self.now:
            _, _, endpoint, datagram = heapq.heappop(self._wire)
            sender = self.other(endpoint)
            if endpoint.core.closed and self.remember_closed:
                answer = endpoint.closed_streams.receive_datagram(datagram, self.now)
                if answer is not None:
                    assert answer[0] == ADDRESSES[sender.name]
                    self._transmit(endpoint, answer[1])
                continue
            endpoint.core.receive_datagram(datagram, ADDRESSES[sender.name], self.now)
        self.flush()
        return True

    def run(self, until: Callable[[], bool] = lambda: False, seconds: float = 3600.0) -> float:
        """Step until a condition, or until nothing is left to happen; return the seconds."""
        start = self.now
        self.flush()
        while not until() and self.step():
            assert self.now - start <= seconds, "the simulated time is up"
        return self.now - start


@pytest.fixture
def make_link() -> type[Link]:
    return Link
