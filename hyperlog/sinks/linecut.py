"""Lines that are too long for tailers, cut to size.

Many tailers drop, split or choke on lines of more than 64 KiB. A longer line keeps what identifies
it; its largest values, at whatever depth, give way to marks that tell how large they were:

    {"time":…,…,"traceNumber":7,"props":{"a":1,"b":"[cut: 81234 bytes]"},…,"cut":true}

Only what is larger than its share of the room is opened, one level at a time, and nothing is opened
that has too many members: the work is bounded whatever a client sends.

Spec: docs/protocol/session.md section 6.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

__all__ = ["cut_line"]

IDENTITY: Final = frozenset(
    (
        *("time", "userId", "app", "instance", "note", "gap"),
        *("traceTimestamp", "traceSessionId", "traceNumber", "id", "level", "logger"),
    )
)
MAX_IDENTITY: Final = 2048  # bytes of each of these values; one of at most so many is kept whole
SMALL_IDENTITY: Final = 256  # where there is no room for that, with room for all in any line
MAX_MEMBERS: Final = 64 * 1024  # of an object or array that is opened, up to 10 ms
MAX_COUNTED: Final = 1024 * 1024  # bytes; in more, commas inside of strings count as members
MAX_DEPTH: Final = 32
MARK_SIZE: Final = 24  # bytes of a mark, with room for 9 digits
LAST: Final = b'"cut":true}'

_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_array = msgspec.json.Decoder(list[Raw]).decode
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


class _Known(Struct, rename="camel", gc=False):
    """The members of a line that a server or client of ours writes."""

    time: Raw | UnsetType = UNSET
    user_id: Raw | UnsetType = UNSET
    app: Raw | UnsetType = UNSET
    instance: Raw | UnsetType = UNSET
    note: Raw | UnsetType = UNSET
    gap: Raw | UnsetType = UNSET
    trace_timestamp: Raw | UnsetType = UNSET
    trace_session_id: Raw | UnsetType = UNSET
    trace_number: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET
    props: Raw | UnsetType = UNSET
    object: Raw | UnsetType = UNSET
    caller: Raw | UnsetType = UNSET
    parent_object: Raw | UnsetType = UNSET
    level: Raw | UnsetType = UNSET
    logger: Raw | UnsetType = UNSET
    message: Raw | UnsetType = UNSET
    attributes: Raw | UnsetType = UNSET
    exception: Raw | UnsetType = UNSET


_decode_known = msgspec.json.Decoder(_Known).decode
_NAMES = [(field.name, field.encode_name) for field in msgspec.structs.fields(_Known)]


def cut_line(line: bytes, limit: int) -> bytes:
    """The line, a JSON object without newline, cut to `limit` bytes.

    A line that already has at most `limit` bytes comes back as it is. `limit` is at least 4096:
    what identifies the line has to fit. A text that is no JSON object is replaced by its size.
    """
    if len(line) <= limit:
        return line
    room = limit - len(LAST) - 2
    try:
        members = _members(line)
        values = _shrunk(members.items(), room)
        if values is None:
            identity = {name: value for name, value in members.items() if name in IDENTITY}
            values = _shrunk(identity.items(), room) or _shrunk(
                identity.items(), room, kept=SMALL_IDENTITY
            )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        values = None
    if values is None:
        values = [b'"note":' + _mark(line)]
    return b"{" + b",".join(values) + b"," + LAST


def _members(line: bytes) -> dict[str, bytes]:
    """The members of a line; where there are too many, those that are known."""
    if _may_be_opened(line):
        members = {name: bytes(value) for name, value in _decode_object(line).items()}
        members.pop("cut", None)
        return members
    known = _decode_known(line)
    found = ((name, getattr(known, attribute)) for attribute, name in _NAMES)
    return {name: bytes(value) for name, value in found if value is not UNSET}


def _may_be_opened(data: bytes) -> bool:
    commas = data.count(b",")
    if commas > MAX_MEMBERS and len(data) <= MAX_COUNTED:
        commas = _STRING.sub(b"", data).count(b",")
    return commas <= MAX_MEMBERS


def _shrunk(
    members: Iterable[tuple[str, bytes]], room: int, depth: int = 0, kept: int = MAX_IDENTITY
) -> list[bytes] | None:
    """Members of an object as `"name":value`, in `room` bytes with commas; None if it cannot be."""
    named = [(name, _name(name), value) for name, value in members]
    sizes = []
    for name, text, value in named:
        room -= len(text) + 2
        if depth == 0 and name in IDENTITY and len(value) <= kept:
            room -= len(value)
        else:
            sizes.append(len(value))
    share = _share(sizes, room)
    if share is None:
        return None
    values = []
    for name, text, value in named:
        if len(value) > share and not (depth == 0 and name in IDENTITY and len(value) <= kept):
            value = _shrink(value, share, depth + 1)
        values.append(b"%b:%b" % (text, value))
    return values


def _shrink(value: bytes, room: int, depth: int) -> bytes:
    """A JSON value in `room` bytes, which is enough for a mark."""
    pieces = None
    if depth < MAX_DEPTH and value[:1] in (b"{", b"[") and _may_be_opened(value):
        if value.startswith(b"{"):
            members = {name: bytes(member) for name, member in _decode_object(value).items()}
            pieces = _shrunk(members.items(), room - 2, depth)
        else:
            items = [bytes(item) for item in _decode_array(value)]
            share = _share([len(item) for item in items], room - 2 - len(items))
            if share is not None:
                pieces = [i if len(i) <= share else _shrink(i, share, depth + 1) for i in items]
    if pieces is None:
        return _mark(value)
    begin, end = (b"{", b"}") if value.startswith(b"{") else (b"[", b"]")
    return begin + b",".join(pieces) + end


def _share(sizes: list[int], room: int) -> int | None:
    """The size up to which values are kept, so that all fit with the larger ones shrunk to it; None
    if they never will."""
    if sum(min(size, MARK_SIZE) for size in sizes) > room:
        return None
    left = len(sizes)
    for size in sorted(sizes):
        share = room // left
        if size > share:
            return max(share, MARK_SIZE)
        room -= size
        left -= 1
    return max(sizes, default=0)


def _mark(value: bytes) -> bytes:
    return b'"[cut: %d bytes]"' % len(value)


def _name(name: str) -> bytes:
    # ASCII only: a name must not bring back what was escaped so as to be safe to print.
    return json.dumps(name).replace("\x7f", "\\u007f").encode()
