"""Log records as programs without hyperlog send them, made into messages as our clients send them.

    {"level": "error", "message": "disk full", "time": "2026-11-20T10:00:00Z", "attributes": {…},
     "logger": "db", "traceSessionId": "1786…", "traceNumber": 12, "instance": "a2b5"}

Only `message` is required. What has another name goes into `attributes`: that is what shippers of
container platforms send. A trace, as hypertrace-logger makes it, is taken as it is. The body of
Lion Handler is known by its members:

    {"app_name": "cerco", "instance_name": "a2b5", "timestamp": "2021-11-06 10:00:00",
     "data": {"content": "disk full", "message_level": "ERROR"}}

Values are checked and passed on as the JSON text that they are.

Wire: docs/http.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Raw

from hyperlog.errors import BadRecord
from hyperlog.records import MAX_NUMBER, MAX_SESSION_ID, iso_time
from hyperlog.store.levels import LEVEL_NAMES, LEVELS, level_of, level_of_name

__all__ = [
    "BadField",
    "Entry",
    "check_values_untrusted",
    "is_name",
    "level_name",
    "parse_record_untrusted",
    "split_records_untrusted",
]

MAX_RECORDS: Final = 10_000  # of one request
MAX_VALUES: Final = 500_000  # at most; a body of 8 MiB has about 200,000
MAX_LOGGER: Final = 256  # characters
MAX_NAME: Final = 64  # characters of an application or instance
MAX_TIME: Final = 253402300799.0  # s since 1970: the year 9999
MAX_STAMP: Final = 1e21  # of a time in any unit; an integer may have thousands of digits
NDJSON: Final = {"application/x-ndjson", "application/ndjson", "application/jsonl"}
LOOKED_AT: Final = {
    "",
    "application/json",
    "application/octet-stream",
    "application/x-www-form-urlencoded",  # what curl writes if it is told nothing
    "text/plain",
}

_NAMES = [name for name in LEVELS if name != "TRACE"]  # which is for tracers
_UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (float("inf"), 1e9))
_PLACE = re.compile(r" - at `\$(?:\.|\[)?(.*)`$")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_decode_array = msgspec.json.Decoder(list[Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class BadField(BadRecord):
    """A record that cannot be taken because of one of its fields."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(slots=True)
class Entry:
    """One record of a request."""

    message: bytes
    """what a client of ours would have sent; without session and number if it told none"""
    instance: str | None = None
    """None if it told none"""
    application: str | None = None


def split_records_untrusted(data: bytes, content_type: str) -> list[bytes]:
    """The records of a body: one, a JSON array of them, or one in each line.

    Raises:
        BadField: it is none of that, or of too many.
        LookupError: of a type that cannot hold them.
    """
    check_values_untrusted(data)
    kind = content_type.partition(";")[0].strip().lower()
    if kind in NDJSON:
        return _lines(data)
    if kind not in LOOKED_AT:
        raise LookupError(kind)
    data = data.strip()
    if data.startswith(b"["):
        try:
            records = [bytes(raw) for raw in _decode_array(data)]
        except _NOT_JSON as error:
            raise BadField("body", f"no JSON array: {_reason(error)}") from None
        return _bounded(records)
    # One object may be spread over lines. If it is not one, it is one in each line.
    if b"\n" in data:
        try:
            _decode_object(data)
        except _NOT_JSON:
            return _lines(data)
    return _bounded([data] if data else [])


def check_values_untrusted(data: bytes) -> None:
    """Refuse what would take up a hundred times its size in memory, once it is taken apart.

    Raises:
        BadField: it has too many values.
    """
    if data.count(b",") > MAX_VALUES:
        raise BadField("body", f"more than {MAX_VALUES} values, send them in several requests")


def _lines(data: bytes) -> list[bytes]:
    if data.count(b"\n") > 2 * MAX_RECORDS:  # some may be empty
        raise BadField("body", f"more than {MAX_RECORDS} records")
    return _bounded([line for line in data.split(b"\n") if line.strip()])


def _bounded(records: list[bytes]) -> list[bytes]:
    if len(records) > MAX_RECORDS:
        raise BadField("body", f"{len(records)} records, at most {MAX_RECORDS} are taken at a time")
    return records


def parse_record_untrusted(data: bytes, now: float) -> Entry:
    """One record; `now`, in seconds since 1970, is its time if it tells none.

    Raises:
        BadField: it is none. The reason tells nothing of its content.
    """
    try:
        fields = _decode_object(data)
    except _NOT_JSON as error:
        raise BadField(None, f"no JSON object: {_reason(error)}") from None
    try:
        return _entry(data, fields, now)
    except _NOT_JSON as error:  # values are looked at one by one
        raise BadField(None, f"a value cannot be read: {_reason(error)}") from None


def _entry(data: bytes, fields: dict[str, Raw], now: float) -> Entry:
    if "message" not in fields:
        if "app_name" in fields or "data" in fields:
            return _lion_entry(fields, now)
        if "object" in fields and "caller" in fields:
            return Entry(bytes(data), _name(fields, "instance"))
        raise BadField("message", "message is missing")
    message = fields.pop("message")
    instance = _name(fields, "instance")
    session, number = _session(fields)
    parts = [_head(fields.pop("time", None), fields.pop("level", None), now)]
    if session is not None:
        parts.append(b'"traceSessionId":%b,"traceNumber":%b' % (session, number))
    parts.append(b'"message":' + _text_or_object(message, "message"))
    logger = fields.pop("logger", None)
    if not _is_null(logger):
        parts.append(b'"logger":' + _encode(_text(logger, "logger", MAX_LOGGER)))
    for name in ("props", "exception", "caller"):
        value = fields.pop(name, None)
        if not _is_null(value):
            parts.append(b'"%b":%b' % (name.encode(), _object(value, name)))
    attributes = fields.pop("attributes", None)
    if fields:
        given = {} if _is_null(attributes) else _decode_object(_object(attributes, "attributes"))
        attributes = Raw(_encode({**fields, **given}))
    if not _is_null(attributes):
        parts.append(b'"attributes":' + _object(attributes, "attributes"))
    return Entry(b"{%b}" % b",".join(parts), instance)


def _lion_entry(fields: Mapping[str, Raw], now: float) -> Entry:
    application = _name(fields, "app_name", required=True)
    instance = _name(fields, "instance_name", required=True)
    data = fields.get("data")
    if _is_null(data):
        raise BadField("data", "data is missing")
    inner = _decode_object(_object(data, "data"))
    content = inner.get("content")
    if content is None:
        raise BadField("data.content", "data.content is missing")
    level = _field("data.message_level", level_name, inner.get("message_level"))
    time = _field("timestamp", _time, fields.get("timestamp"), now)
    message = _text_or_object(content, "data.content")
    head = b'"traceTimestamp":"%b","level":"%b"' % (time.encode(), level.encode())
    return Entry(b'{%b,"message":%b}' % (head, message), instance, application)


def _head(time: Raw | None, level: Raw | None, now: float) -> bytes:
    stamp = _field("time", _time, time, now)
    name = _field("level", level_name, level)
    return b'"traceTimestamp":"%b","level":"%b"' % (stamp.encode(), name.encode())


def _field(name: str, parse: Any, value: Raw | None, *arguments: Any) -> str:  # noqa: ANN401
    """What `parse` makes of a value; ValueError becomes the reason."""
    try:
        text: str = parse(None if value is None else _decode(value), *arguments)
    except ValueError as error:
        raise BadField(name, f"{name} {error}") from None
    return text


def level_name(value: object) -> str:
    """The name of a level given by name, in any case, or by a number as of the logging module.

    Raises:
        ValueError: it is none.
    """
    if value is None:
        return "INFO"
    level = None
    if isinstance(value, str):
        level = level_of_name(value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100:
        level = level_of(value)
    if level is None:
        raise ValueError(f"is one of {', '.join(_NAMES)}")
    return LEVEL_NAMES[max(level, LEVELS["DEBUG"])]


def _time(value: object, now: float) -> str:
    if value is None:
        return iso_time(now)
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError("is written like 2026-11-20T10:00:00.000Z") from None
        seconds = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        # Seconds, milliseconds, microseconds or nanoseconds: of our time these are far apart.
        unit = next(unit for limit, unit in _UNITS if abs(value) < limit)
        seconds = value / unit if abs(value) < MAX_STAMP else MAX_STAMP
    else:
        raise ValueError("is a text like 2026-11-20T10:00:00.000Z, or seconds since 1970")
    if not 0 <= seconds <= MAX_TIME:
        raise ValueError("is between the years 1970 and 9999")
    return iso_time(seconds)


def _session(fields: dict[str, Raw]) -> tuple[bytes | None, bytes]:
    session, number = fields.pop("traceSessionId", None), fields.pop("traceNumber", None)
    if session is None and number is None:
        return None, b""
    if session is None or number is None:
        missing = "traceSessionId" if session is None else "traceNumber"
        raise BadField(missing, f"{missing} is missing: the two go together")
    text = _text(session, "traceSessionId", MAX_SESSION_ID)
    if not text:
        raise BadField("traceSessionId", "traceSessionId is empty")
    value = _decode(number)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise BadField("traceNumber", f"traceNumber is a whole number from 0 to {MAX_NUMBER}")
    return _encode(text), b"%d" % value


def _name(fields: Mapping[str, Raw], field: str, *, required: bool = False) -> str | None:
    value = fields.get(field)
    if isinstance(fields, dict):
        fields.pop(field, None)
    if _is_null(value):
        if required:
            raise BadField(field, f"{field} is missing")
        return None
    name = _text(value, field, MAX_NAME)
    if not is_name(name):
        raise BadField(field, f"{field} is 1 to {MAX_NAME} printable characters")
    return name


def is_name(name: str) -> bool:
    """Whether an application or an instance can have this name."""
    return 0 < len(name) <= MAX_NAME and name.isprintable()


def _text(value: Raw | None, field: str, limit: int) -> str:
    text = None if value is None else _decode(value)
    if not isinstance(text, str):
        raise BadField(field, f"{field} is a text")
    if len(text) > limit:
        raise BadField(field, f"{field} has {len(text)} characters, at most {limit} are taken")
    return text


def _text_or_object(value: Raw, field: str) -> bytes:
    data = bytes(value)
    if data[:1] not in (b'"', b"{"):
        raise BadField(field, f"{field} is a text or a JSON object")
    return data


def _object(value: Raw | None, field: str) -> bytes:
    data = b"" if value is None else bytes(value)
    if data[:1] != b"{":
        raise BadField(field, f"{field} is a JSON object")
    return data


def _is_null(value: Raw | None) -> bool:
    return value is None or bytes(value) == b"null"


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    if isinstance(error, RecursionError):
        return "nested too deep"
    return _PLACE.sub("", str(error))
