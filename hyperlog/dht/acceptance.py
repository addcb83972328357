"""Service: one client that wants to connect to us, from its first message to the connection.

What there is to do follows from what both sides say of themselves:

    the client asked us directly, or is open      we start, at its address
    we are open, or do not punch                  the client starts: wait for its first packet
    it is on our network                          the same, or it asks for a hole punch after all
    otherwise                                     answer from a puncher's socket: the client learns
                                                  its outside address, and asks for hole punches

Beside the last three goes a relay, if one side names one.

Source: hyperdht lib/server.js `_addHandshake`; docs/protocol/hyperdht.md section 9.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.commands.handshake import HandshakeResponder
from hyperlog.dht.commands.messages import (
    Handshake,
    Holepunch,
    HolepunchInfo,
    NoisePayload,
    RelayThrough,
    UDXInfo,
)
from hyperlog.dht.compact import Address
from hyperlog.dht.connection import Connection, Opening
from hyperlog.dht.constants import (
    ERROR_ABORTED,
    ERROR_NONE,
    ERROR_VERSION_MISMATCH,
    FIREWALL_OPEN,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.errors import DHTError
from hyperlog.dht.interfaces import is_private, match_address
from hyperlog.dht.memory import UNPROVED_WINDOW
from hyperlog.dht.noise.secretstream import SecretStreamCore
from hyperlog.dht.paths import RELAY_TIMEOUT, RELAYED, RelayChoice, StreamPaths, choose_relay
from hyperlog.dht.punchsockets import MayPunch
from hyperlog.dht.relaying import connect_through_relay
from hyperlog.dht.serverpunch import ServerPunch

if TYPE_CHECKING:
    from hyperlog.dht.announcer import Announcer
    from hyperlog.dht.hyperdht import DHT
    from hyperlog.dht.node import IncomingRequest

__all__ = ["AcceptOptions", "Acceptance"]

logger = logging.getLogger("hyperlog.dht.acceptance")

HANDSHAKE_MEMORY: Final = 10.0  # s, hyperdht lib/server.js HANDSHAKE_CLEAR_WAIT and INITIAL_TIMEOUT


@dataclass(frozen=True, slots=True)
class AcceptOptions:
    """What the owner of a listener wants of its connections; see `DHT.listen`."""

    share_local_address: bool = True
    reusable_socket: bool = False
    relay_through: RelayChoice = None
    holepunch: MayPunch | bool = True


class Acceptance:
    """One first message, its answer, and the stream that waits for the client.

    `on_connection` gets the connection when there is a path, before the client's hello.
    """

    def __init__(
        self,
        dht: DHT,
        nursery: trio.Nursery,
        announcer: Announcer,
        options: AcceptOptions,
        *,
        host: str,
        public_key: bytes,
        responder: HandshakeResponder,
        payload: NoisePayload,
        on_connection: Callable[[Acceptance, Connection], None],
    ) -> None:
        self.host = host
        """the client's, as far as is known"""
        self.number: int | None = None
        """what hole punch messages carry; None when the firewall refused"""
        self.noise: bytes | None = None
        """our answer; None when the firewall refused"""
        self.messages = 0
        """how often the first message came"""
        self.opening: Connection | None = None
        """the connection, while it waits for the peer's hello"""
        self._dht = dht
        self._nursery = nursery
        self._announcer = announcer
        self._options = options
        self._public_key = public_key
        self._responder = responder
        self._payload = payload
        self._on_connection = on_connection
        self._created_at = trio.current_time()
        self._expires_at = self._created_at + HANDSHAKE_MEMORY
        self._own: Address | None = None  # our open address, as told to the client
        self._punch: ServerPunch | None = None
        self._may_punch = False
        self._reply_from_punch = False
        self._paths: StreamPaths | None = None
        self._connection: Connection | None = None
        self._relay_scope: trio.CancelScope | None = None
        self._record = Opening(remote_firewall=payload.firewall)

    # -- the answer -------------------------------------------------------------------------------

    def answer(self, number: int, message: Handshake, request: IncomingRequest) -> None:
        """Make the answer, and do what is to be done for a path; see the top of this module."""
        payload, options = self._payload, self._options
        if payload.version != 1:
            error = ERROR_VERSION_MISMATCH
        elif payload.udx is None:
            error = ERROR_ABORTED
        else:
            error = ERROR_NONE
            self._paths = StreamPaths(self._dht.create_stream(UNPROVED_WINDOW, reserved=True))
            self._paths.on_path = self._take_path
            self._paths.expect(payload.udx.id, through_node=message.peer_address is not None)
        own = self._own = self._address_for(message.peer_address)
        addresses = [own] if own is not None else []
        addresses6: list[Address] = []
        if options.share_local_address:
            addresses += self._dht.local_addresses.usable()
            addresses6 = self._dht.local_addresses.ipv6()
        holepunch = None
        if own is None:
            holepunch = HolepunchInfo(number, list(self._announcer.relays))
        relay = self._own_relay()
        self.noise = self._responder.send(
            NoisePayload(
                error=error,
                firewall=FIREWALL_OPEN if own is not None else FIREWALL_UNKNOWN,
                holepunch=holepunch,
                addresses4=addresses,
                addresses6=addresses6,
                udx=UDXInfo(
                    id=self._paths.stream.core.local_id if self._paths is not None else 0,
                    reusable_socket=options.reusable_socket,
                ),
                secret_stream=True,
                relay_through=relay,
                relay_addresses=list(self._announcer.relay_addresses) or None,
            )
        )
        if self._paths is not None:
            self._seek(self._paths, relay, message, request)

    def _address_for(self, client: Address | None) -> Address | None:
        """Our open address; None towards a client behind our own router.

        Few routers turn packets round that are sent to their outside address from inside. Compat:
        hyperdht says that it is open to everybody, and its clients ask a neighbour on the LAN only
        if it is not.
        """
        own = self._dht.remote_address()
        if own is None or client is None or client[0] != own[0] or is_private(own[0]):
            return own
        ours = {host for host, _ in self._dht.local_addresses.all()}
        return own if own[0] in ours or not self._options.share_local_address else None

    def _own_relay(self) -> RelayThrough | None:
        try:
            key = choose_relay(self._options.relay_through, self._dht.random_bytes)
        except Exception:
            # The user's callback: without a relay most clients still get through.
            logger.exception("the choice of a relay failed; going on without one")
            return None
        return None if key is None else RelayThrough(key, self._dht.random_bytes(32))

    def _seek(
        self,
        paths: StreamPaths,
        relay: RelayThrough | None,
        message: Handshake,
        request: IncomingRequest,
    ) -> None:
        client = message.peer_address
        if client is None or self._payload.firewall == FIREWALL_OPEN:
            return  # `connect_now` follows, behind the answer
        relay_through = relay or self._payload.relay_through
        if relay_through is not None:
            self._begin_relay(paths, relay_through, is_initiator=relay is not None)
        self._may_punch = self._own is None and self._options.holepunch is not False
        if self._may_punch and not self._on_same_network(client, request):
            # The relaying node then reports the puncher's NAT mapping to the client.
            self._begin_punch()
            self._reply_from_punch = True

    @property
    def reply_socket(self) -> int | None:
        """The socket to answer from, when it is not the one that was asked."""
        if not self._reply_from_punch or self._punch is None or not self._punch.active:
            return None
        return self._punch.socket

    def connect_now(self, message: Handshake, request: IncomingRequest) -> None:
        """Once the answer has been sent: start, if it is on us to do so."""
        paths = self._paths
        if paths is None or paths.path is not None:
            return
        if message.peer_address is None:
            paths.take(request.socket, request.address)
        elif self._payload.firewall == FIREWALL_OPEN:
            paths.take(self._dht.node.request_socket, message.peer_address)

    def _on_same_network(self, client: Address, request: IncomingRequest) -> bool:
        if not self._options.share_local_address or client[0] != request.to[0]:
            return False
        private = [address for address in self._payload.addresses4 if is_private(address[0])]
        return match_address(self._dht.local_addresses.usable(), private) is not None

    # -- hole punches -----------------------------------------------------------------------------

    def _begin_punch(self) -> None:
        self._may_punch = False
        holepunch = self._options.holepunch
        try:
            self._punch = ServerPunch(
                self._dht,
                self._nursery,
                secret=self._responder.holepunch_secret,
                remote_firewall=self._payload.firewall,
                is_relay=self._announcer.is_relay,
                has_relay=self.relaying,
                may_punch=None if isinstance(holepunch, bool) else holepunch,
            )
        except OSError as err:
            logger.warning("no socket for a hole punch: %s", err)
        else:
            self._record.punches += 1

    @property
    def punching(self) -> bool:
        """Whether sockets are held for a hole punch."""
        return self._punch is not None and self._punch.active

    def receive_holepunch(self, message: Holepunch, request: IncomingRequest) -> None:
        """Take a hole punch message for this handshake."""
        if self._may_punch:
            self._begin_punch()
        if self._punch is not None:
            self._punch.receive(message, request)

    def end_punch(self, *, through: int | None = None) -> None:
        """Give the puncher's sockets back, but the one that the connection goes `through`."""
        self._may_punch = False
        if self._punch is not None:
            self._punch.close(through=through)
            firewall = self._punch.record.remote_firewall
            self._record.remote_firewall = firewall or self._record.remote_firewall
            self._punch = None

    # -- the relay --------------------------------------------------------------------------------

    def _begin_relay(
        self, paths: StreamPaths, relay_through: RelayThrough, *, is_initiator: bool
    ) -> None:
        self._record.relays += 1
        self._relay_scope = trio.CancelScope()
        # Not in our listener's nursery: a connection outlives its listener.
        self._dht.start_soon(self._try_relay, paths, relay_through, is_initiator, self._relay_scope)

    async def _try_relay(
        self,
        paths: StreamPaths,
        relay_through: RelayThrough,
        is_initiator: bool,
        scope: trio.CancelScope,
    ) -> None:
        scope.deadline = trio.current_time() + RELAY_TIMEOUT
        with scope:
            await trio.lowlevel.checkpoint()  # in a flood it is over before anything was sent
            try:
                relay = await connect_through_relay(
                    self._dht,
                    relay_through.public_key,
                    token=relay_through.token,
                    is_initiator=is_initiator,
                    stream_id=paths.stream.core.local_id,
                )
            except DHTError as err:
                logger.debug("no way through the relay: %s", err)
            else:
                paths.take_relayed(relay)
        self._relay_scope = None

    @property
    def relaying(self) -> bool:
        """Whether we are on our way to a relay."""
        return self._relay_scope is not None

    def end_relay(self) -> None:
        """Look for a relay no longer; a connection through it stays."""
        if self._relay_scope is not None:
            self._relay_scope.cancel()
            self._relay_scope = None

    # -- the connection ---------------------------------------------------------------------------

    def _take_path(self, path: str) -> None:
        paths, connection = self._paths, self._connection
        assert paths is not None
        if path != RELAYED:
            self._expires_at = trio.current_time() + HANDSHAKE_MEMORY
            self.end_punch(through=paths.stream.socket)
            self.end_relay()
        if connection is not None:
            connection.set_path(path)
        else:
            result = self._responder.result()
            connection = self._connection = Connection(
                paths.stream,
                SecretStreamCore(result, random_bytes=self._dht.random_bytes),
                public_key=self._public_key,
                remote_public_key=self._responder.remote_public_key,
                handshake_hash=result.handshake_hash,
                is_initiator=False,
                path=path,
                opening=self._record,
            )
            connection.when_closed(paths.close)
            connection.when_closed(self.end_punch)
            self._on_connection(self, connection)
        udx = self._payload.udx
        if path != RELAYED and self._options.reusable_socket and udx and udx.reusable_socket:
            self._dht.routes.add(connection)

    def note_opened(self) -> None:
        """The peer's hello has come."""
        self.opening = None
        self._record.handshakes = self.messages
        self._record.seconds = trio.current_time() - self._created_at

    # -- the end ----------------------------------------------------------------------------------

    def expired(self, now: float) -> bool:
        """Whether nothing can come of it any more but what is a connection already."""
        return now >= self._expires_at and not self.relaying and not self.punching

    def drop(self) -> None:
        """Forget the handshake; a connection that has opened lives on."""
        self.end_punch()
        self.end_relay()
        if self.opening is not None:
            self.opening.abort()
        if self._paths is not None and self._connection is None:
            self._paths.close()
            self._paths.stream.destroy()
