"""Punches: what the hole punches of one node share, and what each of them did.

Spec: docs/protocol/hyperdht.md section 10; hyperdht index.js (`_randomPunches`, `stats.punches`),
lib/connect.js `roundPunch`, lib/server.js `_onpeerholepunch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hyperlog.dht.constants import FIREWALL_UNKNOWN
from hyperlog.dht.holepunch.puncher import Strategy

__all__ = ["PunchCounts", "PunchRecord", "PunchStatistics", "Punches", "RandomPunchLimit"]

RANDOM_PUNCH_INTERVAL: Final = 20.0  # s from the end of one to the start of the next
MAX_RANDOM_PUNCHES: Final = 1


@dataclass(slots=True)
class PunchRecord:
    """One attempt, as far as it has come; the final figures once it is over."""

    strategy: Strategy | None = None
    """None until probing has begun"""
    local_firewall: int = FIREWALL_UNKNOWN
    """FIREWALL_* of constants.py"""
    remote_firewall: int = FIREWALL_UNKNOWN
    rounds: int = 0
    """messages that we exchanged with the peer"""
    delays: int = 0
    """times that one side had to wait for another random punch"""
    sockets: int = 0
    """at a time"""
    reopened: int = 0
    """times that we took another socket because the NAT was unkind to the one before"""
    probes_sent: int = 0
    probes_received: int = 0
    duration: float = 0.0
    """s"""
    connected: bool = False


@dataclass(frozen=True, slots=True)
class PunchCounts:
    """Attempts of one strategy since the node was opened; what is under way is in neither end."""

    attempted: int = 0
    succeeded: int = 0
    failed: int = 0
    """those included that another path or the peer made pointless"""


@dataclass(frozen=True, slots=True)
class PunchStatistics:
    """The hole punches of a node since it was opened."""

    consistent: PunchCounts
    random_remote: PunchCounts
    """The peer has a NAT with random ports."""
    random_local: PunchCounts
    """We have."""
    early: int
    """attempts that got through before a strategy began: on the first probe back"""
    unstarted: int
    """attempts that ended before a strategy began: none fits, or another path was faster"""
    try_later: int
    """random punches that waited or were refused because of another one, ours or the peer's"""
    random_punches: int
    """under way"""


class RandomPunchLimit:
    """Holds random punches apart: each sends 1750 datagrams, which a home router just bears."""

    def __init__(self) -> None:
        self.interval = RANDOM_PUNCH_INTERVAL
        self.running = 0
        self._last_at: float | None = None

    def take(self, now: float) -> bool:
        """Claim the right to a random punch; False when another one runs or ran just now."""
        if self.running >= MAX_RANDOM_PUNCHES:
            return False
        if self._last_at is not None and now - self._last_at < self.interval:
            return False
        self.running += 1
        return True

    def give_back(self, now: float, *, used: bool) -> None:
        """End what `take` began; the next one has to wait only if probes were sent."""
        self.running -= 1
        if used:
            self._last_at = now


class Punches:
    """What all attempts of one node share."""

    def __init__(self) -> None:
        self.limit = RandomPunchLimit()
        self.try_later = 0
        self._attempted = dict.fromkeys(Strategy, 0)
        self._succeeded = dict.fromkeys(Strategy, 0)
        self._failed = dict.fromkeys(Strategy, 0)
        self._early = 0
        self._unstarted = 0

    def started(self, strategy: Strategy) -> None:
        self._attempted[strategy] += 1

    def ended(self, record: PunchRecord) -> None:
        if record.strategy is None:
            self._early += record.connected
            self._unstarted += not record.connected
        elif record.connected:
            self._succeeded[record.strategy] += 1
        else:
            self._failed[record.strategy] += 1

    def statistics(self) -> PunchStatistics:
        return PunchStatistics(
            consistent=self._counts(Strategy.CONSISTENT),
            random_remote=self._counts(Strategy.RANDOM_REMOTE),
            random_local=self._counts(Strategy.RANDOM_LOCAL),
            early=self._early,
            unstarted=self._unstarted,
            try_later=self.try_later,
            random_punches=self.limit.running,
        )

    def _counts(self, strategy: Strategy) -> PunchCounts:
        return PunchCounts(
            self._attempted[strategy], self._succeeded[strategy], self._failed[strategy]
        )
