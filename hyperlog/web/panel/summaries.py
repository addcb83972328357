"""Histograms and most frequent values for many pages at once.

They are what a page asks for when its records are shown already, and can take far longer than
these. So they have places of their own, fewer than a store answers questions at a time: whoever
wants to see records does not wait behind them. Equal questions are asked once, and their answer is
kept for a while, longer the longer it took: none takes more than a small share of the store's time,
however many look at it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, TypeVar, cast

import trio

__all__ = ["Summaries"]

PLACES: Final = 1  # questions at a time
MAX_KEPT: Final = 256  # answers
MAX_AGE: Final = 60.0  # s that an answer is kept
AGE_FACTOR: Final = 20.0  # of the time that it took

Answer = TypeVar("Answer")


class Summaries:
    """Answers by question. A question is anything hashable, and says all that the answer depends
    on but for the records."""

    def __init__(self) -> None:
        self._places = trio.CapacityLimiter(PLACES)
        self._kept: OrderedDict[Hashable, tuple[object, float]] = OrderedDict()
        self._asked: dict[Hashable, trio.Event] = {}

    async def answer(self, question: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `ask` returns, or has returned to somebody else not long ago."""
        await trio.lowlevel.checkpoint()
        while True:
            kept = self._kept.get(question)
            if kept is not None and trio.current_time() < kept[1]:
                return cast("Answer", kept[0])
            asked = self._asked.get(question)
            if asked is None:
                return await self._ask(question, ask)
            # Who asks may go away before there is an answer: then one of those who wait asks.
            await asked.wait()

    async def _ask(self, question: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        self._asked[question] = trio.Event()
        try:
            async with self._places:
                began_at = trio.current_time()
                answer = await ask()
            now = trio.current_time()
            self._keep(question, answer, now + min(AGE_FACTOR * (now - began_at), MAX_AGE))
            return answer
        finally:
            self._asked.pop(question).set()

    def _keep(self, question: Hashable, answer: object, until: float) -> None:
        self._kept[question] = answer, until
        self._kept.move_to_end(question)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
