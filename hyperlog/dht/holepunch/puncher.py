"""Puncher: which probes one side of a hole punch sends, and when it has got through.

Theory of operation
-------------------
A probe is a datagram of one zero byte. Ours opens our NAT for answers from where it was sent to;
the peer's does the same on the other side. The initiator takes the first probe that reaches it as
proof of a path and connects from that socket to that source. The other side answers each probe with
a probe, and follows when the first packet of the connection itself arrives.

    IDLE --punch()--> PUNCHING --ten rounds--> FAILED
      any of them but FAILED --probe, initiator only--> CONNECTED          close() ends all

Before `punch`, single probes open the path early: with a TTL that ends inside the network, so that
they open our own NAT without alarming the other one.

An address of the peer counts as verified when the peer has sent back the token that went to its
host. Others may belong to anyone, so they get few probes.

    local        remote       strategy
    consistent   consistent   probe each known address once a second
    consistent   random       probe random ports of the verified host       not built yet
    random       consistent   probe from many sockets                       not built yet
    random       random       impossible

An open firewall counts as consistent.

Wire: docs/protocol/hyperdht.md section 10; hyperdht lib/holepuncher.js.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import (
    FIREWALL_CONSISTENT,
    FIREWALL_OPEN,
    FIREWALL_RANDOM,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.holepunch.nat import Nat

__all__ = [
    "DEFAULT_TTL",
    "LOW_TTL",
    "PROBE",
    "NotPunchable",
    "Puncher",
    "RemoteAddress",
    "Strategy",
]

PROBE: Final = b"\x00"
LOW_TTL: Final = 5  # hops: beyond our own NAT, short of the peer's
DEFAULT_TTL: Final = 64

ROUNDS: Final = 10
ROUND_INTERVAL: Final = 1.0  # s
UNVERIFIED_EVERY: Final = 4  # rounds
MAX_REMOTE_ADDRESSES: Final = 16  # a peer names two to four; more would make us flood strangers
MAX_QUEUED: Final = 64  # single probes and answers that were not fetched yet


class Strategy(enum.Enum):
    """How to get through, by our and the peer's kind of NAT."""

    CONSISTENT = "both consistent"
    RANDOM_REMOTE = "random ports of the peer"
    RANDOM_LOCAL = "many sockets of ours"


@dataclass(slots=True, frozen=True)
class NotPunchable:
    """Why probing does not start."""

    reason: str


@dataclass(slots=True)
class RemoteAddress:
    address: Address
    verified: bool


class Puncher:
    """One side of one attempt, on one socket.

    Args:
        nat: of that socket.
        remote_firewall: what the peer said of itself in the handshake.
    """

    def __init__(
        self, is_initiator: bool, nat: Nat, remote_firewall: int = FIREWALL_UNKNOWN
    ) -> None:
        self.nat = nat
        """Replace it together with the socket, when `unstable` asks for another."""
        self.remote_firewall = remote_firewall
        self.remote_addresses: list[RemoteAddress] = []
        self.remote_punching = False
        self.punching = False
        self.connected_address: Address | None = None
        """Where the first probe came from; on the initiator only."""
        self.failed = False
        """Whether all rounds went by without a probe coming through."""
        self._is_initiator = is_initiator
        self._closed = False
        self._strategy: Strategy | None = None
        self._queue: deque[tuple[Address, int]] = deque(maxlen=MAX_QUEUED)
        self._round = 0
        self._round_at = 0.0

    @property
    def unstable(self) -> bool:
        """Whether a fresh socket may be luckier: ours is unknown, or both sides are random."""
        return self.nat.firewall == FIREWALL_UNKNOWN or (
            self.nat.firewall >= FIREWALL_RANDOM and self.remote_firewall >= FIREWALL_RANDOM
        )

    def update_remote(
        self,
        *,
        punching: bool,
        firewall: int,
        addresses: Iterable[Address] | None,
        verified_host: str | None = None,
    ) -> None:
        """Take over what the peer says in a payload.

        Args:
            verified_host: where the payload came from, if it carried the token that we sent there;
                a host that was verified once stays so for as long as the peer names it.
        """
        verified = {known.address[0] for known in self.remote_addresses if known.verified}
        if verified_host is not None:
            verified.add(verified_host)
        self.remote_addresses = [
            RemoteAddress(address, address[0] in verified)
            for address in list(addresses or ())[:MAX_REMOTE_ADDRESSES]
        ]
        self.remote_firewall = firewall
        self.remote_punching = punching

    def open_session(self, address: Address) -> None:
        """Open our NAT for `address` with a probe that should not arrive."""
        self._enqueue(address, LOW_TTL)

    def ping(self, address: Address) -> None:
        """Send one probe to `address`."""
        self._enqueue(address, DEFAULT_TTL)

    def punch(self, now: float) -> Strategy | NotPunchable:
        """Start probing, with what is known of both sides; once started, calling again is fine.

        The initiator probes at once. The other side has probed already if that could help, and
        leaves the initiator the first second.
        """
        if self._strategy is not None:
            return self._strategy
        if self._closed or self.failed or self.connected_address is not None:
            return NotPunchable("the attempt is over")
        strategy = self._choose()
        if strategy is Strategy.CONSISTENT:
            self._strategy = strategy
            self.punching = True
            self._round_at = now if self._is_initiator else now + ROUND_INTERVAL
        elif isinstance(strategy, Strategy):
            return NotPunchable(f"not supported yet: {strategy.value}")
        return strategy

    def _choose(self) -> Strategy | NotPunchable:
        if not self.remote_addresses:
            return NotPunchable("the peer names no address")
        local, remote = _coerce(self.nat.firewall), _coerce(self.remote_firewall)
        if local == FIREWALL_CONSISTENT and remote == FIREWALL_CONSISTENT:
            return Strategy.CONSISTENT
        if FIREWALL_UNKNOWN in (local, remote):
            return NotPunchable("one side does not know its NAT")
        if local >= FIREWALL_RANDOM and remote >= FIREWALL_RANDOM:
            return NotPunchable("both sides have random NATs")
        if not any(known.verified for known in self.remote_addresses):
            return NotPunchable("no address of the peer is verified")
        return Strategy.RANDOM_LOCAL if local >= FIREWALL_RANDOM else Strategy.RANDOM_REMOTE

    def probes_to_send(self, now: float) -> list[tuple[Address, int]]:
        """Destinations and TTLs of the probes that are due.

        Call it after every other call and at the time that `get_timer` tells.
        """
        probes = list(self._queue)
        self._queue.clear()
        if not self.punching or now < self._round_at:
            return probes
        if self._round == ROUNDS:
            self.punching = False
            self.failed = True
            return probes
        self._round += 1
        self._round_at = now + ROUND_INTERVAL
        everyone = self._round % UNVERIFIED_EVERY == 0
        probes += [
            (known.address, DEFAULT_TTL)
            for known in self.remote_addresses
            if (known.verified or everyone) and known.address[1] != 0
        ]
        return probes

    def get_timer(self) -> float | None:
        """When the next round of probes is due, or the attempt has failed; None when idle."""
        return self._round_at if self.punching else None

    def receive_probe(self, address: Address, now: float) -> None:
        """A probe came from `address`: the initiator is through, the other side answers it."""
        if self._closed or self.failed:
            return
        if not self._is_initiator:
            self.ping(address)
        elif self.connected_address is None:
            self.connected_address = address
            self.punching = False
            self._queue.clear()

    def close(self) -> None:
        """Send nothing any more."""
        self._closed = True
        self.punching = False
        self._queue.clear()

    def _enqueue(self, address: Address, ttl: int) -> None:
        if not self._closed and self.connected_address is None and address[1] != 0:
            self._queue.append((address, ttl))


def _coerce(firewall: int) -> int:
    return FIREWALL_CONSISTENT if firewall == FIREWALL_OPEN else firewall
