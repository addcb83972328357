"""The language of queries: text to expression and back.

    query   = or
    or      = and { "OR" and }
    and     = unary { ["AND"] unary }
    unary   = ("NOT" | "-") unary | "(" or ")" | phrase | field | words
    phrase  = quoted ["*"]                      words in this order; * lets the last be longer
    words   = run ["*"]                         anything else without blanks, quotes, parentheses
    field   = name (":" | "=" | "!=" | ">" | ">=" | "<" | "<=") value | name ":*"
    name    = quoted | a run of letters, digits and . _ - / @ $, that begins with no digit
    value   = quoted | run

Inside quotes, \\" is a quote and \\\\ a backslash. What a bare value stands for depends on its
field: a name or a number for `level`, a number for `number`, an ISO time for times, a text for all
else of FIELDS; in the JSON, true, false, null and numbers stand for themselves, and everything else
is text, as is everything in quotes.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn, cast

from hyperlog.errors import QueryError
from hyperlog.store.levels import LEVEL_NAMES, level_of_name
from hyperlog.store.query import (
    FIELDS,
    MAX_DEPTH,
    MAX_VALUE,
    TIMES,
    And,
    Compare,
    Expression,
    Has,
    Not,
    Operator,
    Or,
    Scalar,
    Text,
    check,
)
from hyperlog.store.times import iso_ms
from hyperlog.store.words import scalar_text, words_of

__all__ = ["MAX_QUERY", "parse", "to_text"]

MAX_QUERY: Final = 8192  # characters

_BARE_NAME = re.compile(r"(?:[^\W\d]|[.@$])[\w.\-/@$]*")
_FIELD = re.compile(rf"(?P<name>{_BARE_NAME.pattern})(?P<operator>:(?:[<>]=?)?|!?=|[<>]=?)")
_OPERATOR = re.compile(r":(?:[<>]=?)?|!?=|[<>]=?")
_BLANK = re.compile(r"\s*")
_RUN = re.compile(r'[^\s()"]+')
_QUOTED = re.compile(r'"((?:[^"\\]++|\\.|\\)*+)"', re.DOTALL)
_ESCAPE = re.compile(r'\\(["\\])')
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?P<fraction>(?:\.\d+)?(?:[eE][+-]\d+)?)", re.ASCII)
_BARE_VALUE = re.compile(r"[\w.+\-/@$][\w.+\-/@$:=<>,;%&#~]*")
_CONSTANTS: Final[dict[str, Scalar]] = {"true": True, "false": False, "null": None}
_QUOTE_IT: Final = "to search for the text itself, put it in quotes"


def parse(text: str) -> Expression | None:
    """What a query says; None if it says nothing, which all records match.

    Raises:
        QueryError: with the position in `text`, and what is expected there.
    """
    if len(text) > MAX_QUERY:
        raise QueryError(f"a query of {len(text)} characters; at most {MAX_QUERY} are read")
    parser = _Parser(text)
    if parser.at_end():
        return None
    expression = parser.alternatives(0)
    if not parser.at_end():
        parser.fail("there is no ( for this )")
    check(expression)
    return expression


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def fail(self, message: str, position: int | None = None) -> NoReturn:
        raise QueryError(message, self.position if position is None else position)

    def at_end(self) -> bool:
        """Skips blanks."""
        blank = _BLANK.match(self.text, self.position)
        assert blank is not None
        self.position = blank.end()
        return self.position == len(self.text)

    def peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def keyword(self, word: str) -> bool:
        """Passes this word if it comes next."""
        if self.at_end():
            return False
        run = _RUN.match(self.text, self.position)
        if run is None or run[0] != word:
            return False
        self.position = run.end()
        return True

    def alternatives(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} deep")
        terms = [self.conjunction(depth)]
        while self.keyword("OR"):
            terms.append(self.conjunction(depth))
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def conjunction(self, depth: int) -> Expression:
        terms = [self.term(depth)]
        while not self.at_end() and self.peek() != ")":
            if not self.keyword("AND"):
                start = self.position
                if self.keyword("OR"):
                    self.position = start
                    break
            terms.append(self.term(depth))
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def term(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} deep")
        if self.at_end():
            self.fail("the query ends where a term is expected")
        for word in ("AND", "OR"):
            start = self.position
            if self.keyword(word):
                self.fail(f"a term is expected before {word}; {_QUOTE_IT}", start)
        if self.keyword("NOT"):
            return Not(self.term(depth + 1))
        match self.peek():
            case "-":
                self.position += 1
                if not self.peek().strip():
                    self.fail("a term is expected right after -")
                return Not(self.term(depth + 1))
            case "(":
                return self.group(depth)
            case ")":
                self.fail("a term is expected before )")
            case '"':
                return self.phrase()
            case _:
                return self.run()

    def group(self, depth: int) -> Expression:
        start = self.position
        self.position += 1
        inside = self.alternatives(depth + 1)
        if self.at_end():
            self.fail("this ( is not closed", start)
        self.position += 1
        return inside

    def quoted(self) -> str:
        found = _QUOTED.match(self.text, self.position)
        if found is None:
            self.fail('this " is not closed')
        self.position = found.end()
        return _ESCAPE.sub(r"\1", found[1])

    def phrase(self) -> Expression:
        start = self.position
        text = self.quoted()
        operator = _OPERATOR.match(self.text, self.position)
        if operator is not None:
            self.position = operator.end()
            return self.comparison(text, operator[0], start)
        prefix = self.peek() == "*"
        self.position += prefix
        return self.words(text, prefix, start)

    def run(self) -> Expression:
        start = self.position
        run = _RUN.match(self.text, start)
        assert run is not None  # no blank, quote or parenthesis
        field = _FIELD.match(run[0])
        # http://host, fe80::1 and Class::method are no fields.
        if field is not None and not run[0].startswith(("//", ":"), field.end()):
            self.position = start + field.end()
            return self.comparison(field["name"], field["operator"], start)
        self.position = run.end()
        text = run[0]
        prefix = text.endswith("*")
        if text == "*":
            self.fail("* alone stands for nothing; an empty query finds all records", start)
        if "*" in text[:-1]:
            place = start + text.index("*")
            self.fail(f"* stands at the end of a word; {_QUOTE_IT}", place)
        return self.words(text, prefix, start)

    def words(self, text: str, prefix: bool, start: int) -> Expression:
        words = tuple(words_of(text))
        if not words:
            self.fail("there is no letter or digit to search for", start)
        return Text(words, prefix)

    def comparison(self, field: str, operator: str, start: int) -> Expression:
        """What follows the operator; `start` is where the field begins."""
        place = self.position
        value: Scalar
        if self.peek() == '"':
            value = self.quoted()
        else:
            run = _RUN.match(self.text, place)
            if run is None:
                self.fail(f"a value is expected after {self.text[start:place]}; {_QUOTE_IT}")
            self.position = run.end()
            if run[0] == "*" and operator in (":", "="):
                return self.checked(Has(field), start)
            if "*" in run[0]:
                found = place + run[0].index("*")
                self.fail("* has no meaning in a value; put the value in quotes", found)
            value = self.bare_value(field, run[0], place)
        if operator == "!=":
            return Not(self.checked(Compare(field, "=", value), place))
        plain = "=" if operator == ":" else operator.removeprefix(":")
        return self.checked(Compare(field, cast("Operator", plain), value), place)

    def checked(self, term: Compare | Has, place: int) -> Expression:
        try:
            check(term)
        except QueryError as err:
            self.fail(str(err), place)
        return term

    def bare_value(self, field: str, text: str, place: int) -> Scalar:
        number = _NUMBER.fullmatch(text)
        if number is not None and (field in _NUMERIC or field not in FIELDS):
            if len(text) > MAX_VALUE:  # int() itself refuses some thousands of digits
                self.fail(
                    f"a number of {len(text)} characters, at most {MAX_VALUE} are read", place
                )
            return float(text) if number["fraction"] else int(text)
        if field == "level":
            return level_of_name(text) or text
        if field == "number":
            self.fail("a number is expected", place)
        if field not in FIELDS and text in _CONSTANTS:
            return _CONSTANTS[text]
        return text


_NUMERIC: Final = frozenset({"level", "number", *TIMES})


# -- and back


def to_text(expression: Expression | None) -> str:
    """A query that says this: `parse(to_text(e)) == e` for all that `parse` gives."""
    match expression:
        case None:
            return ""
        case Or(terms):
            return " OR ".join(_inner(term, (Or,)) for term in terms)
        case And(terms):
            return " ".join(_inner(term, (Or, And)) for term in terms)
        case Not(term):
            return f"-{_inner(term, (Or, And))}"
        case Text(words, prefix):
            text = words[0] if len(words) == 1 else f'"{" ".join(words)}"'
            return f"{text}*" if prefix else text
        case Has(field):
            return f"{_name(field)}:*"
        case Compare(field, operator, value):
            sign = ":" if operator == "=" else operator
            return f"{_name(field)}{sign}{_value(field, value)}"


def _inner(term: Expression, grouped: tuple[type, ...]) -> str:
    text = to_text(term)
    return f"({text})" if isinstance(term, grouped) else text


def _name(field: str) -> str:
    return field if _BARE_NAME.fullmatch(field) else _in_quotes(field)


def _in_quotes(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _value(field: str, value: Scalar) -> str:
    if isinstance(value, str):
        bare = _BARE_VALUE.fullmatch(value) and not value.startswith("//")
        if field in TIMES:
            bare = bare and iso_ms(value) is not None and not _NUMBER.fullmatch(value)
        elif field in _NUMERIC:
            bare = False
        elif field not in FIELDS:
            bare = bare and value not in _CONSTANTS and not _NUMBER.fullmatch(value)
        return value if bare else _in_quotes(value)
    if field == "level" and value in LEVEL_NAMES and isinstance(value, int):
        return LEVEL_NAMES[value].lower()
    return scalar_text(value)
