"""Log messages as JSON: what `Client.info` and its like, and the logging Handler, send.

    {traceTimestamp, traceSessionId, traceNumber, level, logger, message, props, attributes,
     exception: {type, message, stack}, caller: {filename, functionName, line}}

`level` is one of LOG_LEVELS and `message` text or an object; of the rest what there is none of is
left out. A session numbers log messages and traces in one sequence.

The thread that logs makes a LogEntry, which costs little, and the client's thread makes JSON of it.
Values are treated as in the props of traces (replacer.py).

Wire: docs/protocol/session.md section 11.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from hyperlog.errors import BadRecord
from hyperlog.records import LOG_LEVELS, MAX_RECORD_SIZE, iso_time
from hyperlog.replacer import replace_props, replace_strictly, safe_text
from hyperlog.stacktext import CaughtError

if TYPE_CHECKING:
    Place = tuple[str, str, int | None]

__all__ = [
    "LogCaller",
    "LogEntry",
    "LogException",
    "LogRecord",
    "decode_log_untrusted",
    "encode_log",
    "in_javascript_form",
    "level_name",
    "message_of",
    "plain_values",
]

MAX_NAME = 256  # characters of a logger's or function's name
MAX_FILENAME = 4096  # characters
MAX_CUT_TEXT = 64 * 1024  # characters of a message that was too large

_LEVELS: dict[Any, str] = {name: name for name in LOG_LEVELS}
_LEVELS |= {"WARN": "WARNING", "FATAL": "CRITICAL", "EXCEPTION": "ERROR", "TRACE": "DEBUG"}
_LEVELS |= {name.lower(): level for name, level in _LEVELS.items()}
_LEVELS |= {10 * number: name for number, name in enumerate(LOG_LEVELS, 1)}


class LogCaller(Struct, rename="camel", gc=False):
    """The place of the call."""

    filename: str
    function_name: str
    line: int | UnsetType = UNSET


class LogException(Struct, gc=False):
    """The exception that a message is about."""

    type: str
    message: str
    stack: str


class LogRecord(Struct, rename="camel", gc=False):
    """One log message as it travels: fields in wire order."""

    trace_timestamp: str
    """ISO time with milliseconds and Z"""
    trace_session_id: str
    trace_number: int
    """counts from 0 in a session, traces and log messages together"""
    level: str
    logger: str | UnsetType = UNSET
    message: Any = None
    """text or an object"""
    props: Any = UNSET
    """props of the client"""
    attributes: Any = UNSET
    exception: LogException | UnsetType = UNSET
    caller: LogCaller | UnsetType = UNSET


class LogEntry:
    """One log message on its way to the thread that encodes it."""

    __slots__ = ("attributes", "error", "level", "logger", "message", "place")

    def __init__(
        self,
        level: str,
        message: str | dict[str, Any],
        attributes: dict[str, Any] | None = None,
        place: Place | None = None,
        error: CaughtError | None = None,
        logger: str | None = None,
    ) -> None:
        """`level` comes from `level_name`, a message that is no plain text or dictionary from
        `message_of`; `place` is file, function and line."""
        self.level = level
        self.message = message
        self.attributes = attributes
        self.place = place
        self.error = error
        self.logger = logger

    @property
    def text_size(self) -> int:
        """About the bytes of its long texts, for TraceQueue."""
        size = 0
        message = self.message
        if isinstance(message, str):
            size = len(message)
        elif message:
            size = _size(message)
        if self.attributes:
            size += _size(self.attributes)
        if self.error is not None:
            size += 2048  # frames keep their code alive, and become text of some KB
        return size

    def make_plain(self) -> None:
        """Leave out whatever has methods of the application's, which might log in their turn."""
        if not isinstance(self.message, str):
            self.message = plain_values(self.message) or {}
        self.attributes = plain_values(self.attributes)

    def __repr__(self) -> str:
        return f"LogEntry({self.level!r}, {self.message!r}, {self.attributes!r})"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(LogRecord).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_HEAD = 200  # bytes of a message within which its level stands
_state = threading.local()
_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_class_name = type.__dict__["__name__"].__get__


def _size(values: Mapping[str, Any]) -> int:
    size = 0
    for value in values.values():
        if type(value) is str or type(value) is bytes:
            size += len(value)
    return size


def plain_values(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """A copy in which the name of its class stands for each value that is no text or number."""
    if values is None:
        return None
    return {
        str.__str__(name) if isinstance(name, str) else "?": value
        if type(value) in _PLAIN
        else f"[{_class_name(type(value))}]"
        for name, value in values.items()
    }


def level_name(level: object) -> str:
    """One of LOG_LEVELS for a level's name or number; a number between two counts as the lower,
    and what is neither as INFO."""
    try:
        name = _LEVELS.get(level)
        if name is not None:
            return name
        if isinstance(level, str):
            return _LEVELS.get(level.strip().upper(), "INFO")
        if isinstance(level, int | float):
            return LOG_LEVELS[max(0, min(int(level) // 10, 5) - 1)]
    except Exception:  # of any type at all, infinities among them
        pass
    return "INFO"


def message_of(message: object) -> str | dict[str, Any]:
    """`message` as a LogEntry holds it: a dictionary of a mapping, else text. Never raises."""
    # The application's own methods make the text, and may log: about the same object, even.
    if getattr(_state, "inside", False):
        return f"[{_class_name(type(message))} logged while its own text was made]"
    _state.inside = True
    try:
        if isinstance(message, Mapping):
            return dict(message)
        return str.__str__(message) if isinstance(message, str) else str(message)
    except Exception:
        return f"[unserialisable {_class_name(type(message))}]"
    finally:
        _state.inside = False


def encode_log(
    entry: LogEntry, timestamp: float, session_id: str, number: int, props: Raw | None = None
) -> bytes:
    """The message of one entry, at most MAX_RECORD_SIZE bytes.

    `timestamp` is the time of the call in seconds since 1970, `props` comes from `client_props`.
    Never raises for what the application logged: values that JSON cannot hold are replaced or
    marked, and of what is too large the largest parts are left out, saying so.
    """
    message, attributes, place = entry.message, entry.attributes, entry.place
    record = LogRecord(
        iso_time(timestamp),
        session_id,
        number,
        entry.level,
        UNSET if entry.logger is None else entry.logger,
        message if type(message) is str else replace_props(message),  # type: ignore[arg-type]
        UNSET if props is None else props,
        replace_props(attributes) if attributes else UNSET,
    )
    error = entry.error
    if error is not None:
        record.exception = LogException(error.type, error.message, error.stack())
    if place is not None:
        line = place[2]
        record.caller = LogCaller(place[0], place[1], UNSET if line is None else line)
    try:
        data = _encode(record)
    except Exception:  # lone surrogates, integers beyond 64 bits, a container changed meanwhile
        data = b""
    if not data or len(data) > MAX_RECORD_SIZE:
        data = _encode_strictly(record, entry)
    return data


def _encode_strictly(record: LogRecord, entry: LogEntry) -> bytes:
    message, attributes, place = entry.message, entry.attributes, entry.place
    if record.logger is not UNSET:
        record.logger = safe_text(record.logger, MAX_NAME)
    if isinstance(message, str):
        record.message = safe_text(message)
    else:
        record.message = replace_strictly(message)
    if attributes:
        record.attributes = replace_strictly(attributes)
    if place is not None:
        record.caller = LogCaller(
            safe_text(place[0], MAX_FILENAME),
            safe_text(place[1], MAX_NAME),
            UNSET if place[2] is None else place[2],
        )
    data = _encode(record)
    if len(data) <= MAX_RECORD_SIZE:
        return data
    left_out = f"record of {len(data)} bytes, at most {MAX_RECORD_SIZE} are sent"
    record.props = UNSET
    record.attributes = {"[left out]": left_out}
    if isinstance(message, str):
        record.message = safe_text(message, MAX_CUT_TEXT)
    elif len(_encode(record.message)) > MAX_RECORD_SIZE // 2:
        record.message = {"[left out]": left_out}
    return _encode(record)


def in_javascript_form(data: bytes) -> bytes:
    """A message as servers of the JavaScript rule take it; what is no log message as it is.

    Compat: hypertrace-logger server.js drops what has no `object` and `caller`.
    """
    if b'","traceNumber":' not in data[:_HEAD] or b',"level":"' not in data[:_HEAD]:
        return data
    fields = _decode_fields(data)
    level = fields.get("level")
    if level is None or "message" not in fields or "object" in fields:
        return data
    name = fields.get("logger", Raw(b'"log"'))
    fields.setdefault("id", level)
    fields["object"] = Raw(b'{"id":0,"className":%b,"props":null}' % bytes(name))
    fields.setdefault("caller", Raw(b'{"filename":"","functionName":""}'))
    return _encode(fields)


def decode_log_untrusted(data: bytes) -> LogRecord:
    """The log message in a client's message or in a server's line; unknown keys are ignored.

    Raises:
        BadRecord: it is none.
    """
    try:
        record = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord(f"not a log message: {error}") from None
    if not isinstance(record.message, str | dict):
        raise BadRecord("message is neither text nor an object")
    return record
