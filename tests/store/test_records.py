from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.records import (
    Gap,
    gap_line,
    instance_source,
    note_line,
    parse_client_message_untrusted,
)
from hyperlog.records import record_line as line_of_record
from hyperlog.sinks.scan import continuation_line
from hyperlog.store.levels import LEVELS
from hyperlog.store.records import decode_body, record_of
from tests.store.population import SERVER, hostile_lines, realistic_lines

SOURCE = bytes(range(32))
FILE = SOURCE.hex()
TIME = "2026-11-20T23:41:09.954Z"
MS = 1_795_218_069_954
TRACE = {
    "traceTimestamp": "2026-11-20T23:41:09.950Z",
    "traceSessionId": "8734",
    "traceNumber": 4711,
    "id": "user-created",
    "props": {"username": "alice"},
    "object": {"id": 17, "className": "UserService", "props": None},
    "caller": {"filename": "users.py", "functionName": "create_user", "props": {"user": 42}},
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = (
    *("time", "app", "instance", "note", "gap", "level", "message", "id", "object", "caller"),
    *("traceTimestamp", "traceSessionId", "traceNumber", "sessions"),
)


def line(**members):
    return json.dumps({"time": TIME, "userId": "x", **members}).encode()


def record(**members):
    found = record_of(line(**members), SOURCE, SERVER)
    assert found is not None
    return found


def test_a_trace_as_the_server_writes_it():
    message = parse_client_message_untrusted(json.dumps(TRACE).encode())
    written = line_of_record(message, TIME, b'"alice___00010203"')
    found = record_of(written, SOURCE, SERVER)
    assert found is not None
    assert found.id == f"{FILE}-8734-4711"
    assert (found.server, found.source, found.key) == (SERVER, FILE, FILE)
    assert (found.bucket, found.instance) == ("default", "00010203")
    assert (found.session, found.number) == ("8734", 4711)
    assert (found.time, found.client_time) == (MS, MS - 4)
    assert (found.level, found.kind) == (LEVELS["TRACE"], "trace")
    assert found.message == "user-created UserService.create_user"
    assert found.body == written


def test_a_trace_without_an_id_tells_its_class_and_function():
    assert record(**TRACE | {"id": None}).message == "UserService.create_user"


def test_notes_and_gaps_as_the_server_writes_them():
    note = record_of(note_line("Connected", TIME), SOURCE, SERVER)
    gap = record_of(gap_line(Gap("8734", 5, 9, 5, "buffer-full"), TIME), SOURCE, SERVER)
    assert note is not None
    assert gap is not None
    assert (note.kind, note.level, note.message) == ("note", LEVELS["INFO"], "Connected")
    assert (note.session, note.number) == (None, None)
    assert (gap.kind, gap.level, gap.id) == ("gap", LEVELS["WARNING"], f"{FILE}-8734-9")
    assert gap.message.startswith("Lost 5 messages")


def test_notes_are_told_apart_by_what_they_say():
    notes = {record(note=text).id for text in ("a", "b", "a")}
    assert len(notes) == 2
    assert all(id.startswith(f"{FILE}-note-") and len(id) == 64 + 6 + 16 for id in notes)


def test_the_line_that_continues_a_rotated_log_is_no_record():
    assert record_of(continuation_line({"8734": 4711}, MS / 1000), SOURCE, SERVER) is None


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'"x"', b"null", b'{"note":"x"}', b"\xff"])
def test_what_is_torn_or_has_no_time_is_no_record(torn):
    assert record_of(torn, SOURCE, SERVER) is None


@pytest.mark.parametrize("time", [5, None, "", "soon", "2026-02-30T00:00:00.000Z"])
def test_a_line_needs_a_time(time):
    assert record_of(line(time=time, note="x"), SOURCE, SERVER) is None


def test_a_log_as_the_client_sends_it():
    found = record(traceSessionId="1", traceNumber=0, level="WARNING", message="disk nearly full")
    assert (found.kind, found.level, found.message) == ("log", 30, "disk nearly full")


def test_the_levels_of_others_are_understood():
    assert record(level="fatal", message="x").level == LEVELS["CRITICAL"]
    assert record(level=25, message="x").level == LEVELS["INFO"]
    assert record(level=[40], message="x").level == LEVELS["INFO"]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("two\nlines\tand  \u202ebidi", "two lines and bidi"),
        ("kept  as it is", "kept  as it is"),
        ("x" * 1001, "x" * 999 + "…"),
        ({"event": "paid"}, '{"event": "paid"}'),
        ([1, 2], "[1, 2]"),
        (17, "17"),
        (None, "null"),
        ("", ""),
    ],
)
def test_the_message_is_one_line(message, told):
    assert record(level="INFO", message=message).message == told


def test_what_says_nothing_is_a_log_without_a_message():
    found = record(traceSessionId="1", traceNumber=1)
    assert (found.kind, found.level, found.message) == ("log", 20, "(no message)")


def test_application_and_instance_are_the_bucket_and_the_instance():
    found = record(app="cerco", instance="a2b5", **TRACE)
    assert (found.bucket, found.instance, found.key) == ("cerco", "a2b5", FILE)


def test_a_sender_without_a_key_has_none():
    source = instance_source("cerco", "a2b5")
    written = line(app="cerco", instance="a2b5", **TRACE)
    other = line(app="cerco", instance="a2b6", **TRACE)
    found, foreign = record_of(written, source, SERVER), record_of(other, source, SERVER)
    assert found is not None
    assert foreign is not None
    assert (found.source, found.key) == (source.hex(), None)
    assert foreign.key == source.hex()


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "\x00", 5, None, "\u202e"])
def test_names_that_no_server_writes_are_passed_over(name):
    found = record(app=name, instance=name, message="x")
    assert (found.bucket, found.instance) == ("default", FILE[:8])


@pytest.mark.parametrize(
    ("session", "number"),
    [(5, 1), ("1", "1"), ("1", -1), ("1", 2**53), ("", 1), ("x" * 129, 1), ("1", True), (None, 1)],
)
def test_a_record_without_a_proper_number_is_known_by_its_content(session, number):
    found = record(traceSessionId=session, traceNumber=number, message="x")
    assert found.id.startswith(f"{FILE}-note-")
    assert (found.session, found.number) == (None, None)


@given(st.dictionaries(st.sampled_from(NAMES), json_values), st.sampled_from(["", TIME]))
def test_members_of_any_type_make_a_record_or_none(members, time):
    if time:
        members["time"] = time
    try:
        text = json.dumps(members).encode()
    except ValueError:
        return
    found = record_of(text, SOURCE, SERVER)
    if found is not None:
        assert found.body == text
        assert found.level in LEVELS.values()
        assert found.message.isprintable()
        assert len(found.message) <= 1000
        assert 0 < len(found.bucket) <= 64
        assert 0 < len(found.instance) <= 64
        assert (found.session is None) == (found.number is None)


@given(st.binary())
def test_any_bytes_make_a_record_or_none(data):
    record_of(data, SOURCE, SERVER)
    assert isinstance(decode_body(data), dict)


def test_strange_lines_are_records_all_the_same():
    found = [record_of(text, source, SERVER) for source, text in hostile_lines(repeats=1)]
    assert sum(record is None for record in found) == 8


def test_ids_are_unique():
    lines = [*realistic_lines(3000), *hostile_lines()]
    found = [record_of(text, source, SERVER) for source, text in lines]
    ids = [record.id for record in found if record is not None]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (rb'{"a":"\ud83d"}', {"a": "\ufffd"}),
        (rb'{"a":"\ud83d\ude42"}', {"a": "🙂"}),
        (b'{"a":1e400,"b":-1e400}', {"a": float("inf"), "b": float("-inf")}),
        (b'{"a":18446744073709551616}', {"a": 2**64}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'{"a":-%b,"b":1}' % (b"9" * 5000), {"a": float("-inf"), "b": 1}),
        (rb'{"a":"\ud800","a":2}', {"a": 2}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b'{"a":NaN}', {}),
        (b'{"a":Infinity}', {}),
        (b"[1]", {}),
        (b"5", {}),
        (b"[" * 100_000, {}),
        (b'{"a":' * 100_000, {}),
    ],
)
def test_bodies_are_decoded_whatever_they_hold(text, members):
    assert decode_body(text) == members
