"""Where records wait: first as traces from any thread, then as numbered messages.

    append (any thread) -> pending -> take_pending, put (one thread) -> unsent -> next_batch -> sent
                                                                     release_through, or pushed out

The thread that traces does nothing but append to a deque: no lock, no JSON, no number. Order
between threads is decided when the owner takes the traces out and numbers them, so the order of
numbers is the order in the deque, whatever the threads do. Sent messages stay until a greeting of
the server shows that it has them, and come back by `rewind` for a new connection.

Everything together stays within `max_bytes`. What is pending is estimated, at one unit per trace
and one more for each unit of text in its props; the estimates of large traces lie in the deque as
fillers, so that the deque's length is the estimate and needs no lock either. When there is no room
the oldest gives way, and is counted.

Source: docs/protocol/trace-protocol.md sections 3 and 5.
"""

from __future__ import annotations

from collections import deque
from itertools import count, repeat
from typing import Generic, TypeVar

__all__ = ["MemorySpool"]

DEFAULT_MAX_BYTES = 64 * 1024 * 1024
UNIT = 1024  # bytes that a pending trace counts; measured about 600 with usual props
MESSAGE_OVERHEAD = 48  # bytes of a message beside its text: object header and deque slot

T = TypeVar("T")


class MemorySpool(Generic[T]):
    """A bounded queue of pending traces (T) and of numbered messages, lost with the process.

    `append` may be called from any thread, the rest from one thread only.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_bytes < 16 * UNIT:
            raise ValueError(f"a spool needs at least {16 * UNIT} bytes, got {max_bytes}")
        self._max_bytes = max_bytes
        # A quarter is kept for traces: a program that cannot connect must still take new ones in.
        self._max_message_bytes = max_bytes * 3 // 4
        self._pending: deque[T | None] = deque()
        self._pending_limit = max_bytes // UNIT
        self._overflow = count()
        self._overflow_reads = 0
        self._overflow_seen = 0
        self._sent: deque[bytes] = deque()
        self._unsent: deque[bytes] = deque()
        self._message_bytes = 0
        self._delivered = -1

        self.first_number = 0
        """number of the oldest message kept"""
        self.send_number = 0
        """number of the first message of the next batch"""
        self.next_number = 0
        """number of the next message put in"""
        self.dropped = {"queue-full": 0, "buffer-full": 0, "delivered": 0}
        """records pushed out, by reason: before they had a number, before they were delivered,
        and (no loss) when they were kept only in case the server forgets"""

    # -- any thread

    def append(self, item: T, text_size: int = 0) -> None:
        """Add a trace; `text_size` is an estimate of its long texts in bytes. Never waits."""
        pending = self._pending
        if text_size >= UNIT:
            pending.extend(repeat(None, min(text_size // UNIT, self._pending_limit)))
        pending.append(item)
        if len(pending) > self._pending_limit:
            self._push_out_pending()

    def _push_out_pending(self) -> None:
        pending = self._pending
        while len(pending) > self._pending_limit:
            try:
                oldest = pending.popleft()
            except IndexError:
                break  # the owner took them all
            if oldest is not None:
                next(self._overflow)

    @property
    def crowded(self) -> bool:
        """Whether pending traces are near to being pushed out; any thread may ask."""
        return len(self._pending) * 4 > self._pending_limit * 3

    # -- the owner's thread

    @property
    def pending(self) -> int:
        """At least the number of traces not yet taken; 0 if there are none."""
        return len(self._pending)

    @property
    def messages(self) -> int:
        """Messages kept, sent and unsent."""
        return self.next_number - self.first_number

    @property
    def unsent(self) -> int:
        return self.next_number - self.send_number

    @property
    def size(self) -> int:
        """Bytes in use, traces as estimated."""
        return self._message_bytes + UNIT * len(self._pending)

    def take_pending(self, limit: int) -> list[T]:
        """The oldest traces, up to `limit`, in the order in which they will be numbered."""
        taken: list[T] = []
        popleft = self._pending.popleft
        try:
            while len(taken) < limit:
                item = popleft()
                if item is not None:
                    taken.append(item)
        except IndexError:
            pass
        return taken

    def take_overflow(self) -> int:
        """How many traces were pushed out since the last call; they came before those pending."""
        # A count can be advanced by any thread without a lock, but only be read by advancing it.
        total = next(self._overflow) - self._overflow_reads
        self._overflow_reads += 1
        new = total - self._overflow_seen
        self._overflow_seen = total
        self.dropped["queue-full"] += new
        return new

    def put(self, message: bytes) -> int:
        """Add a message; returns its number. Pushes out the oldest if there is no room."""
        number = self.next_number
        self.next_number = number + 1
        self._unsent.append(message)
        self._message_bytes += len(message) + MESSAGE_OVERHEAD
        while self._message_bytes > self._max_message_bytes:
            self._drop_oldest(
                "delivered" if self.first_number <= self._delivered else "buffer-full"
            )
        self._pending_limit = (self._max_bytes - self._message_bytes) // UNIT
        if len(self._pending) > self._pending_limit:
            self._push_out_pending()
        return number

    def next_batch(self, max_bytes: int) -> list[bytes]:
        """Unsent messages in order, up to `max_bytes` together but at least one if there is any."""
        batch: list[bytes] = []
        unsent, sent = self._unsent, self._sent
        while unsent:
            max_bytes -= len(unsent[0])
            if max_bytes < 0 and batch:
                break
            message = unsent.popleft()
            sent.append(message)
            batch.append(message)
        self.send_number += len(batch)
        return batch

    def rewind(self) -> None:
        """Make all messages kept unsent again: what became of the sent ones is not known."""
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self.send_number = self.first_number

    def delivered_through(self, number: int) -> None:
        """Remember that messages up to `number` reached the server: losing them is no loss."""
        self._delivered = number

    def release_through(self, number: int) -> None:
        """Forget the messages up to `number`: the server has stored them."""
        while self.first_number <= number and self.first_number < self.next_number:
            self._drop_oldest(None)
        self._pending_limit = (self._max_bytes - self._message_bytes) // UNIT

    def _drop_oldest(self, reason: str | None) -> None:
        if self._sent:
            message = self._sent.popleft()
        else:
            message = self._unsent.popleft()
            self.send_number += 1
        self.first_number += 1
        self._message_bytes -= len(message) + MESSAGE_OVERHEAD
        if reason is not None:
            self.dropped[reason] += 1
