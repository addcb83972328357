"""What a server knows of one client's sessions, and how records become lines because of it.

Each session of a key has two numbers: how far it was *received*, that is handed over to be written,
and how far it was *written* for good. What has been received is passed over when it comes again;
what has been written may be acknowledged. After a failed write the first falls back to the second,
and all connections of the key begin anew.

Numbers of a session only grow. A number that is skipped is noted and never asked for again: that is
what makes it impossible to write a record twice, whatever connections carry it.

Source: hypertrace-logger server.js; docs/protocol/trace-protocol.md section 2, session.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from hyperlog.errors import SessionRewound
from hyperlog.records import (
    MAX_SESSIONS,
    ClientRecord,
    Gap,
    gap_line,
    iso_time,
    note_line,
    record_line,
    user_id_untrusted,
)

__all__ = ["Arrivals", "Received", "ResumeState"]


@dataclass(slots=True)
class Progress:
    """How far one session of a key has come; -1 for nothing."""

    received: int = -1
    """last number handed over to be written"""
    written: int = -1


@dataclass(slots=True)
class Received:
    """What some messages of a client have become."""

    lines: list[bytes] = field(default_factory=list)
    """to be appended to the key's log, without newlines"""
    numbers: dict[str, int] = field(default_factory=dict)
    """by session id: what is held once these lines, and all before them, are written"""
    told: dict[str, int] = field(default_factory=dict)
    """by session id: the last number of the batches; other connections may have brought more"""


class ResumeState:
    """What a server remembers of one remote key, shared by all connections of that key.

    Lines must be written in the order in which they were received, over all connections of the
    key. When lines are given up instead, call `rewind` and close these connections.
    """

    def __init__(self, sessions: Iterable[tuple[str, int]] = ()) -> None:
        """`sessions` are (session id, last number written), the most recent last."""
        self.sessions = {id: Progress(number, number) for id, number in sessions}
        """by session id, the one that was heard of most recently last"""
        self.generation = 0
        self._full_at = MAX_SESSIONS
        """sessions; with fewer, none can be dropped for another one, or none has to"""
        self._last_written: str | None = next(reversed(self.sessions), None)
        self._forget()

    @property
    def last_seen(self) -> tuple[str, int] | tuple[None, None]:
        """The session that was written last, and its last number."""
        session_id = self._last_written
        progress = None if session_id is None else self.sessions.get(session_id)
        if session_id is None or progress is None or progress.written < 0:
            return None, None
        return session_id, progress.written

    def written(self, session_id: str) -> int:
        """The highest number that the log holds of a session, as a record or inside a gap."""
        progress = self.sessions.get(session_id)
        return -1 if progress is None else progress.written

    def enter(self, session_id: str) -> tuple[Progress, bool]:
        """The progress of a session, and whether it is new."""
        progress = self.sessions.pop(session_id, None)
        new = progress is None
        if progress is None:
            if len(self.sessions) >= self._full_at:
                self._forget(1)  # before it is there itself, and would be the only one settled
            progress = Progress()
        self.sessions[session_id] = progress
        return progress, new

    def commit(self, numbers: Mapping[str, int]) -> None:
        """The lines that brought the sessions to these numbers are written, and all before."""
        for session_id, number in numbers.items():
            progress = self.sessions.get(session_id)
            if progress is not None and number > progress.written:
                progress.written = number
                self._last_written = session_id
                self._full_at = MAX_SESSIONS

    def rewind(self) -> None:
        """Lines were given up: what was received and not written must come again."""
        self.generation += 1
        self.sessions = {
            id: Progress(progress.written, progress.written)
            for id, progress in self.sessions.items()
            if progress.written >= 0
        }
        self._full_at = MAX_SESSIONS

    def _forget(self, room: int = 0) -> None:
        """Drop the sessions that were silent longest, but none that waits to be written, so that
        there is room for as many others."""
        excess = len(self.sessions) + room - MAX_SESSIONS
        if excess > 0:
            settled = [id for id, p in self.sessions.items() if p.received == p.written]
            for session_id in settled[:excess]:
                del self.sessions[session_id]
            if len(settled) < excess:
                # All that are left wait to be written: to look at each of them for every record
                # of a session of its own would hold up the whole server.
                self._full_at = 2 * len(self.sessions)


class Arrivals:
    """Makes lines of the records that come over one connection."""

    def __init__(self, source: bytes, resume: ResumeState, user: str) -> None:
        """`source` is the key of the log file, `user` the name of records that tell none."""
        self.records = 0
        """records made into lines"""
        self.repeats = 0
        """records that had been received before"""
        self.dropped = 0
        """records that were told to be lost, or could not be taken"""
        self.tags = b""
        """of the lines, from `line_tags`"""
        self.session_id: str | None = None
        """session of the records that are being added"""
        self._key = source.hex()
        self._resume = resume
        self._generation = resume.generation
        self._fallback = user
        self._props = b""
        self._user_id = user_id_untrusted(b"", self._fallback, self._key[:8])
        self._progress = Progress()
        self._received = Received()
        self._time = ""

    @property
    def user_id(self) -> str:
        """The userId of the last record."""
        text: str = msgspec.json.decode(self._user_id)
        return text

    def begin(self, now: float) -> Received:
        """What the following calls fill; `now` is in seconds since 1970.

        Raises:
            SessionRewound: lines were given up since the connection began; close it.
        """
        if self._generation != self._resume.generation:
            raise SessionRewound("a failed write took back what this connection had handed over")
        self._received = Received()
        self._time = iso_time(now)
        return self._received

    @property
    def is_current(self) -> bool:
        """Whether nothing was given up since the connection began."""
        return self._generation == self._resume.generation

    def enter(self, session_id: str) -> None:
        """The following records are of this session."""
        self.end_session()
        self._progress, new = self._resume.enter(session_id)
        self.session_id = session_id
        if new:
            self.note(f"New session from {self._key}. sessionId={session_id}")

    def end_session(self) -> None:
        """All records of the session entered are added."""
        if self.session_id is not None:
            self._received.numbers[self.session_id] = self._progress.received
            self.session_id = None

    def claim(self, session_id: str, number: int) -> None:
        """The client says that records up to `number` were acknowledged and will not come again.

        What this log does not hold of them is told in a gap line. Of a session that it does not
        know at all they may be in another server's log, or in files long removed: that is a note.
        """
        self.end_session()
        if session_id not in self._resume.sessions:
            if number >= 0:
                self.enter(session_id)
                self.note(f"Session continues after {number}: it was acknowledged elsewhere")
                self._progress.received = number
                self.end_session()
            return
        progress = self._resume.sessions[session_id]
        if number > progress.received:
            first = progress.received + 1
            gap = Gap(session_id, first, number, number + 1 - first, "server-lost")
            self._received.lines.append(gap_line(gap, self._time, self.tags))
            progress.received = number
            self._received.numbers[session_id] = number

    def add(self, record: ClientRecord) -> None:
        """A record, or a gap, of the session entered; passed over if it was received before."""
        progress, number, gap = self._progress, record.number, record.gap
        expected = progress.received + 1
        if number < expected:
            self.repeats += 1
            return
        first = number if gap is None else gap.from_number
        if first > expected:
            # The original is silent when the missing ones are a session's first.
            last_seen = progress.received if expected else "null"
            self.note(
                f"Skipped {first - expected} messages! "
                f"lastSeenTraceNumber={last_seen} traceNumber={first}"
            )
        if gap is not None:
            if first < expected:
                gap.count = max(1, gap.count - (expected - first))
                gap.from_number = expected
            self._received.lines.append(gap_line(gap, self._time, self.tags))
            self.dropped += gap.count
        else:
            if record.props != self._props:
                self._props = record.props
                self._user_id = user_id_untrusted(record.props, self._fallback, self._key[:8])
            line = record_line(record, self._time, self._user_id, self.tags)
            self._received.lines.append(line)
            self.records += 1
        progress.received = number

    def refuse(self, session_id: str, number: int) -> None:
        """A record of the session entered that cannot be taken."""
        if number > self._progress.received:
            gap = Gap(session_id, number, number, 1, "server-refused")
            self.add(ClientRecord(session_id, number, b"", b"", gap))

    def tell(self, session_id: str, number: int) -> None:
        """A batch of the session went as far as `number`."""
        self._received.told[session_id] = number

    def note(self, text: str) -> None:
        self._received.lines.append(note_line(text, self._time, self.tags))
