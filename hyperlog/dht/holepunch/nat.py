"""Nat: what kind of NAT one of our sockets is behind, judged from what others report.

A sample is one node's view of the socket's outside address. A NAT that shows the same address to
everyone is consistent: a peer can be told where to send. One that shows another port to each is
random: the peer must guess.

Spec: docs/protocol/hyperdht.md section 10; hyperdht lib/nat.js.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import (
    FIREWALL_CONSISTENT,
    FIREWALL_OPEN,
    FIREWALL_RANDOM,
    FIREWALL_UNKNOWN,
)

__all__ = ["MIN_SAMPLES", "Nat"]

MIN_SAMPLES: Final = 4  # after which no more are waited for
JUDGE_AFTER: Final = 3  # samples
MAX_SAMPLES: Final = 64  # samples beyond are not looked at; a socket lives for one attempt
SKIP_NEWEST: Final = 5  # nodes that are asked last, because all sockets of late asked them too,
SKIP_FROM: Final = 8  # when we know at least this many


@dataclass(slots=True)
class _Seen:
    """One outside address and how many reported it."""

    host: str
    port: int
    hits: int = 1


class Nat:
    """The samples of one socket and the judgement so far.

    Args:
        firewalled: whether the node itself is behind a firewall; if not, its sockets are open.
    """

    def __init__(self, firewalled: bool = True) -> None:
        self.firewall = FIREWALL_UNKNOWN if firewalled else FIREWALL_OPEN
        """FIREWALL_* of constants.py"""
        self.addresses: list[Address] | None = None
        """What to tell the peer: the likely outside addresses; of a random NAT the host with port
        0; None while unknown and when open."""
        self.sampled = 0
        self._firewalled = firewalled
        self._hosts: list[_Seen] = []  # most hits first, as are
        self._pairs: list[_Seen] = []
        self._asked: set[Address] = set()
        self._answered: set[Address] = set()
        self._frozen = False
        self._exhausted = False

    @property
    def settled(self) -> bool:
        """Whether waiting for more samples is pointless."""
        return (
            self.firewall in (FIREWALL_CONSISTENT, FIREWALL_OPEN)
            or self.sampled >= MIN_SAMPLES
            or self._exhausted
        )

    def nodes_to_ping(self, newest_first: Sequence[Address]) -> list[Address]:
        """Which nodes to PING from the socket next, without retries; each is given only once.

        Call it again when those pings are over and too few were answered; when that brings nothing
        either, call `give_up`.
        """
        wanted = MIN_SAMPLES - self.sampled
        skip = SKIP_NEWEST if len(newest_first) >= SKIP_FROM else 0
        # In a small network the newest are better than too few.
        by_preference = [*newest_first[skip:], *newest_first[:skip]]
        fresh = [node for node in by_preference if node not in self._asked]
        chosen = fresh[: max(wanted, 0)]
        self._asked.update(chosen)
        return chosen

    def give_up(self) -> None:
        """No more samples will come: `settled` from now on."""
        self._exhausted = True

    def add(self, outside: Address, reporter: Address) -> None:
        """Count `reporter`'s view of our address; only its first view counts."""
        if reporter in self._answered or self.sampled >= MAX_SAMPLES:
            return
        self._asked.add(reporter)
        self._answered.add(reporter)
        host, port = outside
        _count(self._hosts, host, 0)
        _count(self._pairs, host, port)
        self.sampled += 1
        if (self.sampled >= JUDGE_AFTER or not self._firewalled) and not self._frozen:
            self._judge()

    def freeze(self) -> None:
        """Keep the judgement: it was told to the peer, and changing it now would confuse both."""
        self._frozen = True

    def unfreeze(self) -> None:
        """Let samples count again, those included that came while frozen."""
        self._frozen = False
        self._judge()

    def _judge(self) -> None:
        self.firewall = self._classify()
        if self.firewall == FIREWALL_UNKNOWN:
            self.addresses = None
        elif self.firewall == FIREWALL_RANDOM:
            self.addresses = [(self._hosts[0].host, 0)]
        elif self.firewall == FIREWALL_CONSISTENT:
            self.addresses = [
                (seen.host, seen.port)
                for index, seen in enumerate(self._pairs)
                if seen.hits >= 2 or index < 2
            ]

    def _classify(self) -> int:
        if not self._firewalled:
            return FIREWALL_OPEN
        if self.sampled < JUDGE_AFTER:
            return self.firewall
        most = self._pairs[0].hits
        if most >= 3:
            return FIREWALL_CONSISTENT
        if most == 1:
            return FIREWALL_RANDOM
        if len(self._hosts) == 1 and self.sampled > 3:
            return FIREWALL_RANDOM
        if len(self._hosts) > 1 and self._pairs[1].hits > 1:
            return FIREWALL_CONSISTENT  # two addresses, each seen twice: a host with two uplinks
        return FIREWALL_RANDOM if self.sampled > MIN_SAMPLES else self.firewall


def _count(samples: list[_Seen], host: str, port: int) -> None:
    """Add a hit; of equal hits the one that reached them first stays in front."""
    for index, seen in enumerate(samples):
        if seen.host == host and seen.port == port:
            seen.hits += 1
            while index > 0 and samples[index - 1].hits < seen.hits:
                samples[index - 1], samples[index] = seen, samples[index - 1]
                index -= 1
            return
    samples.append(_Seen(host, port))
