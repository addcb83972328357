"""What somebody looks at, as it stands in the address of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

from hyperlog.errors import QueryError
from hyperlog.store.language import parse, to_text
from hyperlog.store.query import And, Compare, Expression, Has, Not, Query, Text
from hyperlog.store.times import parse_time

__all__ = ["DEFAULT_SINCE", "RANGES", "View", "time_of"]

DEFAULT_SINCE: Final = "24h"
RANGES: Final = (
    ("15m", "15 minutes"),
    ("1h", "1 hour"),
    ("6h", "6 hours"),
    ("24h", "24 hours"),
    ("7d", "7 days"),
    ("30d", "30 days"),
    ("all", "All time"),
)
MAX_COLUMNS: Final = 12
MAX_COLUMN: Final = 128  # characters


@dataclass(frozen=True, slots=True)
class View:
    """A query in words, a range of time, and the columns that are pinned."""

    q: str = ""
    since: str = DEFAULT_SINCE
    """`all`, or what `parse_time` reads"""
    until: str = ""
    """empty for now"""
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> View:
        """The view that the query string of an address tells; unknown names are ignored."""
        columns = parameters.get("columns", "").split(",")
        return cls(
            parameters.get("q", "").strip(),
            parameters.get("since", "").strip() or DEFAULT_SINCE,
            parameters.get("until", "").strip(),
            tuple(column[:MAX_COLUMN] for column in dict.fromkeys(columns) if column)[:MAX_COLUMNS],
        )

    def query(self, now: int) -> Query:
        """What a store is asked; `now` is in ms since 1970.

        Raises:
            QueryError: in the words (with a position) or in the times.
        """
        return Query(parse(self.q), self.since_ms(now), self.until_ms(now))

    def since_ms(self, now: int) -> int | None:
        return None if self.since == "all" else time_of(self.since, now, "From")

    def until_ms(self, now: int) -> int | None:
        return time_of(self.until, now, "To") if self.until else None

    def address(self, page: str = "/explore", **extra: str) -> str:
        """The address of a page with this view; the shortest that says it."""
        parameters = {"q": self.q, "until": self.until, "columns": ",".join(self.columns)}
        if self.since != DEFAULT_SINCE:
            parameters["since"] = self.since
        given = {name: value for name, value in {**parameters, **extra}.items() if value}
        return f"{page}?{urlencode(given)}" if given else page

    def between(self, since: int, until: int) -> View:
        """The same for a range in ms since 1970."""
        return replace(self, since=str(since), until=str(until))

    def with_term(self, term: Expression, *, exclude: bool = False) -> View:
        """Narrowed to, or without, what a term says; the opposite term gives way.

        Raises:
            QueryError: the words so far cannot be read, or it becomes too much.
        """
        where = parse(self.q)
        terms = list(where.terms) if isinstance(where, And) else [] if where is None else [where]
        added, opposite = (Not(term), term) if exclude else (term, Not(term))
        kept = [one for one in terms if one not in (added, opposite)]
        combined = (*kept, added)
        text = to_text(combined[0] if len(combined) == 1 else And(combined))
        parse(text)
        return replace(self, q=text)

    def toggled(self, column: str) -> View:
        """With one more pinned column, or one less."""
        if column in self.columns:
            return replace(self, columns=tuple(one for one in self.columns if one != column))
        return replace(self, columns=(*self.columns, column)[:MAX_COLUMNS])

    def words(self) -> list[str]:
        """Words that are searched for, to be marked in what is shown; none if it cannot be read."""
        try:
            found = parse(self.q)
        except QueryError:
            return []
        return sorted({word for word in _words(found) if word}, key=len, reverse=True)


def term_of(field: str, value: str, kind: str) -> Expression:
    """The comparison that a value in the result stands for; `kind` is its type in JSON.

    Raises:
        QueryError: it is none.
    """
    if kind == "exists":
        return Has(field)
    if kind == "string":
        return Compare(field, "=", value)
    if kind == "null":
        return Compare(field, "=", None)
    if kind == "boolean":
        return Compare(field, "=", value == "true")
    try:
        return Compare(field, "=", int(value) if value.lstrip("-").isdigit() else float(value))
    except ValueError:
        raise QueryError(f"{value[:40]!r} is no number") from None


def time_of(text: str, now: int, name: str) -> int:
    """`parse_time` with the name of the field in its error."""
    try:
        return parse_time(text, now)
    except QueryError as error:
        raise QueryError(f"{name}: {error}") from None


def _words(expression: Expression | None) -> list[str]:
    match expression:
        case Text(words):
            return list(words)
        case And(terms):
            return [word for term in terms for word in _words(term)]
    if expression is not None and hasattr(expression, "terms"):
        return [word for term in expression.terms for word in _words(term)]
    return []
