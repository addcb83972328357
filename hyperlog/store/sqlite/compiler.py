"""Makes SQL of expressions.

What SQL can decide exactly, it decides. Of the rest it finds candidates, among which all that match
are, and `Plan.residual` decides about each of them. Conditions are never NULL, so that NOT is what
it says.

    Text                    the index of words, exact
    columns                 exact
    id, message, JSON = …   the words of the value, or the number: candidates
    other JSON              lines in which the name occurs: candidates
    NOT of what is inexact  everything: candidates
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from hyperlog.store.evaluate import Predicate, plain, predicate, value_test
from hyperlog.store.levels import LEVELS
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
    Text,
    check,
)
from hyperlog.store.sqlite.schema import ID_BITS
from hyperlog.store.sqlite.writer import KINDS, MAX_TIME, note_number
from hyperlog.store.times import iso_ms
from hyperlog.store.words import LEFT_OUT, scalar_text, words_of

__all__ = ["ORIGIN_FIELDS", "TRUE", "Plan", "compile_query", "top_names"]

ORIGIN_FIELDS: Final = ("server", "source", "bucket", "instance", "key")
COUNTED: Final = (*ORIGIN_FIELDS, "level", "kind")
"""fields that the counters have"""
MAX_WORD_NUMBER: Final = 2**53  # beyond, a number has several spellings
MAX_ID: Final = 2**63 - 1

TRUE: Final = "1"
FALSE: Final = "0"


@dataclass(slots=True)
class _Clause:
    """A condition on `r`, a row of records or of counters."""

    sql: str
    values: list[Any] = field(default_factory=list)
    exact: bool = True
    uses_words: bool = False
    """asks the index of words, for `:first` to `:last` only"""


@dataclass(slots=True)
class Plan:
    """How a query is answered. Ids are from `first` up to and without `end`."""

    first: int
    end: int
    since: int | None
    until: int | None
    match: str | None
    """FTS5 expression that all candidates fulfil"""
    condition: str
    """SQL on a row `r` of records"""
    values: list[Any]
    residual: Predicate | None
    """decides about candidates; None if all of them match"""
    names: frozenset[str]
    """members of the JSON at its top that `residual` looks at"""
    sieve: Compare | Has | None
    """about one path of the JSON, fulfilled by all that match: quicker to decide than the rest"""
    windowed: bool
    """`condition` has places for the ids between which it is asked, :first and :last"""
    countable: bool
    """the counters can answer, `condition` is one on their rows, too"""


def compile_query(query: Query) -> Plan:
    """The plan for a query.

    Raises:
        QueryError: it cannot be asked, see `check`.
    """
    first = min(max(query.since or 0, 0), MAX_TIME) << ID_BITS
    end = MAX_ID
    if query.until is not None:
        end = min(max(query.until, 0), MAX_TIME) << ID_BITS
    where = query.where
    if where is None:
        return Plan(
            first,
            end,
            query.since,
            query.until,
            None,
            TRUE,
            [],
            None,
            frozenset(),
            None,
            False,
            True,
        )
    check(where)
    terms = where.terms if isinstance(where, And) else (where,)
    required: list[str] = []
    excluded: list[str] = []
    clauses: list[_Clause] = []
    fields: set[str] = set()
    sieve: Compare | Has | None = None
    for term in terms:
        narrowed = _narrowed(term, first, end)
        if narrowed is not None:
            first, end = narrowed
            continue
        fields.update(_fields_of(term))
        words = _match_of(term)
        if words is not None:
            required.append(words)
            continue
        if isinstance(term, Not):
            words = _match_of(term.term)
            if words is not None:
                excluded.append(words)
                continue
        hint = _words_hint(term)
        if hint is not None:
            required.append(hint)
        if sieve is None and _is_sieve(term):
            sieve = term
        if hint is not None or term is sieve:
            clauses.append(_Clause(TRUE, exact=False))
        else:
            clauses.append(_clause(term))
    match = " AND ".join(required) or None
    if match is not None and excluded:
        match = f"({match}) NOT ({' OR '.join(excluded)})"
    else:
        clauses += [_negated(_words_clause(words)) for words in excluded]
    exact = all(clause.exact for clause in clauses)
    return Plan(
        first,
        end,
        query.since,
        query.until,
        match,
        " AND ".join(clause.sql for clause in clauses) or TRUE,
        [value for clause in clauses for value in clause.values],
        None if exact else predicate(where),
        frozenset(name for path in fields if path not in FIELDS for name in top_names(path)),
        sieve,
        any(clause.uses_words for clause in clauses),
        exact and match is None and fields <= set(COUNTED) and not _has_text(where),
    )


def _narrowed(term: Expression, first: int, end: int) -> tuple[int, int] | None:
    """The ids between which a term of an AND is true, if it says no more than that."""
    match term:
        case Compare("time", operator, value):
            time = iso_ms(value) if isinstance(value, str) else value
            if isinstance(time, int) and not isinstance(time, bool) and 0 <= time < MAX_TIME:
                if operator in ("=", ">", ">="):
                    first = max(first, (time + (operator == ">")) << ID_BITS)
                if operator in ("=", "<", "<="):
                    end = min(end, (time + (operator != "<")) << ID_BITS)
                return first, end
    return None


def _is_sieve(term: Expression) -> TypeGuard[Compare | Has]:
    return isinstance(term, Compare | Has) and term.field not in FIELDS


def top_names(path: str) -> Iterator[str]:
    """The members at the top of a record's JSON that a path may begin with."""
    path = path.removeprefix(".")
    dot = path.find(".")
    while dot >= 0:
        yield path[:dot]
        dot = path.find(".", dot + 1)
    yield path


def _fields_of(expression: Expression) -> Iterator[str]:
    match expression:
        case And(terms) | Or(terms):
            for term in terms:
                yield from _fields_of(term)
        case Not(term):
            yield from _fields_of(term)
        case Compare(field) | Has(field):
            yield field


def _has_text(expression: Expression) -> bool:
    match expression:
        case And(terms) | Or(terms):
            return any(map(_has_text, terms))
        case Not(term):
            return _has_text(term)
    return isinstance(expression, Text)


# -- the index of words


def _match_of(expression: Expression) -> str | None:
    """An FTS5 expression that says exactly the same, if there is one."""
    match expression:
        case Text(words, prefix):
            return f'"{" ".join(words)}"{" *" if prefix else ""}'
        case And(terms) | Or(terms):
            parts = [_match_of(term) for term in terms]
            joint = " AND " if isinstance(expression, And) else " OR "
            return None if None in parts else f"({joint.join(filter(None, parts))})"
    return None


def _words_hint(expression: Expression) -> str | None:
    """An FTS5 expression that all records fulfil for which a comparison holds."""
    if not isinstance(expression, Compare) or expression.operator != "=":
        return None
    field, value = expression.field, expression.value
    if field in FIELDS and field != "message":
        return None
    if field.removeprefix(".") in LEFT_OUT or value is None or isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        value = plain(value)
        if not -MAX_WORD_NUMBER < value < MAX_WORD_NUMBER:
            return None
    words = words_of(scalar_text(value))
    return f'"{" ".join(words)}"' if words else None


def _words_clause(words: str) -> _Clause:
    return _Clause(
        "r.id in (select rowid from words where words match ? and rowid between :first and :last)",
        [words],
        uses_words=True,
    )


# -- conditions


def _clause(expression: Expression) -> _Clause:
    match expression:
        case Text():
            words = _match_of(expression)
            assert words is not None
            return _words_clause(words)
        case And(terms):
            return _joined([_clause(term) for term in terms], " AND ")
        case Or(terms):
            return _joined([_clause(term) for term in terms], " OR ")
        case Not(term):
            return _negated(_clause(term))
        case Has(field):
            return _has(field)
        case Compare():
            return _compare(expression)


def _joined(clauses: list[_Clause], joint: str) -> _Clause:
    return _Clause(
        f"({joint.join(clause.sql for clause in clauses)})",
        [value for clause in clauses for value in clause.values],
        all(clause.exact for clause in clauses),
        any(clause.uses_words for clause in clauses),
    )


def _negated(clause: _Clause) -> _Clause:
    if not clause.exact:
        return _Clause(TRUE, exact=False)
    return _Clause(f"NOT {clause.sql}", clause.values, True, clause.uses_words)


def _has(field: str) -> _Clause:
    match field:
        case "key":
            return _Clause("r.origin in (select id from origins where key is not null)")
        case "session" | "number":
            return _Clause("r.session in (select id from sessions where name <> '')")
        case "client_time":
            return _Clause("r.client_time is not null")
    return _Clause(TRUE) if field in FIELDS else _named(field)


def _compare(compare: Compare) -> _Clause:
    field = compare.field
    if field in ORIGIN_FIELDS:
        return _text_compare(compare, f"r.origin in (select id from origins where {field}", ")")
    match field:
        case "level":
            return _one_of("r.level", compare, {level: level for level in LEVELS.values()})
        case "kind":
            return _one_of("r.kind", compare, {kind: KINDS.index(kind) for kind in KINDS})
        case "session":
            start = "r.session in (select id from sessions where name <> '' and name"
            return _text_compare(compare, start, ")")
        case "number":
            clause = _number_compare(compare, "r.number")
            clause.sql = f"({clause.sql} and {_has('number').sql})"
            return clause
        case "time":
            return _number_compare(compare, f"(r.id >> {ID_BITS})")
        case "client_time":
            return _number_compare(compare, "r.client_time")
        case "id":
            return _id_compare(compare)
        case "message":
            return _Clause(TRUE, exact=False)
    return _named(field)


def _one_of(column: str, compare: Compare, values: dict[Any, int]) -> _Clause:
    holds = value_test(compare)
    numbers = [number for value, number in values.items() if holds(value)]
    return _Clause(f"{column} in ({', '.join(map(str, numbers))})")


def _text_compare(compare: Compare, start: str, end: str) -> _Clause:
    value = compare.value
    if not isinstance(value, str):
        if compare.operator != "=":
            return _Clause(FALSE)
        value = scalar_text(value)
    return _Clause(f"{start} {compare.operator} ?{end}", [value])


def _number_compare(compare: Compare, column: str) -> _Clause:
    value = compare.value
    if isinstance(value, str) and compare.field in TIMES:
        value = iso_ms(value)
    if value is None or isinstance(value, bool | str):
        return _Clause(FALSE)
    return _Clause(f"ifnull({column} {compare.operator} ?, 0)", [plain(value)])


def _id_compare(compare: Compare) -> _Clause:
    value = compare.value
    if compare.operator != "=":
        return _Clause(TRUE, exact=False)
    candidates = list(numbers_of_id(value)) if isinstance(value, str) else []
    if not candidates:
        return _Clause(FALSE)
    one = "(r.session = (select id from sessions where source = ? and name = ?) and r.number = ?)"
    return _Clause(
        f"ifnull({' or '.join([one] * len(candidates))}, 0)",
        [part for candidate in candidates for part in candidate],
        exact=False,
    )


def numbers_of_id(id: str) -> Iterator[tuple[str, str, int]]:
    """Source, name of the session and number that a record with this id may be kept under."""
    source, session, number = id[:64], *id[65:].rpartition("-")[::2]
    if len(source) != 64 or id[64:65] != "-" or not number.isascii():
        return
    if session and number.isdigit() and len(number) <= 16:
        yield source, session, int(number)
    if session == "note" and len(number) == 16:
        try:
            yield source, "", note_number(number)
        except ValueError:
            pass


def _named(path: str) -> _Clause:
    """Lines in which the last name of a path occurs, or may occur as an escape."""
    parts = [part for part in path.split(".") if part and not part.isdigit()]
    if not parts or not parts[-1].isascii() or not parts[-1].isprintable():
        return _Clause(TRUE, exact=False)
    if set(parts[-1]) & set('"\\/'):
        return _Clause(TRUE, exact=False)
    body = "(select body from bodies where id = r.id)"
    return _Clause(
        f"(instr({body}, cast(? as blob)) or instr({body}, cast('\\u00' as blob)))",
        [f'{parts[-1]}"'],
        exact=False,
    )
