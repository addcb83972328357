"""The two messages that a peer and a blind relay exchange.

Wire: docs/protocol/hyperdht.md section 12; blind-relay index.js `messages`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from hyperlog.dht.compact import Reader, Writer
from hyperlog.dht.errors import InvalidValue

__all__ = ["PAIR", "PROTOCOL", "UNPAIR", "Pair", "Unpair"]

PROTOCOL: Final = "blind-relay"
PAIR: Final = 0  # numbers of the messages
UNPAIR: Final = 1

TOKEN_SIZE: Final = 32  # bytes
IS_INITIATOR: Final = 1  # flag


@dataclass(slots=True)
class Pair:
    """Asks to be joined with whoever shows the same token; the relay answers with a stream."""

    is_initiator: bool
    token: bytes = field(repr=False)
    """32 bytes that both ends of the connection know"""
    id: int
    """UDX stream id of the sender"""
    seq: int = 0

    def encode(self) -> bytes:
        """Raises LocalProtocolError for a token that has not 32 bytes, or numbers below zero."""
        writer = Writer().uint(IS_INITIATOR if self.is_initiator else 0)
        return writer.fixed(self.token, TOKEN_SIZE).uint(self.id).uint(self.seq).finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Pair:
        """Raises RemoteProtocolError for what is cut short, and for ids that UDX cannot carry."""
        reader = Reader(data)
        flags = reader.uint()
        token = reader.fixed(TOKEN_SIZE)
        pair = cls(bool(flags & IS_INITIATOR), token, reader.uint(), reader.uint())
        if pair.id >= 1 << 32:
            raise InvalidValue(f"{pair.id} is no UDX stream id")
        return pair


@dataclass(slots=True)
class Unpair:
    """Takes a Pair back."""

    token: bytes = field(repr=False)
    """32 bytes"""

    def encode(self) -> bytes:
        """Raises LocalProtocolError for a token that has not 32 bytes."""
        return Writer().uint(0).fixed(self.token, TOKEN_SIZE).finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Unpair:
        reader = Reader(data)
        reader.uint()  # flags, none in use
        return cls(reader.fixed(TOKEN_SIZE))
