"""The most frequent values of a field: from the counters, from columns, or from the lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from hyperlog.errors import QueryError
from hyperlog.store.answers import Top
from hyperlog.store.evaluate import Reading, field_values, has_field
from hyperlog.store.query import FIELDS, Has, Query, Scalar, check
from hyperlog.store.records import decode_body
from hyperlog.store.sqlite.answering import counted, scanned
from hyperlog.store.sqlite.asking import Question
from hyperlog.store.sqlite.compiler import ORIGIN_FIELDS, Plan, compile_query, top_names
from hyperlog.store.sqlite.paths import MISSING, OTHER, PathReader, path_reader
from hyperlog.store.sqlite.scan import Scan
from hyperlog.store.sqlite.schema import ID_BITS
from hyperlog.store.sqlite.tally import Tally
from hyperlog.store.sqlite.writer import KINDS

__all__ = ["top"]

MAX_LIMIT: Final = 1000
REPORT_INTERVAL: Final = 0.2  # s
REPORT_SHARE: Final = 0.1  # of the time at most is spent on reports
NOTES: Final = "r.session in (select id from sessions where name = '')"
COLUMNS: Final = {
    **dict.fromkeys(ORIGIN_FIELDS, "r.origin"),
    "level": "r.level",
    "kind": "r.kind",
    "session": "r.session",
    "number": f"case when {NOTES} then null else r.number end",
    "time": f"r.id >> {ID_BITS}",
    "client_time": "r.client_time",
}
"""the value of a field, or a number that stands for it, of a row `r` of records"""
COUNTED: Final = (*ORIGIN_FIELDS, "level", "kind")


def top(
    question: Question,
    query: Query,
    field: str,
    limit: int,
    report: Callable[[Top], object] | None,
) -> Top:
    """See Store.top; `report` is called in this thread."""
    if not 1 <= limit <= MAX_LIMIT:
        raise QueryError(f"1 to {MAX_LIMIT} values can be asked for, not {limit}")
    check(Has(field))
    plan = compile_query(query)
    counting = _Counting(limit, report)
    try:
        if field in COLUMNS and plan.residual is None:
            counting.count_column(question, plan, field)
        else:
            counting.count_lines(question, plan, field)
        return counting.result()
    finally:
        counting.close()


class _Counting:
    def __init__(self, limit: int, report: Callable[[Top], object] | None) -> None:
        self._limit = limit
        self._report = report
        self._report_at = time.monotonic() + REPORT_INTERVAL
        self._tally = Tally()
        self._records = 0

    def result(self, fraction: float = 1.0) -> Top:
        values, distinct = self._tally.top(self._limit)
        return Top(values, distinct, self._records, fraction)

    def close(self) -> None:
        self._tally.close()

    def _tell(self, done: float) -> None:
        now = time.monotonic()
        if self._report is not None and now >= self._report_at:
            self._report(self.result(min(max(done, 0.0), 0.999)))
            ended = time.monotonic()
            self._report_at = ended + max(REPORT_INTERVAL, (ended - now) / REPORT_SHARE)

    # -- columns

    def count_column(self, question: Question, plan: Plan, field: str) -> None:
        column, names = COLUMNS[field], _names(question, field)
        if plan.countable and field in COUNTED:
            rows = counted(question, plan, column, None)
        else:
            rows = scanned(question, plan, plan.first, plan.end, column, None)
        for _, value, number in rows:
            if names is not None:
                value = names[value]
            if value is not None:
                self._tally.add((value,), number)
                self._records += number

    # -- lines

    def count_lines(self, question: Question, plan: Plan, field: str) -> None:
        newest = question.row("select max(id) from records where id < ?", (plan.end,))[0] or 0
        oldest = question.row("select min(id) from records where id >= ?", (plan.first,))[0] or 0
        reader = None if field in FIELDS else path_reader(field)
        if plan.residual is None and reader is not None:
            ids = self._count_paths(question, plan, field, reader)
        else:
            ids = self._count_candidates(question, plan, field)
        for id in ids:
            question.check()
            self._tell((newest - id) / max(newest - oldest, 1))

    def _count_candidates(self, question: Question, plan: Plan, field: str) -> Iterator[int]:
        names = set(plan.names)
        if field not in FIELDS:
            names.update(top_names(field))
        for chunk in Scan(question, plan, frozenset(names)).chunks(plan.first, plan.end):
            values: list[Scalar] = []
            for one in chunk:
                if plan.residual is None or plan.residual(one):
                    values += field_values(one, field)
                    self._records += has_field(one, field)
            self._tally.add(values)
            if chunk:
                yield chunk[-1].id

    def _count_paths(
        self, question: Question, plan: Plan, field: str, reader: PathReader
    ) -> Iterator[int]:
        for id, text in Scan(question, plan, frozenset()).texts(plan.first, plan.end):
            try:
                found = reader.values(text)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                found = [OTHER] * (text.count(b"\n") + 1)
            others = found.count(OTHER)
            self._records += len(found) - found.count(MISSING) - others
            self._tally.add([one for one in found if one is not MISSING and one is not OTHER])
            if others:
                for one, line in zip(found, text.split(b"\n"), strict=True):
                    if one is OTHER:
                        reading = _Line(line)
                        self._tally.add(field_values(reading, field))
                        self._records += has_field(reading, field)
            yield id


class _Line(Reading):
    """A line that is only asked for what is in it."""

    def __init__(self, line: bytes) -> None:
        self.members = decode_body(line)


def _names(question: Question, field: str) -> Mapping[int, str | None] | None:
    """What the numbers of a column stand for, if they stand for anything."""
    if field == "kind":
        return dict(enumerate(KINDS))
    if field == "session":
        return dict(question.rows("select id, nullif(name, '') from sessions").fetchall())
    if field in ORIGIN_FIELDS:
        return dict(question.rows(f"select id, {field} from origins").fetchall())
    return None
