"""A peer's public key in the forms that people and programs pass on.

    32 bytes                       the key itself
    64 hex digits          as keys are printed here and by hypertrace-logger
    52 characters of z-base-32     as hypercore-id-encoding prints them
    pear://KEY/PATH                a link; what follows the key is ignored
    a HyperDHT address             the key and nodes that reach its holder, as bytes or in hex

Source: hypercore-id-encoding index.js, z32 index.js, hyperdht-address spec/hyperschema;
docs/protocol/hyperdht.md section 1. The JavaScript packages know addresses as bytes only.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Sequence
from typing import Final

from hyperlog.dht.compact import Address, Reader, Writer
from hyperlog.dht.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["decode_public_key", "decode_z32", "encode_address", "encode_z32"]

KEY_SIZE: Final = 32  # bytes
HEX_SIZE: Final = 2 * KEY_SIZE  # characters
Z32_SIZE: Final = 52  # characters of a key
MAX_NODES: Final = 64  # of one address
HAS_NODES: Final = 1  # flag of an address
LINK: Final = "pear://"

ALPHABET: Final = "ybndrfg8ejkmcpqxot1uwisza345h769"
DIGITS: Final = {character: value for value, character in enumerate(ALPHABET)}


def encode_z32(data: bytes) -> str:
    """The bytes in z-base-32, five bits a character; the last one is filled up with zero bits."""
    length = -(-8 * len(data) // 5)
    number = int.from_bytes(data, "big") << (5 * length - 8 * len(data))
    return "".join(ALPHABET[number >> shift & 31] for shift in range(5 * length - 5, -5, -5))


def decode_z32(text: str) -> bytes:
    """The whole bytes in z-base-32 text; bits that make no whole byte are ignored, as in z32.

    Raises:
        LocalProtocolError: a character that is none of the 32; capitals are not.
    """
    number = 0
    for character in text:
        value = DIGITS.get(character)
        if value is None:
            raise LocalProtocolError(f"{character!r} is no character of z-base-32")
        number = number << 5 | value
    size = 5 * len(text) // 8
    return (number >> (5 * len(text) - 8 * size)).to_bytes(size, "big")


def encode_address(public_key: bytes, nodes: Sequence[Address]) -> bytes:
    """The HyperDHT address of a peer that `nodes` reach.

    Raises:
        LocalProtocolError: the key is not 32 bytes, a node no IPv4 address, or they are too many.
    """
    if len(nodes) > MAX_NODES:
        raise LocalProtocolError(f"{len(nodes)} nodes are too many for one address")
    writer = Writer().fixed(public_key, KEY_SIZE).uint(HAS_NODES if nodes else 0)
    return writer.array(nodes, writer.ipv4_address).finish() if nodes else writer.finish()


def decode_public_key(value: bytes | str) -> tuple[bytes, list[Address]]:
    """The public key (32 bytes), and the nodes that reach its holder if an address names some.

    Raises:
        LocalProtocolError: it is none of the forms above; the text says what is wrong with it.
    """
    if isinstance(value, str):
        value = _from_text(value)
    elif not isinstance(value, bytes | bytearray | memoryview):
        raise LocalProtocolError(f"a public key is bytes or text, not {type(value).__name__}")
    if len(value) < KEY_SIZE:
        raise LocalProtocolError(f"a public key has {KEY_SIZE} bytes, got {len(value)}")
    reader = Reader(value)
    try:
        return reader.fixed(KEY_SIZE), _read_nodes(reader)
    except RemoteProtocolError as err:
        raise LocalProtocolError(
            f"{len(value)} bytes are neither a public key nor a whole HyperDHT address: {err}"
        ) from err


def _read_nodes(reader: Reader) -> list[Address]:
    if not reader.remaining or not reader.uint() & HAS_NODES:
        return []
    nodes = reader.array(reader.ipv4_address, item_size=6)
    if len(nodes) > MAX_NODES:
        raise LocalProtocolError(f"{len(nodes)} nodes are too many for one address")
    return nodes


def _from_text(text: str) -> bytes:
    key = text[len(LINK) :].partition("/")[0] if text.startswith(LINK) else text
    if len(key) == Z32_SIZE:
        return decode_z32(key)
    if len(key) < HEX_SIZE:
        raise LocalProtocolError(
            f"a public key is {HEX_SIZE} hex digits or {Z32_SIZE} characters of z-base-32, "
            f"got {len(key)} characters"
        )
    if len(key) % 2:
        raise LocalProtocolError(f"hex digits come in pairs, got {len(key)} characters")
    try:
        return unhexlify(key)
    except ValueError:
        raise LocalProtocolError(
            f"{len(key)} characters, but not all of them are hex digits"
        ) from None
