"""What a benchmark gives: figures with their spread, what they cost, and what they should be."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from benchmarks.machine import Cost, say

JS = "JS → JS"
"""The pair that the others are compared with."""
PYTHON = "Python → Python"
JS_TO_PYTHON = "JS → Python"
PYTHON_TO_JS = "Python → JS"


class Target(Struct):
    """What a figure should be: its median, or with `every` each single value."""

    bound: float
    at_most: bool = False
    """else at least"""
    times_js: bool = False
    """`bound` is a multiple of the JavaScript pair's median in the same run"""
    every: bool = False


class Figure(Struct):
    """One measure of one pair, a value for each repeat."""

    what: str
    peers: str
    unit: str
    values: list[float]
    target: Target | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)


class Result(Struct):
    """What one benchmark gave."""

    name: str
    question: str
    load: list[float]
    """load average over 1, 5 and 15 minutes before it began"""
    busy_before: float
    """cores that all the machine's processes used in the second before it began"""
    busy_others: float
    """cores that processes other than the benchmark's used while it ran, on average"""
    seconds: float
    figures: list[Figure] = []
    costs: dict[str, dict[str, list[Cost]]] = {}
    """by pair and process, a value for each repeat"""
    failure: str | None = None


class Report(Struct):
    """One run of `python -m benchmarks`, as written to the JSON file."""

    started: str
    repeats: int
    machine: dict[str, Any]
    results: list[Result]


class WrongResult(Exception):
    """A benchmark's result is not the one asked for, however fast it came."""


@dataclass
class Run:
    """One repeat of one pair."""

    values: dict[str, float]
    """by what is measured"""
    costs: dict[str, Cost] = field(default_factory=dict)
    """by process"""


@dataclass
class Measured:
    """All repeats of all pairs of a benchmark."""

    figures: list[Figure] = field(default_factory=list)
    costs: dict[str, dict[str, list[Cost]]] = field(default_factory=dict)

    def add(
        self,
        peers: str,
        runs: list[Run],
        units: Mapping[str, str],
        targets: Mapping[tuple[str, str], Target] | None = None,
    ) -> None:
        """Take the runs of one pair; `targets` are by (what, peers)."""
        for what, unit in units.items():
            values = [run.values[what] for run in runs if what in run.values]
            if values:
                target = (targets or {}).get((what, peers))
                self.figures.append(Figure(what, peers, unit, values, target))
        for process in runs[0].costs:
            costs = [run.costs[process] for run in runs]
            self.costs.setdefault(peers, {})[process] = costs


async def alternate(
    name: str, repeats: int, pairs: Mapping[str, Callable[[], Awaitable[Run]]], *, warm_up: int = 1
) -> dict[str, list[Run]]:
    """Run the pairs in turn, `repeats` times after `warm_up` rounds that do not count."""
    runs: dict[str, list[Run]] = {peers: [] for peers in pairs}
    for number in range(-warm_up, repeats):
        for peers, measure in pairs.items():
            run = await measure()
            which = "warm-up" if number < 0 else f"{number + 1}/{repeats}"
            values = ", ".join(f"{what} {value:.4g}" for what, value in run.values.items())
            say(f"{name}, {peers}, {which}: {values}")
            if number >= 0:
                runs[peers].append(run)
    return runs
