"""Service: a WebSocket as a link that carries messages, for whatever speaks over links.

A message of either kind, text or binary, is one message of the protocol; ours are text.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from hyperlog.web.connection import HTTPConnection

__all__ = ["WebSocketLink"]


class WebSocketLink:
    """An accepted WebSocket. One task may send while another receives."""

    path = "direct"
    remote_address = None

    def __init__(self, websocket: WebSocket, *, authenticated: bool) -> None:
        """`authenticated` says that a good token came with the upgrade."""
        self.authenticated = authenticated
        """whether the peer has shown a token, or said anything"""
        self._websocket = websocket
        self._sending = trio.Lock()
        connection: HTTPConnection = websocket.scope["state"]["connection"]
        self._connection = connection

    @property
    def round_trip_time(self) -> float | None:
        return self._connection.round_trip_time

    @property
    def heard_at(self) -> float:
        return self._connection.heard_at

    async def send_many(self, values: Sequence[bytes], /) -> None:
        """Send them; waits for a peer that reads slowly.

        Raises:
            trio.BrokenResourceError: the connection is gone.
        """
        async with self._sending:
            for message in values:
                try:
                    await self._websocket.send_text(message.decode())
                except (WebSocketDisconnect, RuntimeError) as error:
                    raise trio.BrokenResourceError from error

    async def send(self, message: bytes) -> None:
        await self.send_many([message])

    async def receive_many(self) -> list[bytes]:
        """Wait for a message.

        Raises:
            trio.EndOfChannel: the peer has closed, or is gone: a WebSocket does not tell which.
        """
        event = await self._websocket.receive()
        if event["type"] != "websocket.receive":
            raise trio.EndOfChannel
        data: bytes | None = event.get("bytes")
        message = event["text"].encode() if data is None else data
        if message:  # an empty one can come from anybody, and is never answered
            self.authenticated = True
        return [message]

    async def aclose(self) -> None:
        """Close in order; the peer can read what was sent before."""
        if self._websocket.application_state is WebSocketState.CONNECTED:
            await self._websocket.close()

    def abort(self) -> None:
        """End it at once, unless it is over anyway: then the peer may read what was said last."""
        states = (self._websocket.application_state, self._websocket.client_state)
        if WebSocketState.DISCONNECTED not in states:
            self._connection.abort("the server ended the connection")
