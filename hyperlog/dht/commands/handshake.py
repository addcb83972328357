"""The two Noise IK messages of PEER_HANDSHAKE, with the payloads inside.

The prologue ties the handshake to HyperDHT; from its hash both ends derive one more key, for the
hole punch messages that still travel through other nodes.

Compat: nodes that relay both Noise messages and know the server's public key can compute that hash,
and the hole punch key with it (hyperdht 6.34.0 lib/noise-wrap.js derives it so). They could mislead
a hole punch; the connection itself is out of their reach.

Wire: docs/protocol/hyperdht.md section 8, noise-secret-stream.md section 2; hyperdht
lib/noise-wrap.js.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hyperlog.dht.commands.messages import NAMESPACE, NoisePayload
from hyperlog.dht.constants import PEER_HANDSHAKE, PEER_HOLEPUNCH
from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.keys import KeyPair, generic_hash, namespace
from hyperlog.dht.noise.handshake import HandshakeResult, HandshakeState

__all__ = ["HandshakeInitiator", "HandshakeResponder"]

PROLOGUE: Final = namespace(NAMESPACE, PEER_HANDSHAKE)


class HandshakeInitiator:
    """The client: `send` once, then `receive_untrusted` until a reply is genuine.

    Raises:
        LocalProtocolError: `remote_public_key` has not 32 bytes.
    """

    def __init__(
        self, key_pair: KeyPair, remote_public_key: bytes, random_bytes: Callable[[int], bytes]
    ) -> None:
        self.remote_public_key = remote_public_key
        self._state = HandshakeState(
            "IK",
            True,
            key_pair,
            random_bytes=random_bytes,
            prologue=PROLOGUE,
            remote_public_key=remote_public_key,
        )

    @property
    def complete(self) -> bool:
        """Whether a genuine reply came; `receive_untrusted` must not be called any more then."""
        return self._state.complete

    def send(self, payload: NoisePayload) -> bytes:
        """Message 1; send the same bytes to every node that may know the server.

        Raises:
            LocalProtocolError: called twice, a payload that does not fit, or a `remote_public_key`
                that is none.
        """
        return self._state.write_message(payload.encode())

    def receive_untrusted(self, noise: bytes) -> NoisePayload:
        """The server's payload.

        Raises:
            RemoteProtocolError: not from the server; another reply may still be genuine, unless
                `complete` says that the server itself sent an unreadable payload.
        """
        return NoisePayload.decode_untrusted(self._state.read_message_untrusted(noise))

    def result(self) -> HandshakeResult:
        """The keys of the connection.

        Raises:
            LocalProtocolError: not `complete`.
        """
        return self._state.result()

    @property
    def holepunch_secret(self) -> bytes:
        """The 32-byte key of the hole punch payloads; errors as of `result`."""
        return _holepunch_secret(self._state)


class HandshakeResponder:
    """The server: `receive_untrusted` a message 1, then `send` the answer; one per message 1."""

    def __init__(self, key_pair: KeyPair, random_bytes: Callable[[int], bytes]) -> None:
        self._state = HandshakeState(
            "IK", False, key_pair, random_bytes=random_bytes, prologue=PROLOGUE
        )

    @property
    def complete(self) -> bool:
        """Whether the answer was made."""
        return self._state.complete

    @property
    def remote_public_key(self) -> bytes:
        """The client's key, which it has proven to own only when its first frame authenticates.

        Whoever recorded a message 1 can repeat it, and can even make the hello of the secret stream
        (see `SecretStreamCore.authenticated`), but cannot send or read a message.

        Raises:
            LocalProtocolError: no message was received.
        """
        if self._state.remote_public_key is None:
            raise LocalProtocolError("the client's key is in its first message")
        return self._state.remote_public_key

    def receive_untrusted(self, noise: bytes) -> NoisePayload:
        """The client's payload.

        Costs two scalar multiplications, one for what is not meant for our key, and none for what
        has an impossible size.

        Raises:
            RemoteProtocolError: not a handshake with our key, or an unreadable payload.
        """
        return NoisePayload.decode_untrusted(self._state.read_message_untrusted(noise))

    def send(self, payload: NoisePayload) -> bytes:
        """Message 2.

        Raises:
            LocalProtocolError: out of turn, or a payload that does not fit.
        """
        return self._state.write_message(payload.encode())

    def result(self) -> HandshakeResult:
        """The keys of the connection.

        Raises:
            LocalProtocolError: not `complete`.
        """
        return self._state.result()

    @property
    def holepunch_secret(self) -> bytes:
        """The 32-byte key of the hole punch payloads; errors as of `result`."""
        return _holepunch_secret(self._state)


def _holepunch_secret(state: HandshakeState) -> bytes:
    if not state.complete:
        raise LocalProtocolError("the handshake is not finished")
    return generic_hash(namespace(NAMESPACE, PEER_HOLEPUNCH), key=state.handshake_hash)
