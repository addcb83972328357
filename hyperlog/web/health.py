"""Whether the server lives, and whether it can take records: for supervisors and load balancers.

Everybody may ask; nothing else is told.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from hyperlog.web.api import json_response
from hyperlog.web.endpoint import Answer, Endpoint, arguments_of
from hyperlog.web.state import service_of

__all__ = ["ENDPOINTS"]


async def get_healthz(request: Request) -> Response:
    arguments_of(request, ())
    return json_response({"status": "ok"})


async def get_readyz(request: Request) -> Response:
    """Ready is who can write. A store that is behind or away does not hinder that."""
    arguments_of(request, ())
    service = service_of(request)
    files = service.statistics().files
    store = None if service.store is None else service.store.statistics()
    state = {
        "ready": files.keys_with_room,
        "files": "ok" if files.keys_with_room else "full",
        "store": "off" if store is None else "ok" if store.last_error is None else "failing",
    }
    return json_response(state, 200 if files.keys_with_room else 503)


_STATE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["ready", "files", "store"],
    "properties": {
        "ready": {"type": "boolean"},
        "files": {"type": "string", "enum": ["ok", "full"]},
        "store": {"type": "string", "enum": ["off", "ok", "failing"]},
    },
}
_ALIVE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"const": "ok"}},
}

ENDPOINTS: Final = (
    Endpoint("GET", "/healthz", get_healthz, "Whether it lives", {200: Answer("It does", _ALIVE)}),
    Endpoint(
        "GET",
        "/readyz",
        get_readyz,
        "Whether it can take records",
        {200: Answer("It can", _STATE), 503: Answer("It cannot now", _STATE)},
    ),
)
