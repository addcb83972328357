from __future__ import annotations

import json

import pytest

from hyperlog.errors import QueryError
from hyperlog.store.evaluate import (
    field_values,
    has_field,
    matcher,
    matches,
    plain,
    selects,
    value_order,
)
from hyperlog.store.language import parse
from hyperlog.store.query import FIELDS, And, Compare, Has, Not, Query, Text
from hyperlog.store.records import StoredRecord, record_of

SOURCE = bytes(range(32))
MEMBERS = {
    "time": "2026-11-20T23:41:09.954Z",
    "userId": "alice___00010203",
    "app": "cerco",
    "instance": "a2b5",
    "traceTimestamp": "2026-11-20T23:41:09.950Z",
    "traceSessionId": "8734",
    "traceNumber": 4711,
    "level": "WARNING",
    "id": "a trace's",
    "message": {"event": "User Created", "user": {"id": 7, "roles": ["admin", "dev"]}},
    "props": {
        "n": 404,
        "s": "404",
        "f": 1.5,
        "t": True,
        "z": None,
        "empty": [],
        "object": {},
        "big": 2**64,
        "list": [1, [2, [3.0]], {"a": 4}, {"a": [5, "six"]}],
        "": "no name",
        "a.b": {"c.d": 1},
        "a": {"b.c": {"d": 2}, "b": {"c": {"d": 3}}},
        "$x": "dollar",
    },
}


@pytest.fixture(scope="module")
def record() -> StoredRecord:
    found = record_of(json.dumps(MEMBERS).encode(), SOURCE, "ab" * 32)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "query",
    [
        "alice___00010203",
        '"user created"',
        "creat*",
        '"user cre"*',
        "404",
        "dev admin",
        '"no name"',
        "props.n:404",
        "props.n>=404 props.n<=404 props.n<405 props.n>403.5",
        "props.n:404.0",
        'props.s:"404"',
        "props.s:404",
        "props.f:1.5",
        "props.t:true",
        "props.z:null",
        "props.big:18446744073709551616 props.big:18446744073709551617",
        "props.list:1 props.list:2 props.list:3",
        "props.list.a:4 props.list.a:5 props.list.a:six",
        "props.list.0:1 props.list.1:2 props.list.1.0:2 props.list.3.a.1:six",
        "props.a.b.c.d:1 props.a.b.c.d:2 props.a.b.c.d:3",
        'props.:"no name"',
        "props.$x:dollar",
        "props.empty:* props.object:* props.z:* props:*",
        "-props.missing:* -props.list.a.0.b:*",
        "bucket:cerco instance:a2b5 kind:log session:8734 number:4711",
        "level:warning level>=info level<error level:30 level>29.5",
        "time:2026-11-20T23:41:09.954Z time>2026-11-20 client_time<2026-11-21",
        f"message:{json.dumps(json.dumps(MEMBERS['message']))}",
        "message.user.id:7 message.user.roles:dev",
        '.id:"a trace\'s" .message.event:* .level:WARNING .time>="2026"',
        "key:* server:* source:*",
        "userId>=alice userId<bob",
        "nothing OR alice___00010203",
        "-(alice___00010203 nothing)",
    ],
)
def test_true(record, query):
    assert matches(parse(query), record)


@pytest.mark.parametrize(
    "query",
    [
        "alice",
        "reated",
        '"created event"',
        '"created 7"',
        "props",
        "true",
        "4711",
        "2026",
        'props.n:"404"',
        "props.n:405",
        "props.s>403",
        "props.s<=404",
        "props.t:1",
        "props.n:true",
        "props.z:0",
        "props.z:false",
        "props.empty:null",
        "props.object:null",
        "props.list:4",
        "props.list.9:*",
        "props.list.0.0:*",
        "props.list.00:2",
        "props.missing:null",
        "props.missing!=5 nothing",
        "level>=error",
        "bucket:Cerco",
        "bucket>=d",
        "number:4712",
        "id:alice",
        "kind:trace",
        "alice___00010203 nothing",
        "-alice___00010203",
    ],
)
def test_false(record, query):
    assert not matches(parse(query), record)


def test_missing_fields_compare_with_nothing_but_not_is_true(record):
    for operator in ("=", "<", "<=", ">", ">="):
        compare = Compare("props.missing", operator, 5)
        assert not matches(compare, record)
        assert matches(Not(compare), record)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_record_has_its_value(record, field):
    value = getattr(record, field)
    assert field_values(record, field) == [value]
    assert matches(Compare(field, "=", value), record)
    assert matches(Has(field), record)


def test_what_is_none_is_missing():
    note = record_of(b'{"time":"2026-11-20T23:41:09.954Z","note":"x"}', SOURCE, "ab" * 32)
    assert note is not None
    for field in ("session", "number", "client_time"):
        assert field_values(note, field) == []
        assert not has_field(note, field)
        assert not matches(Compare(field, "=", None), note)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("props.list", [1, 2, 3]),
        ("props.list.a", [4, 5, "six"]),
        ("props.t", [True]),
        ("props.z", [None]),
        ("props.object", []),
        ("props", []),
        ("props.empty", []),
        ("props.a.b.c.d", [3, 2, 1]),
        ("props.big", [2.0**64]),
        ("message", [json.dumps(MEMBERS["message"])]),
        (".message", []),
        (".message.user.roles", ["admin", "dev"]),
        ("level", [30]),
        (".level", ["WARNING"]),
    ],
)
def test_values_of_a_field(record, field, values):
    found = field_values(record, field)
    assert sorted(map(repr, found)) == sorted(map(repr, values))


def test_numbers_become_what_every_store_can_hold():
    assert repr(plain(2**63 - 1)) == str(2**63 - 1)
    assert repr(plain(2**63)) == repr(2.0**63)
    assert plain(10**400) == float("inf")
    assert plain(-(10**400)) == float("-inf")
    assert repr(plain(3.0)) == "3"
    assert repr(plain(-0.0)) == "0"
    assert repr(plain(2.0**53 + 2)) == repr(2.0**53 + 2)


def test_frequent_values_come_first_and_equal_ones_by_their_text():
    counted = [("b", 1), ("a", 1), (404, 2), ("404", 2), (True, 1), ("z", 9)]
    counted.sort(key=lambda item: value_order(*item))
    assert counted == [("z", 9), (404, 2), ("404", 2), ("a", 1), ("b", 1), (True, 1)]


def test_a_query_selects_by_time_and_expression(record):
    at = record.time
    assert selects(Query(), record)
    assert selects(Query(None, at, at + 1), record)
    assert not selects(Query(None, at + 1), record)
    assert not selects(Query(None, None, at), record)
    assert selects(Query(Text(("admin",))), record)
    assert not selects(Query(Text(("nothing",))), record)


def test_an_expression_is_decided_for_many_records(record):
    decide = matcher(And((Text(("admin",)), Compare("props.n", "=", 404))))
    assert [decide(record), decide(record)] == [True, True]


def test_what_no_store_can_be_asked_is_refused(record):
    for decide in (matches, lambda expression, record: matcher(expression)):
        with pytest.raises(QueryError, match="no level"):
            decide(Compare("level", "=", "loud"), record)


def test_a_path_into_arrays_of_arrays_ends():
    nested = b"[" * 120 + b"1" + b"]" * 120
    line = b'{"time":"2026-11-20T23:41:09.954Z","note":"x","a":' + nested + b"}"
    found = record_of(line, SOURCE, "ab" * 32)
    assert found is not None
    assert field_values(found, "a" + ".0" * 60) == [1]
    assert field_values(found, "a" + ".0" * 60 + ".b") == []
