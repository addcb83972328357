"""Puncher: which probes one side of a hole punch sends, and when it has got through.

Theory of operation
-------------------
A probe is a datagram of one zero byte. Ours opens our NAT for answers from where it was sent to;
the peer's does the same on the other side. The initiator takes the first probe that reaches it as
proof of a path and connects from that socket to that source. The other side answers each probe with
a probe, and follows when the first packet of the connection itself arrives.

    IDLE --punch()--> PUNCHING --last probe sent--> FAILED
      any of them but FAILED --probe, initiator only--> CONNECTED          close() ends all

Before `punch`, single probes open the path early: with a TTL that ends inside the network, so that
they open our own NAT without alarming the other one.

An address of the peer counts as verified when the peer has sent back the token that went to its
host. Others may belong to anyone: the random strategies, which send much, leave them alone.

    local        remote       strategy
    consistent   consistent   10 rounds, 1 s apart, to each known address; to those that are not
                              verified in every fourth round
    consistent   random       RANDOM_REMOTE: 1750 probes, 20 ms apart, to random ports of the
                              verified host
    random       consistent   RANDOM_LOCAL: up to 256 sockets, each with a port of its own in our
                              NAT; one probe from each, then 1750, 20 ms apart, from them in turn
    random       random       impossible: neither side knows where to send

An open firewall counts as consistent. The two in the middle meet: where one side has 256 ports open
of 64536, a probe of the other hits one of them with a chance of 1 in 252, so that half of all
attempts are through after 3.5 s and 999 of 1000 after 35 s.

Sockets have numbers here: 0 is the first. The owner opens as many as `sockets_missing` asks for.

Wire: docs/protocol/hyperdht.md section 10; hyperdht lib/holepuncher.js.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import (
    FIREWALL_CONSISTENT,
    FIREWALL_OPEN,
    FIREWALL_RANDOM,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.holepunch.nat import Nat

__all__ = [
    "DEFAULT_TTL",
    "LOW_TTL",
    "PROBE",
    "NotPunchable",
    "Probe",
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
RANDOM_PROBES: Final = 1750
RANDOM_INTERVAL: Final = 0.02  # s
FIRST_PORT: Final = 1000  # below, NATs do not map
PORTS: Final = 65536
BIRTHDAY_SOCKETS: Final = 256
BIRTHDAY_PAUSE: Final = 0.1  # s after opening them, which was a burst
MIN_BIRTHDAY_SOCKETS: Final = 64  # fewer would meet in less than 4 of 5 attempts
SPARED_SOCKETS: Final = 32  # given back when the system has no more: others need some, too
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


class Probe(NamedTuple):
    """A probe to send."""

    socket: int
    """number of the socket that it leaves from"""
    address: Address
    ttl: int


class Puncher:
    """One side of one attempt.

    Args:
        nat: of the first socket.
        remote_firewall: what the peer said of itself in the handshake.
        rng: draws the ports of RANDOM_REMOTE.
    """

    def __init__(
        self, is_initiator: bool, nat: Nat, remote_firewall: int = FIREWALL_UNKNOWN, *, rng: Random
    ) -> None:
        self.nat = nat
        """Of the first socket."""
        self.remote_firewall = remote_firewall
        self.remote_addresses: list[RemoteAddress] = []
        self.remote_punching = False
        self.strategy: Strategy | None = None
        """Set by `punch`."""
        self.punching = False
        self.connected: tuple[int, Address] | None = None
        """Which socket the first probe came to, and where from; on the initiator only."""
        self.failed = False
        """Whether all probes were sent without one coming through."""
        self._is_initiator = is_initiator
        self._rng = rng
        self._closed = False
        self._queue: deque[Probe] = deque(maxlen=MAX_QUEUED)
        self._target: Address | None = None
        self._sent = 0  # rounds or probes of the strategy
        self._next_at: float | None = None
        self._sockets = 1
        self._sockets_wanted = 1

    # -- what is known ----------------------------------------------------------------------------

    @property
    def unstable(self) -> bool:
        """Whether a fresh socket may be luckier: ours is unknown, or both sides are random."""
        return self.nat.firewall == FIREWALL_UNKNOWN or (
            self.nat.firewall >= FIREWALL_RANDOM and self.remote_firewall >= FIREWALL_RANDOM
        )

    @property
    def random(self) -> bool:
        """Whether a side is random: such an attempt sends much, and a node makes one at a time."""
        return max(self.nat.firewall, self.remote_firewall) >= FIREWALL_RANDOM

    @property
    def over(self) -> bool:
        """Whether nothing can come of the attempt any more, or everything has."""
        return self._closed or self.failed or self.connected is not None

    def replace_socket(self, nat: Nat) -> None:
        """Number 0 is another socket from now on, behind `nat`.

        Raises:
            LocalProtocolError: probing has begun, from the socket that there was.
        """
        if self.strategy is not None:
            raise LocalProtocolError("the socket of an attempt stays once it sends probes")
        self.nat = nat
        self._queue.clear()

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

    # -- single probes ----------------------------------------------------------------------------

    def open_session(self, address: Address) -> None:
        """Open our NAT for `address` with a probe that should not arrive."""
        self._enqueue(0, address, LOW_TTL)

    def ping(self, address: Address) -> None:
        """Send one probe to `address`."""
        self._enqueue(0, address, DEFAULT_TTL)

    def _enqueue(self, socket: int, address: Address, ttl: int) -> None:
        if not self._closed and self.connected is None and address[1] != 0:
            self._queue.append(Probe(socket, address, ttl))

    # -- the strategies ---------------------------------------------------------------------------

    def punch(self, now: float) -> Strategy | NotPunchable:
        """Start probing, with what is known of both sides; once started, calling again is fine.

        When both sides are consistent the initiator probes at once: the other side has probed
        already if that could help, and leaves the initiator the first second. RANDOM_LOCAL begins
        when the sockets are there that `sockets_missing` asks for then.
        """
        if self.strategy is not None:
            return self.strategy
        if self.over:
            return NotPunchable("the attempt is over")
        strategy = self._choose()
        if isinstance(strategy, NotPunchable):
            return strategy
        self.strategy = strategy
        self.punching = True
        if strategy is Strategy.RANDOM_LOCAL:
            self._sockets_wanted = BIRTHDAY_SOCKETS
        elif strategy is Strategy.CONSISTENT and not self._is_initiator:
            self._next_at = now + ROUND_INTERVAL
        else:
            self._next_at = now
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
        strategy = Strategy.RANDOM_LOCAL if local >= FIREWALL_RANDOM else Strategy.RANDOM_REMOTE
        for known in self.remote_addresses:
            # A random peer names its host with port 0.
            if known.verified and (strategy is Strategy.RANDOM_REMOTE or known.address[1] != 0):
                self._target = known.address
                return strategy
        return NotPunchable("no address of the peer is verified")

    @property
    def sockets_missing(self) -> int:
        """How many further sockets to open now, each followed by `socket_opened`."""
        return self._sockets_wanted - self._sockets if self.punching else 0

    def socket_opened(self, now: float) -> int:
        """There is one more socket, behind the same NAT; its number.

        Call `probes_to_send` at the latest after 64 of them.

        Raises:
            LocalProtocolError: none is missing.
        """
        if not self.sockets_missing:
            raise LocalProtocolError("no further socket was asked for")
        assert self._target is not None
        number = self._sockets
        self._sockets += 1
        self._enqueue(number, self._target, LOW_TTL)
        if not self.sockets_missing:
            self._next_at = now + BIRTHDAY_PAUSE
        return number

    def sockets_exhausted(self, now: float) -> int:
        """The system has no more sockets for us; how many to keep, from number 0 on.

        Fewer than there are, because the program that we are a part of needs some for itself. Is
        that too few to get through, then the attempt has `failed`.
        """
        keep = max(self._sockets - SPARED_SOCKETS, 1)
        if self.punching:
            self._sockets = self._sockets_wanted = keep
            self._queue = deque((p for p in self._queue if p.socket < keep), MAX_QUEUED)
            if keep < MIN_BIRTHDAY_SOCKETS:
                self._fail()
            else:
                self._next_at = now + BIRTHDAY_PAUSE
        return keep

    def probes_to_send(self, now: float) -> list[Probe]:
        """The probes that are due.

        Call it after every other call and at the time that `get_timer` tells.
        """
        probes = list(self._queue)
        self._queue.clear()
        if self.punching and self._next_at is not None and now >= self._next_at:
            # From now on, not from when it was due: a program that was busy must not catch up in
            # a burst, which NATs and links answer with loss.
            if self.strategy is Strategy.CONSISTENT:
                self._next_at = now + ROUND_INTERVAL
                self._send_round(probes)
            else:
                self._next_at = now + RANDOM_INTERVAL
                self._send_one(probes)
        return probes

    def _send_round(self, probes: list[Probe]) -> None:
        if self._sent == ROUNDS:
            self._fail()
            return
        self._sent += 1
        everyone = self._sent % UNVERIFIED_EVERY == 0
        probes += [
            Probe(0, known.address, DEFAULT_TTL)
            for known in self.remote_addresses
            if (known.verified or everyone) and known.address[1] != 0
        ]

    def _send_one(self, probes: list[Probe]) -> None:
        if self._sent == RANDOM_PROBES:
            self._fail()
            return
        assert self._target is not None
        lap, number = divmod(self._sent, self._sockets)
        self._sent += 1
        if self.strategy is Strategy.RANDOM_REMOTE:
            port = self._rng.randrange(FIRST_PORT, PORTS)
            probes.append(Probe(0, (self._target[0], port), DEFAULT_TTL))
        else:
            probes.append(Probe(number, self._target, DEFAULT_TTL if lap else LOW_TTL))

    def _fail(self) -> None:
        self.punching = False
        self.failed = True

    def get_timer(self) -> float | None:
        """When the next probe is due, or the attempt has failed; None when nothing is."""
        return self._next_at if self.punching else None

    def receive_probe(self, socket: int, address: Address) -> None:
        """A probe came from `address`: the initiator is through, the other side answers it."""
        if self.over:
            return
        if not self._is_initiator:
            self._enqueue(socket, address, DEFAULT_TTL)
        else:
            self.connected = (socket, address)
            self.punching = False
            self._queue.clear()

    def close(self) -> None:
        """Send nothing any more."""
        self._closed = True
        self.punching = False
        self._queue.clear()


def _coerce(firewall: int) -> int:
    return FIREWALL_CONSISTENT if firewall == FIREWALL_OPEN else firewall
