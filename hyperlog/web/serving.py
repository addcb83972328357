"""Service: serves the application that `create_app` made."""

from __future__ import annotations

from typing import NoReturn

import trio
from starlette.applications import Starlette

from hyperlog.config import Address
from hyperlog.web.httpserver import HTTPServer
from hyperlog.web.state import Shared

__all__ = ["serve_http"]


async def serve_http(
    app: Starlette,
    address: Address,
    *,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve the application that `create_app` made, at an address, until cancelled.

    Reports itself started with the address that is bound, so that port 0 can be given.

    Raises:
        OSError: it cannot be bound.
    """
    shared: Shared = app.state.shared
    server = shared.server = HTTPServer(app, shared.service.config.limits.connections)
    await server.run(address, task_status=task_status)
