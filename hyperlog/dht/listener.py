"""Service: accepts connections that peers make to one of our public keys.

Source: hyperdht lib/server.js; docs/protocol/hyperdht.md sections 6-9.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.acceptance import Acceptance, AcceptOptions
from hyperlog.dht.announcer import Announcer
from hyperlog.dht.budgets import SourceBudgets
from hyperlog.dht.commands.handshake import HandshakeResponder
from hyperlog.dht.commands.messages import Handshake, Holepunch, NoisePayload
from hyperlog.dht.commands.router import answer_handshake
from hyperlog.dht.compact import Address
from hyperlog.dht.connection import Connection
from hyperlog.dht.errors import RemoteProtocolError
from hyperlog.dht.handshakes import HandshakeTable, dispensable
from hyperlog.dht.keys import KeyPair

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT
    from hyperlog.dht.node import IncomingRequest

__all__ = ["Admit", "Firewall", "Listener", "ListenerStatistics"]

logger = logging.getLogger("hyperlog.dht.listener")

Firewall = Callable[[bytes, NoisePayload, Address], bool]
"""firewall(remote_public_key, payload, address): True refuses, the peer gets no answer at all."""

Admit = Callable[[Address, Address | None], bool]
"""admit(client, relay): False drops a handshake of which nothing else is known yet."""

MAX_PUNCHES: Final = 256  # at a time; each holds a socket
MAX_RELAYING: Final = 128  # clients at a time; a search for a relay has 10 of 4096 requests
MAX_ACCEPT_QUEUE: Final = 256  # open connections that nobody has accepted yet
OPEN_TIMEOUT: Final = 10.0  # s from the first packet to the peer's hello

# Computing a handshake takes half a millisecond. What one host may take of that is a twentieth in
# the long run; a node that passes on the handshakes of many clients may take a fifth.
CLIENT_RATE: Final = 100.0  # handshakes a second
CLIENT_BURST: Final = 500
NODE_RATE: Final = 400.0
NODE_BURST: Final = 2000
HOLEPUNCH_RATE: Final = 400.0  # messages a second, by the host that they come from
HOLEPUNCH_BURST: Final = 2000


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    announced_to: int
    """nodes that hold our record"""
    handshakes: int
    """that were computed"""
    held_off: int
    """before that, by `admit`; their senders try again"""
    over_budget: int
    """handshakes and hole punch messages of a host that had sent too many; they are dropped"""
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
    over_budget: int = 0
    refused: int = 0
    dropped: int = 0
    failed: int = 0
    accepted: int = 0


class Listener(trio.abc.Listener[Connection]):
    """Connections to one key pair; made by `DHT.listen`, an async iterator through `accept`."""

    def __init__(
        self,
        dht: DHT,
        key_pair: KeyPair,
        *,
        firewall: Firewall | None,
        admit: Admit | None,
        options: AcceptOptions,
    ) -> None:
        self.key_pair = key_pair
        self.announcer = Announcer(dht.node, key_pair)
        self._dht = dht
        self._firewall = firewall
        self._admit = admit
        self._options = options
        self._handshakes: HandshakeTable[Acceptance] = HandshakeTable()
        self._client_budgets = SourceBudgets(CLIENT_RATE, CLIENT_BURST)
        self._node_budgets = SourceBudgets(NODE_RATE, NODE_BURST)
        self._holepunch_budgets = SourceBudgets(HOLEPUNCH_RATE, HOLEPUNCH_BURST)
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
            over_budget=counts.over_budget,
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
                    nursery.start_soon(self._dht.local_addresses.check)
                    task_status.started()
                    await nursery.start(self.announcer.run)
                    self._announced.set()
        finally:
            self._nursery = None
            self._announced.set()
            self._send.close()
            self._abort_unaccepted()
            self.drop_handshakes()
            with trio.CancelScope(shield=True):
                await self.announcer.withdraw()
            self._stopped.set()

    def drop_handshakes(self) -> None:
        """Give up what clients have begun and is no open connection yet, hole punches included."""
        self._handshakes.clear()

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
            self._handshakes.expire(trio.current_time())
            if self._dht.local_addresses.unchecked:
                await self._dht.local_addresses.check()

    # -- handshakes -------------------------------------------------------------------------------

    def deliver(self, message: Handshake | Holepunch, request: IncomingRequest) -> None:
        """Take a message for our key, straight from a client or through a node."""
        if self._closing or self._nursery is None:
            return
        if isinstance(message, Handshake):
            self._on_handshake(message, request)
        elif self._holepunch_budgets.take(request.address[0], trio.current_time()):
            handshake = self._handshakes.numbered(message.id)
            if handshake is not None:
                handshake.receive_holepunch(message, request)
        else:
            self._counts.over_budget += 1

    def _on_handshake(self, message: Handshake, request: IncomingRequest) -> None:
        # A client sends the same bytes through several nodes: one handshake, one answer.
        handshake = self._handshakes.find(message.noise)
        if handshake is None:
            if not self._affords(message, request):
                self._counts.over_budget += 1
                return
            if not self._admits(message, request):
                self._counts.held_off += 1
                return
            try:
                handshake = self._shake_hands(message, request)
            except RemoteProtocolError as err:
                self._counts.failed += 1
                logger.debug("handshake from %s:%d dropped: %s", *request.address, err.code)
                return
            if not self._handshakes.add(message.noise, handshake):
                self._counts.dropped += 1
        handshake.messages += 1
        if handshake.noise is not None:
            self._dht.perform(
                request,
                answer_handshake(message, handshake.noise, request.address),
                socket=handshake.reply_socket,
            )
            handshake.connect_now(message, request)

    def _affords(self, message: Handshake, request: IncomingRequest) -> bool:
        now = trio.current_time()
        host = request.address[0]
        if message.peer_address is None:
            return self._client_budgets.take(host, now)
        # The client's address is what the node says; the node's own is a little harder to forge.
        return self._node_budgets.take(host, now) and self._client_budgets.take(
            message.peer_address[0], now
        )

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

    def _shake_hands(self, message: Handshake, request: IncomingRequest) -> Acceptance:
        assert self._nursery is not None  # deliver has looked
        self._counts.handshakes += 1
        responder = HandshakeResponder(self.key_pair, self._dht.random_bytes)
        payload = responder.receive_untrusted(message.noise)
        client_address = message.peer_address or request.address
        handshake = Acceptance(
            self._dht,
            self._nursery,
            self.announcer,
            self._options,
            host=client_address[0],
            public_key=self.public_key,
            responder=responder,
            payload=payload,
            on_connection=self._start_connection,
        )
        if self._refuses(responder.remote_public_key, payload, client_address):
            self._counts.refused += 1
            return handshake
        self._make_room()
        handshake.answer(self._handshakes.number(handshake), message, request)
        return handshake

    def _refuses(self, key: bytes, payload: NoisePayload, address: Address) -> bool:
        if self._firewall is None:
            return False
        try:
            return self._firewall(key, payload, address)
        except Exception:
            # The user's callback: a firewall that fails must not let anybody in.
            logger.exception("the firewall callback failed; the peer is refused")
            return True

    def _make_room(self) -> None:
        # As with handshakes. Such a peer may still reach us on another way.
        if len(self._handshakes) >= MAX_PUNCHES:
            punching = [other for other in self._handshakes if other.punching]
            if len(punching) >= MAX_PUNCHES:
                punching[dispensable(punching)].end_punch()
        if len(self._handshakes) >= MAX_RELAYING:
            relaying = [other for other in self._handshakes if other.relaying]
            if len(relaying) >= MAX_RELAYING:
                relaying[dispensable(relaying)].end_relay()

    # -- connections ------------------------------------------------------------------------------

    def _start_connection(self, handshake: Acceptance, connection: Connection) -> None:
        if self._closing or self._nursery is None:
            connection.abort()
            return
        self._dht.memory.add(connection, trio.current_time())
        handshake.opening = connection
        self._nursery.start_soon(self._hand_over, handshake, connection)

    async def _hand_over(self, handshake: Acceptance, connection: Connection) -> None:
        """Give the connection to `accept` once the peer's hello has come."""
        opened = False
        try:
            with trio.fail_after(OPEN_TIMEOUT):
                await connection.opened()
                opened = True
                handshake.note_opened()
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
