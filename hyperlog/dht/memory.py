"""Service: bounds the memory that accepted connections take up together.

Of each connection, what the peer has sent and nobody can use yet is kept: bytes beyond a gap, bytes
that were not read, a frame that is not complete. That is bounded for each of them, but a thousand
times such a bound is more than a machine has. So what all hold is summed up whenever as much has
come in as could make it too much, and then connections are ended. Nothing is counted in between.

Which ones: those where the most bytes have waited the longest. The largest alone would be the
wrong ones, for who sends fast always has a large message under way, and the next one soon after.

Honest peers do not even come near the bound. They keep to the receive window, and all windows
together are half of it: a peer that has proved nothing has a small one, the others have an even
share.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from weakref import WeakSet

from hyperlog.dht.udx.stream import DEFAULT_WINDOW

__all__ = ["MAX_BYTES", "UNPROVED_WINDOW", "Holder", "MemoryStatistics", "ReceiveMemory"]

logger = logging.getLogger("hyperlog.dht.memory")

MAX_BYTES: Final = 128 * 1024 * 1024  # held by all accepted connections of a node
UNPROVED_SHARE: Final = 4  # peers that have proved nothing get this part of it, together
UNPROVED_WINDOW: Final = 64 * 1024  # bytes; more than what is sent before the first round trip
MIN_WINDOW: Final = 64 * 1024  # bytes, with however many connections
MIN_INTERVAL: Final = 8 * 1024 * 1024  # bytes received between two checks
MIN_AGE: Final = 0.001  # s
MAX_AGE: Final = 30.0  # s; whoever waits longer is no worse
WARN_INTERVAL: Final = 60.0  # s between two log entries
MAX_GONE: Final = 64  # connections kept after their end, beside as many as are open


class Holder(Protocol):
    """What is needed of a Connection."""

    @property
    def closed(self) -> bool: ...

    @property
    def authenticated(self) -> bool: ...

    @property
    def held_bytes(self) -> int: ...

    @property
    def held_since(self) -> float: ...

    on_authenticated: Callable[[], None] | None

    def set_receive_window(self, window: int) -> None: ...

    def copy_views(self) -> None: ...

    def abort(self) -> None: ...


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """What accepted connections hold."""

    held_bytes: int
    """when it was last summed up"""
    max_held_bytes: int
    """the most that it ever was then"""
    ended: int
    """connections, because all together held too much"""


class ReceiveMemory:
    """For one node; its sockets call `check`."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        # Whoever forgets a connection without closing it must not find it kept here.
        self._connections: WeakSet[Holder] = WeakSet()
        self._proved = 0
        self._window = DEFAULT_WINDOW
        self._held = 0
        self._max_held = 0
        self._ended = 0
        self._check_at_size = MAX_GONE
        self._warn_at = 0.0

    def statistics(self) -> MemoryStatistics:
        return MemoryStatistics(self._held, self._max_held, self._ended)

    def add(self, connection: Holder, now: float) -> None:
        """Count what this connection holds from now on, until it is closed and read out."""
        if len(self._connections) >= self._check_at_size:
            self.check(now)
        self._connections.add(connection)

        def widen() -> None:
            self._proved += 1
            self._share_windows()
            connection.set_receive_window(self._window)

        connection.on_authenticated = widen

    def check(self, now: float) -> int:
        """Sum up what is held, and end connections if it is too much.

        Returns how many bytes may be received until the next check.
        """
        held: dict[Holder, int] = {}
        for connection in list(self._connections):
            size = connection.held_bytes
            if size:
                connection.copy_views()
            if size or not connection.closed:
                held[connection] = size
            else:
                self._connections.discard(connection)
        self._check_at_size = 2 * len(held) + MAX_GONE
        unproved = [connection for connection in held if not connection.authenticated]
        self._proved = len(held) - len(unproved)
        self._share_windows()
        self._max_held = max(self._max_held, sum(held.values()))
        room = min(
            self._keep_below(self.max_bytes // UNPROVED_SHARE, unproved, held, now),
            self._keep_below(self.max_bytes, list(held), held, now),
        )
        self._held = sum(held.values())
        return max(room, MIN_INTERVAL)

    def _share_windows(self) -> None:
        share = self.max_bytes // 2 // max(self._proved, 1)
        # In powers of two, so that it does not change with each connection that comes or goes.
        share = 1 << max(share, 1).bit_length() - 1
        share = min(max(share, MIN_WINDOW), DEFAULT_WINDOW)
        if share != self._window:
            self._window = share
            for connection in list(self._connections):
                if connection.authenticated:
                    connection.set_receive_window(share)

    def _keep_below(
        self, limit: int, some: Sequence[Holder], held: dict[Holder, int], now: float
    ) -> int:
        """End some of them until the others are below the limit; returns by how much."""
        excess = sum(held[connection] for connection in some) - limit
        if excess <= 0:
            return -excess

        def weight(connection: Holder) -> float:
            age = now - connection.held_since
            return held[connection] * min(max(age, MIN_AGE), MAX_AGE)

        ended = 0
        for connection in sorted(some, key=weight, reverse=True):
            if excess <= 0:
                break
            excess -= held[connection]
            held[connection] = 0
            connection.abort()
            ended += 1
        self._ended += ended
        if now >= self._warn_at:
            self._warn_at = now + WARN_INTERVAL
            logger.warning(
                "peers had more than %d MB held for them: %d connections ended, %d so far",
                limit // 2**20,
                ended,
                self._ended,
            )
        return -excess
