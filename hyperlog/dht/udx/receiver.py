"""The receiving half of a stream: in-order bytes, the peer's END, messages, what to acknowledge.

Spec: docs/protocol/udx.md section 5, rules 4 to 6 and 12; sections 9 and 12.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from hyperlog.dht.udx.events import EndReceived, Event, MessageReceived
from hyperlog.dht.udx.packet import DATA, END, MAX_SACK_BLOCKS, MESSAGE, SACK_BLOCK, SEQ_MASK
from hyperlog.dht.udx.reassembly import ReceiveBuffer

__all__ = ["HALF", "Receiver"]

HALF: Final = 0x80000000  # differences of wire seqs from here on are negative
MAX_MESSAGES: Final = 256  # unordered messages waiting for their reader
MAX_MESSAGE_BYTES: Final = 1024 * 1024  # the same in bytes


class Receiver:
    """Appends EndReceived and MessageReceived to the stream's `events`."""

    def __init__(self, window: int, next_seq: int, events: deque[Event]) -> None:
        self.buffer = ReceiveBuffer(window, next_seq)
        self.ack_due = False
        self.end_seq: int | None = None
        """Unwrapped seq of the peer's END, also while packets before it are missing."""
        self.end_received = False
        self.advertised = window
        """The window that the last packet told."""
        self._events = events
        self._messages = 0  # waiting in `events`
        self._message_bytes = 0

        self.duplicates = 0
        self.overflows = 0
        self.dropped_messages = 0

    def take(self, payload: bytes | memoryview, flags: int, wire_seq: int) -> None:
        """Take data, END and message of any packet; the stream has a shorter way for plain data."""
        if flags & (DATA | END):
            ahead = (wire_seq - self.buffer.next_seq) & SEQ_MASK
            if ahead >= HALF:
                self.duplicates += 1
            elif not self.end_received:
                seq = self.buffer.next_seq + ahead
                self._take_data(payload if flags & DATA else b"", flags, seq)
        if flags & MESSAGE and payload:
            self._take_message(payload)

    def _take_data(self, payload: bytes | memoryview, flags: int, seq: int) -> None:
        buffer = self.buffer
        if seq == buffer.next_seq:
            taken = buffer.append(payload)
        elif buffer.is_held(seq):
            self.duplicates += 1
            return
        else:
            taken = buffer.hold(seq, payload)
        if not taken:
            self.overflows += 1
            return
        if flags & END:
            self.end_seq = seq
        buffer.release_held()
        if self.end_seq is not None and buffer.next_seq > self.end_seq:
            buffer.drop_held()
            self.end_received = True
            self._events.append(EndReceived())

    def _take_message(self, payload: bytes | memoryview) -> None:
        size = len(payload)
        if self._messages >= MAX_MESSAGES or self._message_bytes + size > MAX_MESSAGE_BYTES:
            self.dropped_messages += 1
            return
        self._messages += 1
        self._message_bytes += size
        self._events.append(MessageReceived(bytes(payload)))

    def on_message_read(self, message: MessageReceived) -> None:
        """The program took the event: there is room for another."""
        self._messages -= 1
        self._message_bytes -= len(message.data)

    @property
    def charge(self) -> int:
        """Bytes of memory that unread data and messages count for."""
        return self.buffer.charge + self._message_bytes

    def read(self, max_bytes: int | None) -> list[bytes | memoryview]:
        """Remove in-order chunks; an acknowledgement becomes due when that reopens the window."""
        chunks = self.buffer.read(max_bytes)
        self._tell_window()
        return chunks

    def resize(self, window: int) -> None:
        """Advertise another window; an acknowledgement becomes due when that is far larger."""
        self.buffer.resize(window)
        self._tell_window()

    def _tell_window(self) -> None:
        # Most reads find a wide window: the peer needs to hear only of one that was nearly shut.
        buffer = self.buffer
        if self.advertised * 4 < buffer.window and buffer.free_window * 2 >= buffer.window:
            self.ack_due = True

    def sack_area(self) -> bytes:
        """The SACK blocks of an acknowledgement, empty when there is no gap."""
        blocks = self.buffer.blocks(MAX_SACK_BLOCKS)
        return b"".join(
            [SACK_BLOCK.pack(start & SEQ_MASK, end & SEQ_MASK) for start, end in blocks]
        )
