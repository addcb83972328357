"""Service: punches a hole from the client's side.

Two rounds of encrypted payloads go through the nodes that the server announced to: the probe round
tells both sides what kind of NAT the other has and proves their addresses, the punch round starts
the probes (docs/protocol/hyperdht.md section 10; hyperdht lib/connect.js).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.commands.messages import Holepunch, HolepunchRelay, NoisePayload
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import (
    ERROR_ABORTED,
    ERROR_NONE,
    ERROR_TRY_LATER,
    FIREWALL_RANDOM,
    FIREWALL_UNKNOWN,
    FROM_CLIENT,
    PEER_HOLEPUNCH,
    REPLY,
)
from hyperlog.dht.errors import (
    BadHolepunchReply,
    CannotHolepunch,
    DHTError,
    DoubleRandomizedNATs,
    HolepunchFailed,
    HolepunchInvalid,
    HolepunchProbeTimeout,
    RemoteAborted,
    RemoteNotHolepunching,
    RemoteProtocolError,
)
from hyperlog.dht.holepunch.payload import HolepunchPayload, SecurePayload
from hyperlog.dht.holepunch.punches import PunchRecord
from hyperlog.dht.punchsockets import MayPunch, PunchSockets

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT

__all__ = ["punch_as_client"]

UNKNOWN_PAUSE: Final = 1.0  # s that a peer gets to find out its own NAT
ABORT_TIMEOUT: Final = 1.0  # s for telling the peer, which gives up by itself, too
TRY_LATER_MIN: Final = 10.0  # s until the peer is asked again,
TRY_LATER_MAX: Final = 20.0  # at the most
MAX_DELAYS: Final = 40  # about 10 minutes, after which the peer is busy for good


async def punch_as_client(
    dht: DHT,
    target: bytes,
    *,
    secret: bytes,
    payload: NoisePayload,
    node_address: Address,
    server_address: Address,
    connect: Callable[[int, Address], None],
    fast_open: bool = True,
    has_relay: bool = False,
    may_punch: MayPunch | None = None,
    record: PunchRecord | None = None,
) -> None:
    """Punch a hole to the server of a finished handshake, then call `connect(socket, address)`.

    Args:
        target: hash of the server's key.
        secret: of the handshake, for the payloads.
        payload: the server's, with the nodes that relay to it.
        node_address: the node that relayed the handshake.
        server_address: the server's address as that node saw it.
        fast_open: send a probe there at once, so that the server's answer may come through before
            the first round is over.
        has_relay: the peers have a relay meanwhile. Then an attempt that needs random ports waits
            while another one is under way on either side; otherwise it fails.
        may_punch: called with what is known of both NATs; False gives up.
        record: filled in as the attempt goes on.

    Raises:
        HolepunchFailed, RemoteAborted, BadHolepunchReply, RequestTimeout: no way through.
    """
    if payload.holepunch is None or not payload.holepunch.relays:
        raise CannotHolepunch("the peer names no node through which to punch")
    record = record if record is not None else PunchRecord()
    try:
        sockets = PunchSockets(
            dht, is_initiator=True, remote_firewall=payload.firewall, record=record
        )
    except OSError as err:
        raise CannotHolepunch(f"no socket for a hole punch: {err}") from err
    client = _ClientPunch(
        dht,
        sockets,
        target=target,
        secret=secret,
        number=payload.holepunch.id,
        relays=payload.holepunch.relays,
        node_address=node_address,
        fast_open=fast_open,
        has_relay=has_relay,
        may_punch=may_punch,
        record=record,
    )
    failure: DHTError | None = None
    try:
        async with trio.open_nursery() as nursery:

            async def negotiate() -> None:
                nonlocal failure
                try:
                    await client.negotiate(server_address)
                    await sockets.send_probes()
                    if not sockets.connected.is_set():
                        raise HolepunchFailed(
                            f"no probe of the peer came through ({record.probes_sent} sent): a "
                            "firewall drops them. A relay can help, or an open UDP port on one side"
                        )
                except DHTError as err:
                    # Not out of the nursery: a cancellation in the same moment would be grouped
                    # with it, and nobody catches that.
                    if not sockets.connected.is_set():
                        failure = err
                        nursery.cancel_scope.cancel()

            nursery.start_soon(sockets.sample)
            nursery.start_soon(negotiate)
            await sockets.connected.wait()
            path = sockets.path()
            assert path is not None
            record.connected = True
            connect(*path)
            nursery.cancel_scope.cancel()
    finally:
        sockets.close()
    if failure is not None:
        raise failure


class _ClientPunch:
    """The rounds of one client."""

    def __init__(
        self,
        dht: DHT,
        sockets: PunchSockets,
        *,
        target: bytes,
        secret: bytes,
        number: int,
        relays: list[HolepunchRelay],
        node_address: Address,
        fast_open: bool,
        has_relay: bool,
        may_punch: MayPunch | None,
        record: PunchRecord,
    ) -> None:
        self._dht = dht
        self._sockets = sockets
        self._puncher = sockets.puncher
        self._target = target
        self._secure = SecurePayload(secret, dht.random_bytes)
        self._number = number
        self._client_relay = node_address
        self._server_relay = next(
            (relay for relay in relays if relay.relay_address == node_address), relays[0]
        )
        self._fast_open = fast_open
        self._has_relay = has_relay
        self._may_punch = may_punch
        self._record = record
        self._round = 0

    async def negotiate(self, server_address: Address) -> None:
        """Both rounds; returns when probing has started on both sides."""
        token, seen_address = await self._probe_round(server_address)
        same_relay = self._server_relay.relay_address == self._client_relay
        if same_relay and seen_address != server_address:
            # The server has taken another socket since it answered the handshake. Through another
            # node that socket could not be reached: the server has not sent anything there.
            server_address = seen_address
            self._sockets.open_session(server_address)
        if not self._sockets.permitted(self._may_punch):
            await self._abort(HolepunchFailed("the caller forbade to punch a hole"))
        await self._punch_round(server_address, token)

    # -- the probe round --------------------------------------------------------------------------

    async def _probe_round(self, server_address: Address) -> tuple[bytes | None, Address]:
        """What the server's NAT is; its token for our host, and where its answer came from."""
        puncher = self._puncher
        may_repeat = True
        while True:
            token, seen_address = await self._probe(server_address)
            if puncher.remote_firewall == FIREWALL_UNKNOWN:
                await trio.sleep(UNKNOWN_PAUSE)
            stable = await self._sockets.analyze(reopen=False)
            if not stable and await self._sockets.analyze(reopen=True):
                may_repeat = False  # the server has to see this socket, but that is all
                continue
            if not may_repeat or (puncher.remote_firewall != FIREWALL_UNKNOWN and token):
                break
            may_repeat = False
        local, remote = puncher.nat.firewall, puncher.remote_firewall
        if FIREWALL_UNKNOWN in (local, remote):
            whose = "our" if local == FIREWALL_UNKNOWN else "the peer's"
            await self._abort(
                HolepunchProbeTimeout(
                    f"too few nodes answered to tell what NAT is on {whose} side: try again, and "
                    "check that the network is not losing UDP"
                )
            )
        if local >= FIREWALL_RANDOM and remote >= FIREWALL_RANDOM:
            await self._abort(
                DoubleRandomizedNATs(
                    "both NATs give every destination another port, so that neither side knows "
                    "where to send: connect through a relay, or open a UDP port on one side"
                )
            )
        return token, seen_address

    async def _probe(self, server_address: Address) -> tuple[bytes | None, Address]:
        if self._fast_open:
            self._sockets.open_session(server_address)
        relay = self._server_relay
        answer, seen_address = await self._exchange(
            self._payload(remote_address=server_address if self._fast_open else None),
            relay.relay_address,
            relay.peer_address,
        )
        return answer.token, seen_address

    async def _abort(self, error: HolepunchFailed) -> None:
        """Tell the peer that it can stop, and raise the error."""
        relay = self._server_relay
        with trio.move_on_after(ABORT_TIMEOUT):
            try:
                await self._exchange(
                    HolepunchPayload(error=ERROR_ABORTED), relay.relay_address, relay.peer_address
                )
            except DHTError:
                pass  # a courtesy
        raise error

    # -- the punch round --------------------------------------------------------------------------

    async def _punch_round(self, server_address: Address, remote_token: bytes | None) -> None:
        # The peer is told the final state now; changing it later would confuse both.
        self._puncher.nat.freeze()
        proof = self._secure.token(server_address)
        proven = False
        while True:
            while not self._sockets.reserve():
                if not proven and self._has_relay:
                    # Tokens age with the attempt: exchange them before the pause.
                    proven = True
                    await self._exchange(
                        self._payload(token=proof, remote_token=remote_token),
                        self._client_relay,
                        server_address,
                    )
                await self._delay("another hole punch of ours that needs random ports")
            # Addresses that are proven need no second proof, so that the node which the server
            # chose can be used: it knows the way even when the server's socket has changed.
            relay = self._server_relay
            to = (relay.relay_address, relay.peer_address)
            payload = self._payload(punching=True, remote_token=remote_token)
            if not proven:
                to = (self._client_relay, server_address)
                payload.token = proof
            answer, _ = await self._exchange(payload, *to)
            if answer.error != ERROR_TRY_LATER:
                break
            proven = True
            self._sockets.give_back_reservation()
            await self._delay("another one")
        if not self._puncher.remote_punching:
            raise RemoteNotHolepunching("the peer answered, but does not punch: try again")
        await self._sockets.punch()

    async def _delay(self, what: str) -> None:
        self._dht.punches.try_later += 1
        if not self._has_relay:
            raise HolepunchFailed(f"{what} is under way: try again in 20 s, or use a relay")
        if self._record.delays >= MAX_DELAYS:
            raise HolepunchFailed("other hole punches kept this one waiting for too long")
        self._record.delays += 1
        await trio.sleep(self._sockets.rng.uniform(TRY_LATER_MIN, TRY_LATER_MAX))

    # -- payloads ---------------------------------------------------------------------------------

    def _payload(
        self,
        *,
        punching: bool = False,
        remote_address: Address | None = None,
        token: bytes | None = None,
        remote_token: bytes | None = None,
    ) -> HolepunchPayload:
        nat = self._puncher.nat
        return HolepunchPayload(
            firewall=nat.firewall,
            punching=punching,
            addresses=nat.addresses,
            remote_address=remote_address,
            token=token,
            remote_token=remote_token,
        )

    async def _exchange(
        self, payload: HolepunchPayload, relay_address: Address, peer_address: Address
    ) -> tuple[HolepunchPayload, Address]:
        """One payload through a node, and the server's; with the address that it came from.

        The server's error is NONE, or TRY_LATER while there is a relay.
        """
        payload.round = self._round
        self._round += 1
        message = Holepunch(
            FROM_CLIENT, self._number, self._secure.encrypt(payload), peer_address=peer_address
        )
        response = await self._dht.node.request(
            PEER_HOLEPUNCH,
            target=self._target,
            value=message.encode(),
            to=relay_address,
            socket=self._sockets.first,
        )
        try:
            reply = Holepunch.decode_untrusted(response.value or b"")
            if reply.mode != REPLY:
                raise BadHolepunchReply("the node answered with another message")
            answer = self._secure.decrypt_untrusted(reply.payload)
        except RemoteProtocolError as err:
            raise HolepunchInvalid(f"unreadable hole punch answer: {err}") from err
        self._record.rounds += 1
        self._sockets.add_sample(response.to, relay_address)
        seen_address = reply.peer_address or relay_address
        if answer.error == ERROR_TRY_LATER and not (self._has_relay and payload.punching):
            raise RemoteAborted(
                "the peer is busy with another hole punch that needs random ports: try again in "
                "20 s, or use a relay"
            )
        if answer.error not in (ERROR_NONE, ERROR_TRY_LATER):
            raise RemoteAborted(f"the peer gave up with error {answer.error}")
        # In a TRY_LATER, too: the next message carries no token. (Compat: hyperdht 6.34.0
        # lib/connect.js does not look there, and then has no verified address to send probes to.)
        echoed = (
            payload.token is not None
            and answer.remote_token is not None
            and hmac.compare_digest(answer.remote_token, payload.token)
        )
        self._puncher.update_remote(
            punching=answer.punching,
            firewall=answer.firewall,
            addresses=answer.addresses,
            verified_host=peer_address[0] if echoed else None,
        )
        return answer, seen_address
