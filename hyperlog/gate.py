"""Service: lets peers in as the list of keys and the limits say, and out when they change.

A peer is at the gate four times: with its handshake, before anything is computed and when nothing
but addresses are known; then with its key, when nothing has been answered yet; when its connection
is open, for a place among the others; and when it has proved its key, which is when it counts for
that key and can be learned. Those who prove nothing are cut off after a while, or when
others need their place; those whose key was taken off the list within a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from hyperlog.access import Access, AccessPolicy
from hyperlog.config import Address
from hyperlog.errors import RateExceeded
from hyperlog.limits import Admission, Limiter, LimitStatistics, ServerLimits

__all__ = ["Gate", "GateStatistics", "Guest", "pace_requests"]

WATCH_INTERVAL: Final = 1.0  # s between two looks at the list and at those who prove nothing
REQUEST_PATIENCE: Final = 5.0  # s that a request waits because its sender was too fast


class Peer(Protocol):
    """What is needed of `hyperlog.dht.Connection`."""

    @property
    def authenticated(self) -> bool: ...

    @property
    def remote_address(self) -> Address | None: ...

    def abort(self) -> None: ...


@dataclass(frozen=True, slots=True)
class GateStatistics:
    allowed_keys: int | None
    """None if any key may come"""
    learning: bool
    refused_keys: int
    """handshakes of keys that are not allowed"""
    limits: LimitStatistics


@dataclass(slots=True, eq=False)
class Guest:
    """One connection that was let in, until `Gate.leave`."""

    key: bytes
    connection: Peer
    place: Admission
    entered_at: float
    listed: bool
    """whether the list of keys decides about it"""


class Gate:
    """For one server; `watch` runs beside it."""

    def __init__(
        self,
        access: AccessPolicy,
        limits: ServerLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds.

        Raises:
            ConfigError: the list of keys cannot be used.
        """
        self._clock = clock
        self._access = Access(access, clock())
        self._limiter = Limiter(limits)
        self._guests: dict[Guest, None] = {}  # in the order in which they came
        self._revision = self._access.revision
        self._blocked: frozenset[bytes] = frozenset()

    @property
    def access(self) -> Access:
        """The list of keys."""
        return self._access

    def block(self, keys: Iterable[bytes]) -> None:
        """These keys, and no others, are let in no more, whatever the list says; open connections
        of theirs end."""
        self._blocked = frozenset(keys)
        for guest in list(self._guests):
            if guest.key in self._blocked:
                guest.connection.abort()

    def disconnect(self, key: bytes) -> int:
        """End the open connections of a key; how many there were. It may come again."""
        guests = [guest for guest in self._guests if guest.key == key]
        for guest in guests:
            guest.connection.abort()
        return len(guests)

    def statistics(self) -> GateStatistics:
        access = self._access
        return GateStatistics(
            access.keys, access.learning, access.refused, self._limiter.statistics()
        )

    def admits(self, client: Address, relay: Address | None) -> bool:
        """What `DHT.listen` asks first: whether a handshake is to be looked at."""
        via = None if relay is None else relay[0]
        return not self._limiter.refuses_handshake(client[0], via, self._clock())

    def refuses(self, key: bytes, payload: object, address: Address) -> bool:
        """The firewall of `DHT.listen`: whether a handshake gets no answer."""
        return key in self._blocked or self._access.refuses(key, self._clock())

    def enter(self, key: bytes, connection: Peer, *, listed: bool = True) -> Guest | None:
        """Let an open connection in; None if there is no place, and it is to be aborted.

        With `listed` false the list of keys does not matter: it came by another way than its key.
        """
        now = self._clock()
        if self._limiter.crowded:
            self._push_out(now)
        place = self._limiter.enter(key, now)
        if place is None or key in self._blocked or (listed and not self._access.allows(key)):
            if place is not None:
                self._limiter.leave(place)
            return None
        guest = Guest(key, connection, place, now, listed)
        self._guests[guest] = None
        return guest

    def identify(self, guest: Guest, key: bytes) -> None:
        """It turned out whose connection it is: it counts for this key from now on.

        One that is one too many of its key is aborted.
        """
        self._limiter.rename(guest.place, key)
        guest.key = key
        self._prove(guest, self._clock())

    def leave(self, guest: Guest) -> None:
        """The connection is over."""
        self._guests.pop(guest, None)
        self._limiter.leave(guest.place)

    async def pace(self, guest: Guest, messages: int, size: int) -> None:
        """Count messages of `size` bytes together, and wait if they came too fast.

        A connection that turns out to be one too many of its key is aborted.
        """
        now = self._clock()
        self._prove(guest, now)
        delay = self._limiter.spend(guest.key, messages, size, now)
        if delay > 0:
            await trio.sleep(delay)

    async def pace_requests(self, key: bytes, messages: int, size: int) -> None:
        """The same for messages that come without a connection that lasts.

        Raises:
            RateExceeded: it would have to wait for too long; nothing was counted.
        """
        await pace_requests(self._limiter, key, messages, size, self._clock())

    async def watch(self) -> None:
        """Run until cancelled."""
        while True:
            await trio.sleep(WATCH_INTERVAL)
            now = self._clock()
            self._access.check(now)
            for guest in list(self._guests):
                self._prove(guest, now)
                unproved = now - guest.entered_at >= self._limiter.limits.proof_time
                if not guest.place.proved and unproved:
                    self._limiter.cut_off(now)
                    guest.connection.abort()
            if self._access.revision != self._revision:
                self._revision = self._access.revision
                for guest in list(self._guests):
                    if guest.listed and not self._access.allows(guest.key):
                        guest.connection.abort()

    def _push_out(self, now: float) -> None:
        """End the one that has been silent longest: a few hundred of them, which a single machine
        can bring, would keep all others out."""
        for guest in list(self._guests):
            self._prove(guest, now)
            if not guest.place.proved:
                self._limiter.cut_off(now)
                guest.connection.abort()
                self.leave(guest)
            if not self._limiter.crowded:
                return

    def _prove(self, guest: Guest, now: float) -> None:
        if guest.place.proved or not guest.connection.authenticated:
            return
        if self._limiter.prove(guest.place, now):
            if guest.listed:
                self._access.proved(guest.key)
            address = guest.connection.remote_address
            if address is not None:
                self._limiter.recognise(address[0])
        else:
            guest.connection.abort()


async def pace_requests(limiter: Limiter, key: bytes, messages: int, size: int, now: float) -> None:
    """Count messages of `size` bytes together, and wait if their sender was too fast.

    Who waits keeps a request open, so that it is for a short while only; what is owed after that
    is for the next request to be told of.

    Raises:
        RateExceeded: more is owed by earlier requests than can be waited for; nothing was counted.
    """
    owed = limiter.spend(key, 0, 0, now)
    if owed > REQUEST_PATIENCE:
        raise RateExceeded("more comes from this sender than is allowed: slow down", owed)
    delay = limiter.spend(key, messages, size, now)
    await trio.sleep(min(delay, REQUEST_PATIENCE))
