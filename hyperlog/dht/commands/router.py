"""Router: which way a PEER_HANDSHAKE or PEER_HOLEPUNCH message goes on from this node.

Theory of operation
-------------------
A server announces itself to a few nodes; each remembers where the announcement came from. A client
asks such a node, and the node passes the message on without keeping any state of it:

    client --FROM_CLIENT--> node --FROM_RELAY--> server          requests, same tid throughout
    client <----REPLY------ node <--FROM_SERVER-- server         a response, and a request

A node in the middle that only knows another node that knows the server sends FROM_SECOND_RELAY.
Targets that are served by this process never expire and are not forwarded but delivered.

A node passes messages to any address that a client names, as every HyperDHT node does; a message
never grows on its way by more than an address, so nobody gains by it.

Wire: docs/protocol/hyperdht.md sections 5 and 7; hyperdht lib/router.js.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from hyperlog.dht.commands.ageing import AgeingCache
from hyperlog.dht.commands.messages import Handshake, Holepunch
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import (
    FROM_CLIENT,
    FROM_RELAY,
    FROM_SECOND_RELAY,
    FROM_SERVER,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
    REPLY,
)
from hyperlog.dht.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "Action",
    "CommandRequest",
    "Deliver",
    "Relay",
    "Reply",
    "ReplyTo",
    "Route",
    "Router",
    "answer_handshake",
    "answer_holepunch",
]

MAX_ROUTES: Final = 65536  # hyperdht index.js `defaultMaxSize`
MAX_AGE: Final = 20 * 60.0  # s, hyperdht index.js `defaultMaxAge`


class CommandRequest(Protocol):
    """What this folder needs to know of a received request."""

    @property
    def command(self) -> int: ...
    @property
    def address(self) -> Address:
        """Where the request came from."""

    @property
    def target(self) -> bytes | None: ...
    @property
    def token(self) -> bytes | None:
        """The round-trip token, compared with our secrets already."""

    @property
    def value(self) -> bytes | None: ...


@dataclass(slots=True)
class Reply:
    """Answer the request."""

    value: bytes | None
    closer_nodes: bool = False
    token: bool = False
    """whether the answer carries a round-trip token"""
    error: int = 0


@dataclass(slots=True)
class ReplyTo:
    """Send a response with the request's tid, without token and closer nodes, to someone else."""

    address: Address
    value: bytes


@dataclass(slots=True)
class Relay:
    """Send a request with the request's command, target and tid to someone else."""

    address: Address
    value: bytes


@dataclass(slots=True)
class Deliver:
    """Hand the message to the local server of the target.

    `message.peer_address` is the client as the relaying node sees it, or None when the client asked
    this node directly; the request's address is the client's then.
    """

    message: Handshake | Holepunch


Action = Reply | ReplyTo | Relay | Deliver


@dataclass(slots=True)
class Route:
    relay: Address | None
    """where to forward to; None for a local server"""
    record: bytes
    """the encoded Peer"""


class Router:
    """The routes of this node and the decisions made from them."""

    def __init__(self, *, max_routes: int = MAX_ROUTES, max_age: float = MAX_AGE) -> None:
        self._local: dict[bytes, Route] = {}
        self._forwards: AgeingCache[bytes, Route] = AgeingCache(max_routes, max_age)

    def add_local(self, target: bytes, record: bytes) -> None:
        """Deliver what comes for `target` from now on; it does not age."""
        self._local[target] = Route(None, record)
        self._forwards.remove(target)

    def remove_local(self, target: bytes) -> None:
        """Undo `add_local`; a target that is not local is fine."""
        self._local.pop(target, None)

    def set(self, target: bytes, relay: Address, record: bytes, now: float) -> None:
        """Forward what comes for `target` to `relay`, unless the target is local."""
        if target not in self._local:
            self._forwards.set(target, Route(relay, record), now)

    def remove(self, target: bytes) -> None:
        """Forget where to forward `target`; a local target stays."""
        self._forwards.remove(target)

    def get(self, target: bytes, now: float) -> Route | None:
        return self._local.get(target) or self._forwards.get(target, now)

    def route(self, request: CommandRequest, now: float) -> Action | None:
        """What to do with a PEER_HANDSHAKE or PEER_HOLEPUNCH request.

        None is silence: the message is unreadable or makes no sense here, and an honest sender does
        not wait for an answer to such.

        Raises:
            LocalProtocolError: another command.
        """
        if request.command not in (PEER_HANDSHAKE, PEER_HOLEPUNCH):
            raise LocalProtocolError(f"command {request.command} is not routed")
        if request.value is None or request.target is None:
            return None
        route = self.get(request.target, now)
        try:
            if request.command == PEER_HANDSHAKE:
                handshake = Handshake.decode_untrusted(request.value)
                return _route_handshake(handshake, route, request.address)
            holepunch = Holepunch.decode_untrusted(request.value)
        except RemoteProtocolError:
            return None
        return _route_holepunch(holepunch, route, request.address)


def _route_handshake(message: Handshake, route: Route | None, sender: Address) -> Action | None:
    if not message.noise:
        return None
    if route is not None and route.relay is None:
        return _deliver_handshake(message)
    relay = route.relay if route is not None else None
    mode, noise, peer = message.mode, message.noise, message.peer_address
    if mode == FROM_CLIENT:
        to = message.relay_address or relay
        if to is None:
            return Reply(None, closer_nodes=True)
        return _relay(to, Handshake(FROM_RELAY, noise, sender))
    if mode == FROM_RELAY and relay is not None:
        return _relay(relay, Handshake(FROM_SECOND_RELAY, noise, peer, sender))
    if mode == FROM_SERVER and peer is not None and _reachable(peer):
        return ReplyTo(peer, Handshake(REPLY, noise, sender).encode())
    return None


def _deliver_handshake(message: Handshake) -> Deliver | None:
    if message.mode == FROM_CLIENT:
        # A client has no business to tell its own address: believing it would have us open a
        # connection to whomever it names.
        message.peer_address = None
        return Deliver(message)
    if message.peer_address is None or not _reachable(message.peer_address):
        return None
    if message.mode == FROM_RELAY:
        return Deliver(message)
    if message.mode == FROM_SECOND_RELAY and message.relay_address is not None:
        return Deliver(message) if _reachable(message.relay_address) else None
    return None


def _route_holepunch(message: Holepunch, route: Route | None, sender: Address) -> Action | None:
    mode, peer = message.mode, message.peer_address
    if mode == FROM_CLIENT:
        to = peer or (route.relay if route is not None else None)
        if to is None:
            return None
        return _relay(to, Holepunch(FROM_RELAY, message.id, message.payload, sender))
    if peer is None or not _reachable(peer):
        return None
    if mode == FROM_RELAY and route is not None and route.relay is None:
        return Deliver(message)
    if mode == FROM_SERVER:
        reply = Holepunch(REPLY, message.id, message.payload, sender)
        return ReplyTo(peer, reply.encode())
    return None


def answer_handshake(message: Handshake, noise: bytes, sender: Address) -> Reply | Relay:
    """How the local server's answer to a delivered handshake leaves.

    Args:
        message: as delivered.
        noise: message 2.
        sender: where the delivered request came from.

    A Relay must leave from the socket whose address the client shall learn.
    """
    if message.mode == FROM_CLIENT:
        return Reply(Handshake(REPLY, noise).encode())
    answer = Handshake(FROM_SERVER, noise, message.peer_address).encode()
    if message.mode == FROM_SECOND_RELAY and message.relay_address is not None:
        return Relay(message.relay_address, answer)
    return Relay(sender, answer)


def answer_holepunch(message: Holepunch, payload: bytes, sender: Address) -> Relay:
    """How the local server's answer to a delivered hole punch message leaves; see above."""
    return Relay(sender, Holepunch(FROM_SERVER, 0, payload, message.peer_address).encode())


def _relay(to: Address, message: Handshake | Holepunch) -> Relay | None:
    return Relay(to, message.encode()) if _reachable(to) else None


def _reachable(address: Address) -> bool:
    """Whether a datagram can be sent there at all; a relayed address comes from a stranger."""
    return address[1] != 0
