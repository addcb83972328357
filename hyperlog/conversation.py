"""A client's end of one connection: which of its sessions' records are sent when, and what of them
has arrived.

The server speaks first, and by what it says of itself the connection is one of two kinds.

With acknowledgements (version 2), the client names the sessions that it has records of, the server
tells how far it holds each, and the client goes on from there. Records travel in batches; what is
acknowledged is forgotten. The session that the application traces into goes first whenever it has
something; the sessions that other processes left behind use what the pace allows them, so that a
machine that comes back after weeks neither fills its link nor delays what happens now.

By the JavaScript rule only the application's session is sent, and the sessions that were left wait:
such a server tells of one session alone how far it came, so that others could not be sent without
repeating some of their records.

    CLOSED -> GREETING --offer of version 2--> WELCOME -> ACKNOWLEDGING
                  |--none--> JAVASCRIPT

Wire: docs/protocol/session.md, trace-protocol.md section 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from msgspec import UNSET

from hyperlog.control import (
    MAX_SESSIONS_NAMED,
    VERSION,
    Greeting,
    Hello,
    ServerOffer,
    encode_batch,
    encode_hello,
    encode_resume,
    parse_greeting_untrusted,
    parse_server_control_untrusted,
)
from hyperlog.errors import BadAnswer, ServerRefused
from hyperlog.logs import in_javascript_form
from hyperlog.session import ClientSession, KeptSession

__all__ = ["ClientConversation", "Identity", "Pace"]

MAX_BATCH: Final = 256 * 1024  # bytes of records in one message, unless a single one has more
BATCH_OVERHEAD: Final = 512  # bytes of a batch beside its records, at most
UNREADABLE_RETRY: Final = 1.0  # s until records that a disk does not give out are tried again
SMALLEST_SHARE: Final = 64 * 1024  # bytes that the pace must allow before it allows any


@dataclass(frozen=True, slots=True)
class Identity:
    """What a client says of itself to the server."""

    application: str | None = None
    instance: str | None = None
    token: str | None = None


class Pace:
    """How fast sessions that were left behind are sent: a burst, then a rate. For all connections
    of a client, one after the other."""

    def __init__(self, rate: float = 2 * 1024 * 1024, burst: float = 4 * 1024 * 1024) -> None:
        """`rate` is in bytes per second, `burst` in bytes."""
        if rate <= 0 or burst <= 0:
            raise ValueError(f"rate and burst are above zero, got {rate} and {burst}")
        self._rate = rate
        self._burst = burst
        self._share = min(SMALLEST_SHARE, burst)
        self._allowed = burst
        self._counted_at: float | None = None

    def take(self, size: int) -> None:
        """`size` bytes are sent."""
        self._allowed -= size

    def allows(self, now: float) -> bool:
        """Whether something may be sent; `now` is in seconds of a clock that is not set back."""
        if self._counted_at is not None:
            passed = max(now - self._counted_at, 0.0)
            self._allowed = min(self._allowed + passed * self._rate, self._burst)
        self._counted_at = now
        return self._allowed >= self._share

    def allows_at(self, now: float) -> float:
        """The earliest time at which something may be sent."""
        if self.allows(now):
            return now
        return now + (self._share - self._allowed) / self._rate


class _State(Enum):
    GREETING = "greeting"
    WELCOME = "welcome"
    ACKNOWLEDGING = "acknowledging"
    JAVASCRIPT = "javascript"


class ClientConversation:
    """One connection, from its opening to its end; make another one for the next."""

    def __init__(
        self,
        session: ClientSession | None,
        left_behind: Iterable[KeptSession] = (),
        *,
        identity: Identity = Identity(),
        pace: Pace | None = None,
    ) -> None:
        """`session` is the application's, None for a client that only sends what was left.

        `left_behind` are sessions of processes that are gone, oldest first.
        """
        self.offer: ServerOffer | None = None
        """what the server says of itself; None before its greeting and with the JavaScript rule"""
        self._session = session
        self._left = list(left_behind)
        self._identity = identity
        self._pace = pace or Pace()
        self._state = _State.GREETING
        self._named: set[str] = set()  # by us, no answer yet
        self._welcomed: dict[str, KeptSession] = {}
        self._answers: list[bytes] = []
        self._unreadable = False  # something that a disk does not give out at present
        self._max_batch = MAX_BATCH
        self._max_line = MAX_BATCH

    # -- state

    @property
    def greeted(self) -> bool:
        """Whether records can be sent: the server has said how far it came."""
        return self._state in (_State.ACKNOWLEDGING, _State.JAVASCRIPT)

    @property
    def acknowledges(self) -> bool:
        """Whether the server acknowledges records. If not, ask the transport what was delivered,
        and tell `ClientSession.transport_confirmed`."""
        return self._state is _State.ACKNOWLEDGING

    @property
    def has_answers(self) -> bool:
        """Whether `messages_to_send` has something to say to what was received."""
        return bool(self._answers)

    @property
    def left_behind(self) -> list[KeptSession]:
        """The sessions of other processes of which the server does not yet hold everything."""
        return self._left

    def add_left_behind(self, session: KeptSession) -> None:
        """Another session of a process that is gone was found."""
        self._left.append(session)
        if self._state is _State.ACKNOWLEDGING:
            self._name_more()

    def take_delivered(self) -> list[KeptSession]:
        """Sessions left behind of which the server now holds everything; each is told once."""
        delivered = [kept for kept in self._left if kept.spool.finished]
        if delivered:
            self._left = [kept for kept in self._left if not kept.spool.finished]
            for kept in delivered:
                self._welcomed.pop(kept.session_id, None)
            if self._state is _State.ACKNOWLEDGING:
                self._name_more()
        return delivered

    # -- in

    def receive_message(self, data: bytes) -> None:
        """Take a message of the server.

        Raises:
            BadGreeting: its first message is none. Close the connection; nothing was forgotten.
            BadAnswer: a later one breaks the rules; close the connection.
            ServerRefused: the server wants nothing of this client and ends the connection.
        """
        if not data or self._state is _State.JAVASCRIPT:
            return
        if self._state is _State.GREETING:
            self._take_greeting(parse_greeting_untrusted(data))
            return
        control = parse_server_control_untrusted(data)
        if control.refused is not UNSET:
            raise ServerRefused(control.refused.code, control.refused.reason)
        if control.welcome is not UNSET:
            self._take_welcome(control.welcome.sessions)
        if control.ack is not UNSET:
            for session_id, number in control.ack.sessions.items():
                kept = self._welcomed.get(session_id)
                if kept is not None:  # else it is a repeated one, of a session that is done
                    kept.acknowledge(number)

    def _take_greeting(self, greeting: Greeting) -> None:
        offer = greeting.hyperlog
        if not isinstance(offer, ServerOffer) or offer.version < VERSION:
            if self._session is not None:
                self._session.greeted(
                    greeting.last_seen_trace_session_id, greeting.last_seen_trace_number
                )
            self._state = _State.JAVASCRIPT
            return
        self.offer = offer
        self._max_line = max(min(offer.max_record, offer.max_message - BATCH_OVERHEAD), 1)
        self._max_batch = min(MAX_BATCH, self._max_line)
        self._state = _State.WELCOME
        sessions = self._name()
        identity = self._identity
        hello = Hello(
            sessions,
            application=identity.application,
            instance=identity.instance,
            token=identity.token,
        )
        self._answers.append(encode_hello(hello))

    def _name(self) -> dict[str, int]:
        """The sessions to tell the server of now, with what it once acknowledged."""
        free = MAX_SESSIONS_NAMED - len(self._named) - len(self._welcomed)
        own = self._session
        if own is not None and own.session_id not in self._welcomed:
            free -= 1
        named = []
        for kept in self._left:
            if free <= 0:
                break
            if kept.session_id not in self._welcomed and kept.session_id not in self._named:
                named.append(kept)
                free -= 1
        if self._state is _State.WELCOME and own is not None:
            named.append(own)
        sessions = {kept.session_id: kept.spool.released_through for kept in named}
        self._named.update(sessions)
        return sessions

    def _name_more(self) -> None:
        sessions = self._name()
        if sessions:
            self._answers.append(encode_resume(sessions))

    def _take_welcome(self, sessions: dict[str, int]) -> None:
        known = {kept.session_id: kept for kept in self._left}
        if self._session is not None:
            known[self._session.session_id] = self._session
        for session_id, number in sessions.items():
            if session_id not in self._named:
                raise BadAnswer("the server welcomes a session that was not named")
            self._named.discard(session_id)
            kept = known.get(session_id)
            if kept is not None:
                kept.resume_after(number)
                self._welcomed[session_id] = kept
        self._state = _State.ACKNOWLEDGING

    # -- out

    def messages_to_send(self, max_bytes: int, now: float, clock: float) -> list[bytes]:
        """The next messages, about `max_bytes` together; [] before the server is ready for them.

        `now` is in seconds since 1970, `clock` in seconds of a clock that is not set back.
        """
        messages, self._answers = self._answers, []
        self._unreadable = False
        own = self._session
        if self._state is _State.JAVASCRIPT:
            if own is not None and own.unsent:
                lines = own.take_lines(max_bytes, now)[1]
                self._unreadable = not lines
                messages += map(in_javascript_form, lines)
        elif self._state is _State.ACKNOWLEDGING:
            size = 0
            if own is not None and own.session_id in self._welcomed:
                while own.unsent and size < max_bytes:
                    added = self._add_batch(own, messages, now)
                    if not added:
                        break
                    size += added
            size += self._add_left_behind(messages, max_bytes - size, now, clock)
        return messages

    def _add_left_behind(
        self, messages: list[bytes], max_bytes: int, now: float, clock: float
    ) -> int:
        """One share at least if the pace allows, so that a busy application cannot hold it up."""
        total = 0
        for kept in self._left:
            while kept.session_id in self._welcomed and kept.unsent:
                if (total and total >= max_bytes) or not self._pace.allows(clock):
                    return total
                size = self._add_batch(kept, messages, now)
                if not size:
                    break
                self._pace.take(size)
                total += size
        return total

    def _add_batch(self, kept: KeptSession, messages: list[bytes], now: float) -> int:
        first, lines = kept.take_lines(self._max_batch, now, self._max_line)
        if not lines:
            self._unreadable = True
            return 0
        message = encode_batch(kept.session_id, first, lines)
        messages.append(message)
        return len(message)

    def next_send_at(self, clock: float) -> float | None:
        """When `messages_to_send` has something again without new records; None for never."""
        if self._answers:
            return clock
        if self._unreadable:
            return clock + UNREADABLE_RETRY
        if self._state is not _State.ACKNOWLEDGING:
            return None
        if any(kept.unsent and kept.session_id in self._welcomed for kept in self._left):
            return self._pace.allows_at(clock)
        return None
