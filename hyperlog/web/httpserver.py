"""Service: listens, and runs the connections that come, as many as there may be."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, NoReturn

import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from hyperlog.config import Address
from hyperlog.limits import Complaints
from hyperlog.web.connection import HTTPConnection

__all__ = ["MAX_WEBSOCKET_MESSAGE", "HTTPServer", "HTTPStatistics"]

logger = logging.getLogger("hyperlog.web.httpserver")

MAX_WEBSOCKET_MESSAGE: Final = 1088 * 1024  # bytes; as over HyperDHT
MAX_HEADERS: Final = 16 * 1024  # bytes of a request's line and headers
IDLE_TIMEOUT: Final = 15.0  # s between two requests, and for the headers of one
PING_INTERVAL: Final = 20.0  # s between pings of a WebSocket; proxies end what is silent for 60
WAITING_EVENTS: Final = 4  # parts of a body, or whole messages, read ahead of the application
HOST_SHARE: Final = 4  # one address other than our own may have that part of all connections
BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HTTPStatistics:
    """Connections now, and counts since the start."""

    connections: int
    accepted: int
    refused: int
    """because too many were open"""
    cut_off: int
    """because they did not read, or were no use any more"""


class HTTPServer:
    """Runs connections; made once for each application."""

    def __init__(self, app: ASGIApp, max_connections: int) -> None:
        self._app = wrap_app(app, 0, "asgi")  # type: ignore[arg-type]
        self._max_connections = max_connections
        self._config = _hypercorn_config()
        self._context = WorkerContext(None)
        self._complaints = Complaints(logger)
        self._connections: set[HTTPConnection] = set()
        self._hosts: Counter[str] = Counter()
        self._accepted = self._refused = self._cut_off = 0

    def statistics(self) -> HTTPStatistics:
        return HTTPStatistics(len(self._connections), self._accepted, self._refused, self._cut_off)

    async def run(
        self,
        address: Address,
        *,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Serve until cancelled, which ends all connections; reports itself started with
        the address that is bound, so that port 0 can be given."""
        host, port = address
        listeners = await trio.open_tcp_listeners(port, host=host)
        bound = listeners[0].socket.getsockname()
        async with trio.open_nursery() as nursery:
            task_status.started((bound[0], bound[1]))
            await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)
        raise AssertionError("listeners are served until cancelled")

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            host = stream.socket.getpeername()[0]
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        if not self._has_room(host):
            await self._refuse(stream)
            return
        connection = HTTPConnection(self._app, self._config, self._context, stream)
        self._accepted += 1
        self._connections.add(connection)
        self._hosts[host] += 1
        try:
            await connection.run()
        except Exception:  # isolates one connection from the rest
            logger.exception("serving an HTTP connection failed")
        finally:
            self._connections.discard(connection)
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]
            if connection.cut_off is not None:
                self._cut_off += 1
                logger.info("HTTP connection of %s ended: %s", host, connection.cut_off)

    def _has_room(self, host: str) -> bool:
        if len(self._connections) >= self._max_connections:
            return False
        # A proxy in front brings everybody's connections from one address, most often our own.
        share = max(1, self._max_connections // HOST_SHARE)
        return self._hosts[host] < share or ip_address(host.partition("%")[0]).is_loopback

    async def _refuse(self, stream: trio.SocketStream) -> None:
        self._refused += 1
        self._complaints.warn(
            "connections", "too many HTTP connections: one is refused", trio.current_time()
        )
        with trio.move_on_after(1):
            try:
                await stream.send_all(BUSY)
                await stream.send_eof()
                while await stream.receive_some():  # else the answer may be lost with a reset
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        await trio.aclose_forcefully(stream)


def _hypercorn_config() -> Config:
    config = Config()
    config.errorlog = logging.getLogger("hyperlog.web.hypercorn")
    config.accesslog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = MAX_HEADERS
    config.keep_alive_timeout = IDLE_TIMEOUT
    config.max_app_queue_size = WAITING_EVENTS
    config.websocket_max_message_size = MAX_WEBSOCKET_MESSAGE
    config.websocket_ping_interval = PING_INTERVAL
    return config
