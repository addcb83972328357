"""CipherState and SymmetricState of the Noise specification, for ChaChaPoly and BLAKE2b.

Spec: The Noise Protocol Framework, revision 34, sections 5.1 and 5.2;
docs/protocol/noise-secret-stream.md section 1; noise-handshake cipher.js,
symmetric-state.js, hkdf.js.
"""

from __future__ import annotations

import hmac
from hashlib import blake2b
from typing import Final

import nacl.exceptions
from nacl import bindings

from hyperlog.dht.errors import BadSignature, LocalProtocolError, Truncated

__all__ = ["HASH_SIZE", "KEY_SIZE", "MAX_MESSAGE", "TAG_SIZE", "CipherState", "SymmetricState"]

HASH_SIZE: Final = 64  # bytes, BLAKE2b-512
KEY_SIZE: Final = 32  # bytes
TAG_SIZE: Final = 16  # bytes, Poly1305
MAX_MESSAGE: Final = 65535  # bytes, Noise section 3


class CipherState:
    """A cipher key and its message counter; without a key, text passes through unchanged."""

    __slots__ = ("_key", "_nonce")

    def __init__(self, key: bytes | None = None, nonce: int = 0) -> None:
        self._key = key
        self._nonce = nonce

    @property
    def has_key(self) -> bool:
        return self._key is not None

    def copy(self) -> CipherState:
        return CipherState(self._key, self._nonce)

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        """Encrypt and count up; the result is 16 bytes longer once there is a key."""
        if self._key is None:
            return plaintext
        if len(plaintext) + TAG_SIZE > MAX_MESSAGE:
            raise LocalProtocolError(f"a Noise message has at most {MAX_MESSAGE} bytes")
        ciphertext = bindings.crypto_aead_chacha20poly1305_ietf_encrypt(
            plaintext, ad, self._next_nonce(), self._key
        )
        self._nonce += 1
        return ciphertext

    def decrypt_with_ad(self, ad: bytes, ciphertext: bytes) -> bytes:
        """Decrypt and count up; after an error the counter stands where it stood.

        Raises:
            Truncated: too short for a tag.
            BadSignature: the tag does not belong to this key, counter, `ad` and text.
        """
        if self._key is None:
            return ciphertext
        if len(ciphertext) < TAG_SIZE:
            raise Truncated(f"ciphertext of {len(ciphertext)} bytes has no room for its tag")
        try:
            plaintext = bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
                ciphertext, ad, self._next_nonce(), self._key
            )
        except nacl.exceptions.CryptoError as err:
            raise BadSignature("Noise authentication tag does not verify") from err
        self._nonce += 1
        return plaintext

    def _next_nonce(self) -> bytes:
        return bytes(4) + self._nonce.to_bytes(8, "little")


class SymmetricState:
    """The running hash, the chaining key, and the cipher made from it."""

    __slots__ = ("_chaining_key", "_cipher", "_hash")

    def __init__(self, protocol_name: bytes) -> None:
        if len(protocol_name) <= HASH_SIZE:
            self._hash = protocol_name.ljust(HASH_SIZE, b"\0")
        else:
            self._hash = blake2b(protocol_name).digest()
        self._chaining_key = self._hash
        self._cipher = CipherState()

    @property
    def has_key(self) -> bool:
        return self._cipher.has_key

    @property
    def handshake_hash(self) -> bytes:
        """64 bytes that depend on everything said so far."""
        return self._hash

    def copy(self) -> SymmetricState:
        """An independent state, so that a message that turns out forged leaves this one alone."""
        clone = SymmetricState.__new__(SymmetricState)
        clone._hash = self._hash
        clone._chaining_key = self._chaining_key
        clone._cipher = self._cipher.copy()
        return clone

    def mix_key(self, input_key_material: bytes) -> None:
        self._chaining_key, key = _hkdf(self._chaining_key, input_key_material)
        self._cipher = CipherState(key[:KEY_SIZE])

    def mix_hash(self, data: bytes) -> None:
        self._hash = blake2b(self._hash + data).digest()

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = self._cipher.encrypt_with_ad(self._hash, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """Like `CipherState.decrypt_with_ad`, with the running hash as associated data."""
        plaintext = self._cipher.decrypt_with_ad(self._hash, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The two 32-byte transport keys: initiator to responder, responder to initiator."""
        first, second = _hkdf(self._chaining_key, b"")
        return first[:KEY_SIZE], second[:KEY_SIZE]


def _hkdf(chaining_key: bytes, input_key_material: bytes) -> tuple[bytes, bytes]:
    digest = hmac.digest
    temporary = digest(chaining_key, input_key_material, blake2b)
    first = digest(temporary, b"\x01", blake2b)
    return first, digest(temporary, first + b"\x02", blake2b)
