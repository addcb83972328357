"""What a store answers, and the interface that all stores share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from hyperlog.store.query import Query
from hyperlog.store.records import StoredRecord

__all__ = ["Bin", "BucketUse", "Page", "Store", "StoreStatistics", "Top"]


@dataclass(frozen=True, slots=True)
class Page:
    """Some records in the order asked for."""

    records: list[StoredRecord]
    cursor: str | None
    """for the next page, of printable ASCII; None if this was the last"""


@dataclass(frozen=True, slots=True)
class Bin:
    """How many records of each level came within one step of time."""

    start: int
    """ms since 1970, a multiple of the step"""
    counts: dict[int, int]
    """by level; levels without any are left out"""


@dataclass(frozen=True, slots=True)
class Top:
    """The most frequent values of a field."""

    values: list[tuple[str | int | float | bool | None, int]]
    """value and count, the most frequent first, equal ones by their value as text"""
    distinct: int
    """how many values there are"""
    records: int
    """how many records have the field"""
    fraction: float = 1.0
    """of the records asked about, how many have been looked at: below 1 in a report of progress"""


@dataclass(frozen=True, slots=True)
class BucketUse:
    """What one bucket takes up."""

    bucket: str
    records: int
    bytes: int
    """of its records, before the database compresses and indexes them; MongoDB counts the names of
    fields as well"""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """A store, now."""

    kind: Literal["sqlite", "mongo"]
    records: int
    """held now, as last counted"""
    bytes: int
    """on disk, or as the server tells"""
    behind: int
    """bytes of log files that it does not hold yet"""
    inserted: int
    """records since the start"""
    failures: int
    """attempts to write that failed"""
    last_error: str | None
    """None while all is well"""


class Store(Protocol):
    """Methods are for trio tasks; blocking work is done in threads, and ends with the task.

    All of them raise StoreUnavailable while the store cannot answer, and QueryError for what it
    cannot be asked.
    """

    async def search(
        self,
        query: Query,
        *,
        limit: int = 100,
        cursor: str | None = None,
        order: Literal["newest", "oldest"] = "newest",
    ) -> Page:
        """A page of at most `limit` (1 to 1,000) records by receive time, equal times in the order
        of their arrival. Pages that follow each other by cursor repeat and miss nothing, but for
        what arrives meanwhile with a time that has been passed."""
        ...

    async def get(self, id: str) -> StoredRecord | None:
        """The record of this id."""
        ...

    async def count(self, query: Query) -> int:
        """How many there are."""
        ...

    async def histogram(self, query: Query, *, step: int) -> list[Bin]:
        """Counts by time and level; `step` in ms, at least 1,000. Bins without records are left
        out; at most 10,000 bins, else QueryError."""
        ...

    async def top(
        self,
        query: Query,
        field: str,
        *,
        limit: int = 10,
        report: Callable[[Top], object] | None = None,
    ) -> Top:
        """The most frequent values of a field (1 to 1,000); of a value that is an array each item,
        of an object nothing. `report` hears of progress, in the calling loop."""
        ...

    async def buckets(self) -> list[BucketUse]:
        """All that hold records, those with the most bytes first."""
        ...

    def statistics(self) -> StoreStatistics: ...
