"""Bounded tables whose entries age out in two generations.

New entries go into the young generation. Every two thirds of `max_age` (or sooner, when the young
one is full) the young generation becomes the old one and what was old is dropped: an entry lives
two thirds to four thirds of `max_age` after it was last written, and no entry needs a timer.

Compat: the JavaScript cache also renews an entry when it is read. Here it is not renewed: a peer
that has gone must not stay findable for as long as somebody keeps asking for it.

Source: xache index.js, record-cache index.js.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

__all__ = ["AgeingCache", "TopicRecords"]

GENERATION: Final = 2 / 3  # of max_age

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Clock:
    """Tells how many generations end between two looks at it."""

    __slots__ = ("_length", "ends_at")

    def __init__(self, max_age: float) -> None:
        self._length = max_age * GENERATION
        self.ends_at = -math.inf
        """when the generation ends; before that nobody has to ask for `turns`"""

    def turns(self, now: float) -> int:
        """0, 1, or 2 for all that is more; the first look starts the first generation."""
        if self.ends_at == -math.inf:
            self.ends_at = now + self._length
        if now < self.ends_at:
            return 0
        count = int((now - self.ends_at) // self._length) + 1
        self.ends_at += count * self._length
        return min(count, 2)


class AgeingCache(Generic[K, V]):
    """A mapping of at most `max_entries` entries that forgets them after about `max_age` s.

    With `size_of` (bytes of an entry) it also holds at most about `max_bytes`: half of that in each
    generation, and one entry more.
    """

    __slots__ = (
        "_capacity",
        "_clock",
        "_max_bytes",
        "_old",
        "_old_size",
        "_size_of",
        "_young",
        "_young_size",
    )

    def __init__(
        self,
        max_entries: int,
        max_age: float,
        *,
        max_bytes: int = 0,
        size_of: Callable[[K, V], int] | None = None,
    ) -> None:
        self._capacity = max(max_entries // 2, 1)  # of one generation
        self._max_bytes = max_bytes // 2
        self._size_of = size_of
        self._clock = _Clock(max_age)
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._young_size = 0
        self._old_size = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    @property
    def size(self) -> int:
        """Bytes of all entries; 0 without `size_of`."""
        return self._young_size + self._old_size

    def get(self, key: K, now: float) -> V | None:
        if now >= self._clock.ends_at:
            self._age(now)
        value = self._young.get(key)
        return value if value is not None else self._old.get(key)

    def set(self, key: K, value: V, now: float) -> None:
        self._age(now)
        self.remove(key)
        if len(self._young) >= self._capacity or (
            self._size_of is not None and self._young_size >= self._max_bytes
        ):
            self._turn()
        self._young[key] = value
        if self._size_of is not None:
            self._young_size += self._size_of(key, value)

    def remove(self, key: K) -> None:
        value = self._young.pop(key, None)
        if value is not None:
            if self._size_of is not None:
                self._young_size -= self._size_of(key, value)
            return
        value = self._old.pop(key, None)
        if value is not None and self._size_of is not None:
            self._old_size -= self._size_of(key, value)

    def _age(self, now: float) -> None:
        for _ in range(self._clock.turns(now)):
            self._turn()

    def _turn(self) -> None:
        self._young, self._old = {}, self._young
        self._young_size, self._old_size = 0, self._young_size


class TopicRecords:
    """Records of many peers under many topics, at most `max_entries` in all."""

    __slots__ = ("_capacity", "_clock", "_old", "_rng", "_young")

    def __init__(self, max_entries: int, max_age: float, rng: random.Random) -> None:
        self._capacity = max(max_entries // 2, 1)  # of one generation
        self._clock = _Clock(max_age)
        self._rng = rng
        self._young = _Generation()
        self._old = _Generation()

    def __len__(self) -> int:
        return self._young.size + self._old.size

    def add(self, topic: bytes, peer: bytes, record: bytes, now: float) -> None:
        """Keep `record`, instead of any other of the same peer under the same topic."""
        self._age(now)
        if self._young.size >= self._capacity and not self._young.has(topic, peer):
            self._turn()
        self._old.remove(topic, peer)
        self._young.put(topic, peer, record)

    def remove(self, topic: bytes, peer: bytes) -> None:
        self._young.remove(topic, peer)
        self._old.remove(topic, peer)

    def sample(self, topic: bytes, count: int, now: float) -> list[bytes]:
        """Up to `count` different records of the topic, chosen at random."""
        if now >= self._clock.ends_at:
            self._age(now)
        young, old = self._young.records(topic), self._old.records(topic)
        total = len(young) + len(old)
        if total <= count:
            return [*young, *old]
        picks = self._rng.sample(range(total), count)
        return [young[i] if i < len(young) else old[i - len(young)] for i in picks]

    def _age(self, now: float) -> None:
        for _ in range(self._clock.turns(now)):
            self._turn()

    def _turn(self) -> None:
        self._young, self._old = _Generation(), self._young


class _Generation:
    """Records by topic; kept in lists, so that a sample of a crowded topic costs no copy of it."""

    __slots__ = ("_positions", "_topics", "size")

    def __init__(self) -> None:
        self._topics: dict[bytes, tuple[list[bytes], list[bytes]]] = {}  # peers, their records
        self._positions: dict[tuple[bytes, bytes], int] = {}
        self.size = 0

    def records(self, topic: bytes) -> list[bytes]:
        entry = self._topics.get(topic)
        return entry[1] if entry is not None else []

    def has(self, topic: bytes, peer: bytes) -> bool:
        return (topic, peer) in self._positions

    def put(self, topic: bytes, peer: bytes, record: bytes) -> None:
        peers, records = self._topics.setdefault(topic, ([], []))
        position = self._positions.get((topic, peer))
        if position is not None:
            records[position] = record
            return
        self._positions[topic, peer] = len(peers)
        peers.append(peer)
        records.append(record)
        self.size += 1

    def remove(self, topic: bytes, peer: bytes) -> None:
        position = self._positions.pop((topic, peer), None)
        if position is None:
            return
        peers, records = self._topics[topic]
        last_peer, last_record = peers.pop(), records.pop()
        if position < len(peers):  # the last one moves into the gap
            peers[position], records[position] = last_peer, last_record
            self._positions[topic, last_peer] = position
        if not peers:
            del self._topics[topic]
        self.size -= 1
