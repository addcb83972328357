"""Trace records as JSON: what a client sends, and the lines that a server writes.

Both have the structure of the JavaScript packages, keys in their order, so that each side can be
exchanged for its original. A client's message:

    {traceTimestamp, traceSessionId, traceNumber, id, props,
     object: {id, className, props}, caller: {filename, functionName, props}}

to which hyperlog adds `line` and `column` at the end of `caller`, and `parentObject` (shaped like
`object`) at the end of the message. `id`, `props` and `object.props` are null when there are none;
`caller.props` and the additions are left out.

A server's line is `{time, userId, …the message}` or `{time, note}`; behind `userId` or `time` stand
`app` and `instance` of a sender that told its application. The server's own keys cannot be taken by
a client: `time`, `userId`, `app`, `instance`, `note`, `gap` and `key` in a message are written as
`clientTime`, `clientUserId`, … (and lose to a key that has that name already). Lines are fit for
terminals: control characters, bidirectional marks and line separators are written as JSON escapes.

Both directions are hot. Encoding goes through msgspec once, for props that are plain. A message
that is received is checked as a whole, but decoded only where the server needs a value; its bytes
go into the line as they came.

Source: hypertrace-logger client.js, server.js; docs/protocol/trace-protocol.md sections 1, 2 and 5.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from hyperlog.errors import BadRecord
from hyperlog.replacer import replace_props, replace_strictly, safe_text

if TYPE_CHECKING:
    from hyperlog.trace import CallSite, Trace, TracedObject

__all__ = [
    "DEFAULT_APPLICATION",
    "LOG_LEVELS",
    "ClientRecord",
    "Gap",
    "TraceCaller",
    "TraceObject",
    "TraceRecord",
    "client_props",
    "decode_trace_untrusted",
    "encode_gap",
    "encode_trace",
    "gap_line",
    "instance_source",
    "iso_time",
    "line_tags",
    "note_line",
    "parse_client_message_untrusted",
    "record_line",
    "user_id_untrusted",
]

MAX_RECORD_SIZE = 1024 * 1024  # bytes of one message that we send
MAX_MESSAGE_SIZE = 2**24 - 1 - 17  # bytes of one message that we accept: one secret-stream frame
MAX_NESTING = 128  # containers within containers in a message that we accept
MAX_HALF_PAIRS = 10_000  # of surrogates in a message that are mended, some ms
MAX_ESCAPED = 10_000  # unprintable characters that are escaped one by one, some ms
MAX_SESSION_ID = 128  # characters; the JavaScript client sends up to 18 digits
MAX_SESSIONS = 256  # of one key that a server remembers, in memory as from its files
MAX_NUMBER = 2**53 - 1  # JavaScript's largest exact integer
MAX_NAME = 256  # characters of a class, function or user name
DEFAULT_APPLICATION = "default"  # of senders that name none
MAX_REASON = 64  # characters of a gap's reason
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
"""of log messages; from others also in lower case, and WARN and FATAL"""

_RESERVED = {
    "time": "clientTime",
    "userId": "clientUserId",
    "app": "clientApp",
    "instance": "clientInstance",
    "note": "clientNote",
    "gap": "clientGap",
    "key": "clientKey",
}


class TraceObject(Struct, rename="camel", gc=False):
    """The object that traced, or its parent."""

    id: int
    class_name: str
    props: Any = None


class TraceCaller(Struct, rename="camel", gc=False):
    """The place of the call, and the props given there."""

    filename: str
    function_name: str
    props: Any = UNSET
    line: int | UnsetType = UNSET
    column: int | UnsetType = UNSET


class TraceRecord(Struct, rename="camel", gc=False):
    """One trace as it travels: fields in wire order."""

    trace_timestamp: str
    """ISO time with milliseconds and Z"""
    trace_session_id: str
    trace_number: int
    """counts from 0 in a session"""
    id: str | None
    props: Any
    """props of the client; an object or null"""
    object: TraceObject
    caller: TraceCaller
    parent_object: TraceObject | UnsetType = UNSET


class Gap(Struct, gc=False, rename={"from_number": "from", "to_number": "to"}):
    """Records of one session that were lost before they reached a server."""

    session: str
    from_number: int
    to_number: int
    """the last one, inclusive"""
    count: int
    """how many; more than numbers if they were lost before they had any"""
    reason: str

    @property
    def text(self) -> str:
        numbers = f"from={self.from_number} to={self.to_number}"
        return f"Lost {self.count} messages before sending! {numbers} reason={self.reason}"


_encode = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(TraceRecord).decode

_second: tuple[int, str] = (0, "1970-01-01T00:00:00")


def iso_time(now: float) -> str:
    """`now` (seconds since 1970) as JavaScript writes it: 2026-11-20T23:41:09.954Z."""
    global _second
    second, milliseconds = divmod(round(now * 1000), 1000)
    known, text = _second
    if known != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = (second, text)  # one assignment: threads may race, none sees a mixture
    return f"{text}.{milliseconds:03d}Z"


# -- what a client sends


def client_props(props: Mapping[str, Any]) -> Raw:
    """The client-wide props, encoded once for all the records that carry them."""
    return Raw(_encode_safely(replace_props(props), props))


def encode_trace(
    trace: Trace, timestamp: float, session_id: str, number: int, props: Raw | None = None
) -> bytes:
    """The message of one trace, at most MAX_RECORD_SIZE bytes.

    `timestamp` is the time of the trace in seconds since 1970, `props` comes from `client_props`.
    Never raises for what the application put into props: values that JSON cannot hold are replaced
    or marked, and a record that is still too large is sent without its props, saying so.
    """
    source, site, parent = trace.source, trace.site, trace.parent_object
    caller_props: Any = trace.caller_props
    object_props: Any = trace.object_props
    record = TraceRecord(
        iso_time(timestamp),
        session_id,
        number,
        trace.id,
        props,
        TraceObject(
            source.id,
            source.class_name,
            None if object_props is None else replace_props(object_props),
        ),
        TraceCaller(
            site.filename,
            site.function_name,
            UNSET if caller_props is None else replace_props(caller_props),
            UNSET if site.line is None else site.line,
            UNSET if site.column is None else site.column,
        ),
    )
    if parent is not None:
        record.parent_object = TraceObject(
            parent.id,
            parent.class_name,
            None if parent.props is None else replace_props(parent.props),
        )
    try:
        message = _encode(record)
    except Exception:  # lone surrogates, integers beyond 64 bits, a container changed meanwhile
        message = b""
    if not message or len(message) > MAX_RECORD_SIZE:
        message = _encode_strictly(record, trace)
    return message


def _encode_strictly(record: TraceRecord, trace: Trace) -> bytes:
    site: CallSite = trace.site
    record.id = None if record.id is None else safe_text(record.id, MAX_NAME)
    record.object = _strict_object(trace.source, trace.object_props)
    record.caller.filename = safe_text(site.filename, 16 * MAX_NAME)
    record.caller.function_name = safe_text(site.function_name, MAX_NAME)
    if trace.caller_props is not None:
        record.caller.props = replace_strictly(trace.caller_props)
    if trace.parent_object is not None:
        record.parent_object = _strict_object(trace.parent_object, trace.parent_object.props)
    message = _encode(record)
    if len(message) <= MAX_RECORD_SIZE:
        return message
    marked = {"[left out]": f"record of {len(message)} bytes, at most {MAX_RECORD_SIZE} are sent"}
    record.props = record.object.props = None
    record.caller.props = marked
    if record.parent_object is not UNSET:
        record.parent_object.props = None
    return _encode(record)


def _strict_object(source: TracedObject, props: Mapping[str, Any] | None) -> TraceObject:
    replaced = None if props is None else replace_strictly(props)
    return TraceObject(source.id, safe_text(source.class_name, MAX_NAME), replaced)


def _encode_safely(replaced: Mapping[str, Any], props: Mapping[str, Any]) -> bytes:
    try:
        return _encode(replaced)
    except Exception:  # see encode_trace
        return _encode(replace_strictly(props))


def encode_gap(gap: Gap, timestamp: float) -> bytes:
    """The message that stands for lost records and has the number of the last of them.

    The JavaScript server logs it for its `note`, after a "Skipped …" note of its own; ours makes
    the gap line of it.
    """
    return _encode(
        {
            "traceTimestamp": iso_time(timestamp),
            "traceSessionId": gap.session,
            "traceNumber": gap.to_number,
            "note": gap.text,
            "gap": gap,
        }
    )


def decode_trace_untrusted(data: bytes) -> TraceRecord:
    """The trace in a client's message or in a server's line; unknown keys are ignored.

    Raises:
        BadRecord: it is no trace.
    """
    try:
        return _decode_record(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord(f"not a trace: {error}") from None


# -- what a server receives


class _AnyObject(Struct, gc=False):
    """A JSON object; what is in it is checked for syntax and skipped."""


class _Message(Struct, rename="camel", gc=False):
    trace_session_id: str
    trace_number: int
    props: Raw = Raw()
    object: _AnyObject | None = None
    caller: _AnyObject | None = None
    level: Raw | UnsetType = UNSET
    message: Raw | UnsetType = UNSET
    note: Raw | UnsetType = UNSET
    time: Raw | UnsetType = UNSET
    user_id: Raw | UnsetType = UNSET
    app: Raw | UnsetType = UNSET
    instance: Raw | UnsetType = UNSET
    gap: Raw | UnsetType = UNSET
    key: Raw | UnsetType = UNSET


class _UserNames(Struct, gc=False):
    username: Any = None
    alias: Any = None


@dataclass(slots=True)
class ClientRecord:
    """A checked message of a client."""

    session_id: str
    number: int
    props: bytes
    """the client's props as JSON text, b"" if there are none; see `user_id_untrusted`"""
    tail: bytes
    """the message from after its `{`, without the server's keys, safe to print"""
    gap: Gap | None
    """set if the message tells of lost records instead of being one"""


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_keys = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_names = msgspec.json.Decoder(_UserNames).decode
_decode_gap = msgspec.json.Decoder(Gap).decode

_LEVELS = frozenset(f'"{name}"'.encode() for name in (*LOG_LEVELS, "WARN", "FATAL"))
_PRINTABLE = bytes(range(0x20, 0x7F))
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# All up to half a surrogate pair, at one go and possessive: linear whatever the escapes are.
_HALF_PAIR = re.compile(
    rb"((?:[^\\]++|\\(?:[^u]|u(?![dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*+)(\\u[dD].{3})?",
    re.DOTALL,
)
# Possessive and with an optional end: linear whatever the quotes are.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BITS = bytes.maketrans(b"[{]}", b"1100")


def parse_client_message_untrusted(data: bytes, max_size: int = MAX_MESSAGE_SIZE) -> ClientRecord:
    """Check one message of a client and prepare its line.

    Accepted is what the JavaScript server would log, a JSON object with a session id, a number and
    either `object` and `caller` or a `note`; and log messages, with `level` and `message` in their
    place. Half a surrogate pair in a string, which JavaScript can send, is replaced.

    Raises:
        BadRecord: anything else, or more than `max_size` bytes, or nested more than MAX_NESTING
            deep. The text names the reason and nothing of the content.
    """
    if len(data) > max_size:
        raise BadRecord(f"message of {len(data)} bytes, at most {max_size} are accepted")
    if data.count(b"{") + data.count(b"[") > MAX_NESTING and _is_nested_deeper(data, MAX_NESTING):
        raise BadRecord(f"nested more than {MAX_NESTING} deep")
    message, data = _checked_message(data)
    session_id, number = message.trace_session_id, message.trace_number
    if len(session_id) > MAX_SESSION_ID:
        raise BadRecord(f"traceSessionId of {len(session_id)} characters")
    if not 0 <= number <= MAX_NUMBER:
        raise BadRecord("traceNumber is out of range")
    gap = None
    if message.note is UNSET:
        if message.object is None or message.caller is None:
            _check_log(message)
    elif message.gap is not UNSET:
        gap = _claimed_gap(message, message.gap)
    return ClientRecord(session_id, number, bytes(message.props), _tail(data, message), gap)


def _checked_message(data: bytes) -> tuple[_Message, bytes]:
    try:
        return _decode_message(data), data
    except msgspec.DecodeError as error:
        reason = str(error)  # a place and a kind, never content
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8 text") from None
    except RecursionError:
        raise BadRecord(f"nested more than {MAX_NESTING} deep") from None
    # Compat: JSON.stringify writes half a surrogate pair as an escape, which msgspec refuses.
    mended = _HALF_PAIR.sub(
        lambda match: match[1] + (rb"\ufffd" if match[2] else b""), data, MAX_HALF_PAIRS
    )
    if mended == data:
        raise BadRecord(reason)
    try:
        return _decode_message(mended), mended
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRecord(reason) from None


def _check_log(message: _Message) -> None:
    level, text = message.level, message.message
    if level is UNSET and text is UNSET:
        raise BadRecord("object or caller is missing")
    if level is UNSET or text is UNSET:
        raise BadRecord(f"{'level' if level is UNSET else 'message'} is missing")
    if bytes(level).upper() not in _LEVELS:
        raise BadRecord(f"level is none of {', '.join(LOG_LEVELS)}")
    if bytes(text)[:1] not in (b'"', b"{"):
        raise BadRecord("message is neither text nor an object")


def _claimed_gap(message: _Message, raw: Raw) -> Gap | None:
    try:
        gap = _decode_gap(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if (
        gap.session != message.trace_session_id
        or gap.to_number != message.trace_number
        or not 0 <= gap.from_number <= gap.to_number
        or not 1 <= gap.count <= MAX_NUMBER
    ):
        return None
    gap.reason = safe_text(gap.reason, MAX_REASON)
    return gap


def _tail(data: bytes, message: _Message) -> bytes:
    if not (
        message.time is message.user_id is message.app is message.instance is UNSET
        and message.note is message.gap is message.key is UNSET
    ):
        data = _without_reserved_keys(data)
    return _printable(data.strip(b" \t\r\n"))[1:]


def _without_reserved_keys(data: bytes) -> bytes:
    try:
        values = _decode_keys(data)
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8 text") from None
    renamed = {}
    for name, value in values.items():
        new_name = _RESERVED.get(name, name)
        if new_name is name or new_name not in values:
            renamed[new_name] = value
    return _encode(renamed)


def _printable(data: bytes) -> bytes:
    """The same JSON text with everything escaped that may move a cursor or reorder a line.

    `data` is checked JSON: what is found there lies inside strings, except for white space.
    """
    if not data.translate(None, _PRINTABLE):
        return data
    data = data.translate(_SPACES)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8 text") from None
    if text.isprintable():
        return data
    text, count = _UNPRINTABLE.subn(lambda match: _ESCAPES[ord(match[0])], text, MAX_ESCAPED)
    return text.encode() if count < MAX_ESCAPED else _ascii(data)


def _ascii(data: bytes) -> bytes:
    """The same JSON text with everything escaped beyond ASCII: fast, however much that is."""
    # Quotes and backslashes are hidden where no checked JSON has anything.
    text = encode_basestring_ascii(data.translate(_HIDDEN).decode())[1:-1]
    return text.replace(r"\u0001", '"').replace(r"\u0002", "\\").encode()


class _Escapes(dict[int, str]):
    """What stands for an unprintable character; each is worked out once."""

    def __missing__(self, code: int) -> str:
        units = chr(code).encode("utf-16-be")
        text = "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
        self[code] = text
        return text


_ESCAPES = _Escapes()
_SPACES = bytes.maketrans(b"\t\r\n", b"   ")
_HIDDEN = bytes.maketrans(b'"\\', b"\1\2")


def _steps(octet: int) -> tuple[int, int]:
    """Where eight brackets lead from depth 0, and how deep they are on the way; 1 is opening."""
    depth = deepest = 0
    for bit in reversed(range(8)):
        depth += 1 if octet >> bit & 1 else -1
        deepest = max(deepest, depth)
    return depth, deepest


_STEPS = [_steps(octet) for octet in range(256)]


def _is_nested_deeper(data: bytes, limit: int) -> bool:
    # Eight brackets at a time: a message can consist of little else.
    bits = _STRING.sub(b"", data).translate(_BITS, _NO_BRACKETS)
    bits += b"0" * (-len(bits) % 8)
    depth = 0
    for octet in int(bits or b"0", 2).to_bytes(len(bits) // 8, "big"):
        step, deepest = _STEPS[octet]
        if depth + deepest > limit:
            return True
        depth += step
    return False


# -- what a server writes


def user_id_untrusted(props: bytes, fallback: str, short_key: str) -> bytes:
    """The line's userId as a JSON string, from the `props` of a ClientRecord.

    The rule of the original: props.username, else props.alias, else `fallback` (`User-<n>`);
    without its non-ASCII characters, spaces as `_`, then `___` and the first 8 digits of the key.
    A name that is no text is passed over, where the original drops the record.
    """
    name = fallback
    try:
        names = _decode_names(props)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # no object: the original finds no names there either
    else:
        for given in (names.username, names.alias):
            if isinstance(given, str) and given:
                name = given[:MAX_NAME]
                break
    name = name.encode("ascii", "ignore").decode().replace(" ", "_")
    return _printable(_encode(f"{name}___{short_key}"))


def instance_source(application: str, instance: str) -> bytes:
    """The 32 bytes that stand for a sender without a public key: names of any kind become the name
    of a log file that leads nowhere else and is nobody else's."""
    names = b"\0".join((b"hyperlog instance", application.encode(), instance.encode()))
    return hashlib.blake2b(names, digest_size=32).digest()


def line_tags(application: str, instance: str) -> bytes:
    """The members of a line that tell who sent it, with a comma at the end."""
    return _printable(_encode({"app": application, "instance": instance}))[1:-1] + b","


def record_line(record: ClientRecord, time: str, user_id: bytes, tags: bytes = b"") -> bytes:
    """The line of a record, without its newline; `time` is from `iso_time`, `tags` are from
    `line_tags` or b""."""
    return b'{"time":"%b","userId":%b,%b%b' % (time.encode(), user_id, tags, record.tail)


def note_line(note: str, time: str, tags: bytes = b"") -> bytes:
    """The line of a server's note, without its newline."""
    return _tagged(time, tags, _encode({"note": safe_text(note)}))


def gap_line(gap: Gap, time: str, tags: bytes = b"") -> bytes:
    """The line that tells of records lost on their way, without its newline."""
    return _tagged(time, tags, _encode({"note": gap.text, "gap": gap}))


def _tagged(time: str, tags: bytes, members: bytes) -> bytes:
    return b'{"time":"%b",%b%b' % (time.encode(), tags, _printable(members)[1:])
