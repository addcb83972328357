"""Service: how much of our work each source of datagrams may ask for.

Source addresses can be forged, so a budget does not keep a determined flood out; it keeps one
machine, broken or hostile, from taking what all others need. Hosts are counted, not ports: many
peers behind one NAT share a budget, which has to be generous for that.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["SourceBudgets"]

MAX_SOURCES: Final = 4096  # of which the one heard of longest ago is forgotten for another


class SourceBudgets:
    """A budget for each host: `burst` at once, and `rate` a second in the long run."""

    def __init__(self, rate: float, burst: int, *, max_sources: int = MAX_SOURCES) -> None:
        self.rate = rate
        self.burst = burst
        self._max_sources = max_sources
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # and at what time

    def __len__(self) -> int:
        return len(self._spent)

    def take(self, host: str, now: float) -> bool:
        """Whether the host may have one more; `now` in seconds never goes back."""
        spent, at = self._spent.get(host, (0.0, now))
        spent = max(0.0, spent - (now - at) * self.rate)
        granted = spent + 1 <= self.burst
        self._spent[host] = (spent + 1 if granted else spent, now)
        self._spent.move_to_end(host)
        if len(self._spent) > self._max_sources:
            self._spent.popitem(last=False)
        return granted
