"""Service: single steps of the way to a peer, for telling which of them fails.

`DHT.connect` takes all of them at once and ends in one error. Here each is taken alone, and what it
shows is given back as facts; what they mean to a person is not decided here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import trio

from hyperlog.dht.commands.handshake import HandshakeInitiator
from hyperlog.dht.commands.messages import Handshake, NoisePayload, Peer
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import (
    ERROR_ABORTED,
    ERROR_NONE,
    FIND_PEER,
    FIREWALL_CONSISTENT,
    FIREWALL_OPEN,
    FIREWALL_RANDOM,
    FROM_CLIENT,
    PEER_HANDSHAKE,
    REPLY,
)
from hyperlog.dht.errors import DHTError, RemoteProtocolError
from hyperlog.dht.holepunch.nat import Nat
from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.interfaces import local_addresses
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.resolver import known_addresses
from hyperlog.dht.rpc.messages import PING, Request, Response, decode_untrusted

__all__ = [
    "Announcement",
    "Diagnosis",
    "FirewallKind",
    "NATJudgement",
    "NameFailure",
    "NameLookup",
    "NodeProbe",
    "PeerAnswer",
    "PeerProbe",
    "ProbeFailure",
    "Stopped",
    "addresses_of",
    "firewall_kind",
    "look_up",
    "probe_node",
]

LOOKUP_TIMEOUT: Final = 5.0  # s
NO_SUCH_NAME: Final = {
    getattr(socket, name, socket.EAI_NONAME)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
}
PROBE_TRIES: Final = 3
PROBE_INTERVAL: Final = 1.0  # s from one try to the next
MAX_DATAGRAM: Final = 2048  # bytes; an answer to a ping has less than a hundred
OPEN_PATIENCE: Final = 1.0  # s
OPEN_LOOKS: Final = 20  # in that time
MAX_JUDGES: Final = 8  # nodes that tell how they see a socket
MAX_HOLDERS_ASKED: Final = 4  # nodes that a handshake is sent through
HANDSHAKE_TRIES: Final = 8
HANDSHAKE_INTERVAL: Final = 0.5  # s
UNROUTED: Final = "192.0.2.1"  # RFC 5737: asking for the way there finds the default route

ProbeFailure: TypeAlias = Literal["silent", "refused", "unreachable", "forbidden"]
"""Nothing came back; the machine said that nothing listens there; there is no way there; this
machine's own firewall does not let the datagram out."""

NameFailure: TypeAlias = Literal["unknown name", "no name service"]
"""There is no such name; nobody answered the question."""

FirewallKind: TypeAlias = Literal["open", "consistent", "random", "unknown"]
"""Of a NAT or firewall: none; the same outside port towards everybody; another one towards each."""

Stopped: TypeAlias = Literal["node silent", "peer silent", "unknown to node", "unreadable"]
"""Where a handshake got stuck."""

_KINDS: Final[dict[int, FirewallKind]] = {
    FIREWALL_OPEN: "open",
    FIREWALL_CONSISTENT: "consistent",
    FIREWALL_RANDOM: "random",
}


@dataclass(frozen=True, slots=True)
class NameLookup:
    """A bootstrap node's name was asked for."""

    node: Address
    """name or IPv4 address, and port"""
    address: Address | None
    """what it stands for; None if that is not known"""
    seconds: float
    source: Literal["literal", "name service", "program"]
    """nothing had to be asked; its answer; the address of a public node that this program knows,
    since it gave none"""
    failure: NameFailure | None
    """why there was no answer"""


@dataclass(frozen=True, slots=True)
class NodeProbe:
    """One node was asked for a sign of life."""

    address: Address
    round_trip_time: float | None
    """s, of the try that was answered"""
    failure: ProbeFailure | None
    """None if it answered"""


@dataclass(frozen=True, slots=True)
class NATJudgement:
    """How others see a fresh socket of ours."""

    kind: FirewallKind
    addresses: tuple[Address, ...]
    """as the nodes asked see it, each once"""
    samples: int
    """nodes that told"""
    translated: bool
    """whether none of those addresses is one of this machine"""


@dataclass(frozen=True, slots=True)
class Announcement:
    """Who holds a record of a key."""

    holders: tuple[Address, ...]
    """nearest to the key first"""
    answered: int
    """nodes, of those that were asked"""
    silent: int
    """the others"""


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """A peer has answered a handshake, by which it has proved its key."""

    node: Address
    """through which it came; the peer's own node if `direct`"""
    direct: bool
    round_trip_time: float
    """s, to the peer through that node"""
    error: int
    """what the peer objects to; 0 for nothing"""
    version: int
    """of its protocol; we speak 1"""
    kind: FirewallKind
    """of its NAT, as far as that can be told before a hole is punched"""
    seen_as: tuple[Address, ...]
    """the peer's address in the eyes of the nodes that it announced to, each once"""
    local_addresses: tuple[Address, ...]
    """where it says that it is found on its own network"""


@dataclass(frozen=True, slots=True)
class PeerProbe:
    """What became of a handshake that was sent through several nodes."""

    answer: PeerAnswer | None
    stopped: dict[Address, Stopped]
    """why no answer came through a node; empty when one came before that was known"""


class Diagnosis:
    """Looks at the network from a node that runs."""

    def __init__(self, dht: DHT) -> None:
        self._dht = dht

    # -- this side --------------------------------------------------------------------------------

    def address_for_others(self) -> Address:
        """Where other machines reach this node, as far as that can be known.

        That is the address at which everybody does, if there is one, else that on the way out of
        this machine, else the loopback address.
        """
        host, port = self._dht.remote_address() or self._dht.address
        if host != "0.0.0.0":
            return host, port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((UNROUTED, 9))  # sends nothing
            except OSError:
                return "127.0.0.1", port
            return str(probe.getsockname()[0]), port

    async def judge_nat(self, others: Iterable[Address] = ()) -> NATJudgement:
        """Ask nodes how they see a fresh socket, as the one that would punch a hole.

        `others` are nodes to ask beside those that this one knows.
        """
        dht = self._dht
        nat = Nat()
        seen: dict[Address, None] = {}
        index = dht.sockets.open_pool_socket(lambda address: None)
        try:

            async def ask(node: Address) -> None:
                try:
                    response = await dht.node.ping(node, socket=index)
                except DHTError:
                    return
                nat.add(response.to, node)
                seen[response.to] = None

            known = dht.node.known_nodes(MAX_JUDGES)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_until_open)
                for node in list(dict.fromkeys([*known, *others]))[:MAX_JUDGES]:
                    nursery.start_soon(ask, node)
        finally:
            dht.sockets.release(index)
        own = {host for host, _ in addresses_of(dht.address)}
        is_open = dht.remote_address() is not None
        return NATJudgement(
            "open" if is_open else firewall_kind(nat.firewall),
            tuple(seen),
            nat.sampled,
            bool(seen) and not own & {host for host, _ in seen},
        )

    async def _wait_until_open(self) -> None:
        # The node tests that by itself, and ends no later with it than a moment after it joined.
        for _ in range(OPEN_LOOKS):
            if self._dht.remote_address() is not None:
                return
            await trio.sleep(OPEN_PATIENCE / OPEN_LOOKS)

    # -- the peer ---------------------------------------------------------------------------------

    async def find_holders(self, public_key: bytes) -> Announcement:
        """Look for the nodes that hold a record of a public key (32 bytes)."""
        holders: list[Address] = []
        answered = 0
        async with self._dht.node.query_replies(FIND_PEER, generic_hash(public_key)) as replies:
            async for reply in replies:
                answered += 1
                if _is_record(reply.value, public_key):
                    holders.append(reply.address)
        assert replies.result is not None
        nearest = {address: place for place, address in enumerate(replies.result.closest_nodes)}
        holders.sort(key=lambda address: nearest.get(address, len(nearest)))
        return Announcement(tuple(holders), answered, replies.result.errors)

    async def probe_peer(
        self, public_key: bytes, nodes: Sequence[Address], *, key_pair: KeyPair | None = None
    ) -> PeerProbe:
        """Send a handshake to the holder of a key through `nodes`, without opening a connection.

        The handshake names no stream, so that the peer answers with what it has to say of itself
        and keeps nothing. `key_pair` (default: the node's own) is who we are to the peer, which may
        refuse some; what refuses does so in silence.
        """
        probe = _HandshakeProbe(self._dht, public_key, key_pair or self._dht.key_pair)
        async with trio.open_nursery() as nursery:

            async def ask(node: Address) -> None:
                await probe.ask(node)
                if probe.answer is not None:
                    nursery.cancel_scope.cancel()

            for node in nodes[:MAX_HOLDERS_ASKED]:
                nursery.start_soon(ask, node)
        return PeerProbe(probe.answer, probe.stopped)


def firewall_kind(number: int) -> FirewallKind:
    """The kind of a NAT by its number, FIREWALL_* of constants.py."""
    return _KINDS.get(number, "unknown")


def addresses_of(bound: Address) -> set[Address]:
    """All addresses at which a socket bound to `bound` answers to this machine and its network."""
    loopback = {("127.0.0.1", bound[1])} if bound[0] == "0.0.0.0" else set()
    return loopback | set(local_addresses(bound))


async def look_up(node: Address) -> NameLookup:
    """Find the IPv4 address of a bootstrap node that is given by name or address, in 5 s or not."""
    addresses, _ = known_addresses([node])
    if addresses == [node]:
        return NameLookup(node, node, 0.0, "literal", None)
    began_at = trio.current_time()
    failure: NameFailure = "no name service"
    with trio.move_on_after(LOOKUP_TIMEOUT):
        try:
            found = await trio.socket.getaddrinfo(*node, socket.AF_INET, socket.SOCK_DGRAM)
        except UnicodeError:  # of a form that no name can have
            failure = "unknown name"
        except OSError as err:
            if isinstance(err, socket.gaierror) and err.errno in NO_SUCH_NAME:
                failure = "unknown name"
        else:
            address = (str(found[0][4][0]), node[1])
            seconds = trio.current_time() - began_at
            return NameLookup(node, address, seconds, "name service", None)
    return NameLookup(
        node,
        addresses[0] if addresses else None,
        trio.current_time() - began_at,
        "program" if addresses else "name service",
        failure,
    )


async def probe_node(address: Address) -> NodeProbe:
    """Ask whatever is at an address for the sign of life of a DHT node, for up to 3 s.

    From a socket of its own, which unlike those of a node is told why a datagram does not arrive.
    """
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        try:
            await sock.connect(address)
            sent_at: list[float] = []
            while len(sent_at) < PROBE_TRIES:
                request = Request(tid=len(sent_at), to=address, command=PING, internal=True)
                sent_at.append(trio.current_time())
                await sock.send(request.encode())
                with trio.move_on_after(PROBE_INTERVAL):
                    tid = await _receive_answer(sock, len(sent_at))
                    return NodeProbe(address, trio.current_time() - sent_at[tid], None)
        except ConnectionRefusedError:
            return NodeProbe(address, None, "refused")
        except PermissionError:
            return NodeProbe(address, None, "forbidden")
        except OSError:
            return NodeProbe(address, None, "unreachable")
    return NodeProbe(address, None, "silent")


async def _receive_answer(sock: trio.socket.SocketType, tids: int) -> int:
    """The tid below `tids` of the first answer that comes."""
    while True:
        try:
            message = decode_untrusted(await sock.recv(MAX_DATAGRAM))
        except RemoteProtocolError:
            continue
        if isinstance(message, Response) and message.tid < tids:
            return message.tid


def _is_record(value: bytes | None, public_key: bytes) -> bool:
    if value is None:
        return False
    try:
        return Peer.decode_untrusted(value).public_key == public_key
    except RemoteProtocolError:
        return False


class _HandshakeProbe:
    """One handshake on its way through several nodes."""

    def __init__(self, dht: DHT, public_key: bytes, key_pair: KeyPair) -> None:
        self.answer: PeerAnswer | None = None
        self.stopped: dict[Address, Stopped] = {}
        self._dht = dht
        self._target = generic_hash(public_key)
        self._initiator = HandshakeInitiator(key_pair, public_key, dht.random_bytes)
        noise = self._initiator.send(NoisePayload(secret_stream=True))
        self._message = Handshake(mode=FROM_CLIENT, noise=noise).encode()

    async def ask(self, node: Address) -> None:
        """Send the handshake through one node; what comes of it is in `answer` or `stopped`."""
        sent_at = trio.current_time()
        try:
            response = await self._dht.node.request(
                PEER_HANDSHAKE,
                target=self._target,
                value=self._message,
                to=node,
                retries=HANDSHAKE_TRIES - 1,
                timeout=HANDSHAKE_INTERVAL,
            )
        except DHTError:
            self.stopped[node] = await self._who_is_silent(node)
            return
        if self.answer is not None:
            return
        if response.value is None:
            self.stopped[node] = "unknown to node"
            return
        try:
            reply = Handshake.decode_untrusted(response.value)
            if reply.mode != REPLY:
                raise RemoteProtocolError("not an answer")
            if self._initiator.complete:  # the peer has answered through another node
                raise RemoteProtocolError("one that could not be read has come already")
            payload = self._initiator.receive_untrusted(reply.noise)
        except RemoteProtocolError:
            self.stopped[node] = "unreadable"
            return
        self.answer = _answer_of(
            payload, node, reply.peer_address is None, trio.current_time() - sent_at
        )

    async def _who_is_silent(self, node: Address) -> Stopped:
        try:
            await self._dht.node.ping(node, retries=1)
        except DHTError:
            return "node silent"
        return "peer silent"


def _answer_of(
    payload: NoisePayload, node: Address, direct: bool, round_trip_time: float
) -> PeerAnswer:
    relays = payload.holepunch.relays if payload.holepunch is not None else []
    nat = Nat()
    for relay in relays:
        nat.add(relay.peer_address, relay.relay_address)
    kind = firewall_kind(nat.firewall)
    is_objection = payload.error not in (ERROR_NONE, ERROR_ABORTED)  # we named no stream
    return PeerAnswer(
        node,
        direct,
        round_trip_time,
        payload.error if is_objection else ERROR_NONE,
        payload.version,
        "open" if payload.firewall == FIREWALL_OPEN else kind,
        tuple(dict.fromkeys(relay.peer_address for relay in relays)),
        tuple(payload.addresses4),
    )
