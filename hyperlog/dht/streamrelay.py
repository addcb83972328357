"""Service: hands the packets of one UDX stream on to another, which is what a relay does.

Packets are not looked into, put into order or acknowledged. Each goes out as it came in, but for
the stream id in its header: the two peers run the whole protocol between them, and what they say is
encrypted. A burst that comes in with one system call goes out with one.

Source: libudx `udx_stream_relay_to`; docs/protocol/udx.md section 12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import DHTError
from hyperlog.dht.sockets import Sockets
from hyperlog.dht.udx.packet import DESTROY

__all__ = ["Budget", "RelayStream", "relay_pair"]

MAX_QUEUE: Final = 512 * 1024  # bytes of one direction, above all what one burst may bring
QUEUE_TIME: Final = 0.25  # s of a budget that all its streams together may hold back
MIN_QUEUE: Final = 131_072  # bytes, the same
MAX_EARLY: Final = 64 * 1024  # bytes kept for a peer from which nothing has come so far
MAX_BURST: Final = 64  # datagrams that go out in one go, what UDP_SEGMENT takes
FOLLOW_AFTER: Final = 2.0  # s of silence, after which a peer may turn up at another address
BURST_TIME: Final = 0.05  # s of a budget that may be used at once
MIN_BURST: Final = 65_536  # bytes


class Budget:
    """Bytes per second that streams share, and with them the room for what has to wait."""

    __slots__ = ("_at", "_credit", "_depth", "max_queued", "queued", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        """bytes per second"""
        self.max_queued = max(rate * QUEUE_TIME, MIN_QUEUE)
        self.queued = 0
        """bytes that wait, of all streams"""
        self._depth = max(rate * BURST_TIME, MIN_BURST)
        self._credit = self._depth
        self._at = now

    def available(self, now: float) -> float:
        """Bytes that may be sent now; below zero after a packet that was larger than that."""
        self._credit = min(self._credit + (now - self._at) * self.rate, self._depth)
        self._at = now
        return self._credit

    def spend(self, size: int) -> None:
        self._credit -= size

    def wait(self) -> float:
        """Seconds until there is something to spend again."""
        return max(0.001, (1.0 - self._credit) / self.rate)


class RelayStream:
    """The relay's stream towards one peer; a StreamHandler of `Sockets`.

    The peer's address is that of its first packet. Compat: in JavaScript it stays so; here a peer
    whose NAT gave it another address is followed after a moment of silence at the old one.
    """

    def __init__(self, sockets: Sockets, local_id: int, remote_id: int) -> None:
        self.local_id = local_id
        self.socket: int | None = None
        self.address: Address | None = None
        """of the peer; None before its first packet"""
        self.partner: RelayStream = self
        self.budgets: tuple[Budget, ...] = ()
        self.heard_at: float | None = None
        """when the last packet came from the peer, in trio's time"""
        self.destroyed_at: float | None = None
        """when the peer sent the DESTROY that ends the stream"""
        self.packets = 0
        """from the peer, that went on to its partner"""
        self.bytes = 0
        self.dropped = 0
        self.on_bytes: Callable[[int], None] = lambda size: None
        """Called with every number of bytes that went on."""
        self._sockets = sockets
        self._remote_id = remote_id.to_bytes(4, "little")
        self._queue: list[bytes] = []
        self._queued = 0
        self._send_at: float | None = None
        self._closed = False

    # -- towards the sockets (StreamHandler) ------------------------------------------------------

    def receive(self, data: bytes | memoryview, address: Address, socket: int, now: float) -> None:
        if address == self.address and socket == self.socket:
            self.heard_at = now
        else:
            self._take_address(address, socket, now)
        partner = self.partner
        size = len(data)
        if self._queued + size > (MAX_EARLY if partner.address is None else MAX_QUEUE):
            self.dropped += 1
            return
        for budget in self.budgets:
            if budget.queued + size > budget.max_queued:
                self.dropped += 1
                return
        for budget in self.budgets:
            budget.queued += size
        self._queue.append(b"".join((data[:4], partner._remote_id, data[8:])))
        self._queued += size
        if data[2] & DESTROY:
            self.destroyed_at = now

    def _take_address(self, address: Address, socket: int, now: float) -> None:
        if self.heard_at is not None and now - self.heard_at < FOLLOW_AFTER:
            return  # whoever guesses an id must not draw the peer's packets away
        if self.socket is not None:
            self._sockets.release(self.socket)
        self._sockets.hold(socket)
        self.socket = socket
        self.address = address
        self.heard_at = now
        self._sockets.mark_dirty(self.partner.local_id)  # which may have kept something for us

    def batch_done(self, now: float) -> None:
        pass

    def datagrams_to_send(self, now: float) -> list[tuple[int, Address, list[bytes]]]:
        partner = self.partner
        if not self._queue or partner.address is None or partner.socket is None:
            return []
        self._send_at = None
        if self.budgets or len(self._queue) > MAX_BURST:
            datagrams = self._take_affordable(now)
        else:
            datagrams, self._queue = self._queue, []
        if not datagrams:
            return []
        size = sum(map(len, datagrams))
        self._queued -= size
        self.packets += len(datagrams)
        self.bytes += size
        for budget in self.budgets:
            budget.spend(size)
            budget.queued -= size
        self.on_bytes(size)
        return [(partner.socket, partner.address, datagrams)]

    def _take_affordable(self, now: float) -> list[bytes]:
        credit = min((budget.available(now) for budget in self.budgets), default=float("inf"))
        count = 0
        for datagram in self._queue[:MAX_BURST]:
            if credit <= 0:
                self._send_at = now + max(budget.wait() for budget in self.budgets)
                break
            credit -= len(datagram)
            count += 1
        taken = self._queue[:count]
        del self._queue[:count]
        return taken

    def get_timer(self) -> float | None:
        return self._send_at

    def handle_timer(self, now: float) -> None:
        pass  # what the timer asked for, datagrams_to_send does next

    def put_on_trial(self, limit: float, now: float) -> None:
        pass  # who is still there, the two peers find out for themselves

    def destroy(self, error: DHTError | None = None) -> None:
        """Forget the stream. The peers are not told, as they may be connected without us by now."""
        if not self._closed:
            self._closed = True
            for budget in self.budgets:
                budget.queued -= self._queued
            self._queue.clear()
            self._queued = 0
            self._sockets.remove_stream(self.local_id)
            if self.socket is not None:
                self._sockets.release(self.socket)


def relay_pair(
    sockets: Sockets, local_ids: tuple[int, int], remote_ids: tuple[int, int]
) -> tuple[RelayStream, RelayStream]:
    """Two streams whose packets go over to each other, from now on.

    `local_ids` are free ids of this node, `remote_ids` those of the two peers' streams.
    """
    first = RelayStream(sockets, local_ids[0], remote_ids[0])
    second = RelayStream(sockets, local_ids[1], remote_ids[1])
    first.partner, second.partner = second, first
    for stream in (first, second):
        sockets.add_stream(stream.local_id, stream)
    return first, second
