"""hyperlog.records: messages and lines have the structure of the JavaScript packages."""

from __future__ import annotations

import hashlib
import json
import re
import time
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import BadRecord
from hyperlog.records import (
    MAX_ESCAPED,
    MAX_NESTING,
    MAX_RECORD_SIZE,
    Gap,
    TraceCaller,
    TraceObject,
    TraceRecord,
    client_props,
    decode_trace_untrusted,
    encode_gap,
    encode_trace,
    gap_line,
    instance_source,
    iso_time,
    line_tags,
    note_line,
    parse_client_message_untrusted,
    record_line,
    user_id_untrusted,
)
from hyperlog.trace import CallSite, Trace, TracedObject

CAPTURE = Path(__file__).parent / "vectors" / "dht" / "capture-trace-logger.json"
KEY = "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394"
NOW = 1795223619.131
BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def captured(event: str) -> list[dict]:
    return [row for row in json.loads(CAPTURE.read_text())["rows"] if row.get("event") == event]


def client_messages() -> list[str]:
    return [row["d"] for row in captured("client-write")]


def server_lines() -> list[str]:
    return captured("log-file-final")[0]["text"].splitlines()


def trace_of(message: dict) -> Trace:
    """The trace that the captured program made, from what arrived of it."""
    source, caller = message["object"], message["caller"]
    return Trace(
        message["id"],
        TracedObject(source["className"], source["id"]),
        source["props"],
        None,
        CallSite(caller["functionName"], caller["filename"]),
        caller.get("props"),
    )


def seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def make_trace(props=None, *, object_props=None, parent=None, id="id") -> Trace:
    site = CallSite("run", "/app/main.py", 12, 5)
    return Trace(id, TracedObject("Main", 3), object_props, parent, site, props)


def encoded(*args, **kwargs) -> dict:
    return json.loads(encode_trace(make_trace(*args, **kwargs), NOW, "77", 4))


def line_of(message: bytes, user: bytes = b'"User-1___8139770e"') -> bytes:
    return record_line(parse_client_message_untrusted(message), iso_time(NOW), user)


def message(**changes) -> bytes:
    fields = {
        "traceTimestamp": "2026-11-20T23:41:09.954Z",
        "traceSessionId": "6714695002189166",
        "traceNumber": 0,
        "id": None,
        "props": None,
        "object": {"id": 1, "className": "Foo", "props": None},
        "caller": {"filename": "a.js", "functionName": "b"},
    }
    fields.update(changes)
    kept = {name: value for name, value in fields.items() if value is not ...}
    return json.dumps(kept, ensure_ascii=False).encode("utf-8", "surrogatepass")


# -- the client's side


def test_messages_equal_those_of_the_javascript_client():
    for text in client_messages():
        original = json.loads(text)
        ours = encode_trace(
            trace_of(original),
            seconds(original["traceTimestamp"]),
            original["traceSessionId"],
            original["traceNumber"],
            client_props(original["props"]),
        )
        assert ours.decode() == text  # byte for byte, so key order and what is absent too


def test_keys_of_a_message_with_all_our_additions():
    parent = TracedObject("Parent", 1, {"p": 1})
    got = encoded({"n": 1}, object_props={"o": 1}, parent=parent)
    assert list(got.items()) == [
        ("traceTimestamp", "2026-11-21T01:13:39.131Z"),
        ("traceSessionId", "77"),
        ("traceNumber", 4),
        ("id", "id"),
        ("props", None),
        ("object", {"id": 3, "className": "Main", "props": {"o": 1}}),
        (
            "caller",
            {
                "filename": "/app/main.py",
                "functionName": "run",
                "props": {"n": 1},
                "line": 12,
                "column": 5,
            },
        ),
        ("parentObject", {"id": 1, "className": "Parent", "props": {"p": 1}}),
    ]
    assert list(got["caller"]) == ["filename", "functionName", "props", "line", "column"]


def test_null_and_absent_are_those_of_the_original():
    got = encoded(id=None)
    assert got["id"] is None
    assert got["props"] is None
    assert got["object"]["props"] is None
    assert "props" not in got["caller"]
    assert "parentObject" not in got


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1.0009, "1970-01-01T00:00:01.001Z"),
        (59.9996, "1970-01-01T00:01:00.000Z"),
        (NOW, "2026-11-21T01:13:39.131Z"),
    ],
)
def test_iso_time(now, text):
    assert iso_time(now) == text


@given(st.datetimes(datetime(1970, 1, 2), datetime(9999, 1, 1)))
def test_iso_time_is_the_time(when):
    when = when.replace(tzinfo=UTC, microsecond=when.microsecond // 1000 * 1000)
    assert iso_time(when.timestamp()) == when.isoformat(timespec="milliseconds")[:-6] + "Z"


@pytest.mark.parametrize("text", ["\ud800", "\udcff/path", 'quote"\\ \n \x7f é \u2028'])
def test_any_text_may_stand_anywhere(text):
    trace = Trace(
        text,
        TracedObject(text, 1),
        {text: text},
        TracedObject(text, 2, {text: text}),
        CallSite(text, text),
        {text: text},
    )
    got = json.loads(encode_trace(trace, NOW, "77", 0, client_props({text: text})))
    expected = text.replace("\ud800", "\ufffd").replace("\udcff", "\ufffd")
    assert got["id"] == expected
    assert got["object"] == {"id": 1, "className": expected, "props": {expected: expected}}
    assert got["caller"]["filename"] == expected
    assert got["caller"]["props"] == got["props"] == {expected: expected}
    assert got["parentObject"]["props"] == {expected: expected}


def test_integers_of_any_size_are_numbers():
    got = encoded({"small": 2**53 + 1, "large": 10**40})
    assert got["caller"]["props"] == {"small": 2**53 + 1, "large": 10**40}


def test_a_record_that_is_too_large_is_cut():
    got = encode_trace(make_trace({"text": "x" * 2 * MAX_RECORD_SIZE}), NOW, "77", 0)
    assert len(got) < MAX_RECORD_SIZE
    assert json.loads(got)["caller"]["props"]["text"].endswith("more characters]")


def test_a_record_that_is_still_too_large_is_sent_without_props():
    huge = {str(n): "\x01" * 25 for n in range(10_000)}  # one character, six bytes of JSON
    parent = TracedObject("Parent", 1, huge)
    trace = make_trace(huge, object_props=huge, parent=parent)
    got = json.loads(encode_trace(trace, NOW, "77", 0, client_props({"app": "x"})))
    assert got["traceNumber"] == 0
    assert got["caller"]["functionName"] == "run"
    assert re.fullmatch(r"record of \d+ bytes, .*", got["caller"]["props"]["[left out]"])


def test_decode_gives_back_what_was_encoded():
    parent = TracedObject("Parent", 1, {"p": 1})
    data = encode_trace(
        make_trace({"n": [1, {"a": None}]}, parent=parent), NOW, "77", 4, client_props({"app": "x"})
    )
    assert decode_trace_untrusted(data) == TraceRecord(
        "2026-11-21T01:13:39.131Z",
        "77",
        4,
        "id",
        {"app": "x"},
        TraceObject(3, "Main", None),
        TraceCaller("/app/main.py", "run", {"n": [1, {"a": None}]}, 12, 5),
        TraceObject(1, "Parent", {"p": 1}),
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=50), inner),
    max_leaves=10,
)
props = st.none() | st.dictionaries(st.text(max_size=50), json_values, max_size=5)


@given(props, props, props, st.none() | st.text(min_size=1))
def test_encode_decode_and_the_servers_line_agree(caller, own, wide, id):
    data = encode_trace(
        make_trace(caller, object_props=own, id=id),
        NOW,
        "77",
        4,
        None if wide is None else client_props(wide),
    )
    record = decode_trace_untrusted(data)
    assert (record.id, record.props, record.object.props) == (id, wide, own)
    line = line_of(data)
    assert decode_trace_untrusted(line) == record
    text = line.decode()
    assert not {unicodedata.category(c) for c in text} & {"Cc", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(c) for c in text} & BIDI_CONTROLS
    fields = json.loads(data)
    assert list(json.loads(text).items())[2:] == list(fields.items())


@given(st.binary())
def test_decoding_any_bytes_as_a_trace_raises_only_bad_record(data):
    try:
        decode_trace_untrusted(data)
    except BadRecord:
        pass


# -- the server's side


def test_lines_equal_those_of_the_javascript_server():
    records = [line for line in server_lines() if "note" not in json.loads(line)]
    assert len(records) == len(client_messages()) > 0
    for text, expected in zip(client_messages(), records, strict=True):
        record = parse_client_message_untrusted(text.encode())
        user = user_id_untrusted(record.props, "User-1", KEY[:8])
        line = record_line(record, json.loads(expected)["time"], user)
        assert line.decode() == expected  # byte for byte


def test_notes_equal_those_of_the_javascript_server():
    expected = server_lines()[0]
    fields = json.loads(expected)
    assert note_line(fields["note"], fields["time"]).decode() == expected


@pytest.mark.parametrize(
    ("props", "name"),
    [
        (None, "User-7"),
        ({}, "User-7"),
        ({"username": "ann"}, "ann"),
        ({"alias": "bob"}, "bob"),
        ({"username": "ann", "alias": "bob"}, "ann"),
        ({"username": "", "alias": "bob"}, "bob"),
        ({"username": None, "alias": "Jørgen A"}, "Jrgen_A"),
        ({"username": "ø"}, ""),
        ({"username": 5, "alias": ["x"]}, "User-7"),
        ([1], "User-7"),
        ("text", "User-7"),
    ],
)
def test_user_id(props, name):
    record = parse_client_message_untrusted(message(props=props))
    user = user_id_untrusted(record.props, "User-7", "8139770e")
    assert json.loads(user) == f"{name}___8139770e"


def test_user_id_without_props():
    record = parse_client_message_untrusted(message(props=...))
    assert user_id_untrusted(record.props, "User-7", "8139770e") == b'"User-7___8139770e"'


def test_user_ids_are_bounded_and_printable():
    user = user_id_untrusted(json.dumps({"username": "\x1b\x7f" * 1000}).encode(), "U", "8139770e")
    assert len(user) < 2000
    assert user.decode().isprintable()


@pytest.mark.parametrize("spelling", ["{}", "\\u00{:x}"], ids=["plain", "escaped"])
@pytest.mark.parametrize("name", ["time", "userId", "note", "gap", "key"])
def test_a_client_cannot_set_the_servers_fields(name, spelling):
    first = spelling.format(name[0] if spelling == "{}" else ord(name[0]))
    data = message()[:-1] + f',"{first}{name[1:]}":"SPOOFED"}}'.encode()
    data = data.replace(b"{", f'{{"{first}{name[1:]}":"TWICE",'.encode(), 1)
    line = line_of(data)
    pairs = json.loads(line, object_pairs_hook=list)
    names = [pair[0] for pair in pairs]
    assert len(names) == len(set(names))
    fields = dict(pairs)
    assert fields["time"] == iso_time(NOW)
    assert fields["userId"] == "User-1___8139770e"
    assert not {"note", "gap", "key"} & set(fields)
    assert fields[f"client{name[0].upper()}{name[1:]}"] == "SPOOFED"


def test_a_renamed_field_gives_way_to_one_of_that_name():
    fields = json.loads(line_of(message(time="a", clientTime="b")))
    assert fields["clientTime"] == "b"
    assert fields["time"] == iso_time(NOW)


def test_a_message_with_a_note_needs_no_object():
    data = message(note="hello", object=..., caller=...)
    fields = json.loads(line_of(data))
    assert fields["clientNote"] == "hello"
    assert "note" not in fields


def test_unknown_fields_are_kept_in_order():
    fields = json.loads(line_of(message(zebra=1, apple={"x": [1.50, 1e3]})))
    assert list(fields)[-2:] == ["zebra", "apple"]


HOSTILE = st.text(
    st.sampled_from('"\\\\u0012\x7f\x85\u2028é🙂\U000e0001 ') | st.characters(codec="utf-8"),
    max_size=50,
)


@given(HOSTILE, HOSTILE, st.sampled_from([1, MAX_ESCAPED]))
def test_a_text_is_the_same_however_much_of_it_is_unprintable(name, text, count):
    fields = {**json.loads(message()), f"z{name}": text, "zebra": [text + "\x7f" * count]}
    data = json.dumps(fields, ensure_ascii=False).encode()
    line = line_of(data)
    assert not {unicodedata.category(c) for c in line.decode()} & {"Cc", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(c) for c in line.decode()} & BIDI_CONTROLS
    assert list(json.loads(line).items())[2:] == list(fields.items())


@pytest.mark.parametrize("piece", ["a\x7f", "\u2028a", "\u2028", "\U000e0001", "a\U000e0001"])
def test_a_message_of_unprintable_characters_takes_little_time(piece):
    fields = {**json.loads(message()), "zebra": piece * (8_000_000 // len(piece.encode()))}
    data = json.dumps(fields, ensure_ascii=False).encode()
    began = time.thread_time()
    record = parse_client_message_untrusted(data)
    assert time.thread_time() - began < 0.4
    assert b"%b" % piece.encode() not in record.tail


def test_white_space_between_tokens_does_not_break_the_line():
    pretty = json.dumps(json.loads(message()), indent=2).replace("\n", "\r\n\t")
    line = line_of(f"\r\n {pretty} \n".encode())
    assert line.decode().isprintable()
    assert list(json.loads(line))[2:] == list(json.loads(message()))


@pytest.mark.parametrize(
    "character",
    "\x7f\x85\x9b\u061c\u200e\u202e\u2028\u2029\u2066\ufeff\ufff9\U000e0041",
    ids=lambda c: f"U+{ord(c):04X}",
)
def test_characters_that_move_or_reorder_a_line_are_escaped(character):
    data = message(id=f"a{character}b")
    line = line_of(data)
    assert character not in line.decode()
    assert json.loads(line)["id"] == f"a{character}b"


def test_other_scripts_are_left_as_they_are():
    assert "Jørgen 日本 🙂".encode() in line_of(message(id="Jørgen 日本 🙂"))


def test_escape_sequences_of_a_terminal_stay_escaped():
    line = line_of(message(id="\x1b[2J"))
    assert b"\\u001b[2J" in line


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (r"a\ud800b", "a\ufffdb"),
        (r"\udc00", "\ufffd"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\\ud800", r"\ud800"),
        (r"\\\ud800", "\\\ufffd"),
    ],
)
def test_half_surrogate_pairs_of_a_javascript_client_are_replaced(raw, read):
    data = message(id="PLACE").replace(b"PLACE", raw.encode())
    assert json.loads(line_of(data))["id"] == read


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"5",
        b"null",
        b"{}",
        b"{",
        message()[:-1],
        message() + b"x",
        message() + message(),
        b"\xef\xbb\xbf" + message(),
        message(traceSessionId=...),
        message(traceSessionId=5),
        message(traceSessionId="1" * 200),
        message(traceNumber=...),
        message(traceNumber="5"),
        message(traceNumber=1.5),
        message(traceNumber=-1),
        message(traceNumber=2**53),
        message(traceNumber=2**70),
        message(object=...),
        message(object=None),
        message(object=[]),
        message(caller="x"),
        message(id="PLACE").replace(b"PLACE", b"\xff"),
        message(id="PLACE").replace(b"PLACE", b"\xed\xa0\x80"),
        message(id="PLACE").replace(b"PLACE", b"a\nb"),
        message(id="PLACE").replace(b"PLACE", b"\\x41"),
        message(id="PLACE").replace(b'"PLACE"', b"NaN"),
        message(time="x", id="PLACE").replace(b"PLACE", b"\xff"),
        message(id="PLACE").replace(b'"PLACE"', b"[" * 5000 + b"]" * 5000),
        message(id="PLACE").replace(b'"PLACE"', b'{"a":' * 200 + b"1" + b"}" * 200),
    ],
    ids=range(31),
)
def test_bad_messages_are_refused(data):
    with pytest.raises(BadRecord) as caught:
        parse_client_message_untrusted(data)
    assert "PLACE" not in str(caught.value)


def test_nesting_is_counted_outside_strings_only():
    wide = message(id="[{" * 1000, props=[[] for _ in range(1000)])
    parse_client_message_untrusted(wide)
    deep = message(id="PLACE").replace(
        b'"PLACE"', b"[" * (MAX_NESTING - 1) + b"]" * (MAX_NESTING - 1)
    )
    parse_client_message_untrusted(deep)


@pytest.mark.parametrize("before", range(9))
def test_nesting_is_found_wherever_it_begins(before):
    for depth, accepted in ((MAX_NESTING - 1, True), (MAX_NESTING, False)):
        deep = b'{"a":' * (depth - 1) + b"[]" + b"}" * (depth - 1)
        data = message(props="PLACE").replace(b'"PLACE"', deep)  # the message is one level
        data = b'{"more":[' + b"[]," * before + b"[]]," + data[1:]
        if accepted:
            parse_client_message_untrusted(data)
        else:
            with pytest.raises(BadRecord, match="nested"):
                parse_client_message_untrusted(data)


def test_messages_beyond_the_limit_are_refused():
    data = message()
    parse_client_message_untrusted(data, len(data))
    with pytest.raises(BadRecord, match="bytes"):
        parse_client_message_untrusted(data, len(data) - 1)


def test_hostile_quotes_cost_linear_time():
    parse = parse_client_message_untrusted
    for data in (b'"\\' * 500_000 + b"[" * 200, b'{"' + b"\\" * 1_000_001 + b"[" * 200):
        with pytest.raises(BadRecord):
            parse(data)


PIECES = ["[", "[],", '"",', r"\\", r"\ud800", "\u202e", "\x7f"]


@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_costs_milliseconds_whatever_is_in_it(piece):
    text = (piece * (2**20 // len(piece.encode()))).encode()
    data = message(id="PLACE")
    for inside in (data.replace(b"PLACE", text), data.replace(b'"PLACE"', b"[" + text + b"0]")):
        began = time.process_time()
        try:
            parse_client_message_untrusted(inside)
        except BadRecord:
            pass
        assert time.process_time() - began < 0.2


@given(st.binary())
def test_any_bytes_parse_or_raise_bad_record(data):
    try:
        parse_client_message_untrusted(data)
    except BadRecord:
        pass


@given(st.data())
def test_a_damaged_message_makes_a_whole_line_or_raises_bad_record(data):
    valid = bytearray(data.draw(st.sampled_from(client_messages())).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(valid) - 1))
        valid[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del valid[data.draw(st.integers(0, len(valid) - 1)) :]
    try:
        line = line_of(bytes(valid))
    except BadRecord:
        return
    assert b"\n" not in line
    fields = json.loads(line.decode())
    assert list(fields)[:2] == ["time", "userId"]
    assert fields["userId"] == "User-1___8139770e"


# -- gaps

GAP = Gap("77", 5, 9, 5, "buffer-full")


def test_a_gap_becomes_a_line_of_the_server():
    record = parse_client_message_untrusted(encode_gap(GAP, NOW))
    assert record.gap == GAP
    assert record.number == 9
    assert json.loads(gap_line(record.gap, iso_time(NOW))) == {
        "time": iso_time(NOW),
        "note": "Lost 5 messages before sending! from=5 to=9 reason=buffer-full",
        "gap": {"session": "77", "from": 5, "to": 9, "count": 5, "reason": "buffer-full"},
    }


def test_a_gap_is_what_the_javascript_server_logs_without_object():
    fields = json.loads(encode_gap(GAP, NOW))
    assert list(fields) == ["traceTimestamp", "traceSessionId", "traceNumber", "note", "gap"]
    assert fields["traceNumber"] == 9
    assert "Lost 5 messages" in fields["note"]


@pytest.mark.parametrize(
    "change",
    [
        {"session": "78"},
        {"to": 8},
        {"from": -1},
        {"from": 10},
        {"count": 0},
        {"count": 2**60},
        {"count": "5"},
        {"reason": None},
    ],
)
def test_a_gap_that_contradicts_itself_is_an_ordinary_record(change):
    fields = json.loads(encode_gap(GAP, NOW))
    fields["gap"].update(change)
    record = parse_client_message_untrusted(json.dumps(fields).encode())
    assert record.gap is None
    line = json.loads(record_line(record, iso_time(NOW), b'"u"'))
    assert line["clientGap"] == fields["gap"]
    assert "note" not in line


def test_the_reason_of_a_gap_is_bounded():
    data = encode_gap(Gap("77", 0, 0, 1, "\u202e" * 1000), NOW)
    line = gap_line(parse_client_message_untrusted(data).gap, iso_time(NOW))
    assert len(line) < 2000
    assert line.isascii()


# -- who sent it


def test_a_line_tells_application_and_instance_behind_time_and_user():
    record = parse_client_message_untrusted(
        json.dumps({"traceSessionId": "1", "traceNumber": 0, "object": {}, "caller": {}}).encode()
    )
    tags = line_tags("cerco", 'a"2\\b5')
    for line, names in [
        (record_line(record, iso_time(NOW), b'"u"', tags), ["time", "userId", "app", "instance"]),
        (note_line("n", iso_time(NOW), tags), ["time", "app", "instance", "note"]),
        (gap_line(Gap("1", 0, 1, 2, "r"), iso_time(NOW), tags), ["time", "app", "instance"]),
    ]:
        members = json.loads(line)
        assert list(members)[: len(names)] == names
        assert (members["app"], members["instance"]) == ("cerco", 'a"2\\b5')


def test_a_client_cannot_say_in_a_record_whose_it_is():
    data = json.dumps(
        {
            "app": "bank",
            "traceSessionId": "1",
            "traceNumber": 0,
            "object": {},
            "caller": {},
            "instance": ["x"],
        }
    ).encode()
    line = record_line(
        parse_client_message_untrusted(data), iso_time(NOW), b'"u"', line_tags("cerco", "1")
    )
    members = json.loads(line)
    assert (members["app"], members["instance"]) == ("cerco", "1")
    assert (members["clientApp"], members["clientInstance"]) == ("bank", ["x"])
    assert line.count(b'"app"') == line.count(b'"instance"') == 1


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_tags_are_fit_for_terminals_and_read_back(application, instance):
    tags = line_tags(application, instance)
    assert json.loads(b"{" + tags[:-1] + b"}") == {"app": application, "instance": instance}
    assert not any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in tags.decode())
    assert not any(unicodedata.bidirectional(char) in BIDI_CONTROLS for char in tags.decode())


def test_senders_without_a_key_have_sources_of_their_own():
    names = ["a", "b", "ab", "a b", "../../x", "\u00e9", "e\u0301", "A"]
    sources = {instance_source(one, other) for one in names for other in names}
    assert len(sources) == len(names) ** 2
    assert {len(source) for source in sources} == {32}
    assert (
        instance_source("cerco", "a2b5").hex()
        == hashlib.blake2b(b"hyperlog instance\0cerco\0a2b5", digest_size=32).hexdigest()
    )


# -- log messages


def log_message(**fields) -> bytes:
    message = {"traceTimestamp": iso_time(NOW), "traceSessionId": "77", "traceNumber": 4} | fields
    return json.dumps({name: value for name, value in message.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    "level", ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "warn", "FATAL"]
)
@pytest.mark.parametrize("text", ["", "disk full", {}, {"code": 3, "deep": [{"x": None}]}])
def test_a_log_message_becomes_a_line_as_it_came(level, text):
    data = log_message(level=level, message=text, logger="db", caller={"filename": "a.py"})
    line = json.loads(line_of(data, b'"u"'))
    assert line == {"time": iso_time(NOW), "userId": "u"} | json.loads(data)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"level": "INFO"}, "message is missing"),
        ({"message": "x"}, "level is missing"),
        ({"level": "LOUD", "message": "x"}, "level is none of DEBUG, INFO, WARNING"),
        ({"level": 20, "message": "x"}, "level is none of"),
        ({"level": None, "message": "x"}, "level is none of"),
        ({"level": "INFO", "message": None}, "neither text nor an object"),
        ({"level": "INFO", "message": ["x"]}, "neither text nor an object"),
        ({"level": "INFO", "message": 7}, "neither text nor an object"),
        ({"level": "INFO", "message": "x", "caller": 3}, "caller"),
        ({}, "object or caller is missing"),
    ],
)
def test_a_log_message_without_level_or_message_is_refused(fields, reason):
    with pytest.raises(BadRecord, match=reason):
        parse_client_message_untrusted(log_message(**fields))


def test_what_a_log_message_says_is_not_told_in_errors():
    with pytest.raises(BadRecord) as refused:
        parse_client_message_untrusted(log_message(level="secret", message="x"))
    assert "secret" not in str(refused.value)


def test_a_log_message_cannot_take_the_servers_keys():
    line = json.loads(line_of(log_message(level="INFO", message="x", time="then", app="other")))
    assert line["time"] == iso_time(NOW)
    assert line["clientTime"] == "then"
    assert line["clientApp"] == "other"
