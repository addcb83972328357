"""One client's numbered run of records, seen from both ends; no IO.

A client numbers its records from 0 under a random session id. Whenever a connection opens, the
server says first which session and number it saw last from this key, and the client goes on from
there. In the JavaScript protocol nothing else flows back, so the rules of keeping and repeating
carry the whole load:

- The client keeps what it has sent until a *greeting* shows that the server wrote it, or until the
  spool has no room. That the transport delivered a record is enough for `flush`, but not for
  forgetting: the server may end between receiving and writing.
- The server's last seen number follows the *written* lines only, so that whatever was not written
  is asked for again.
- A number that was seen is not written again, and numbers that are missing are noted. Records that
  the client had to give up are told by it in a gap message with the number of the last of them, so
  that the JavaScript server counts on from there too.

A later protocol with acknowledgements will be announced by additional fields of the greeting;
fields that are not known are ignored here.

Client states:

    CLOSED --connection_opened--> GREETING --receive_message--> READY
       ^------------------- connection_closed --------------------'

Source: hypertrace-logger client.js, server.js; docs/protocol/trace-protocol.md sections 1, 2 and 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec import Raw, Struct

from hyperlog.errors import BadGreeting, BadRecord, SessionRewound
from hyperlog.records import (
    MAX_MESSAGE_SIZE,
    ClientRecord,
    Gap,
    client_props,
    encode_gap,
    encode_trace,
    gap_line,
    iso_time,
    note_line,
    parse_client_message_untrusted,
    record_line,
    user_id_untrusted,
)
from hyperlog.spool import MemorySpool

if TYPE_CHECKING:
    from hyperlog.trace import Trace

__all__ = ["ClientSession", "PendingTrace", "ResumeState", "ServerSession"]

MAX_LOSSES = 1024  # losses remembered until a server has seen them; older ones only count
MAX_GREETING_SIZE = 64 * 1024  # bytes
MAX_SESSIONS = 64  # sessions remembered of one key
MAX_BAD_MESSAGES = 100  # of one connection, then it is to be closed

PendingTrace: TypeAlias = tuple[float, "Trace", Raw | None]


class _Greeting(Struct, rename="camel"):
    last_seen_trace_session_id: str | None = None
    last_seen_trace_number: int | None = None


_encode = msgspec.json.Encoder().encode
_decode_greeting = msgspec.json.Decoder(_Greeting).decode


class _State(Enum):
    CLOSED = "closed"
    GREETING = "greeting"
    READY = "ready"


@dataclass(slots=True)
class _Loss:
    """Numbers of records that were given up."""

    first: int
    last: int
    count: int
    """records; more than numbers if some were lost before they had any"""


class ClientSession:
    """The client's end. `trace` may be called from any thread, the rest from one thread only."""

    def __init__(
        self,
        session_id: str,
        spool: MemorySpool[PendingTrace],
        props: Mapping[str, Any] | None = None,
    ) -> None:
        """`session_id` is a text of decimal digits that no other run of this key uses."""
        self.session_id = session_id
        self.lost = 0
        """records that the server was told it will not get"""
        self._spool = spool
        self._props: dict[str, Any] = {}
        self._encoded_props: Raw | None = None
        self._state = _State.CLOSED
        self._delivered = -1  # last number that the transport once delivered, or a server showed
        self._confirmed = -1  # the same for the present connection
        self._position = 0  # number that the server expects next
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
        self._spool.append((now, trace, self._encoded_props), size)

    def drain(self, now: float, limit: int = 256) -> int:
        """Record up to `limit` traces that were taken in; returns how many."""
        overflow = self._spool.take_overflow()
        if overflow:
            self.record_loss(overflow, "queue-full", now)
        pending = self._spool.take_pending(limit)
        for timestamp, trace, props in pending:
            self.record(trace, timestamp, props)
        return len(pending)

    def record(self, trace: Trace, timestamp: float, props: Raw | None = None) -> int:
        """Encode a trace, give it the next number and keep it; returns the number.

        `timestamp` is the time of the trace, `props` are the client's of that time, from
        `client_props`.
        """
        number = self._spool.next_number
        return self._spool.put(encode_trace(trace, timestamp, self.session_id, number, props))

    def record_loss(self, count: int, reason: str, now: float) -> int:
        """Tell the server, in order with the records, that `count` never got a number."""
        number = self._spool.next_number
        self._remember_loss(number, number, count)
        return self._spool.put(encode_gap(Gap(self.session_id, number, number, count, reason), now))

    @property
    def unconfirmed(self) -> int:
        """Records that may not have reached the server; 0 exactly if all that are kept have.

        Records that were given up do not count. Traces not yet drained may count double.
        """
        return self._spool.next_number - self.first_unconfirmed + self._spool.pending

    @property
    def first_unconfirmed(self) -> int:
        """The lowest number that is kept and may not have reached the server; the next number to be
        given if there is none. Falls back when a server turns out to have lost records."""
        return max(self._spool.first_number, self._confirmed + 1)

    # -- connection

    def connection_opened(self) -> None:
        self._state = _State.GREETING

    def connection_closed(self) -> None:
        self._state = _State.CLOSED

    def receive_message(self, data: bytes) -> None:
        """Take a message of the server: the greeting. Later ones mean nothing in this protocol.

        Raises:
            BadGreeting: close the connection; nothing was forgotten.
        """
        if self._state is not _State.GREETING or not data:
            return
        if len(data) > MAX_GREETING_SIZE:
            raise BadGreeting(f"greeting of {len(data)} bytes")
        try:
            greeting = _decode_greeting(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadGreeting(f"the server's first message is no greeting: {error}") from None
        spool = self._spool
        seen = greeting.last_seen_trace_number
        if greeting.last_seen_trace_session_id == self.session_id:
            seen = -1 if seen is None else seen
            if not -1 <= seen < spool.next_number:
                raise BadGreeting("the server claims to have seen records that were never sent")
            spool.release_through(seen)
            self._losses = [loss for loss in self._losses if loss.last > seen]
            # Even if more was delivered once: this server has no more.
            self._delivered = self._confirmed = seen
            spool.delivered_through(seen)
            self._position = seen + 1
        else:
            # This server knows nothing of the session: all that is kept goes out again. What was
            # delivered and is no longer kept may be in another server's log: no loss to tell.
            self._position = min(self._delivered + 1, spool.first_number)
            self._confirmed = min(self._confirmed, spool.first_number - 1)
        spool.rewind()
        self._state = _State.READY

    def messages_to_send(self, max_bytes: int, now: float) -> list[bytes]:
        """The next messages, one frame each, about `max_bytes` together; [] before the greeting.

        Records that had to be given up are told first. `now` is in seconds since 1970.
        """
        if self._state is not _State.READY:
            return []
        spool = self._spool
        told: list[bytes] = []
        if self._position < spool.send_number:
            told.append(encode_gap(self._gap_before(spool.send_number), now))
        batch = spool.next_batch(max_bytes)
        self._position = spool.send_number
        return told + batch if told else batch

    def _gap_before(self, number: int) -> Gap:
        """The gap from what the server expects up to before `number`.

        It takes the place of the losses within: of messages for lost records that were given up
        themselves, and of what was told in an earlier connection and did not arrive.
        """
        first, last = self._position, number - 1
        count = number - first
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
        return Gap(self.session_id, first, last, count, "buffer-full")

    def _remember_loss(self, first: int, last: int, count: int) -> None:
        self.lost += count
        self._losses.append(_Loss(first, last, count))
        del self._losses[:-MAX_LOSSES]

    @property
    def last_sent_number(self) -> int:
        """Number of the last message handed out in this connection, for `transport_confirmed`."""
        return self._position - 1

    def transport_confirmed(self, number: int) -> None:
        """The peer's transport has acknowledged all messages of this connection up to `number`."""
        if self._state is _State.READY and self._confirmed < number < self._position:
            self._confirmed = number
            self._delivered = max(self._delivered, number)
            self._spool.delivered_through(self._delivered)


@dataclass(slots=True)
class _Progress:
    """How far one session of a key has come."""

    received: int = -1
    """last number handed over to be written"""
    written: int = -1


class ResumeState:
    """What a server remembers of one remote key, shared by all connections of that key.

    Lines must be written in the order in which they were received, over all connections of the
    key. After a failed write call `rewind` and close these connections.
    """

    def __init__(self, sessions: Iterable[tuple[str, int]] = ()) -> None:
        """`sessions` are (session id, last number written), the most recent last."""
        self.sessions = {id: _Progress(number, number) for id, number in sessions}
        """by session id, the one written most recently last"""
        self.generation = 0
        self._forget()

    @property
    def last_seen(self) -> tuple[str, int] | tuple[None, None]:
        """The session that was written last, and its last number."""
        for session_id in reversed(self.sessions):
            number = self.sessions[session_id].written
            if number >= 0:
                return session_id, number
        return None, None

    def rewind(self) -> None:
        """A write failed: what was received and not written must come again."""
        self.generation += 1
        self.sessions = {
            id: _Progress(progress.written, progress.written)
            for id, progress in self.sessions.items()
            if progress.written >= 0
        }

    def _enter(self, session_id: str) -> tuple[_Progress, bool]:
        progress = self.sessions.get(session_id)
        if progress is not None:
            return progress, False
        progress = self.sessions[session_id] = _Progress()
        self._forget()
        return progress, True

    def _commit(self, session_id: str, number: int) -> None:
        progress = self.sessions.pop(session_id, None) or _Progress(number)
        progress.written = max(progress.written, number)
        self.sessions[session_id] = progress
        self._forget()

    def _forget(self) -> None:
        while len(self.sessions) > MAX_SESSIONS:
            del self.sessions[next(iter(self.sessions))]


class ServerSession:
    """The server's end of one connection: messages in, log lines out."""

    def __init__(
        self,
        remote_key: bytes,
        resume: ResumeState,
        connection_number: int,
        max_message_size: int = MAX_MESSAGE_SIZE,
    ) -> None:
        """`connection_number` counts the connections of the server, for the name `User-<n>`."""
        self.records = 0
        """records made into lines"""
        self.repeats = 0
        """records that had been seen before"""
        self.bad_messages = 0
        self.violation: str | None = None
        """why the connection is to be closed, once it is; its messages are then ignored"""
        self.session_id: str | None = None
        """session of the last record"""
        self._key = remote_key.hex()
        self._resume = resume
        self._generation = resume.generation
        self._fallback = f"User-{connection_number}"
        self._max_message_size = max_message_size
        self._progress = _Progress()
        self._unwritten: dict[str, int] = {}
        self._props = b""
        self._user_id = user_id_untrusted(b"", self._fallback, self._key[:8])

    def greeting(self) -> bytes:
        """The first message of the connection."""
        return _encode(_Greeting(*self._resume.last_seen))

    @property
    def user_id(self) -> str:
        """The userId of the last record."""
        text: str = msgspec.json.decode(self._user_id)
        return text

    def receive_messages(self, messages: Sequence[bytes], now: float) -> list[bytes]:
        """The lines, without newline, that these messages make: records, and notes about them.

        Call `written` once they are. `now` is in seconds since 1970. A bad message is counted and
        the first noted; after MAX_BAD_MESSAGES `violation` is set.

        Raises:
            SessionRewound: a write failed since the greeting; close the connection.
        """
        if self._generation != self._resume.generation:
            raise SessionRewound("a failed write took back what this connection had handed over")
        lines: list[bytes] = []
        time = iso_time(now)
        for data in messages:
            if not data or self.violation is not None:
                continue  # an empty message keeps the connection alive
            try:
                record = parse_client_message_untrusted(data, self._max_message_size)
            except BadRecord as error:
                self._count_bad_message(error, lines, time)
                continue
            if record.session_id != self.session_id:
                self._enter(record.session_id, lines, time)
            if record.number <= self._progress.received:
                self.repeats += 1
                continue
            self._add_lines(record, lines, time)
        return lines

    def written(self) -> None:
        """All lines returned so far are written: the next greeting may say so."""
        if self._generation == self._resume.generation:
            for session_id, number in self._unwritten.items():
                self._resume._commit(session_id, number)
        self._unwritten.clear()

    def closing_lines(self, now: float, error: tuple[str, str] | None = None) -> list[bytes]:
        """Notes for the end of the connection; `error` is the code and text of a socket error."""
        lines = []
        time = iso_time(now)
        if self.bad_messages > 1:
            lines.append(note_line(f"Dropped {self.bad_messages} bad messages!", time))
        if error is not None:
            code, message = error
            lines.append(note_line(f"Socket error. code={code} message={message}", time))
        return lines

    def _enter(self, session_id: str, lines: list[bytes], time: str) -> None:
        self._progress, new = self._resume._enter(session_id)
        self.session_id = session_id
        if new:
            note = f"New session from {self._key}. sessionId={session_id}"
            lines.append(note_line(note, time))

    def _add_lines(self, record: ClientRecord, lines: list[bytes], time: str) -> None:
        progress, number, gap = self._progress, record.number, record.gap
        expected = progress.received + 1
        first = number if gap is None else gap.from_number
        if first > expected:
            # The original is silent when the missing ones are a session's first.
            last_seen = progress.received if expected else "null"
            lines.append(
                note_line(
                    f"Skipped {first - expected} messages! "
                    f"lastSeenTraceNumber={last_seen} traceNumber={first}",
                    time,
                )
            )
        if gap is not None:
            if first < expected:
                gap.count = max(1, gap.count - (expected - first))
                gap.from_number = expected
            lines.append(gap_line(gap, time))
        else:
            if record.props != self._props:
                self._props = record.props
                self._user_id = user_id_untrusted(record.props, self._fallback, self._key[:8])
            lines.append(record_line(record, time, self._user_id))
            self.records += 1
        progress.received = number
        self._unwritten[record.session_id] = number

    def _count_bad_message(self, error: BadRecord, lines: list[bytes], time: str) -> None:
        self.bad_messages += 1
        if self.bad_messages == 1:
            lines.append(note_line(f"Bad message from client: {error}", time))
        if self.bad_messages > MAX_BAD_MESSAGES:
            self.violation = f"more than {MAX_BAD_MESSAGES} bad messages, the last: {error}"
