"""What a log file remembers: its sessions and their last numbers, read backwards from the end.

Each line carries its session and number. A file that was begun by rotation starts with a line that
tells what the files before it hold:

    {"time":"…","note":"Log continues","sessions":{"8734…":4714}}

so that nothing older has to be read. That line, like every note, is the server's alone: `note` in
a client's record is written under another name.

A line counts as soon as its text is whole, with or without its newline: JSON objects end in
themselves. What is torn does not decode and does not count.

Spec: docs/protocol/session.md section 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from hyperlog.records import MAX_SESSION_ID, iso_time
from hyperlog.records import MAX_SESSIONS as MAX_SESSIONS

__all__ = ["Sessions", "continuation_line", "is_continuation", "session_of_line"]

MAX_SCAN: Final = 256 * 1024 * 1024  # bytes read of one key's files, about a second
MAX_LINE: Final = 16 * 1024 * 1024  # bytes; longer ones are passed over
BLOCK: Final = 1024 * 1024  # bytes read at a time
CONTINUES: Final = "Log continues"


class _Gap(Struct, gc=False):
    session: str = ""
    to: int = -1


class _Line(Struct, rename="camel", gc=False):
    trace_session_id: str | None = None
    trace_number: int = -1
    gap: _Gap | None = None


class _Continuation(Struct, gc=False):
    note: str
    sessions: dict[str, int]


_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(_Line).decode
_decode_continuation = msgspec.json.Decoder(_Continuation).decode


def session_of_line(line: bytes) -> tuple[str, int] | None:
    """The session and number that a line brings it to; None for notes and for what is torn."""
    try:
        end = _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if end.gap is not None:
        session_id, number = end.gap.session, end.gap.to
    elif end.trace_session_id is not None:
        session_id, number = end.trace_session_id, end.trace_number
    else:
        return None
    return (session_id, number) if session_id and number >= 0 else None


def continuation_line(sessions: Mapping[str, int], now: float) -> bytes:
    """The first line of a new file, without newline: what the files before it hold."""
    return _encode({"time": iso_time(now), "note": CONTINUES, "sessions": dict(sessions)})


def is_continuation(line: bytes) -> bool:
    return _continued(line) is not None


def _continued(line: bytes) -> dict[str, int] | None:
    if b'"sessions"' not in line:
        return None
    try:
        found = _decode_continuation(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found.sessions if found.note == CONTINUES else None


class Sessions:
    """Gathers the sessions of one key from its files, the newest file first."""

    def __init__(self) -> None:
        self.complete = False
        """no older file can add anything"""
        self._newest_first: dict[str, int] = {}
        self._budget = MAX_SCAN

    def read(self, file: BinaryIO) -> None:
        """Add what a file holds; the bytes read of all files together are bounded.

        Raises:
            OSError: it cannot be read.
        """
        for line in _lines_backwards(file):
            self._budget -= len(line) + 1
            found = session_of_line(line)
            if found is not None:
                self._add(*found)
            else:
                continued = _continued(line)
                if continued is not None:
                    for session_id, number in reversed(continued.items()):
                        self._add(session_id, number)
                    self.complete = True
            if self._budget <= 0 or len(self._newest_first) > MAX_SESSIONS:
                self.complete = True
            if self.complete:
                return

    def _add(self, session_id: str, number: int) -> None:
        if number > self._newest_first.get(session_id, -1) and len(session_id) <= MAX_SESSION_ID:
            self._newest_first[session_id] = number

    def oldest_first(self) -> dict[str, int]:
        """The last number by session id, of the MAX_SESSIONS latest; the latest is the last."""
        newest = list(self._newest_first.items())[:MAX_SESSIONS]
        return dict(reversed(newest))


def _lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file from its last to its first, without newlines; empty ones are left out."""
    position = file.seek(0, 2)
    pieces: list[bytes] = []  # of a line that began before the blocks read so far, last piece first
    held = 0
    while position > 0:
        size = min(BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        first, *lines = block.split(b"\n")
        if lines:
            pieces.append(lines.pop())
            if held <= MAX_LINE:
                line = b"".join(reversed(pieces))
                if line:
                    yield line
            yield from (line for line in reversed(lines) if line)
            pieces, held = [], 0
        held += len(first)
        pieces = [*pieces, first] if held <= MAX_LINE else []
    if pieces and held <= MAX_LINE:
        line = b"".join(reversed(pieces))
        if line:
            yield line
