"""hyperlog.replacer: what becomes of the application's values."""

from __future__ import annotations

import errno
import json
import math
from collections import OrderedDict, UserDict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.replacer import (
    MAX_DEPTH,
    MAX_REPR,
    MAX_TEXT,
    MAX_VALUES,
    replace_props,
    replace_strictly,
    safe_text,
)


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class CodeError(Exception):
    code = "ECODE"


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError


class Text(str):
    __slots__ = ()

    def __str__(self):
        raise RuntimeError


class Account:
    def __repr__(self):
        return "Account(7)" + "." * 1000


class Broken:
    def __repr__(self):
        raise RuntimeError


@dataclass
class Login:
    user: str
    password: str = field(repr=False)


def encoded(value):
    return json.loads(msgspec.json.encode(replace_strictly({"v": value})))["v"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\x01\x02\xff", "0102ff"),
        (bytearray(b"abc"), "616263"),
        (memoryview(b"abcdef")[::2], "616365"),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (datetime(1970, 1, 1, tzinfo=UTC), "1970-01-01T00:00:00.000Z"),
        (
            datetime(2026, 1, 1, 1, 0, 0, 999999, tzinfo=timezone(timedelta(hours=1))),
            "2026-01-01T00:00:00.999Z",
        ),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(seconds=90), "0:01:30"),
        (ValueError("bad"), {"message": "bad", "name": "ValueError"}),
        (CodeError("x"), {"code": "ECODE", "message": "x", "name": "CodeError"}),
        (
            FileNotFoundError(errno.ENOENT, "gone"),
            {"code": "ENOENT", "message": "[Errno 2] gone", "name": "FileNotFoundError"},
        ),
        (MuteError(), {"message": "[unserialisable MuteError]", "name": "MuteError"}),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (frozenset({3}), [3]),
        (deque([1]), [1]),
        (OrderedDict(a=1), {"a": 1}),
        (UserDict(a=1), {"a": 1}),
        (
            {1: "a", None: "b", 2.5: "d", (1, 2): "e"},
            {"1": "a", "null": "b", "2.5": "d", "(1, 2)": "e"},
        ),
        ({True: "a", False: "b"}, {"true": "a", "false": "b"}),
        (Colour.RED, "red"),
        (Level.LOW, 1),
        (Text("sub"), "sub"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.50"), "1.50"),
        (PurePosixPath("/a/b"), "/a/b"),
        (2**53 + 1, 2**53 + 1),
        (2**64, 2**64),
        (-(2**100), -(2**100)),
        (10**5000, "[integer of 16610 bits]"),
        ("half \ud800 pair", "half \ufffd pair"),
        ("whole \ud83d\ude00 pair", "whole \U0001f600 pair"),
        (Broken(), "[unserialisable Broken]"),
        (print, "<built-in function print>"),
        (Login("u", "hunter2"), {"user": "u"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_replaced(value, expected):
    assert encoded(value) == expected


def test_naive_times_are_local():
    local = datetime(2026, 6, 1, 12, 0, 0)
    assert encoded(local) == encoded(local.astimezone(UTC))


def test_errors_keep_the_innermost_frames():
    def fail(depth):
        if depth:
            fail(depth - 1)
        raise ValueError("deep")

    with pytest.raises(ValueError, match="deep") as caught:
        fail(50)
    lines = encoded(caught.value)["stack"].split("\n")
    assert lines[0] == "ValueError: deep"
    assert len(lines) == 17
    assert "fail" in lines[1]
    assert __file__ in lines[1]


def test_long_reprs_are_cut():
    text = encoded(Account())
    assert text.startswith("Account(7)...")
    assert len(text) < MAX_REPR + 50


def test_circular_structures_are_marked():
    loop: dict = {"n": 1}
    loop["self"] = loop
    items: list = [1]
    items.append(items)
    assert encoded(loop) == {"n": 1, "self": "[circular]"}
    assert encoded(items) == [1, "[circular]"]


def test_the_same_object_twice_is_not_circular():
    shared = {"n": 1}
    assert encoded([shared, shared]) == [shared, shared]


def test_depth_is_bounded():
    value: list = []
    for _ in range(10_000):
        value = [value]
    depth = 0
    result = encoded(value)
    while isinstance(result, list):
        result, depth = result[0], depth + 1
    assert result == "[too deep: list]"
    assert depth == MAX_DEPTH - 1  # props themselves are the first level


def test_number_of_values_is_bounded():
    result = encoded(list(range(MAX_VALUES * 2)))
    assert len(result) <= MAX_VALUES
    assert result[-1].endswith("more items]")
    result = replace_strictly({str(n): n for n in range(MAX_VALUES * 2)})
    assert len(result) == MAX_VALUES + 1
    assert result["..."] == f"[{MAX_VALUES} more entries]"


def test_all_text_together_is_bounded():
    result = encoded(["x" * MAX_TEXT] * 50 + [b"y" * MAX_TEXT] * 50)
    assert len(json.dumps(result)) < 2 * MAX_TEXT
    assert result[1].endswith("more characters]")
    assert result[-1].endswith("more bytes]")


def test_plain_props_are_passed_through():
    props = {"text": "x", "n": 1, "f": 1.5, "b": True, "none": None}
    assert replace_props(props) is props


@pytest.mark.parametrize("value", [b"", [], {}, Text("x"), Level.LOW, object()])
def test_other_props_are_replaced(value):
    props = {"v": value}
    assert replace_props(props) is not props


def test_keys_that_are_no_text_are_replaced():
    assert replace_props({1: "a"}) == {"1": "a"}


def test_text_is_cut_where_told():
    assert safe_text("abcdef", 3) == "abc[... 3 more characters]"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.datetimes()
    | st.just(object())
    | st.builds(ValueError, st.text()),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters()) | st.integers() | st.none(), values))
def test_anything_becomes_json(props):
    json.loads(msgspec.json.encode(replace_strictly(props)))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=50), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=50), json_values))
def test_json_values_stay_what_they_are(props):
    assert json.loads(msgspec.json.encode(replace_strictly(props))) == props
