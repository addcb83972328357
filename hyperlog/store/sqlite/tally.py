"""Counts values of a field, in memory while there are few and in a file of SQLite's beyond that."""

from __future__ import annotations

import heapq
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final, TypeAlias

from hyperlog.store.evaluate import plain, value_order
from hyperlog.store.query import Scalar
from hyperlog.store.words import scalar_text

__all__ = ["Tally"]

MAX_VALUES: Final = 50_000  # in memory
MAX_TEXT: Final = 8 * 1024 * 1024  # characters of them, about

EXACT: Final = 2.0**53  # above, a float can be equal to an integer

_Value: TypeAlias = "str | int | float | tuple[bool | float | None]"
"""as a key of a dict, where True would be 1 and 1e16 would be 10**16"""


_SIMPLE: Final = {str, int}
_NUMBERS: Final = {str, int, float}


class Tally:
    """How often each value came."""

    def __init__(self) -> None:
        self._counts: Counter[_Value] = Counter()
        self._text = 0
        self._spilled: sqlite3.Connection | None = None

    def add(self, values: Collection[Scalar], count: int = 1) -> None:
        """Each of these values came `count` times more; floats need not be `plain`."""
        counts = self._counts
        before = len(counts)
        kinds = set(map(type, values))
        if count == 1 and (kinds <= _SIMPLE or (kinds <= _NUMBERS and _are_exact(values))):
            counts.update(values)  # type: ignore[arg-type]
        else:
            for value in values:
                key = _key(value)
                counts[key] = counts.get(key, 0) + count
        if str in kinds and len(counts) > before:
            size = sum(len(value) for value in values if isinstance(value, str))
            self._text += size * (len(counts) - before) // len(values)
        if len(counts) > MAX_VALUES or self._text > MAX_TEXT:
            self._spill()

    def top(self, limit: int) -> tuple[list[tuple[Scalar, int]], int]:
        """The most frequent values, and how many different ones there are."""
        if self._spilled is None:
            least = min(heapq.nlargest(limit, self._counts.values()), default=0)
            found = [(_value(k), count) for k, count in self._counts.items() if count >= least]
            return heapq.nsmallest(limit, found, lambda item: value_order(*item)), len(self._counts)
        self._spill()
        rows = self._spilled.execute(
            "select value, type, count from counts order by count desc, text, type limit ?",
            (limit,),
        )
        values = [(bool(value) if type == "bool" else value, count) for value, type, count in rows]
        return values, self._spilled.execute("select count(*) from counts").fetchone()[0]

    def _spill(self) -> None:
        if self._spilled is None:
            self._spilled = sqlite3.connect("", isolation_level=None)
            self._spilled.execute("pragma journal_mode = off")
            self._spilled.execute("pragma cache_size = -8192")
            self._spilled.execute(
                "create table counts (type text, text text, value, count integer, "
                "primary key (type, text)) without rowid"
            )
        self._spilled.execute("begin")
        self._spilled.executemany(
            "insert into counts values (?, ?, ?, ?) "
            "on conflict (type, text) do update set count = count + excluded.count",
            map(_row, self._counts.items()),
        )
        self._spilled.execute("commit")
        self._counts.clear()
        self._text = 0

    def close(self) -> None:
        """Remove the file."""
        if self._spilled is not None:
            self._spilled.close()


def _key(value: Scalar) -> _Value:
    if isinstance(value, bool) or value is None:
        return (value,)
    if isinstance(value, float):
        value = plain(value)
        return (value,) if isinstance(value, float) and not -EXACT < value < EXACT else value
    return value


def _value(key: _Value) -> Scalar:
    if isinstance(key, tuple):
        return key[0]
    return plain(key) if isinstance(key, float) else key


def _are_exact(values: Iterable[Scalar]) -> bool:
    floats = [value for value in values if isinstance(value, float)]
    return min(floats) > -EXACT and max(floats) < EXACT


def _row(item: tuple[_Value, int]) -> tuple[str, str, Scalar, int]:
    value = _value(item[0])
    return type(value).__name__, scalar_text(value), value, item[1]
