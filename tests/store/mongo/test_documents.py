from __future__ import annotations

import json

import bson
import pytest
from bson.codec_options import CodecOptions, DatetimeConversion
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.store.mongo.documents import document_of, record_of
from hyperlog.store.mongo.names import bucket_of, records_name, words_name
from hyperlog.store.records import record_of as record_of_line
from tests.store.population import SERVER

MAX_DOCUMENT = 16 * 1024 * 1024
OPTIONS = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
names = st.text() | st.sampled_from(["", ".", "a.b", "$set", "$", "_id", "0", "\0", "a\uff0eb"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=15
)


def stored(line):
    record = record_of_line(line, bytes(32), SERVER)
    document = document_of(record, 2**60, bson.ObjectId(), set())
    data = bson.encode(document)
    assert len(data) < MAX_DOCUMENT
    assert record_of(bson.decode(data, OPTIONS)) == record
    return document


@given(st.dictionaries(names, values, max_size=5))
def test_any_record_comes_back_byte_for_byte(members):
    stored(json.dumps({"time": "2026-11-20T00:00:00.000Z"} | members).encode())


@pytest.mark.parametrize(
    "value",
    [
        '{"":1}',
        '{"a..b":1}',
        '{"a\\u0000b":1}',
        '{"a\uff0eb":1}',
        "[[1]]",
        '[{"0":1}]',
        '{"a":' * 100 + "1" + "}" * 100,
    ],
)
def test_what_mongodb_cannot_decide_is_wild(value):
    document = stored(f'{{"time":"2026-11-20T00:00:00.000Z","props":{value}}}'.encode())
    assert document["wild"]
    assert "json" not in document


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ('{"a.b":1}', {"a\uff0eb": 1}),
        ('{"$set":{"x.$y":2}}', {"\uff04set": {"x\uff0e\uff04y": 2}}),
        ('{"n":18446744073709551616,"m":2.0}', {"n": 2.0**64, "m": 2}),
        ('{"l":[1,"a",null,{"b":true}]}', {"l": [1, "a", None, {"b": True}]}),
        ('{"0":{"1":2}}', {"0": {"1": 2}}),
    ],
)
def test_what_it_can_decide_is_a_sub_document(value, seen):
    document = stored(f'{{"time":"2026-11-20T00:00:00.000Z","props":{value}}}'.encode())
    assert "wild" not in document
    assert document["json"]["props"] == seen


def test_the_longest_line_fits_into_a_document():
    for text in ("x" * (2**24 - 60), "\ufdfa" * 500_000, "\u6771" * (2**24 // 3 - 30)):
        line = f'{{"time":"2026-11-20T00:00:00.000Z","m":"{text}"}}'
        assert stored(line.encode())["wild"]


@given(st.text(min_size=1, max_size=64))
def test_names_of_collections_are_safe_and_tell_the_bucket(bucket):
    try:
        bucket.encode()
    except UnicodeEncodeError:
        return  # no application can be called so
    for name in (records_name(bucket), words_name(bucket)):
        assert not set("$\0") & set(name)
        assert len(name.encode()) <= 140
        assert name.count(".") == 1
        assert not name.startswith("system.")
    assert bucket_of(records_name(bucket)) in (bucket, None)


@given(st.text(max_size=64), st.text(max_size=64))
def test_different_buckets_have_different_collections(one, other):
    try:
        assert (records_name(one) == records_name(other)) == (one == other)
    except UnicodeEncodeError:
        pass
