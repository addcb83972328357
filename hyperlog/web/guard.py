"""What every request passes, in and out: its id, its Host, its address line, its end.

    request --> id --> Host --> no token in the URL --> room? --> application
    answer  <-- id, security headers <-- problem+json for whatever was raised

An answer may come before the request has been read in full. What is left of it is then thrown away
for a while, since a connection that is closed with unread bytes is reset, and the answer lost.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

import trio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperlog.limits import Complaints
from hyperlog.web.hosts import HostList
from hyperlog.web.problems import Problem, problem_response

__all__ = ["Guard"]

logger = logging.getLogger("hyperlog.web")

MAX_REQUESTS: Final = 256  # answered at a time; WebSockets and viewers are bounded elsewhere
MAX_URL: Final = 8192  # bytes
LINGER: Final = 2.0  # s for what is left of a request, or of a WebSocket, after its answer
SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer, unless it brings its own."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN_NAMES = frozenset({"access_token", "authorization", "bearer", "jwt", "token"})
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, hosts: HostList) -> None:
        self._app = app
        self._hosts = hosts
        self._requests: set[_Exchange] = set()
        """without an answer yet"""
        self._complaints = Complaints(logger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(scope, receive, send, request_id, self._requests.discard)
        started_at = time.monotonic()
        if scope["type"] == "http":
            self._requests.add(exchange)
        try:
            self._check(scope, headers)
            await self._app(scope, exchange.receive, exchange.send)
        except Problem as problem:
            code = problem.members.get("code", "")
            if code.startswith("TOKEN_"):
                self._count_refusal(scope, code, request_id)
            await exchange.fail(problem)
        except Exception:  # isolates one request from the rest
            logger.exception("[%s] answering %s failed", request_id, _name(scope))
            await exchange.fail(Problem(500, "the server failed; its log tells more by the id"))
        finally:
            self._requests.discard(exchange)
            milliseconds = (time.monotonic() - started_at) * 1000
            logger.debug(
                "[%s] %s %s %.1f ms", request_id, _name(scope), exchange.status, milliseconds
            )
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            scope["app"].state.shared.answers[endpoint, exchange.status] += 1
        await exchange.finish()

    def _count_refusal(self, scope: Scope, code: str, request_id: str) -> None:
        scope["app"].state.shared.refusals[code] += 1
        host = (scope.get("client") or ("unknown",))[0]
        text = f"[{request_id}] a request of {host} was refused ({code})"
        self._complaints.warn(code, text, time.monotonic())

    def _check(self, scope: Scope, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._hosts.allows(hosts[0]):
            raise Problem(
                421, "this server is not known by that name; see --http-host", field="Host"
            )
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL:
            raise Problem(414, f"an address has at most {MAX_URL} bytes", limit=MAX_URL)
        _refuse_tokens(scope)
        if scope["type"] == "http" and len(self._requests) > MAX_REQUESTS:
            raise Problem(503, "too many requests at a time", limit=MAX_REQUESTS, retry_after=1)


class _Exchange:
    """One request and its answer."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        answered: Callable[[_Exchange], object],
    ) -> None:
        """`answered` is told of an answer before the rest of its request is thrown away."""
        self.status = 0
        """0 as long as there is none"""
        self._answered = answered
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._is_websocket = scope["type"] == "websocket"
        self._all_received = False
        self._all_sent = False
        self._accepted = False

    async def receive(self) -> Message:
        message = await self._receive()
        kind = message["type"]
        if kind == "http.request":
            self._all_received = not message.get("more_body", False)
        elif kind in ("http.disconnect", "websocket.disconnect"):
            self._all_received = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            self._add_headers(message)
        elif kind == "websocket.accept":
            self.status = 101
            self._accepted = True
            headers = MutableHeaders(scope={"headers": list(message.get("headers", []))})
            headers["X-Request-Id"] = self._request_id
            message["headers"] = headers.raw
        elif kind == "websocket.close":
            self._all_sent = True
        elif kind in ("http.response.body", "websocket.http.response.body"):
            self._all_sent = not message.get("more_body", False)
        if self._all_sent and kind == "http.response.body" and not self._all_received:
            await self._send_early(message)
        else:
            await self._send(message)

    async def fail(self, problem: Problem) -> None:
        """Answer with a problem, or break off what has begun."""
        if self._accepted:
            if not self._all_sent:
                text = problem.detail[:100].encode()[:123].decode(errors="ignore")
                code = 1011 if problem.status >= 500 else 1008
                await self.send({"type": "websocket.close", "code": code, "reason": text})
        elif self.status:
            self._scope["state"]["connection"].abort("its answer broke off")
        else:
            response = problem_response(problem, self._request_id)
            await response(self._scope, self.receive, self.send)

    async def finish(self) -> None:
        """Let a WebSocket's peer read why it was closed."""
        if self._is_websocket:
            if self._accepted:
                await self._discard()
            # Hypercorn waits for room in a queue that nobody reads any more.
            self._scope["state"]["connection"].end()

    async def _send_early(self, message: Message) -> None:
        # Hypercorn puts what it reads into a queue; it would wait there for room, and not close.
        await self._send({**message, "more_body": True})
        self._answered(self)
        await self._discard()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._discard_for_ever)
            await self._send({**message, "body": b""})
            nursery.cancel_scope.cancel()

    async def _discard(self) -> None:
        with trio.move_on_after(LINGER):
            while not self._all_received:
                await self.receive()

    async def _discard_for_ever(self) -> None:
        while True:
            await self.receive()

    def _add_headers(self, message: Message) -> None:
        headers = MutableHeaders(scope={"headers": list(message.get("headers", []))})
        headers["X-Request-Id"] = self._request_id
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        message["headers"] = headers.raw


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _refuse_tokens(scope: Scope) -> None:
    """Addresses end up in logs, in histories and in the Referer header of others."""
    query = scope["query_string"].decode("latin-1")
    if query:
        names = {name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)}
        if names & _TOKEN_NAMES or _TOKEN.search(unquote_plus(query)):
            raise Problem(
                400,
                "a token is never part of an address: send it as Authorization: Bearer, "
                "and revoke this one, for it may have been logged on its way",
                field="query",
                code="TOKEN_IN_URL",
            )


def _name(scope: Scope) -> str:
    return f"{scope.get('method', 'WebSocket')} {scope['path'][:100]!r}"
