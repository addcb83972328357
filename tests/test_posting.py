"""hyperlog.posting: what becomes of the records of one request."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.posting import Numbering, Posting
from hyperlog.records import instance_source, iso_time, line_tags
from hyperlog.resume import Received, ResumeState

NOW = 1795223619.131
SOURCE = instance_source("cerco", "a2b5")
TRACE = {"object": {}, "caller": {}}


def posting(resume=None, numbering=None, max_record=10_000) -> Posting:
    return Posting(
        SOURCE,
        ResumeState() if resume is None else resume,
        Numbering(lambda: "555") if numbering is None else numbering,
        user="a2b5",
        tags=line_tags("cerco", "a2b5"),
        max_record=max_record,
    )


def encoded(*records) -> list[bytes]:
    return [json.dumps(record).encode() for record in records]


def records_of(received: Received) -> list[dict]:
    lines = [json.loads(line) for line in received.lines]
    return [line for line in lines if "note" not in line]


def test_records_without_a_number_are_counted_in_a_session_of_the_servers():
    one = posting()
    received = one.take(encoded({"id": "a", **TRACE}, {"id": "b", **TRACE}), NOW)
    assert one.reasons == [None, None]
    lines = records_of(received)
    assert [(line["traceSessionId"], line["traceNumber"]) for line in lines] == [
        ("555", 0),
        ("555", 1),
    ]
    assert (lines[0]["app"], lines[0]["instance"]) == ("cerco", "a2b5")
    assert lines[0]["traceTimestamp"] == iso_time(NOW)
    assert received.numbers == {"555": 1}


def test_the_next_request_goes_on_counting():
    resume, numbering = ResumeState(), Numbering(lambda: "555")
    posting(resume, numbering).take(encoded(TRACE, TRACE), NOW)
    received = posting(resume, numbering).take(encoded(TRACE), NOW)
    assert [line["traceNumber"] for line in records_of(received)] == [2]
    assert len(received.lines) == 1  # no note of a new session, and none of skipped numbers


def test_a_time_that_is_told_is_kept():
    received = posting().take(encoded({"traceTimestamp": "2026-01-01T00:00:00.000Z", **TRACE}), NOW)
    (line,) = records_of(received)
    assert line["traceTimestamp"] == "2026-01-01T00:00:00.000Z"


def test_a_numbered_record_is_written_once_however_often_it_comes():
    resume = ResumeState()
    numbered = encoded(*({"traceSessionId": "77", "traceNumber": n, **TRACE} for n in range(3)))
    first = posting(resume)
    assert len(records_of(first.take(numbered, NOW))) == 3
    again = posting(resume)
    received = again.take(numbered, NOW)
    assert (received.lines, again.reasons) == ([], [None] * 3)
    assert received.numbers == {"77": 2}  # so that it is answered when the first are durable
    assert (first.records, again.records, again.repeats) == (3, 0, 3)


def test_sessions_may_alternate_in_a_request():
    messages = encoded(
        *(
            {"traceSessionId": session, "traceNumber": number, **TRACE}
            for number in range(3)
            for session in ("1", "2")
        ),
        TRACE,
    )
    received = posting().take(messages, NOW)
    assert received.numbers == {"1": 2, "2": 2, "555": 0}
    assert not [line for line in received.lines if b"Skipped" in line]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"{", "truncated"),
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b"null", "Expected `object`"),
        (b"\xff", "malformed|UTF-8|Invalid"),
        (b"{}", "missing"),
        (b" { } ", "missing"),
        (b'{"traceNumber":1,"object":{},"caller":{}}', "go together"),
        (b'{"traceSessionId":"1","object":{},"caller":{}}', "go together"),
        (b'{"traceSessionId":"1","traceNumber":-1,"object":{},"caller":{}}', "traceNumber"),
        (b'{"traceSessionId":1,"traceNumber":1,"object":{},"caller":{}}', "traceSessionId"),
        (b"[" * 5000, "nested|malformed|Expected"),
        (b'{"x":"' + b"y" * 10_000 + b'"}', "at most 10000 bytes"),
    ],
)
def test_a_bad_record_is_told_with_its_reason_and_the_others_are_taken(message, reason):
    one = posting()
    received = one.take([*encoded(TRACE), message, *encoded(TRACE)], NOW)
    assert one.reasons[0] is one.reasons[2] is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(one.reasons[1])
    assert [line["traceNumber"] for line in records_of(received)] == [0, 1]
    assert (one.records, one.dropped) == (2, 1)


def test_after_a_failed_write_another_session_is_begun():
    sessions = iter(["1", "2"])
    resume, numbering = ResumeState(), Numbering(lambda: next(sessions))
    posting(resume, numbering).take(encoded(TRACE, TRACE), NOW)
    resume.rewind()
    received = posting(resume, numbering).take(encoded(TRACE), NOW)
    assert [(line["traceSessionId"], line["traceNumber"]) for line in records_of(received)] == [
        ("2", 0)
    ]


def test_a_client_cannot_say_in_a_record_whose_it_is():
    received = posting().take(
        encoded({"app": "bank", "instance": "1", "userId": "x", **TRACE}), NOW
    )
    (line,) = records_of(received)
    assert (line["app"], line["instance"]) == ("cerco", "a2b5")
    assert (line["clientApp"], line["clientInstance"], line["clientUserId"]) == ("bank", "1", "x")


@given(st.lists(st.binary(max_size=60) | st.from_regex(rb"\{[ -~]{0,40}\}", fullmatch=True)))
def test_whatever_comes_has_a_line_or_a_reason(messages):
    one = posting()
    received = one.take(messages, NOW)
    assert len(one.reasons) == len(messages)
    assert one.reasons.count(None) == one.records
    for line in received.lines:
        assert json.loads(line)["app"] == "cerco"


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8")), st.integers() | st.text("ab"), max_size=5
    )
)
def test_what_is_in_a_record_stays_in_it(members):
    reserved = {"time", "userId", "app", "instance", "note", "gap", "key", "level", "message"}
    if reserved & set(members) or {"traceSessionId", "traceNumber"} & set(members):
        return
    (line,) = records_of(posting().take(encoded({**members, **TRACE}), NOW))
    assert {name: line[name] for name in members} == {
        **members,
        **{name: TRACE[name] for name in TRACE if name in members},
    }
