"""Identities: ed25519 key pairs, the hash behind every target and id, and signature namespaces.

Source: hypercore-crypto index.js, hyperdht lib/crypto.js; docs/protocol/hyperdht.md section 1.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

import nacl.exceptions
from nacl import bindings

from hyperlog.dht.errors import LocalProtocolError

__all__ = ["KeyPair", "generic_hash", "namespace", "sign", "verify"]

PUBLIC_KEY_SIZE = 32  # bytes
SECRET_KEY_SIZE = 64  # bytes: seed and public key, as libsodium keeps it
SIGNATURE_SIZE = 64  # bytes


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ed25519 key pair; the public key is the address of a peer."""

    public_key: bytes
    """32 bytes"""
    secret_key: bytes = field(repr=False)
    """64 bytes: 32 of seed, 32 of public key"""

    def __post_init__(self) -> None:
        if len(self.public_key) != PUBLIC_KEY_SIZE or len(self.secret_key) != SECRET_KEY_SIZE:
            raise LocalProtocolError(
                "a key pair is a public key of 32 and a secret key of 64 bytes"
            )
        if bindings.crypto_sign_seed_keypair(self.secret_key[:32]) != (
            self.public_key,
            self.secret_key,
        ):
            raise LocalProtocolError("publicKey does not belong to secretKey")

    @classmethod
    def generate(cls) -> KeyPair:
        """Make a fresh random key pair."""
        return cls.from_seed(os.urandom(32))

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        """Derive the key pair of a 32-byte seed; the same seed gives the same pair everywhere."""
        if len(seed) != 32:
            raise LocalProtocolError(f"a seed has 32 bytes, got {len(seed)}")
        public_key, secret_key = bindings.crypto_sign_seed_keypair(seed)
        return cls(public_key, secret_key)

    @classmethod
    def from_json(cls, data: str | bytes) -> KeyPair:
        """The key pair of a keys.dat: a JSON object with `publicKey` and `secretKey` in hex.

        Compat: the file of hypertrace-logger start-server.js.

        Raises:
            LocalProtocolError: it holds none; the text names the field, and nothing of the secret.
        """
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError):
            raise LocalProtocolError("the keys are no JSON") from None
        if not isinstance(fields, dict):
            raise LocalProtocolError("the keys are no JSON object")
        return cls(
            _hex_field(fields, "publicKey", PUBLIC_KEY_SIZE),
            _hex_field(fields, "secretKey", SECRET_KEY_SIZE),
        )

    def to_json(self) -> str:
        """What `from_json` reads; it holds the secret key."""
        fields = {"publicKey": self.public_key.hex(), "secretKey": self.secret_key.hex()}
        return json.dumps(fields, separators=(",", ":"))


def _hex_field(fields: dict[str, object], name: str, size: int) -> bytes:
    text = fields.get(name)
    try:
        key = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        key = b""
    if len(key) != size:
        raise LocalProtocolError(f"{name} is not {2 * size} hexadecimal digits")
    return key


def generic_hash(data: bytes, key: bytes = b"") -> bytes:
    """BLAKE2b-256, keyed when `key` (up to 64 bytes) is given; libsodium's crypto_generichash."""
    return blake2b(data, digest_size=32, key=key).digest()


@lru_cache(maxsize=64)
def namespace(name: str, number: int) -> bytes:
    """The 32 bytes that keep signatures and hashes of one purpose apart from those of another.

    Spec: hypercore-crypto index.js `namespace`: hash(hash(name) + one byte).
    """
    return generic_hash(generic_hash(name.encode()) + bytes([number]))


def sign(message: bytes, secret_key: bytes) -> bytes:
    """Detached ed25519 signature, 64 bytes."""
    return bindings.crypto_sign(message, secret_key)[:SIGNATURE_SIZE]


def verify(signature: bytes, message: bytes, public_key: bytes) -> bool:
    """Whether `signature` is a valid one of `message`; False also for inputs of a wrong size."""
    if len(signature) != SIGNATURE_SIZE or len(public_key) != PUBLIC_KEY_SIZE:
        return False
    try:
        bindings.crypto_sign_open(signature + message, public_key)
    except (nacl.exceptions.BadSignatureError, ValueError):
        return False
    return True
