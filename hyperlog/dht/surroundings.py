"""Service: notices that the machine slept, or that it has other addresses than before.

Neither is told to anybody by UDP sockets: they stay open, and what they send arrives nowhere.
Source: dht-rpc index.js `_ontick` and `_onnetworkchange`; libudx polls the interfaces, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from hyperlog.dht.interfaces import hosts_at_a_glance

__all__ = ["Surroundings"]

logger = logging.getLogger("hyperlog.dht.surroundings")

SLEPT_OVER: Final = 15.0  # s that the wall clock may gain on trio's clock before we call it sleep
LOOK_INTERVAL: Final = 2.0  # s; a look costs about 0.1 ms


class Surroundings:
    """What `look` compares with, for a node bound to an IPv4 address, or "0.0.0.0" for all."""

    def __init__(self, bound_host: Callable[[], str], now: float) -> None:
        self._bound_host = bound_host
        self._hosts: frozenset[str] = frozenset()
        self._hosts = self._find_hosts()
        self._lead = wall_clock() - now
        self._look_at = now + LOOK_INTERVAL
        self.slept = False
        """whether the last change was that the machine slept"""

    def look(self, now: float) -> bool:
        """Whether anything has changed since the last look; call it often, it takes its time.

        That all addresses have gone is no change, but that they have come back is.
        """
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_INTERVAL
        # trio's clock stands still while the machine sleeps (on Linux and macOS).
        lead, before = wall_clock() - now, self._lead
        self._lead = lead
        self.slept = lead - before > SLEPT_OVER
        hosts = self._find_hosts()
        has_moved = hosts != self._hosts and bool(hosts)
        self._hosts = hosts
        if self.slept:
            logger.info("the machine slept for %.0f s: looking for nodes again", lead - before)
        elif has_moved:
            logger.info("the addresses of this machine have changed: looking for nodes again")
        return self.slept or has_moved

    def forget(self, now: float) -> None:
        """All is known to have changed."""
        self._hosts = self._find_hosts()
        self._lead = wall_clock() - now

    def _find_hosts(self) -> frozenset[str]:
        host = self._bound_host()
        if host != "0.0.0.0":
            return frozenset({host})
        try:
            return frozenset(hosts_at_a_glance())
        except OSError as err:  # a process with too many open files must not lose its node, too
            logger.debug("the addresses of this machine cannot be told: %s", err)
            return self._hosts


def wall_clock() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()
