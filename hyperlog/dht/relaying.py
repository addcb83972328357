"""Service: a path to a peer through a blind relay.

The relay is an ordinary HyperDHT server. On a connection to it we name a token that the peer names
too; the relay answers with the id of a UDX stream of its own, and what we send there reaches the
peer. The stream that goes that way is encrypted end to end: the relay sees ciphertext.

The connection to the relay stays open beside that stream, because the relay ends the path with it.

Source: hyperdht lib/connect.js `relayConnection`, blind-relay index.js; docs/protocol/hyperdht.md
section 12.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import (
    ConnectError,
    NodeDestroyed,
    RelayAborted,
    RelayRefused,
    RelayUnreachable,
    RemoteProtocolError,
    RequestError,
)
from hyperlog.dht.relay.client import Paired, Refused, RelayClientCore, RelayGone, Unpaired

if TYPE_CHECKING:
    from hyperlog.dht.connection import Connection
    from hyperlog.dht.hyperdht import DHT
    from hyperlog.dht.keys import KeyPair

__all__ = ["RelayedPath", "connect_through_relay"]

logger = logging.getLogger("hyperlog.dht.relaying")

CLOSE_TIMEOUT: Final = 5.0  # s for telling the relay that we are done

_CONNECTION_LOST: Final = (
    trio.EndOfChannel,
    trio.BrokenResourceError,
    trio.ClosedResourceError,  # the node is closing, and all its streams with it
    RemoteProtocolError,
)


class RelayedPath:
    """Where to connect a stream to, so that it reaches the peer through the relay.

    The path lasts until `close`, or until the relay is lost.
    """

    def __init__(self, socket: int, address: Address, remote_id: int) -> None:
        self.socket = socket
        """local socket to send from, as `Sockets` counts them"""
        self.address = address
        """of the relay"""
        self.remote_id = remote_id
        """UDX stream id of the relay"""
        self.on_closed: Callable[[], None] | None = None
        """Called once, when the path is no more: after `close` or because the relay was lost."""
        self._closed = False
        self._scope = trio.CancelScope()

    @property
    def closed(self) -> bool:
        """Whether the path is no more."""
        return self._closed

    def close(self) -> None:
        """End the path, and the connection to the relay; safe to repeat. Returns at once."""
        self._scope.cancel()
        self._set_closed()

    def _set_closed(self) -> None:
        if not self._closed:
            self._closed = True
            if self.on_closed is not None:
                self.on_closed()

    async def _hold(self, connection: Connection, core: RelayClientCore) -> None:
        """Keep the connection until it is lost or the path is closed."""
        with self._scope:
            try:
                while True:
                    while (event := core.next_event()) is not None:
                        if isinstance(event, RelayGone | Unpaired):
                            self._set_closed()
                    if self._closed:
                        break
                    if answers := core.messages_to_send():
                        await connection.send_many(answers)
                    for message in await connection.receive_many():
                        core.receive_untrusted(message)
            except _CONNECTION_LOST as err:
                logger.debug("the connection to the relay ended: %s", type(err).__name__)
        self._set_closed()
        await _close(connection, core)


async def connect_through_relay(
    dht: DHT,
    relay_public_key: bytes,
    *,
    token: bytes,
    is_initiator: bool,
    stream_id: int,
    key_pair: KeyPair | None = None,
) -> RelayedPath:
    """Ask a relay for a path to the peer that shows it the same token in the other role.

    `stream_id` is the local id of our stream; `token` has 32 bytes. `key_pair` is what the relay
    gets to see of us, the node's own by default. Waits for the peer without a limit of its own.

    Raises:
        RelayUnreachable: no connection to the relay.
        RelayRefused: it is no relay, or it refuses.
        RelayAborted: it was lost while we waited for the peer.
        NodeDestroyed: the node closes.
    """
    try:
        connection = await dht.connect(relay_public_key, key_pair=key_pair)
    except NodeDestroyed:
        raise
    except (ConnectError, RequestError) as err:
        raise RelayUnreachable(f"no connection to the relay: {err}") from err
    core = RelayClientCore(connection.public_key)
    core.pair(token, is_initiator=is_initiator, stream_id=stream_id)
    try:
        path = await _wait_paired(connection, core, token)
        dht.start_soon(path._hold, connection, core)
    except BaseException:
        connection.abort()
        raise
    return path


async def _wait_paired(connection: Connection, core: RelayClientCore, token: bytes) -> RelayedPath:
    try:
        await connection.send_many(core.messages_to_send())
        while True:
            for message in await connection.receive_many():
                core.receive_untrusted(message)
            while (event := core.next_event()) is not None:
                if isinstance(event, Paired):
                    assert connection.local_socket is not None
                    assert connection.remote_address is not None
                    return RelayedPath(
                        connection.local_socket, connection.remote_address, event.remote_id
                    )
                if isinstance(event, RelayGone) and event.rejected:
                    raise RelayRefused("the peer under the relay's key relays nothing")
                if isinstance(event, Refused):
                    raise RelayRefused(
                        "the relay gives us no path: its limits are reached, or the peer did not "
                        "come to it"
                    )
                raise RelayAborted("the relay ended its service")
            if answers := core.messages_to_send():
                await connection.send_many(answers)
    except _CONNECTION_LOST as err:
        raise RelayAborted("the connection to the relay was lost") from err


async def _close(connection: Connection, core: RelayClientCore) -> None:
    with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
        try:
            core.close()
            connection.send_soon(core.messages_to_send())
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        await connection.aclose()
