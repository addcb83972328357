"""OpenTelemetry logs and traces in their JSON form, made into messages as our clients send them.

A log record keeps its attributes. What else the exporter tells is under `otel`: resource, scope,
trace and span. A span becomes a record that is named like it and has the times in its attributes.

Spec: OpenTelemetry protocol 1.x, OTLP/HTTP with JSON; opentelemetry/proto/{logs,trace}/v1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from hyperlog.records import iso_time
from hyperlog.web.logformat import MAX_RECORDS, BadField, Entry, check_values_untrusted, is_name

__all__ = ["parse_logs_untrusted", "parse_traces_untrusted"]

SERVICE_NAME: Final = "service.name"
SERVICE_INSTANCE: Final = "service.instance.id"
UNKNOWN_SERVICE: Final = "unknown_service"  # what exporters say, perhaps with :<program> behind
MAX_NANOSECONDS: Final = 253402300799 * 10**9
SEVERITIES: Final = ("DEBUG", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
"""For the severity numbers 1 to 4, 5 to 8, …: TRACE, DEBUG, INFO, WARN, ERROR, FATAL."""
SPAN_KINDS: Final = ("unspecified", "internal", "server", "client", "producer", "consumer")
STATUS_ERROR: Final = 2
MAX_SIZE: Final = 32 * 1024 * 1024  # bytes of all messages of one request

_APART: Final = "send them in several requests"

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class _Value(Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    array_value: _Values | None = None
    kvlist_value: _Members | None = None
    bytes_value: str | None = None


class _Values(Struct):
    values: list[_Value] | None = None


class _Member(Struct):
    key: str
    value: _Value | None = None


class _Members(Struct):
    values: list[_Member] | None = None


class _Resource(Struct):
    attributes: list[_Member] | None = None


class _InstrumentationScope(Struct):
    name: str | None = None
    version: str | None = None


class _LogRecord(Struct, rename="camel"):
    time_unix_nano: int | str | None = None
    observed_time_unix_nano: int | str | None = None
    severity_number: int | str | None = None
    severity_text: str | None = None
    body: _Value | None = None
    attributes: list[_Member] | None = None
    trace_id: str | None = None
    span_id: str | None = None
    event_name: str | None = None


class _ScopeLogs(Struct, rename="camel"):
    scope: _InstrumentationScope | None = None
    log_records: list[_LogRecord] | None = None


class _ResourceLogs(Struct, rename="camel"):
    resource: _Resource | None = None
    scope_logs: list[_ScopeLogs] | None = None


class _Logs(Struct, rename="camel"):
    resource_logs: list[_ResourceLogs] | None = None


class _SpanEvent(Struct, rename="camel"):
    time_unix_nano: int | str | None = None
    name: str | None = None
    attributes: list[_Member] | None = None


class _Status(Struct):
    code: int | str | None = None
    message: str | None = None


class _Span(Struct, rename="camel"):
    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    name: str | None = None
    kind: int | str | None = None
    start_time_unix_nano: int | str | None = None
    end_time_unix_nano: int | str | None = None
    attributes: list[_Member] | None = None
    events: list[_SpanEvent] | None = None
    status: _Status | None = None


class _ScopeSpans(Struct):
    scope: _InstrumentationScope | None = None
    spans: list[_Span] | None = None


class _ResourceSpans(Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _Traces(Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] | None = None


_decode_logs = msgspec.json.Decoder(_Logs).decode
_decode_traces = msgspec.json.Decoder(_Traces).decode


def parse_logs_untrusted(data: bytes, now: float) -> list[Entry | BadField]:
    """The log records of a request, in their order, or why one cannot be taken.

    Raises:
        BadField: it is no such request.
    """
    request = _decoded(_decode_logs, data)
    entries = _Entries()
    for part in request.resource_logs or []:
        resource = _Source(part.resource)
        for scoped in part.scope_logs or []:
            for record in scoped.log_records or []:
                entries.add(resource.entry(_log_fields, record, scoped.scope, now))
    return entries.taken


def parse_traces_untrusted(data: bytes, now: float) -> list[Entry | BadField]:
    """The spans of a request; see `parse_logs_untrusted`."""
    request = _decoded(_decode_traces, data)
    entries = _Entries()
    for part in request.resource_spans or []:
        resource = _Source(part.resource)
        for scoped in part.scope_spans or []:
            for span in scoped.spans or []:
                entries.add(resource.entry(_span_fields, span, scoped.scope, now))
    return entries.taken


def _decoded(decode: Any, data: bytes) -> Any:  # noqa: ANN401 - one of the two decoders
    check_values_untrusted(data)
    try:
        return decode(data)
    except msgspec.DecodeError as error:
        raise BadField("body", f"no OTLP request: {error}") from None
    except UnicodeDecodeError:
        raise BadField("body", "not UTF-8 text") from None
    except RecursionError:
        raise BadField("body", "nested too deep") from None


class _Entries:
    """Those of one request, as many and as large as they may be: each carries its resource, so that
    they can have a thousand times the size of the body."""

    def __init__(self) -> None:
        self.taken: list[Entry | BadField] = []
        self._room = MAX_SIZE

    def add(self, entry: Entry | BadField) -> None:
        """Raises BadField for what is too much."""
        self.taken.append(entry)
        if len(self.taken) > MAX_RECORDS:
            raise BadField("body", f"more than {MAX_RECORDS} records, {_APART}")
        if isinstance(entry, Entry):
            self._room -= len(entry.message)
            if self._room < 0:
                raise BadField(
                    "body", f"more than {MAX_SIZE} bytes, each record with its resource, {_APART}"
                )


class _Source:
    """Who a resource says to be."""

    def __init__(self, resource: _Resource | None) -> None:
        self.attributes = _members(resource.attributes if resource is not None else None)
        self._bad: BadField | None = None
        self._application = self._name(SERVICE_NAME)
        self._instance = self._name(SERVICE_INSTANCE)
        if self._application is not None and self._application.startswith(UNKNOWN_SERVICE):
            self._application = None

    def entry(
        self,
        fields_of: Callable[[T, float], dict[str, Any]],
        item: T,
        scope: _InstrumentationScope | None,
        now: float,
    ) -> Entry | BadField:
        if self._bad is not None:
            return self._bad
        try:
            fields = fields_of(item, now)
            otel = fields["attributes"].pop("", {})
            if scope is not None and scope.name:
                fields["logger"] = scope.name[:256]
                if scope.version:
                    otel["scopeVersion"] = scope.version
            if self.attributes:
                otel["resource"] = self.attributes
            if otel:
                fields["attributes"].setdefault("otel", otel)
            return Entry(_encode(fields), self._instance, self._application)
        except BadField as error:
            return error
        except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError) as error:
            return BadField(None, f"cannot be written as JSON: {type(error).__name__}")

    def _name(self, attribute: str) -> str | None:
        name = self.attributes.get(attribute)
        if name is None or name == "":
            return None
        if not isinstance(name, str) or not is_name(name):
            self._bad = BadField(attribute, f"{attribute} is 1 to 64 printable characters")
            return None
        return name


def _log_fields(record: _LogRecord, now: float) -> dict[str, Any]:
    nanoseconds = _integer(record.time_unix_nano, "timeUnixNano") or _integer(
        record.observed_time_unix_nano, "observedTimeUnixNano"
    )
    body = _value(record.body)
    if not isinstance(body, str | dict):
        body = (record.event_name or "") if body is None else _encode(body).decode()
    attributes = _members(record.attributes)
    attributes[""] = _present(
        traceId=record.trace_id,
        spanId=record.span_id,
        severity=record.severity_text,
        event=record.event_name,
    )
    return {
        "traceTimestamp": _iso(nanoseconds, now),
        "level": _level(record.severity_number, record.severity_text),
        "message": body,
        "attributes": attributes,
    }


def _span_fields(span: _Span, now: float) -> dict[str, Any]:
    start = _integer(span.start_time_unix_nano, "startTimeUnixNano")
    end = _integer(span.end_time_unix_nano, "endTimeUnixNano")
    kind = span.kind if isinstance(span.kind, int) else 0
    status = span.status
    failed = status is not None and status.code in (STATUS_ERROR, "STATUS_CODE_ERROR")
    attributes = _members(span.attributes)
    attributes[""] = _present(
        traceId=span.trace_id,
        spanId=span.span_id,
        parentSpanId=span.parent_span_id,
        kind=SPAN_KINDS[kind] if 0 < kind < len(SPAN_KINDS) else None,
        start=_iso(start, now) if start else None,
        end=_iso(end, now) if end else None,
        milliseconds=(end - start) / 1e6 if start and end >= start else None,
        status=status.message if status is not None else None,
        events=[_event(event, now) for event in span.events or []],
    )
    return {
        "traceTimestamp": _iso(start, now),
        "level": "ERROR" if failed else "INFO",
        "message": span.name or "",
        "attributes": attributes,
    }


def _event(event: _SpanEvent, now: float) -> dict[str, Any]:
    nanoseconds = _integer(event.time_unix_nano, "events.timeUnixNano")
    return _present(
        name=event.name,
        time=_iso(nanoseconds, now) if nanoseconds else None,
        attributes=_members(event.attributes),
    )


def _present(**members: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {name: value for name, value in members.items() if value not in (None, "", [], {})}


def _level(number: int | str | None, text: str | None) -> str:
    if isinstance(number, int) and 1 <= number <= 24:
        return SEVERITIES[(number - 1) // 4]
    # Enumerations may come by their names, and numbers may be missing where there is a text.
    name = number if isinstance(number, str) else text or ""
    for part, level in (
        ("FATAL", "CRITICAL"),
        ("CRIT", "CRITICAL"),
        ("ERR", "ERROR"),
        ("WARN", "WARNING"),
        ("DEBUG", "DEBUG"),
        ("TRACE", "DEBUG"),
    ):
        if part in name.upper():
            return level
    return "INFO"


def _iso(nanoseconds: int, now: float) -> str:
    return iso_time(nanoseconds / 1e9 if nanoseconds else now)


def _integer(value: int | str | None, field: str) -> int:
    """A 64-bit number, which JSON carries as a text; 0 if there is none."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if value in (None, ""):
        return 0
    if not isinstance(value, int) or not 0 <= value <= MAX_NANOSECONDS:
        raise BadField(field, f"{field} is nanoseconds since 1970")
    return value


def _members(members: list[_Member] | None) -> dict[str, Any]:
    return {member.key: _value(member.value) for member in members or []}


def _value(value: _Value | None) -> Any:  # noqa: ANN401 - JSON
    if value is None:
        return None
    if value.int_value is not None:
        return _whole(value.int_value)
    if value.array_value is not None:
        return [_value(item) for item in value.array_value.values or []]
    if value.kvlist_value is not None:
        return _members(value.kvlist_value.values)
    return next(_scalars(value), None)


def _scalars(value: _Value) -> Iterator[Any]:
    for scalar in (value.string_value, value.bool_value, value.double_value, value.bytes_value):
        if scalar is not None:
            yield scalar


def _whole(value: int | str) -> int | str:
    """As a number, where it is one that every reader of JSON can hold."""
    if isinstance(value, str):
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
            return value
        value = int(value)
    return value if abs(value) < 2**53 else str(value)
