"""The most frequent values of a field: from the counters, from columns, or from the lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from hyperlog.errors import QueryError
from hyperlog.store.answers import Top
from hyperlog.store.evaluate import field_values, has_field
from hyperlog.store.query import FIELDS, Has, Query, Scalar, check
from hyperlog.store.sqlite.answering import counted, scanned
from hyperlog.store.sqlite.asking import Question
from hyperlog.store.sqlite.compiler import ORIGIN_FIELDS, Plan, compile_query, top_names
from hyperlog.store.sqlite.scan import Candidate, Scan
from hyperlog.store.sqlite.schema import ID_BITS, MINUTE
from hyperlog.store.sqlite.tally import Tally
from hyperlog.store.sqlite.writer import KINDS

__all__ = ["top"]

MAX_LIMIT: Final = 1000
ALL: Final = 2**32 * MINUTE  # ms, longer than anything takes
REPORT_INTERVAL: Final = 0.2  # s
NAME: Final = "(select name from sessions where id = r.session)"
COLUMNS: Final = {
    **dict.fromkeys(ORIGIN_FIELDS, "r.origin"),
    "level": "r.level",
    "kind": "r.kind",
    "session": f"nullif({NAME}, '')",
    "number": f"case when {NAME} = '' then null else r.number end",
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
        self._reported_at = time.monotonic()
        self._tally = Tally()
        self._records = 0

    def result(self, fraction: float = 1.0) -> Top:
        values, distinct = self._tally.top(self._limit)
        return Top(values, distinct, self._records, fraction)

    def close(self) -> None:
        self._tally.close()

    def _tell(self, done: float) -> None:
        now = time.monotonic()
        if self._report is not None and now >= self._reported_at + REPORT_INTERVAL:
            self._report(self.result(min(max(done, 0.0), 0.999)))
            self._reported_at = time.monotonic()

    # -- columns

    def count_column(self, question: Question, plan: Plan, field: str) -> None:
        column, names = COLUMNS[field], _names(question, field)
        if plan.countable and field in COUNTED:
            rows = counted(question, plan, column, ALL)
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
        names = set(plan.names)
        if field not in FIELDS:
            names.update(top_names(field))
        newest = question.row("select max(id) from records where id < ?", (plan.end,))[0] or 0
        oldest = question.row("select min(id) from records where id >= ?", (plan.first,))[0] or 0
        for chunk in Scan(question, plan, frozenset(names)).chunks(plan.first, plan.end):
            question.check()
            values: list[Scalar] = []
            for one in chunk:
                if plan.residual is None or plan.residual(one):
                    self._records += _collect(one, field, values)
            self._tally.add(values)
            self._tell((newest - chunk[-1].id) / max(newest - oldest, 1))


def _names(question: Question, field: str) -> Mapping[int, str | None] | None:
    """What the numbers of a column stand for, if they stand for anything."""
    if field == "kind":
        return dict(enumerate(KINDS))
    if field in ORIGIN_FIELDS:
        return dict(question.rows(f"select id, {field} from origins").fetchall())
    return None


def _collect(reading: Candidate, field: str, values: list[Scalar]) -> bool:
    """Add the values of the field; whether the record has it."""
    node = reading.members.get(field)
    if type(node) is str and field not in FIELDS and "." not in field:
        values.append(node)
        return True
    values += field_values(reading, field)
    return has_field(reading, field)
