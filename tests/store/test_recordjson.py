from __future__ import annotations

import json

import msgspec
import pytest

from hyperlog.store.recordjson import encode_record, record_members
from hyperlog.store.records import record_of
from tests.store.population import SERVER, hostile_lines, realistic_lines

LINE = b'{"time":"2026-11-20T23:41:09.954Z","userId":"x","note":"%s"}'


def record(note):
    found = record_of(LINE % note, bytes(32), SERVER)
    assert found is not None
    return found


def parsed(text):
    return json.loads(text.decode(), parse_int=str)  # some have thousands of digits


def test_the_line_stands_under_body_to_the_byte():
    found = record("naïve \\u00e9".encode())
    assert b'"body":' + found.body + b"}" in encode_record(found)


@pytest.mark.parametrize("broken", [b"\xff", b"\xc3", b"a \xed\xa0\x80 b", b"\xf8\x88\x80\x80\x80"])
def test_bytes_that_are_no_utf_8_are_replaced(broken):
    told = encode_record(record(broken)).decode()
    assert "\ufffd" in json.loads(told)["body"]["note"]


def test_all_records_are_json_in_utf_8_alone_and_in_a_list():
    lines = [*realistic_lines(50), *hostile_lines()]
    records = [found for source, line in lines if (found := record_of(line, source, SERVER))]
    assert len(records) > 100
    told = parsed(msgspec.json.encode([record_members(one) for one in records]))
    assert [one["id"] for one in told] == [one.id for one in records]
    assert told == [parsed(encode_record(one)) for one in records]
