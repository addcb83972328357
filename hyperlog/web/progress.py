"""Answers that take a while, as Server-Sent Events: how far it is, and in the end the answer.

event: progress    data: {…}          event: result    data: {…}          event: problem    …
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hyperlog.store.answers import Top
from hyperlog.web.leaving import cancel_when_gone
from hyperlog.web.problems import Problem, problem_response

__all__ = ["ProgressStream", "event"]

INTERVAL: Final = 0.1  # s between two reports

Count: TypeAlias = Callable[[Callable[[Top], object]], Awaitable[bytes]]
"""Gives the answer, and calls its argument with how far it is."""


def event(name: str, data: bytes) -> bytes:
    """One event; `data` has no line feed."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


class ProgressStream(Response):
    """The events of one question."""

    media_type = "text/event-stream"

    def __init__(self, count: Count, encode: Callable[[Top], bytes]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._count = count
        self._encode = encode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
                await self._send_events(scope, send)
                nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, scope: Scope, send: Send) -> None:
        latest: list[Top] = []

        async def send_event(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def report() -> None:
            while True:
                await trio.sleep(INTERVAL)
                if latest:
                    await send_event(event("progress", self._encode(latest.pop())))
                    latest.clear()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            try:
                last = event("result", await self._count(latest.append))
            except Problem as problem:
                answer = problem_response(problem, scope["state"]["request_id"])
                last = event("problem", bytes(answer.body))
            nursery.cancel_scope.cancel()
        await send_event(last)
