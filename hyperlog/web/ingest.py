"""Takes records in: by requests of their own, and by WebSockets that speak the session protocol.

A request is answered when what it brought is durable. Each record is taken or refused by itself,
and the answer says which are refused and why; if all are, or if the request as a whole cannot be
understood, nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from hyperlog.records import DEFAULT_APPLICATION, instance_source
from hyperlog.senders import Sender
from hyperlog.web.api import json_response
from hyperlog.web.auth import bearer_token, claims_of
from hyperlog.web.body import Body
from hyperlog.web.delivery import INSTANCE_HEADER, MAX_ERRORS, Delivery, Parsed, host_of, peer_of
from hyperlog.web.endpoint import Answer, Endpoint, Schema, arguments_of
from hyperlog.web.link import WebSocketLink
from hyperlog.web.logformat import BadField, Entry, parse_record_untrusted, split_records_untrusted
from hyperlog.web.otlp import parse_logs_untrusted, parse_traces_untrusted
from hyperlog.web.problems import Problem
from hyperlog.web.state import service_of, shared_of

__all__ = ["ENDPOINTS", "ingest_websocket"]


# -- log records


async def post_root(request: Request) -> Response:
    """For Lion Handler, which knows a server and no paths."""
    return await post_logs(request)


async def post_logs(request: Request) -> Response:
    arguments_of(request, ())
    claims = claims_of(request, "ingest")
    with Body(request, shared_of(request).room) as body:
        data = await body.read()
        delivery = Delivery(request, claims)
        await delivery.run(_parsed(data, request.headers.get("content-type", "")))
    if not delivery.accepted and delivery.errors:
        raise delivery.problem()
    return json_response(delivery.answer(), 207 if delivery.errors else 200)


def _parsed(data: bytes, content_type: str) -> list[Parsed]:
    try:
        records = split_records_untrusted(data, content_type)
    except LookupError:
        raise Problem(
            415,
            "records are JSON (application/json) or one in each line (application/x-ndjson)",
            field="Content-Type",
        ) from None
    except BadField as error:
        raise Problem(400, str(error), field=error.field) from None
    if not records:
        raise Problem(400, "there is no record in the body", field="body")
    now = time.time()
    return [_entry(record, now) for record in records]


def _entry(record: bytes, now: float) -> Parsed:
    try:
        return parse_record_untrusted(record, now)
    except BadField as error:
        return error


# -- OpenTelemetry


async def post_otlp_logs(request: Request) -> Response:
    return await _take_otlp(request, parse_logs_untrusted, "rejectedLogRecords")


async def post_otlp_traces(request: Request) -> Response:
    return await _take_otlp(request, parse_traces_untrusted, "rejectedSpans")


async def _take_otlp(
    request: Request, parse: Callable[[bytes, float], list[Parsed]], rejected: str
) -> Response:
    try:
        return await _answer_otlp(request, parse, rejected)
    except Problem as problem:
        problem.members["message"] = problem.detail  # where exporters look for it
        raise


async def _answer_otlp(
    request: Request, parse: Callable[[bytes, float], list[Parsed]], rejected: str
) -> Response:
    arguments_of(request, ())
    claims = claims_of(request, "ingest")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(
            415,
            "OTLP is taken as JSON: set OTEL_EXPORTER_OTLP_PROTOCOL=http/json, or encoding: json",
            field="Content-Type",
        )
    with Body(request, shared_of(request).room) as body:
        data = await body.read()
        try:
            entries = parse(data, time.time())
        except BadField as error:
            raise Problem(400, str(error), field=error.field) from None
        made = sum(len(entry.message) for entry in entries if isinstance(entry, Entry))
        body.hold(max(made - len(data), 0))
        delivery = Delivery(request, claims)
        await delivery.run(entries)
    if not delivery.errors:
        return json_response({})
    if not delivery.accepted:
        raise delivery.problem()
    partial = {rejected: str(len(delivery.errors)), "errorMessage": str(delivery.errors[0][1])}
    return json_response({"partialSuccess": partial})


# -- connections


async def ingest_websocket(websocket: WebSocket) -> None:
    """One WebSocket of the session protocol, from its upgrade to its end."""
    arguments_of(websocket, ())
    service = service_of(websocket)
    claims = None
    if bearer_token(websocket) is not None:
        claims = claims_of(websocket, "ingest")
    application = DEFAULT_APPLICATION if claims is None else claims.application
    instance = host_of(websocket)
    sender = Sender(
        instance_source(application, instance),
        None,
        None if claims is None else application,
        None,
        "websocket",
        peer_of(websocket),
        claims,
    )
    link = WebSocketLink(websocket, authenticated=claims is not None)
    guest = service.intake.enter(link, sender)
    if guest is None:
        raise Problem(503, "too many connections", code="LIMIT", retry_after=10)
    try:
        await websocket.accept()
    except BaseException:
        service.intake.leave(guest)
        raise
    await service.intake.converse(link, sender, guest)


async def get_ingest(request: Request) -> Response:
    raise Problem(
        426,
        "this is for WebSockets that speak docs/protocol/session.md; single records go to "
        "POST /api/v1/logs",
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )


# -- endpoints

_TIME: Final[Schema] = {
    "description": "when it was made: ISO, or seconds since 1970 (ms, µs and ns are recognised)",
    "anyOf": [{"type": "string"}, {"type": "number", "minimum": 0}],
}
RECORD: Final[Schema] = {
    "type": "object",
    "required": ["message"],
    "properties": {
        "message": {"anyOf": [{"type": "string"}, {"type": "object"}]},
        "level": {
            "type": "string",
            "enum": ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
            "default": "INFO",
        },
        "time": _TIME,
        "logger": {"type": "string", "maxLength": 256},
        "attributes": {"type": "object"},
        "instance": {"type": "string", "minLength": 1, "maxLength": 64},
        "traceSessionId": {
            "type": "string",
            "minLength": 1,
            "maxLength": 128,
            "description": "with traceNumber: written once, however often it is sent",
        },
        "traceNumber": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
        "exception": {"type": "object"},
        "caller": {"type": "object"},
        "props": {"type": "object"},
    },
}
LION_RECORD: Final[Schema] = {
    "type": "object",
    "required": ["app_name", "instance_name", "data"],
    "properties": {
        "app_name": {"type": "string", "minLength": 1, "maxLength": 64},
        "instance_name": {"type": "string", "minLength": 1, "maxLength": 64},
        "timestamp": _TIME,
        "data": {
            "type": "object",
            "required": ["content"],
            "properties": {
                "content": {"anyOf": [{"type": "string"}, {"type": "object"}]},
                "message_level": {"type": "string"},
            },
        },
    },
}
TAKEN: Final[Schema] = {
    "type": "object",
    "required": ["accepted", "refused", "errors"],
    "properties": {
        "accepted": {"type": "integer", "description": "durable now"},
        "refused": {"type": "integer"},
        "errors": {
            "type": "array",
            "description": f"the first {MAX_ERRORS} of them",
            "items": {
                "type": "object",
                "required": ["index", "reason"],
                "properties": {
                    "index": {"type": "integer", "description": "in the request, from 0"},
                    "field": {"type": "string"},
                    "reason": {"type": "string"},
                },
            },
        },
    },
}
_LOGS: Final[dict[str, Schema]] = {
    "application/json": {
        "anyOf": [RECORD, {"type": "array", "items": RECORD, "minItems": 1}, LION_RECORD]
    },
    "application/x-ndjson": {"type": "string", "description": "a record in each line"},
}
_LOG_ANSWERS: Final = {
    200: Answer("All records are durable", TAKEN),
    207: Answer("Some records are durable, some are refused", TAKEN),
}
_HEADERS: Final = {
    INSTANCE_HEADER: (
        "the instance, for records that tell none",
        {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[!-~]+$"},
    )
}
_PARTIAL: Final[Schema] = {
    "type": "object",
    "properties": {"partialSuccess": {"type": "object"}},
}


def _otlp(path: str, handler: Callable[..., Any], what: str, member: str) -> Endpoint:
    return Endpoint(
        "POST",
        path,
        handler,
        f"OpenTelemetry {what}, as JSON",
        {200: Answer("Taken; or some of them, as partialSuccess tells", _PARTIAL)},
        body={"application/json": {"type": "object", "properties": {member: {"type": "array"}}}},
        headers=_HEADERS,
        scope="ingest",
    )


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/api/v1/logs",
        post_logs,
        "Bring log records",
        _LOG_ANSWERS,
        body=_LOGS,
        headers=_HEADERS,
        scope="ingest",
    ),
    Endpoint(
        "POST",
        "/",
        post_root,
        "Bring log records, for programs that know no path",
        _LOG_ANSWERS,
        body=_LOGS,
        headers=_HEADERS,
        scope="ingest",
    ),
    Endpoint(
        "GET",
        "/api/v1/ingest",
        get_ingest,
        "For WebSockets: the session protocol with acknowledgements",
        {
            426: Answer(
                "This is no WebSocket",
                {"$ref": "#/components/schemas/Problem"},
                "application/problem+json",
            )
        },
    ),
    _otlp("/v1/logs", post_otlp_logs, "log records", "resourceLogs"),
    _otlp("/v1/traces", post_otlp_traces, "spans", "resourceSpans"),
)
