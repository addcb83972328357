"""SecretStreamCore: encrypted messages over an ordered byte stream.

Theory of operation
-------------------
Both sides come with the result of a finished handshake. Each writes its hello at once, without
waiting for the other: 32 bytes that name the connection and the role, and the header of its
secretstream. After that every frame is one message; boundaries are kept. The hello proves nothing,
since the handshake hash follows from what travels in the open; the first frame does.

    writing   hello() once, then seal() / seal_many() in any number
    reading   HELLO --56-byte frame with the id of the other role--> OPEN --any fault--> FAILED

A fault is final, because the cipher states would not agree any more. Messages that were decrypted
in front of the fault are handed over first; the error comes with the next call.

The end of the stream is not authenticated: the byte stream's own end counts, and `eof()` only tells
whether a frame was cut.

Wire: docs/protocol/noise-secret-stream.md section 3; @hyperswarm/secret-stream index.js.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import nacl.exceptions
from nacl import bindings

from hyperlog.dht.errors import (
    InvalidValue,
    LocalProtocolError,
    RemoteProtocolError,
    Truncated,
)
from hyperlog.dht.keys import generic_hash, namespace
from hyperlog.dht.noise.aead import (
    HEADER_SIZE,
    LENGTH_SIZE,
    FrameOpener,
    FrameSealer,
)
from hyperlog.dht.noise.handshake import HandshakeResult

__all__ = ["MAX_MESSAGE", "SecretStreamCore", "stream_id"]

MAX_MESSAGE: Final = 16 * 1024 * 1024 - 18  # bytes: what a u24 length leaves
KEEP_ALIVE: Final = 5.0  # s, hyperdht index.js connectionKeepAlive

NAMESPACE: Final = "hyperswarm/secret-stream"
INITIATOR, RESPONDER, SEND = 0, 1, 2

ID_SIZE: Final = 32  # bytes
HELLO_SIZE: Final = ID_SIZE + HEADER_SIZE  # bytes behind the length
COUNTER_SIZE: Final = 8  # bytes in front of an unordered message
MAC_SIZE: Final = 16  # bytes of a secretbox
BLOCK_SIZE: Final = 256 * 1024  # bytes of an incomplete frame in one piece


def stream_id(handshake_hash: bytes, is_initiator: bool) -> bytes:
    """The 32 bytes with which the side of that role opens its hello."""
    role = namespace(NAMESPACE, INITIATOR if is_initiator else RESPONDER)
    return generic_hash(role, key=handshake_hash)


class SecretStreamCore:
    """One side of an encrypted connection, without IO.

    Args:
        result: of the finished handshake.
        random_bytes: called with 24 for the header and with 8 for the first unordered counter.
        max_message: bytes that we send or accept in one message.
        keep_alive: seconds without a write after which `handle_timer` gives an empty message;
            None for never. Empty messages from the peer are swallowed in either case.
    """

    def __init__(
        self,
        result: HandshakeResult,
        *,
        random_bytes: Callable[[int], bytes],
        max_message: int = MAX_MESSAGE,
        keep_alive: float | None = KEEP_ALIVE,
    ) -> None:
        if not 0 <= max_message <= MAX_MESSAGE:
            raise LocalProtocolError(f"max_message is 0 to {MAX_MESSAGE} bytes")
        self._result = result
        self._random_bytes = random_bytes
        self._max_message = max_message
        self._keep_alive = keep_alive
        self._written_at: float | None = None
        self._sealer: FrameSealer | None = None
        self._opener: FrameOpener | None = None
        # The frame that is not complete yet. In pieces: a growing buffer of 16 MiB leaves holes in
        # the memory of the process that are as large again.
        self._partial: list[bytearray] = []
        self._partial_size = 0
        self._needed = 0  # bytes that _partial must reach before reading it makes sense
        self._counter: int | None = None
        self._unordered_keys: tuple[bytes, bytes] | None = None
        self.error: RemoteProtocolError | None = None
        """Why the peer's bytes are not read any more; None while all is well."""
        self.authenticated = False
        """Whether a frame of the peer has authenticated, an empty one included: only that proves
        that it holds the secret key of its public key."""

    @property
    def opened(self) -> bool:
        """Whether the peer's hello has arrived.

        That proves nothing: who relays the handshake can make the hello too; see `authenticated`.
        """
        return self._opener is not None

    @property
    def held_bytes(self) -> int:
        """Bytes of a frame of the peer that is not complete."""
        return self._partial_size

    def discard(self) -> None:
        """Forget the incomplete frame: nothing more will be received."""
        self._partial = []
        self._partial_size = 0

    # Writing

    def hello(self) -> bytes:
        """Our first frame, 59 bytes; it goes out before anything else.

        Raises:
            LocalProtocolError: called twice.
        """
        if self._sealer is not None:
            raise LocalProtocolError("the hello was made already")
        header = self._random_bytes(HEADER_SIZE)
        self._sealer = FrameSealer(self._result.tx, header)
        role = stream_id(self._result.handshake_hash, self._result.is_initiator)
        return HELLO_SIZE.to_bytes(LENGTH_SIZE, "little") + role + header

    def seal(self, message: bytes) -> bytes:
        """One frame, 20 bytes longer than `message`; frames must be written in the order made.

        Raises:
            LocalProtocolError: the message is too long, hello() was not called, or the peer failed.
        """
        return self.seal_many((message,))

    def seal_many(self, messages: Sequence[bytes]) -> bytes:
        """The frames of all `messages`, joined; errors as of `seal`, and then nothing is sealed."""
        if self._sealer is None:
            raise LocalProtocolError("hello() comes first")
        if self.error is not None:
            raise LocalProtocolError("the connection has failed") from self.error
        return self._sealer.seal(messages, self._max_message)

    # Reading

    def receive(self, chunks: Iterable[bytes | memoryview]) -> list[bytes]:
        """Take the next bytes of the stream, cut anywhere; get the messages that they complete.

        Costs time linear in the bytes, whatever the cuts. Keeps at most one frame of `max_message`
        bytes and the chunks of one call.

        Raises:
            InvalidValue: a wrong hello, or a frame too small or over the limit, which is seen from
                its first three bytes.
            BadSignature: a frame does not authenticate.
            Both on this call when no message came in front of the fault, otherwise on the next, and
            again on every later one.
        """
        if self.error is not None:
            raise self.error
        parts = chunks if isinstance(chunks, list | tuple) else list(chunks)
        data: bytes | memoryview = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._partial:
            self._add(data)
            if self._partial_size < self._needed:
                return []
            data = b"".join(self._partial)
            self.discard()
        messages: list[bytes] = []
        try:
            position = 0
            if self._opener is None:
                position = self._read_hello(data)
            if self._opener is not None:
                position = self._opener.open(data, position, self._max_message, messages)
        except RemoteProtocolError as err:
            self.error = err
        else:
            if position < len(data):
                self._keep(data, position)
        if messages:
            self.authenticated = True
        if b"" in messages:
            messages = [message for message in messages if message]
        if self.error is not None and not messages:
            raise self.error
        return messages

    def eof(self) -> None:
        """Tell that the byte stream has ended.

        Raises:
            Truncated: inside a frame, or before the hello.
            RemoteProtocolError: the fault of an earlier `receive` that was not raised yet.
        """
        if self.error is not None:
            raise self.error
        if self._partial or self._opener is None:
            self.error = Truncated("stream ended inside a frame")
            raise self.error

    def _read_hello(self, data: bytes | memoryview) -> int:
        if len(data) < LENGTH_SIZE:
            return 0
        length = int.from_bytes(data[:LENGTH_SIZE], "little")
        if length != HELLO_SIZE:
            raise InvalidValue(f"hello of {length} bytes, {HELLO_SIZE} expected")
        end = LENGTH_SIZE + HELLO_SIZE
        if len(data) < end:
            return 0
        hello = bytes(data[LENGTH_SIZE:end])
        expected = stream_id(self._result.handshake_hash, not self._result.is_initiator)
        if hello[:ID_SIZE] != expected:
            raise InvalidValue("hello belongs to another connection or to our own role")
        self._opener = FrameOpener(self._result.rx, hello[ID_SIZE:])
        return end

    def _keep(self, data: bytes | memoryview, position: int) -> None:
        rest = memoryview(data)[position:]
        self._add(rest)
        self._needed = LENGTH_SIZE
        if len(rest) >= LENGTH_SIZE:
            self._needed += int.from_bytes(rest[:LENGTH_SIZE], "little")

    def _add(self, data: bytes | memoryview) -> None:
        if self._partial and len(self._partial[-1]) < BLOCK_SIZE:
            self._partial[-1] += data
        else:
            self._partial.append(bytearray(data))
        self._partial_size += len(data)

    # Messages outside the stream

    def seal_unordered(self, message: bytes) -> bytes:
        """A datagram of `message` plus 24 bytes, independent of the stream and of hello().

        It protects neither order nor against replay, and keeps nothing from the nodes that relayed
        the handshake: its key follows from the handshake hash, and that from what they have seen.
        """
        if self._counter is None:
            self._counter = int.from_bytes(self._random_bytes(COUNTER_SIZE), "little")
        self._counter = (self._counter + 1) & 0xFFFF_FFFF_FFFF_FFFF
        counter = self._counter.to_bytes(COUNTER_SIZE, "little")
        return counter + bindings.crypto_secretbox(message, counter + bytes(16), self._send_keys[0])

    def open_unordered(self, data: bytes) -> bytes | None:
        """The message of such a datagram from the peer; None for anything else, to be ignored."""
        if len(data) < COUNTER_SIZE + MAC_SIZE:
            return None
        nonce = data[:COUNTER_SIZE] + bytes(16)
        try:
            return bindings.crypto_secretbox_open(data[COUNTER_SIZE:], nonce, self._send_keys[1])
        except nacl.exceptions.CryptoError:
            return None

    @property
    def _send_keys(self) -> tuple[bytes, bytes]:
        """Ours and the peer's key for unordered messages; most connections never need them."""
        if self._unordered_keys is None:
            hashed = self._result.handshake_hash
            send = namespace(NAMESPACE, SEND)
            ours = generic_hash(namespace(NAMESPACE, INITIATOR) + send, key=hashed)
            theirs = generic_hash(namespace(NAMESPACE, RESPONDER) + send, key=hashed)
            if not self._result.is_initiator:
                ours, theirs = theirs, ours
            self._unordered_keys = ours, theirs
        return self._unordered_keys

    # Keep-alive

    def wrote(self, now: float) -> None:
        """Tell that frames were written at `now`, the hello included."""
        self._written_at = now

    def get_timer(self) -> float | None:
        """When to call `handle_timer`; None before the first write and without keep-alive."""
        if self._keep_alive is None or self._written_at is None or self.error is not None:
            return None
        return self._written_at + self._keep_alive

    def handle_timer(self, now: float) -> bytes | None:
        """An empty message to write, when nothing was written for `keep_alive` seconds."""
        due_at = self.get_timer()
        if due_at is None or now < due_at:
            return None
        self._written_at = now
        return self.seal(b"")
