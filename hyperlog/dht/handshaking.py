"""Service: finds a peer, and shakes hands with it through whichever node gets there first.

The same first message goes through several nodes, and the first genuine answer counts.

Source: hyperdht lib/connect.js `findAndConnect`, `connectThroughNode`, `retryRoute`;
docs/protocol/hyperdht.md section 9.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.commands.handshake import HandshakeInitiator
from hyperlog.dht.commands.messages import Handshake, NoisePayload, RelayThrough, UDXInfo
from hyperlog.dht.compact import Address
from hyperlog.dht.connection import Opening
from hyperlog.dht.constants import (
    ERROR_NONE,
    FIND_PEER,
    FIREWALL_OPEN,
    FIREWALL_UNKNOWN,
    FROM_CLIENT,
    PEER_HANDSHAKE,
    REPLY,
)
from hyperlog.dht.errors import (
    BadHandshakeReply,
    DHTError,
    HandshakeFailed,
    PeerConnectionFailed,
    PeerNotFound,
    RemoteProtocolError,
    ServerError,
    ServerIncompatible,
)
from hyperlog.dht.keys import generic_hash
from hyperlog.dht.paths import RelayChoice
from hyperlog.dht.punchsockets import MayPunch
from hyperlog.dht.routes import Route

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT

__all__ = ["ConnectOptions", "Handshaken", "Handshaking"]

logger = logging.getLogger("hyperlog.dht.handshaking")

PARALLEL_HANDSHAKES: Final = 2  # through nodes found by the query, hyperdht lib/connect.js
FIND_RETRIES: Final = 3
# Everything waits for this one answer, and repeats cost the peer nothing: it answers them with the
# same bytes. So it is asked for twice as often as others, and no longer.
HANDSHAKE_RETRIES: Final = 7
HANDSHAKE_TIMEOUT: Final = 0.5  # s
ROUTE_HEAD_START: Final = 0.25  # s that a known way to the peer has before the search begins
ROUTE_RETRIES: Final = 2


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """What the caller of `DHT.connect` wants; see there."""

    relay_addresses: Sequence[Address] = ()
    local_connection: bool = True
    reusable_socket: bool = False
    fast_open: bool = True
    relay_through: RelayChoice = None
    holepunch: MayPunch | None = None


@dataclass(slots=True)
class Handshaken:
    """A finished handshake and where its two sides sit."""

    payload: NoisePayload
    node_address: Address
    """node that the request went to; the server itself when not relayed"""
    server_address: Address
    client_address: Address
    """our address as that node saw it"""
    relayed: bool
    socket: int
    """local socket that the request left from"""


class Handshaking:
    """One handshake with one peer.

    Args:
        initiator: knows the peer's key and ours.
        stream_id: of our stream.
        relay_through: what we propose to go through.
        record: counts the messages.
    """

    def __init__(
        self,
        dht: DHT,
        initiator: HandshakeInitiator,
        options: ConnectOptions,
        *,
        stream_id: int,
        relay_through: RelayThrough | None,
        record: Opening,
    ) -> None:
        self.own_firewall = FIREWALL_UNKNOWN
        """what the peer was told about our side"""
        self._dht = dht
        self._initiator = initiator
        self._options = options
        self._stream_id = stream_id
        self._relay_through = relay_through
        self._record = record
        self._target = generic_hash(initiator.remote_public_key)
        self._request: bytes | None = None
        self._handshaken: Handshaken | None = None
        self._errors: list[DHTError] = []
        self._tried: set[Address] = set()

    async def run(self) -> Handshaken:
        """Find nodes that hold the peer's record, and shake hands through them; at most once.

        Raises:
            PeerNotFound: no node has a record of the key.
            PeerConnectionFailed: it is announced, but no handshake came through.
            ServerError, ServerIncompatible: the peer refuses.
            HandshakeFailed: its answer is genuine, and cannot be read.
        """
        limiter = trio.CapacityLimiter(PARALLEL_HANDSHAKES)
        route = None
        if self._options.reusable_socket:
            route = self._dht.routes.get(self._initiator.remote_public_key)
        async with trio.open_nursery() as nursery:

            def failed(error: DHTError) -> None:
                self._errors.append(error)
                if self._initiator.complete:  # the peer itself has said so: no other way helps
                    nursery.cancel_scope.cancel()

            async def known_route(route: Route) -> None:
                try:
                    self._handshaken = await self._shake_hands(route.address, route)
                except DHTError as err:
                    logger.debug("the known way leads nowhere: %s", err.code)
                    self._dht.routes.remove(self._initiator.remote_public_key)
                    failed(err)
                else:
                    nursery.cancel_scope.cancel()

            async def known_nodes() -> None:
                for address in self._options.relay_addresses:
                    await attempt(address)

            async def attempt(address: Address) -> None:
                if address in self._tried:
                    return
                self._tried.add(address)
                try:
                    self._handshaken = await self._shake_hands(address)
                except DHTError as err:
                    logger.debug("handshake through %s:%d failed: %s", *address, err.code)
                    failed(err)
                else:
                    nursery.cancel_scope.cancel()

            async def limited(address: Address) -> None:
                async with limiter:
                    await attempt(address)

            if route is not None:
                nursery.start_soon(known_route, route)
                await trio.sleep(ROUTE_HEAD_START)
            nursery.start_soon(known_nodes)
            try:
                async with self._dht.node.query_replies(
                    FIND_PEER, self._target, retries=FIND_RETRIES
                ) as replies:
                    async for reply in replies:
                        if reply.value is not None:
                            nursery.start_soon(limited, reply.address)
            except DHTError as err:
                logger.debug("looking for the peer failed: %s", err.code)
        if self._handshaken is not None:
            return self._handshaken
        for error in self._errors:
            if isinstance(error, ServerError | ServerIncompatible | HandshakeFailed):
                raise error
        if self._tried:
            raise PeerConnectionFailed(
                f"{len(self._tried)} nodes were asked to reach the peer, but no handshake came "
                "back: it has gone, or its firewall refuses our key"
            ) from (self._errors[0] if self._errors else None)
        raise PeerNotFound(
            "no node has a record of this public key: is the peer running, and on the same network?"
        )

    def _first_message(self) -> bytes:
        if self._request is None:
            own = self._dht.remote_address()
            addresses = [own] if own is not None else []
            addresses6: list[Address] = []
            if self._options.local_connection:
                addresses += self._dht.local_addresses.all()
                addresses6 = self._dht.local_addresses.ipv6()
            self.own_firewall = FIREWALL_OPEN if own is not None else FIREWALL_UNKNOWN
            self._request = self._initiator.send(
                NoisePayload(
                    error=ERROR_NONE,
                    firewall=self.own_firewall,
                    addresses4=addresses,
                    addresses6=addresses6,
                    udx=UDXInfo(
                        id=self._stream_id,
                        reusable_socket=self._options.reusable_socket,
                    ),
                    secret_stream=True,
                    relay_through=self._relay_through,
                )
            )
        return self._request

    async def _shake_hands(self, address: Address, route: Route | None = None) -> Handshaken:
        message = Handshake(mode=FROM_CLIENT, noise=self._first_message())
        socket = self._dht.node.request_socket if route is None else route.socket
        self._record.handshakes += 1
        response = await self._dht.node.request(
            PEER_HANDSHAKE,
            target=self._target,
            value=message.encode(),
            to=address,
            socket=socket,
            retries=HANDSHAKE_RETRIES if route is None else ROUTE_RETRIES,
            timeout=HANDSHAKE_TIMEOUT,
        )
        if response.value is None:
            raise BadHandshakeReply(f"{address[0]}:{address[1]} knows no way to the peer")
        try:
            reply = Handshake.decode_untrusted(response.value)
            if reply.mode != REPLY or not reply.noise:
                raise BadHandshakeReply(f"{address[0]}:{address[1]} answered with another message")
            if self._initiator.complete:  # the same answer came through another node
                raise BadHandshakeReply("the handshake is finished already")
            payload = self._initiator.receive_untrusted(reply.noise)
        except RemoteProtocolError as err:
            if self._initiator.complete:
                raise HandshakeFailed(f"the peer's own answer cannot be read: {err}") from err
            raise BadHandshakeReply(f"answer through {address[0]}:{address[1]}: {err}") from err
        if payload.version != 1:
            raise ServerIncompatible(f"the peer speaks version {payload.version}, we speak 1")
        if payload.error != ERROR_NONE:
            raise ServerError(f"the peer refused with error {payload.error}")
        if payload.udx is None:
            raise ServerError("the peer sent no stream id")
        return Handshaken(
            payload=payload,
            node_address=address,
            server_address=reply.peer_address or address,
            client_address=response.to,
            relayed=reply.peer_address is not None,
            socket=socket,
        )
