"""Counts values of a field, in memory while there are few and in a file of SQLite's beyond that."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable
from typing import Final, TypeAlias

from hyperlog.store.evaluate import value_order
from hyperlog.store.query import Scalar
from hyperlog.store.words import scalar_text

__all__ = ["Tally"]

MAX_VALUES: Final = 50_000  # in memory
MAX_TEXT: Final = 8 * 1024 * 1024  # characters of them, about

EXACT: Final = 2.0**53  # above, a float can be equal to an integer

_Value: TypeAlias = "str | int | float | tuple[bool | float | None]"
"""as a key of a dict, where True would be 1 and 1e16 would be 10**16"""


class Tally:
    """How often each value came."""

    def __init__(self) -> None:
        self._counts: dict[_Value, int] = {}
        self._text = 0
        self._spilled: sqlite3.Connection | None = None

    def add(self, values: Iterable[Scalar], count: int = 1) -> None:
        """Each of these values came `count` times more."""
        counts = self._counts
        for value in values:
            key: _Value
            if (
                value is None
                or isinstance(value, bool)
                or (isinstance(value, float) and not -EXACT < value < EXACT)
            ):
                key = (value,)
            else:
                key = value
            known = counts.get(key)
            if known is None:
                counts[key] = count
                self._text += len(value) if isinstance(value, str) else 0
            else:
                counts[key] = known + count
        if len(counts) > MAX_VALUES or self._text > MAX_TEXT:
            self._spill()

    def top(self, limit: int) -> tuple[list[tuple[Scalar, int]], int]:
        """The most frequent values, and how many different ones there are."""
        if self._spilled is None:
            found = [
                (key[0] if isinstance(key, tuple) else key, count)
                for key, count in self._counts.items()
            ]
            return heapq.nsmallest(limit, found, lambda item: value_order(*item)), len(found)
        self._spill()
        rows = self._spilled.execute(
            "select value, type, count from counts order by count desc, text, type limit ?",
            (limit,),
        )
        values = [(_value(value, type), count) for value, type, count in rows]
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


def _row(item: tuple[_Value, int]) -> tuple[str, str, Scalar, int]:
    key, count = item
    value = key[0] if isinstance(key, tuple) else key
    return type(value).__name__, scalar_text(value), value, count


def _value(value: Scalar, type: str) -> Scalar:
    return bool(value) if type == "bool" else value
