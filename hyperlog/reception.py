"""A server's end of one connection: greets, finds out what the client speaks, takes its records.

The client's first message decides. With `hello` the connection speaks version 2, with batches and
acknowledgements; without, it is a client of the JavaScript rule, whose every message is a record.

    UNDECIDED --hello--> ACKNOWLEDGING
        |----anything else--> JAVASCRIPT            any --violation--> the connection is to be ended

Nothing here waits or writes: what was received comes back as lines, and when those are durable the
caller says so with `written`, which makes the acknowledgements. `admit` decides who may go on.

Wire: docs/protocol/session.md, trace-protocol.md section 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from msgspec import UNSET

from hyperlog.control import (
    VERSION,
    Batch,
    Greeting,
    Hello,
    Refusal,
    ServerOffer,
    encode_control,
    encode_greeting,
    encode_refusal,
    is_hello_untrusted,
    parse_client_control_untrusted,
)
from hyperlog.errors import BadRecord
from hyperlog.records import (
    MAX_MESSAGE_SIZE,
    iso_time,
    note_line,
    parse_client_message_untrusted,
)
from hyperlog.resume import Arrivals, Received, ResumeState

__all__ = ["Admit", "ReceptionLimits", "ServerConversation"]

MAX_BAD_MESSAGES: Final = 100  # of one connection, then it is to be ended
MAX_ANSWERS: Final = 64  # not yet sent; each may have 10 KiB
MAX_ACKS: Final = 1024  # sessions with an acknowledgement not yet sent

Admit = Callable[[Hello | None], Refusal | None]
"""Asked once, about the hello, or with None about a client of the JavaScript rule; a refusal ends
the connection."""


@dataclass(frozen=True, slots=True)
class ReceptionLimits:
    """Sizes in bytes."""

    max_message: int = MAX_MESSAGE_SIZE
    max_record: int = MAX_MESSAGE_SIZE


class _Rule(Enum):
    UNDECIDED = "undecided"
    JAVASCRIPT = "javascript"
    ACKNOWLEDGING = "acknowledging"


class ServerConversation:
    """Messages in, lines and answers out."""

    def __init__(
        self,
        source: bytes,
        resume: ResumeState,
        connection_number: int,
        *,
        limits: ReceptionLimits = ReceptionLimits(),
        offer: ServerOffer | None = None,
        admit: Admit | None = None,
    ) -> None:
        """`offer` is what the greeting says of this server; None to speak the JavaScript rule only.

        `connection_number` counts the connections of the server, for the name `User-<n>`.
        """
        self.hello: Hello | None = None
        """what the client said of itself; None with the JavaScript rule"""
        self.bad_messages = 0
        self.refusal: Refusal | None = None
        """why the client is turned away, once it is"""
        self.violation: str | None = None
        """why the connection is to be ended, once it is; its messages are then ignored"""
        self._arrivals = Arrivals(source, resume, f"User-{connection_number}")
        self._resume = resume
        self._limits = limits
        self._offer = offer
        self._admit = admit
        self._rule = _Rule.UNDECIDED if offer is not None else _Rule.JAVASCRIPT
        self._answers: list[bytes] = []
        self._acks: dict[str, int] = {}

    @property
    def records(self) -> int:
        """Records made into lines."""
        return self._arrivals.records

    @property
    def repeats(self) -> int:
        """Records that had been received before."""
        return self._arrivals.repeats

    @property
    def dropped(self) -> int:
        """Records that were told to be lost, or could not be taken."""
        return self._arrivals.dropped

    @property
    def admitted(self) -> bool:
        """Whether it is known what the client speaks, and it may."""
        return self._rule is not _Rule.UNDECIDED and self.refusal is None

    def tag(self, tags: bytes) -> None:
        """Have the lines from now on carry `tags`, which are from `line_tags`."""
        self._arrivals.tags = tags

    @property
    def user_id(self) -> str:
        """The userId of the last record."""
        return self._arrivals.user_id

    # -- out

    def greeting(self, now: float) -> bytes:
        """The first message of the connection; `now` is in seconds since 1970."""
        session_id, number = self._resume.last_seen
        offer = UNSET if self._offer is None else self._offer.at(now)
        return encode_greeting(Greeting(session_id, number, offer))

    @property
    def has_messages(self) -> bool:
        """Whether `messages_to_send` has any."""
        return bool(self._answers or self._acks)

    def messages_to_send(self) -> list[bytes]:
        """Answers, and one acknowledgement of all that was written since the last call."""
        messages, self._answers = self._answers, []
        if self._acks:
            messages.append(encode_control("ack", self._acks))
            self._acks = {}
        return messages

    def closing_messages(self) -> list[bytes]:
        """What is to be sent last: why the client is turned away, if it is and understands that."""
        if self.refusal is None or self._rule is _Rule.JAVASCRIPT:
            return []
        return [encode_refusal(self.refusal)]

    def written(self, received: Received) -> None:
        """The lines of `received`, and all that any connection of this key received before, are
        durable: acknowledge them. In the order in which they were received."""
        if not self._arrivals.is_current:
            return
        self._resume.commit(received.numbers)
        if self._rule is _Rule.ACKNOWLEDGING:
            for session_id, number in received.told.items():
                self._acks[session_id] = min(number, self._resume.written(session_id))

    # -- in

    def receive_messages(self, messages: Sequence[bytes], now: float) -> Received:
        """What these messages become; call `written` once it is. `now` is in seconds since 1970.

        A bad message is counted and the first noted; after MAX_BAD_MESSAGES `violation` is set.

        Raises:
            SessionRewound: lines were given up since the connection began; close it.
        """
        received = self._arrivals.begin(now)
        for data in messages:
            if not data or self.violation is not None:
                continue  # an empty message keeps the connection alive
            if self._rule is _Rule.UNDECIDED:
                self._decide(data)
                if self.violation is not None:
                    break
            if self._rule is _Rule.JAVASCRIPT:
                self._take_record(data)
            else:
                self._take_message(data)
        self._arrivals.end_session()
        return received

    def refuse(self, refusal: Refusal) -> None:
        """Turn the client away, now or later; the connection is to be ended."""
        self.refusal = refusal
        self._violate(f"refused: {refusal.reason} ({refusal.code})")

    def closing_lines(self, now: float, error: tuple[str, str] | None = None) -> list[bytes]:
        """Notes for the end of the connection; `error` is the code and text of a socket error."""
        lines: list[bytes] = []
        if self._rule is _Rule.UNDECIDED or (self.refusal is not None and not self.records):
            return lines  # of a stranger there is no trace in the log
        time, tags = iso_time(now), self._arrivals.tags
        if self.bad_messages > 1:
            lines.append(note_line(f"Dropped {self.bad_messages} bad messages!", time, tags))
        if error is not None:
            code, message = error
            lines.append(note_line(f"Socket error. code={code} message={message}", time, tags))
        return lines

    def _decide(self, data: bytes) -> None:
        if is_hello_untrusted(data):
            self._rule = _Rule.ACKNOWLEDGING
            return
        self._rule = _Rule.JAVASCRIPT
        refusal = None if self._admit is None else self._admit(None)
        if refusal is not None:
            self.refuse(refusal)

    def _take_record(self, data: bytes) -> None:
        """One message of the JavaScript rule."""
        try:
            record = parse_client_message_untrusted(data, self._limits.max_record)
        except BadRecord as error:
            self._count_bad_message(error)
            return
        arrivals = self._arrivals
        if record.session_id != arrivals.session_id:
            arrivals.enter(record.session_id)
        arrivals.add(record)

    def _take_message(self, data: bytes) -> None:
        """One message of version 2."""
        if len(data) > self._limits.max_message:
            self._violate(f"message of {len(data)} bytes")
            return
        end = data.find(b"\n")
        try:
            control = parse_client_control_untrusted(data if end < 0 else data[:end])
        except BadRecord as error:
            if self.hello is None:
                self.refuse(Refusal("HELLO", f"the hello cannot be read: {error}"))
            else:
                self._count_bad_message(error)
            return
        if control.batch is not UNSET and self.hello is not None:
            self._take_batch(control.batch, data)
        elif control.hello is not UNSET and self.hello is None:
            self._take_hello(control.hello)
        elif control.resume is not UNSET and self.hello is not None:
            self._welcome(control.resume.sessions)
        else:
            self._violate("a message out of its place")

    def _take_hello(self, hello: Hello) -> None:
        self.hello = hello
        refusal = None
        if hello.version != VERSION:
            refusal = Refusal("VERSION", f"this server speaks version {VERSION}")
        elif self._admit is not None:
            refusal = self._admit(hello)
        if refusal is None:
            self._welcome(hello.sessions)
        else:
            self.refuse(refusal)
        hello.token = None  # nobody needs it any more

    def _welcome(self, sessions: dict[str, int]) -> None:
        if len(self._answers) >= MAX_ANSWERS:
            self._violate("it asks and does not read the answers")
            return
        numbers = {}
        for session_id, claimed in sessions.items():
            self._arrivals.claim(session_id, claimed)
            numbers[session_id] = max(claimed, self._resume.written(session_id))
        self._answers.append(encode_control("welcome", numbers))

    def _take_batch(self, batch: Batch, data: bytes) -> None:
        count = data.count(b"\n")  # before they are cut apart: a message may hold nothing else
        if count != batch.count:
            self._violate(f"a batch of {batch.count} records has {count}")
            return
        if len(self._acks) > MAX_ACKS:
            self._violate(f"more than {MAX_ACKS} sessions on one connection")
            return
        arrivals, session_id = self._arrivals, batch.session
        if session_id != arrivals.session_id:
            arrivals.enter(session_id)
        add, parse, max_size = arrivals.add, parse_client_message_untrusted, self._limits.max_record
        number = batch.from_number
        for line in data.split(b"\n")[1:]:
            try:
                record = parse(line, max_size)
                if record.session_id != session_id:
                    raise BadRecord("it is not of the session that its batch is of")
            except BadRecord as error:
                arrivals.refuse(session_id, number)
                self._count_bad_message(error)
                if self.violation is not None:
                    break
            else:
                number = record.number
                add(record)
            number += 1
        arrivals.tell(session_id, number - 1)

    def _count_bad_message(self, error: BadRecord) -> None:
        self.bad_messages += 1
        if self.bad_messages == 1:
            self._arrivals.note(f"Bad message from client: {error}")
        if self.bad_messages > MAX_BAD_MESSAGES:
            self._violate(f"more than {MAX_BAD_MESSAGES} bad messages, the last: {error}")

    def _violate(self, reason: str) -> None:
        self.violation = reason
