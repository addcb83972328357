"""Which peers a relay brings together: tokens that wait, tokens that found each other, and limits.

Theory of operation. A pair has two halves, the initiator's and the other one; each names the same
token on a connection of its own. The first waits, the second makes the pair, and the token is in
use until the pair has ended.

    nothing ──request──▶ waiting ──request in the other role──▶ paired ──end──▶ nothing
    waiting ──unpair, leave, time-out──▶ nothing

Compat: blind-relay index.js keeps a half for as long as its connection lasts, and without limit.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from hyperlog.dht.relay.messages import Pair

__all__ = ["Half", "Match", "Pairings", "Refusal"]

S = TypeVar("S", bound=Hashable)

MAX_PAIRS: Final = 512
MAX_PAIRS_PER_SESSION: Final = 16  # halves that wait included
MAX_WAITING: Final = 2048  # halves of all sessions
WAIT_TIMEOUT: Final = 30.0  # s; JavaScript peers give up after 15


class Refusal(enum.Enum):
    """Why a request gets nothing."""

    TOO_MANY_PAIRS = "too many pairs"
    TOO_MANY_OF_SESSION = "too many pairs of one connection"
    TOO_MANY_WAITING = "too many waiting"
    TOKEN_IN_USE = "the token is in use"


@dataclass(slots=True, eq=False)
class Half(Generic[S]):
    """One side of a pair."""

    session: S
    is_initiator: bool
    stream_id: int
    """UDX stream id of that peer"""


@dataclass(slots=True, eq=False)
class Match(Generic[S]):
    """Two halves that belong together."""

    token: bytes = field(repr=False)
    halves: tuple[Half[S], Half[S]]


@dataclass(slots=True)
class _Waiting(Generic[S]):
    half: Half[S]
    expires_at: float


class Pairings(Generic[S]):
    """All tokens of one relay. A session is whatever stands for one connection."""

    def __init__(
        self,
        *,
        max_pairs: int = MAX_PAIRS,
        max_pairs_per_session: int = MAX_PAIRS_PER_SESSION,
        max_waiting: int = MAX_WAITING,
        wait_timeout: float = WAIT_TIMEOUT,
    ) -> None:
        """`wait_timeout` in seconds."""
        self._max_pairs = max_pairs
        self._max_pairs_per_session = max_pairs_per_session
        self._max_waiting = max_waiting
        self._wait_timeout = wait_timeout
        # In the order of expiry, since all wait equally long.
        self._waiting: dict[bytes, _Waiting[S]] = {}
        self._paired: dict[bytes, Match[S]] = {}
        self._of_session: dict[S, dict[bytes, None]] = {}

    @property
    def waiting(self) -> int:
        """Halves that wait for their other one."""
        return len(self._waiting)

    @property
    def paired(self) -> int:
        """Pairs that have not ended."""
        return len(self._paired)

    def count_of(self, session: S) -> int:
        """Tokens of a session, waiting or paired."""
        return len(self._of_session.get(session, ()))

    def request(self, session: S, pair: Pair, now: float) -> Match[S] | Refusal | None:
        """Take a half; returns the pair when it was the second, None when it has to wait.

        A second half in the same role is ignored, as blind-relay does.
        """
        token = pair.token
        waiting = self._waiting.get(token)
        if waiting is not None and waiting.half.is_initiator == pair.is_initiator:
            return None
        if token in self._paired:
            return Refusal.TOKEN_IN_USE
        if self.count_of(session) >= self._max_pairs_per_session and not (
            waiting is not None and waiting.half.session == session
        ):
            return Refusal.TOO_MANY_OF_SESSION
        half = Half(session, pair.is_initiator, pair.id)
        if waiting is None:
            if len(self._waiting) >= self._max_waiting:
                return Refusal.TOO_MANY_WAITING
            self._waiting[token] = _Waiting(half, now + self._wait_timeout)
            self._note(session, token)
            return None
        if len(self._paired) >= self._max_pairs:
            return Refusal.TOO_MANY_PAIRS
        del self._waiting[token]
        match = Match(token, (waiting.half, half))
        self._paired[token] = match
        self._note(session, token)
        return match

    def unpair(self, session: S, token: bytes) -> Match[S] | None:
        """A session takes its half back; the pair to end, if there is one.

        The token of a half that waits may be anybody's, as in blind-relay: it is a secret.
        """
        waiting = self._waiting.pop(token, None)
        if waiting is not None:
            self._forget(token, waiting.half)
            return None
        match = self._paired.get(token)
        if match is None or all(half.session != session for half in match.halves):
            return None
        return match

    def leave(self, session: S) -> list[Match[S]]:
        """A session is over: its halves wait no more. Returns the pairs that it was part of."""
        left = []
        for token in list(self._of_session.get(session, ())):
            if token in self._paired:
                left.append(self._paired[token])
            else:
                self._forget(token, self._waiting.pop(token).half)
        return left

    def end(self, match: Match[S]) -> None:
        """A pair has ended: its token is free again, and so is its place."""
        if self._paired.get(match.token) is match:
            del self._paired[match.token]
            for half in match.halves:
                self._forget(match.token, half)

    def expire(self, now: float) -> list[tuple[bytes, Half[S]]]:
        """Remove the halves that have waited for too long, and return them with their tokens."""
        expired = []
        for token, waiting in self._waiting.items():
            if waiting.expires_at > now:
                break
            expired.append((token, waiting.half))
        for token, half in expired:
            del self._waiting[token]
            self._forget(token, half)
        return expired

    def _note(self, session: S, token: bytes) -> None:
        self._of_session.setdefault(session, {})[token] = None

    def _forget(self, token: bytes, half: Half[S]) -> None:
        tokens = self._of_session.get(half.session, {})
        tokens.pop(token, None)
        if not tokens:
            self._of_session.pop(half.session, None)
