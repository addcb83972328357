"""Ends the work for whoever does not wait for its answer any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

__all__ = ["cancel_when_gone", "while_there"]


async def cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel when the other end is gone; whoever only sends never learns of it."""
    while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass
    scope.cancel()


async def while_there(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
    """What `answer` returns or raises; it is cancelled when the connection ends before.

    Only for requests without a body. A browser closes the connections of a page that is left while
    it waits for something: without this the store would go on to look for it.
    """
    response: Response | None = None
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_when_gone, request.receive, nursery.cancel_scope)
        try:
            response = await answer()
        except Exception as err:  # goes on as it is, not in a group
            error = err
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error
    return Response(status_code=503) if response is None else response
