"""Questions about records, and about who is connected.

A token for one application sees the records of that bucket alone, whatever it asks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import msgspec
import trio
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from hyperlog.errors import QueryError, StoreUnavailable
from hyperlog.store.answers import Page, Store, Top
from hyperlog.store.levels import LEVEL_NAMES
from hyperlog.store.query import Query
from hyperlog.store.recordjson import encode_record, record_members
from hyperlog.store.records import StoredRecord
from hyperlog.store.times import ms_iso
from hyperlog.tokens import EVERY_APPLICATION
from hyperlog.web.auth import claims_of, readable_bucket
from hyperlog.web.endpoint import Answer, Arguments, Endpoint, Parameter, arguments_of
from hyperlog.web.filters import (
    FILTERS,
    NAME,
    TEXT,
    TIMES,
    expression_of,
    parse_name,
    parse_order,
    parse_step,
    query_problem,
    whole_number,
)
from hyperlog.web.problems import Problem
from hyperlog.web.progress import ProgressStream
from hyperlog.web.recordtexts import RECORD
from hyperlog.web.state import service_of, shared_of

__all__ = ["ENDPOINTS", "json_response"]

QUERY_TIMEOUT: Final = 30.0  # s
MAX_LIMIT: Final = 1000
PART: Final = 100  # records looked up at a time
MAX_PAGE: Final = 4 * 1024 * 1024  # bytes of an answer's records, and one part beyond
MAX_VALUES: Final = 1000
DEFAULT_STEP: Final = "1m"

_encode = msgspec.json.Encoder().encode


# -- answers


def json_response(content: Any, status: int = 200) -> Response:  # noqa: ANN401 - JSON
    return Response(_encode(content), status, media_type="application/json")


@asynccontextmanager
async def _asking(request: HTTPConnection) -> AsyncIterator[Store]:
    """The store, for a question that has a limit of time; its errors become problems."""
    store = service_of(request).store
    if store is None:
        raise Problem(503, "this server keeps no store that could answer: see --store")
    try:
        with trio.fail_after(QUERY_TIMEOUT):
            async with shared_of(request).questions:
                yield store
    except trio.TooSlowError:
        raise Problem(
            504, "this takes too long: ask for less time, or fewer fields", limit=QUERY_TIMEOUT
        ) from None
    except StoreUnavailable as error:
        raise Problem(503, str(error), code=error.code, retry_after=5) from None
    except QueryError as error:
        raise query_problem(error) from None


def _query(request: Request, arguments: Arguments) -> Query:
    bucket = readable_bucket(request, arguments["bucket"])
    since, until = arguments["since"], arguments["until"]
    return Query(expression_of(arguments, bucket), since, until)


# -- endpoints


async def get_apps(request: Request) -> Response:
    arguments_of(request, ())
    application = claims_of(request, "read").application
    found = service_of(request).connections.applications()
    if application != EVERY_APPLICATION:
        found = {name: entry for name, entry in found.items() if name == application}
    return json_response(found)


_RECORDS: Final = (
    *FILTERS,
    *TIMES,
    Parameter(
        "limit",
        "records in this answer",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
        whole_number(1, MAX_LIMIT),
        100,
    ),
    Parameter("cursor", "`cursor` of the answer before", TEXT),
    Parameter(
        "order",
        "by receive time",
        {"type": "string", "enum": ["newest", "oldest"]},
        parse_order,
        "newest",
    ),
)


async def get_records(request: Request) -> Response:
    arguments = arguments_of(request, _RECORDS)
    query = _query(request, arguments)
    records: list[StoredRecord] = []
    cursor, size = arguments["cursor"], 0
    async with _asking(request) as store:
        # In parts: lines may be large, and then the answer ends earlier.
        while True:
            page: Page = await store.search(
                query,
                limit=min(arguments["limit"] - len(records), PART),
                cursor=cursor,
                order=arguments["order"],
            )
            records += page.records
            cursor, size = page.cursor, size + sum(len(record.body) for record in page.records)
            if cursor is None or len(records) >= arguments["limit"] or size >= MAX_PAGE:
                break
    members = [record_members(record) for record in records]
    return json_response({"records": members, "cursor": cursor})


async def get_record(request: Request) -> Response:
    arguments_of(request, ())
    bucket = readable_bucket(request)
    async with _asking(request) as store:
        record = await store.get(request.path_params["id"])
    if record is None or (bucket is not None and record.bucket != bucket):
        raise Problem(404, "there is no such record", field="id")
    return Response(encode_record(record), media_type="application/json")


_HISTOGRAM: Final = (
    *FILTERS,
    *TIMES,
    Parameter(
        "step",
        "width of a bin",
        {"type": "string", "examples": ["1m"]},
        parse_step,
        parse_step(DEFAULT_STEP),
    ),
)


async def get_histogram(request: Request) -> Response:
    arguments = arguments_of(request, _HISTOGRAM)
    query = _query(request, arguments)
    async with _asking(request) as store:
        bins = await store.histogram(query, step=arguments["step"])
    found = [
        {
            "start": ms_iso(bin.start),
            "counts": {LEVEL_NAMES[level]: count for level, count in bin.counts.items()},
        }
        for bin in bins
    ]
    return json_response({"step": arguments["step"] / 1000, "bins": found})


_FACETS: Final = (
    *FILTERS,
    *TIMES,
    Parameter(
        "field",
        "whose values are counted: `level`, or `attributes.user`",
        NAME,
        parse_name,
        required=True,
    ),
    Parameter(
        "limit",
        "values in the answer",
        {"type": "integer", "minimum": 1, "maximum": MAX_VALUES},
        whole_number(1, MAX_VALUES),
        10,
    ),
)


async def get_facets(request: Request) -> Response:
    arguments = arguments_of(request, _FACETS)
    query = _query(request, arguments)
    field, limit = arguments["field"], arguments["limit"]

    async def count(report: Callable[[Top], object] | None = None) -> bytes:
        async with _asking(request) as store:
            return _facet(field, await store.top(query, field, limit=limit, report=report))

    if "text/event-stream" in request.headers.get("accept", ""):
        return ProgressStream(count, partial(_facet, field))
    return Response(await count(), media_type="application/json")


def _facet(field: str, top: Top) -> bytes:
    values = [{"value": value, "count": count} for value, count in top.values]
    return _encode(
        {
            "field": field,
            "values": values,
            "distinct": top.distinct,
            "records": top.records,
            "fraction": top.fraction,
        }
    )


_NULLABLE: Final = {"type": ["string", "null"]}
_APPS: Final = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["running_instances", "instances"],
        "properties": {
            "running_instances": {"type": "integer"},
            "instances": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": ["socket", "connected_at"],
                    "properties": {
                        "socket": {"type": "string"},
                        "connected_at": {"type": "string", "format": "date-time"},
                    },
                },
            },
        },
    },
}
_PAGE: Final = {
    "type": "object",
    "required": ["records", "cursor"],
    "properties": {"records": {"type": "array", "items": RECORD}, "cursor": _NULLABLE},
}
_BINS: Final = {
    "type": "object",
    "required": ["step", "bins"],
    "properties": {
        "step": {"type": "number", "description": "seconds"},
        "bins": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["start", "counts"],
                "properties": {
                    "start": {"type": "string", "format": "date-time"},
                    "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
                },
            },
        },
    },
}
_VALUES: Final = {
    "type": "object",
    "required": ["field", "values", "distinct", "records"],
    "properties": {
        "field": {"type": "string"},
        "values": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["value", "count"],
                "properties": {
                    "value": {"type": ["string", "number", "boolean", "null"]},
                    "count": {"type": "integer"},
                },
            },
        },
        "distinct": {"type": "integer"},
        "records": {"type": "integer", "description": "that have the field"},
        "fraction": {
            "type": "number",
            "description": "of the records asked about, how many have been looked at; 1 at the end",
        },
    },
}

ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/api/v1/apps",
        get_apps,
        "The applications and instances that run now",
        {200: Answer("By name of the application", _APPS)},
        scope="read",
    ),
    Endpoint(
        "GET",
        "/api/v1/records",
        get_records,
        "Records, newest first",
        {200: Answer("A page of them", _PAGE)},
        _RECORDS,
        scope="read",
    ),
    Endpoint(
        "GET",
        "/api/v1/records/{id}",
        get_record,
        "One record",
        {200: Answer("The record", RECORD)},
        path_parameters={"id": {"type": "string", "minLength": 1}},
        scope="read",
    ),
    Endpoint(
        "GET",
        "/api/v1/histogram",
        get_histogram,
        "Counts by time and level",
        {200: Answer("Bins that have records, oldest first", _BINS)},
        _HISTOGRAM,
        scope="read",
    ),
    Endpoint(
        "GET",
        "/api/v1/facets",
        get_facets,
        "The most frequent values of a field",
        {200: Answer("The most frequent first; with Accept: text/event-stream, events", _VALUES)},
        _FACETS,
        scope="read",
    ),
)
