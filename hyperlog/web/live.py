"""The live tail: records as they are written, by Server-Sent Events or over a WebSocket.

    event: records    data: [{…}, {…}]          event: dropped    data: {"count": 12}

A viewer gets what has collected in a tenth of a second at once. What it cannot take in time is left
out and counted. One that does not read at all is cut off by its connection.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from hyperlog.store.query import Expression
from hyperlog.tail import Seen, Tail, Viewer
from hyperlog.tokens import TokenAuthority, TokenClaims
from hyperlog.web.auth import claims_of, readable_bucket, tokens_of
from hyperlog.web.endpoint import Answer, Endpoint, arguments_of
from hyperlog.web.filters import FILTERS, expression_of
from hyperlog.web.leaving import cancel_when_gone
from hyperlog.web.problems import Problem
from hyperlog.web.state import shared_of

__all__ = ["ENDPOINTS", "EventStream", "tail_websocket"]

INTERVAL: Final = 0.1  # s between two messages to a viewer
KEEP_ALIVE: Final = 15.0  # s of silence until a comment is sent; proxies cut off what is silent
TOKEN_CHECK: Final = 0.5  # s between two looks at the token of a viewer


class _View:
    """What one viewer is allowed to see, and what it asked for."""

    def __init__(self, request: HTTPConnection) -> None:
        arguments = arguments_of(request, FILTERS)
        bucket = readable_bucket(request, arguments["bucket"])
        self.where: Expression | None = expression_of(arguments, bucket)
        self.claims: TokenClaims = claims_of(request, "read")
        self._tail: Tail = shared_of(request).service.tail
        self._tokens: TokenAuthority = tokens_of(request)
        self.texts = shared_of(request).texts

    @contextmanager
    def subscribe(self) -> Iterator[Viewer]:
        """A place among the viewers, to be taken before anything is answered.

        Raises:
            Problem: there is none.
        """
        if not self._tail.has_room:
            raise Problem(503, "too many viewers", code="LIMIT", retry_after=30)
        with self._tail.subscribe(self.where) as viewer:
            yield viewer

    async def show(
        self, viewer: Viewer, send: Callable[[list[bytes], int], Awaitable[None]]
    ) -> None:
        """Send what comes, until cancelled; an empty message now and then if nothing does."""
        while True:
            seen = Seen([], 0)
            with trio.move_on_after(KEEP_ALIVE):
                seen = await viewer.receive()
            await send([self.texts.text_of(record) for record in seen.records], seen.left_out)
            await trio.sleep(INTERVAL)

    async def watch_token(self, end: Callable[[], None]) -> None:
        """End it when the token is revoked or has expired."""
        while not self.has_ended:  # noqa: ASYNC110 - nobody announces it
            await trio.sleep(TOKEN_CHECK)
        end()

    @property
    def has_ended(self) -> bool:
        """Whether the token allows no more."""
        return self._tokens.refuses(self.claims, time.time()) is not None


class EventStream(Response):
    """Server-Sent Events of a view."""

    media_type = "text/event-stream"

    def __init__(self, view: _View) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._view = view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_events(texts: list[bytes], left_out: int) -> None:
            parts = []
            if texts:
                parts.append(b"event: records\ndata: [%b]\n\n" % b",".join(texts))
            if left_out:
                parts.append(b'event: dropped\ndata: {"count":%d}\n\n' % left_out)
            body = b"".join(parts) or b": nothing new\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with self._view.subscribe() as viewer:
            await send(start)
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
                return
            await send_events([], 0)  # so that the other end knows that it is being served
            async with trio.open_nursery() as nursery:
                end = nursery.cancel_scope.cancel
                nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
                nursery.start_soon(self._view.watch_token, end)
                await self._view.show(viewer, send_events)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def get_tail(request: Request) -> Response:
    return EventStream(_View(request))


async def tail_websocket(websocket: WebSocket) -> None:
    """The same over a WebSocket: messages `{"records": […], "dropped": 0}`."""
    view = _View(websocket)

    async def send_message(texts: list[bytes], left_out: int) -> None:
        if texts or left_out:
            message = b'{"records":[%b],"dropped":%d}' % (b",".join(texts), left_out)
            await websocket.send_text(message.decode())

    with view.subscribe() as viewer:
        await websocket.accept()
        async with trio.open_nursery() as nursery:
            end = nursery.cancel_scope.cancel
            nursery.start_soon(cancel_when_gone, websocket.receive, nursery.cancel_scope)
            nursery.start_soon(view.watch_token, end)
            await view.show(viewer, send_message)
    try:
        await websocket.close(1008 if view.has_ended else 1000)
    except (RuntimeError, WebSocketDisconnect):
        pass  # the other end was faster


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/api/v1/tail",
        get_tail,
        "Records as they come, as events; also over a WebSocket",
        {200: Answer("Events `records` and `dropped`", {"type": "string"}, "text/event-stream")},
        FILTERS,
        scope="read",
    ),
)
