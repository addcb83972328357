"""One key's lines on their way to the disk, in the order in which they were received.

Connections put in what they have received and go on reading; one writer takes out what has
collected and says how much of it is durable. Only then is it acknowledged, so that the order of the
log, of the acknowledgements and of the numbers is the same, however many connections a key has.
What could not be written stays at the front and is written next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

from hyperlog.resume import Received, ResumeState
from hyperlog.sinks.scan import session_of_line

__all__ = ["KeyLog"]

MAX_WRITE: Final = 4096  # lines given to the writer at a time, unless one message has more
LINE_OVERHEAD: Final = 64  # bytes of a line beside its text: object header and list slot


class _Written(Protocol):
    def written(self, received: Received) -> None: ...


@dataclass(slots=True)
class _Entry:
    received: Received
    conversation: _Written | None
    size: int


class KeyLog:
    """A queue of lines; `queued_bytes` is for the caller to bound."""

    def __init__(self, resume: ResumeState) -> None:
        self.resume = resume
        self.queued_bytes = 0
        self._entries: deque[_Entry] = deque()

    def __bool__(self) -> bool:
        """Whether anything waits to be written, or to be acknowledged behind what is written."""
        return bool(self._entries)

    def add(self, received: Received, conversation: _Written | None = None) -> None:
        """Append what a conversation has received; it hears from `written` when that is durable."""
        if received.lines or received.numbers:
            lines = received.lines
            size = sum(map(len, lines)) + LINE_OVERHEAD * len(lines)
            self.queued_bytes += size
            self._entries.append(_Entry(received, conversation, size))

    def lines_to_write(self) -> list[bytes]:
        """The oldest lines. Afterwards tell `wrote` how many of them are durable."""
        lines: list[bytes] = []
        for entry in self._entries:
            if lines and len(lines) + len(entry.received.lines) > MAX_WRITE:
                break
            lines += entry.received.lines
        return lines

    def wrote(self, count: int) -> None:
        """The `count` oldest lines are durable."""
        entries = self._entries
        while entries and len(entries[0].received.lines) <= count:
            entry = entries.popleft()
            count -= len(entry.received.lines)
            self.queued_bytes -= entry.size
            if entry.conversation is not None:
                entry.conversation.written(entry.received)
        if count:
            # A part of an entry, since the disk is full: what is in the log must be known to be.
            lines = entries[0].received.lines
            numbers = dict(filter(None, map(session_of_line, lines[:count])))
            self.resume.commit(numbers)
            del lines[:count]

    def give_up(self) -> None:
        """Forget what waits: it was not acknowledged, and is asked for again. All connections of
        the key are to be ended."""
        self._entries.clear()
        self.queued_bytes = 0
        self.resume.rewind()
