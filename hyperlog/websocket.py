"""Service: a WebSocket to a server as a channel of messages, and the way there.

Theory of operation. The protocol is wsproto's; here are its socket and its time limits. There is no
task in the background: pings of the server are answered, and its end is seen, by the task that
receives, and `watch` is for a task that finds out when the server is gone.

A server that is gone says nothing, and neither does one that is busy writing. As long as bytes
leave the system's send buffer the other end takes them in; when none do, and nothing comes, not
even the answer to a ping, it counts as gone. That costs a greeting and no record.

Spec: RFC 6455, RFC 6750 section 2.1, RFC 9457. Wire: docs/protocol/session.md.
"""

from __future__ import annotations

import json
import math
import ssl
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from hyperlog.errors import BadGreeting, HyperlogError, ServerRefused
from hyperlog.webaddress import WebAddress

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["WebRoute", "WebSocketChannel", "connect_websocket"]

INGEST_PATH: Final = "/api/v1/ingest"
CONNECT_TIMEOUT: Final = 10.0  # s for name, connection, TLS and upgrade together
CLOSE_TIMEOUT: Final = 1.0  # s for the server to confirm the end
MAX_MESSAGE: Final = 1024 * 1024  # bytes of a message that is accepted; a server's are small
MAX_PROBLEM: Final = 16 * 1024  # bytes of a refusal that are read
MAX_REASON: Final = 300  # characters of a refusal that are told
IN_ORDER: Final = {1000, 1001, 1005}  # codes of a close: done, going away, none given
RECEIVE_SIZE: Final = 64 * 1024  # bytes
SEND_SIZE: Final = 512 * 1024  # bytes of frames written at a time, about
SILENCE_BEFORE_PING: Final = 2.0  # s
SILENCE_TIMEOUT: Final = 5.0  # s without any sign of life
LOOK_INTERVAL: Final = 0.5  # s
PROBE_INTERVAL: Final = 0.5  # s between looks whether there is a server again
PROBE_PATIENCE: Final = 120.0  # s, then PATIENT_PROBE_INTERVAL
PATIENT_PROBE_INTERVAL: Final = 5.0  # s
PROBE_TIMEOUT: Final = 3.0  # s


class WebSocketChannel(trio.abc.Channel[bytes]):
    """A WebSocket that is open. One task may send while another receives and a third watches."""

    def __init__(
        self, stream: trio.abc.Stream, socket: trio.socket.SocketType, protocol: WSConnection
    ) -> None:
        """`stream` goes over `socket`; `protocol` has finished its handshake."""
        self._stream = stream
        self._socket = socket
        self._protocol = protocol
        self._lock = trio.Lock()
        self._pong = b""  # the answer to the server's last ping, while somebody is sending
        self._begun = bytearray()  # of a message
        self._heard_at = trio.current_time()
        self._sends = 0
        self._is_broken = False  # a frame was begun and not finished
        self._is_closed = False
        self._has_ended = False

    async def send(self, value: bytes) -> None:
        await self.send_many([value])

    async def send_many(self, messages: Sequence[bytes]) -> None:
        """Send messages; waits for a server that reads slowly.

        Raises:
            trio.BrokenResourceError: the connection is gone.
            trio.ClosedResourceError: it was closed here.
        """
        async with self._lock:
            data = bytearray()
            for message in messages:
                data += self._frame(BytesMessage(data=message))
                if len(data) >= SEND_SIZE:
                    await self._write(data)
                    data = bytearray()
            await self._write(data)

    def _frame(self, event: Event) -> bytes:
        if self._is_closed:
            raise trio.ClosedResourceError("this connection is closed")
        try:
            return self._protocol.send(event)
        except LocalProtocolError as err:  # the server has closed
            raise trio.BrokenResourceError("the server has closed the connection") from err

    async def _write(self, data: bytes | bytearray) -> None:
        """With the lock: whole frames, or the connection is of no use any more."""
        if self._is_broken:
            raise trio.BrokenResourceError("a message was cut off, nothing can follow it")
        self._is_broken = True
        await self._stream.send_all(data)
        while self._pong:
            pong, self._pong = self._pong, b""
            await self._stream.send_all(pong)
        self._is_broken = False
        self._sends += 1

    async def receive(self) -> bytes:
        """Wait for the next message.

        Raises:
            trio.EndOfChannel: the server has closed in order.
            trio.BrokenResourceError: the connection is gone, or the server breaks the rules.
            trio.ClosedResourceError: it was closed here.
        """
        while True:
            if self._is_closed:
                raise trio.ClosedResourceError("this connection is closed")
            message = await self._next_message()
            if message is not None:
                return message
            if self._has_ended:
                raise trio.EndOfChannel
            data = await self._stream.receive_some(RECEIVE_SIZE)
            self._heard_at = trio.current_time()
            if not data:
                raise trio.BrokenResourceError("the server is gone")
            try:
                self._protocol.receive_data(bytes(data))
            except RemoteProtocolError as err:
                raise trio.BrokenResourceError(f"bad WebSocket frame: {err}") from err

    async def _next_message(self) -> bytes | None:
        try:
            for event in self._protocol.events():
                if isinstance(event, TextMessage | BytesMessage):
                    if self._take_part(event):
                        message, self._begun = bytes(self._begun), bytearray()
                        return message
                elif isinstance(event, Ping):
                    await self._answer(event)
                elif isinstance(event, CloseConnection):
                    self._has_ended = True
                    if event.code not in IN_ORDER:
                        raise trio.BrokenResourceError(
                            f"the server closed the connection: {_told(event)}"
                        )
                    return None
        except RemoteProtocolError as err:
            raise trio.BrokenResourceError(f"bad WebSocket frame: {err}") from err
        return None

    def _take_part(self, event: TextMessage | BytesMessage) -> bool:
        data = event.data
        self._begun += data.encode() if isinstance(data, str) else data
        if len(self._begun) > MAX_MESSAGE:
            raise trio.BrokenResourceError(f"a message of more than {MAX_MESSAGE} bytes")
        return event.message_finished

    async def _answer(self, ping: Ping) -> None:
        pong = self._frame(Pong(payload=bytes(ping.payload)))
        if self._lock.locked():
            self._pong = pong  # who sends now takes it along: receiving must not wait for that
        else:
            async with self._lock:
                await self._write(pong)

    # -- life -------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Return when the server gives no sign of life any more, within about 6 s."""
        moved_at = trio.current_time()
        unsent, sends = 0, self._sends
        pinged_at = -math.inf
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(LOOK_INTERVAL)
                now = trio.current_time()
                before, unsent = unsent, _unsent_bytes(self._socket)
                has_sent, sends = self._sends > sends, self._sends
                if unsent < before or (has_sent and 0 < unsent <= before):
                    moved_at = now
                moved_at = max(moved_at, self._heard_at)
                if now - moved_at >= SILENCE_TIMEOUT:
                    nursery.cancel_scope.cancel()
                    return
                is_silent = now - moved_at >= SILENCE_BEFORE_PING
                if is_silent and pinged_at < moved_at and not self._lock.locked():
                    pinged_at = now
                    nursery.start_soon(self._ping)

    async def _ping(self) -> None:
        try:
            async with self._lock:
                await self._write(self._frame(Ping(payload=struct.pack("!d", self._heard_at))))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the receiving task gets the reason

    async def aclose(self) -> None:
        """Close in order: what was sent arrives. At most CLOSE_TIMEOUT."""
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            with trio.move_on_after(CLOSE_TIMEOUT):
                if not (self._is_broken or self._lock.locked()):
                    async with self._lock:
                        await self._write(self._frame(CloseConnection(code=1000)))
                self._is_closed = True
                while not self._has_ended:
                    data = await self._stream.receive_some(RECEIVE_SIZE)
                    if not data:
                        break
                    self._protocol.receive_data(bytes(data))
                    self._has_ended = any(
                        isinstance(event, CloseConnection) for event in self._protocol.events()
                    )
        except (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.BusyResourceError,
            RemoteProtocolError,
        ):
            pass
        finally:
            self._is_closed = True
            await trio.aclose_forcefully(self._stream)


def _told(event: CloseConnection) -> str:
    reason = "".join(c for c in (event.reason or "")[:MAX_REASON] if c.isprintable())
    return f"{int(event.code)} {reason}".rstrip()


def _unsent_bytes(socket: trio.socket.SocketType) -> int:
    """What the other end has not acknowledged to the system; 0 where systems do not tell."""
    if sys.platform == "win32":
        return 0
    try:
        answer = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):  # closed meanwhile
        return 0
    return int(struct.unpack("i", answer)[0])


# -- opening --------------------------------------------------------------------------------------


async def connect_websocket(
    address: WebAddress, *, token: str | None, tls: ssl.SSLContext | None
) -> WebSocketChannel:
    """Open a connection to the ingest endpoint of a server; `tls` is for a secure address.

    Raises:
        ServerRefused: the server says that this client may not.
        BadGreeting: what answers is no such server.
        OSError: it cannot be reached.
        trio.TooSlowError: it took more than CONNECT_TIMEOUT.
    """
    with trio.fail_after(CONNECT_TIMEOUT):
        tcp = await trio.open_tcp_stream(address.host, address.port)
        stream: trio.abc.Stream = tcp
        try:
            if tls is not None:
                stream = trio.SSLStream(
                    tcp, tls, server_hostname=address.host, https_compatible=True
                )
                await _shake_hands(stream, address)
            protocol = await _upgrade(stream, address, token)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
    return WebSocketChannel(stream, tcp.socket, protocol)


async def _shake_hands(stream: trio.SSLStream[trio.SocketStream], address: WebAddress) -> None:
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as err:
        cause = err.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise ConnectionError(
                f"{address} cannot prove who it is: {cause.verify_message}; a certificate of one's "
                "own is named by ca_file"
            ) from err
        raise ConnectionError(f"no TLS connection to {address}: {cause or err}") from err


async def _upgrade(stream: trio.abc.Stream, address: WebAddress, token: str | None) -> WSConnection:
    protocol = WSConnection(ConnectionType.CLIENT)
    headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode("ascii"))]
    request = Request(host=address.authority, target=INGEST_PATH, extra_headers=headers)
    refusal: RejectConnection | None = None
    body = bytearray()
    try:
        await stream.send_all(protocol.send(request))
        while True:
            for event in protocol.events():
                if isinstance(event, AcceptConnection):
                    return protocol
                if isinstance(event, RejectConnection):
                    refusal = event
                    if not event.has_body:
                        raise _refused(refusal, b"", address)
                elif isinstance(event, RejectData):
                    body += event.data
                    if event.body_finished or len(body) > MAX_PROBLEM:
                        assert refusal is not None
                        raise _refused(refusal, bytes(body[:MAX_PROBLEM]), address)
            data = await stream.receive_some(RECEIVE_SIZE)
            if not data and refusal is not None:
                raise _refused(refusal, bytes(body), address)
            if not data:
                raise ConnectionError(f"{address} closed the connection without an answer")
            protocol.receive_data(bytes(data))
    except trio.BrokenResourceError as err:
        raise ConnectionError(f"{address} broke the connection: {err.__cause__ or err}") from err
    except RemoteProtocolError as err:
        raise BadGreeting(f"{address} does not answer as a hyperlog server: {err}") from err


def _refused(refusal: RejectConnection, body: bytes, address: WebAddress) -> Exception:
    """What an answer of HTTP means."""
    problem: dict[str, Any] = {}
    kinds = [value for name, value in refusal.headers if bytes(name).lower() == b"content-type"]
    if kinds and bytes(kinds[-1]).startswith(b"application/problem+json"):
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            parsed = None
        problem = parsed if isinstance(parsed, dict) else {}
    status = refusal.status_code
    detail, code = problem.get("detail"), problem.get("code")
    reason = detail if isinstance(detail, str) and detail else f"HTTP status {status}"
    reason = "".join(c if c.isprintable() else " " for c in reason[:MAX_REASON])
    if status in (401, 403):
        if not isinstance(code, str) or not code.isascii() or not code.isprintable():
            code = "TOKEN_REQUIRED" if status == 401 else "FORBIDDEN"
        return ServerRefused(code[:32], reason)
    if status == 429 or code == "LIMIT":
        return ServerRefused("LIMIT", reason)
    if status >= 500:
        return ConnectionError(f"{address} cannot take records now: {reason}")
    return BadGreeting(f"{address} does not answer as a hyperlog server: {reason}")


class WebRoute:
    """Connects again and again; for one task at a time."""

    has_spare: Final = False

    def __init__(
        self, address: WebAddress, *, token: str | None, tls: ssl.SSLContext | None
    ) -> None:
        self._address = address
        self._token = token
        self._tls = tls
        self._has_answered = False
        """whether the last attempt failed although somebody answered"""
        self._lost_at: float | None = None

    async def connect(self) -> WebSocketChannel:
        """A new connection. Raises what `connect_websocket` raises."""
        self._has_answered = True
        try:
            channel = await connect_websocket(self._address, token=self._token, tls=self._tls)
        except trio.TooSlowError:
            raise ConnectionError(
                f"{self._address} did not answer within {CONNECT_TIMEOUT:g} s"
            ) from None
        except ConnectionError:
            raise
        except OSError as err:
            self._has_answered = False
            raise ConnectionError(f"{self._address} cannot be reached: {_first(err)}") from err
        self._has_answered = False
        self._lost_at = None
        return channel

    async def watch(self, channel: WebSocketChannel) -> None:
        """Return when the server gives no sign of life any more."""
        await channel.watch()

    async def aclose(self) -> None:
        """Nothing is kept."""

    async def wait_for_sign(self, limit: float, error: Exception | None = None) -> None:
        """Return after `limit` seconds, or earlier when there is a server where none was after the
        last connection ended with `error`."""
        refused = self._has_answered or isinstance(error, HyperlogError)
        now = trio.current_time()
        if self._lost_at is None:
            self._lost_at = now
        with trio.move_on_after(limit):
            while True:
                patient = trio.current_time() - self._lost_at > PROBE_PATIENCE
                await trio.sleep(PATIENT_PROBE_INTERVAL if patient else PROBE_INTERVAL)
                if not refused and await self._has_listener():
                    return

    async def _has_listener(self) -> bool:
        try:
            with trio.fail_after(PROBE_TIMEOUT):
                stream = await trio.open_tcp_stream(self._address.host, self._address.port)
        except (OSError, trio.TooSlowError):
            return False
        await trio.aclose_forcefully(stream)
        return True


def _first(error: BaseException) -> BaseException:
    """The reason below an error of trio, which names all the addresses that were tried."""
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return error if cause is None else cause
