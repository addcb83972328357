"""Hole punch payloads: what the two ends tell each other through relaying nodes, encrypted.

Wire: docs/protocol/hyperdht.md sections 3 and 10; hyperdht lib/messages.js `holepunchPayload`,
lib/secure-payload.js.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import nacl.exceptions
from nacl import bindings

from hyperlog.dht.compact import Address, Reader, Writer
from hyperlog.dht.constants import ERROR_NONE, FIREWALL_UNKNOWN
from hyperlog.dht.errors import BadSignature, LocalProtocolError, Truncated
from hyperlog.dht.keys import generic_hash

__all__ = ["HolepunchPayload", "SecurePayload"]

CONNECTED: Final = 1
PUNCHING: Final = 2
ADDRESSES: Final = 4
REMOTE_ADDRESS: Final = 8
TOKEN: Final = 16
REMOTE_TOKEN: Final = 32

SECRET_SIZE: Final = 32  # bytes of the shared and of the local secret, and of a token
NONCE_SIZE: Final = 24  # bytes
MAC_SIZE: Final = 16  # bytes
IPV4_SIZE: Final = 6  # bytes with port


@dataclass(slots=True)
class HolepunchPayload:
    """One side's view of the attempt."""

    error: int = ERROR_NONE
    firewall: int = FIREWALL_UNKNOWN
    """the sender's own NAT, FIREWALL_* of constants.py"""
    round: int = 0
    """counts the initiator's messages"""
    connected: bool = False
    punching: bool = False
    """whether the sender sends probes now, or will on hearing that we do"""
    addresses: list[Address] | None = None
    """where the sender's socket appears to the outside"""
    remote_address: Address | None = None
    """where the sender has sent a probe to already"""
    token: bytes | None = field(default=None, repr=False)
    """32 bytes, to be sent back as `remote_token`"""
    remote_token: bytes | None = field(default=None, repr=False)
    """32 bytes that the sender got from us: it receives what we send to its address"""

    def encode(self) -> bytes:
        """The plain bytes.

        Raises:
            LocalProtocolError: a value does not fit its field.
        """
        flags = CONNECTED if self.connected else 0
        flags |= PUNCHING if self.punching else 0
        flags |= ADDRESSES if self.addresses is not None else 0
        flags |= REMOTE_ADDRESS if self.remote_address is not None else 0
        flags |= TOKEN if self.token is not None else 0
        flags |= REMOTE_TOKEN if self.remote_token is not None else 0
        writer = Writer().uint(flags).uint(self.error).uint(self.firewall).uint(self.round)
        if self.addresses is not None:
            writer.array(self.addresses, writer.ipv4_address)
        if self.remote_address is not None:
            writer.ipv4_address(self.remote_address)
        if self.token is not None:
            writer.fixed(self.token, SECRET_SIZE)
        if self.remote_token is not None:
            writer.fixed(self.remote_token, SECRET_SIZE)
        return writer.finish()

    @classmethod
    def decode_untrusted(cls, data: bytes) -> HolepunchPayload:
        """The payload of plain bytes; raises RemoteProtocolError and nothing else."""
        reader = Reader(data)
        flags = reader.uint()
        return cls(
            error=reader.uint(),
            firewall=reader.uint(),
            round=reader.uint(),
            connected=bool(flags & CONNECTED),
            punching=bool(flags & PUNCHING),
            addresses=reader.array(reader.ipv4_address, IPV4_SIZE) if flags & ADDRESSES else None,
            remote_address=reader.ipv4_address() if flags & REMOTE_ADDRESS else None,
            token=reader.fixed(SECRET_SIZE) if flags & TOKEN else None,
            remote_token=reader.fixed(SECRET_SIZE) if flags & REMOTE_TOKEN else None,
        )


class SecurePayload:
    """Encrypts the payloads of one attempt and makes its address tokens.

    Args:
        holepunch_secret: 32 bytes that both ends derive from their handshake.
        random_bytes: called with 32 for the secret of our tokens, and with 24 for each payload.

    Raises:
        LocalProtocolError: a secret of another size.
    """

    def __init__(self, holepunch_secret: bytes, random_bytes: Callable[[int], bytes]) -> None:
        if len(holepunch_secret) != SECRET_SIZE:
            raise LocalProtocolError(f"a hole punch secret has {SECRET_SIZE} bytes")
        self._shared_secret = holepunch_secret
        self._random_bytes = random_bytes
        self._local_secret = random_bytes(SECRET_SIZE)

    def encrypt(self, payload: HolepunchPayload) -> bytes:
        """The bytes for `Holepunch.payload`; errors as of `HolepunchPayload.encode`."""
        nonce = self._random_bytes(NONCE_SIZE)
        return nonce + bindings.crypto_secretbox(payload.encode(), nonce, self._shared_secret)

    def decrypt_untrusted(self, data: bytes) -> HolepunchPayload:
        """The payload that the other end encrypted.

        Raises:
            BadSignature: encrypted under another key, or changed on its way.
            RemoteProtocolError: too short, or unreadable inside.
        """
        if len(data) <= NONCE_SIZE + MAC_SIZE:
            raise Truncated(f"hole punch payload of {len(data)} bytes")
        nonce, sealed = data[:NONCE_SIZE], data[NONCE_SIZE:]
        try:
            plain = bindings.crypto_secretbox_open(sealed, nonce, self._shared_secret)
        except nacl.exceptions.CryptoError as err:
            raise BadSignature("hole punch payload does not authenticate") from err
        return HolepunchPayload.decode_untrusted(plain)

    def token(self, address: Address) -> bytes:
        """32 bytes that only a peer receiving at the host of `address` can send back to us."""
        return generic_hash(address[0].encode(), key=self._local_secret)
