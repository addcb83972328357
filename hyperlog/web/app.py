"""The application: its endpoints, and what every request passes on the way to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, wraps
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from hyperlog.limits import Limiter
from hyperlog.web import api, health, ingest, live, metrics
from hyperlog.web.endpoint import Answer, Endpoint, Handler, arguments_of
from hyperlog.web.guard import Guard
from hyperlog.web.hosts import HostList
from hyperlog.web.leaving import while_there
from hyperlog.web.openapi import describe
from hyperlog.web.problems import Problem, problem_response
from hyperlog.web.service import Service
from hyperlog.web.state import Shared

__all__ = ["ENDPOINTS", "create_app"]


async def get_openapi(request: Request) -> Response:
    arguments_of(request, ())
    return api.json_response(describe(ENDPOINTS))


ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *ingest.ENDPOINTS,
    *api.ENDPOINTS,
    *live.ENDPOINTS,
    *metrics.ENDPOINTS,
    *health.ENDPOINTS,
    Endpoint(
        "GET",
        "/api/v1/openapi.json",
        get_openapi,
        "This description",
        {200: Answer("An OpenAPI document", {"type": "object"})},
    ),
)
"""All that a program can ask for; the routes and their description are made of it."""


def create_app(service: Service, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The application of a server; `routes` are added to its own, behind the same guard."""
    bound = "127.0.0.1" if service.config.http is None else service.config.http[0]
    guard = Middleware(Guard, hosts=HostList(bound, service.config.http_hosts))
    # A client chooses its session's id, which is a part of the record's: it may have slashes.
    own = [
        Route(one.path.replace("{id}", "{id:path}"), _handler_of(one), methods=[one.method])
        for one in ENDPOINTS
    ]
    sockets = [
        WebSocketRoute("/api/v1/ingest", ingest.ingest_websocket),
        WebSocketRoute("/api/v1/tail", live.tail_websocket),
    ]
    app = Starlette(
        routes=[*own, *sockets, *routes],
        middleware=[guard],
        exception_handlers={HTTPException: _answer_error},
    )
    app.router.redirect_slashes = False
    shared = Shared(service, Limiter(service.config.limits))
    service.tail.observers = (*service.tail.observers, shared.lines.lines_written)
    app.state.shared = shared
    return app


def _handler_of(endpoint: Endpoint) -> Handler:
    if endpoint.method != "GET":
        return endpoint.handler

    @wraps(endpoint.handler)
    async def answer(request: Request) -> Response:
        return await while_there(request, partial(endpoint.handler, request))

    return answer


async def _answer_error(request: Request, error: Exception) -> Response:
    """What Starlette's routing says: no such path, or method."""
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404:
        detail = "there is nothing at this path; /api/v1/openapi.json tells what there is"
    elif error.status_code == 405:
        detail = "this path knows other methods only, see Allow"
    problem = Problem(error.status_code, detail, headers=error.headers)
    return problem_response(problem, request.state.request_id)
