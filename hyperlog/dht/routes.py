"""Service: the ways to peers that connections went, for the next connection to the same peer.

A hole that was punched stays open for a while after its last packet. When both peers have said
that they keep their sockets for that (`reusable_socket`), a new connection goes straight through
it: one message to the peer's own address instead of a search, a handshake through nodes and a hole
punch.

Source: hyperdht lib/socket-pool.js, lib/connect.js `retryRoute`; docs/protocol/hyperdht.md
section 11.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.connection import Connection
from hyperlog.dht.sockets import Sockets

__all__ = ["Route", "Routes"]

MAX_ROUTES: Final = 512  # peers


@dataclass(frozen=True, slots=True)
class Route:
    """How packets went to a peer."""

    socket: int
    address: Address
    path: str
    """direct, lan or punched"""


class Routes:
    """Of one node, by the peers' public keys."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._routes: OrderedDict[bytes, Route] = OrderedDict()

    def __len__(self) -> int:
        return len(self._routes)

    def add(self, connection: Connection) -> None:
        """Remember the way of an open connection that is not relayed, until it breaks."""
        socket, address = connection.local_socket, connection.remote_address
        if socket is None or address is None:
            return
        key = connection.remote_public_key
        route = Route(socket, address, connection.path)
        self._routes[key] = route
        self._routes.move_to_end(key)
        if len(self._routes) > MAX_ROUTES:
            self._routes.popitem(last=False)
        self._sockets.set_reusable(socket)

        def ended() -> None:
            if connection.stream.error is not None and self._routes.get(key) == route:
                del self._routes[key]

        connection.when_closed(ended)

    def get(self, public_key: bytes) -> Route | None:
        """The way that still has its socket; None when there is no such way."""
        route = self._routes.get(public_key)
        if route is not None and not self._sockets.is_open(route.socket):
            del self._routes[public_key]
            return None
        return route

    def remove(self, public_key: bytes) -> None:
        """It leads nowhere any more."""
        self._routes.pop(public_key, None)
