from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import BadRecord
from hyperlog.records import parse_client_message_untrusted
from hyperlog.web.logformat import (
    MAX_RECORDS,
    MAX_VALUES,
    BadField,
    parse_record_untrusted,
    split_records_untrusted,
)

NOW = 1_795_178_400.25


def message(**fields):
    entry = parse_record_untrusted(json.dumps(fields).encode(), NOW)
    return json.loads(entry.message)


def test_a_message_alone_gets_the_time_and_the_level_of_most():
    assert message(message="disk full") == {
        "traceTimestamp": "2026-11-20T12:40:00.250Z",
        "level": "INFO",
        "message": "disk full",
    }


def test_every_field_is_passed_on():
    fields = {
        "message": {"text": "disk full", "free": 0},
        "logger": "db",
        "props": {"username": "ada"},
        "exception": {"type": "OSError", "message": "no space", "stack": "…"},
        "caller": {"filename": "a.py", "functionName": "f", "line": 3},
        "attributes": {"user": {"id": 7}},
        "traceSessionId": "1786",
        "traceNumber": 12,
    }
    assert message(**fields, level="warn", time="2026-01-02T03:04:05+01:00") == {
        **fields,
        "traceTimestamp": "2026-01-02T02:04:05.000Z",
        "level": "WARNING",
    }


def test_what_has_another_name_becomes_an_attribute():
    assert message(message="x", pod="a-1", attributes={"pod": "b-2", "n": 1})["attributes"] == {
        "pod": "b-2",
        "n": 1,
    }
    assert message(message="x", container={"id": "c"})["attributes"] == {"container": {"id": "c"}}


def test_members_that_are_null_are_left_out():
    names = ("logger", "props", "attributes", "exception", "caller", "instance")
    assert set(message(message="x", **dict.fromkeys(names))) == {
        "traceTimestamp",
        "level",
        "message",
    }


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("DEBUG", "DEBUG"),
        ("Info", "INFO"),
        ("warn", "WARNING"),
        ("FATAL", "CRITICAL"),
        ("trace", "DEBUG"),
        (40, "ERROR"),
        (35, "WARNING"),
        (0, "DEBUG"),
    ],
)
def test_levels_of_others_are_understood(given, name):
    assert message(message="x", level=given)["level"] == name


@pytest.mark.parametrize(
    ("given", "time"),
    [
        ("2026-11-20T10:00:00Z", "2026-11-20T10:00:00.000Z"),
        ("2026-11-20 10:00:00.1239", "2026-11-20T10:00:00.124Z"),
        (1795168800, "2026-11-20T10:00:00.000Z"),
        (1795168800.5, "2026-11-20T10:00:00.500Z"),
        (1795168800500, "2026-11-20T10:00:00.500Z"),
        (1795168800500000, "2026-11-20T10:00:00.500Z"),
        (1795168800500000000, "2026-11-20T10:00:00.500Z"),
    ],
)
def test_times_are_iso_texts_or_numbers_of_any_unit(given, time):
    assert message(message="x", time=given)["traceTimestamp"] == time


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "message"),
        ({"message": None}, "message"),
        ({"message": 3}, "message"),
        ({"message": ["x"]}, "message"),
        ({"message": "x", "level": "LOUD"}, "level"),
        ({"message": "x", "level": True}, "level"),
        ({"message": "x", "level": -1}, "level"),
        ({"message": "x", "level": {}}, "level"),
        ({"message": "x", "time": "yesterday"}, "time"),
        ({"message": "x", "time": -1}, "time"),
        ({"message": "x", "time": 1e300}, "time"),
        ({"message": "x", "time": "0001-01-01T00:00:00+23:00"}, "time"),
        ({"message": "x", "time": []}, "time"),
        ({"message": "x", "logger": 3}, "logger"),
        ({"message": "x", "logger": "l" * 257}, "logger"),
        ({"message": "x", "attributes": []}, "attributes"),
        ({"message": "x", "attributes": "a", "pod": 1}, "attributes"),
        ({"message": "x", "props": "p"}, "props"),
        ({"message": "x", "exception": "e"}, "exception"),
        ({"message": "x", "caller": 1}, "caller"),
        ({"message": "x", "traceSessionId": "1"}, "traceNumber"),
        ({"message": "x", "traceNumber": 1}, "traceSessionId"),
        ({"message": "x", "traceSessionId": "", "traceNumber": 1}, "traceSessionId"),
        ({"message": "x", "traceSessionId": "1" * 129, "traceNumber": 1}, "traceSessionId"),
        ({"message": "x", "traceSessionId": 1, "traceNumber": 1}, "traceSessionId"),
        ({"message": "x", "traceSessionId": "1", "traceNumber": -1}, "traceNumber"),
        ({"message": "x", "traceSessionId": "1", "traceNumber": 2**53}, "traceNumber"),
        ({"message": "x", "traceSessionId": "1", "traceNumber": 1.5}, "traceNumber"),
        ({"message": "x", "traceSessionId": "1", "traceNumber": True}, "traceNumber"),
        ({"message": "x", "instance": ""}, "instance"),
        ({"message": "x", "instance": "i" * 65}, "instance"),
        ({"message": "x", "instance": "a\nb"}, "instance"),
        ({"message": "x", "instance": "\u202eb"}, "instance"),
        ({"message": "x", "instance": 7}, "instance"),
        ({"app_name": "cerco", "instance_name": "a"}, "data"),
        ({"app_name": "cerco", "instance_name": "a", "data": {}}, "data.content"),
        ({"app_name": "cerco", "instance_name": "a", "data": {"content": 3}}, "data.content"),
        ({"instance_name": "a", "data": {"content": "x"}}, "app_name"),
        ({"app_name": "cerco", "data": {"content": "x"}}, "instance_name"),
        (
            {"app_name": "c", "instance_name": "a", "data": {"content": "x", "message_level": "?"}},
            "data.message_level",
        ),
    ],
)
def test_what_is_wrong_is_named(fields, field):
    with pytest.raises(BadField) as caught:
        message(**fields)
    assert caught.value.field == field
    assert field in str(caught.value)


def test_the_body_of_lion_handler_is_understood():
    entry = parse_record_untrusted(
        json.dumps(
            {
                "app_name": "cerco",
                "instance_name": "a2b5",
                "data": {"content": "disk full", "message_level": "ERROR"},
                "timestamp": "2021-11-06 10:00:00",
            }
        ).encode(),
        NOW,
    )
    assert (entry.application, entry.instance) == ("cerco", "a2b5")
    assert json.loads(entry.message) == {
        "traceTimestamp": "2021-11-06T10:00:00.000Z",
        "level": "ERROR",
        "message": "disk full",
    }


def test_a_trace_is_taken_as_it_is():
    trace = b'{"traceSessionId":"1","traceNumber":0,"object":{"id":1},"caller":{"filename":"a"}}'
    assert parse_record_untrusted(trace, NOW).message == trace


@pytest.mark.parametrize(
    ("data", "kind", "records"),
    [
        (b' {"a":1} ', "application/json", [b'{"a":1}']),
        (b'{"a":\n1}', "", [b'{"a":\n1}']),
        (b'[{"a":1}, {"b":2}]', "application/json; charset=utf-8", [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\n\n{"b":2}\r\n', "application/json", [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\n{"b":2}', "application/x-ndjson", [b'{"a":1}', b'{"b":2}']),
        (b'[1]\n{"b":2}', "application/x-ndjson", [b"[1]", b'{"b":2}']),
        (b"[]", "", []),
        (b"", "", []),
        (b" \n ", "text/plain", []),
    ],
)
def test_one_record_an_array_or_one_in_each_line(data, kind, records):
    assert split_records_untrusted(data, kind) == records


def test_a_body_of_another_type_is_none():
    with pytest.raises(LookupError):
        split_records_untrusted(b"{}", "application/x-protobuf")


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b",".join([b"{}"] * (MAX_RECORDS + 1)) + b"]",
        b"{}\n" * (MAX_RECORDS + 1),
        b"{}" + b"\n" * (2 * MAX_RECORDS + 1) + b"{}",
        b"[" + b"1," * MAX_VALUES + b"1,1]",
        b"[1,",
        b"[" * 100_000,
        b'["\xff"',
    ],
    ids=["array", "lines", "empty lines", "values", "torn", "deep", "no text"],
)
def test_a_body_that_cannot_be_cut_apart_is_refused_as_a_whole(data):
    with pytest.raises(BadField):
        split_records_untrusted(data, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TEXTS = ["message", "level", "time", "logger", "instance", "traceSessionId", "timestamp"]
OBJECTS = ["attributes", "exception", "caller", "props", "object", "data", "other"]
NAMES = st.sampled_from([*TEXTS, *OBJECTS, "traceNumber", "app_name", "instance_name"])


@given(st.dictionaries(NAMES, JSON) | st.dictionaries(NAMES, st.text() | st.integers()))
def test_any_object_becomes_a_message_or_a_reason(fields):
    data = json.dumps(fields, ensure_ascii=False).encode(errors="surrogatepass")
    try:
        entry = parse_record_untrusted(data, NOW)
    except BadField:
        return
    decoded = msgspec.json.decode(entry.message)
    assert isinstance(decoded, dict)
    if "traceSessionId" not in decoded:
        decoded |= {"traceSessionId": "1", "traceNumber": 0}
    try:
        parse_client_message_untrusted(msgspec.json.encode(decoded))
    except BadRecord:
        assert "object" in fields or "message" in fields


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_a_reason(data):
    try:
        for one in split_records_untrusted(data, ""):
            parse_record_untrusted(one, NOW)
    except BadField:
        pass


@pytest.mark.parametrize(
    "text",
    [
        b'{"message":"m","time":%b}' % (b"9" * 400),
        b'{"message":"m","time":"\xff"}',
        b'{"message":"m","instance":"\xff"}',
        b'{"message":"m","instance":1e400}',
        b'{"message":"m","traceSessionId":"\xff","traceNumber":1}',
        b'{"message":"m","traceSessionId":"s","traceNumber":1e400}',
        b'{"message":"m","logger":"\xff"}',
        b'{"message":"m","more":1,"attributes":{"\xff":1}}',
        b'{"app_name":"a","instance_name":"i","data":{"content":"m","\xff":1}}',
    ],
)
def test_a_value_that_cannot_be_read_is_its_record_s_fault_alone(text):
    with pytest.raises(BadField):
        parse_record_untrusted(text, NOW)
