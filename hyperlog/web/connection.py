"""Service: one TCP connection, by hypercorn, with the bounds that hypercorn leaves to others.

Hypercorn's trio worker parses and writes HTTP/1.1 and WebSocket. Taken away here are HTTP/2 and
compressed WebSocket messages: both let a peer ask for far more than it sends. Added are a deadline
for each write, since hypercorn shields its writes from cancellation and so would wait for ever for
a peer that does not read, and an end that no part of a connection can survive.
"""

from __future__ import annotations

import logging
import socket as stdlib_socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

__all__ = ["HTTPConnection"]

logger = logging.getLogger("hyperlog.web.connection")

SEND_TIMEOUT: Final = 20.0  # s for SEND_SIZE bytes; then the peer does not read
RECEIVE_SIZE: Final = 64 * 1024  # bytes
SEND_SIZE: Final = 64 * 1024  # bytes
UNACKNOWLEDGED_TIMEOUT: Final = 30.0  # s that sent bytes may stay without any answer of the system
CLOSE_TIMEOUT: Final = 5.0  # s from our closing a WebSocket to its end
WEBSOCKET_CLOSE: Final = b"\x88"  # first byte of a frame
TCP_INFO_SIZE: Final = 104  # bytes of Linux's struct tcp_info, of which we need
TCP_INFO_RTT: Final = struct.Struct("=I")
TCP_INFO_RTT_OFFSET: Final = 68
LAST_TASKS_TIMEOUT: Final = 40.0  # s for what a peer began that is gone; a write may take 30


class _Protocol(H11Protocol):
    """HTTP/1.1 and WebSocket, and nothing else."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """No upgrade to HTTP/2: a request that offers one is answered as it is."""

    async def _create_stream(self, request: h11.Request) -> None:
        # Without its extensions a WebSocket is not compressed: one packet could else become 64 MB.
        headers = [pair for pair in request.headers if pair[0] != b"sec-websocket-extensions"]
        request = h11.Request(
            method=request.method,
            target=request.target,
            headers=headers,
            http_version=request.http_version,
        )
        await super()._create_stream(request)


class _Tasks(TaskGroup):
    """A connection's tasks; what hypercorn runs beside the application ends with the reading."""

    def __init__(self) -> None:
        super().__init__()
        self.background = trio.CancelScope()

    def spawn(self, func: Callable[..., Awaitable[object]], *args: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._run_in_background, func, args)

    async def _run_in_background(
        self, func: Callable[..., Awaitable[object]], args: tuple[object, ...]
    ) -> None:
        with self.background:
            await func(*args)


class HTTPConnection(TCPServer):
    """One connection; `run` it. The application finds it in `scope["state"]["connection"]`."""

    def __init__(
        self, app: AppWrapper, config: Config, context: WorkerContext, stream: trio.SocketStream
    ) -> None:
        super().__init__(app, config, context, {}, stream)  # type: ignore[arg-type]
        self.cut_off: str | None = None
        """why it was ended from this side"""
        self.heard_at = trio.current_time()
        """when something last came, in trio's time"""
        self._is_over = False
        self._scope = trio.CancelScope()
        _end_without_answers(stream)

    def abort(self, reason: str) -> None:
        """End it at once, whatever it does."""
        if self.cut_off is None:
            self.cut_off = reason
        self._scope.cancel()

    def end(self) -> None:
        """End it: everything has been said."""
        self._scope.cancel()

    @property
    def round_trip_time(self) -> float | None:
        """s, as the system measures it; None if it does not tell."""
        try:
            information = self.stream.getsockopt(
                stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_INFO, TCP_INFO_SIZE
            )
        except (AttributeError, OSError, trio.ClosedResourceError):
            return None
        if len(information) < TCP_INFO_SIZE:
            return None
        microseconds: int = TCP_INFO_RTT.unpack_from(information, TCP_INFO_RTT_OFFSET)[0]
        return microseconds / 1e6

    async def run(self) -> None:
        """Serve it to its end; raises nothing of its own."""
        with self._scope:
            try:
                await self._serve()
            except OSError:
                pass  # it was reset before it could be looked at
            finally:
                await trio.aclose_forcefully(self.stream)

    async def _serve(self) -> None:
        socket = self.stream.socket
        client = parse_socket_addr(socket.family, socket.getpeername())
        server = parse_socket_addr(socket.family, socket.getsockname())
        tasks = _Tasks()
        async with tasks:
            self._task_group = tasks
            self.protocol = _Protocol(  # type: ignore[assignment]
                self.app,
                self.config,
                self.context,
                tasks,
                ConnectionState({"connection": self}),
                False,
                client,
                server,
                self.protocol_send,
            )
            await self.idle_task.restart(tasks, self._idle_timeout)
            await self._read_data()
            self._is_over = True
            await self.idle_task.stop()
            tasks.background.cancel()
            deadline = trio.current_time() + LAST_TASKS_TIMEOUT
            self._scope.deadline = min(self._scope.deadline, deadline)

    async def _read_data(self) -> None:
        while True:
            try:
                data = await self.stream.receive_some(RECEIVE_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                break
            self.heard_at = trio.current_time()
            await self.protocol.handle(RawData(bytes(data)))
            if not data:
                break
        await self.protocol.handle(Closed())

    async def protocol_send(self, event: Event) -> None:
        """Called by hypercorn with what is to be sent, and with what has changed."""
        if not isinstance(event, RawData):
            # Hypercorn would wait for the next request of a peer that is gone.
            if not (self._is_over and isinstance(event, Updated)):
                await super().protocol_send(event)
            return
        is_websocket = isinstance(getattr(self.protocol, "connection", None), H11WSConnection)
        if is_websocket and event.data[:1] == WEBSOCKET_CLOSE:
            # Hypercorn also closes for what is too large, and the application does not hear of it.
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + CLOSE_TIMEOUT)
        async with self.send_lock:
            try:
                for start in range(0, len(event.data), SEND_SIZE):
                    with trio.fail_after(SEND_TIMEOUT):
                        await self.stream.send_all(event.data[start : start + SEND_SIZE])
            except trio.TooSlowError:
                self.abort(f"it has not read anything for {SEND_TIMEOUT:.0f} s")
                await trio.lowlevel.checkpoint()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the task that reads is told the same, and ends the rest
            except trio.Cancelled:
                self.abort("something was sent by half")
                raise


def _end_without_answers(stream: trio.SocketStream) -> None:
    """Have the system end a connection whose peer has vanished, in less than its quarter hour."""
    option = getattr(stdlib_socket, "TCP_USER_TIMEOUT", None)
    try:
        stream.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE, 1)
        if option is not None:
            milliseconds = int(UNACKNOWLEDGED_TIMEOUT * 1000)
            stream.setsockopt(stdlib_socket.IPPROTO_TCP, option, milliseconds)
    except OSError:
        pass  # gone already
