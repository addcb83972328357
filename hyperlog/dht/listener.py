"""Service: accepts connections that peers make to one of our public keys.

Source: hyperdht lib/server.js; docs/protocol/hyperdht.md sections 6-9.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.announcer import Announcer
from hyperlog.dht.commands.handshake import HandshakeResponder
from hyperlog.dht.commands.messages import (
    Handshake,
    Holepunch,
    HolepunchInfo,
    NoisePayload,
    UDXInfo,
)
from hyperlog.dht.commands.router import answer_handshake
from hyperlog.dht.compact import Address
from hyperlog.dht.connection import Connection
from hyperlog.dht.constants import (
    ERROR_ABORTED,
    ERROR_NONE,
    ERROR_VERSION_MISMATCH,
    FIREWALL_OPEN,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.errors import RemoteProtocolError
from hyperlog.dht.holepuncher import ServerPunch
from hyperlog.dht.interfaces import is_private, local_addresses, match_address
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.memory import UNPROVED_WINDOW
from hyperlog.dht.noise.secretstream import SecretStreamCore
from hyperlog.dht.sockets import CLIENT, SERVER
from hyperlog.dht.streams import UDXStream

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT
    from hyperlog.dht.node import IncomingRequest

__all__ = ["Admit", "Firewall", "Listener", "ListenerStatistics"]

logger = logging.getLogger("hyperlog.dht.listener")

Firewall = Callable[[bytes, NoisePayload, Address], bool]
"""firewall(remote_public_key, payload, address): True refuses, the peer gets no answer at all."""

Admit = Callable[[Address, Address | None], bool]
"""admit(client, relay): False drops a handshake of which nothing else is known yet."""

MAX_HANDSHAKES: Final = 1024  # remembered at a time
MAX_PUNCHES: Final = 128  # at a time; each holds a socket
HANDSHAKE_MEMORY: Final = 10.0  # s, hyperdht lib/server.js HANDSHAKE_CLEAR_WAIT and INITIAL_TIMEOUT
MAX_ACCEPT_QUEUE: Final = 128  # open connections that nobody has accepted yet
OPEN_TIMEOUT: Final = 10.0  # s from the first packet to the peer's hello


@dataclass(slots=True)
class _Handshake:
    """One first message, its answer, and the stream that waits for the peer."""

    expires_at: float
    noise: bytes | None = None
    """our answer; None when the firewall refused"""
    stream: UDXStream | None = None
    """None once connected"""
    punch: ServerPunch | None = None
    replies_from_punch: bool = False
    """whether to answer from the hole punch's socket, not from the one asked"""
    number: int | None = None
    """None when the firewall refused"""
    connect: Callable[[int, Address], None] | None = None
    opening: Connection | None = None
    """waits for the peer's hello"""


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    announced_to: int
    """nodes that hold our record"""
    handshakes: int
    """that were computed"""
    held_off: int
    """before that, by `admit`; their senders try again"""
    refused: int
    """by the firewall"""
    dropped: int
    """because a table or the accept queue was full"""
    failed: int
    """peers that sent no hello, or a forged one"""
    accepted: int


@dataclass(slots=True)
class _Counts:
    handshakes: int = 0
    held_off: int = 0
    refused: int = 0
    dropped: int = 0
    failed: int = 0
    accepted: int = 0


@dataclass(slots=True)
class _Table:
    """Handshakes by first message and by number; the number is what hole punch messages carry."""

    by_noise: dict[bytes, _Handshake] = field(default_factory=dict)
    by_number: dict[int, _Handshake] = field(default_factory=dict)
    next_number: int = 0


class Listener(trio.abc.Listener[Connection]):
    """Connections to one key pair; made by `DHT.listen`, an async iterator through `accept`."""

    def __init__(
        self,
        dht: DHT,
        key_pair: KeyPair,
        *,
        firewall: Firewall | None,
        admit: Admit | None,
        share_local_address: bool,
    ) -> None:
        self.key_pair = key_pair
        self.announcer = Announcer(dht.node, key_pair)
        self._dht = dht
        self._firewall = firewall
        self._admit = admit
        self._share_local_address = share_local_address
        self._table = _Table()
        self._counts = _Counts()
        self._announced = trio.Event()
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._send, self._receive = trio.open_memory_channel[Connection](MAX_ACCEPT_QUEUE)
        self._closing = False

    @property
    def public_key(self) -> bytes:
        return self.key_pair.public_key

    @property
    def target(self) -> bytes:
        """Hash of the public key, under which the record is announced."""
        return self.announcer.target

    def statistics(self) -> ListenerStatistics:
        counts = self._counts
        return ListenerStatistics(
            announced_to=len(self.announcer.relays),
            handshakes=counts.handshakes,
            held_off=counts.held_off,
            refused=counts.refused,
            dropped=counts.dropped,
            failed=counts.failed,
            accepted=counts.accepted,
        )

    # -- life -------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce and accept until `aclose`; the node starts this."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._expire_loop)
                    task_status.started()
                    await nursery.start(self.announcer.run)
                    self._announced.set()
        finally:
            self._nursery = None
            self._announced.set()
            self._send.close()
            self._abort_unaccepted()
            for handshake in self._table.by_noise.values():
                self._drop(handshake)
            with trio.CancelScope(shield=True):
                await self.announcer.withdraw()
            self._stopped.set()

    async def wait_announced(self) -> int:
        """Return the number of nodes that hold our record, once the first attempt is over."""
        await self._announced.wait()
        return len(self.announcer.relays)

    async def accept(self) -> Connection:
        """Return the next connection, open in both directions.

        That its peer holds `remote_public_key` is proven by its first message only, see
        `Connection.authenticated`.

        Raises:
            trio.ClosedResourceError: the listener was closed.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("the listener is closed") from None

    async def aclose(self) -> None:
        """Stop accepting and take the announcement back; open connections live on."""
        if not self._closing:
            self._closing = True
            self._dht.forget_listener(self)
            self._scope.cancel()
        await self._stopped.wait()

    def _abort_unaccepted(self) -> None:
        try:
            while True:
                self._receive.receive_nowait().abort()
        except (trio.EndOfChannel, trio.WouldBlock):
            pass

    async def _expire_loop(self) -> None:
        while True:
            await trio.sleep(1.0)
            now = trio.current_time()
            for noise, handshake in list(self._table.by_noise.items()):
                punching = handshake.punch is not None and handshake.punch.active
                if handshake.expires_at <= now and not punching:
                    self._forget(noise)

    def _forget(self, noise: bytes) -> None:
        handshake = self._table.by_noise.pop(noise)
        if handshake.number is not None:
            self._table.by_number.pop(handshake.number, None)
        self._drop(handshake)

    @staticmethod
    def _drop(handshake: _Handshake) -> None:
        if handshake.opening is not None:
            handshake.opening.abort()
        if handshake.punch is not None:
            handshake.punch.close()
        if handshake.stream is not None:
            handshake.stream.destroy()
            handshake.stream = None

    # -- handshakes -------------------------------------------------------------------------------

    def deliver(self, message: Handshake | Holepunch, request: IncomingRequest) -> None:
        """Take a message for our key, straight from a client or through a node."""
        if self._closing:
            return
        if isinstance(message, Handshake):
            self._on_handshake(message, request)
        else:
            self._on_holepunch(message, request)

    def _on_handshake(self, message: Handshake, request: IncomingRequest) -> None:
        # A client sends the same bytes through several nodes: one handshake, one answer.
        handshake = self._table.by_noise.get(message.noise)
        if handshake is None:
            if not self._admits(message, request):
                self._counts.held_off += 1
                return
            try:
                handshake = self._shake_hands(message, request)
            except RemoteProtocolError as err:
                self._counts.failed += 1
                logger.debug("handshake from %s:%d dropped: %s", *request.address, err.code)
                return
            if len(self._table.by_noise) >= MAX_HANDSHAKES:
                # Refusing the new one would let a flood keep everybody out. Honest peers are quick:
                # the oldest has had its time.
                self._counts.dropped += 1
                self._forget(next(iter(self._table.by_noise)))
            self._table.by_noise[message.noise] = handshake
        if handshake.noise is not None:
            punch = handshake.punch if handshake.replies_from_punch else None
            self._dht.perform(
                request,
                answer_handshake(message, handshake.noise, request.address),
                socket=punch.socket if punch is not None and punch.active else None,
            )
        if handshake.connect is not None:
            connect, handshake.connect = handshake.connect, None
            self._open_now(connect, message, request)

    def _open_now(
        self,
        connect: Callable[[int, Address], None],
        message: Handshake,
        request: IncomingRequest,
    ) -> None:
        if message.peer_address is None:
            connect(request.socket, request.address)
        else:
            connect(self._dht.node.request_socket, message.peer_address)

    def _shake_hands(self, message: Handshake, request: IncomingRequest) -> _Handshake:
        self._counts.handshakes += 1
        now = trio.current_time()
        handshake = _Handshake(expires_at=now + HANDSHAKE_MEMORY)
        responder = HandshakeResponder(self.key_pair, self._dht.random_bytes)
        payload = responder.receive_untrusted(message.noise)
        client_address = message.peer_address or request.address
        if self._refuses(responder.remote_public_key, payload, client_address):
            self._counts.refused += 1
            return handshake
        if payload.version != 1:
            error = ERROR_VERSION_MISMATCH
        elif payload.udx is None:
            error = ERROR_ABORTED
        else:
            error = ERROR_NONE
        own = self._dht.remote_address()
        stream = self._dht.create_stream(UNPROVED_WINDOW) if error == ERROR_NONE else None
        handshake.number = self._table.next_number
        self._table.next_number = (self._table.next_number + 1) & 0xFFFFFFFF
        self._table.by_number[handshake.number] = handshake
        addresses = [own] if own is not None else []
        if self._share_local_address:
            addresses += local_addresses(self._dht.sockets.local_address(SERVER))
        handshake.noise = responder.send(
            NoisePayload(
                error=error,
                firewall=FIREWALL_OPEN if own is not None else FIREWALL_UNKNOWN,
                holepunch=None
                if own is not None
                else HolepunchInfo(handshake.number, list(self.announcer.relays)),
                addresses4=addresses,
                udx=UDXInfo(id=stream.core.local_id if stream is not None else 0),
                secret_stream=True,
                relay_addresses=list(self.announcer.relay_addresses) or None,
            )
        )
        if stream is None:
            return handshake
        handshake.stream = stream
        self._prepare_stream(handshake, responder, payload, message, request)
        return handshake

    def _admits(self, message: Handshake, request: IncomingRequest) -> bool:
        if self._admit is None:
            return True
        try:
            if message.peer_address is None:
                return self._admit(request.address, None)
            return self._admit(message.peer_address, request.address)
        except Exception:
            logger.exception("the admit callback failed; the handshake is dropped")
            return False

    def _refuses(self, key: bytes, payload: NoisePayload, address: Address) -> bool:
        if self._firewall is None:
            return False
        try:
            return self._firewall(key, payload, address)
        except Exception:
            # The user's callback: a firewall that fails must not let anybody in.
            logger.exception("the firewall callback failed; the peer is refused")
            return True

    def _prepare_stream(
        self,
        handshake: _Handshake,
        responder: HandshakeResponder,
        payload: NoisePayload,
        message: Handshake,
        request: IncomingRequest,
    ) -> None:
        stream = handshake.stream
        udx = payload.udx
        assert stream is not None
        assert udx is not None
        direct = message.peer_address is None

        def connect(socket: int, address: Address) -> None:
            if handshake.stream is None:
                return  # connected already
            handshake.stream = None
            handshake.expires_at = trio.current_time() + HANDSHAKE_MEMORY
            stream.on_packet = None
            stream.connect(socket, udx.id, address)
            if socket not in (SERVER, CLIENT):
                path = "punched"
            else:
                path = "lan" if not direct and is_private(address[0]) else "direct"
            if handshake.punch is not None:
                handshake.punch.close(through=socket)
                handshake.punch = None
            self._start_connection(handshake, stream, responder, path)

        stream.on_packet = connect
        if direct or payload.firewall == FIREWALL_OPEN:
            handshake.connect = connect
            return
        if self._dht.remote_address() is not None:
            return  # we are open: the client starts
        if self._nursery is None:
            return
        self._make_room_for_punch()
        try:
            handshake.punch = ServerPunch(
                self._dht,
                self._nursery,
                secret=responder.holepunch_secret,
                remote_firewall=payload.firewall,
                is_relay=self.announcer.is_relay,
            )
        except OSError as err:
            logger.warning("no socket for a hole punch: %s", err)
            return
        # The relaying node then reports the puncher's NAT mapping to the client.
        handshake.replies_from_punch = not self._on_same_network(payload, message, request)

    def _make_room_for_punch(self) -> None:
        punching = [other for other in self._table.by_noise.values() if other.punch is not None]
        if len(punching) >= MAX_PUNCHES:
            # As with handshakes. The oldest peer may still reach us on the same network.
            oldest = punching[0]
            assert oldest.punch is not None
            oldest.punch.close()
            oldest.punch = None

    def _on_same_network(
        self, payload: NoisePayload, message: Handshake, request: IncomingRequest
    ) -> bool:
        if not self._share_local_address or message.peer_address is None:
            return False
        if message.peer_address[0] != request.to[0]:
            return False
        private = [address for address in payload.addresses4 if is_private(address[0])]
        own = local_addresses(self._dht.sockets.local_address(SERVER))
        return match_address(own, private) is not None

    def _on_holepunch(self, message: Holepunch, request: IncomingRequest) -> None:
        handshake = self._table.by_number.get(message.id)
        if handshake is None:
            return
        if handshake.punch is not None:
            handshake.punch.receive(message, request)

    # -- connections ------------------------------------------------------------------------------

    def _start_connection(
        self, handshake: _Handshake, stream: UDXStream, responder: HandshakeResponder, path: str
    ) -> None:
        if self._nursery is None:
            stream.destroy()
            return
        result = responder.result()
        connection = Connection(
            stream,
            SecretStreamCore(result, random_bytes=self._dht.random_bytes),
            public_key=self.public_key,
            remote_public_key=responder.remote_public_key,
            handshake_hash=result.handshake_hash,
            is_initiator=False,
            path=path,
        )
        self._dht.memory.add(connection, trio.current_time())
        handshake.opening = connection
        self._nursery.start_soon(self._hand_over, handshake, connection)

    async def _hand_over(self, handshake: _Handshake, connection: Connection) -> None:
        """Give the connection to `accept` once the peer's hello has come."""
        opened = False
        try:
            with trio.fail_after(OPEN_TIMEOUT):
                await connection.opened()
                opened = True
                handshake.opening = None
                await self._send.send(connection)
        except trio.TooSlowError:
            if opened:
                self._counts.dropped += 1  # nobody accepts
            else:
                self._counts.failed += 1
            connection.abort()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._counts.failed += 1
            connection.abort()
        except trio.Cancelled:
            connection.abort()
            raise
        else:
            self._counts.accepted += 1
