"""Service: a HyperDHT node. `open_dht` runs one; its DHT object connects, listens and looks up.

Source: hyperdht index.js; docs/protocol/hyperdht.md.
"""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from hyperlog.dht import discovery, storage
from hyperlog.dht.acceptance import AcceptOptions
from hyperlog.dht.commandcounts import CommandStatistics, command_statistics
from hyperlog.dht.commands import router as routing
from hyperlog.dht.commands.messages import Peer
from hyperlog.dht.commands.router import Router
from hyperlog.dht.commands.store import SERVED, Store
from hyperlog.dht.compact import Address
from hyperlog.dht.connect import ConnectAttempt, ConnectCounts, ConnectOptions, ConnectStatistics
from hyperlog.dht.connection import Connection
from hyperlog.dht.constants import (
    FIND_PEER,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
)
from hyperlog.dht.errors import (
    DHTError,
    KeyPairInUse,
    NodeDestroyed,
    Suspended,
)
from hyperlog.dht.holepunch.punches import Punches, PunchStatistics
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.lan import LocalAddresses
from hyperlog.dht.listener import Admit, Firewall, Listener, ListenerStatistics
from hyperlog.dht.memory import MemoryStatistics, ReceiveMemory
from hyperlog.dht.node import IncomingRequest, RPCNode, RPCStatistics
from hyperlog.dht.paths import RelayChoice
from hyperlog.dht.pool import MAX_POOLED, ConnectionPool
from hyperlog.dht.publickey import decode_public_key
from hyperlog.dht.punchsockets import MayPunch
from hyperlog.dht.routes import Routes
from hyperlog.dht.rpc.messages import Response
from hyperlog.dht.sockets import SERVER, Sockets, SocketsStatistics
from hyperlog.dht.storage import ImmutableValue, MutableValue, StoredImmutable, StoredMutable
from hyperlog.dht.streams import UDXStream
from hyperlog.dht.udx.stream import DEFAULT_WINDOW, UDXStreamCore

__all__ = ["DHT", "DHTStatistics"]

logger = logging.getLogger("hyperlog.dht")

T = TypeVar("T")

MAX_RELAYS_CACHED: Final = 3  # of one peer: what an honest one names
MAX_RELAY_CACHE: Final = 512  # peers whose relay nodes are remembered, hyperdht index.js
TRIAL_TIME: Final = 4.0  # s for a peer to show that it still reaches us elsewhere
SHUTDOWN_TIMEOUT: Final = 3.0  # s for withdrawing announcements when the node closes


@dataclass(frozen=True, slots=True)
class DHTStatistics:
    """One node, now."""

    address: Address
    remote_address: Address | None
    """our address as the internet sees it, when the node is reachable there"""
    rpc: RPCStatistics
    commands: dict[str, CommandStatistics]
    """requests of others by the name of the command; "UNKNOWN" for all that no node knows"""
    sockets: SocketsStatistics
    memory: MemoryStatistics
    connects: ConnectStatistics
    """What became of calls of `connect`."""
    punches: PunchStatistics
    listeners: tuple[ListenerStatistics, ...]


class DHT:
    """A running HyperDHT node; made by `open_dht`."""

    def __init__(
        self,
        sockets: Sockets,
        node: RPCNode,
        *,
        key_pair: KeyPair,
        random_bytes: Callable[[int], bytes],
        rng: random.Random,
    ) -> None:
        self.sockets = sockets
        self.node = node
        self.key_pair = key_pair
        """Identity that `connect` shows when it is not given another."""
        self.random_bytes = random_bytes
        self.memory = ReceiveMemory()
        """What the connections that listeners accept may hold."""
        self.local_addresses = LocalAddresses(sockets)
        """Where peers on our own network reach us."""
        self.routes = Routes(sockets)
        """Ways that can be gone again."""
        self.connects = ConnectCounts()
        """What became of our own calls of `connect`."""
        self.punches = Punches()
        """What all hole punches of this node share."""
        self._router = Router()
        self._store = Store(self._router, rng=rng)
        self._listeners: dict[bytes, Listener] = {}
        self._relay_cache: OrderedDict[bytes, list[Address]] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._suspended = False
        self._suspending = trio.Lock()
        self._attempts: set[trio.CancelScope] = set()
        node.on_request = self._on_request
        node.answer_at_once(self._store.reads)
        node.on_network_change = self._refresh_announcements
        node.on_disruption = self._survive_disruption
        sockets.on_volume = self.memory.check

    # -- what it is -------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """Local address of the server socket, where other nodes reach this one."""
        return self.sockets.local_address(SERVER)

    def remote_address(self) -> Address | None:
        """Our address as the internet sees it; None while unknown, or behind a NAT."""
        return self.node.remote_address()

    async def bootstrapped(self) -> None:
        """Return when the node has joined the network, or runs without any other node."""
        await self.node.bootstrapped.wait()

    def statistics(self) -> DHTStatistics:
        return DHTStatistics(
            address=self.address,
            remote_address=self.remote_address(),
            rpc=self.node.statistics(),
            commands=command_statistics(self.node.tallies),
            sockets=self.sockets.statistics(),
            memory=self.memory.statistics(),
            connects=self.connects.statistics(),
            punches=self.punches.statistics(),
            listeners=tuple(listener.statistics() for listener in self._listeners.values()),
        )

    # -- connections ------------------------------------------------------------------------------

    async def connect(
        self,
        remote_public_key: bytes | str,
        *,
        key_pair: KeyPair | None = None,
        relay_addresses: Sequence[Address] = (),
        relay_through: RelayChoice = None,
        local_connection: bool = True,
        fast_open: bool = True,
        reusable_socket: bool = False,
        holepunch: MayPunch | None = None,
    ) -> Connection:
        """Open an encrypted connection to the holder of a public key.

        The key is 32 bytes, 64 hexadecimal digits, z-base-32, or a HyperDHT address with nodes in
        it that go for `relay_addresses`; see publickey.py. Limit the time by a cancel scope; by
        itself an attempt ends after about 20 s, or 50 s where NATs use random ports.

        Args:
            key_pair: whom the peer gets to see; the node's own by default.
            relay_addresses: nodes known to reach the peer, or the peer's own node; they are tried
                beside the search.
            relay_through: the key of a relay to go through until there is a direct way, several to
                choose one of, or a callable that gives either. What the peer's side names goes
                before it.
            local_connection: False keeps LAN addresses out of it.
            fast_open: False leaves the first probe of a hole punch to its second round.
            reusable_socket: keep the way for the next connection, if the peer says the same, and
                go a way that was kept. It outlives its last connection by 3 s.
            holepunch: called with the NATs of the peer and of us (FIREWALL_*) and the addresses of
                both before a hole is punched; False leaves it to the other ways.

        Raises:
            LocalProtocolError: that is no public key.
            NodeDestroyed: the node is closed, or closes meanwhile.
            Suspended: the node is suspended, or is meanwhile.
            ConnectError: PeerNotFound, PeerConnectionFailed, HolepunchFailed and so on.
        """
        self._check_running()
        public_key, named = decode_public_key(remote_public_key)
        options = ConnectOptions(
            relay_addresses=list(relay_addresses) or named or self._known_relays(public_key),
            relay_through=relay_through,
            local_connection=local_connection,
            fast_open=fast_open,
            reusable_socket=reusable_socket,
            holepunch=holepunch,
        )
        attempt = ConnectAttempt(self, public_key, key_pair or self.key_pair, options)
        try:
            connection = await self._run_unless_suspended(attempt)
        except DHTError as err:
            if self._closed:  # that it found nobody says nothing then
                raise NodeDestroyed("the node was closed meanwhile") from err
            self.connects.note_failed(err)
            raise
        self.connects.note_opened(connection)
        return connection

    async def _run_unless_suspended(self, attempt: ConnectAttempt) -> Connection:
        if not self._suspended:
            with trio.CancelScope() as scope:
                self._attempts.add(scope)
                try:
                    return await attempt.run()
                finally:
                    self._attempts.discard(scope)
        attempt.close()
        raise Suspended("the node is suspended: connect again when it has been resumed")

    def _known_relays(self, public_key: bytes) -> list[Address]:
        """Nodes that reach a peer as far as we remember, or know as a node ourselves."""
        route = self._router.get(generic_hash(public_key), trio.current_time())
        if route is not None and route.relay is not None:
            return [route.relay]
        return self._relay_cache.get(public_key, [])

    def _check_running(self) -> None:
        if self._closed:
            raise NodeDestroyed("the node is closed")

    async def listen(
        self,
        key_pair: KeyPair | None = None,
        *,
        firewall: Firewall | None = None,
        admit: Admit | None = None,
        share_local_address: bool = True,
        relay_through: RelayChoice = None,
        reusable_socket: bool = False,
        holepunch: MayPunch | bool = True,
    ) -> Listener:
        """Accept connections to a key pair (default: the node's own); announcing goes on behind.

        Returns at once; `Listener.wait_announced` tells when the record is out.

        Args:
            firewall: called with remote public key, payload and address of every handshake; True
                refuses in silence.
            admit: finding those out takes 0.2 ms, so that before it this is called: with the
                client's address as far as it is known, and with that of the node that relayed the
                handshake or None. False drops the handshake; an honest client sends it again. Both
                addresses may be forged.
            share_local_address: False keeps our LAN addresses to ourselves.
            relay_through: the key of a relay that clients behind a NAT go through until there is a
                direct way; as in `connect`, and before what the client names.
            reusable_socket: keep the ways of connections for the next ones; as in `connect`.
            holepunch: as in `connect`; False alone leaves it to the other ways altogether.

        Raises:
            NodeDestroyed: the node is closed.
            KeyPairInUse: this node listens on the key pair already.
        """
        self._check_running()
        pair = key_pair or self.key_pair
        target = generic_hash(pair.public_key)
        if target in self._listeners:
            raise KeyPairInUse("this node listens on that key pair already")
        listener = Listener(
            self,
            pair,
            firewall=firewall,
            admit=admit,
            options=AcceptOptions(
                share_local_address=share_local_address,
                relay_through=relay_through,
                reusable_socket=reusable_socket,
                holepunch=holepunch,
            ),
        )
        if self._suspended:
            listener.announcer.pause()
        self._listeners[target] = listener
        self._router.add_local(target, Peer(pair.public_key, []).encode())
        try:
            assert self._nursery is not None
            await self._nursery.start(listener.run)
        except BaseException:
            self.forget_listener(listener)
            raise
        return listener

    def pool(self, *, max_connections: int = MAX_POOLED) -> ConnectionPool:
        """A pool of connections, of which there is one to each peer.

        Raises:
            NodeDestroyed: the node is closed.
        """
        return ConnectionPool(self, max_connections=max_connections)

    def forget_listener(self, listener: Listener) -> None:
        """A listener closes: its key is no longer ours."""
        if self._listeners.pop(listener.target, None) is not None:
            self._router.remove_local(listener.target)

    def create_stream(
        self, receive_window: int = DEFAULT_WINDOW, *, reserved: bool = False
    ) -> UDXStream:
        """A UDX stream with a fresh random id, not yet connected; see UDXStreamCore."""
        while True:
            stream_id = int.from_bytes(self.random_bytes(4), "little")
            if self.sockets.is_free(stream_id):
                core = UDXStreamCore(stream_id, receive_window=receive_window, reserved=reserved)
                return UDXStream(self.sockets, core)

    def remember_relays(self, public_key: bytes, addresses: Sequence[Address]) -> None:
        """Try these nodes first at the next connection to the key."""
        if addresses:
            self._relay_cache[public_key] = list(addresses[:MAX_RELAYS_CACHED])
            self._relay_cache.move_to_end(public_key)
            while len(self._relay_cache) > MAX_RELAY_CACHE:
                self._relay_cache.popitem(last=False)

    def start_soon(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run a task for as long as the node; it must not raise.

        Raises:
            NodeDestroyed: the node is closed.
        """
        if self._nursery is None or self._closed:
            raise NodeDestroyed("the node is closed")
        self._nursery.start_soon(task, *args)

    # -- lookups ----------------------------------------------------------------------------------

    async def find_peer(self, public_key: bytes) -> list[Peer]:
        """Records that nodes hold of a public key; empty when nobody announces it."""
        return await discovery.find_peer(self.node, public_key)

    async def is_announced(self, public_key: bytes) -> bool:
        """Whether one of the two nodes that we would ask first holds a record of a public key.

        Costs two small datagrams: meant for being asked often. False also when they do not answer
        within a second; `find_peer` looks thoroughly.
        """
        return await discovery.is_announced(self.node, public_key)

    async def lookup(self, topic: bytes) -> list[Peer]:
        """Peers announced under a topic (32 bytes), each once."""
        return await discovery.lookup(self.node, topic)

    async def announce(
        self,
        topic: bytes,
        key_pair: KeyPair | None = None,
        *,
        relay_addresses: Sequence[Address] = (),
        bump: int = 0,
        clear: bool = False,
    ) -> int:
        """Announce a key pair under a topic; the number of nodes that took it.

        Nodes keep it for 13 to 27 minutes, so announce again every 10. `relay_addresses` are nodes
        that know how to reach the peer; lookups show the first three. `bump` (ms since 1970, at
        most now) is shown to lookups too: the largest of all peers of the topic. With `clear`
        records on nodes that are not among the closest any more are taken back.

        Raises:
            TooFewNodes: no node took it.
        """
        return await discovery.announce(
            self.node,
            topic,
            key_pair or self.key_pair,
            relay_addresses=relay_addresses,
            bump=bump,
            clear=clear,
        )

    async def unannounce(self, topic: bytes, key_pair: KeyPair | None = None) -> int:
        """Take an announcement back wherever it is; the number of nodes that confirmed.

        Raises:
            TooFewNodes: some hold the record, and not one of them confirmed.
        """
        pair = key_pair or self.key_pair
        self._store.announcements.unannounce(topic, pair.public_key)
        return await discovery.unannounce(self.node, topic, pair)

    # -- storage ----------------------------------------------------------------------------------

    async def mutable_put(self, key_pair: KeyPair, value: bytes, seq: int = 0) -> StoredMutable:
        """Store a value under a public key, instead of any with a lower sequence number.

        Nodes keep it for 32 to 64 hours after the last put. `value` has 1 to about 1190 bytes
        (whoever wants it to pass through tunnels keeps to 1000), `seq` is 0 … 2**53 - 1.

        Raises:
            SeqTooLow: a value with a higher number is stored.
            SeqReused: another value with the same number is.
            TooFewNodes: no node took it.
            LocalProtocolError: value or number is out of range.
        """
        return await storage.mutable_put(self.node, key_pair, value, seq)

    async def mutable_get(
        self,
        public_key: bytes,
        *,
        seq: int = 0,
        latest: bool = True,
        refresh: Callable[[MutableValue], bool] | None = None,
    ) -> MutableValue | None:
        """The value that the holder of a public key stored; None when there is none.

        Only a value with a sequence number of at least `seq` counts. With `latest` all of the
        closest nodes are heard and the highest number wins, otherwise the first answer does. When
        `refresh` is given, and returns True for the latest value, that is stored afresh: what
        anybody can do, and should who wants a value to outlive its owner.

        Raises:
            TooFewNodes: no node took the refreshed value.
        """
        return await storage.mutable_get(
            self.node, public_key, seq=seq, latest=latest, refresh=refresh
        )

    async def immutable_put(self, value: bytes) -> StoredImmutable:
        """Store a value under its own hash; the result tells the hash, and which nodes have it.

        Nodes keep it for 32 to 64 hours after the last put. `value` has up to 1274 bytes (whoever
        wants it to pass through tunnels keeps to 1000).

        Raises:
            TooFewNodes: no node took it.
            LocalProtocolError: it is too long.
        """
        return await storage.immutable_put(self.node, value)

    async def immutable_get(self, target: bytes) -> ImmutableValue | None:
        """The value that has a hash (32 bytes); None when no node has it."""
        return await storage.immutable_get(self.node, target)

    async def delayed_ping(self, address: Address, delay: float) -> Response:
        """Ask a node to answer `delay` seconds later; see RPCNode.delayed_ping."""
        return await self.node.delayed_ping(address, delay)

    def _refresh_announcements(self) -> None:
        self.local_addresses.forget()
        for listener in self._listeners.values():
            listener.announcer.refresh()

    # -- as a node of the network -----------------------------------------------------------------

    def _on_request(self, request: IncomingRequest) -> bool:
        if request.command in (PEER_HANDSHAKE, PEER_HOLEPUNCH):
            self._route(request)
            return True
        node_id = self.node.id
        if node_id is None:
            # Whoever asks us directly may find our own servers even where nobody else runs a node.
            listener = self._listeners.get(request.target or b"")
            if request.command != FIND_PEER or listener is None:
                return False
            request.reply(Peer(listener.public_key).encode())
            return True
        if request.command not in SERVED:
            return False
        answer = self._store.handle(
            request, node_id, now=request.received_at, unix_time=time.time()
        )
        if answer is not None:
            request.reply(
                answer.value,
                error=answer.error,
                token=answer.token,
                closer_nodes=answer.closer_nodes,
            )
        return True

    def _route(self, request: IncomingRequest) -> None:
        action = self._router.route(request, trio.current_time())
        if isinstance(action, routing.Deliver):
            listener = self._listeners.get(request.target or b"")
            if listener is not None and not self._suspended:
                listener.deliver(action.message, request)
        elif action is not None:
            self.perform(request, action)

    def perform(
        self,
        request: IncomingRequest,
        action: routing.Reply | routing.ReplyTo | routing.Relay,
        *,
        socket: int | None = None,
    ) -> None:
        """Send what the router or the store decided, by default from the socket that was asked."""
        if isinstance(action, routing.Reply):
            request.reply(
                action.value,
                error=action.error,
                token=action.token,
                closer_nodes=action.closer_nodes,
                socket=socket,
            )
        elif isinstance(action, routing.ReplyTo):
            request.reply(
                action.value, token=False, closer_nodes=False, to=action.address, socket=socket
            )
        else:
            request.relay(action.value, action.address, socket=socket)

    # -- life -------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """The node's background work; `open_dht` starts it."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.sockets.run)
            if self.address[0] == "0.0.0.0":
                self.sockets.open_ipv6()
            await nursery.start(self.node.run)
            task_status.started()

    async def suspend(self) -> None:
        """Leave the network and close the sockets until `resume`: the machine is about to sleep.

        Announcements are taken back, which may take 1.5 s. Connections end, calls of `connect`
        raise Suspended and requests RequestSuspended, those under way too. Listeners stay, and
        accept again after `resume`. Spec: hyperdht index.js and dht-rpc lib/io.js `suspend`.
        """
        async with self._suspending:
            if self._suspended or self._closed:
                return
            self._suspended = True
            for scope in self._attempts:
                scope.cancel()
            try:
                async with trio.open_nursery() as nursery:
                    for listener in self._listeners.values():
                        nursery.start_soon(listener.announcer.suspend)
            finally:
                for listener in self._listeners.values():
                    listener.drop_handshakes()
                self.node.suspend()
                self.sockets.suspend()

    async def resume(self) -> None:
        """Take part in the network again, on the same ports if they are still free.

        Raises:
            NodeDestroyed: the node is closed.
            OSError: no socket can be bound; the node stays suspended.
        """
        async with self._suspending:
            self._check_running()
            if self._suspended:
                self.sockets.resume()
                self.node.resume()
                self._suspended = False
                for listener in self._listeners.values():
                    listener.announcer.resume()

    @property
    def suspended(self) -> bool:
        """Whether `suspend` was called, and `resume` not since."""
        return self._suspended

    def _survive_disruption(self) -> None:
        for listener in self._listeners.values():
            listener.announcer.restart()
        self.sockets.put_streams_on_trial(TRIAL_TIME)

    async def shut_down(self) -> None:
        """Close the listeners, which takes their announcements back; bounded in time."""
        self._closed = True
        with trio.move_on_after(SHUTDOWN_TIMEOUT, shield=True):
            async with trio.open_nursery() as nursery:
                for listener in list(self._listeners.values()):
                    nursery.start_soon(listener.aclose)
