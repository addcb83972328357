"""Whether the network answers at all, judged from the requests of the last ticks.

Spec: docs/protocol/dht-rpc.md section 8; dht-rpc lib/health.js.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Health"]

WINDOW: Final = 4  # ticks
IDLE_BELOW: Final = 4  # responses and timeouts in one tick: too few to judge
OFFLINE_AFTER: Final = 2  # ticks without any response
DEGRADED_RATE: Final = 0.5  # of requests timing out


class Health:
    """Fed once per tick with the running totals of responses and timeouts."""

    __slots__ = ("_offline_ticks", "_responses", "_timeouts", "_verdicts", "degraded", "online")

    def __init__(self) -> None:
        self.online = True
        """False after two busy ticks in a row without any response"""
        self.degraded = False
        """True after four busy ticks in a row with more timeouts than responses"""
        self._responses: deque[int] = deque(maxlen=WINDOW)
        self._timeouts: deque[int] = deque(maxlen=WINDOW)
        # One entry per tick of the window: was it degraded; None when offline or not judged.
        self._verdicts: deque[bool | None] = deque(maxlen=WINDOW)
        self._offline_ticks = 0

    def update(self, responses: int, timeouts: int) -> bool:
        """Take the totals at the end of a tick; True when `online` or `degraded` changed."""
        before = self.online, self.degraded
        self._responses.append(responses)
        self._timeouts.append(timeouts)
        self._verdicts.append(None)
        if len(self._responses) == WINDOW:
            self._judge(
                self._responses[-1] - self._responses[-2], self._timeouts[-1] - self._timeouts[-2]
            )
        return (self.online, self.degraded) != before

    def _judge(self, responses: int, timeouts: int) -> None:
        if responses and not self.online:  # one answer proves that the network is back
            self.online = True
            self._offline_ticks = 0
        if responses + timeouts < IDLE_BELOW:
            return
        if responses:
            self._offline_ticks = 0
            self._verdicts[-1] = timeouts / (responses + timeouts) > DEGRADED_RATE
        else:
            self._offline_ticks += 1
            if self._offline_ticks >= OFFLINE_AFTER:
                self.online = False
        if not self.online or all(verdict is False for verdict in self._verdicts):
            self.degraded = False
        elif all(self._verdicts):
            self.degraded = True
