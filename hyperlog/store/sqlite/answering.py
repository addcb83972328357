"""Answers questions from the database: pages, counts and histograms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final, Literal

from hyperlog.errors import QueryError
from hyperlog.store.answers import Bin, BucketUse, Page
from hyperlog.store.query import Query
from hyperlog.store.records import StoredRecord, record_of
from hyperlog.store.sqlite.asking import Question
from hyperlog.store.sqlite.compiler import Plan, compile_query, numbers_of_id
from hyperlog.store.sqlite.scan import Candidate, Scan, id_of, source_of, windows
from hyperlog.store.sqlite.schema import COUNTERS, ID_BITS, MINUTE

__all__ = ["buckets", "count", "counted", "get", "histogram", "matching", "scanned", "search"]

MAX_PAGE: Final = 1000
MAX_BINS: Final = 10_000
MIN_STEP: Final = 1000  # ms


def search(
    question: Question,
    query: Query,
    limit: int,
    cursor: str | None,
    order: Literal["newest", "oldest"],
) -> Page:
    """See Store.search."""
    if not 1 <= limit <= MAX_PAGE:
        raise QueryError(f"a page has 1 to {MAX_PAGE} records, not {limit}")
    newest_first = order == "newest"
    if not newest_first and order != "oldest":
        raise QueryError(f"records are in the order 'newest' or 'oldest', not {order!r}")
    plan = compile_query(query)
    first, end = plan.first, plan.end
    if cursor is not None:
        last = _parse_cursor(cursor, order)
        first, end = (first, min(end, last)) if newest_first else (max(first, last + 1), end)
    found: list[tuple[int, StoredRecord]] = []
    if plan.residual is None:
        ids = _ids(question, plan, first, end, limit + 1, newest_first)
        more = len(ids) > limit
        found = [(id, _record(question, id)) for id in ids[:limit]]
    else:
        some = matching(question, plan, first, end, newest_first=newest_first)
        found = [(one.id, one.record) for one in itertools.islice(some, limit + 1)]
        more = len(found) > limit
        del found[limit:]
    next_cursor = f"{order[0]}{found[-1][0]:016x}" if more else None
    return Page([record for _, record in found], next_cursor)


def _parse_cursor(cursor: str, order: str) -> int:
    try:
        if cursor[0] == order[0] and len(cursor) == 17 and cursor.isascii() and cursor.isalnum():
            return min(int(cursor[1:], 16), 2**63 - 2)
    except (ValueError, IndexError):
        pass
    raise QueryError("that is no cursor of an earlier page of these records")


def _ids(
    question: Question, plan: Plan, first: int, end: int, limit: int, newest_first: bool
) -> list[int]:
    ids: list[int] = []
    order = "desc" if newest_first else "asc"
    for start, stop in windows(question, plan, first, end, newest_first=newest_first):
        source, values = source_of(plan, start, stop)
        rows = question.rows(
            f"select r.id {source} order by {id_of(plan)} {order} limit {limit - len(ids)}", values
        )
        ids += [row[0] for row in rows]
        if len(ids) >= limit:
            break
    return ids


def _record(question: Question, id: int) -> StoredRecord:
    body, source, server = question.row(
        "select b.body, o.source, o.server from records r join bodies b on b.id = r.id "
        "join origins o on o.id = r.origin where r.id = ?",
        (id,),
    )
    record = record_of(body, bytes.fromhex(source), server)
    assert record is not None, "only what is a record was taken in"
    return record


def matching(
    question: Question,
    plan: Plan,
    first: int,
    end: int,
    *,
    newest_first: bool = True,
) -> Iterator[Candidate]:
    """Candidates that match, in order."""
    decide = plan.residual
    for chunk in Scan(question, plan, plan.names).chunks(first, end, newest_first=newest_first):
        question.check()
        for candidate in chunk:
            if decide is None or decide(candidate):
                yield candidate


def get(question: Question, id: str) -> StoredRecord | None:
    """See Store.get."""
    for source, name, number in numbers_of_id(id):
        found = question.row(
            "select r.id from sessions s join records r on r.session = s.id and r.number = ? "
            "where s.source = ? and s.name = ?",
            (number, source, name),
        )
        if found is not None:
            record = _record(question, found[0])
            if record.id == id:
                return record
    return None


# -- counting


def buckets(question: Question) -> list[BucketUse]:
    """See Store.buckets."""
    rows = question.rows(
        "select bucket, sum(records), sum(bytes) from origins group by bucket "
        "having sum(records) > 0 order by sum(bytes) desc, bucket"
    )
    return [BucketUse(*row) for row in rows]


def count(question: Question, query: Query) -> int:
    """See Store.count."""
    plan = compile_query(query)
    if plan.residual is not None:
        return sum(1 for _ in matching(question, plan, plan.first, plan.end))
    if plan.countable:
        return sum(number for _, _, number in counted(question, plan, "r.level", None))
    total = 0
    for first, end in windows(question, plan, plan.first, plan.end, newest_first=True):
        source, values = source_of(plan, first, end)
        total += question.row(f"select count(*) {source}", values)[0]
    return total


def histogram(question: Question, query: Query, step: int) -> list[Bin]:
    """See Store.histogram."""
    if step < MIN_STEP:
        raise QueryError(f"the step of a histogram is at least {MIN_STEP} ms, not {step}")
    plan = compile_query(query)
    bins: dict[int, dict[int, int]] = {}
    for start, level, number in _binned(question, plan, step):
        counts = bins.setdefault(start, {})
        if len(bins) > MAX_BINS:
            raise QueryError(f"more than {MAX_BINS} bins: ask for a larger step, or a shorter time")
        counts[level] = counts.get(level, 0) + number
    return [Bin(start, dict(sorted(bins[start].items()))) for start in sorted(bins)]


def _binned(question: Question, plan: Plan, step: int) -> Iterator[tuple[int, int, int]]:
    """Start, level and how many; the same start and level may come more than once."""
    if plan.residual is not None:
        for one in matching(question, plan, plan.first, plan.end):
            yield (one.id >> ID_BITS) // step * step, one.level, 1
    elif plan.countable and not step % MINUTE:
        yield from counted(question, plan, "r.level", step)
    else:
        yield from scanned(question, plan, plan.first, plan.end, "r.level", step)


def counted(
    question: Question, plan: Plan, column: str, step: int | None
) -> Iterator[tuple[int, Any, int]]:
    """From the counters: start of the step, value of the column and how many.

    `step` is in whole minutes; without one all start at 0. The same start and value may come more
    than once.
    """
    yield from _counted(question, plan, plan.first, plan.end, column, step, len(COUNTERS))


def _counted(
    question: Question,
    plan: Plan,
    first: int,
    end: int,
    column: str,
    step: int | None,
    tables: int,
) -> Iterator[tuple[int, Any, int]]:
    """From the first of the tables of counters, for the longest time that the last of them can
    answer about; what is cut off of it at both ends from those before it."""
    if first >= end:
        return
    if not tables:
        yield from scanned(question, plan, first, end, column, step)
        return
    table, size = COUNTERS[tables - 1]
    head, tail = -(-(first >> ID_BITS) // size) * size, (end >> ID_BITS) // size * size
    if head >= tail or (step is not None and step % size):
        yield from _counted(question, plan, first, end, column, step, tables - 1)
        return
    for start, value, number in question.rows(
        f"select start, {column} as value, sum(r.records) from {table} r "
        f"where start >= {head} and start < {tail} and {plan.condition} "
        f"group by {'start, ' if step is not None else ''}value",
        plan.values,
    ):
        yield (0 if step is None else start // step * step), value, number
    ends = (first, head << ID_BITS), (tail << ID_BITS, end)
    for start, stop in ends:
        yield from _counted(question, plan, start, stop, column, step, tables - 1)


def scanned(
    question: Question, plan: Plan, first: int, end: int, column: str, step: int | None
) -> Iterator[tuple[int, Any, int]]:
    """From the records, alike; without a step all start at 0."""
    bin = "0" if step is None else f"(r.id >> {ID_BITS}) / {step} * {step}"
    for start, stop in windows(question, plan, first, end, newest_first=True):
        source, values = source_of(plan, start, stop)
        yield from question.rows(
            f"select {bin} as start, {column} as value, count(*) {source} group by start, value",
            values,
        )
