from __future__ import annotations

import pytest

from hyperlog.errors import QueryError
from hyperlog.store.query import (
    MAX_DEPTH,
    MAX_FIELD,
    MAX_TERMS,
    MAX_VALUE,
    MAX_WORDS,
    And,
    Compare,
    Has,
    Not,
    Or,
    Text,
    check,
)


@pytest.mark.parametrize(
    "expression",
    [
        Text(()),
        Text(("Upper",)),
        Text(("two words",)),
        Text(("",)),
        Text(("a",) * 65),
        And((Text(("a",)),)),
        Or(()),
        Compare("", "=", 1),
        Compare("x" * 257, "=", 1),
        Compare("x", "=", "y" * 1025),
        Compare("x", "<", None),
        Compare("x", ">", True),
        Compare("level", "=", "loud"),
        Compare("time", "=", "now"),
        Has(""),
        Or((Text(("a",)),) * 256),
    ],
)
def test_what_no_store_can_be_asked_is_refused(expression):
    for asked in (expression, Not(expression), Or((Text(("a",)), expression))):
        with pytest.raises(QueryError):
            check(asked)


def test_what_is_nested_too_deep_is_refused():
    expression = Text(("a",))
    for _ in range(100_000):
        expression = Not(expression)
    with pytest.raises(QueryError, match="32 deep"):
        check(expression)


@pytest.mark.parametrize(
    "expression",
    [
        None,
        Text(("a",) * MAX_WORDS),
        Compare("x" * MAX_FIELD, "=", "y" * MAX_VALUE),
        Compare("x", "=", None),
        Compare("level", ">=", "warn"),
        Compare("time", ">=", "2026-11-20"),
        Compare("time", ">=", -1.5),
        And((Text(("a",)), Has("x"))),
        Or((Text(("a",)),) * (MAX_TERMS - 1)),
    ],
)
def test_what_is_within_the_limits_can_be_asked(expression):
    check(expression)


def test_terms_may_be_nested_as_deep_as_the_limit():
    expression = Text(("a",))
    for _ in range(MAX_DEPTH):
        expression = Not(expression)
    check(expression)
    with pytest.raises(QueryError):
        check(Not(expression))
