"""How many bytes a node sends for each byte that it gets, command by command.

One socket asks; what comes back to it counts, and what the node sends to a second socket, where the
request names a third party. Nobody ever answers the node.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from hyperlog.dht import Address, KeyPair, NoisePayload, Peer
from hyperlog.dht.commands.handshake import HandshakeInitiator
from hyperlog.dht.commands.messages import (
    Announce,
    Handshake,
    Holepunch,
    MutablePut,
    PluginRequest,
    UDXInfo,
    sign_announce,
    sign_mutable,
)
from hyperlog.dht.constants import (
    ANNOUNCE,
    FIND_PEER,
    FIREWALL_OPEN,
    FIREWALL_UNKNOWN,
    FROM_CLIENT,
    FROM_RELAY,
    FROM_SECOND_RELAY,
    FROM_SERVER,
    IMMUTABLE_GET,
    IMMUTABLE_PUT,
    LOOKUP,
    MUTABLE_GET,
    MUTABLE_PUT,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
    PLUGIN,
    UNANNOUNCE,
)
from hyperlog.dht.keys import generic_hash
from hyperlog.dht.rpc.messages import (
    DELAYED_PING,
    DOWN_HINT,
    FIND_NODE,
    PING,
    PING_NAT,
    Request,
    Response,
    decode_untrusted,
    node_id,
    pack_address,
)

__all__ = ["CASES", "Node", "measure", "prepare"]

WINDOW = 10.0  # s that a socket goes on listening: as long as a server waits for a client
VALUE = bytes(range(250)) * 4
OWNER = KeyPair.from_seed(bytes([1]) * 32)
PEERS = [KeyPair.from_seed(generic_hash(b"peer %d" % number)) for number in range(21)]
RELAYS = [("10.0.0.1", port) for port in (1001, 1002, 1003)]
TOPIC = generic_hash(b"topic")
UNKNOWN = generic_hash(b"nobody")
OTHER = generic_hash(b"another topic")
HOST = "127.0.0.1"


@dataclass
class Node:
    """A node under attack."""

    address: Address
    public_key: bytes
    """that it listens on"""
    token: bytes = b""
    """that it gave to HOST"""
    known: list[Address] = field(default_factory=list)
    """nodes that it knows"""

    def request(
        self,
        command: int,
        target: bytes | None = None,
        value: bytes | None = None,
        token: bytes | None = None,
        *,
        internal: bool = False,
    ) -> bytes:
        return Request(7, self.address, command, internal, None, token, target, value).encode()

    def announce(self, command: int, target: bytes, pair: KeyPair, *, good: bool = True) -> bytes:
        message = Announce(peer=Peer(pair.public_key, RELAYS))
        sign_announce(
            message,
            command=command,
            target=target,
            token=self.token,
            node_id=node_id(self.address) if good else bytes(32),
            secret_key=pair.secret_key,
        )
        return self.request(command, target, message.encode(), self.token)

    def put(self, seq: int, value: bytes = VALUE, *, token: bytes | None = None) -> bytes:
        signature = sign_mutable(seq, value, OWNER.secret_key)
        put = MutablePut(OWNER.public_key, seq, value, signature).encode()
        target = generic_hash(OWNER.public_key)
        return self.request(MUTABLE_PUT, target, put, token or self.token)

    def handshake(
        self, mode: int, firewall: int, peer: Address | None = None, relay: Address | None = None
    ) -> bytes:
        """A genuine first message to the server on the node."""
        initiator = HandshakeInitiator(KeyPair.generate(), self.public_key, os.urandom)
        payload = NoisePayload(firewall=firewall, udx=UDXInfo(id=4711), secret_stream=True)
        message = Handshake(mode, initiator.send(payload), peer, relay).encode()
        return self.request(PEER_HANDSHAKE, generic_hash(self.public_key), message)


Make = Callable[[Node, Address], bytes]
"""make(node, third party) -> the datagram"""


def _holepunch(mode: int, to_third: bool) -> Make:
    def make(node: Node, third: Address) -> bytes:
        message = Holepunch(mode, 0, bytes(100), third if to_third else None).encode()
        return node.request(PEER_HOLEPUNCH, generic_hash(node.public_key), message)

    return make


def _opaque(mode: int, *, peer: bool = False, relay: bool = False, target: bytes = UNKNOWN) -> Make:
    def make(node: Node, third: Address) -> bytes:
        message = Handshake(mode, bytes(150), third if peer else None, third if relay else None)
        return node.request(PEER_HANDSHAKE, target, message.encode())

    return make


CASES: dict[str, Make] = {
    "PING": lambda n, t: n.request(PING, internal=True),
    "PING_NAT": lambda n, t: n.request(PING_NAT, None, t[1].to_bytes(2, "little"), internal=True),
    "PING_NAT, no port": lambda n, t: n.request(PING_NAT, None, b"\0\0", internal=True),
    "FIND_NODE": lambda n, t: n.request(FIND_NODE, UNKNOWN, internal=True),
    "FIND_NODE, no target": lambda n, t: n.request(FIND_NODE, internal=True),
    "DOWN_HINT": lambda n, t: n.request(DOWN_HINT, None, pack_address(t), internal=True),
    "DOWN_HINT, known node": lambda n, t: n.request(
        DOWN_HINT, None, pack_address(n.known[0]), internal=True
    ),
    "DELAYED_PING": lambda n, t: n.request(DELAYED_PING, None, b"\x10\0\0\0", internal=True),
    "DELAYED_PING, too late": lambda n, t: n.request(
        DELAYED_PING, None, b"\xff" * 4, internal=True
    ),
    "unknown internal": lambda n, t: n.request(99, UNKNOWN, internal=True),
    "unknown": lambda n, t: n.request(99, UNKNOWN),
    "FIND_PEER": lambda n, t: n.request(FIND_PEER, generic_hash(PEERS[0].public_key)),
    "FIND_PEER, unknown key": lambda n, t: n.request(FIND_PEER, UNKNOWN),
    "FIND_PEER, no target": lambda n, t: n.request(FIND_PEER),
    "FIND_PEER, wrong token": lambda n, t: n.request(FIND_PEER, UNKNOWN, None, bytes(32)),
    "LOOKUP": lambda n, t: n.request(LOOKUP, TOPIC),
    "LOOKUP, unknown topic": lambda n, t: n.request(LOOKUP, UNKNOWN),
    "ANNOUNCE": lambda n, t: n.announce(ANNOUNCE, OTHER, PEERS[1]),
    "ANNOUNCE, no token": lambda n, t: n.request(ANNOUNCE, TOPIC, bytes(100)),
    "ANNOUNCE, wrong token": lambda n, t: n.request(ANNOUNCE, TOPIC, bytes(100), bytes(32)),
    "ANNOUNCE, wrong signature": lambda n, t: n.announce(ANNOUNCE, TOPIC, PEERS[0], good=False),
    "ANNOUNCE, malformed": lambda n, t: n.request(ANNOUNCE, TOPIC, b"\xff", n.token),
    "UNANNOUNCE": lambda n, t: n.announce(UNANNOUNCE, OTHER, PEERS[2]),
    "UNANNOUNCE, wrong signature": lambda n, t: n.announce(UNANNOUNCE, TOPIC, PEERS[0], good=False),
    "MUTABLE_PUT": lambda n, t: n.put(5),
    "MUTABLE_PUT, lower number": lambda n, t: n.put(4, b"x"),
    "MUTABLE_PUT, wrong token": lambda n, t: n.put(6, token=bytes(32)),
    "MUTABLE_PUT, malformed": lambda n, t: n.request(MUTABLE_PUT, TOPIC, b"\xff", n.token),
    "MUTABLE_GET": lambda n, t: n.request(MUTABLE_GET, generic_hash(OWNER.public_key), b"\0"),
    "MUTABLE_GET, nothing there": lambda n, t: n.request(MUTABLE_GET, UNKNOWN, b"\0"),
    "MUTABLE_GET, malformed": lambda n, t: n.request(MUTABLE_GET, TOPIC, b"\xff"),
    "IMMUTABLE_PUT": lambda n, t: n.request(IMMUTABLE_PUT, generic_hash(b"x"), b"x", n.token),
    "IMMUTABLE_PUT, other hash": lambda n, t: n.request(IMMUTABLE_PUT, UNKNOWN, b"x", n.token),
    "IMMUTABLE_GET": lambda n, t: n.request(IMMUTABLE_GET, generic_hash(VALUE)),
    "IMMUTABLE_GET, nothing there": lambda n, t: n.request(IMMUTABLE_GET, UNKNOWN),
    "PLUGIN": lambda n, t: n.request(PLUGIN, UNKNOWN, PluginRequest("x", 1, 0).encode()),
    "PEER_HANDSHAKE, unknown key": _opaque(FROM_CLIENT),
    "PEER_HANDSHAKE, forged": lambda n, t: _opaque(FROM_CLIENT, target=generic_hash(n.public_key))(
        n, t
    ),
    "PEER_HANDSHAKE, then silent": lambda n, t: n.handshake(FROM_CLIENT, FIREWALL_UNKNOWN),
    "PEER_HANDSHAKE relayed, then silent": lambda n, t: n.handshake(
        FROM_RELAY, FIREWALL_UNKNOWN, t
    ),
    "PEER_HANDSHAKE relayed for an open client, then silent": lambda n, t: n.handshake(
        FROM_RELAY, FIREWALL_OPEN, t
    ),
    "PEER_HANDSHAKE through two, then silent": lambda n, t: n.handshake(
        FROM_SECOND_RELAY, FIREWALL_UNKNOWN, t, t
    ),
    "PEER_HANDSHAKE, to be relayed": _opaque(FROM_CLIENT, relay=True),
    "PEER_HANDSHAKE, answer to be passed on": _opaque(FROM_SERVER, peer=True),
    "PEER_HOLEPUNCH, to be relayed": _holepunch(FROM_CLIENT, True),
    "PEER_HOLEPUNCH, nobody named": _holepunch(FROM_CLIENT, False),
    "PEER_HOLEPUNCH, answer to be passed on": _holepunch(FROM_SERVER, True),
    "PEER_HOLEPUNCH, unknown handshake": _holepunch(FROM_RELAY, True),
    "UDX of an unknown stream": lambda n, t: b"\xff\x01\0\1" + bytes(16),
    "one byte": lambda n, t: b"\0",
    "half a request": lambda n, t: n.request(FIND_PEER, UNKNOWN)[:30],
    "an answer to nothing": lambda n, t: Response(7, n.address, value=bytes(100)).encode(),
    "another protocol": lambda n, t: b"GET / HTTP/1.1\r\n\r\n",
}


async def _bind() -> trio.socket.SocketType:
    opened = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await opened.bind((HOST, 0))
    return opened


async def prepare(node: Node) -> None:
    """Store on the node what the cases ask for, and get a token."""
    with await _bind() as own:

        async def call(datagram: bytes) -> Response:
            await own.sendto(datagram, node.address)
            answer = decode_untrusted((await own.recvfrom(2048))[0])
            assert isinstance(answer, Response)
            assert not answer.error
            return answer

        answer = await call(node.request(FIND_PEER, UNKNOWN))
        assert answer.token is not None
        node.token, node.known = answer.token, answer.closer_nodes
        assert len(node.known) == 20
        await call(node.announce(ANNOUNCE, generic_hash(PEERS[0].public_key), PEERS[0]))
        for pair in PEERS:
            await call(node.announce(ANNOUNCE, TOPIC, pair))
        await call(node.put(5))
        await call(node.request(IMMUTABLE_PUT, generic_hash(VALUE), VALUE, node.token))


async def measure(node: Node) -> dict[str, tuple[int, int]]:
    """Bytes in and bytes out of the node, by case."""
    results: dict[str, tuple[int, int]] = {}

    async def one(name: str, make: Make) -> None:
        with await _bind() as own, await _bind() as third:
            datagram = make(node, third.getsockname())
            received = 0

            async def listen(sock: trio.socket.SocketType) -> None:
                nonlocal received
                while True:
                    received += len((await sock.recvfrom(65536))[0])

            with trio.move_on_after(WINDOW):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(listen, own)
                    nursery.start_soon(listen, third)
                    await own.sendto(datagram, node.address)
            results[name] = len(datagram), received

    async with trio.open_nursery() as nursery:
        for name, make in CASES.items():
            nursery.start_soon(one, name, make)
    return {name: results[name] for name in CASES}
