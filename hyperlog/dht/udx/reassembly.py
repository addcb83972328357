"""The receiving half: packets beyond a gap, in-order bytes not yet read, and the window over both.

Sequence numbers here are unwrapped: they grow for ever, the wire carries them modulo 2**32.

Memory: the peer may fill the window that we advertise. A packet is charged at least
MIN_CHUNK_CHARGE bytes on average, so that a flood of tiny packets cannot hold more objects than
the window pays for. Packets beyond a gap are refused above the window plus a slack; the packets
that fill the gap are accepted up to twice the window, because refusing those would stop the stream
for good (a JavaScript sender does not count lost packets as in flight, so it may overshoot by that
much).

The window may change at any time. What was advertised once stays acceptable: a peer that goes by an
older packet is no attacker.

Spec: docs/protocol/udx.md sections 5, 9 and 13.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Final

__all__ = ["ReceiveBuffer"]

MIN_CHUNK_CHARGE: Final = 256  # bytes, about what one queued chunk object costs
SMALL_PAYLOAD: Final = 256  # bytes; below it a view would pin a far larger receive buffer
WINDOW_SLACK: Final = 64 * 1024  # bytes that a peer may overshoot beyond a gap
MIN_SEQ_SPAN: Final = 1024  # packets that may always be ahead of the next expected one


class ReceiveBuffer:
    """Takes payloads by sequence number, gives in-order chunks."""

    __slots__ = (
        "_chunks",
        "_ends",
        "_held",
        "_in_order_limit",
        "_out_of_order_limit",
        "_seq_span",
        "_starts",
        "held_bytes",
        "next_seq",
        "readable_bytes",
        "window",
    )

    def __init__(self, window: int, next_seq: int) -> None:
        self.window = window
        self.next_seq = next_seq
        """Unwrapped seq of the packet that is needed next: what `ack` says on the wire."""
        self.readable_bytes = 0
        self.held_bytes = 0
        self._chunks: deque[bytes | memoryview] = deque()
        self._held: dict[int, bytes] = {}
        # The held seqs as ascending ranges [start, end).
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._set_limits(window)

    def _set_limits(self, window: int) -> None:
        self._out_of_order_limit = window + WINDOW_SLACK
        self._in_order_limit = 2 * window + WINDOW_SLACK
        self._seq_span = max(MIN_SEQ_SPAN, 2 * window // MIN_CHUNK_CHARGE)

    def resize(self, window: int) -> None:
        """Advertise another window from now on; limits only ever grow."""
        self.window = window
        if 2 * window + WINDOW_SLACK > self._in_order_limit:
            self._set_limits(window)

    @property
    def has_gap(self) -> bool:
        """Whether packets beyond `next_seq` are held, so that acknowledging needs SACK blocks."""
        return bool(self._held)

    @property
    def charge(self) -> int:
        """Bytes of memory that unread data counts for."""
        charge = MIN_CHUNK_CHARGE * (len(self._chunks) + len(self._held))
        used = self.readable_bytes + self.held_bytes
        return used if used > charge else charge

    @property
    def free_window(self) -> int:
        """Bytes to advertise, 0 … `window`."""
        return max(0, self.window - self.charge)

    def append(self, payload: bytes | memoryview) -> bool:
        """Take the payload of packet `next_seq` and step over it; False if it does not fit."""
        size = len(payload)
        chunks = self._chunks
        if (
            self.readable_bytes + self.held_bytes + size > self._in_order_limit
            or len(chunks) * MIN_CHUNK_CHARGE > self._in_order_limit
        ):
            return False
        self.next_seq += 1
        if size:
            chunks.append(payload if size >= SMALL_PAYLOAD else bytes(payload))
            self.readable_bytes += size
        return True

    def hold(self, seq: int, payload: bytes | memoryview) -> bool:
        """Keep a copy of a packet beyond the gap; False if it is held already or does not fit."""
        held = self._held
        if seq in held or seq - self.next_seq > self._seq_span:
            return False
        size = self.readable_bytes + self.held_bytes + len(payload)
        charge = MIN_CHUNK_CHARGE * (len(self._chunks) + len(held))
        if max(size, charge) > self._out_of_order_limit:
            return False
        held[seq] = bytes(payload)
        self.held_bytes += len(payload)

        starts, ends = self._starts, self._ends
        at = bisect_right(starts, seq)  # the range before `at` starts at or below seq
        joins_left = at > 0 and ends[at - 1] == seq
        joins_right = at < len(starts) and starts[at] == seq + 1
        if joins_left and joins_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif joins_left:
            ends[at - 1] = seq + 1
        elif joins_right:
            starts[at] = seq
        else:
            starts.insert(at, seq)
            ends.insert(at, seq + 1)
        return True

    def is_held(self, seq: int) -> bool:
        return seq in self._held

    def release_held(self) -> None:
        """Move the held packets that have become contiguous to the readable bytes."""
        starts = self._starts
        if not starts or starts[0] != self.next_seq:
            return
        end = self._ends[0]
        del starts[0], self._ends[0]
        for seq in range(self.next_seq, end):
            payload = self._held.pop(seq)
            if payload:
                self.held_bytes -= len(payload)
                self.readable_bytes += len(payload)
                self._chunks.append(payload)
        self.next_seq = end

    def blocks(self, count: int) -> list[tuple[int, int]]:
        """Return the lowest `count` ranges [start, end) held beyond the gap, unwrapped."""
        return list(zip(self._starts[:count], self._ends[:count], strict=True))

    def read(self, max_bytes: int | None) -> list[bytes | memoryview]:
        """Remove in-order chunks, as received; the last is cut when it exceeds `max_bytes`."""
        chunks = self._chunks
        if max_bytes is None or max_bytes >= self.readable_bytes:
            taken = list(chunks)
            chunks.clear()
            self.readable_bytes = 0
            return taken
        taken = []
        left = max_bytes
        while left > 0:
            chunk = chunks.popleft()
            if len(chunk) > left:
                chunks.appendleft(chunk[left:])
                chunk = chunk[:left]
            left -= len(chunk)
            taken.append(chunk)
        self.readable_bytes -= max_bytes - left
        return taken

    def copy_views(self) -> None:
        """Replace views by copies: a view keeps all of what one system call received in memory.

        That may be 64 KiB for a view of 256 bytes. Readers that keep up never pay for a copy.
        """
        self._chunks = deque(map(bytes, self._chunks))

    def drop_held(self) -> None:
        """Forget the packets beyond the gap: it will not be filled any more."""
        self._held.clear()
        self._starts.clear()
        self._ends.clear()
        self.held_bytes = 0

    def drop_all(self) -> None:
        """Forget also what is in order: nobody will read it."""
        self.drop_held()
        self._chunks.clear()
        self.readable_bytes = 0
