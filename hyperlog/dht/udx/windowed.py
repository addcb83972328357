"""Best value within a sliding window: largest bandwidth, smallest round-trip time."""

from __future__ import annotations

from collections import deque

__all__ = ["WindowedMax", "WindowedMin"]


class WindowedMax:
    """Largest value of the last `window` keys; keys are whole numbers that never go down.

    Values of one key are merged, so that at most `window` + 1 entries are kept.
    """

    __slots__ = ("_entries", "_window")

    def __init__(self, window: int) -> None:
        self._window = window
        self._entries: deque[tuple[int, float]] = deque()

    @property
    def value(self) -> float:
        """The best value, 0 before the first update."""
        return self._entries[0][1] if self._entries else 0.0

    def update(self, key: int, value: float) -> None:
        entries = self._entries
        # Entries run from old and large to new and small: what a newer value reaches is of no use.
        while entries and entries[-1][1] <= value:
            entries.pop()
        if not entries or entries[-1][0] != key:
            entries.append((key, value))
        while entries[0][0] < key - self._window:
            entries.popleft()


class WindowedMin:
    """Smallest value of the last `window` keys; see WindowedMax."""

    __slots__ = ("_negated",)

    def __init__(self, window: int) -> None:
        self._negated = WindowedMax(window)

    @property
    def value(self) -> float:
        """The best value, 0 before the first update."""
        return -self._negated.value

    def update(self, key: int, value: float) -> None:
        self._negated.update(key, -value)
