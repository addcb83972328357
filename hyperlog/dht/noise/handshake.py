"""HandshakeState of the Noise specification: patterns IK and XX over ed25519.

HyperDHT runs IK with the server's key known in advance; a secret stream without a DHT runs XX.
Diffie-Hellman is done on the Edwards curve itself, not on X25519, because peers are addressed by
their ed25519 signing keys.

Spec: The Noise Protocol Framework, revision 34, sections 5.3 and 7.5;
docs/protocol/noise-secret-stream.md section 1; noise-handshake noise.js, noise-curve-ed index.js.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha512
from typing import Final, Literal

import nacl.exceptions
from nacl import bindings

from hyperlog.dht.errors import InvalidValue, LocalProtocolError, RemoteProtocolError, Truncated
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.noise.symmetric import MAX_MESSAGE, TAG_SIZE, SymmetricState

__all__ = ["HandshakeResult", "HandshakeState"]

DH_SIZE: Final = 32  # bytes of a public key and of a shared secret
SEED_SIZE: Final = 32  # bytes

# Message patterns; in a two-letter token the first letter is the initiator's key.
PATTERNS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "IK": (("e", "es", "s", "ss"), ("e", "ee", "se")),
    "XX": (("e",), ("e", "ee", "s", "es"), ("s", "se")),
}
RESPONDER_KNOWN: Final = frozenset({"IK"})  # patterns with the pre-message `<- s`


@dataclass(slots=True)
class HandshakeResult:
    """What both sides of a finished handshake agree on."""

    tx: bytes = field(repr=False)
    """32-byte key of what we send"""
    rx: bytes = field(repr=False)
    """32-byte key of what we receive"""
    handshake_hash: bytes = field(repr=False)
    """64 bytes, the same on both sides; no secret: it follows from the messages and the
    responder's public key"""
    remote_public_key: bytes
    is_initiator: bool


class HandshakeState:
    """One side of a handshake: write and read messages in turn until `complete`.

    A message that fails to authenticate changes nothing: whoever injects garbage cannot end a
    handshake, the true message may still follow.

    Args:
        pattern: "IK" or "XX".
        static: our long-lived key pair.
        random_bytes: called once with 32 for the seed of the ephemeral key pair.
        remote_public_key: the responder's key; needed by the initiator of IK and by nobody else.

    Raises:
        LocalProtocolError: `remote_public_key` is missing, superfluous or of a wrong size.
    """

    def __init__(
        self,
        pattern: Literal["IK", "XX"],
        is_initiator: bool,
        static: KeyPair,
        *,
        random_bytes: Callable[[int], bytes],
        prologue: bytes = b"",
        remote_public_key: bytes | None = None,
    ) -> None:
        if (remote_public_key is not None) != (is_initiator and pattern in RESPONDER_KNOWN):
            raise LocalProtocolError("exactly the initiator of IK names the responder's public key")
        if remote_public_key is not None and len(remote_public_key) != DH_SIZE:
            raise LocalProtocolError(f"a public key has {DH_SIZE} bytes")
        self._is_initiator = is_initiator
        self._random_bytes = random_bytes
        self._messages = PATTERNS[pattern]
        self._turn = 0  # index of the next message
        self._static_public = static.public_key
        self._static_scalar = _scalar(static.secret_key[:SEED_SIZE])
        self._ephemeral_public = b""
        self._ephemeral_scalar = b""
        self._remote_static = remote_public_key or b""
        self._remote_ephemeral = b""
        self._symmetric = SymmetricState(f"Noise_{pattern}_Ed25519_ChaChaPoly_BLAKE2b".encode())
        self._symmetric.mix_hash(prologue)
        if pattern in RESPONDER_KNOWN:
            self._symmetric.mix_hash(remote_public_key or static.public_key)

    @property
    def complete(self) -> bool:
        """Whether all messages of the pattern have been written and read."""
        return self._turn == len(self._messages)

    @property
    def remote_public_key(self) -> bytes | None:
        """The other side's static key once it is known and authenticated."""
        return self._remote_static or None

    @property
    def handshake_hash(self) -> bytes:
        """The running hash, 64 bytes; final when `complete`."""
        return self._symmetric.handshake_hash

    def result(self) -> HandshakeResult:
        """The keys of the finished handshake.

        Raises:
            LocalProtocolError: messages are still missing.
        """
        if not self.complete:
            raise LocalProtocolError("the handshake is not finished")
        first, second = self._symmetric.split()
        tx, rx = (first, second) if self._is_initiator else (second, first)
        return HandshakeResult(
            tx, rx, self._symmetric.handshake_hash, self._remote_static, self._is_initiator
        )

    def write_message(self, payload: bytes = b"") -> bytes:
        """The next message, carrying `payload`.

        Raises:
            LocalProtocolError: it is not our turn, the payload is too long, or the public key we
                were told to talk to is no point of the curve.
        """
        tokens = self._next_tokens(ours=True)
        symmetric = self._symmetric.copy()
        parts = []
        try:
            for token in tokens:
                if token == "e":
                    if not self._ephemeral_public:
                        seed = self._random_bytes(SEED_SIZE)
                        self._ephemeral_public = bindings.crypto_sign_seed_keypair(seed)[0]
                        self._ephemeral_scalar = _scalar(seed)
                    symmetric.mix_hash(self._ephemeral_public)
                    parts.append(self._ephemeral_public)
                elif token == "s":
                    parts.append(symmetric.encrypt_and_hash(self._static_public))
                else:
                    symmetric.mix_key(self._dh(token, self._remote_static, self._remote_ephemeral))
        except RemoteProtocolError as err:
            raise LocalProtocolError("the remote public key is not on the curve") from err
        parts.append(symmetric.encrypt_and_hash(payload))
        message = b"".join(parts)
        if len(message) > MAX_MESSAGE:
            raise LocalProtocolError(f"a Noise message has at most {MAX_MESSAGE} bytes")
        self._symmetric = symmetric
        self._turn += 1
        return message

    def read_message_untrusted(self, message: bytes) -> bytes:
        """The payload of the other side's next message.

        Nothing is computed for a message of an impossible size.

        Raises:
            Truncated, InvalidValue: impossible size, or a key that is no usable point.
            BadSignature: a tag does not verify.
            LocalProtocolError: it is our turn to write.
        """
        tokens = self._next_tokens(ours=False)
        symmetric = self._symmetric.copy()
        overhead = _overhead(tokens, symmetric.has_key)
        if len(message) < overhead:
            raise Truncated(f"Noise message of {len(message)} bytes, at least {overhead} needed")
        if len(message) > MAX_MESSAGE:
            raise InvalidValue(f"Noise message of {len(message)} bytes, at most {MAX_MESSAGE}")
        remote_static, remote_ephemeral = self._remote_static, self._remote_ephemeral
        position = 0
        for token in tokens:
            if token == "e":
                remote_ephemeral = message[position : position + DH_SIZE]
                position += DH_SIZE
                symmetric.mix_hash(remote_ephemeral)
            elif token == "s":
                size = DH_SIZE + TAG_SIZE if symmetric.has_key else DH_SIZE
                remote_static = symmetric.decrypt_and_hash(message[position : position + size])
                position += size
            else:
                symmetric.mix_key(self._dh(token, remote_static, remote_ephemeral))
        payload = symmetric.decrypt_and_hash(message[position:])
        self._remote_static, self._remote_ephemeral = remote_static, remote_ephemeral
        self._symmetric = symmetric
        self._turn += 1
        return payload

    def _next_tokens(self, ours: bool) -> tuple[str, ...]:
        if self.complete:
            raise LocalProtocolError("the handshake is finished already")
        if ours != (self._is_initiator == (self._turn % 2 == 0)):
            raise LocalProtocolError("it is the other side's turn in the handshake")
        return self._messages[self._turn]

    def _dh(self, token: str, remote_static: bytes, remote_ephemeral: bytes) -> bytes:
        local, remote = (token[0], token[1]) if self._is_initiator else (token[1], token[0])
        return _shared_point(
            self._static_scalar if local == "s" else self._ephemeral_scalar,
            remote_static if remote == "s" else remote_ephemeral,
        )


def _overhead(tokens: tuple[str, ...], has_key: bool) -> int:
    """Bytes of a message with an empty payload."""
    size = 0
    for token in tokens:
        if token == "e":
            size += DH_SIZE
        elif token == "s":
            size += DH_SIZE + (TAG_SIZE if has_key else 0)
        else:
            has_key = True
    return size + (TAG_SIZE if has_key else 0)


def _scalar(seed: bytes) -> bytes:
    """The clamped secret scalar of an ed25519 seed (RFC 8032 section 5.1.5)."""
    scalar = bytearray(sha512(seed).digest()[:32])
    scalar[0] &= 248
    scalar[31] &= 127
    scalar[31] |= 64
    return bytes(scalar)


def _shared_point(scalar: bytes, public_key: bytes) -> bytes:
    try:
        return bindings.crypto_scalarmult_ed25519_noclamp(scalar, public_key)
    except nacl.exceptions.RuntimeError as err:
        # Identity, points of small order and everything off the curve: accepting them would let a
        # peer force a shared secret that it knows.
        raise InvalidValue("public key is not a usable point of the curve") from err
