"""Removes what a policy does not keep, a few hundred records at a time.

The index of words does not have the texts, so what is removed from it is made again from the line.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from hyperlog.store.policy import StorePolicy
from hyperlog.store.records import record_of
from hyperlog.store.sqlite.schema import COUNTERS, ID_BITS, MINUTE
from hyperlog.store.words import searched_text

__all__ = ["Retention", "summed", "vacuum_some"]

STEP: Final = 200  # records removed in one transaction, some 10 ms
SLICE: Final = 50  # records handled before others get the interpreter
LOOK_AGAIN: Final = 3600.0  # s, after which also what came late, with an old time, is found
FREE_PAGES: Final = 256  # unused pages that the file may have in any case
FREE_SHARE: Final = 0.05  # of its pages
VACUUM_PAGES: Final = 128  # given back at a time


class Retention:
    """What is to be removed from one database, from time to time."""

    def __init__(self, policy: StorePolicy, breathe: Callable[[], None]) -> None:
        self._policy = policy
        self._breathe = breathe
        self._from: dict[tuple[int, ...], int] = {}
        """by origins: none of their records are older than this id"""
        self._look_again_at = 0.0

    def remove_some(self, db: sqlite3.Connection, now: float) -> int:
        """Remove up to STEP records, inside a transaction of the caller's; how many.

        `now` is in seconds since 1970.
        """
        if now >= self._look_again_at:
            self._from.clear()
            self._look_again_at = now + LOOK_AGAIN
        for origins, before, surplus in self._dues(db, now):
            removed = self._remove_oldest(db, origins, before, surplus)
            if removed:
                return removed
        return 0

    def _dues(
        self, db: sqlite3.Connection, now: float
    ) -> Iterator[tuple[tuple[int, ...], int | None, int | None]]:
        """Origins, and either the id before which theirs go or the bytes by which they go."""
        buckets: dict[str, list[int]] = {}
        sizes: dict[str, int] = {}
        for origin, bucket, size in db.execute("select id, bucket, bytes from origins order by id"):
            buckets.setdefault(bucket, []).append(origin)
            sizes[bucket] = sizes.get(bucket, 0) + size
        for bucket, origins in buckets.items():
            policy = self._policy.of(bucket)
            if policy.keep_age is not None:
                yield tuple(origins), int((now - policy.keep_age) * 1000) << ID_BITS, None
            if policy.keep_bytes is not None and sizes[bucket] > policy.keep_bytes:
                yield tuple(origins), None, sizes[bucket] - policy.keep_bytes
        total = self._policy.keep_total
        if total is not None and sum(sizes.values()) > total:
            yield (), None, sum(sizes.values()) - total

    def _remove_oldest(
        self,
        db: sqlite3.Connection,
        origins: tuple[int, ...],
        before: int | None,
        surplus: int | None,
    ) -> int:
        first = self._from.get(origins, 0)
        condition, values = "id >= ?", [first]
        if before is not None:
            condition += " and id < ?"
            values.append(before)
        if origins:
            condition += f" and origin in ({', '.join(map(str, origins))})"
        rows = db.execute(
            f"select id, origin, level, kind, session from records where {condition} "
            f"order by id limit {STEP}",
            values,
        ).fetchall()
        if surplus is not None:
            rows = _first_of_size(db, rows, surplus)
        if rows:
            _remove(db, rows, self._breathe)
            self._from[origins] = rows[-1][0]
        elif before is not None:
            self._from[origins] = max(first, before)
        return len(rows)


def _first_of_size(
    db: sqlite3.Connection, rows: list[tuple[int, ...]], size: int
) -> list[tuple[int, ...]]:
    for count, row in enumerate(rows):
        if size <= 0:
            return rows[:count]
        size -= db.execute("select length(body) from bodies where id = ?", row[:1]).fetchone()[0]
    return rows


def _remove(
    db: sqlite3.Connection, rows: list[tuple[int, ...]], breathe: Callable[[], None]
) -> None:
    ids = ", ".join(str(row[0]) for row in rows)
    senders = {
        origin: (bytes.fromhex(source), server)
        for origin, source, server in db.execute("select id, source, server from origins")
    }
    lines = dict(db.execute(f"select id, body from bodies where id in ({ids})").fetchall())
    removed: list[int | str] = []
    counts: dict[tuple[int, int, int, int], int] = {}
    totals: dict[int, list[int]] = {}
    for done, (id, origin, level, kind, _) in enumerate(rows, 1):
        if not done % SLICE:
            breathe()
        record = record_of(lines[id], *senders[origin])
        assert record is not None, "only what is a record was taken in"
        removed += (id, searched_text(record))
        counter = (id >> ID_BITS) // MINUTE * MINUTE, level, kind, origin
        counts[counter] = counts.get(counter, 0) + 1
        total = totals.setdefault(origin, [0, 0])
        total[0] += 1
        total[1] += len(lines[id])
    places = ", ".join(["('delete', ?, ?)"] * len(rows))
    db.execute(f"insert into words (words, rowid, text) values {places}", removed)
    db.execute(f"delete from bodies where id in ({ids})")
    db.execute(f"delete from records where id in ({ids})")
    for table, step in COUNTERS:
        for *place, count in summed(counts, step):
            which = "start = ?1 and level = ?2 and kind = ?3 and origin = ?4"
            db.execute(f"update {table} set records = records - ?5 where {which}", (*place, count))
            db.execute(f"delete from {table} where {which} and records <= 0", place)
    for origin, (count, size) in totals.items():
        db.execute(
            "update origins set records = records - ?, bytes = bytes - ? where id = ?",
            (count, size, origin),
        )
    db.execute("delete from origins where records <= 0")
    sessions = ", ".join({str(row[4]) for row in rows})
    db.execute(
        f"delete from sessions where id in ({sessions}) "
        "and not exists (select 1 from records where session = sessions.id)"
    )


def summed(
    counts: Mapping[tuple[int, int, int, int], int], step: int
) -> list[tuple[int, int, int, int, int]]:
    """Counts by start, level, kind and origin, for starts that are multiples of `step`."""
    sums: dict[tuple[int, int, int, int], int] = {}
    for (start, level, kind, origin), count in counts.items():
        counter = start // step * step, level, kind, origin
        sums[counter] = sums.get(counter, 0) + count
    return [(*counter, count) for counter, count in sums.items()]


def vacuum_some(db: sqlite3.Connection) -> bool:
    """Give back some pages if many are unused; whether there are more to give back."""
    (pages,) = db.execute("pragma page_count").fetchone()
    (free,) = db.execute("pragma freelist_count").fetchone()
    if free <= max(FREE_PAGES, int(pages * FREE_SHARE)):
        return False
    db.execute(f"pragma incremental_vacuum({VACUUM_PAGES})").fetchall()
    return True
