"""Where traces of any thread wait for the one that numbers and encodes them.

The thread that traces does nothing but append to a deque: no lock, no JSON, no number. Order
between threads is decided when the owner takes the traces out and numbers them, so the order of
numbers is the order in the deque, whatever the threads do.

The size is bounded. It is estimated, at one unit per trace and one more for each unit of text in
its props; the estimates of large traces lie in the deque as fillers, so that the deque's length is
the estimate and needs no lock either. When there is no room the oldest gives way, and is counted.

Source: docs/protocol/trace-protocol.md sections 3 and 5.
"""

from __future__ import annotations

from collections import deque
from itertools import count, repeat
from typing import Final, Generic, TypeVar

__all__ = ["TraceQueue"]

UNIT: Final = 1024  # bytes that a waiting trace counts; measured about 600 with usual props
LEAST_MAX_BYTES: Final = 4 * UNIT

T = TypeVar("T")


class TraceQueue(Generic[T]):
    """A bounded queue. `append` may be called from any thread, the rest from one thread only."""

    def __init__(self, max_bytes: int, crowd: int | None = None) -> None:
        """`crowd` is the number of traces from which on the queue is `crowded`; without it, and in
        a small queue, that is when seven eighths are full.
        """
        if max_bytes < LEAST_MAX_BYTES:
            raise ValueError(f"a queue needs at least {LEAST_MAX_BYTES} bytes, got {max_bytes}")
        self._items: deque[T | None] = deque()
        self._limit = max_bytes // UNIT
        self._crowd = self._limit * 7 // 8
        if crowd is not None:
            self._crowd = min(self._crowd, crowd)
        self._overflow = count()
        self._overflow_reads = 0
        self._overflow_seen = 0

    # -- any thread

    def append(self, item: T, text_size: int = 0) -> None:
        """Add a trace; `text_size` is an estimate of its long texts in bytes. Never waits."""
        items = self._items
        if text_size >= UNIT:
            items.extend(repeat(None, min(text_size // UNIT, self._limit)))
        items.append(item)
        if len(items) > self._limit:
            self._push_out()

    def _push_out(self) -> None:
        items = self._items
        while len(items) > self._limit:
            try:
                oldest = items.popleft()
            except IndexError:
                break  # the owner took them all
            if oldest is not None:
                next(self._overflow)

    @property
    def crowded(self) -> bool:
        """Whether those who trace should let the owner work; any thread may ask."""
        return len(self._items) > self._crowd

    # -- the owner's thread

    @property
    def pending(self) -> int:
        """At least the number of traces not yet taken; 0 if there are none."""
        return len(self._items)

    @property
    def size(self) -> int:
        """Bytes in use, as estimated."""
        return UNIT * len(self._items)

    def take_pending(self, limit: int) -> list[T]:
        """The oldest traces, up to `limit`, in the order in which they will be numbered."""
        taken: list[T] = []
        popleft = self._items.popleft
        try:
            while len(taken) < limit:
                item = popleft()
                if item is not None:
                    taken.append(item)
        except IndexError:
            pass
        return taken

    def take_overflow(self) -> int:
        """How many traces were pushed out since the last call; they came before those waiting."""
        # A count can be advanced by any thread without a lock, but only be read by advancing it.
        total = next(self._overflow) - self._overflow_reads
        self._overflow_reads += 1
        new = total - self._overflow_seen
        self._overflow_seen = total
        return new
