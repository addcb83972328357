"""Service: from a public key to an open connection.

Shake hands with the peer (handshaking.py), then open the UDX stream on the best path that both
sides have. What the handshake tells of both sides decides:

    the peer itself answered, or it is open       start, at its address
    we are open                                   the peer starts: wait for its first packet
    otherwise                                     on the same network its LAN address is tried,
                                                  beside a hole punch

Beside the last two goes a relay, if one side names one. Whatever works first is the connection; a
direct way that works later takes over from the relay (paths.py).

Source: hyperdht lib/connect.js; docs/protocol/hyperdht.md section 9.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.clientpunch import punch_as_client
from hyperlog.dht.commands.handshake import HandshakeInitiator
from hyperlog.dht.commands.messages import RelayThrough
from hyperlog.dht.compact import Address
from hyperlog.dht.connection import Connection, Opening
from hyperlog.dht.constants import (
    FIREWALL_OPEN,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.errors import (
    CannotHolepunch,
    ConnectError,
    DHTError,
    HolepunchFailed,
    PeerConnectionFailed,
    RelayAborted,
    RelayError,
)
from hyperlog.dht.handshaking import ConnectOptions, Handshaken, Handshaking
from hyperlog.dht.holepunch.punches import PunchRecord
from hyperlog.dht.interfaces import is_bogon, is_private, is_reserved, match_address
from hyperlog.dht.ipv6 import is_neighbourly, knock
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.noise.secretstream import SecretStreamCore
from hyperlog.dht.paths import RELAY_TIMEOUT, RELAYED, StreamPaths, choose_relay
from hyperlog.dht.relaying import connect_through_relay
from hyperlog.dht.sockets import SERVER, SERVER6

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT

__all__ = ["ConnectAttempt", "ConnectCounts", "ConnectOptions", "ConnectStatistics"]

logger = logging.getLogger("hyperlog.dht.connect")

PASSIVE_TIMEOUT: Final = 10.0  # s that we wait for the server's first packet, or for its hello
LAN_HEAD_START: Final = 0.25  # s that a LAN address has before a hole is punched
MAX_KNOCKED: Final = 4  # IPv6 addresses of a peer
KNOCKS: Final = 3  # at each of them
KNOCK_INTERVAL: Final = 0.2  # s
PUNCH_TIMEOUT: Final = 45.0  # s for a hole punch after the relay has failed: 35 are the longest


@dataclass(frozen=True, slots=True)
class ConnectStatistics:
    """What became of the calls of `DHT.connect`, those to relays included."""

    opened: dict[str, int]
    """by path: direct, lan, punched or relayed"""
    upgraded: int
    """relayed connections that have changed over to a direct way"""
    failed: dict[str, int]
    """by the error's code"""


class ConnectCounts:
    """Of one node."""

    def __init__(self) -> None:
        self.upgraded = 0
        self._opened: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def note_opened(self, connection: Connection) -> None:
        self._opened[connection.path] += 1

    def note_failed(self, error: DHTError) -> None:
        self._failed[error.code] += 1

    def statistics(self) -> ConnectStatistics:
        return ConnectStatistics(dict(self._opened), self.upgraded, dict(self._failed))


class ConnectAttempt:
    """One call of `DHT.connect`."""

    def __init__(
        self,
        dht: DHT,
        remote_public_key: bytes,
        key_pair: KeyPair,
        options: ConnectOptions,
    ) -> None:
        self._dht = dht
        self._remote_public_key = remote_public_key
        self._key_pair = key_pair
        self._options = options
        relay_key = choose_relay(options.relay_through, dht.random_bytes)
        self._relay_through: RelayThrough | None = None
        if relay_key is not None:
            self._relay_through = RelayThrough(relay_key, dht.random_bytes(32))
        self._target = generic_hash(remote_public_key)
        self._initiator = HandshakeInitiator(key_pair, remote_public_key, dht.random_bytes)
        self._stream = dht.create_stream()
        self._stream.on_closed = self._decide
        self._paths = StreamPaths(self._stream)
        self._paths.on_path = self._take_path
        self._decided = trio.Event()
        """There is a path, or there will be none."""
        self._seeking = trio.CancelScope()
        self._lan_tried = trio.Event()
        self._own_firewall = FIREWALL_UNKNOWN
        self._reuses_socket = False
        self._connection: Connection | None = None
        self._errors: list[DHTError] = []
        self._record = Opening()
        self._started_at = trio.current_time()

    async def run(self) -> Connection:
        """Connect.

        Raises:
            PeerNotFound: no node has a record of the key.
            PeerConnectionFailed: it is announced, but no handshake came through, or no hello.
            ConnectError: the peer refuses, or no path was found; see hyperlog.dht.errors.
        """
        try:
            handshaken = await self._shake_hands()
            await self._open_path(handshaken)
            return await self._open_connection(handshaken)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up what became no connection, also when `run` was never called."""
        self._seeking.cancel()
        self._paths.close()
        self._stream.destroy()

    def _decide(self) -> None:
        self._decided.set()

    async def _shake_hands(self) -> Handshaken:
        handshaking = Handshaking(
            self._dht,
            self._initiator,
            self._options,
            stream_id=self._stream.core.local_id,
            relay_through=self._relay_through,
            record=self._record,
        )
        handshaken = await handshaking.run()
        self._own_firewall = handshaking.own_firewall
        udx = handshaken.payload.udx
        assert udx is not None
        self._reuses_socket = self._options.reusable_socket and udx.reusable_socket
        return handshaken

    # -- the path ---------------------------------------------------------------------------------

    async def _open_path(self, shaken: Handshaken) -> None:
        """Connect the stream, or find out that there is no way."""
        payload, paths = shaken.payload, self._paths
        assert payload.udx is not None
        self._record.remote_firewall = payload.firewall
        paths.expect(payload.udx.id, through_node=shaken.relayed)
        relays = payload.holepunch.relays if payload.holepunch is not None else []
        if not shaken.relayed:
            paths.take(shaken.socket, shaken.server_address)
        elif (payload.firewall == FIREWALL_OPEN or not relays) and not self._near(shaken):
            self._take_open(shaken)
        if not paths.direct and not self._stream.finished:
            # Goes on behind a relayed connection, which is open before it ends.
            self._dht.start_soon(self._seek, shaken)
            await self._decided.wait()
        if paths.path is None:
            raise self._failure()

    async def _seek(self, shaken: Handshaken) -> None:
        ways: list[Callable[[Handshaken], Awaitable[None]]] = [self._try_relay]
        if shaken.payload.firewall == FIREWALL_OPEN:
            ways = [self._try_lan, self._try_open]
        elif self._own_firewall == FIREWALL_OPEN:
            ways.append(self._wait_for_peer)
        else:
            ways += [self._try_lan, self._try_ipv6, self._try_punch]

        async def attempt(way: Callable[[Handshaken], Awaitable[None]]) -> None:
            try:
                await way(shaken)
            except DHTError as err:
                logger.debug("%s failed: %s", way.__name__, err)
                self._errors.append(err)
                if way == self._try_relay and self._paths.path is None:
                    # A hole punch may be waiting for its turn, which makes sense with a relay only.
                    self._seeking.deadline = trio.current_time() + PUNCH_TIMEOUT

        with self._seeking:
            async with trio.open_nursery() as nursery:
                for way in ways:
                    nursery.start_soon(attempt, way)
        self._decide()

    def _take_open(self, shaken: Handshaken) -> None:
        """Connect to a peer that says that everybody can reach it."""
        public = [a for a in shaken.payload.addresses4 if not is_bogon(a[0])]
        address = public[0] if public else shaken.server_address
        self._paths.take(self._dht.node.request_socket, address)

    async def _try_open(self, shaken: Handshaken) -> None:
        """The same with a peer behind our own router, which may not turn our packets round."""
        with trio.move_on_after(LAN_HEAD_START):
            await self._lan_tried.wait()
        self._take_open(shaken)

    def _near(self, shaken: Handshaken) -> bool:
        """Whether the peer is open, and has an address on a network of ours, too."""
        outside = shaken.server_address[0]
        if shaken.payload.firewall != FIREWALL_OPEN or is_bogon(outside):
            return False
        if not self._on_same_network(shaken):
            return False
        private = [a for a in shaken.payload.addresses4 if is_private(a[0])]
        own = self._dht.local_addresses.all()
        return match_address(own, private) is not None

    async def _wait_for_peer(self, shaken: Handshaken) -> None:
        """We are open: the peer has our address and starts."""
        await trio.sleep(PASSIVE_TIMEOUT)
        raise HolepunchFailed(
            "the peer did not reach us within 10 s, at an address that others reach us at: is a "
            "firewall of its network in the way of UDP?"
        )

    async def _try_lan(self, shaken: Handshaken) -> None:
        address = self._lan_address(shaken)
        try:
            if address is not None:
                await self._dht.node.ping(address)
                self._paths.take(SERVER, address)
        finally:
            self._lan_tried.set()

    def _on_same_network(self, shaken: Handshaken) -> bool:
        # Both sides have the same outside address: one network, or one machine.
        return (
            self._options.local_connection and shaken.client_address[0] == shaken.server_address[0]
        )

    async def _try_ipv6(self, shaken: Handshaken) -> None:
        """Knock at the peer's IPv6 addresses; the packet that it sends back makes the path."""
        assert shaken.payload.udx is not None
        sockets = self._dht.sockets
        if not self._on_same_network(shaken) or not sockets.is_open(SERVER6):
            return
        addresses = [a for a in shaken.payload.addresses6 if is_neighbourly(a[0])][:MAX_KNOCKED]
        if not addresses:
            return
        with trio.move_on_after(LAN_HEAD_START / 2):
            await self._lan_tried.wait()
        packet = knock(shaken.payload.udx.id)
        for _ in range(KNOCKS):
            for address in addresses:
                sockets.send(SERVER6, address, packet)
            await trio.sleep(KNOCK_INTERVAL)

    def _lan_address(self, shaken: Handshaken) -> Address | None:
        if not self._on_same_network(shaken):
            return None
        candidates = [a for a in shaken.payload.addresses4 if not is_reserved(a[0])]
        own = self._dht.local_addresses.all()
        return match_address(own, candidates) or next(iter(candidates), None)

    async def _try_punch(self, shaken: Handshaken) -> None:
        # A hole punch takes sockets and a dozen datagrams on both sides: not for a neighbour.
        with trio.move_on_after(LAN_HEAD_START):
            await self._lan_tried.wait()
        record = PunchRecord()
        self._record.punches += 1
        try:
            await punch_as_client(
                self._dht,
                self._target,
                secret=self._initiator.holepunch_secret,
                payload=shaken.payload,
                node_address=shaken.node_address,
                server_address=shaken.server_address,
                connect=self._paths.take,
                fast_open=self._options.fast_open,
                has_relay=self._relay_through is not None or bool(shaken.payload.relay_through),
                may_punch=self._options.holepunch,
                record=record,
            )
        finally:
            self._record.remote_firewall = record.remote_firewall or self._record.remote_firewall

    async def _try_relay(self, shaken: Handshaken) -> None:
        # What the server says goes: it has to meet us there.
        relay_through = shaken.payload.relay_through or self._relay_through
        if relay_through is None:
            return
        self._record.relays += 1
        try:
            with trio.fail_after(RELAY_TIMEOUT):
                relay = await connect_through_relay(
                    self._dht,
                    relay_through.public_key,
                    token=relay_through.token,
                    is_initiator=relay_through is self._relay_through,
                    stream_id=self._stream.core.local_id,
                )
        except trio.TooSlowError:
            raise RelayAborted(
                f"the peer did not come to the relay within {RELAY_TIMEOUT:g} s"
            ) from None
        self._paths.take_relayed(relay)

    def _take_path(self, path: str) -> None:
        if path != RELAYED:
            self._seeking.cancel()
        if self._connection is not None:
            self._connection.set_path(path)
            self._dht.connects.upgraded += 1
            self._note_route(self._connection)
        self._decide()

    def _failure(self) -> DHTError:
        """Why there is no path."""
        if self._stream.finished:
            return PeerConnectionFailed("the peer broke the connection off at its start")
        relays = [error for error in self._errors if isinstance(error, RelayError)]
        others = [error for error in self._errors if error not in relays]
        # A hole punch tells more than a ping on the LAN that got no answer.
        others.sort(key=lambda error: not isinstance(error, ConnectError))
        if others and relays:
            others[0].add_note(f"The relay was of no help either: {relays[0]}")
        for error in others + relays:
            if isinstance(error, ConnectError):
                return error
        error = CannotHolepunch("no path to the peer was found")
        error.__cause__ = self._errors[0] if self._errors else None
        return error

    # -- the connection ---------------------------------------------------------------------------

    async def _open_connection(self, shaken: Handshaken) -> Connection:
        result = self._initiator.result()
        assert self._paths.path is not None
        try:
            connection = self._connection = Connection(
                self._stream,
                SecretStreamCore(result, random_bytes=self._dht.random_bytes),
                public_key=self._key_pair.public_key,
                remote_public_key=self._remote_public_key,
                handshake_hash=result.handshake_hash,
                is_initiator=True,
                path=self._paths.path,
                opening=self._record,
            )
            connection.when_closed(self._seeking.cancel)
            connection.when_closed(self._paths.close)
            with trio.fail_after(PASSIVE_TIMEOUT):
                await connection.opened()
        except trio.TooSlowError as err:
            raise PeerConnectionFailed("the peer answered the handshake but sends nothing") from err
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            # Closed: not by us, but with the node, and DHT.connect says so then.
            raise PeerConnectionFailed("the peer broke the connection off at its start") from err
        self._record.seconds = trio.current_time() - self._started_at
        self._dht.remember_relays(
            self._remote_public_key, shaken.payload.relay_addresses or [shaken.node_address]
        )
        self._note_route(connection)
        return connection

    def _note_route(self, connection: Connection) -> None:
        if connection.path != RELAYED and self._reuses_socket:
            self._dht.routes.add(connection)
