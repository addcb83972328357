"""Service: connections shared by all who want the same peer, one for each peer.

Both peers may call each other at the same moment. Each then has two connections, and both must
close the same one without asking: of two that different sides began, the one is kept that the peer
with the smaller key began; of two that the same side began, the later one.

Source: hyperdht lib/connection-pool.js.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from hyperlog.dht.connection import Connection
from hyperlog.dht.errors import (
    ConnectError,
    DuplicateConnection,
    LocalProtocolError,
    NodeDestroyed,
)
from hyperlog.dht.listener import Listener
from hyperlog.dht.publickey import decode_public_key

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT

__all__ = ["MAX_POOLED", "ConnectionPool"]

logger = logging.getLogger("hyperlog.dht.pool")

MAX_POOLED: Final = 1024
CROSSING_TIMEOUT: Final = 2.0  # s for the connection that the peer keeps instead of ours to come


class _Attempt:
    """A connection that is being made for everybody who asked for it."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.error: Exception | None = None
        self.scope = trio.CancelScope()
        self.waiting = 0


class ConnectionPool:
    """Made by `DHT.pool`; ends with the node.

    What `connect` and `accept` return is shared: whoever closes such a connection closes it for
    all. A connection that loses against another one to the same peer ends with a
    trio.BrokenResourceError whose cause is a DuplicateConnection.
    """

    def __init__(self, dht: DHT, *, max_connections: int = MAX_POOLED) -> None:
        self.on_connection: Callable[[Connection], None] = lambda connection: None
        """Called with every connection that comes into the pool, whoever began it."""
        self.max_connections = max_connections
        self._dht = dht
        self._connections: dict[bytes, Connection] = {}
        self._attempts: dict[bytes, _Attempt] = {}
        self._send, self._receive = trio.open_memory_channel[Connection](max_connections)
        dht.start_soon(self._end_with_node)

    async def _end_with_node(self) -> None:
        with self._send:
            await trio.sleep_forever()

    @property
    def connections(self) -> list[Connection]:
        """Those that are open, each to another peer."""
        return list(self._connections.values())

    @property
    def connecting(self) -> int:
        """Peers to which a connection is being made."""
        return len(self._attempts)

    def get(self, remote_public_key: bytes | str) -> Connection | None:
        """The open connection to a peer, if there is one."""
        return self._connections.get(decode_public_key(remote_public_key)[0])

    # -- connecting -------------------------------------------------------------------------------

    async def connect(
        self,
        remote_public_key: bytes | str,
        **options: Any,  # noqa: ANN401 - DHT.connect checks them
    ) -> Connection:
        """The connection to a peer: the open one, the one that is being made, or a new one.

        `options` are those of `DHT.connect`; they count for who asks first. An attempt goes on as
        long as anybody waits for it.

        Raises:
            LocalProtocolError: the pool is full, or that is no public key.
            NodeDestroyed, ConnectError: as of `DHT.connect`.
        """
        key = decode_public_key(remote_public_key)[0]
        await trio.lowlevel.checkpoint()
        while key not in self._connections:
            attempt = self._attempts.get(key)
            if attempt is None:
                if len(self._connections) + len(self._attempts) >= self.max_connections:
                    raise LocalProtocolError(
                        f"the pool holds {self.max_connections} connections: close some, or make a "
                        "larger one"
                    )
                attempt = _Attempt()
                self._dht.start_soon(self._run_attempt, key, remote_public_key, options, attempt)
                self._attempts[key] = attempt
            attempt.waiting += 1
            try:
                await attempt.ended.wait()
            finally:
                attempt.waiting -= 1
                if not attempt.waiting:
                    attempt.scope.cancel()
            if key not in self._connections and attempt.error is not None:
                raise attempt.error
        return self._connections[key]

    async def _run_attempt(
        self,
        key: bytes,
        remote_public_key: bytes | str,
        options: dict[str, Any],
        attempt: _Attempt,
    ) -> None:
        try:
            with attempt.scope:
                try:
                    connection = await self._dht.connect(remote_public_key, **options)
                except Exception as err:
                    # Wrong options, too, are the business of who asked, and not the node's end.
                    attempt.error = err
                    own = options.get("key_pair") or self._dht.key_pair
                    if isinstance(err, ConnectError) and own.public_key > key:
                        # The peer may have broken ours off for the one that it has begun itself.
                        with trio.move_on_after(CROSSING_TIMEOUT):
                            await attempt.ended.wait()
                else:
                    self._add(connection)
        except trio.Cancelled:
            attempt.error = NodeDestroyed("the node was closed meanwhile")
            raise
        finally:
            self._end_attempt(key, attempt)

    def _end_attempt(self, key: bytes, attempt: _Attempt) -> None:
        if self._attempts.get(key) is attempt:
            del self._attempts[key]
        attempt.ended.set()

    # -- accepting --------------------------------------------------------------------------------

    def attach(self, listener: Listener) -> None:
        """Take over all connections that the listener accepts, until one of the two closes."""
        self._dht.start_soon(self._accept_from, listener)

    async def _accept_from(self, listener: Listener) -> None:
        while True:
            try:
                connection = await listener.accept()
            except trio.ClosedResourceError:
                return
            self._add(connection)

    async def accept(self) -> Connection:
        """The next connection that came into the pool, whichever side began it.

        When nobody accepts, `max_connections` of them are told of later, and the others not.

        Raises:
            trio.ClosedResourceError: the node was closed.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("the node is closed") from None

    # -- one for each peer ------------------------------------------------------------------------

    def _add(self, connection: Connection) -> None:
        key = connection.remote_public_key
        attempt = self._attempts.get(key)
        existing = self._connections.get(key)
        if not connection.is_initiator and attempt is not None and not self._keeps(connection):
            # The peer gives its own up, too, when it sees the one that we are making.
            self._refuse(connection, "the pool is about to connect to this peer itself")
        elif existing is not None and not (
            connection.is_initiator == existing.is_initiator or self._keeps(connection)
        ):
            self._refuse(connection, "the pool has a connection to this peer already")
        elif existing is None and len(self._connections) >= self.max_connections:
            logger.warning("the pool is full: a connection is broken off")
            self._refuse(connection, "the pool is full")
        elif not connection.closed:
            self._connections[key] = connection
            connection.when_closed(lambda: self._forget(connection))
            if existing is not None:
                self._refuse(existing, "the pool keeps another connection to this peer")
            if attempt is not None and not connection.is_initiator:
                attempt.scope.cancel()
                self._end_attempt(key, attempt)
            try:
                self._send.send_nowait(connection)
            except (trio.WouldBlock, trio.ClosedResourceError):
                pass
            try:
                self.on_connection(connection)
            except Exception:
                # The user's callback: what it does wrong must not end the node.
                logger.exception("the on_connection callback failed; the connection stays")

    @staticmethod
    def _keeps(connection: Connection) -> bool:
        """Whether this one is kept when the two sides have begun one each."""
        return connection.is_initiator == (connection.public_key < connection.remote_public_key)

    @staticmethod
    def _refuse(connection: Connection, reason: str) -> None:
        connection.abort(DuplicateConnection(reason))

    def _forget(self, connection: Connection) -> None:
        if self._connections.get(connection.remote_public_key) is connection:
            del self._connections[connection.remote_public_key]
