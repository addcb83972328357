"""Service: the handshakes that a listener remembers, by first message and by number.

A client sends the same first message through several nodes, and each gets the same answer; the
number is what its hole punch messages carry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["MAX_HANDSHAKES", "HandshakeTable", "Remembered"]

MAX_HANDSHAKES: Final = 1024  # at a time


class Remembered(Protocol):
    """What the table needs of a handshake."""

    number: int | None
    """None as long as nobody has been told"""

    def expired(self, now: float) -> bool: ...

    def drop(self) -> None:
        """End what is not a connection of its own yet."""


T = TypeVar("T", bound=Remembered)


class HandshakeTable(Generic[T]):
    """A full table forgets its oldest entry, not the newcomer.

    Refusing the new one would let a flood keep everybody out. Honest peers are quick: the oldest
    has had its time.
    """

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
            self._forget(next(iter(self._by_message)))
        self._by_message[message] = handshake
        return not full

    def expire(self, now: float) -> None:
        """Forget the handshakes whose time is over."""
        for message, handshake in list(self._by_message.items()):
            if handshake.expired(now):
                self._forget(message)

    def _forget(self, message: bytes) -> None:
        handshake = self._by_message.pop(message)
        if handshake.number is not None:
            self._by_number.pop(handshake.number, None)
        handshake.drop()
