"""What is asked of a store, whichever it is.

An expression is a tree of the classes below; `language.parse` makes one of what people write,
`evaluate.matches` decides it for a single record and is what every store's answers are measured by.

A *field* is one of FIELDS, or else a dotted path into the record's JSON (`caller.functionName`,
`message.user.id`). A leading dot says that the JSON is meant where FIELDS has the name too (`.id`
is the id of a trace, `.message` what was logged). Exactly:

* At an object, the path goes on in each member whose name is all of the path that is left, or the
  beginning of it before a dot: member names may have dots of their own (`attributes.http.status`).
* At an array, it goes on in the item of this index if its next part is digits (`items.0`), and
  else in each item, at whatever depth of arrays.
* Everything that it leads to is the field's: a record can have a field several times. Where it ends
  at an array, each of its items is a value, at whatever depth of arrays; objects are none.
* What is None in FIELDS (`key` of a sender that has none) is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from hyperlog.errors import QueryError
from hyperlog.store.levels import LEVELS, level_of_name
from hyperlog.store.times import iso_ms
from hyperlog.store.words import scalar_text, words_of

__all__ = [
    "FIELDS",
    "And",
    "Compare",
    "Expression",
    "Has",
    "Not",
    "Operator",
    "Or",
    "Query",
    "Scalar",
    "Text",
    "check",
]

MAX_DEPTH: Final = 32  # of terms within terms
MAX_TERMS: Final = 256
MAX_FIELD: Final = 256  # characters
MAX_VALUE: Final = 1024  # characters of a text that is compared
MAX_WORDS: Final = 64  # of a phrase

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
TIMES: Final = ("time", "client_time")

Scalar: TypeAlias = str | int | float | bool | None
Operator: TypeAlias = Literal["=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Text:
    """Words that follow each other in one value of the record; `words` tells exactly what is a word
    and what is a value."""

    words: tuple[str, ...]
    """as `words_of` gives them"""
    prefix: bool = False
    """the last word may be longer"""


@dataclass(frozen=True, slots=True)
class Compare:
    """One of the field's values compares so with `value`; never true where the field is missing.

    * With a **text**: texts only, all characters counting, in the order of their code points (which
      is that of their UTF-8).
    * With a **number**: numbers, integers and others alike by their value; integers beyond 64 bits
      as the nearest double. `=` also holds for the text of the number: 404 for "404" and 1.5 for
      "1.5", as `number_text` writes them.
    * With **true, false or null**: `=` only, for the same and for the text "true", "false", "null".

    `level` compares with a number or a name (`level_of_name`), `time` and `client_time` with ms
    since 1970 or an ISO text (`iso_ms`).
    """

    field: str
    operator: Operator
    value: Scalar


@dataclass(frozen=True, slots=True)
class Has:
    """The record has the field, whatever its value: an object, an empty array or null as well."""

    field: str


@dataclass(frozen=True, slots=True)
class Not:
    term: Expression


@dataclass(frozen=True, slots=True)
class And:
    """All of two terms or more."""

    terms: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of two terms or more."""

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


def check(expression: Expression | None) -> None:
    """Raises:
    QueryError: no store can be asked this: too large, or a value that its field cannot have.
    """
    if expression is not None:
        _check(expression, 0, [MAX_TERMS])


def _check(expression: Expression, depth: int, room: list[int]) -> None:
    room[0] -= 1
    if room[0] < 0:
        raise QueryError(f"more than {MAX_TERMS} terms")
    if depth > MAX_DEPTH:
        raise QueryError(f"nested more than {MAX_DEPTH} deep")
    match expression:
        case And(terms) | Or(terms):
            if len(terms) < 2:
                raise QueryError("AND and OR take two terms or more")
            for term in terms:
                _check(term, depth + 1, room)
        case Not(term):
            _check(term, depth + 1, room)
        case Compare(field, operator, value):
            _check_field(field)
            _check_value(field, operator, value)
        case Has(field):
            _check_field(field)
        case Text(words):
            if not 0 < len(words) <= MAX_WORDS:
                raise QueryError(f"a phrase has 1 to {MAX_WORDS} words")
            if any(words_of(word) != [word] for word in words):
                raise QueryError("a phrase consists of words as words_of gives them")


def _check_field(field: str) -> None:
    if not 0 < len(field) <= MAX_FIELD:
        raise QueryError(f"the name of a field has 1 to {MAX_FIELD} characters")


def _check_value(field: str, operator: Operator, value: Scalar) -> None:
    if isinstance(value, str):
        if len(value) > MAX_VALUE:
            raise QueryError(
                f"a value of {len(value)} characters, at most {MAX_VALUE} are compared"
            )
        if field == "level" and level_of_name(value) is None:
            raise QueryError(f"{value[:64]!r} is no level; there are {', '.join(LEVELS)}")
        if field in TIMES and iso_ms(value) is None:
            raise QueryError(f"{value[:64]!r} is no time; expected an ISO time, 2026-11-20T14:05Z")
    elif (value is None or isinstance(value, bool)) and operator != "=":
        raise QueryError(f"{scalar_text(value)} is neither more nor less than anything: use :")
