"""Service: from a public key to an open connection.

Find nodes that hold the peer's record, send the Noise handshake through them, then open the UDX
stream on the best path that both sides have. Source: hyperdht lib/connect.js;
docs/protocol/hyperdht.md section 9.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.commands.handshake import HandshakeInitiator
from hyperlog.dht.commands.messages import Handshake, NoisePayload, UDXInfo
from hyperlog.dht.compact import Address
from hyperlog.dht.connection import Connection
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
    CannotHolepunch,
    ConnectError,
    DHTError,
    HandshakeFailed,
    HolepunchFailed,
    PeerConnectionFailed,
    PeerNotFound,
    RemoteProtocolError,
    ServerError,
    ServerIncompatible,
)
from hyperlog.dht.holepuncher import punch_as_client
from hyperlog.dht.interfaces import (
    is_bogon,
    is_private,
    is_reserved,
    local_addresses,
    match_address,
)
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.noise.secretstream import SecretStreamCore
from hyperlog.dht.sockets import CLIENT, SERVER

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT

logger = logging.getLogger("hyperlog.dht.connect")

PARALLEL_HANDSHAKES: Final = 2  # through nodes found by the query, hyperdht lib/connect.js
PASSIVE_TIMEOUT: Final = 10.0  # s that we wait for the server's first packet, or for its hello
FIND_RETRIES: Final = 3
# Everything waits for this one answer, and repeats cost the peer nothing: it answers them with the
# same bytes. So it is asked for twice as often as others, and no longer.
HANDSHAKE_RETRIES: Final = 7
HANDSHAKE_TIMEOUT: Final = 0.5  # s


@dataclass(slots=True)
class _Handshaken:
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


class ConnectAttempt:
    """One call of `DHT.connect`."""

    def __init__(
        self,
        dht: DHT,
        remote_public_key: bytes,
        key_pair: KeyPair,
        *,
        relay_addresses: Sequence[Address],
        local_connection: bool,
    ) -> None:
        self._dht = dht
        self._remote_public_key = remote_public_key
        self._key_pair = key_pair
        self._target = generic_hash(remote_public_key)
        self._relay_addresses = list(relay_addresses)
        self._local_connection = local_connection
        self._initiator = HandshakeInitiator(key_pair, remote_public_key, dht.random_bytes)
        self._stream = dht.create_stream()
        self._stream.on_packet = self._take_early_packet
        self._early: tuple[int, Address] | None = None
        self._early_arrived = trio.Event()
        self._request: bytes | None = None
        self._own_firewall = FIREWALL_UNKNOWN
        self._handshaken: _Handshaken | None = None
        self._errors: list[DHTError] = []
        self._tried: set[Address] = set()
        self._path = "direct"

    async def run(self) -> Connection:
        """Connect.

        Raises:
            PeerNotFound: no node has a record of the key.
            PeerConnectionFailed: it is announced, but no handshake came through, or no hello.
            ConnectError: the peer refuses, or no path was found; see hyperlog.dht.errors.
        """
        try:
            handshaken = await self._find_and_shake_hands()
            path = await self._open_path(handshaken)
            return await self._open_connection(handshaken, path)
        except BaseException:
            self._stream.destroy()
            raise

    def _take_early_packet(self, socket: int, address: Address) -> None:
        # A server that knows our address starts at once and may overtake its own reply.
        if self._early is None:
            self._early = (socket, address)
            self._early_arrived.set()

    # -- finding and the handshake ----------------------------------------------------------------

    async def _find_and_shake_hands(self) -> _Handshaken:
        limiter = trio.CapacityLimiter(PARALLEL_HANDSHAKES)
        async with trio.open_nursery() as nursery:

            async def known_nodes() -> None:
                for address in self._relay_addresses:
                    await attempt(address)

            async def attempt(address: Address) -> None:
                if address in self._tried:
                    return
                self._tried.add(address)
                try:
                    self._handshaken = await self._shake_hands(address)
                except DHTError as err:
                    logger.debug("handshake through %s:%d failed: %s", *address, err.code)
                    self._errors.append(err)
                else:
                    nursery.cancel_scope.cancel()

            async def limited(address: Address) -> None:
                async with limiter:
                    await attempt(address)

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
            if self._local_connection:
                addresses += local_addresses(self._dht.sockets.local_address(SERVER))
            self._own_firewall = FIREWALL_OPEN if own is not None else FIREWALL_UNKNOWN
            self._request = self._initiator.send(
                NoisePayload(
                    error=ERROR_NONE,
                    firewall=self._own_firewall,
                    addresses4=addresses,
                    udx=UDXInfo(id=self._stream.core.local_id),
                    secret_stream=True,
                )
            )
        return self._request

    async def _shake_hands(self, address: Address) -> _Handshaken:
        message = Handshake(mode=FROM_CLIENT, noise=self._first_message())
        socket = self._dht.node.request_socket
        response = await self._dht.node.request(
            PEER_HANDSHAKE,
            target=self._target,
            value=message.encode(),
            to=address,
            socket=socket,
            retries=HANDSHAKE_RETRIES,
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
            raise BadHandshakeReply(f"answer through {address[0]}:{address[1]}: {err}") from err
        if payload.version != 1:
            raise ServerIncompatible(f"the peer speaks version {payload.version}, we speak 1")
        if payload.error != ERROR_NONE:
            raise ServerError(f"the peer refused with error {payload.error}")
        if payload.udx is None:
            raise ServerError("the peer sent no stream id")
        return _Handshaken(
            payload=payload,
            node_address=address,
            server_address=reply.peer_address or address,
            client_address=response.to,
            relayed=reply.peer_address is not None,
            socket=socket,
        )

    # -- the path ---------------------------------------------------------------------------------

    async def _open_path(self, shaken: _Handshaken) -> str:
        """Connect the stream; says how: direct, lan or punched."""
        payload = shaken.payload
        if self._early is not None:
            return self._connect_stream(shaken, *self._early)
        if not shaken.relayed:
            return self._connect_stream(shaken, shaken.socket, shaken.server_address)
        relays = payload.holepunch.relays if payload.holepunch is not None else []
        if payload.firewall == FIREWALL_OPEN or not relays:
            public = [a for a in payload.addresses4 if not is_bogon(a[0])]
            address = public[0] if public else shaken.server_address
            return self._connect_stream(shaken, self._dht.node.request_socket, address)
        if self._own_firewall == FIREWALL_OPEN:
            with trio.move_on_after(PASSIVE_TIMEOUT):
                await self._early_arrived.wait()
            if self._early is None:
                raise HolepunchFailed("the peer did not reach our open address within 10 s")
            return self._connect_stream(shaken, *self._early)
        return await self._race_lan_and_punch(shaken)

    async def _race_lan_and_punch(self, shaken: _Handshaken) -> str:
        """Both sides are behind a NAT: the same network, or a hole punched in both."""
        failures: list[DHTError] = []
        async with trio.open_nursery() as nursery:

            def won(socket: int, address: Address) -> None:
                if self._stream.socket is None and not self._stream.finished:
                    self._connect_stream(shaken, socket, address)
                nursery.cancel_scope.cancel()

            async def early() -> None:
                await self._early_arrived.wait()
                if self._early is not None:
                    won(*self._early)

            async def try_paths() -> None:
                async with trio.open_nursery() as paths:
                    paths.start_soon(self._try_lan, shaken, won, failures)
                    paths.start_soon(self._try_punch, shaken, won, failures)
                nursery.cancel_scope.cancel()

            nursery.start_soon(early)
            nursery.start_soon(try_paths)
        if self._stream.socket is not None:
            return self._path
        for failure in reversed(failures):
            if isinstance(failure, ConnectError):
                raise failure
        if self._stream.finished:
            raise PeerConnectionFailed("the peer broke the connection off at its start")
        raise CannotHolepunch("no path to the peer was found") from (
            failures[-1] if failures else None
        )

    async def _try_lan(
        self,
        shaken: _Handshaken,
        won: Callable[[int, Address], None],
        failures: list[DHTError],
    ) -> None:
        # Both sides have the same outside address: one network, or one machine.
        if not self._local_connection or shaken.client_address[0] != shaken.server_address[0]:
            return
        candidates = [a for a in shaken.payload.addresses4 if not is_reserved(a[0])]
        if not candidates:
            return
        own = local_addresses(self._dht.sockets.local_address(SERVER))
        address = match_address(own, candidates) or candidates[0]
        try:
            await self._dht.node.ping(address)
        except DHTError as err:
            failures.append(err)
        else:
            won(SERVER, address)

    async def _try_punch(
        self,
        shaken: _Handshaken,
        won: Callable[[int, Address], None],
        failures: list[DHTError],
    ) -> None:
        try:
            await punch_as_client(
                self._dht,
                self._target,
                secret=self._initiator.holepunch_secret,
                payload=shaken.payload,
                node_address=shaken.node_address,
                server_address=shaken.server_address,
                connect=won,
            )
        except DHTError as err:
            failures.append(err)
        except OSError as err:
            failures.append(CannotHolepunch(f"no socket for a hole punch: {err}"))

    def _connect_stream(self, shaken: _Handshaken, socket: int, address: Address) -> str:
        assert shaken.payload.udx is not None
        if self._stream.finished:
            raise PeerConnectionFailed("the peer broke the connection off at its start")
        self._stream.on_packet = None
        self._stream.connect(socket, shaken.payload.udx.id, address)
        if socket not in (SERVER, CLIENT):
            self._path = "punched"
        elif shaken.relayed and is_private(address[0]):
            self._path = "lan"
        else:
            self._path = "direct"
        return self._path

    async def _open_connection(self, shaken: _Handshaken, path: str) -> Connection:
        result = self._initiator.result()
        try:
            connection = Connection(
                self._stream,
                SecretStreamCore(result, random_bytes=self._dht.random_bytes),
                public_key=self._key_pair.public_key,
                remote_public_key=self._remote_public_key,
                handshake_hash=result.handshake_hash,
                is_initiator=True,
                path=path,
            )
            with trio.fail_after(PASSIVE_TIMEOUT):
                await connection.opened()
        except trio.TooSlowError as err:
            raise PeerConnectionFailed("the peer answered the handshake but sends nothing") from err
        except trio.BrokenResourceError as err:
            raise PeerConnectionFailed("the peer broke the connection off at its start") from err
        self._dht.remember_relays(
            self._remote_public_key, shaken.payload.relay_addresses or [shaken.node_address]
        )
        return connection
