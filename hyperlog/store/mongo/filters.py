"""Expressions as filters of MongoDB that find exactly what `evaluate` finds.

Records are tame or wild, see `documents`. For tame ones MongoDB decides; where it cannot, which is
so for a few paths, its filter finds more than was asked for and `Filter.exact` is false. Wild ones
are found by the part of the filter that asks for columns alone, and decided by whoever asks.

`word_filter` is for the collection of words: blocks where the expression can be true at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from hyperlog.store.evaluate import plain, value_test
from hyperlog.store.levels import LEVEL_NAMES
from hyperlog.store.mongo.documents import DOLLAR, DOT
from hyperlog.store.query import FIELDS, TIMES, And, Compare, Expression, Has, Not, Or, Text
from hyperlog.store.times import iso_ms
from hyperlog.store.words import LEFT_OUT, number_text, scalar_text, words_of

__all__ = [
    "EVERYTHING",
    "NOTHING",
    "Filter",
    "Paths",
    "Terms",
    "column_of",
    "filter_of",
    "paths_of",
    "word_filter",
]

Terms: TypeAlias = dict[str, Any]

EVERYTHING: Final[Terms] = {}
NOTHING: Final[Terms] = {"_id": {"$in": []}}
MAX_DOTS: Final = 4  # of a path, each of which may be in a name or between two: 16 ways
MAX_EXACT_TEXT: Final = 10**15  # below that a double has all digits of an integer in its text

_COLUMNS: Final = {"id": "_id"} | {name: name for name in FIELDS if name not in ("id", "bucket")}
_INDEX = re.compile(r"[0-9]{1,9}", re.ASCII)
_OPERATORS: Final = {"<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}


@dataclass(frozen=True, slots=True)
class Filter:
    """What to ask a collection of records for."""

    terms: Terms
    """finds, of the tame records, all for which the expression is true"""
    exact: bool
    """and no others"""
    columns: Terms
    """finds all of which the expression is true, and more; does not depend on `text` and `json`"""
    reads_line: bool
    """the expression depends on `text` or `json`: wild records are to be decided by their lines"""


ALWAYS: Final = Filter(EVERYTHING, True, EVERYTHING, False)
NEVER: Final = Filter(NOTHING, True, NOTHING, False)


def filter_of(expression: Expression | None, bucket: str) -> Filter:
    """The filter for the records of one bucket; NOTHING are its terms if none of them can match.

    The expression has been checked.
    """
    match expression:
        case None:
            return ALWAYS
        case Text(words, prefix):
            wanted = re.escape(f" {' '.join(words)}{'' if prefix else ' '}")
            return Filter({"text": {"$regex": wanted}}, True, EVERYTHING, True)
        case Compare("bucket"):
            return ALWAYS if value_test(expression)(bucket) else NEVER
        case Has("bucket"):
            return ALWAYS
        case Compare("level"):
            return _of_column({"level": _levels(expression)})
        case Compare(field):
            return _of_field(field, _comparison(expression))
        case Has(field):
            return _of_field(field, [{"$exists": True}])
        case Not(term):
            return _negated(filter_of(term, bucket))
        case And(terms=all_of):
            return _joined("$and", [filter_of(term, bucket) for term in all_of])
        case Or(terms=any_of):
            return _joined("$or", [filter_of(term, bucket) for term in any_of])


def _negated(inner: Filter) -> Filter:
    terms = _not(inner.terms) if inner.exact else EVERYTHING
    columns = EVERYTHING if inner.reads_line else _not(inner.columns)
    return Filter(terms, inner.exact, columns, inner.reads_line)


def _not(terms: Terms) -> Terms:
    if terms == EVERYTHING:
        return NOTHING
    return EVERYTHING if terms == NOTHING else {"$nor": [terms]}


def _joined(operator: str, filters: Sequence[Filter]) -> Filter:
    return Filter(
        _join(operator, [one.terms for one in filters]),
        all(one.exact for one in filters),
        _join(operator, [one.columns for one in filters]),
        any(one.reads_line for one in filters),
    )


def _join(operator: str, terms: Sequence[Terms]) -> Terms:
    decides, ignored = (NOTHING, EVERYTHING) if operator == "$and" else (EVERYTHING, NOTHING)
    if decides in terms:
        return decides
    rest = [one for one in terms if one != ignored]
    return ignored if not rest else rest[0] if len(rest) == 1 else {operator: rest}


# -- values


def _comparison(compare: Compare) -> list[Terms]:
    """What MongoDB is to ask of a value, one or the other; it compares like with like alone."""
    value, operator = compare.value, compare.operator
    if compare.field in TIMES and isinstance(value, str):
        value = iso_ms(value)
    if value is None:
        return [
            {"$type": "null"},
            {"$eq": "null"},
        ]  # {"$eq": None} is also true where it is missing
    if operator != "=":
        return [{_OPERATORS[operator]: value if isinstance(value, str) else plain(value)}]
    if isinstance(value, str):
        return [{"$eq": value}]
    if isinstance(value, bool):
        return [{"$in": [value, scalar_text(value)]}]
    return [{"$in": [plain(value), scalar_text(value)]}]


def _levels(compare: Compare) -> Terms:
    # A few values in place of a range: an index on level and time then gives records in order.
    holds = value_test(compare)
    return {"$in": [level for level in LEVEL_NAMES if holds(level)]}


# -- paths


@dataclass(frozen=True, slots=True)
class Paths:
    """All the paths in a document that a field may be at."""

    paths: list[str]
    exact: bool
    """MongoDB goes these paths as `evaluate` does"""
    has_index: bool
    """a part is a number, which expressions of aggregations take for a name alone"""


def paths_of(field: str) -> Paths:
    """The paths of a field of the line's JSON. Dots may be in names, and often are."""
    parts = field.removeprefix(".").split(".")
    if not all(parts) or any("\0" in part or DOT in part or DOLLAR in part for part in parts):
        return Paths([], True, False)  # no tame record has such a name
    if len(parts) - 1 > MAX_DOTS:
        return Paths([], False, False)
    safe = [DOLLAR + part[1:] if part.startswith("$") else part for part in parts]
    paths = [f"json.{safe[0]}"]
    for part in safe[1:]:
        paths = [path + dot + part for path in paths for dot in (".", DOT)]
    digits = [part for part in parts if part.isascii() and part.isdigit()]
    # "00" is an index for us, a name for MongoDB.
    exact = all(_INDEX.fullmatch(part) and str(int(part)) == part for part in digits)
    return Paths(paths, exact, bool(digits))


def column_of(field: str) -> str | None:
    """Where a field of FIELDS but `bucket` is in a document; None for one of the line's JSON."""
    return _COLUMNS.get(field)


def _of_field(field: str, either: Sequence[Terms]) -> Filter:
    if field in _COLUMNS:
        return _of_column(_join("$or", [{_COLUMNS[field]: terms} for terms in either]))
    found = paths_of(field)
    if not found.exact:
        return Filter(EVERYTHING, False, EVERYTHING, True)
    terms = _join("$or", [{path: terms} for path in found.paths for terms in either])
    return Filter(terms, True, EVERYTHING, True)


def _of_column(terms: Terms) -> Filter:
    return Filter(terms, True, terms, False)


# -- words


def word_filter(expression: Expression | None) -> Terms | None:
    """The blocks in which a tame record that matches can be; None if that is all of them."""
    match expression:
        case Text(words, prefix):
            terms: list[Terms] = [{"words": word} for word in words]
            if prefix:
                terms[-1] = {"words": {"$regex": f"^{re.escape(words[-1])}"}}
            return _all_of(terms)
        case Compare(field, "=", value) if _is_searched(field):
            return _all_of([{"words": word} for word in _words_of_value(value)])
        case And(terms=all_of):
            return _all_of([one for one in map(word_filter, all_of) if one is not None])
        case Or(terms=any_of):
            found = [one for one in map(word_filter, any_of) if one is not None]
            return {"$or": found} if len(found) == len(any_of) else None
        case _:
            return None


def _all_of(terms: Sequence[Terms]) -> Terms | None:
    return None if not terms else terms[0] if len(terms) == 1 else {"$and": list(terms)}


def _is_searched(field: str) -> bool:
    """Whether all values of the field are in the text."""
    if field in FIELDS:
        return field in ("message", "session")
    return field.removeprefix(".").split(".")[0] not in LEFT_OUT


def _words_of_value(value: str | float | bool | None) -> list[str]:
    if isinstance(value, str):
        return words_of(value)
    if value is None or isinstance(value, bool):
        return []
    number = plain(value)
    if isinstance(number, int):
        # 42 may also be written 42.0, whose first word it is.
        return words_of(number_text(number)) if abs(number) < MAX_EXACT_TEXT else []
    return [] if number.is_integer() else words_of(number_text(number))
