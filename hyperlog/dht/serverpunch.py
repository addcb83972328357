"""Service: punches a hole from the server's side.

The server answers what the client asks through nodes: it tells what NAT it is behind, proves
addresses with tokens, and probes when the client says that it does
(docs/protocol/hyperdht.md section 10; hyperdht lib/server.js).
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.commands.messages import Holepunch
from hyperlog.dht.commands.router import answer_holepunch
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import (
    ERROR_ABORTED,
    ERROR_NONE,
    ERROR_TRY_LATER,
    FIREWALL_CONSISTENT,
    FIREWALL_OPEN,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.errors import HolepunchFailed, RemoteProtocolError
from hyperlog.dht.holepunch.payload import HolepunchPayload, SecurePayload
from hyperlog.dht.holepunch.punches import PunchRecord
from hyperlog.dht.punchsockets import MayPunch, PunchSockets

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT
    from hyperlog.dht.node import IncomingRequest

__all__ = ["ServerPunch"]

logger = logging.getLogger("hyperlog.dht.serverpunch")

MAX_PENDING: Final = 8  # hole punch messages of one attempt handled at a time
FIRST_TIMEOUT: Final = 10.0  # s for the client to start punching, hyperdht lib/server.js
NEXT_TIMEOUT: Final = 30.0  # s between its messages while there is a relay: it pauses up to 20 s
MAX_DURATION: Final = 900.0  # s that a client may ask again and again


class ServerPunch:
    """The server's side of one attempt; opened with the handshake, closed with its memory.

    Args:
        nursery: where sampling and probing run.
        secret: of the handshake, for the payloads.
        remote_firewall: what the client said of itself in the handshake.
        is_relay: whether a node is one that we announced to.
        has_relay: the peers have a relay meanwhile: a client that comes while we are busy with
            another random punch may ask again. Otherwise that ends the attempt.
        may_punch: called with what is known of both NATs; False gives up.

    Raises:
        OSError: the system has no socket for us.
    """

    def __init__(
        self,
        dht: DHT,
        nursery: trio.Nursery,
        *,
        secret: bytes,
        remote_firewall: int,
        is_relay: Callable[[Address], bool],
        has_relay: bool = False,
        may_punch: MayPunch | None = None,
    ) -> None:
        self.record = PunchRecord()
        """How it goes; kept up to date until `close`."""
        self._dht = dht
        self._nursery = nursery
        self._secure = SecurePayload(secret, dht.random_bytes)
        self._is_relay = is_relay
        self._has_relay = has_relay
        self._may_punch = may_punch
        self._sockets = PunchSockets(
            dht, is_initiator=False, remote_firewall=remote_firewall, record=self.record
        )
        self._round = 0
        self._pending = 0
        now = trio.current_time()
        self._idle_at = now + (NEXT_TIMEOUT if has_relay else FIRST_TIMEOUT)
        self._ends_at = now + MAX_DURATION
        self._scope = trio.CancelScope()
        nursery.start_soon(self._run)

    @property
    def socket(self) -> int:
        """The socket whose outside address the client shall learn; another one after a while."""
        return self._sockets.first

    @property
    def active(self) -> bool:
        """Whether something may still come of it: keep it, and the handshake, until then."""
        return not self._sockets.closed

    def close(self, *, through: int | None = None) -> None:
        """Stop; a connection that has taken a socket keeps it.

        Args:
            through: the socket on which the client has connected, ours or another.
        """
        if self.active:
            self.record.connected = through is not None and self._sockets.owns(through)
            self._scope.cancel()
            self._sockets.close()

    async def _run(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._sockets.sample)
                    nursery.start_soon(self._wait_idle, nursery.cancel_scope)
                    await self._sockets.send_probes()
                    nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def _wait_idle(self, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep_until(self._idle_at)
            if self._sockets.puncher.punching:
                return  # which ends by itself
            if trio.current_time() >= self._idle_at:
                scope.cancel()

    # -- what the client asks ---------------------------------------------------------------------

    def receive(self, message: Holepunch, request: IncomingRequest) -> None:
        """Take a hole punch message for this attempt; the answer follows when our NAT is judged."""
        if self._pending >= MAX_PENDING or message.peer_address is None or not self.active:
            return
        try:
            payload = self._secure.decrypt_untrusted(message.payload)
        except RemoteProtocolError:
            return
        if self._has_relay:
            self._idle_at = min(trio.current_time() + NEXT_TIMEOUT, self._ends_at)
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
        except HolepunchFailed as err:
            logger.debug("not punching: %s", err)
            answer = self._refusal()
        finally:
            self._pending -= 1
        if not self.active:
            return
        self.record.rounds += 1
        final = answer.error != ERROR_NONE and not (
            answer.error == ERROR_TRY_LATER and self._has_relay
        )
        action = answer_holepunch(message, self._secure.encrypt(answer), request.address)
        # A socket that is closed now may not have sent yet.
        socket = self._dht.node.request_socket if final else self._sockets.first
        if final:
            self.close()
        self._dht.perform(request, action, socket=socket)

    async def _negotiate(
        self, peer_address: Address, payload: HolepunchPayload, request: IncomingRequest
    ) -> HolepunchPayload:
        """Our answer.

        Raises:
            HolepunchFailed: the attempt cannot lead to anything.
        """
        puncher = self._sockets.puncher
        if payload.error != ERROR_NONE:
            return self._refusal()
        from_relay = self._is_relay(request.address)
        token = self._secure.token(peer_address)
        # The token went to that host and came back by a node that we chose: the host is the peer's.
        echoed = (
            from_relay
            and payload.remote_token is not None
            and hmac.compare_digest(token, payload.remote_token)
        )
        if request.socket == self._sockets.first:
            self._sockets.add_sample(request.to, request.address)
        if payload.round >= self._round:
            self._round = payload.round
            puncher.update_remote(
                punching=payload.punching,
                firewall=payload.firewall,
                addresses=payload.addresses,
                verified_host=peer_address[0] if echoed else None,
            )
        stable = await self._sockets.analyze(reopen=False)
        if not stable and not puncher.remote_punching:
            stable = await self._sockets.analyze(reopen=True)
            if not stable:
                return self._refusal()
        nat = puncher.nat
        if (
            nat.firewall in (FIREWALL_OPEN, FIREWALL_CONSISTENT)
            and payload.remote_address is not None
            and payload.remote_address in (nat.addresses or ())
        ):
            # The client has opened its NAT for us already: this may be all that it takes.
            self._sockets.ping(peer_address)
        error = ERROR_NONE
        if puncher.remote_punching:
            error = await self._punch()
            if error == ERROR_TRY_LATER and not self._has_relay:
                return self._refusal(error)
        if nat.firewall != FIREWALL_UNKNOWN:
            nat.freeze()  # the peer is told
        return HolepunchPayload(
            error=error,
            firewall=nat.firewall,
            round=self._round,
            punching=puncher.punching,
            addresses=nat.addresses,
            token=token if from_relay else None,
            remote_token=payload.token,
        )

    async def _punch(self) -> int:
        """Start probing; an ERROR_* of constants.py."""
        if not self._sockets.permitted(self._may_punch):
            raise HolepunchFailed("the owner of the listener forbade it")
        if not self._sockets.reserve():
            self._dht.punches.try_later += 1
            self.record.delays += 1
            return ERROR_TRY_LATER
        await self._sockets.punch()
        return ERROR_NONE

    def _refusal(self, error: int = ERROR_ABORTED) -> HolepunchPayload:
        return HolepunchPayload(error=error, round=self._round)
