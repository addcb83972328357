"""Service: a user command from another node, and the ways to answer it."""

from __future__ import annotations

from collections.abc import Callable

from hyperlog.dht.compact import Address
from hyperlog.dht.rpc.core import RPCCore
from hyperlog.dht.rpc.events import RequestReceived

__all__ = ["IncomingRequest"]


class IncomingRequest:
    """A user command from another node; answer it once, now or later, or not at all."""

    __slots__ = (
        "_core",
        "_event",
        "_pump",
        "address",
        "command",
        "socket",
        "target",
        "token",
        "value",
    )

    def __init__(self, core: RPCCore, event: RequestReceived, pump: Callable[[], None]) -> None:
        """`pump` is called after an answer: the core has something to send."""
        request = event.request
        self._core = core
        self._pump = pump
        self._event = event
        self.address = event.address
        self.socket = event.socket
        """local socket that it came in on"""
        self.command = request.command
        self.target = request.target
        self.value = request.value
        self.token = request.token
        """proven when present: the requester does receive packets at its host"""

    @property
    def to(self) -> Address:
        """Our address as the requester sees it."""
        return self._event.request.to

    @property
    def id(self) -> bytes | None:
        """The requester's node id, proven, or None."""
        return self._event.request.id

    @property
    def received_at(self) -> float:
        """Seconds on the node's clock."""
        return self._event.received_at

    def reply(
        self,
        value: bytes | None,
        *,
        error: int = 0,
        token: bool = True,
        closer_nodes: bool = True,
        to: Address | None = None,
        socket: int | None = None,
    ) -> None:
        """Send the response, by default to where the request came from and from the same socket.

        Raises:
            LocalProtocolError: a field does not fit.
        """
        event = self._event
        self._core.reply(
            event,
            value,
            error=error,
            token=token,
            closer_nodes=closer_nodes,
            to=to,
            socket=socket,
            now=event.received_at,
        )
        self._pump()

    def relay(self, value: bytes | None, to: Address, *, socket: int | None = None) -> None:
        """Pass the request on to `to` with another value.

        It keeps its tid, so that whoever gets the answer can tell what it belongs to.

        Raises:
            LocalProtocolError: a field does not fit.
        """
        self._core.relay(self._event, value, to, socket=socket)
        self._pump()
