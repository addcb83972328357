"""Records that come in a request of their own: what becomes of each.

A record may have a session and a number, as in docs/protocol/session.md: then it is written once
however often the request is repeated, and requests of one session have to follow each other. Or it
has none of the two: then the server gives it some, and whoever repeats it has it twice.

Nothing here waits or writes; `Posting` is to one request what `ServerConversation` is to a
connection.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from hyperlog.errors import BadRecord
from hyperlog.records import ClientRecord, iso_time, parse_client_message_untrusted
from hyperlog.resume import Arrivals, Received, ResumeState

__all__ = ["Numbering", "Posting"]

SESSION_DIGITS: Final = 18


class _Numbers(Struct, rename="camel", gc=False):
    trace_session_id: Raw | UnsetType = UNSET
    trace_number: Raw | UnsetType = UNSET
    trace_timestamp: Raw | UnsetType = UNSET


_decode_numbers = msgspec.json.Decoder(_Numbers).decode


def _random_session() -> str:
    # Nobody gains anything by guessing one: it is told in the log.
    return str(random.randrange(10 ** (SESSION_DIGITS - 1), 10**SESSION_DIGITS))


@dataclass(slots=True)
class Numbering:
    """The session that the server counts a source's records in that bring no number."""

    new_session: Callable[[], str] = _random_session
    session_id: str | None = None
    next_number: int = 0
    _generation: int = -1

    def ready(self, generation: int) -> str:
        """The session to count in. After a failed write it is another one: numbers that were given
        to what is lost now do not come again."""
        if self.session_id is None or self._generation != generation:
            self.session_id, self.next_number = self.new_session(), 0
            self._generation = generation
        return self.session_id


@dataclass(slots=True)
class Posting:
    """The messages of one request."""

    source: bytes
    resume: ResumeState
    numbering: Numbering
    user: str
    """name of the user in lines of records that tell none"""
    tags: bytes
    """of the lines, from `line_tags`"""
    max_record: int
    """bytes"""
    reasons: list[str | None] = field(default_factory=list)
    """for each message taken so far, in their order: None, or why it is not taken"""
    records: int = 0
    """made into lines"""
    repeats: int = 0
    dropped: int = 0

    def take(self, messages: Sequence[bytes], now: float) -> Received:
        """What the next messages become; `now` is in seconds since 1970. Their reasons follow."""
        arrivals = Arrivals(self.source, self.resume, self.user)
        arrivals.tags = self.tags
        received = arrivals.begin(now)
        time = iso_time(now)
        for data in messages:
            try:
                record = self._record(data, time)
            except BadRecord as error:
                self.reasons.append(str(error))
                self.dropped += 1
                continue
            if record.session_id != arrivals.session_id:
                arrivals.enter(record.session_id)
            arrivals.add(record)
            self.reasons.append(None)
        arrivals.end_session()
        self.records += arrivals.records
        self.repeats += arrivals.repeats
        self.dropped += arrivals.dropped
        return received

    def _record(self, data: bytes, time: str) -> ClientRecord:
        if len(data) > self.max_record:
            raise BadRecord(f"a record has at most {self.max_record} bytes, this has {len(data)}")
        try:
            numbers = _decode_numbers(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # The parser knows better what is wrong with it, and what can be mended.
            return parse_client_message_untrusted(data, self.max_record)
        session, number = numbers.trace_session_id, numbers.trace_number
        if session is not UNSET and number is not UNSET:
            return parse_client_message_untrusted(data, self.max_record)
        if session is not UNSET or number is not UNSET:
            raise BadRecord("traceSessionId and traceNumber go together: tell both or none")
        numbering = self.numbering
        session_id = numbering.ready(self.resume.generation)
        head = b'"traceSessionId":"%b","traceNumber":%d' % (
            session_id.encode(),
            numbering.next_number,
        )
        if numbers.trace_timestamp is UNSET:
            head = b'"traceTimestamp":"%b",%b' % (time.encode(), head)
        rest = data.strip()[1:].lstrip()
        stamped = b"{%b%b%b" % (head, b"" if rest == b"}" else b",", rest)
        record = parse_client_message_untrusted(stamped, self.max_record + len(head) + 1)
        numbering.next_number += 1
        return record
