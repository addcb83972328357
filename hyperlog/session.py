"""A client's numbered runs of records: the one that is being traced, and those left by others.

A client numbers its records from 0 under a random session id and puts them into a spool, from where
they are sent in the order of their numbers. What the spool had to give up is told in a gap message
with the number of the last record lost. What is kept may be forgotten when a server has it:

- A server that acknowledges says so by number (conversation.py).
- A server of the JavaScript rule says only once, when a connection opens, which session and number
  it saw last; nothing else flows back. Then the client keeps what it has sent until the *greeting*
  of a later connection shows that the server has it. That the transport delivered a record is
  enough for `flush`, but not for forgetting: the server may end between receiving and writing.

Source: hypertrace-logger client.js; docs/protocol/trace-protocol.md sections 1 and 5, session.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from msgspec import Raw

from hyperlog.errors import BadAnswer, BadGreeting
from hyperlog.logs import LogEntry, encode_log
from hyperlog.records import Gap, client_props, encode_gap, encode_trace

if TYPE_CHECKING:
    from hyperlog.trace import Trace

__all__ = ["ClientSession", "KeptSession", "PendingTrace", "Spooled", "TraceQueue"]

MAX_LOSSES: Final = 1024  # losses remembered until a server has seen them; older ones only count
UNLIMITED: Final = 2**63

PendingTrace: TypeAlias = "tuple[float, Trace | LogEntry, Raw | None]"


class TraceQueue(Protocol):
    """Where traces wait for their numbers; `append` may be called from any thread."""

    def append(self, item: PendingTrace, text_size: int = 0) -> None: ...
    def take_pending(self, limit: int) -> list[PendingTrace]: ...
    def take_overflow(self) -> int: ...
    @property
    def pending(self) -> int: ...


class Spooled(Protocol):
    """One session's messages, wherever they lie."""

    @property
    def session_id(self) -> str: ...
    @property
    def first_number(self) -> int:
        """number of the oldest message that is kept; `next_number` if there is none"""
        ...

    @property
    def next_number(self) -> int: ...
    @property
    def released_through(self) -> int:
        """highest number that a server is known to hold, -1 for none"""
        ...

    @property
    def finished(self) -> bool:
        """whether a server holds all there is"""
        ...

    def put(self, messages: Sequence[bytes]) -> None:
        """Append, numbered from `next_number`; never raises."""
        ...

    def read(self, number: int, max_bytes: int) -> tuple[int, list[bytes]]:
        """The first run of messages at or after `number`, with the number of its first; at least
        one message, or (`next_number`, []). What is left out before it is lost. A number below
        `next_number` without messages: they cannot be read at present."""
        ...

    def hole_reason(self, number: int) -> str:
        """Why a message is lost."""
        ...

    def release_through(self, number: int) -> None:
        """A server has these: forget them."""
        ...


class KeptSession:
    """A session whose records this process answers for, and how far they are sent."""

    def __init__(self, spool: Spooled) -> None:
        self.session_id = spool.session_id
        self.spool = spool
        self.position = 0
        """number that is sent next over the present connection"""

    @property
    def unsent(self) -> int:
        """Numbers not yet sent over the present connection."""
        return self.spool.next_number - self.position

    def resume_after(self, number: int) -> None:
        """A server holds the records up to `number`, -1 for none: go on behind it.

        Raises:
            BadAnswer: there are not so many.
        """
        # The end of a session that a dead process left may have been damaged since it was sent.
        number = min(number, self.spool.next_number - 1)
        self.release_through(number)
        self.position = max(number, self.spool.released_through) + 1

    def acknowledge(self, number: int) -> None:
        """A server holds the records up to `number` of those sent over the present connection.

        Raises:
            BadAnswer: they were never sent.
        """
        if number >= self.position:
            raise BadAnswer("the server acknowledges records that were never sent")
        self.release_through(number)

    def release_through(self, number: int) -> None:
        if number > self.spool.released_through:
            self.spool.release_through(number)

    def take_lines(
        self, max_bytes: int, now: float, max_line: int = UNLIMITED
    ) -> tuple[int, list[bytes]]:
        """The next messages, about `max_bytes` together, and the number of the first record told.

        At least one if there is any that can be read. What was lost before them is told first, and
        what is longer than `max_line` is left out and told. `now` is in seconds since 1970.
        """
        spool, start = self.spool, self.position
        first, lines = spool.read(start, max_bytes)
        self.position = first + len(lines)
        if lines and max(map(len, lines)) > max_line:
            lines = [
                line if len(line) <= max_line else self._gap_message(n, n, "too-large", now)
                for n, line in enumerate(lines, first)
            ]
        if first > start:
            gap = self._gap_message(start, first - 1, spool.hole_reason(start), now)
            lines = [gap, *lines]
        return start, lines

    def _gap_message(self, first: int, last: int, reason: str, now: float) -> bytes:
        count = self._count_lost(first, last)
        return encode_gap(Gap(self.session_id, first, last, count, reason), now)

    def _count_lost(self, first: int, last: int) -> int:
        """How many records are lost with these numbers."""
        return last + 1 - first


@dataclass(slots=True)
class _Loss:
    """Numbers of records that were given up."""

    first: int
    last: int
    count: int
    """records; more than numbers if some were lost before they had any"""


class ClientSession(KeptSession):
    """The session that this process traces, with the client's side of the JavaScript rule.

    `trace` may be called from any thread, the rest from one thread only.
    """

    def __init__(
        self, spool: Spooled, queue: TraceQueue, props: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(spool)
        self.lost = 0
        """records that the server was told it will not get"""
        self._queue = queue
        self._props: dict[str, Any] = {}
        self._encoded_props: Raw | None = None
        self._delivered = -1  # last number that a transport once delivered, or a server holds
        self._confirmed = -1  # the same for the present connection
        self._losses: list[_Loss] = []  # told, or to be told, and not yet seen by a server
        if props is not None:
            self.add_props(props)

    # -- records

    def add_props(self, props: Mapping[str, Any]) -> None:
        """Merge `props` into those that go along with every later record."""
        self._props = {**self._props, **props}
        self._encoded_props = client_props(self._props)

    def trace(self, trace: Trace, now: float) -> None:
        """Take a trace in, from any thread; about half a microsecond, and never waits.

        `now` is the time of the trace, in seconds since 1970. The record gets its number when
        `drain` reaches it. Values inside props that the application changes until then are sent
        as changed.
        """
        size = 0
        props = trace.caller_props
        if props is not None:
            for value in props.values():
                if type(value) is str or type(value) is bytes:
                    size += len(value)
        self._queue.append((now, trace, self._encoded_props), size)

    def log(self, entry: LogEntry, now: float) -> None:
        """Take a log message in, as `trace` does a trace."""
        self._queue.append((now, entry, self._encoded_props), entry.text_size)

    def drain(self, now: float, limit: int = 256) -> int:
        """Record up to `limit` traces and log messages that were taken in; returns how many."""
        spool, queue, session_id = self.spool, self._queue, self.session_id
        number = spool.next_number
        messages: list[bytes] = []
        pending = queue.take_pending(limit)
        # Only now: what gave way meanwhile was older, and whoever flushes is to find it told.
        overflow = queue.take_overflow()
        if overflow:
            self._remember_loss(number, number, overflow)
            gap = Gap(session_id, number, number, overflow, "queue-full")
            messages.append(encode_gap(gap, now))
            number += 1
        for number, (timestamp, item, props) in enumerate(pending, number):  # noqa: B020
            encode: Any = encode_log if type(item) is LogEntry else encode_trace
            try:
                message = encode(item, timestamp, session_id, number, props)
            except BaseException:  # one made by hand may hold anything; the others are not to pay
                self._remember_loss(number, number, 1)
                message = encode_gap(Gap(session_id, number, number, 1, "unserialisable"), now)
            messages.append(message)
        if messages:
            spool.put(messages)
        return len(pending)

    @property
    def unconfirmed(self) -> int:
        """Records that may not have reached the server; 0 exactly if all that are kept have.

        Records that were given up do not count. Traces not yet drained may count double.
        """
        return self.spool.next_number - self.first_unconfirmed + self._queue.pending

    @property
    def first_unconfirmed(self) -> int:
        """The lowest number that is kept and may not have reached the server; the next number to be
        given if there is none. Falls back when a server turns out to have lost records."""
        return max(self.spool.first_number, self._confirmed + 1)

    def is_delivered(self, number: int) -> bool:
        """Whether a server has all below `number`, or was told what it will not get."""
        return number <= self._confirmed + 1

    @property
    def all_delivered(self) -> bool:
        """`is_delivered` for everything that was taken in."""
        return self.is_delivered(self.spool.next_number) and not self._queue.pending

    # -- what a server has

    def resume_after(self, number: int) -> None:
        if number >= self.spool.next_number:
            raise BadAnswer("the server claims to have seen records that were never sent")
        super().resume_after(number)
        # Even if more was delivered once: this server has no more.
        self._delivered = self._confirmed = self.position - 1

    def release_through(self, number: int) -> None:
        super().release_through(number)
        self._losses = [loss for loss in self._losses if loss.last > number]
        self._confirmed = max(self._confirmed, number)
        self._delivered = max(self._delivered, number)

    # -- the JavaScript rule

    def greeted(self, session_id: str | None, number: int | None) -> None:
        """Begin a connection to a server whose last seen session and number these are.

        Raises:
            BadGreeting: close the connection; nothing was forgotten.
        """
        if session_id == self.session_id:
            number = -1 if number is None else number
            if not -1 <= number < self.spool.next_number:
                raise BadGreeting("the server claims to have seen records that were never sent")
            self.resume_after(number)
            return
        # This server knows nothing of the session: all that is kept goes out again. What was
        # delivered and is no longer kept may be in another server's log: no loss to tell.
        first = self.spool.first_number
        self.position = min(self._delivered + 1, first)
        self._confirmed = min(self._confirmed, first - 1)

    @property
    def last_sent_number(self) -> int:
        """Number of the last message handed out in this connection, for `transport_confirmed`."""
        return self.position - 1

    def transport_confirmed(self, number: int) -> None:
        """The peer's transport has acknowledged all messages of this connection up to `number`."""
        if self._confirmed < number < self.position:
            self._confirmed = number
            self._delivered = max(self._delivered, number)

    def release_confirmed(self) -> None:
        """The process ends: forget what a transport has confirmed, too.

        For a server that acknowledges nothing there is no better knowledge to come.
        """
        self.release_through(self._confirmed)

    # -- losses

    def _count_lost(self, first: int, last: int) -> int:
        """Counts each record that is lost with these numbers once, however often it is told.

        The gap takes the place of the losses within: of messages for lost records that were given
        up themselves, and of what was told in an earlier connection and did not arrive.
        """
        count = last + 1 - first
        kept: list[_Loss] = []
        for loss in self._losses:
            if first <= loss.last <= last:
                self.lost -= loss.count
                before = max(first - loss.first, 0)
                if before:
                    kept.append(_Loss(loss.first, first - 1, before))
                    self.lost += before
                count += loss.count - (loss.last - loss.first + 1)
            else:
                kept.append(loss)
        self._losses = kept
        self._remember_loss(first, last, count)
        return count

    def _remember_loss(self, first: int, last: int, count: int) -> None:
        self.lost += count
        self._losses.append(_Loss(first, last, count))
        del self._losses[:-MAX_LOSSES]
