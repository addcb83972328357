"""How much one client, and all of them together, may ask of a server.

Nothing here waits or looks at a clock: `now` is in seconds and comes in. Who exceeds a limit is
refused, where nothing has been accepted yet, or read more slowly, where records would be lost. Each
time is counted, and each kind of limit is logged at most once a minute.

Handshakes are counted before it is known whose they are. Their addresses may be forged, that of a
client by it or by the node that relays for it, that of the node, too. So nobody can use up more
than a part of what all have together: not one client, not one relaying node, and not all those
together from whose addresses nobody has come yet.

A connection counts for its key only once the peer has proved that it holds that key. Everybody who
has seen a handshake can replay it, and must not be able to use up somebody's connections with that.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Final

from hyperlog.errors import ConfigError

__all__ = ["Complaints", "LimitStatistics", "Limiter", "ServerLimits", "TokenBucket"]

logger = logging.getLogger("hyperlog.limits")

MAX_SOURCES: Final = 4096  # addresses whose handshakes are counted
MAX_RELAYS: Final = 256  # nodes whose relayed handshakes are counted
MAX_KNOWN: Final = 4096  # addresses that clients with a proved key came from
RELAY_PART: Final = 0.5  # of all handshakes, for those that one node relays
STRANGERS_PART: Final = 0.25  # of what was saved up, for addresses that are not known
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
    """each takes 0.5 ms of the processor"""
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
    handshakes_per_relay: int
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

    def take(self, now: float, leaving: float = 0.0) -> bool:
        """Take one, if there is one beyond those that are to be left."""
        self._refill(now)
        if self.level < 1 + leaving:
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
    handshakes_per_relay: int = 0
    handshakes_per_source: int = 0
    rates: int = 0
    delayed: float = 0.0


class _Buckets:
    """One bucket for each name; the one used longest ago makes room for a new one."""

    def __init__(self, rate: float, burst_time: float, max_buckets: int) -> None:
        self._rate = rate
        self._burst_time = burst_time
        self._max_buckets = max_buckets
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: Hashable, now: float) -> bool:
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self._max_buckets:
                self._buckets.popitem(last=False)
            bucket = self._buckets[name] = _bucket(self._rate, now, self._burst_time)
        else:
            self._buckets.move_to_end(name)
        return bucket.take(now)


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
        self._handshakes = None if limits.handshakes is None else _bucket(limits.handshakes, 0.0)
        per_source = limits.handshakes_per_source
        self._sources = (
            None if per_source is None else _Buckets(per_source, BURST_TIME, MAX_SOURCES)
        )
        self._relays = _Buckets(
            (limits.handshakes or 0.0) * RELAY_PART, BURST_TIME * STRANGERS_PART, MAX_RELAYS
        )
        self._known: OrderedDict[str, None] = OrderedDict()

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

    def refuses_handshake(self, host: str, relay: str | None, now: float) -> bool:
        """Whether there are too many; counts this one.

        `host` says to be the client's, `relay` that of the node that passed the handshake on.
        """
        counts = self._counts
        # The narrowest first: who floods must not use up what others have, too. A node may name any
        # client, so what it relays counts for the two of them.
        if self._sources is not None and not self._sources.take((host, relay), now):
            counts.handshakes_per_source += 1
            self.complaints.warn(
                "source", f"too many handshakes from {host}: some are refused", now
            )
            return True
        if self._handshakes is None:
            return False
        if relay is not None and not self._relays.take(relay, now):
            counts.handshakes_per_relay += 1
            self.complaints.warn(
                "relay", f"too many handshakes through the node {relay}: some are refused", now
            )
            return True
        burst = self._handshakes.burst
        leaving = 0.0 if host in self._known else burst - max(burst * STRANGERS_PART, 1.0)
        if not self._handshakes.take(now, leaving):
            counts.handshakes += 1
            self.complaints.warn("handshakes", "too many handshakes: some are refused", now)
            return True
        return False

    def recognise(self, host: str) -> None:
        """A client that has proved its key is there; its handshakes have precedence from now on."""
        self._known[host] = None
        self._known.move_to_end(host)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

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
        if place.gone:
            return False
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

    def rename(self, place: Admission, key: bytes) -> None:
        """The peer turned out to have this key, which it has yet to prove."""
        if place.proved and not place.gone:
            place.proved = False
            self._unproved += 1
            self._keys[place.key].connections -= 1
            self._forget_keys()
        place.key = key

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


def _bucket(rate: float, now: float, burst_time: float = BURST_TIME) -> TokenBucket:
    return TokenBucket.full(rate, max(rate * burst_time, 1.0), now)
