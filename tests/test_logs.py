"""hyperlog.logs: whatever is logged becomes a bounded message that every server takes."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import BadRecord
from hyperlog.logs import (
    LogEntry,
    decode_log_untrusted,
    encode_log,
    in_javascript_form,
    level_name,
    message_of,
)
from hyperlog.records import (
    LOG_LEVELS,
    MAX_RECORD_SIZE,
    Gap,
    client_props,
    encode_gap,
    encode_trace,
    parse_client_message_untrusted,
)
from hyperlog.stacktext import CaughtError
from hyperlog.trace import CallSite, Trace, TracedObject

NOW = 1795223619.131
PLACE = ("/app/main.py", "run", 12)


def encoded(entry: LogEntry, props=None) -> dict:
    data = encode_log(entry, NOW, "77", 4, props)
    assert len(data) <= MAX_RECORD_SIZE
    assert b"\n" not in data
    assert parse_client_message_untrusted(data).number == 4
    decode_log_untrusted(data)
    return json.loads(data)


def caught(error: BaseException) -> CaughtError:
    try:
        raise error
    except BaseException as err:
        return CaughtError(err)


def test_a_message_with_everything_has_its_fields_in_wire_order():
    entry = LogEntry("ERROR", "disk full", {"disk": "sda"}, PLACE, caught(OSError(28, "x")), "db")
    got = encoded(entry, client_props({"username": "Kim"}))
    stack = got["exception"].pop("stack")
    assert stack.startswith("Traceback (most recent call last):\n  File ")
    assert stack.endswith("raise error\nOSError: [Errno 28] x")
    assert list(got.items()) == [
        ("traceTimestamp", "2026-11-21T01:13:39.131Z"),
        ("traceSessionId", "77"),
        ("traceNumber", 4),
        ("level", "ERROR"),
        ("logger", "db"),
        ("message", "disk full"),
        ("props", {"username": "Kim"}),
        ("attributes", {"disk": "sda"}),
        ("exception", {"type": "OSError", "message": "[Errno 28] x"}),
        ("caller", {"filename": "/app/main.py", "functionName": "run", "line": 12}),
    ]


def test_what_there_is_none_of_is_left_out():
    got = encoded(LogEntry("INFO", {}))
    assert list(got) == ["traceTimestamp", "traceSessionId", "traceNumber", "level", "message"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (b"\x01\xff", "01ff"),
        (datetime(2026, 11, 20, tzinfo=UTC), "2026-11-20T00:00:00.000Z"),
        (math.nan, None),
        (2**70, 2**70),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ("\ud800", "\ufffd"),
    ],
)
def test_values_are_replaced_as_in_traces(value, written):
    got = encoded(LogEntry("INFO", {"v": value}, {"v": value}))
    assert got["message"]["v"] == got["attributes"]["v"] == written


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("x" * 3_000_000, str),
        ("\x00" * 3_000_000, str),
        ({"x": "\x00" * 3_000_000}, dict),
        ({f"k{n}": "\x00" * 1000 for n in range(3000)}, dict),
        ("\ud800" * 1_000_000, str),
    ],
)
def test_what_is_too_large_is_cut_and_says_so(message, expected):
    got = encoded(LogEntry("INFO", message, {"y": "\x01" * 500_000}, PLACE))
    assert isinstance(got["message"], expected)
    assert "more characters" in str(got) or "[left out]" in str(got)


def test_hostile_names_are_cut_and_made_encodable():
    entry = LogEntry("INFO", "x", None, ("\ud800" * 9999, "f" * 9999, 1), None, "\ud800" * 9999)
    got = encoded(entry)
    assert len(got["logger"]) < 400
    assert len(got["caller"]["filename"]) < 5000


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (10, "DEBUG"),
        (20, "INFO"),
        (25, "INFO"),
        (30, "WARNING"),
        (45, "ERROR"),
        (50, "CRITICAL"),
        (99, "CRITICAL"),
        (5, "DEBUG"),
        (0, "DEBUG"),
        (-7, "DEBUG"),
        (35.5, "WARNING"),
        (math.inf, "INFO"),
        ("info", "INFO"),
        (" Warn ", "WARNING"),
        ("fatal", "CRITICAL"),
        ("trace", "DEBUG"),
        ("exception", "ERROR"),
        ("loud", "INFO"),
        (None, "INFO"),
        ([], "INFO"),
    ],
)
def test_every_level_is_one_of_five(level, name):
    assert level_name(level) == name


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Echo:
    """Logs itself when it is asked for its text."""

    def __init__(self) -> None:
        self.inner: object = None

    def __str__(self) -> str:
        self.inner = message_of(self)
        return "echo"


def test_any_object_can_be_a_message():
    assert message_of(MappingProxyType({"a": 1})) == {"a": 1}
    assert message_of(42) == "42"
    assert message_of(None) == "None"
    assert message_of(ValueError("bad")) == "bad"
    assert message_of(Hostile()) == "[unserialisable Hostile]"


def test_an_object_that_logs_itself_does_not_recurse():
    echo = Echo()
    assert message_of(echo) == "echo"
    assert echo.inner == "[Echo logged while its own text was made]"
    assert message_of(7) == "7"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary()
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(
    st.sampled_from(["traceTimestamp", "traceSessionId", "traceNumber", "level", "message"]),
    st.sampled_from(["x", 3, {}, None]),
).map(msgspec.json.encode)
dictionaries = st.dictionaries(st.text(st.characters(exclude_categories=())), values, max_size=5)


@given(st.text(st.characters(exclude_categories=())) | dictionaries, dictionaries)
def test_whatever_is_logged_every_server_takes_it(message, attributes):
    got = encoded(LogEntry("INFO", message, attributes, PLACE))
    assert isinstance(got["message"], type(message))
    assert len(got.get("attributes", {})) <= len(attributes)


def test_for_a_javascript_server_a_log_message_looks_like_a_trace_and_keeps_its_fields():
    data = encode_log(LogEntry("ERROR", {"a": 2**70}, None, PLACE, None, "db"), NOW, "77", 4)
    got = json.loads(in_javascript_form(data))
    assert got.pop("object") == {"id": 0, "className": "db", "props": None}
    assert got.pop("id") == "ERROR"
    assert got == json.loads(data)
    bare = json.loads(in_javascript_form(encode_log(LogEntry("INFO", "x"), NOW, "77", 4)))
    assert bare["object"]["className"] == "log"
    assert bare["caller"] == {"filename": "", "functionName": ""}
    assert bare["message"] == "x"


def test_for_a_javascript_server_other_messages_stay_as_they_are():
    site = CallSite("run", "/app/main.py", 12, 5)
    trace = Trace("x", TracedObject("Main", 3), None, None, site, {"level": "INFO", "message": "y"})
    data = encode_trace(trace, NOW, "77", 4)
    gap = encode_gap(Gap("77", 1, 4, 4, "queue-full"), NOW)
    assert in_javascript_form(data) is data
    assert in_javascript_form(gap) is gap


@given(st.binary() | json_objects)
def test_any_bytes_decode_or_raise_bad_record(data):
    try:
        decode_log_untrusted(data)
    except BadRecord:
        pass


@given(st.data())
def test_a_truncated_message_is_refused(data):
    whole = encode_log(LogEntry("INFO", "text", {"a": 1}, PLACE), NOW, "77", 4)
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BadRecord):
        decode_log_untrusted(whole[:end])


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_what_is_decoded_is_what_was_encoded(level):
    record = decode_log_untrusted(
        encode_log(LogEntry(level, {"a": [1]}, {"b": "c"}, PLACE, None, "db"), NOW, "77", 4)
    )
    assert (record.level, record.message, record.attributes) == (level, {"a": [1]}, {"b": "c"})
    assert (record.logger, record.trace_number) == ("db", 4)


def test_the_size_counts_long_texts():
    assert LogEntry("INFO", "x" * 5000).text_size == 5000
    assert LogEntry("INFO", {"a": "x" * 5000}, {"b": b"y" * 100}).text_size == 5100
    assert LogEntry("INFO", "", None, None, caught(ValueError())).text_size >= 1000
