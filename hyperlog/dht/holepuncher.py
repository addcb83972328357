"""Service: punches holes in the NATs of both peers, from the client's and from the server's side.

Each attempt has a UDP socket of its own. Two rounds of encrypted payloads go through the nodes that
the server announced to: the probe round tells both sides what kind of NAT the other has and proves
their addresses, the punch round starts the probes (docs/protocol/hyperdht.md section 10;
hyperdht lib/connect.js, lib/server.js, lib/holepuncher.js).

Built so far: NATs that keep one outside address, which is what peers on one machine or one network
need. The strategies for NATs with random ports end in a clear error.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.commands.messages import Holepunch, HolepunchRelay, NoisePayload
from hyperlog.dht.commands.router import answer_holepunch
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import (
    ERROR_ABORTED,
    ERROR_NONE,
    FIREWALL_CONSISTENT,
    FIREWALL_OPEN,
    FIREWALL_RANDOM,
    FIREWALL_UNKNOWN,
    FROM_CLIENT,
    PEER_HOLEPUNCH,
    REPLY,
)
from hyperlog.dht.errors import (
    BadHolepunchReply,
    DHTError,
    DoubleRandomizedNATs,
    HolepunchFailed,
    HolepunchInvalid,
    HolepunchProbeTimeout,
    RemoteAborted,
    RemoteNotHolepunchable,
    RemoteNotHolepunching,
    RemoteProtocolError,
)
from hyperlog.dht.holepunch.nat import Nat
from hyperlog.dht.holepunch.payload import HolepunchPayload, SecurePayload
from hyperlog.dht.holepunch.puncher import PROBE, NotPunchable, Puncher

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT
    from hyperlog.dht.node import IncomingRequest

__all__ = ["ServerPunch", "punch_as_client"]

logger = logging.getLogger("hyperlog.dht.holepuncher")

SAMPLING_PASSES: Final = 3  # of 1 s at most: the peer waits 4 s for what comes of them
UNKNOWN_PAUSE: Final = 1.0  # s that a peer gets to find out its own NAT
MAX_PENDING: Final = 8  # hole punch messages of one attempt handled at a time


class _PunchSocket:
    """A socket of ours with the judgement of its NAT and its probes."""

    def __init__(self, dht: DHT, *, is_initiator: bool, remote_firewall: int) -> None:
        self.nat = Nat(dht.node.firewalled)
        self.puncher = Puncher(is_initiator, self.nat, remote_firewall)
        self.index = dht.sockets.open_pool_socket(self._receive_probe)
        self.connected = trio.Event()
        """Set on the initiator, when a probe of the peer has come through."""
        self.analyzed = trio.Event()
        self._dht = dht
        self._punching = trio.Event()
        self._closed = False

    async def sample(self) -> None:
        """Ask nodes for our outside address until the NAT is judged or nobody is left to ask."""

        silent: list[Address] = []

        async def ping(address: Address) -> None:
            try:
                response = await self._dht.node.ping(address, socket=self.index, retries=0)
            except DHTError:
                silent.append(address)
            else:
                self.nat.add(response.to, address)

        for _ in range(SAMPLING_PASSES):
            if self.nat.settled:
                break
            # A small network has few others to ask when pings get lost.
            nodes = [*silent, *self.nat.nodes_to_ping(self._dht.node.known_nodes(64))]
            silent.clear()
            async with trio.open_nursery() as nursery:
                for address in nodes:
                    nursery.start_soon(ping, address)
        self.nat.give_up()
        self.analyzed.set()

    async def send_probes(self) -> None:
        """Probe in rounds once `punch` was called; return when all rounds are over."""
        await self._punching.wait()
        while self.puncher.punching:
            timer = self.puncher.get_timer()
            if timer is not None:
                await trio.sleep_until(timer)
            self.flush()

    def punch(self) -> None:
        """Start probing.

        Raises:
            RemoteNotHolepunchable: what is known of both NATs gives no strategy.
        """
        started = self.puncher.punch(trio.current_time())
        if isinstance(started, NotPunchable):
            raise RemoteNotHolepunchable(started.reason)
        self.flush()
        self._punching.set()

    def open_session(self, address: Address) -> None:
        self.puncher.open_session(address)
        self.flush()

    def ping(self, address: Address) -> None:
        self.puncher.ping(address)
        self.flush()

    def flush(self) -> None:
        for address, ttl in self.puncher.probes_to_send(trio.current_time()):
            self._dht.sockets.send(self.index, address, PROBE, ttl)

    def _receive_probe(self, address: Address) -> None:
        self.puncher.receive_probe(address, trio.current_time())
        self.flush()
        if self.puncher.connected_address is not None:
            self.connected.set()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.puncher.close()
            self._punching.set()
            self._dht.sockets.release(self.index)


# -- the client's side ----------------------------------------------------------------------------


async def punch_as_client(
    dht: DHT,
    target: bytes,
    *,
    secret: bytes,
    payload: NoisePayload,
    node_address: Address,
    server_address: Address,
    connect: Callable[[int, Address], None],
) -> None:
    """Punch a hole to the server of a finished handshake, then call `connect(socket, address)`.

    Args:
        target: hash of the server's key.
        secret: of the handshake, for the payloads.
        payload: the server's, with the nodes that relay to it.
        node_address: the node that relayed the handshake.
        server_address: the server's address as that node saw it.

    Raises:
        HolepunchFailed, RemoteAborted, BadHolepunchReply, RequestTimeout: no way through.
    """
    punch_socket = _PunchSocket(dht, is_initiator=True, remote_firewall=payload.firewall)
    client = _ClientPunch(dht, punch_socket, target, secret, payload, node_address)
    try:
        async with trio.open_nursery() as nursery:

            async def negotiate() -> None:
                await client.negotiate(server_address)
                await punch_socket.send_probes()
                if not punch_socket.connected.is_set():
                    raise HolepunchFailed("no probe of the peer came through in 10 s")

            nursery.start_soon(punch_socket.sample)
            nursery.start_soon(negotiate)
            await punch_socket.connected.wait()
            address = punch_socket.puncher.connected_address
            assert address is not None
            connect(punch_socket.index, address)
            nursery.cancel_scope.cancel()
    except* DHTError as group:
        raise group.exceptions[0] from None
    finally:
        punch_socket.close()


class _ClientPunch:
    """The rounds of one client."""

    def __init__(
        self,
        dht: DHT,
        punch_socket: _PunchSocket,
        target: bytes,
        secret: bytes,
        payload: NoisePayload,
        node_address: Address,
    ) -> None:
        assert payload.holepunch is not None
        relays = payload.holepunch.relays
        self._id = payload.holepunch.id
        self._dht = dht
        self._socket = punch_socket
        self._target = target
        self._secure = SecurePayload(secret, dht.random_bytes)
        self._client_relay = node_address
        self._server_relay: HolepunchRelay = next(
            (relay for relay in relays if relay.relay_address == node_address), relays[0]
        )
        self._round = 0

    async def negotiate(self, server_address: Address) -> None:
        """Both rounds; returns when probing has started on both sides."""
        token, seen_address = await self._probe_round(server_address)
        same_relay = self._server_relay.relay_address == self._client_relay
        if same_relay and seen_address != server_address:
            # The server has taken another socket since it answered the handshake.
            server_address = seen_address
            self._socket.open_session(server_address)
        await self._punch_round(server_address, token)

    async def _probe_round(self, server_address: Address) -> tuple[bytes, Address]:
        puncher, nat = self._socket.puncher, self._socket.nat
        relay = self._server_relay
        for attempt in range(2):
            if attempt == 0:
                self._socket.open_session(server_address)
            reply, seen_address = await self._exchange(
                HolepunchPayload(
                    firewall=nat.firewall,
                    addresses=nat.addresses,
                    remote_address=server_address if attempt == 0 else None,
                ),
                relay.relay_address,
                relay.peer_address,
            )
            if puncher.remote_firewall == FIREWALL_UNKNOWN:
                await trio.sleep(UNKNOWN_PAUSE)
            await self._socket.analyzed.wait()
            if puncher.remote_firewall != FIREWALL_UNKNOWN and reply.token is not None:
                break
        error: HolepunchFailed | None = None
        if FIREWALL_UNKNOWN in (puncher.remote_firewall, nat.firewall) or reply.token is None:
            error = HolepunchProbeTimeout("one of the two sides cannot tell what NAT it is behind")
        elif puncher.remote_firewall >= FIREWALL_RANDOM and nat.firewall >= FIREWALL_RANDOM:
            error = DoubleRandomizedNATs("both NATs use random ports: only a relay could help")
        if error is not None:
            await self._abort()
            raise error
        assert reply.token is not None
        return reply.token, seen_address

    async def _punch_round(self, server_address: Address, remote_token: bytes) -> None:
        nat = self._socket.nat
        nat.freeze()
        await self._exchange(
            HolepunchPayload(
                firewall=nat.firewall,
                punching=True,
                addresses=nat.addresses,
                token=self._secure.token(server_address),
                remote_token=remote_token,
            ),
            self._client_relay,
            server_address,
        )
        if not self._socket.puncher.remote_punching:
            raise RemoteNotHolepunching("the peer does not punch")
        self._socket.punch()

    async def _abort(self) -> None:
        relay = self._server_relay
        try:
            await self._exchange(
                HolepunchPayload(error=ERROR_ABORTED), relay.relay_address, relay.peer_address
            )
        except DHTError:
            pass  # a courtesy: the peer gives up by itself, too

    async def _exchange(
        self, payload: HolepunchPayload, relay_address: Address, peer_address: Address
    ) -> tuple[HolepunchPayload, Address]:
        """One payload through a node, and the server's; with the address that it came from."""
        payload.round = self._round
        self._round += 1
        message = Holepunch(
            FROM_CLIENT, self._id, self._secure.encrypt(payload), peer_address=peer_address
        )
        response = await self._dht.node.request(
            PEER_HOLEPUNCH,
            target=self._target,
            value=message.encode(),
            to=relay_address,
            socket=self._socket.index,
        )
        try:
            reply = Holepunch.decode_untrusted(response.value or b"")
            if reply.mode != REPLY:
                raise BadHolepunchReply("the node answered with another message")
            answer = self._secure.decrypt_untrusted(reply.payload)
        except RemoteProtocolError as err:
            raise HolepunchInvalid(f"unreadable hole punch answer: {err}") from err
        self._socket.nat.add(response.to, relay_address)
        if answer.error != ERROR_NONE:
            raise RemoteAborted(f"the peer gave up with error {answer.error}")
        echoed = (
            payload.token is not None
            and answer.remote_token is not None
            and hmac.compare_digest(answer.remote_token, payload.token)
        )
        self._socket.puncher.update_remote(
            punching=answer.punching,
            firewall=answer.firewall,
            addresses=answer.addresses,
            verified_host=peer_address[0] if echoed else None,
        )
        return answer, reply.peer_address or relay_address


# -- the server's side ----------------------------------------------------------------------------


class ServerPunch:
    """The server's side of one attempt; opened with the handshake, closed with its memory.

    Args:
        nursery: where sampling and probing run.
        secret: of the handshake, for the payloads.
        remote_firewall: what the client said of itself in the handshake.
        is_relay: whether a node is one that we announced to.
    """

    def __init__(
        self,
        dht: DHT,
        nursery: trio.Nursery,
        *,
        secret: bytes,
        remote_firewall: int,
        is_relay: Callable[[Address], bool],
    ) -> None:
        self._dht = dht
        self._nursery = nursery
        self._secure = SecurePayload(secret, dht.random_bytes)
        self._is_relay = is_relay
        self._socket = _PunchSocket(dht, is_initiator=False, remote_firewall=remote_firewall)
        self._round = 0
        self._pending = 0
        self._scope = trio.CancelScope()
        nursery.start_soon(self._run)

    @property
    def socket(self) -> int:
        """The socket whose outside address the client shall learn."""
        return self._socket.index

    def close(self) -> None:
        """Stop; a connection that has taken the socket keeps it."""
        self._scope.cancel()
        self._socket.analyzed.set()  # lets answers under way end
        self._socket.close()

    async def _run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._socket.sample)
                nursery.start_soon(self._socket.send_probes)

    def receive(self, message: Holepunch, request: IncomingRequest) -> None:
        """Take a hole punch message for this attempt; the answer follows when our NAT is judged."""
        if self._pending >= MAX_PENDING or message.peer_address is None:
            return
        try:
            payload = self._secure.decrypt_untrusted(message.payload)
        except RemoteProtocolError:
            return
        self._pending += 1
        self._nursery.start_soon(self._answer, message, message.peer_address, payload, request)

    async def _answer(
        self,
        message: Holepunch,
        peer_address: Address,
        payload: HolepunchPayload,
        request: IncomingRequest,
    ) -> None:
        try:
            answer = await self._negotiate(peer_address, payload, request)
        finally:
            self._pending -= 1
        if self._scope.cancel_called:
            return
        if answer is None:
            answer = HolepunchPayload(error=ERROR_ABORTED, round=self._round)
        action = answer_holepunch(message, self._secure.encrypt(answer), request.address)
        self._dht.perform(request, action, socket=self._socket.index)

    async def _negotiate(
        self, peer_address: Address, payload: HolepunchPayload, request: IncomingRequest
    ) -> HolepunchPayload | None:
        """Our answer; None gives the attempt up."""
        puncher, nat = self._socket.puncher, self._socket.nat
        if payload.error != ERROR_NONE:
            return None
        from_relay = self._is_relay(request.address)
        token = self._secure.token(peer_address)
        # The token went to that host and came back by a node that we chose: the host is the peer's.
        echoed = (
            from_relay
            and payload.remote_token is not None
            and hmac.compare_digest(token, payload.remote_token)
        )
        if request.socket == self._socket.index:
            nat.add(request.to, request.address)
        if payload.round >= self._round:
            self._round = payload.round
            puncher.update_remote(
                punching=payload.punching,
                firewall=payload.firewall,
                addresses=payload.addresses,
                verified_host=peer_address[0] if echoed else None,
            )
        await self._socket.analyzed.wait()
        if nat.firewall == FIREWALL_UNKNOWN and not puncher.remote_punching:
            return None
        fast_open = payload.remote_address is not None and payload.remote_address in (
            nat.addresses or ()
        )
        if nat.firewall in (FIREWALL_OPEN, FIREWALL_CONSISTENT) and fast_open:
            self._socket.ping(peer_address)
        if puncher.remote_punching:
            try:
                self._socket.punch()
            except HolepunchFailed as err:
                logger.debug("not punching: %s", err)
                return None
        if nat.firewall != FIREWALL_UNKNOWN:
            nat.freeze()
        return HolepunchPayload(
            firewall=nat.firewall,
            round=self._round,
            punching=puncher.punching,
            addresses=nat.addresses,
            token=token if from_relay else None,
            remote_token=payload.token,
        )
