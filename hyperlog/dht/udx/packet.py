"""One UDX datagram: a 20-byte header, then either SACK blocks or padding, then payload.

    0 magic 0xFF   1 version 1   2 flags   3 data offset
    4 id of the receiver's stream        8 free receive window of the sender, bytes
    12 seq                               16 ack: next seq that the sender of the packet expects

Everything is little-endian. `HEADER` reads magic and version as one number because the stream's hot
path compares both at once; `Packet` is the readable form for tests, tools and rare packets.

Spec: docs/protocol/udx.md section 2.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import Final

from hyperlog.dht.errors import InvalidValue, LocalProtocolError, Truncated

__all__ = [
    "DATA",
    "DESTROY",
    "END",
    "HEADER",
    "HEADER_SIZE",
    "HEARTBEAT",
    "MAGIC_AND_VERSION",
    "MAX_SACK_BLOCKS",
    "MESSAGE",
    "SACK",
    "SEQ_MASK",
    "STATE",
    "Flags",
    "Packet",
    "decode_untrusted",
    "encode",
    "sack_blocks_untrusted",
    "stream_id_untrusted",
]

HEADER: Final = struct.Struct("<HBBIIII")
HEADER_SIZE: Final = 20
MAGIC_AND_VERSION: Final = 0x01FF
SEQ_MASK: Final = 0xFFFFFFFF
MAX_SACK_BLOCKS: Final = 128
"""Blocks that we send at most: what a datagram of 1200 bytes carries.

Compat: libudx sends 50 (include/udx.h) and takes any number. With 50, a sender whose path drops
every few packets learns of most deliveries late and in bursts, and mistakes those for bandwidth.
"""
MAX_SACK_AREA: Final = 2048  # bytes looked at, as libudx reads no longer datagram
SACK_BLOCK: Final = struct.Struct("<II")

STATE: Final = 0
DATA: Final = 0x01
END: Final = 0x02
SACK: Final = 0x04
MESSAGE: Final = 0x08
DESTROY: Final = 0x10
HEARTBEAT: Final = 0x20


class Flags(enum.IntFlag):
    """Names for `repr` and tests; the hot paths use the plain numbers above."""

    DATA = DATA
    END = END
    SACK = SACK
    MESSAGE = MESSAGE
    DESTROY = DESTROY
    HEARTBEAT = HEARTBEAT


@dataclass(slots=True)
class Packet:
    flags: int
    "A sum of flag numbers; 0 is a plain acknowledgement, called STATE. 0x40 and 0x80 are free."
    stream_id: int
    "The local id of the stream that receives the packet."
    rwnd: int
    "Bytes that the sender of the packet can take."
    seq: int
    ack: int
    data_offset: int = 0
    "Bytes between header and payload, 0 … 255: padding, or the SACK area in front of a payload."
    sacks: list[tuple[int, int]] = field(default_factory=list)
    "Ranges of seqs held beyond `ack`, each [start, end)."
    payload: bytes = b""


def stream_id_untrusted(data: bytes | memoryview) -> int | None:
    """Return the stream id of a UDX datagram, None for every other datagram.

    Wire: docs/protocol/udx.md section 1: length, magic and version decide, nothing else.
    """
    if len(data) < HEADER_SIZE or data[0] != 0xFF or data[1] != 1:
        return None
    return data[4] | data[5] << 8 | data[6] << 16 | data[7] << 24


def sack_blocks_untrusted(data: bytes | memoryview, data_offset: int) -> list[tuple[int, int]]:
    """Return the SACK blocks of a datagram that has the SACK flag; a last partial block is ignored.

    A data offset that leaves payload bytes over bounds the area; otherwise all the rest is blocks.
    """
    area = len(data) - HEADER_SIZE
    if 0 < data_offset < area:
        area = data_offset
    area = min(area - area % SACK_BLOCK.size, MAX_SACK_AREA)
    return list(SACK_BLOCK.iter_unpack(data[HEADER_SIZE : HEADER_SIZE + area]))


def decode_untrusted(data: bytes | memoryview) -> Packet:
    """Read one whole datagram.

    A SACK without DATA or MESSAGE has no payload, whatever its data offset says.

    Raises:
        Truncated: shorter than a header, or than the data offset promises.
        InvalidValue: not magic 0xFF and version 1.

    Wire: docs/protocol/udx.md section 2.
    """
    if len(data) < HEADER_SIZE:
        raise Truncated(f"UDX header takes {HEADER_SIZE} bytes, {len(data)} there")
    magic, flags, data_offset, stream_id, rwnd, seq, ack = HEADER.unpack_from(data)
    if magic != MAGIC_AND_VERSION:
        raise InvalidValue(f"not a UDX datagram of version 1: {magic:#06x}")
    if data_offset > len(data) - HEADER_SIZE:
        raise Truncated(f"data offset {data_offset}, {len(data) - HEADER_SIZE} bytes there")
    sacks = sack_blocks_untrusted(data, data_offset) if flags & SACK else []
    payload = b""
    if not flags & SACK or flags & (DATA | MESSAGE):
        payload = bytes(data[HEADER_SIZE + data_offset :])
    return Packet(flags, stream_id, rwnd, seq, ack, data_offset, sacks, payload)


def encode(packet: Packet) -> bytes:
    """Return the datagram of a packet; padding is zero bytes.

    Raises:
        LocalProtocolError: SACK blocks and payload that the data offset cannot tell apart.
    """
    area = b"".join(SACK_BLOCK.pack(*block) for block in packet.sacks)
    if packet.sacks and not packet.flags & SACK:
        raise LocalProtocolError("SACK blocks need the SACK flag")
    if len(area) < packet.data_offset:
        if packet.sacks:
            raise LocalProtocolError("padding behind SACK blocks would be read as blocks")
        area = bytes(packet.data_offset)
    elif packet.payload and len(area) != packet.data_offset:
        raise LocalProtocolError("SACK blocks before a payload need their size as data offset")
    header = HEADER.pack(
        MAGIC_AND_VERSION,
        packet.flags,
        packet.data_offset,
        packet.stream_id,
        packet.rwnd,
        packet.seq,
        packet.ack,
    )
    return header + area + packet.payload
