"""How much one client, and all of them together, may ask of a server.

Nothing here waits or looks at a clock: `now` is in seconds and comes in. Who exceeds a limit is
refused, where nothing has been accepted yet, or read more slowly, where records would be lost. Each
time is counted, and each kind of limit is logged at most once a minute.

A connection counts for its key only once the peer has proved that it holds that key. Everybody who
has seen a handshake can replay it, and must not be able to use up somebody's connections with that.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Final

from hyperlog.errors import ConfigError

__all__ = ["Complaints", "LimitStatistics", "Limiter", "ServerLimits", "TokenBucket"]

logger = logging.getLogger("hyperlog.limits")

MAX_SOURCES: Final = 4096  # addresses whose handshakes are counted
MAX_KEYS: Final = 4096  # keys without a connection whose rates are remembered
COMPLAINT_INTERVAL: Final = 60.0  # s between two log entries of one kind
BURST_TIME: Final = 2.0  # s; what was not used for so long may be used at once


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Rates are per second; None means no limit. See docs/operations.md for how to choose."""

    connections: int = 1024
    """at a time; each has a UDX stream and a task"""
    connections_per_key: int = 32
    """at a time; processes of one application share a key"""
    unproved_connections: int = 256
    """at a time, of peers that have not sent anything yet"""
    proof_time: float = 20.0
    """s until such a peer is cut off; an idle client's first keep-alive comes after 5"""
    handshakes: float | None = 500.0
    handshakes_per_source: float | None = 50.0
    """from one address; a site behind one NAT shares it"""
    records_per_key: float | None = 100_000.0
    bytes_per_key: float | None = 64 * 1024 * 1024
    max_record: int = 8 * 1024 * 1024
    """bytes of one record; its line is cut, JavaScript peers could send 16 MiB"""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not value > 0:
                raise ConfigError(f"{limit.name} is {value}: a limit is above 0")


@dataclass(frozen=True, slots=True)
class LimitStatistics:
    """How often each limit was reached since the server started."""

    connections: int
    connections_per_key: int
    unproved_connections: int
    """refused because too many waited, or cut off because they waited too long"""
    handshakes: int
    handshakes_per_source: int
    rates: int
    """times that a connection was not read for a while"""
    delayed: float
    """s, all those times together"""


@dataclass(slots=True)
class TokenBucket:
    """Lets `rate` per second through, and what was saved up to `burst` at once."""

    rate: float
    burst: float
    level: float
    at: float

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> TokenBucket:
        return cls(rate, burst, burst, now)

    def _refill(self, now: float) -> None:
        self.level = min(self.burst, self.level + max(now - self.at, 0.0) * self.rate)
        self.at = now

    def take(self, now: float) -> bool:
        """Take one, if there is one."""
        self._refill(now)
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def spend(self, amount: float, now: float) -> float:
        """Take `amount`, even if it is not there; returns the seconds until it will be."""
        self._refill(now)
        self.level -= amount
        return max(-self.level / self.rate, 0.0)


class Complaints:
    """Log entries about things that may happen a thousand times a second."""

    def __init__(self, log: logging.Logger, interval: float = COMPLAINT_INTERVAL) -> None:
        self._log = log
        self._interval = interval
        self._kinds: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str, text: str, now: float) -> None:
        """Log `text` unless its kind was within the interval; then how often is told later.

        `kind` is one of a fixed number of names.
        """
        again_at, held_back = self._kinds.get(kind, (now, 0))
        if now < again_at:
            self._kinds[kind] = (again_at, held_back + 1)
            return
        self._kinds[kind] = (now + self._interval, 0)
        if held_back:
            self._log.warning("%s (and %d times since the last such entry)", text, held_back)
        else:
            self._log.warning("%s", text)


@dataclass(slots=True)
class _Key:
    connections: int
    """those that have proved the key"""
    records: TokenBucket | None
    bytes: TokenBucket | None


@dataclass(slots=True)
class _Counts:
    connections: int = 0
    connections_per_key: int = 0
    unproved_connections: int = 0
    handshakes: int = 0
    handshakes_per_source: int = 0
    rates: int = 0
    delayed: float = 0.0


@dataclass(slots=True, eq=False)
class Admission:
    """One connection's place, until `Limiter.leave`."""

    key: bytes
    proved: bool = False
    gone: bool = False


class Limiter:
    """Counts connections, handshakes and records against the limits. For one thread."""

    def __init__(self, limits: ServerLimits, complaints: Complaints | None = None) -> None:
        self.limits = limits
        self.complaints = Complaints(logger) if complaints is None else complaints
        self._counts = _Counts()
        self._connections = 0
        self._unproved = 0
        self._keys: OrderedDict[bytes, _Key] = OrderedDict()
        self._handshakes: TokenBucket | None = None
        self._sources: OrderedDict[str, TokenBucket] = OrderedDict()

    def statistics(self) -> LimitStatistics:
        counts = self._counts
        return LimitStatistics(**{f.name: getattr(counts, f.name) for f in fields(counts)})

    @property
    def connections(self) -> int:
        return self._connections

    @property
    def crowded(self) -> bool:
        """Whether there is no room for another peer that has not sent anything."""
        return self._unproved >= self.limits.unproved_connections

    # -- handshakes

    def refuses_handshake(self, address: tuple[str, int], now: float) -> bool:
        """Whether there are too many, from this address or in all; counts this one."""
        limits = self.limits
        # The source first: one that floods must not use up what all have together.
        if limits.handshakes_per_source is not None:
            bucket = self._source(address[0], limits.handshakes_per_source, now)
            if not bucket.take(now):
                self._counts.handshakes_per_source += 1
                self.complaints.warn(
                    "source", f"too many handshakes from {address[0]}: refused for a while", now
                )
                return True
        if limits.handshakes is not None:
            if self._handshakes is None:
                self._handshakes = _bucket(limits.handshakes, now)
            if not self._handshakes.take(now):
                self._counts.handshakes += 1
                self.complaints.warn("handshakes", "too many handshakes: some are refused", now)
                return True
        return False

    def _source(self, host: str, rate: float, now: float) -> TokenBucket:
        bucket = self._sources.get(host)
        if bucket is None:
            if len(self._sources) >= MAX_SOURCES:
                self._sources.popitem(last=False)
            bucket = self._sources[host] = _bucket(rate, now)
        else:
            self._sources.move_to_end(host)
        return bucket

    # -- connections

    def enter(self, key: bytes, now: float) -> Admission | None:
        """A place for a connection of a peer that says to have `key`; None if there is none."""
        limits, counts = self.limits, self._counts
        if self._connections >= limits.connections:
            counts.connections += 1
            self.complaints.warn("connections", "too many connections: one is refused", now)
        elif self.crowded:
            counts.unproved_connections += 1
            self.complaints.warn("unproved", "too many peers that send nothing: refused", now)
        else:
            self._connections += 1
            self._unproved += 1
            return Admission(key)
        return None

    def prove(self, place: Admission, now: float) -> bool:
        """The peer has proved its key; False if too many have, and the connection is to end."""
        if place.proved:
            return True
        entry = self._key(place.key, now)
        if entry.connections >= self.limits.connections_per_key:
            self._counts.connections_per_key += 1
            self.complaints.warn(
                "per key", f"[{place.key.hex()[:8]}] has too many connections: one is ended", now
            )
            return False
        place.proved = True
        self._unproved -= 1
        entry.connections += 1
        return True

    def cut_off(self, now: float) -> None:
        """A peer has sent nothing and is cut off, after `proof_time` or for a newcomer's sake."""
        self._counts.unproved_connections += 1
        self.complaints.warn("unproved", "peers that send nothing are cut off", now)

    def leave(self, place: Admission) -> None:
        """The connection is over; once for each place."""
        if place.gone:
            return
        place.gone = True
        self._connections -= 1
        if place.proved:
            self._keys[place.key].connections -= 1
            self._forget_keys()
        else:
            self._unproved -= 1

    # -- records

    def spend(self, key: bytes, records: int, size: int, now: float) -> float:
        """Count what came from a key; returns the seconds to wait before reading it again."""
        entry = self._key(key, now)
        delay = 0.0
        if entry.records is not None:
            delay = entry.records.spend(records, now)
        if entry.bytes is not None:
            delay = max(delay, entry.bytes.spend(size, now))
        if delay > 0:
            self._counts.rates += 1
            self._counts.delayed += delay
            self.complaints.warn(
                "rate", f"[{key.hex()[:8]}] sends faster than allowed: it is slowed down", now
            )
        return delay

    def _key(self, key: bytes, now: float) -> _Key:
        entry = self._keys.get(key)
        if entry is None:
            records, size = self.limits.records_per_key, self.limits.bytes_per_key
            entry = self._keys[key] = _Key(
                0,
                None if records is None else _bucket(records, now),
                None if size is None else _bucket(size, now),
            )
            self._forget_keys()
        else:
            self._keys.move_to_end(key)
        return entry

    def _forget_keys(self) -> None:
        # Connections are bounded, so few are passed over here.
        if len(self._keys) > MAX_KEYS + self.limits.connections:
            for key in list(self._keys)[: len(self._keys) - MAX_KEYS]:
                if not self._keys[key].connections:
                    del self._keys[key]


def _bucket(rate: float, now: float) -> TokenBucket:
    return TokenBucket.full(rate, max(rate * BURST_TIME, 1.0), now)
