"""hyperlog.sinks.linecut: long lines become short ones that are still the same record."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.sinks.linecut import IDENTITY, cut_line
from hyperlog.sinks.scan import session_of_line

LIMIT = 8192


def record(**more) -> dict:
    return {
        "time": "2026-01-02T03:04:05.678Z",
        "userId": "ann___abababab",
        "traceTimestamp": "2026-01-02T03:04:05.600Z",
        "traceSessionId": "4242",
        "traceNumber": 7,
        "id": "put",
        "props": {"username": "ann"},
        "object": {"id": 1, "className": "Store", "props": None},
        "caller": {"filename": "/srv/store.js", "functionName": "put", "props": {}},
        **more,
    }


def encode(value) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def cut(value, limit=LIMIT) -> dict:
    line = cut_line(encode(value), limit)
    assert len(line) <= limit
    assert b"\n" not in line
    return json.loads(line)


def test_a_line_that_fits_is_left_alone():
    line = encode(record())
    assert cut_line(line, len(line)) is line


def test_the_largest_value_is_replaced_by_its_size_and_the_rest_kept():
    whole = record(props={"username": "ann", "deep": {"dump": "x" * 100_000, "small": [1, 2]}})
    found = cut(whole)
    whole["props"]["deep"]["dump"] = "[cut: 100002 bytes]"
    assert found == {**whole, "cut": True}


def test_several_large_values_share_the_room():
    props = {str(n): "x" * 3000 for n in range(4)} | {"s": "y" * 500}
    found = cut(record(props=props))["props"]
    assert found["s"] == "y" * 500
    assert all(found[str(n)] == "[cut: 3002 bytes]" for n in range(4))


def test_items_of_a_long_array_are_cut_where_they_are_long():
    whole = record(props={"list": ["a" * 20_000, 1, ["b" * 30_000, "c"], None]})
    assert cut(whole)["props"] == {
        "list": ["[cut: 20002 bytes]", 1, ["[cut: 30002 bytes]", "c"], None]
    }


def test_an_array_of_very_many_items_is_cut_as_a_whole():
    assert cut(record(props=list(range(100_000))))["props"] == "[cut: 588891 bytes]"
    assert cut(record(props={"list": [0] * 5_000}))["props"]["list"] == "[cut: 10001 bytes]"


def test_commas_inside_of_a_text_are_no_members():
    whole = record(props={"username": "ann", "csv": "a," * 100_000})
    assert cut(whole)["props"] == {"username": "ann", "csv": "[cut: 200002 bytes]"}


def test_a_line_of_very_many_members_keeps_what_identifies_it():
    whole = record(**{f"k{n}": n for n in range(100_000)})
    found = cut(whole)
    assert found["traceSessionId"] == "4242"
    assert found["traceNumber"] == 7
    assert found["time"] == whole["time"]
    assert found["cut"] is True


def test_a_client_cannot_hide_a_cut():
    found = cut(record(cut=False, props={"x": "y" * 10_000}))
    assert found["cut"] is True


def test_a_long_name_is_cut_with_what_it_belongs_to():
    assert cut(record(props={"n" * 10_000: 1}))["props"] == "[cut: 10006 bytes]"
    found = cut(record(**{"n" * 10_000: 1}))
    assert found["traceNumber"] == 7


def test_names_stay_safe_to_print():
    line = rb'{"time":"x","a\u202eb\u009b":{"c\u007f":"%b"}}' % (b"x" * 10_000)
    result = cut_line(line, LIMIT)
    assert rb'"a\u202eb\u009b":{"c\u007f":"[cut: 10002 bytes]"}' in result


def test_a_long_identity_is_cut_rather_than_kept_at_any_size():
    found = cut(record(userId="u" * 100_000, id="i" * 100_000))
    assert found["userId"].startswith("[cut: ")
    assert found["traceNumber"] == 7


def test_what_is_no_object_is_replaced_by_its_size():
    assert json.loads(cut_line(b"x" * 10_000, LIMIT)) == {"note": "[cut: 10000 bytes]", "cut": True}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=40), inner, max_size=30)
    ),
    max_leaves=60,
)


@given(value=st.dictionaries(st.text(max_size=20), JSON, max_size=6), limit=st.integers(4096, 6000))
def test_any_record_becomes_one_of_the_same_session_and_number(value, limit):
    value.pop("gap", None)  # a server's own: what a client calls so has another name in its line
    line = encode({**value, **record(), "filler": "x" * limit})
    result = cut_line(line, limit)
    assert len(result) <= limit
    found = json.loads(result)
    assert found["cut"] is True
    assert session_of_line(result) == ("4242", 7)
    for name in ("time", "userId", "traceTimestamp"):
        assert found[name] == record()[name]


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 100 + b"0," * 2_000_000 + b"0" + b"]" * 100,
        b'{"a":' * 100 + b'"' + b"x," * 4_000_000 + b'"' + b"}" * 100,
        b"[" + b'"\\u0041",' * 800_000 + b"0]",
        b"[" + b",".join([b"[0]"] * 30_000) + b"," + b'"' + b"x" * 7_000_000 + b'"]',
        b"{" + b",".join(b'"%d":0' % n for n in range(600_000)) + b"}",
    ],
    ids=["depth", "strings", "escapes", "arrays", "members"],
)
def test_a_line_made_to_be_expensive_is_cut_in_bounded_time(bomb):
    line = encode(record())[:-1] + b',"props2":' + bomb + b"}"
    start = time.process_time()
    result = cut_line(line, 65536)
    assert time.process_time() - start < 0.5
    assert len(result) <= 65536
    assert session_of_line(result) == ("4242", 7)


@pytest.mark.parametrize("size", [250, 400, 2000, 5000])
def test_what_tells_a_record_is_kept_however_large_the_rest_of_its_identity_is(size):
    own = {"time": "2026-11-20T23:41:09.954Z", "traceSessionId": "6714695002189166"}
    others = dict.fromkeys(sorted(IDENTITY - {*own, "traceNumber"}), "x" * size)
    line = encode({**own, "traceNumber": 7, **others, "props": {"pad": "x" * 100_000}})
    result = cut_line(line, 4096)
    assert len(result) <= 4096
    fields = json.loads(result)
    assert {name: fields.get(name) for name in own} == own
    assert fields["traceNumber"] == 7
    assert fields["cut"] is True
