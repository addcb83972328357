"""Parameters by which records are chosen, and the expression that they amount to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from hyperlog.errors import ConfigError, QueryError
from hyperlog.quantities import parse_duration
from hyperlog.store.language import parse
from hyperlog.store.levels import LEVEL_NAMES, level_of_name
from hyperlog.store.query import And, Compare, Expression
from hyperlog.store.times import parse_time
from hyperlog.web.endpoint import Arguments, Parameter
from hyperlog.web.problems import Problem

__all__ = [
    "FILTERS",
    "NAME",
    "TEXT",
    "TIMES",
    "expression_of",
    "parse_name",
    "parse_order",
    "parse_step",
    "query_problem",
    "whole_number",
]

MAX_STEP: Final = 366 * 86400  # s


def whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse_number(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 16):
            raise ValueError(f"is a whole number from {least} to {most}")
        number = int(text)
        if not least <= number <= most:
            raise ValueError(f"is a whole number from {least} to {most}")
        return number

    return parse_number


def _time(text: str) -> int:
    try:
        return parse_time(text, int(time.time() * 1000))
    except QueryError as error:
        raise ValueError(f"is wrong: {error}") from None


def _level(text: str) -> int:
    level = level_of_name(text)
    if level is None:
        raise ValueError(f"is one of {', '.join(LEVEL_NAMES.values())}")
    return level


def parse_step(text: str) -> int:
    try:
        seconds = parse_duration(text)
    except ConfigError as error:
        raise ValueError(f"is wrong: {error}") from None
    if not 1 <= seconds <= MAX_STEP:
        raise ValueError("is from 1s to 366d")
    return int(seconds * 1000)


def parse_order(text: str) -> str:
    if text not in ("newest", "oldest"):
        raise ValueError("is newest or oldest")
    return text


def parse_name(text: str) -> str:
    if not text or len(text) > 256:
        raise ValueError("has 1 to 256 characters")
    return text


TEXT: Final = {"type": "string"}
NAME: Final = {"type": "string", "minLength": 1, "maxLength": 256}
_WHEN: Final = {"type": "string", "examples": ["15m", "2026-11-20T14:05Z", "1795178400000"]}
FILTERS: Final = (
    Parameter("q", "words, phrases, `field:value`, `level>=warning`, `-not`, OR", TEXT),
    Parameter("bucket", "the application", NAME, parse_name),
    Parameter("instance", "the instance", NAME, parse_name),
    Parameter(
        "level", "this level and above", {"type": "string", "enum": [*LEVEL_NAMES.values()]}, _level
    ),
)
TIMES: Final = (
    Parameter("since", "received at this time or later: ISO, an age, or ms", _WHEN, _time),
    Parameter("until", "received before this time", _WHEN, _time),
)


def expression_of(arguments: Arguments, bucket: str | None) -> Expression | None:
    """What FILTERS ask for, of this bucket if one is told.

    Raises:
        Problem: the query cannot be understood.
    """
    terms: list[Expression] = []
    try:
        asked = parse(arguments["q"] or "")
    except QueryError as error:
        raise query_problem(error) from None
    if bucket is not None:
        terms.append(Compare("bucket", "=", bucket))
    if arguments["instance"] is not None:
        terms.append(Compare("instance", "=", arguments["instance"]))
    if arguments["level"] is not None:
        terms.append(Compare("level", ">=", arguments["level"]))
    if asked is not None:
        terms.append(asked)
    if len(terms) < 2:
        return terms[0] if terms else None
    return And(tuple(terms))


def query_problem(error: QueryError) -> Problem:
    problem = Problem(400, str(error), field="q", code=error.code)
    if error.position is not None:
        problem.members["position"] = error.position
    return problem
