"""Runs of trio that repeat: simulations whose failures have a seed."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")


def run_repeatably(main: Callable[[], Awaitable[T]], *, seed: int, clock: trio.abc.Clock) -> T:
    """`trio.run`, in which tasks take turns in an order that follows from the seed.

    Trio shuffles tasks on purpose; this is the switch that it has for Hypothesis. Sets of addresses
    are ordered by PYTHONHASHSEED all the same.
    """
    core = trio._core._run
    before = core._ALLOW_DETERMINISTIC_SCHEDULING, core._r
    core._ALLOW_DETERMINISTIC_SCHEDULING, core._r = True, random.Random(seed)
    try:
        return trio.run(main, clock=clock)
    finally:
        core._ALLOW_DETERMINISTIC_SCHEDULING, core._r = before
