"""Live: records as they come, for a browser.

A page cannot show thousands of lines a second, and nobody could read them. A viewer gets what is
newest, a few times a second; the rest is counted, so that the page can say how much there was.

    event: rows    data: {"rows": [[id, time, level, bucket, instance, kind, message, [cells]], …],
                          "count": records that matched, "hidden": of these, not in `rows`}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hyperlog.errors import KeyFileError, QueryError
from hyperlog.store.language import parse
from hyperlog.store.query import Expression
from hyperlog.tail import Seen, Tail, Viewer
from hyperlog.users import Login
from hyperlog.web.leaving import cancel_when_gone
from hyperlog.web.panel.explore import rows_of
from hyperlog.web.panel.routes import Panel, PanelRoute
from hyperlog.web.panel.view import View
from hyperlog.web.problems import Problem

__all__ = ["add_live"]

INTERVAL: Final = 0.25  # s between two messages to a viewer
MAX_ROWS: Final = 100  # of one message
KEEP_ALIVE: Final = 10.0  # s of silence until a comment is sent; proxies cut off what is silent
LOGIN_CHECK: Final = 2.0  # s between two looks whether the viewer is still logged in

_encode = msgspec.json.Encoder().encode


def add_live(panel: Panel, tail: Tail) -> None:
    """Add the rows of this page to the panel."""

    async def page(request: Request, login: Login) -> Response:
        view = View.of(request.query_params)
        error: QueryError | None = None
        try:
            parse(view.q)
        except QueryError as err:
            error = err
        return panel.renderer.page(
            request,
            "live.html",
            login=login,
            status=400 if error else 200,
            view=view,
            error=error,
        )

    async def events(request: Request, login: Login) -> Response:
        view = View.of(request.query_params)
        try:
            where = parse(view.q)
        except QueryError as error:
            raise Problem(400, str(error), position=error.position) from None

        def over() -> bool:
            try:
                return panel.access.login_of(request) is None
            except KeyFileError:  # another process is writing: the next look tells
                return False

        return _Events(tail, where, view.columns, over)

    panel.table += [
        PanelRoute("GET", "/live", "viewer", page),
        PanelRoute("GET", "/live/events", "viewer", events, "data"),
    ]


class _Events(Response):
    media_type = "text/event-stream"

    def __init__(
        self,
        tail: Tail,
        where: Expression | None,
        columns: tuple[str, ...],
        over: Callable[[], bool],
    ) -> None:
        """`over` says whether the viewer is not logged in any more."""
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._tail = tail
        self._where = where
        self._columns = columns
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_text(text: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": text, "more_body": more})

        if not self._tail.has_room:
            raise Problem(503, "too many viewers: close other pages of this kind", retry_after=30)
        headers = self.raw_headers
        with self._tail.subscribe(self._where) as viewer:  # before others can take its place
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send_text(b": here it comes\n\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
                await self._show(viewer, send_text)
                nursery.cancel_scope.cancel()
        if self._over():
            await send_text(b"event: over\ndata: {}\n\n")
        await send_text(b"", False)

    async def _show(self, viewer: Viewer, send_text: Callable[..., object]) -> None:
        look_at = trio.current_time() + LOGIN_CHECK
        silent_until = trio.current_time() + KEEP_ALIVE
        while True:
            seen = Seen([], 0)
            with trio.move_on_at(min(look_at, silent_until)):
                seen = await viewer.receive()
            now = trio.current_time()
            if now >= look_at:
                look_at = now + LOGIN_CHECK
                if self._over():
                    return
            if seen.records or seen.left_out or now >= silent_until:
                await send_text(self._event(seen))  # type: ignore[misc]
                silent_until = trio.current_time() + KEEP_ALIVE
            await trio.sleep(INTERVAL)

    def _event(self, seen: Seen) -> bytes:
        if not seen.records and not seen.left_out:
            return b": nothing new\n\n"
        shown = seen.records[-MAX_ROWS:]
        rows = [
            (
                row.record.id,
                row.record.time,
                row.record.level,
                row.record.bucket,
                row.record.instance,
                row.record.kind,
                row.record.message,
                row.cells,
            )
            for row in rows_of(shown, self._columns)
        ]
        count = len(seen.records) + seen.left_out
        message = {"rows": rows, "count": count, "hidden": count - len(shown)}
        return b"event: rows\ndata: %b\n\n" % _encode(message)
