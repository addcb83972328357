"""Values of the HyperDHT commands, and the signatures that some of them carry.

Each struct has its fields in wire order, `encode()`, and `decode_untrusted(data)`, which raises
nothing but RemoteProtocolError and, like the JavaScript decoders, does not look at bytes behind the
last field. `encode()` raises LocalProtocolError for a value that does not fit its field.

The payload of hole punch messages is holepunch/payload.py: to a relaying node it is opaque.

Wire: docs/protocol/hyperdht.md sections 3 and 4; hyperdht lib/messages.js, lib/persistent.js.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hyperlog.dht.compact import Address, Reader, Writer
from hyperlog.dht.constants import ERROR_NONE, FIREWALL_UNKNOWN, MUTABLE_PUT
from hyperlog.dht.errors import InvalidValue, LocalProtocolError
from hyperlog.dht.keys import generic_hash, namespace, sign, verify

__all__ = [
    "VERSION",
    "Announce",
    "Handshake",
    "Holepunch",
    "HolepunchInfo",
    "HolepunchRelay",
    "LookupReply",
    "MutableGet",
    "MutablePut",
    "MutableSignable",
    "NoisePayload",
    "Peer",
    "PluginRequest",
    "RelayThrough",
    "UDXInfo",
    "announce_signable",
    "mutable_signable",
    "sign_announce",
    "sign_mutable",
    "verify_announce",
    "verify_mutable",
]

VERSION: Final = 1  # of the Noise payload, and of its udx, secretStream and relayThrough parts
NAMESPACE: Final = "hyperswarm/dht"

KEY_SIZE: Final = 32  # bytes of public keys, tokens, targets and hashes
SIGNATURE_SIZE: Final = 64  # bytes
IPV4_SIZE: Final = 6  # bytes with port
IPV6_SIZE: Final = 18  # bytes with port

# Flags of the messages that travel through relays.
PEER_ADDRESS: Final = 1
RELAY_ADDRESS: Final = 2

# Flags of the Noise payload.
HOLEPUNCH: Final = 1
ADDRESSES4: Final = 2
ADDRESSES6: Final = 4
UDX: Final = 8
SECRET_STREAM: Final = 16
RELAY_THROUGH: Final = 32
RELAY_ADDRESSES: Final = 64

# Flags of an announcement.
PEER: Final = 1
REFRESH: Final = 2
SIGNATURE: Final = 4
BUMP: Final = 8


@dataclass(slots=True)
class Handshake:
    """Value of PEER_HANDSHAKE requests and replies."""

    mode: int
    """FROM_CLIENT … REPLY of constants.py"""
    noise: bytes
    peer_address: Address | None = None
    """the client towards the server, the server towards the client; as the relaying node sees it"""
    relay_address: Address | None = None
    """the first of two relaying nodes"""

    def encode(self) -> bytes:
        flags = PEER_ADDRESS if self.peer_address is not None else 0
        flags |= RELAY_ADDRESS if self.relay_address is not None else 0
        writer = Writer().uint(flags).uint(self.mode).buffer(self.noise)
        if self.peer_address is not None:
            writer.ipv4_address(self.peer_address)
        if self.relay_address is not None:
            writer.ipv4_address(self.relay_address)
        return writer.finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Handshake:
        reader = Reader(data)
        flags = reader.uint()
        return cls(
            mode=reader.uint(),
            noise=reader.buffer(),
            peer_address=reader.ipv4_address() if flags & PEER_ADDRESS else None,
            relay_address=reader.ipv4_address() if flags & RELAY_ADDRESS else None,
        )


@dataclass(slots=True)
class Holepunch:
    """Value of PEER_HOLEPUNCH requests and replies."""

    mode: int
    """FROM_CLIENT … REPLY of constants.py, without FROM_SECOND_RELAY"""
    id: int
    """the server's number of the handshake; 0 in what the server sends"""
    payload: bytes
    """encrypted between the two ends, see holepunch/payload.py"""
    peer_address: Address | None = None

    def encode(self) -> bytes:
        writer = Writer().uint(PEER_ADDRESS if self.peer_address is not None else 0)
        writer.uint(self.mode).uint(self.id).buffer(self.payload)
        if self.peer_address is not None:
            writer.ipv4_address(self.peer_address)
        return writer.finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Holepunch:
        reader = Reader(data)
        flags = reader.uint()
        return cls(
            mode=reader.uint(),
            id=reader.uint(),
            payload=reader.buffer(),
            peer_address=reader.ipv4_address() if flags & PEER_ADDRESS else None,
        )


@dataclass(slots=True)
class HolepunchRelay:
    """A node through which hole punch messages reach the server."""

    relay_address: Address
    """of the node that the server announced to"""
    peer_address: Address
    """of the server, as that node sees it"""


@dataclass(slots=True)
class HolepunchInfo:
    """How to send hole punch messages to the server."""

    id: int
    """the server's number of this handshake"""
    relays: list[HolepunchRelay]


@dataclass(slots=True)
class UDXInfo:
    """The sender's UDX stream."""

    id: int
    """32 bits; what the other side writes into its packets"""
    seq: int = 0
    reusable_socket: bool = False


@dataclass(slots=True)
class RelayThrough:
    """The blind relay that the sender would like to connect through."""

    public_key: bytes
    """32 bytes"""
    token: bytes = field(repr=False)
    """32 random bytes that pair the two ends"""


@dataclass(slots=True)
class NoisePayload:
    """What client and server tell each other inside the handshake.

    Of another version than 1 only `version` is read, so that an answer can name the mismatch.
    """

    version: int = VERSION
    error: int = ERROR_NONE
    firewall: int = FIREWALL_UNKNOWN
    holepunch: HolepunchInfo | None = None
    addresses4: list[Address] = field(default_factory=list)
    addresses6: list[Address] = field(default_factory=list)
    udx: UDXInfo | None = None
    secret_stream: bool = False
    relay_through: RelayThrough | None = None
    relay_addresses: list[Address] | None = None
    """nodes that know the server, for the client's next connect"""

    def encode(self) -> bytes:
        if self.version != VERSION:
            raise LocalProtocolError(f"only payloads of version {VERSION} can be written")
        parts = Writer()
        flags = 0
        if self.holepunch is not None:
            flags |= HOLEPUNCH
            parts.uint(self.holepunch.id).uint(len(self.holepunch.relays))
            for relay in self.holepunch.relays:
                parts.ipv4_address(relay.relay_address).ipv4_address(relay.peer_address)
        if self.addresses4:
            flags |= ADDRESSES4
            parts.array(self.addresses4, parts.ipv4_address)
        if self.addresses6:
            flags |= ADDRESSES6
            parts.array(self.addresses6, parts.ipv6_address)
        if self.udx is not None:
            flags |= UDX
            parts.uint(VERSION).uint(1 if self.udx.reusable_socket else 0)
            parts.uint(self.udx.id).uint(self.udx.seq)
        if self.secret_stream:
            flags |= SECRET_STREAM
            parts.uint(VERSION)
        if self.relay_through is not None:
            flags |= RELAY_THROUGH
            parts.uint(VERSION).uint(0)
            parts.fixed(self.relay_through.public_key, KEY_SIZE)
            parts.fixed(self.relay_through.token, KEY_SIZE)
        if self.relay_addresses is not None:
            flags |= RELAY_ADDRESSES
            parts.array(self.relay_addresses, parts.ipv4_address)
        head = Writer().uint(VERSION).uint(flags).uint(self.error).uint(self.firewall)
        return head.fixed(parts.finish()).finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> NoisePayload:
        reader = Reader(data)
        version = reader.uint()
        if version != VERSION:
            return cls(version=version)
        flags = reader.uint()
        payload = cls(error=reader.uint(), firewall=reader.uint())
        if flags & HOLEPUNCH:
            payload.holepunch = HolepunchInfo(
                reader.uint(), reader.array(lambda: _read_relay(reader), 2 * IPV4_SIZE)
            )
        if flags & ADDRESSES4:
            payload.addresses4 = reader.array(reader.ipv4_address, IPV4_SIZE)
        if flags & ADDRESSES6:
            payload.addresses6 = reader.array(reader.ipv6_address, IPV6_SIZE)
        # Compat: hyperdht 6.34.0 lib/connect.js and lib/server.js do not check the versions inside
        # udx, secretStream and relayThrough either.
        if flags & UDX:
            reader.uint()
            features = reader.uint()
            payload.udx = UDXInfo(reader.uint(), reader.uint(), bool(features & 1))
            if payload.udx.id >= 1 << 32:
                raise InvalidValue(f"{payload.udx.id} is no UDX stream id")
        if flags & SECRET_STREAM:
            reader.uint()
            payload.secret_stream = True
        if flags & RELAY_THROUGH:
            reader.uint()
            reader.uint()
            payload.relay_through = RelayThrough(reader.fixed(KEY_SIZE), reader.fixed(KEY_SIZE))
        if flags & RELAY_ADDRESSES:
            payload.relay_addresses = reader.array(reader.ipv4_address, IPV4_SIZE)
        return payload


def _read_relay(reader: Reader) -> HolepunchRelay:
    return HolepunchRelay(reader.ipv4_address(), reader.ipv4_address())


@dataclass(slots=True)
class Peer:
    """Who announces: the value of a FIND_PEER reply, and the record that nodes keep."""

    public_key: bytes
    """32 bytes"""
    relay_addresses: list[Address] = field(default_factory=list)

    def encode(self) -> bytes:
        writer = Writer().fixed(self.public_key, KEY_SIZE)
        return writer.array(self.relay_addresses, writer.ipv4_address).finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Peer:
        return _read_peer(Reader(data))


def _read_peer(reader: Reader) -> Peer:
    return Peer(reader.fixed(KEY_SIZE), reader.array(reader.ipv4_address, IPV4_SIZE))


@dataclass(slots=True)
class LookupReply:
    """Value of a LOOKUP reply."""

    peers: list[Peer]
    bump: int = 0
    """ms since 1970; 0 also from older nodes, which do not send it"""

    def encode(self) -> bytes:
        return self.join([peer.encode() for peer in self.peers], self.bump)

    @staticmethod
    def join(records: Sequence[bytes], bump: int) -> bytes:
        """The encoded reply of peers that are encoded already, as nodes keep them."""
        # Most answers of a node to lookups: one byte each does for nearly all of them.
        count = len(records)
        head = bytes((count,)) if count <= 0xFC else Writer().uint(count).finish()
        tail = Writer().uint(bump).finish() if bump else b"\0"
        return b"".join([head, *records, tail])

    @classmethod
    def decode_untrusted(cls, data: bytes) -> LookupReply:
        reader = Reader(data)
        peers = reader.array(lambda: _read_peer(reader), KEY_SIZE + 1)
        return cls(peers, reader.uint() if reader.remaining else 0)


@dataclass(slots=True)
class Announce:
    """Value of ANNOUNCE and UNANNOUNCE requests."""

    peer: Peer | None = None
    """None only in a refresh"""
    refresh: bytes | None = None
    """32 bytes; with `peer` a hash to remember, without it what that hash was made of"""
    signature: bytes | None = None
    """64 bytes, see `sign_announce`"""
    bump: int = 0
    """ms since 1970; not signed"""

    def encode(self) -> bytes:
        flags = PEER if self.peer is not None else 0
        flags |= REFRESH if self.refresh is not None else 0
        flags |= SIGNATURE if self.signature is not None else 0
        flags |= BUMP if self.bump else 0
        writer = Writer().uint(flags)
        if self.peer is not None:
            writer.fixed(self.peer.encode())
        if self.refresh is not None:
            writer.fixed(self.refresh, KEY_SIZE)
        if self.signature is not None:
            writer.fixed(self.signature, SIGNATURE_SIZE)
        if self.bump:
            writer.uint(self.bump)
        return writer.finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Announce:
        reader = Reader(data)
        flags = reader.uint()
        return cls(
            peer=_read_peer(reader) if flags & PEER else None,
            refresh=reader.fixed(KEY_SIZE) if flags & REFRESH else None,
            signature=reader.fixed(SIGNATURE_SIZE) if flags & SIGNATURE else None,
            bump=reader.uint() if flags & BUMP else 0,
        )


@dataclass(slots=True)
class MutableSignable:
    """What the signature of a mutable value covers."""

    seq: int
    value: bytes

    def encode(self) -> bytes:
        return Writer().uint(self.seq).buffer(self.value).finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> MutableSignable:
        reader = Reader(data)
        return cls(reader.uint(), reader.buffer())


@dataclass(slots=True)
class MutablePut:
    """Value of a MUTABLE_PUT request."""

    public_key: bytes
    """32 bytes"""
    seq: int
    value: bytes
    signature: bytes
    """64 bytes, see `sign_mutable`"""

    def encode(self) -> bytes:
        writer = Writer().fixed(self.public_key, KEY_SIZE).uint(self.seq).buffer(self.value)
        return writer.fixed(self.signature, SIGNATURE_SIZE).finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> MutablePut:
        reader = Reader(data)
        return cls(
            reader.fixed(KEY_SIZE), reader.uint(), reader.buffer(), reader.fixed(SIGNATURE_SIZE)
        )


@dataclass(slots=True)
class MutableGet:
    """Value of a MUTABLE_GET reply."""

    seq: int
    value: bytes
    signature: bytes
    """64 bytes"""

    def encode(self) -> bytes:
        writer = Writer().uint(self.seq).buffer(self.value)
        return writer.fixed(self.signature, SIGNATURE_SIZE).finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> MutableGet:
        reader = Reader(data)
        return cls(reader.uint(), reader.buffer(), reader.fixed(SIGNATURE_SIZE))


@dataclass(slots=True)
class PluginRequest:
    """Value of a PLUGIN request."""

    plugin: str
    version: int
    command: int
    value: bytes | None = None

    def encode(self) -> bytes:
        writer = Writer().string(self.plugin).uint(self.version).uint(self.command)
        if self.value is None:
            return writer.uint(0).finish()
        return writer.uint(1).buffer(self.value).finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> PluginRequest:
        reader = Reader(data)
        plugin, version, command, flags = (
            reader.string(),
            reader.uint(),
            reader.uint(),
            reader.uint(),
        )
        return cls(plugin, version, command, reader.buffer() if flags & 1 else None)


# Signatures


def announce_signable(
    announce: Announce, *, command: int, target: bytes, token: bytes, node_id: bytes
) -> bytes:
    """The 64 bytes that the announcing peer signs.

    Args:
        command: ANNOUNCE or UNANNOUNCE; keeps a signature of one from passing for the other.
        node_id: 32 bytes, of the node that the announcement goes to; together with the token it
            gave, this makes the signature worthless anywhere else and any time later.

    Raises:
        LocalProtocolError: there is no peer to announce.
    """
    if announce.peer is None:
        raise LocalProtocolError("an announcement without a peer carries no signature")
    signed = target + node_id + token + announce.peer.encode() + (announce.refresh or b"")
    return namespace(NAMESPACE, command) + generic_hash(signed)


def sign_announce(
    announce: Announce,
    *,
    command: int,
    target: bytes,
    token: bytes,
    node_id: bytes,
    secret_key: bytes,
) -> None:
    """Set `announce.signature`; see `announce_signable` for what the arguments mean."""
    signable = announce_signable(
        announce, command=command, target=target, token=token, node_id=node_id
    )
    announce.signature = sign(signable, secret_key)


def verify_announce(
    announce: Announce, *, command: int, target: bytes, token: bytes, node_id: bytes
) -> bool:
    """Whether the peer named in the announcement signed it for us, now, and for this command."""
    if announce.peer is None or announce.signature is None:
        return False
    signable = announce_signable(
        announce, command=command, target=target, token=token, node_id=node_id
    )
    return verify(announce.signature, signable, announce.peer.public_key)


def mutable_signable(seq: int, value: bytes) -> bytes:
    """The 64 bytes that the owner of a mutable value signs."""
    encoded = MutableSignable(seq, value).encode()
    return namespace(NAMESPACE, MUTABLE_PUT) + generic_hash(encoded)


def sign_mutable(seq: int, value: bytes, secret_key: bytes) -> bytes:
    """The 64-byte signature of a mutable value."""
    return sign(mutable_signable(seq, value), secret_key)


def verify_mutable(signature: bytes, seq: int, value: bytes, public_key: bytes) -> bool:
    """Whether the owner of `public_key` signed `value` under the sequence number `seq`."""
    return verify(signature, mutable_signable(seq, value), public_key)
