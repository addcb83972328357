"""Tickets: proof that a requester receives packets at the host it writes from.

A ticket (the field `token` of the wire) is handed out in a reply and has to come back in requests
that store something here, so that nobody stores under a forged source address. It is a keyed hash
of the host: nothing has to be kept per requester.

Spec: docs/protocol/dht-rpc.md section 3; dht-rpc lib/io.js `token` and `_drain`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

__all__ = ["Tickets"]

ROTATION_INTERVAL: Final = 7.5  # s, dht-rpc lib/io.js: 10 drains of 750 ms
MAX_ISSUED: Final = 1024  # tickets kept; a flood from forged hosts only makes them be made again


class Tickets:
    """Issues and checks tickets under two secrets; each ticket stays valid for 7.5 … 15 s."""

    __slots__ = ("_current", "_issued", "_previous", "_rotate_at")

    def __init__(self, random_bytes: Callable[[int], bytes], now: float) -> None:
        self._previous = random_bytes(32)
        self._current = random_bytes(32)
        self._rotate_at = now + ROTATION_INTERVAL
        # Of the current secret: most hosts ask more than once, and a hash is a fifth of an answer.
        self._issued: dict[str, bytes] = {}

    def issue(self, host: str, now: float) -> bytes:
        """The ticket of `host` (text, as "192.0.2.1"), 32 bytes; the port does not matter."""
        if now >= self._rotate_at:
            self._rotate(now)
        ticket = self._issued.get(host)
        if ticket is None:
            if len(self._issued) >= MAX_ISSUED:
                self._issued.clear()
            ticket = self._issued[host] = _ticket(self._current, host)
        return ticket

    def accepts(self, ticket: bytes, host: str, now: float) -> bool:
        """Whether `ticket` was issued to `host` under the current or the previous secret."""
        if now >= self._rotate_at:
            self._rotate(now)
        return compare_digest(ticket, _ticket(self._current, host)) or compare_digest(
            ticket, _ticket(self._previous, host)
        )

    def _rotate(self, now: float) -> None:
        # Rotating when asked instead of by a timer leaves an idle node asleep. After two rotations
        # both secrets are new, so longer pauses need no more than that.
        late = now - self._rotate_at
        for _ in range(2 if late >= ROTATION_INTERVAL else 1):
            fresh = blake2b(self._previous, digest_size=32).digest()
            self._previous, self._current = self._current, fresh
        self._rotate_at = now + ROTATION_INTERVAL - late % ROTATION_INTERVAL
        self._issued.clear()


def _ticket(secret: bytes, host: str) -> bytes:
    return blake2b(host.encode(), digest_size=32, key=secret).digest()
