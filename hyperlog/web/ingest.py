"""Takes records in: by requests of their own, and by WebSockets that speak the session protocol.

A request is answered when what it brought is durable. Each record is taken or refused by itself,
and the answer says which are refused and why; if all are, or if the request as a whole cannot be
understood, nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import trio
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from hyperlog.control import name_fault
from hyperlog.errors import LogQuotaReached, SinkError, TokenError
from hyperlog.records import DEFAULT_APPLICATION, instance_source
from hyperlog.senders import Sender
from hyperlog.tokens import TokenClaims
from hyperlog.web.api import json_response
from hyperlog.web.auth import bearer_token, claims_of, token_problem
from hyperlog.web.body import Body
from hyperlog.web.endpoint import Answer, Endpoint, Schema, arguments_of
from hyperlog.web.link import WebSocketLink
from hyperlog.web.logformat import BadField, Entry, parse_record_untrusted, split_records_untrusted
from hyperlog.web.otlp import parse_logs_untrusted, parse_traces_untrusted
from hyperlog.web.problems import Problem
from hyperlog.web.state import service_of, shared_of

__all__ = ["ENDPOINTS", "ingest_websocket"]

INSTANCE_HEADER: Final = "X-Hyperlog-Instance"
MAX_INSTANCES: Final = 64  # of one request
MAX_DELAY: Final = 5.0  # s that a request waits because of its token's rate
MAX_ERRORS: Final = 1000  # refused records that an answer tells of
MISMATCH: Final = "TOKEN_MISMATCH"

Parsed = Entry | BadField


class Delivery:
    """The records of one request, on their way."""

    def __init__(self, request: Request, claims: TokenClaims) -> None:
        self.accepted = 0
        self.errors: list[tuple[int, BadField]] = []
        """refused records by their index"""
        self._request = request
        self._claims = claims
        self._default = _default_instance(request, claims)
        self._instances: dict[str, list[tuple[int, bytes]]] = {}

    async def run(self, entries: Iterable[Parsed]) -> None:
        """Return when all that can be taken is durable.

        Raises:
            Problem: there are too many instances, or no room.
        """
        for index, entry in enumerate(entries):
            refusal = entry if isinstance(entry, BadField) else self._sort(index, entry)
            if refusal is not None:
                self.errors.append((index, refusal))
        if len(self._instances) > MAX_INSTANCES:
            raise Problem(
                400,
                f"a request has records of at most {MAX_INSTANCES} instances",
                field="instance",
                limit=MAX_INSTANCES,
            )
        await self._pace()
        try:
            # One after the other: what was written when another cannot be is told, not guessed.
            for instance, records in self._instances.items():
                await self._take(instance, records)
        except LogQuotaReached as error:
            raise self._unavailable(error, 507) from error
        except SinkError as error:
            raise self._unavailable(error, 503) from error
        self.errors.sort(key=lambda error: error[0])

    async def _pace(self) -> None:
        """Wait if the token's senders together bring more than one may; what they bring to each
        instance is counted by the intake."""
        messages = [message for records in self._instances.values() for _, message in records]
        limiter, token = shared_of(self._request).limiter, self._claims.jti.encode()
        owed = limiter.spend(token, 0, 0, time.monotonic())
        if owed > MAX_DELAY:
            raise Problem(
                429, "this token brings more than is allowed", code="LIMIT", retry_after=owed
            )
        delay = limiter.spend(token, len(messages), sum(map(len, messages)), time.monotonic())
        await trio.sleep(min(delay, MAX_DELAY))

    def _sort(self, index: int, entry: Entry) -> BadField | None:
        """Put a record to the others of its instance; or why the token does not allow it."""
        if entry.application not in (None, self._claims.application):
            return BadField("application", "the token is for another application")
        instance = entry.instance or self._default
        if not self._claims.allows_instance(instance):
            return BadField("instance", "the token is for other instances")
        self._instances.setdefault(instance, []).append((index, entry.message))
        return None

    async def _take(self, instance: str, records: list[tuple[int, bytes]]) -> None:
        application = self._claims.application
        sender = Sender(
            instance_source(application, instance),
            None,
            application,
            instance,
            "http",
            peer_of(self._request),
            self._claims,
        )
        intake = service_of(self._request).intake
        reasons = await intake.take(sender, [message for _, message in records])
        for (index, _), reason in zip(records, reasons, strict=True):
            if reason is None:
                self.accepted += 1
            else:
                self.errors.append((index, BadField(None, reason)))

    def _unavailable(self, error: SinkError, status: int) -> Problem:
        return Problem(
            status,
            "the server cannot write now; records with traceSessionId and traceNumber can be sent "
            "again without being doubled",
            code=error.code,
            retry_after=5,
            accepted=self.accepted,
        )

    def answer(self) -> dict[str, Any]:
        errors = []
        for index, error in self.errors[:MAX_ERRORS]:
            told: dict[str, Any] = {"index": index, "reason": str(error)}
            if error.field is not None:
                told["field"] = error.field
            errors.append(told)
        return {"accepted": self.accepted, "refused": len(self.errors), "errors": errors}

    def problem(self) -> Problem:
        """The answer if nothing was taken."""
        answer = self.answer()
        first = self.errors[0][1]
        if all(str(error).startswith("the token is for") for _, error in self.errors):
            problem = token_problem(TokenError(MISMATCH, str(first)))
            problem.members.update(answer)
            return problem
        count = len(self.errors)
        detail = str(first) if count == 1 else f"none of {count} records can be taken: {first}"
        answer.pop("field", None)
        return Problem(400, detail, field=first.field, code="BAD_RECORD", **answer)


def _default_instance(request: Request, claims: TokenClaims) -> str:
    """The instance of records that tell none."""
    given = request.headers.get(INSTANCE_HEADER)
    if given is None:
        pattern = claims.instances
        return pattern if "*" not in pattern and "?" not in pattern else host_of(request)
    try:
        name = given.encode("latin-1").decode()
    except UnicodeDecodeError:
        name = ""
    fault = name_fault(INSTANCE_HEADER, name)
    if fault is not None:
        raise Problem(400, fault, field=INSTANCE_HEADER, limit=64)
    return name


def host_of(request: HTTPConnection) -> str:
    return "unknown" if request.client is None else request.client.host


def peer_of(request: HTTPConnection) -> str:
    return "unknown" if request.client is None else f"{request.client.host}:{request.client.port}"


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
    await websocket.accept()
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
