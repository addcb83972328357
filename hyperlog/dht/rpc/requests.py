"""Requests on their way: numbering, retries, time limits, and a window against congestion.

Theory of operation. `start` gives a request a tid and puts it into the outbox, a queue. From there
`datagrams_to_send` takes as many as the window allows. Each try has a time limit that starts when
its datagram leaves; when it passes, the same bytes go to the end of the outbox again, or, after the
last try, the request ends with a TimedOut event. A response counts only when its tid is in flight
and it comes from the very host and port that were asked.

The first try is two datagrams if nothing comes back: unlike dht-rpc, which waits a full second, we
repeat early, since a lone lost datagram is by far the most frequent reason on a lossy path. When a
request counts as slow, and when as failed, stays as it is.

    sent 0 .. early repeat 0.3 .. slow, retry 1.0 .. retry 2.0 .. retry 3.0 .. timed out 4.0 s

Spec: docs/protocol/dht-rpc.md section 6; dht-rpc lib/io.js.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, Final

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.rpc.identity import Identity
from hyperlog.dht.rpc.messages import Request, Response

__all__ = [
    "CongestionWindow",
    "PendingRequest",
    "RequestEvent",
    "Requests",
    "Responded",
    "Slow",
    "TimedOut",
]

DEFAULT_TIMEOUT: Final = 1.0  # s a try
DEFAULT_RETRIES: Final = 3
EARLY_REPEAT: Final = 0.3  # of the first try's time
MAX_PENDING: Final = 4096  # requests, waiting ones included; tids have 16 bits

WINDOW_SLOT: Final = 0.75  # s
WINDOW_SLOTS: Final = 4
MAX_WINDOW: Final = 80  # datagrams in one slot, twice that in all slots


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that was started and has not ended; hold it to tell the events apart."""

    address: Address
    """whom it goes to, and the only one whose response counts"""
    socket: int
    tid: int
    data: bytes
    retries: int
    timeout: float
    """seconds for one try"""
    context: Any = None
    """whatever the caller wants to find again in the events"""
    sends: int = 0
    """datagrams so far"""
    sent_at: float = 0.0
    """when the latest datagram left"""
    deadline: float = 0.0
    queued: bool = True
    ended: bool = False

    @property
    def early_repeats(self) -> int:
        """datagrams that the first try has beside its own"""
        return 1 if self.retries else 0

    @property
    def patience(self) -> float:
        """seconds from the latest datagram to the next"""
        if self.retries and self.sends <= 2:
            early = EARLY_REPEAT * self.timeout
            return early if self.sends == 1 else self.timeout - early
        return self.timeout


@dataclass(slots=True)
class Responded:
    request: PendingRequest
    response: Response
    socket: int
    """where the response came in: for PING_NAT not the socket the request left from"""
    rtt: float
    """seconds since the latest datagram"""


@dataclass(slots=True)
class Slow:
    """The first try got no answer in time; the request goes on. At most once for each request."""

    request: PendingRequest


@dataclass(slots=True)
class TimedOut:
    request: PendingRequest


RequestEvent = Responded | Slow | TimedOut


class CongestionWindow:
    """How many more requests may leave now: four slots of 750 ms, the oldest one is forgotten."""

    __slots__ = ("_counts", "_index", "_slot_ends_at", "_total")

    def __init__(self, now: float) -> None:
        self._counts = [0] * WINDOW_SLOTS
        self._index = 0
        self._total = 0
        self._slot_ends_at = now + WINDOW_SLOT

    def is_full(self, now: float) -> bool:
        if now >= self._slot_ends_at:
            self._advance(now)
        return self._total >= 2 * MAX_WINDOW or self._counts[self._index] >= MAX_WINDOW

    def next_slot_at(self) -> float:
        """When a full window opens again at the latest."""
        return self._slot_ends_at

    def sent(self) -> None:
        self._counts[self._index] += 1
        self._total += 1

    def ended(self) -> None:
        """A request got its response or was given up."""
        if self._counts[self._index]:
            self._counts[self._index] -= 1
            self._total -= 1

    def _advance(self, now: float) -> None:
        steps = int((now - self._slot_ends_at) / WINDOW_SLOT) + 1
        for _ in range(min(steps, WINDOW_SLOTS)):
            self._index = (self._index + 1) % WINDOW_SLOTS
            self._total -= self._counts[self._index]
            self._counts[self._index] = 0
        self._slot_ends_at = max(self._slot_ends_at + steps * WINDOW_SLOT, now)


class Requests:
    """All requests in flight of one node, over all its sockets."""

    def __init__(
        self, identity: Identity, random_bytes: Callable[[int], bytes], now: float
    ) -> None:
        self.responses = 0
        """responses to our requests so far"""
        self.timeouts = 0
        """requests given up after their last try so far"""
        self.retries = 0
        """datagrams after the first of each request so far"""
        self.total = 0
        """requests started so far"""
        self._identity = identity
        self._random_bytes = random_bytes
        self._pending: dict[int, PendingRequest] = {}
        self._outbox: deque[PendingRequest] = deque()
        self._window = CongestionWindow(now)
        # Requests in the order of their deadlines. Ended ones stay until their turn comes, or until
        # they outnumber the others.
        self._deadlines: list[tuple[float, int, PendingRequest]] = []
        self._sequence = 0
        self._events: deque[RequestEvent] = deque()

    def __len__(self) -> int:
        """Requests in flight or waiting for their turn."""
        return len(self._pending)

    @property
    def room(self) -> int:
        """How many more requests can be started now."""
        return MAX_PENDING - len(self._pending)

    def start(
        self,
        address: Address,
        command: int,
        *,
        internal: bool = False,
        target: bytes | None = None,
        token: bytes | None = None,
        value: bytes | None = None,
        retries: int = DEFAULT_RETRIES,
        timeout: float = DEFAULT_TIMEOUT,
        socket: int | None = None,
        context: object = None,
    ) -> PendingRequest:
        """Queue a request; `retries` more tries follow the first when no response comes.

        It leaves from `socket`, by default from the one that the identity says.

        Raises:
            LocalProtocolError: MAX_PENDING requests are under way, or a field does not fit.
        """
        if not self.room:
            raise LocalProtocolError(f"{MAX_PENDING} requests are under way already")
        # The JavaScript nodes count tids up. Random ones are harder to guess for someone who
        # forges the source address of a response.
        tid = int.from_bytes(self._random_bytes(2), "big")
        while tid in self._pending:
            tid = (tid + 1) & 0xFFFF
        socket = self._identity.socket if socket is None else socket
        id = self._identity.id_on(socket)
        message = Request(tid, address, command, internal, id, token, target, value)
        request = PendingRequest(address, socket, tid, message.encode(), retries, timeout, context)
        self._pending[tid] = request
        self._outbox.append(request)
        self.total += 1
        return request

    def cancel(self, request: PendingRequest) -> None:
        """End a request without an event; harmless when it has ended already."""
        if request.ended:
            return
        self._end(request)
        if request.queued:
            self._outbox.remove(request)

    def cancel_all(self, now: float) -> None:
        """End every request without an event: the sockets that they left from are closed."""
        for request in list(self._pending.values()):
            self._end(request)
        self._outbox.clear()
        self._deadlines.clear()
        self._events.clear()
        self._window = CongestionWindow(now)

    def receive_response(
        self, response: Response, address: Address, socket: int, now: float
    ) -> PendingRequest | None:
        """Take a response from the network; gives the request it ends, None for a stray one.

        The Responded event is queued as well.
        """
        request = self._pending.get(response.tid)
        if request is None or request.address != address or not request.sends:
            return None
        if request.queued:  # the next try has not left yet
            self._outbox.remove(request)
        self._end(request)
        self.responses += 1
        self._events.append(Responded(request, response, socket, now - request.sent_at))
        return request

    def datagrams_to_send(self, now: float) -> list[tuple[int, Address, bytes]]:
        """What may leave now, as (socket, address, data)."""
        datagrams: list[tuple[int, Address, bytes]] = []
        outbox = self._outbox
        while outbox and not self._window.is_full(now):
            request = outbox.popleft()
            request.queued = False
            request.sends += 1
            request.sent_at = now
            request.deadline = now + request.patience
            self._push_deadline(request)
            self._window.sent()
            datagrams.append((request.socket, request.address, request.data))
        return datagrams

    def get_timer(self) -> float | None:
        """When handle_timer or datagrams_to_send has something to do, None for not at all."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2].ended:
            heappop(deadlines)
        timer = deadlines[0][0] if deadlines else None
        if self._outbox:
            opens_at = self._window.next_slot_at()
            timer = opens_at if timer is None else min(timer, opens_at)
        return timer

    def handle_timer(self, now: float) -> None:
        """Retry or give up what has waited long enough."""
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now or deadlines[0][2].ended):
            request = heappop(deadlines)[2]
            if request.ended:
                continue
            if request.sends == request.early_repeats + 1:
                self._events.append(Slow(request))
            if request.sends > request.early_repeats + request.retries:
                self._end(request)
                self.timeouts += 1
                self._events.append(TimedOut(request))
            else:
                self.retries += 1
                request.queued = True
                self._outbox.append(request)

    def next_event(self) -> RequestEvent | None:
        return self._events.popleft() if self._events else None

    def _push_deadline(self, request: PendingRequest) -> None:
        if len(self._deadlines) > 2 * MAX_PENDING:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].ended]
            heapify(self._deadlines)
        self._sequence += 1
        heappush(self._deadlines, (request.deadline, self._sequence, request))

    def _end(self, request: PendingRequest) -> None:
        request.ended = True
        del self._pending[request.tid]
        if request.sends:
            self._window.ended()
