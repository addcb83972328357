"""Decides expressions for single records, and says what values a field has.

This is the meaning of an expression. Stores answer from indexes, and may ask here about what those
leave open; the live tail asks about every record.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Final, TypeAlias

from hyperlog.store.levels import level_of_name
from hyperlog.store.query import (
    FIELDS,
    TIMES,
    And,
    Compare,
    Expression,
    Has,
    Not,
    Or,
    Query,
    Scalar,
    Text,
    check,
)
from hyperlog.store.records import StoredRecord, decode_body
from hyperlog.store.times import iso_ms
from hyperlog.store.words import scalar_text, searched_text

__all__ = [
    "Reading",
    "field_values",
    "matcher",
    "matches",
    "plain",
    "predicate",
    "selects",
    "value_order",
]

MAX_EXACT: Final = 2**53
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**63 - 1

Predicate: TypeAlias = Callable[["Reading"], bool]

_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Reading:
    """A record that is being looked at: decoded once, and only if it is asked for."""

    def __init__(self, record: StoredRecord) -> None:
        self.record = record

    @cached_property
    def members(self) -> dict[str, Any]:
        return decode_body(self.record.body)

    @cached_property
    def text(self) -> str:
        return searched_text(self.record, self.members)


def selects(query: Query, record: StoredRecord) -> bool:
    """Whether the record is one of those that the query is about."""
    if query.since is not None and record.time < query.since:
        return False
    if query.until is not None and record.time >= query.until:
        return False
    return query.where is None or matches(query.where, record)


def matches(expression: Expression, record: StoredRecord) -> bool:
    """Whether the expression is true for the record.

    Raises:
        QueryError: see `check`.
    """
    check(expression)
    return predicate(expression)(Reading(record))


def matcher(expression: Expression) -> Callable[[StoredRecord], bool]:
    """`matches` for many records.

    Raises:
        QueryError: see `check`.
    """
    check(expression)
    decide = predicate(expression)
    return lambda record: decide(Reading(record))


def predicate(expression: Expression) -> Predicate:
    """The expression as a function of what is being read; the expression has been checked."""
    match expression:
        case Text(words, prefix):
            wanted = f" {' '.join(words)}{'' if prefix else ' '}"
            return lambda reading: wanted in reading.text
        case Compare():
            return _comparison(expression)
        case Has(field):
            return lambda reading: next(_nodes(reading, field), reading) is not reading
        case Not(term):
            inner = predicate(term)
            return lambda reading: not inner(reading)
        case And(terms):
            all_of = [predicate(term) for term in terms]
            return lambda reading: all(decide(reading) for decide in all_of)
        case Or(terms):
            any_of = [predicate(term) for term in terms]
            return lambda reading: any(decide(reading) for decide in any_of)


def _comparison(compare: Compare) -> Predicate:
    field, holds = compare.field, value_test(compare)
    return lambda reading: any(holds(value) for value in _values(reading, field))


def value_test(compare: Compare) -> Callable[[Scalar], bool]:
    """The comparison with its value, for one value of the field as `field_values` gives it."""
    field, wanted = compare.field, compare.value
    if isinstance(wanted, str):
        if field == "level":
            wanted = level_of_name(wanted)
        elif field in TIMES:
            wanted = iso_ms(wanted)
    compares = _ORDERS[compare.operator]
    if isinstance(wanted, str):
        return lambda value: isinstance(value, str) and compares(value, wanted)
    if wanted is None or isinstance(wanted, bool):
        spelled = scalar_text(wanted)
        return lambda value: value is wanted or value == spelled
    spelled, number = scalar_text(wanted), plain(wanted)
    equals = compare.operator == "="

    def holds(value: Scalar) -> bool:
        if isinstance(value, str):
            return equals and value == spelled
        return value is not None and not isinstance(value, bool) and compares(value, number)

    return holds


# -- the values of a field


def field_values(record: StoredRecord | Reading, field: str) -> list[Scalar]:
    """The values of a field in a record, by the rules of `query`, numbers as `plain` makes them.

    The same value comes as often as the record has it.
    """
    reading = record if isinstance(record, Reading) else Reading(record)
    return list(_values(reading, field))


def has_field(record: StoredRecord | Reading, field: str) -> bool:
    """Whether Has(field) is true."""
    reading = record if isinstance(record, Reading) else Reading(record)
    return next(_nodes(reading, field), reading) is not reading


def plain(number: float) -> int | float:
    """The number as all stores can hold it: integers beyond 64 bits as the nearest double, doubles
    without a fraction as integers while both are exact."""
    if isinstance(number, int):
        if MIN_INTEGER <= number <= MAX_INTEGER:
            return number
        try:
            return float(number)
        except OverflowError:
            return float("inf") if number > 0 else float("-inf")
    if -MAX_EXACT <= number <= MAX_EXACT and number.is_integer():
        return int(number)
    return number


def value_order(value: Scalar, count: int) -> tuple[int, str, str]:
    """Sorts the most frequent values first, equal ones by their text, and those of the same text by
    what they are."""
    return -count, scalar_text(value), type(value).__name__


def _values(reading: Reading, field: str) -> Iterator[Scalar]:
    for node in _nodes(reading, field):
        yield from _scalars(node)


def _scalars(node: Any) -> Iterator[Scalar]:  # noqa: ANN401 - a JSON value
    if isinstance(node, list):
        for item in node:
            yield from _scalars(item)
    elif isinstance(node, bool | str) or node is None:
        yield node
    elif not isinstance(node, dict):
        yield plain(node)


def _nodes(reading: Reading, field: str) -> Iterator[Any]:
    if field in _FIELDS:
        value = getattr(reading.record, field)
        if value is not None:
            yield value
    else:
        yield from _below(reading.members, field.removeprefix("."))


_FIELDS: Final = frozenset(FIELDS)


def _below(node: Any, path: str) -> Iterator[Any]:  # noqa: ANN401 - a JSON value
    if isinstance(node, dict):
        if path in node:
            yield node[path]
        dot = path.find(".")
        while dot >= 0:
            name = path[:dot]
            if name in node:
                yield from _below(node[name], path[dot + 1 :])
            dot = path.find(".", dot + 1)
    elif isinstance(node, list):
        part, _, rest = path.partition(".")
        if part.isascii() and part.isdigit():
            index = int(part) if len(part) < 10 else len(node)
            if index < len(node):
                if len(part) == len(path):
                    yield node[index]
                else:
                    yield from _below(node[index], rest)
        else:
            for item in node:
                yield from _below(item, path)
