"""Service: the handshakes that a listener remembers, by first message and by number.

A client sends the same first message through several nodes, and each gets the same answer; the
number is what its hole punch messages carry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["MAX_HANDSHAKES", "HandshakeTable", "Remembered", "dispensable"]

MAX_HANDSHAKES: Final = 1024  # at a time
FAIR_SHARE: Final = 16  # of one host, up to which it is not what fills a table


class Remembered(Protocol):
    """What the table needs of a handshake."""

    host: str
    """the client's, as far as is known"""
    number: int | None
    """None as long as nobody has been told"""

    def expired(self, now: float) -> bool: ...

    def drop(self) -> None:
        """End what is not a connection of its own yet."""


T = TypeVar("T", bound=Remembered)


def dispensable(handshakes: Sequence[T]) -> int:
    """The index of the one to give up when there are too many, oldest first: not the newcomer.

    Refusing the new one would let a flood keep everybody out. Honest peers are quick: the oldest
    has had its time, above all the oldest of a host that has more of them than any other.
    """
    hosts = [handshake.host for handshake in handshakes]
    host, count = Counter(hosts).most_common(1)[0]
    return hosts.index(host) if count > FAIR_SHARE else 0


class HandshakeTable(Generic[T]):
    """A full table forgets what it can do without most easily."""

    def __init__(self) -> None:
        self._by_message: dict[bytes, T] = {}
        self._by_number: dict[int, T] = {}
        self._next_number = 0

    def __len__(self) -> int:
        return len(self._by_message)

    def __iter__(self) -> Iterator[T]:
        """The handshakes, oldest first."""
        return iter(self._by_message.values())

    def find(self, message: bytes) -> T | None:
        """The handshake with this first message."""
        return self._by_message.get(message)

    def numbered(self, number: int) -> T | None:
        """The handshake with this number."""
        return self._by_number.get(number)

    def number(self, handshake: T) -> int:
        """Give a handshake its number, 32 bits."""
        number = self._next_number
        self._next_number = (number + 1) & 0xFFFFFFFF
        handshake.number = number
        self._by_number[number] = handshake
        return number

    def add(self, message: bytes, handshake: T) -> bool:
        """Remember a handshake; False when another one was forgotten for it."""
        full = len(self._by_message) >= MAX_HANDSHAKES
        if full:
            index = dispensable(list(self._by_message.values()))
            self._forget(next(islice(self._by_message, index, None)))
        self._by_message[message] = handshake
        return not full

    def expire(self, now: float) -> None:
        """Forget the handshakes whose time is over."""
        for message, handshake in list(self._by_message.items()):
            if handshake.expired(now):
                self._forget(message)

    def clear(self) -> None:
        """Forget all of them."""
        for message in list(self._by_message):
            self._forget(message)

    def _forget(self, message: bytes) -> None:
        handshake = self._by_message.pop(message)
        if handshake.number is not None:
            self._by_number.pop(handshake.number, None)
        handshake.drop()
