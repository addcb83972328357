"""hyperlog.sinks.scan: the sessions of a file, whatever it was cut into."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.sinks import scan
from hyperlog.sinks.scan import Sessions, continuation_line, is_continuation, session_of_line


def line(session: str, number: int, pad: int = 0) -> bytes:
    return json.dumps({"traceSessionId": session, "traceNumber": number, "pad": "x" * pad}).encode()


def sessions(*contents: bytes) -> dict[str, int]:
    found = Sessions()
    for content in contents:
        if not found.complete:
            found.read(io.BytesIO(content))
    return found.oldest_first()


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=12),
    block=st.integers(1, 50),
)
def test_lines_are_found_backwards_at_any_block_size(pieces, block):
    content = b"\n".join(pieces)
    expected = [piece for piece in content.split(b"\n") if piece][::-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "BLOCK", block)
        assert list(scan._lines_backwards(io.BytesIO(content))) == expected


def test_lines_that_are_too_long_are_passed_over(monkeypatch):
    monkeypatch.setattr(scan, "BLOCK", 64)
    monkeypatch.setattr(scan, "MAX_LINE", 500)
    content = b"\n".join([line("1", 4), line("2", 5, pad=5000), line("3", 6)])
    assert sessions(content) == {"1": 4, "3": 6}
    assert sessions(line("2", 5, pad=5000)) == {}


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.integers(0, 200)), max_size=40
    ),
    st.integers(10, 300),
)
def test_every_session_is_found_at_any_block_size(entries, block):
    content = b"".join(line(*entry) + b"\n" for entry in entries)
    expected = {session: -1 for session, _, _ in entries}
    for session, number, _ in entries:
        expected[session] = max(expected[session], number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "BLOCK", block)
        assert sessions(content) == expected


def test_a_file_cut_at_any_byte_tells_the_lines_that_are_whole():
    lines = [continuation_line({"9": 3}, 0), line("1", 1), line("2", 2)]
    content = b"\n".join(lines)
    for cut in range(len(content) + 1):
        expected = {}
        if cut >= len(lines[0]):
            expected["9"] = 3
        if cut >= len(lines[0]) + 1 + len(lines[1]):
            expected["1"] = 1
        if cut == len(content):
            expected["2"] = 2
        assert sessions(content[:cut]) == expected


def test_reading_stops_where_the_log_continues():
    newest = continuation_line({"1": 5, "2": 6}, 0) + b"\n" + line("2", 7)
    assert sessions(newest, line("1", 99)) == {"1": 5, "2": 7}
    assert list(sessions(newest)) == ["1", "2"]


def test_older_files_are_read_until_one_continues():
    assert sessions(line("3", 1), line("2", 4), continuation_line({"1": 0}, 0), line("0", 9)) == {
        "1": 0,
        "2": 4,
        "3": 1,
    }


def test_the_latest_sessions_are_kept_and_no_more_is_read(monkeypatch):
    monkeypatch.setattr(scan, "MAX_SESSIONS", 3)
    assert list(sessions(b"\n".join(line(str(n), n) for n in range(10)))) == ["7", "8", "9"]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_line_of_a_session_or_none(data):
    found = session_of_line(data)
    assert found is None or (found[0] and found[1] >= 0)
    assert isinstance(is_continuation(data), bool)


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.integers(0, 2**53), max_size=64))
def test_what_a_log_continues_is_read_back(numbers):
    text = continuation_line(numbers, 0)
    assert is_continuation(text)
    assert b"\n" not in text
    assert sessions(text) == numbers
