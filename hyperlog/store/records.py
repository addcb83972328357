"""A record as the stores hold it, made from one line of a log file.

Every line becomes one record, but for those that only help the server to read its files. What is
not in the line follows from the file: its name is the sender's public key, or, for a sender without
one, stands for its application and instance.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal, NoReturn, TypeAlias

import msgspec
from msgspec import Raw, Struct

from hyperlog.records import instance_source
from hyperlog.sinks.scan import is_continuation
from hyperlog.store.levels import LEVEL_NAMES, LEVELS, level_of
from hyperlog.store.times import iso_ms

__all__ = [
    "DEFAULT_BUCKET",
    "LEVELS",
    "LEVEL_NAMES",
    "Kind",
    "StoredRecord",
    "decode_body",
    "record_of",
]

DEFAULT_BUCKET: Final = "default"
"""of senders that name no application"""

MAX_NAME: Final = 64  # characters of an application or instance
MAX_SESSION_ID: Final = 128  # characters
MAX_NUMBER: Final = 2**53 - 1
MAX_MESSAGE: Final = 1000  # characters of the one line
NO_MESSAGE: Final = "(no message)"

Kind: TypeAlias = Literal["trace", "log", "note", "gap"]


class StoredRecord(Struct, gc=False, frozen=True):
    """One record. Times are milliseconds since 1970."""

    id: str
    """stable: `<source>-<session>-<number>`; a note's is `<source>-note-<16 hex of its hash>`"""
    server: str
    """public key of the server that wrote it, hex"""
    source: str
    """64 hex digits, the name of its log file"""
    bucket: str
    """application"""
    instance: str
    """what the sender tells, or else the first 8 digits of `source`"""
    key: str | None
    """the sender's public key, hex; None if it came by other ways than the DHT"""
    session: str | None
    number: int | None
    """in the session; None for a note, the last of the numbers for a gap"""
    time: int
    """when the server received it"""
    client_time: int | None
    """when the sender made it, as it says"""
    level: int
    """one of LEVELS"""
    kind: Kind
    message: str
    """one line that tells what it is"""
    body: bytes
    """the line: a JSON object, without its newline"""


# -- from a line


class _Object(Struct, rename="camel", gc=False):
    class_name: str = ""


class _Caller(Struct, rename="camel", gc=False):
    function_name: str = ""


class _Gap(Struct, gc=False):
    session: str
    to: int


class _Line(Struct, rename="camel", gc=False):
    """What is needed of a line; all the rest is skipped."""

    time: str
    app: str | None = None
    instance: str | None = None
    trace_timestamp: str | None = None
    trace_session_id: str | None = None
    trace_number: int | None = None
    id: str | None = None
    object: _Object | None = None
    caller: _Caller | None = None
    level: str | int | float | None = None
    message: Raw = Raw()
    note: str | None = None
    gap: _Gap | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode
_decode_text = msgspec.json.Decoder(str).decode
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def record_of(line: bytes, source: bytes, server: str) -> StoredRecord | None:
    """The record of one line of the log file of `source`, on the server with this key.

    None for a line that says how a rotated log continues, and for what is no JSON object with a
    `time`: a torn line. Lines are trusted in nothing else: a member of a strange type counts as
    missing.
    """
    try:
        found = _decode_line(line)
    except _UNDECODABLE:
        lenient = _lenient_line(line)
        if lenient is None:
            return None
        found = lenient
    time = iso_ms(found.time)
    if time is None:
        return None
    file = source.hex()
    bucket, instance, pseudonym = _tags(found.app, found.instance)
    session, number = found.trace_session_id, found.trace_number
    kind: Kind
    if found.note is not None:
        if found.gap is not None:
            kind, level = "gap", 30
            session, number = found.gap.session, found.gap.to
        elif is_continuation(line):
            return None
        else:
            kind, level = "note", 20
            session = number = None
        message = _one_line(found.note)
    elif found.object is not None and found.caller is not None:
        kind, level = "trace", 5
        message = f"{found.object.class_name}.{found.caller.function_name}"
        if found.id:
            message = f"{found.id} {message}"
        if len(message) > MAX_MESSAGE or not message.isprintable():
            message = _one_line(message)
    else:
        kind, level = "log", level_of(found.level)
        message = _one_line(_text(found.message)) if found.message else NO_MESSAGE
    if session is None or number is None or not _is_numbered(session, number):
        session = number = None
        id = f"{file}-note-{blake2b(line, digest_size=8).hexdigest()}"
    else:
        id = f"{file}-{session}-{number}"
    return StoredRecord(
        id,
        server,
        file,
        bucket,
        instance or file[:8],
        None if file == pseudonym else file,
        session,
        number,
        time,
        None if found.trace_timestamp is None else iso_ms(found.trace_timestamp),
        level,
        kind,
        message,
        line,
    )


@lru_cache(maxsize=4096)
def _tags(application: str | None, instance: str | None) -> tuple[str, str | None, str | None]:
    """Bucket, instance if it is told, and the log file's name if these have no key."""
    pseudonym = None
    if application is not None and instance is not None:
        try:
            pseudonym = instance_source(application, instance).hex()
        except UnicodeEncodeError:
            pass
    bucket = application if _is_name(application) else None
    return bucket or DEFAULT_BUCKET, instance if _is_name(instance) else None, pseudonym


def _is_name(text: str | None) -> bool:
    return text is not None and 0 < len(text) <= MAX_NAME and text.isprintable()


def _is_numbered(session: str, number: int) -> bool:
    return 0 < len(session) <= MAX_SESSION_ID and 0 <= number <= MAX_NUMBER


def _text(message: Raw) -> str:
    raw = bytes(message)
    if raw.startswith(b'"'):
        try:
            return _decode_text(raw)
        except _UNDECODABLE:
            pass
    return raw[: 4 * MAX_MESSAGE].decode(errors="replace")


def _one_line(text: str) -> str:
    if len(text) > MAX_MESSAGE:
        text = text[: MAX_MESSAGE - 1] + "…"
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
        text = " ".join(text.split())
    return text


def _lenient_line(line: bytes) -> _Line | None:
    members = decode_body(line)
    time, number, level = members.get("time"), members.get("traceNumber"), members.get("level")
    gap, object, caller = members.get("gap"), members.get("object"), members.get("caller")
    if not isinstance(time, str):
        return None
    found = _Line(time)
    found.app = _string(members, "app")
    found.instance = _string(members, "instance")
    found.trace_timestamp = _string(members, "traceTimestamp")
    found.trace_session_id = _string(members, "traceSessionId")
    found.id = _string(members, "id")
    found.note = _string(members, "note")
    if isinstance(number, int) and not isinstance(number, bool):
        found.trace_number = number
    if isinstance(object, dict):
        found.object = _Object(_string(object, "className") or "")
    if isinstance(caller, dict):
        found.caller = _Caller(_string(caller, "functionName") or "")
    if isinstance(level, str | int | float):
        found.level = level
    if "message" in members:
        found.message = Raw(json.dumps(members["message"], ensure_ascii=False).encode())
    if isinstance(gap, dict):
        session, to = gap.get("session"), gap.get("to")
        if isinstance(session, str) and isinstance(to, int) and not isinstance(to, bool):
            found.gap = _Gap(session, to)
    return found


def _string(members: dict[str, Any], name: str) -> str | None:
    value = members.get(name)
    return value if isinstance(value, str) else None


def decode_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a record; of members with the same name the last. Never raises: what is
    no object comes out empty.

    Half surrogate pairs become U+FFFD, numbers beyond all doubles infinite.
    """
    try:
        return _decode_any(body)
    except _UNDECODABLE:
        pass
    try:
        text = body.decode(errors="replace")
        decoded = json.loads(text, parse_int=_integer, parse_constant=_refuse)
        if not isinstance(decoded, dict):
            return {}
        mended = json.dumps(decoded, ensure_ascii=False)
        mended = mended.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        members: dict[str, Any] = json.loads(mended)
    except (ValueError, RecursionError):
        return {}
    return members


def _integer(digits: str) -> float:
    try:
        return int(digits)
    except ValueError:  # more digits than Python converts
        return float(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
