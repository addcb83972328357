"""dht-rpc packets: requests, responses, and the node id that belongs to an address.

Wire: docs/protocol/dht-rpc.md sections 2 and 3; dht-rpc lib/io.js, lib/peer.js.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import InvalidValue, LocalProtocolError, Truncated

__all__ = [
    "DELAYED_PING",
    "DOWN_HINT",
    "FIND_NODE",
    "INVALID_TOKEN",
    "PING",
    "PING_NAT",
    "UNKNOWN_COMMAND",
    "Request",
    "Response",
    "decode_untrusted",
    "encode_response",
    "is_bare_ping",
    "node_id",
    "pack_address",
    "read_bare_query",
    "unpack_address",
]

# Internal commands (dht-rpc lib/commands.js).
PING: Final = 0
PING_NAT: Final = 1
FIND_NODE: Final = 2
DOWN_HINT: Final = 3
DELAYED_PING: Final = 4

# Values of Response.error at this layer (dht-rpc lib/errors.js).
UNKNOWN_COMMAND: Final = 1
INVALID_TOKEN: Final = 2

REQUEST: Final = 0x03  # low nibble: version 3
RESPONSE: Final = 0x13

FLAG_ID: Final = 1
FLAG_TOKEN: Final = 2
FLAG_INTERNAL: Final = 4  # requests
FLAG_CLOSER_NODES: Final = 4  # responses
FLAG_TARGET: Final = 8  # requests
FLAG_ERROR: Final = 8  # responses
FLAG_VALUE: Final = 16

HASH_SIZE: Final = 32  # bytes of an id, a token and a target
ADDRESS_SIZE: Final = 6  # bytes
MIN_SIZE: Final = 10  # bytes: kind, flags, tid, to
MAX_CLOSER_NODES: Final = 64
"""More in one response is refused: honest nodes send at most 20, and each one costs a hash."""

ADDRESS_CACHE: Final = 8192  # entries; a node talks to the same few hundred addresses all day

HEADER: Final = struct.Struct("<BBH6s")  # kind, flags, tid, to
TID_TO: Final = struct.Struct("<H6s")
BARE_PING: Final = bytes((REQUEST, FLAG_INTERNAL))  # and tid, to, command
BARE_PING_SIZE: Final = 11  # bytes
BARE_QUERY_SIZE: Final = 43  # bytes: HEADER, command, target; a value may follow
BARE_QUERY_FIXED: Final = 0xFF & ~(FLAG_INTERNAL | FLAG_VALUE)  # flags that are the same in all
ONE_BYTE: Final = tuple(bytes((number,)) for number in range(0xFD))
MEDIUM_UINT: Final = struct.Struct("<BH")


@lru_cache(maxsize=ADDRESS_CACHE)
def pack_address(address: Address) -> bytes:
    """The 6 bytes of an IPv4 address on the wire: the host in dotted order, the port little-endian.

    Raises:
        LocalProtocolError: the host is not dotted IPv4, or the port is not 0 … 65535.
    """
    host, port = address
    try:
        return ipaddress.IPv4Address(host).packed + port.to_bytes(2, "little")
    except (ipaddress.AddressValueError, OverflowError) as err:
        raise LocalProtocolError(f"{host!r} port {port} is not an IPv4 address") from err


@lru_cache(maxsize=ADDRESS_CACHE)
def unpack_address(raw: bytes) -> Address:
    """The address in exactly 6 bytes that `pack_address` made."""
    return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}", raw[4] | raw[5] << 8


@lru_cache(maxsize=ADDRESS_CACHE)
def node_id(address: Address) -> bytes:
    """The 32-byte id that a persistent node at `address` has, and no other node may claim.

    Spec: docs/protocol/dht-rpc.md section 3; dht-rpc lib/peer.js `id`.
    """
    return blake2b(pack_address(address), digest_size=HASH_SIZE).digest()


@dataclass(slots=True)
class Request:
    """A request, and also what a relaying node passes on (it keeps the tid)."""

    tid: int
    """0 … 65535, chosen by the requester"""
    to: Address
    """where the sender sends this: tells the receiver its own outside address"""
    command: int
    internal: bool = False
    """whether `command` counts in dht-rpc's own number space (PING …) instead of the user's"""
    id: bytes | None = None
    """the sender's node id, or None when it is ephemeral; unproven until compared with node_id()"""
    token: bytes | None = None
    target: bytes | None = None
    value: bytes | None = None
    """None and b"" differ on the wire"""

    def encode(self) -> bytes:
        """The datagram.

        Raises:
            LocalProtocolError: a field does not fit.
        """
        flags = FLAG_INTERNAL if self.internal else 0
        tail = b""
        if self.id is not None:
            flags |= FLAG_ID
            tail = self.id
        if self.token is not None:
            flags |= FLAG_TOKEN
            tail += _hash_field(self.token)
        command = self.command
        tail += bytes((command,)) if 0 <= command <= 0xFC else _encode_long_uint(command)
        if self.target is not None:
            flags |= FLAG_TARGET
            tail += _hash_field(self.target)
        if (value := self.value) is not None:
            flags |= FLAG_VALUE
            tail += _encode_uint(len(value)) + value
        try:
            return HEADER.pack(REQUEST, flags, self.tid, pack_address(self.to)) + tail
        except struct.error as err:
            raise LocalProtocolError(f"tid {self.tid} is not 0 … 65535") from err


@dataclass(slots=True)
class Response:
    tid: int
    to: Address
    """the requester's address as the responder sees it: a NAT sample"""
    id: bytes | None = None
    token: bytes | None = None
    closer_nodes: list[Address] = field(default_factory=list)
    """nearest to the target first, at most MAX_CLOSER_NODES"""
    error: int = 0
    value: bytes | None = None

    def encode(self) -> bytes:
        """The datagram.

        Raises:
            LocalProtocolError: a field does not fit.
        """
        nodes = b"".join(map(pack_address, self.closer_nodes))
        return encode_response(
            self.tid, self.to, self.id, self.token, nodes, self.error, self.value
        )


def encode_response(
    tid: int,
    to: Address,
    id: bytes | None,
    token: bytes | None,
    closer_nodes: bytes,
    error: int,
    value: bytes | None,
) -> bytes:
    """The datagram of a Response with these fields; `closer_nodes` are addresses, packed already.

    Raises:
        LocalProtocolError: a field does not fit.
    """
    flags = 0
    fields = [b""]  # the first takes the header, which tells what follows
    if id is not None:
        flags = FLAG_ID
        fields.append(id)
    if token is not None:
        flags |= FLAG_TOKEN
        fields.append(token)
    if closer_nodes:
        count = len(closer_nodes) // ADDRESS_SIZE
        if count > MAX_CLOSER_NODES:
            raise LocalProtocolError(f"{count} closer nodes, at most {MAX_CLOSER_NODES}")
        flags |= FLAG_CLOSER_NODES
        fields.append(ONE_BYTE[count])
        fields.append(closer_nodes)
    if error:
        flags |= FLAG_ERROR
        fields.append(_encode_uint(error))
    if value is not None:
        flags |= FLAG_VALUE
        fields.append(_encode_uint(len(value)))
        fields.append(value)
    try:
        fields[0] = HEADER.pack(RESPONSE, flags, tid, pack_address(to))
    except struct.error as err:
        raise LocalProtocolError(f"tid {tid} is not 0 … 65535") from err
    return b"".join(fields)


def decode_untrusted(data: bytes) -> Request | Response:
    """The request or response in one datagram; bytes behind its last field are ignored.

    Raises:
        Truncated: a field reaches beyond the end.
        InvalidValue: another kind or version, or more than MAX_CLOSER_NODES nodes.

    Wire: docs/protocol/dht-rpc.md sections 2.1 and 2.2; dht-rpc lib/io.js.
    """
    size = len(data)
    if size < MIN_SIZE:
        raise Truncated(f"a dht-rpc packet has at least {MIN_SIZE} bytes, got {size}")
    kind, flags, tid, to = HEADER.unpack_from(data)
    if kind != REQUEST and kind != RESPONSE:
        raise InvalidValue(f"first byte {kind:#04x} is neither a request nor a response")
    position = MIN_SIZE
    # Slices and positions may run past the end here; the one check at the bottom covers them all.
    try:
        if flags > 0xFC:  # a legal encoding, though nobody uses these bits
            flags, position = _decode_uint(data, 1)
            tid, to = TID_TO.unpack_from(data, position)
            position += TID_TO.size
        sender = token = target = value = None
        if flags & FLAG_ID:
            sender = data[position : position + HASH_SIZE]
            position += HASH_SIZE
        if flags & FLAG_TOKEN:
            token = data[position : position + HASH_SIZE]
            position += HASH_SIZE
        if kind == REQUEST:
            command, position = _decode_uint(data, position)
            if flags & FLAG_TARGET:
                target = data[position : position + HASH_SIZE]
                position += HASH_SIZE
        else:
            nodes: list[Address] = []
            if flags & FLAG_CLOSER_NODES:
                count, position = _decode_uint(data, position)
                if count > MAX_CLOSER_NODES:
                    raise InvalidValue(f"{count} closer nodes, at most {MAX_CLOSER_NODES} allowed")
                end = position + 6 * count
                if end > size:
                    raise Truncated(f"{count} closer nodes promised, {size - position} bytes there")
                nodes = [unpack_address(data[i : i + 6]) for i in range(position, end, 6)]
                position = end
            error = 0
            if flags & FLAG_ERROR:
                error, position = _decode_uint(data, position)
        if flags & FLAG_VALUE:
            length, position = _decode_uint(data, position)
            value = data[position : position + length]
            position += length
    except (IndexError, struct.error) as err:
        raise Truncated(f"packet of {size} bytes ends inside a field") from err
    if position > size:
        raise Truncated(f"fields need {position} bytes, {size} there")
    if kind == REQUEST:
        internal = flags & FLAG_INTERNAL != 0
        return Request(tid, unpack_address(to), command, internal, sender, token, target, value)
    return Response(tid, unpack_address(to), sender, token, nodes, error, value)


def is_bare_ping(data: bytes) -> bool:
    """Whether a datagram is a PING of a node that shows no id: nothing but its tid is to be read.

    Servers ping each of their three nodes every 3 s: it is most of what comes in.
    """
    return len(data) == BARE_PING_SIZE and data[:2] == BARE_PING and data[-1] == PING


def read_bare_query(data: bytes) -> tuple[int, bool, bytes, bytes | None] | None:
    """Command, internal, target and value of a request that shows neither an id nor a token.

    None is any other datagram, also some that are such a request in a way that nobody writes. It is
    what searches of most nodes consist of, and reading it takes a third of decode_untrusted.
    """
    size = len(data)
    if size < BARE_QUERY_SIZE or data[0] != REQUEST:
        return None
    flags = data[1]
    if flags & BARE_QUERY_FIXED != FLAG_TARGET or data[10] > 0xFC:
        return None
    value = None
    if flags & FLAG_VALUE:
        if size == BARE_QUERY_SIZE or data[BARE_QUERY_SIZE] > 0xFC:
            return None
        end = BARE_QUERY_SIZE + 1 + data[BARE_QUERY_SIZE]
        if end > size:
            return None
        value = data[BARE_QUERY_SIZE + 1 : end]
    return data[10], flags & FLAG_INTERNAL != 0, data[11:BARE_QUERY_SIZE], value


def _decode_uint(data: bytes, position: int) -> tuple[int, int]:
    """A uint and the position behind it, which may lie beyond the end.

    Raises:
        IndexError: not even the first byte is there.
    """
    first = data[position]
    position += 1
    if first <= 0xFC:
        return first, position
    end = position + (1 << (first - 0xFC))
    return int.from_bytes(data[position:end], "little"), end


def _hash_field(data: bytes) -> bytes:
    if len(data) != HASH_SIZE:
        raise LocalProtocolError(f"tokens and targets take {HASH_SIZE} bytes, got {len(data)}")
    return data


def _encode_uint(value: int) -> bytes:
    if 0 <= value <= 0xFC:
        return ONE_BYTE[value]
    if 0xFC < value <= 0xFFFF:  # the length of most values
        return MEDIUM_UINT.pack(0xFD, value)
    return _encode_long_uint(value)


def _encode_long_uint(value: int) -> bytes:
    for marker, size in ((0xFD, 2), (0xFE, 4), (0xFF, 8)):
        if 0 <= value < 1 << (8 * size):
            return bytes((marker,)) + value.to_bytes(size, "little")
    raise LocalProtocolError(f"{value} is not an unsigned 64-bit integer")
