"""What is asked of a store, whichever it is.

An expression is a tree of the classes below; `parse` makes one of what people write, `matches`
decides it for a single record and is what every store's answers are measured by.

A field is one of FIELDS, or else a dotted path into the record's JSON (`caller.functionName`,
`message.user.id`); an index into an array is a number (`items.0`), and a path that meets an array
without one looks into each of its items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = ["FIELDS", "And", "Compare", "Expression", "Has", "Not", "Or", "Query", "Text"]

FIELDS: Final = (
    "id",
    "server",
    "source",
    "bucket",
    "instance",
    "key",
    "session",
    "number",
    "time",
    "client_time",
    "level",
    "kind",
    "message",
)
"""fields of StoredRecord that can be compared; `level` also by name, times also as ISO texts.
`message` is the one line of text; an object that was logged is reached by `message.<path>`"""

Operator: TypeAlias = Literal["=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Text:
    """Words that follow each other in one value of the record, whatever their case.

    Values are all strings and numbers of the line's JSON at any depth, and `message`. Names of
    members are not searched.
    """

    words: tuple[str, ...]
    """as `words_of` gives them"""
    prefix: bool = False
    """the last word may be longer"""


@dataclass(frozen=True, slots=True)
class Compare:
    """A field's value compared; never true where the field is missing or of another type."""

    field: str
    operator: Operator
    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Has:
    """The record has the field, whatever its value."""

    field: str


@dataclass(frozen=True, slots=True)
class Not:
    term: Expression


@dataclass(frozen=True, slots=True)
class And:
    terms: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    terms: tuple[Expression, ...]


Expression: TypeAlias = Text | Compare | Has | Not | And | Or


@dataclass(frozen=True, slots=True)
class Query:
    """Which records; times are milliseconds since 1970 of when the server received them."""

    where: Expression | None = None
    """None for all"""
    since: int | None = None
    """inclusive"""
    until: int | None = None
    """exclusive"""
