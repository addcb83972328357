"""Service: encrypted connections, which keep message boundaries.

One `send` is one message and one `data` event of a JavaScript peer. Decryption happens in the task
that receives, out of what the stream below has collected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import FIREWALL_UNKNOWN
from hyperlog.dht.errors import DHTError, RemoteProtocolError
from hyperlog.dht.noise.secretstream import SecretStreamCore
from hyperlog.dht.streams import READ_CHUNK, OneTask, UDXStream
from hyperlog.dht.udx.stream import UDXStreamStatistics

__all__ = ["Connection", "ConnectionStatistics", "Opening"]

MAX_UNORDERED: Final = 256  # unordered messages kept for a reader; older ones are dropped


@dataclass(slots=True)
class Opening:
    """How a connection came about, and what was tried for it."""

    seconds: float | None = None
    """from the call, or from the peer's handshake, to the hello; None before that"""
    handshakes: int = 0
    """handshake messages: nodes that we asked, or nodes through which the peer's came"""
    punches: int = 0
    """hole punches begun"""
    relays: int = 0
    """connections through a relay begun"""
    remote_firewall: int = FIREWALL_UNKNOWN
    """the peer's NAT as it was last told: a FIREWALL_* of constants.py"""


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """One connection, now."""

    path: str
    """direct, lan, punched or relayed"""
    paths: tuple[str, ...]
    """all so far, the present one last"""
    opening: Opening
    remote_address: Address | None
    round_trip_time: float | None
    """s, smoothed"""
    messages_sent: int
    messages_received: int
    bytes_sent: int
    """frames included, each byte once"""
    stream: UDXStreamStatistics


class Connection(trio.abc.Channel[bytes]):
    """An encrypted, authenticated link to one peer, on which messages keep their boundaries.

    Made by `DHT.connect` and by a listener. An empty message is a keep-alive and is never received.
    """

    def __init__(
        self,
        stream: UDXStream,
        secret: SecretStreamCore,
        *,
        public_key: bytes,
        remote_public_key: bytes,
        handshake_hash: bytes,
        is_initiator: bool,
        path: str,
        opening: Opening | None = None,
    ) -> None:
        self.public_key = public_key
        self.remote_public_key = remote_public_key
        self.handshake_hash = handshake_hash
        self.is_initiator = is_initiator
        self.opening = opening or Opening()
        self.on_authenticated: Callable[[], None] | None = None
        """Called once, when the peer has proved that it holds `remote_public_key`."""
        self._stream = stream
        self._secret = secret
        self._messages: deque[bytes] = deque()
        self._unordered: deque[bytes] = deque(maxlen=MAX_UNORDERED)
        self._unordered_lot = trio.lowlevel.ParkingLot()
        self._held_since = trio.current_time()
        self._paths = [path]
        self._path_lot = trio.lowlevel.ParkingLot()
        self._when_closed: list[Callable[[], None]] = []
        self._broken: DHTError | None = None
        self._closed_here = False
        self._send_conflict = OneTask("sending on")
        self._receive_conflict = OneTask("receiving from")
        self._messages_sent = 0
        self._messages_received = 0
        self._bytes_written = 0
        stream.on_message = self._take_unordered
        stream.on_closed = self._stream_closed
        stream.get_extra_timer = secret.get_timer
        stream.handle_extra_timer = self._keep_alive
        self._write(secret.hello())

    # -- what it is -------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """How packets go now: direct, lan, punched or relayed."""
        return self._paths[-1]

    def set_path(self, path: str) -> None:
        """The packets go another way from now on; for what finds the ways."""
        self._paths.append(path)
        self._path_lot.unpark_all()

    async def path_changed(self) -> str:
        """Wait until the connection changes over to another path; returns it.

        That happens once at most, from relayed to one of the others.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: the connection ended before.
        """
        known = len(self._paths)
        await trio.lowlevel.checkpoint()
        while len(self._paths) == known:
            self._stream.check_usable()
            await self._path_lot.park()
        return self.path

    @property
    def stream(self) -> UDXStream:
        """The stream that carries the encrypted bytes; whoever uses it ends the connection."""
        return self._stream

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the stream is over, in whatever way; at once if it is."""
        if self._stream.finished:
            callback()
        else:
            self._when_closed.append(callback)

    @property
    def remote_address(self) -> Address | None:
        """UDP address that we send to."""
        return self._stream.core.remote_address

    @property
    def local_socket(self) -> int | None:
        """Which of the node's sockets we send from, as `Sockets` counts them."""
        return self._stream.socket

    @property
    def round_trip_time(self) -> float | None:
        """Smoothed round-trip time in seconds, None before the first sample."""
        return self._stream.core.rtt

    @property
    def bytes_written(self) -> int:
        """Stream bytes queued so far; compare with `bytes_acknowledged`."""
        return self._bytes_written

    @property
    def bytes_acknowledged(self) -> int:
        """How many of `bytes_written` the peer's transport has confirmed."""
        return self._bytes_written - self._stream.unacknowledged_bytes

    @property
    def heard_at(self) -> float:
        """When the last packet of the peer came, in trio's time."""
        return self._stream.heard_at

    @property
    def authenticated(self) -> bool:
        """Whether the peer has proved that it holds `remote_public_key`.

        Its first message does, or its keep-alive 5 s later. The hello does not: it is made from
        what every node that relayed the handshake has seen, so a node could replay somebody's
        handshake as far as that. Only the key's owner can read what is sent to it.
        """
        return self._secret.authenticated

    @property
    def closed(self) -> bool:
        return self._stream.finished

    @property
    def held_bytes(self) -> int:
        """Memory that what the peer has sent counts for until it is received."""
        return (
            self._stream.core.held_bytes
            + self._secret.held_bytes
            + sum(map(len, self._messages))
            + sum(map(len, self._unordered))
        )

    @property
    def held_since(self) -> float:
        """When the peer began the message that it has not completed yet, in trio's time."""
        return self._held_since

    def set_receive_window(self, window: int) -> None:
        """Let the peer send so many bytes ahead of what is received."""
        self._stream.set_receive_window(window)

    def copy_views(self) -> None:
        """Let go of larger buffers that unread bytes are views of."""
        self._stream.core.copy_views()

    def statistics(self) -> ConnectionStatistics:
        return ConnectionStatistics(
            path=self.path,
            paths=tuple(self._paths),
            opening=replace(self.opening),
            remote_address=self.remote_address,
            round_trip_time=self.round_trip_time,
            messages_sent=self._messages_sent,
            messages_received=self._messages_received,
            bytes_sent=self._bytes_written,
            stream=self._stream.core.statistics(),
        )

    async def opened(self) -> None:
        """Return when the peer's hello has arrived: the path works in both directions.

        It does not prove who the peer is, see `authenticated`.

        Raises:
            trio.BrokenResourceError: the peer went away or sent something else.
        """
        while not self._secret.opened:
            self._check_broken()
            if not await self._stream.wait_readable():
                raise trio.BrokenResourceError("the peer ended the connection before its hello")
            self._pull()

    # -- sending ----------------------------------------------------------------------------------

    def _write(self, frames: bytes) -> None:
        self._stream.write_soon(frames)
        self._bytes_written += len(frames)
        self._secret.wrote(trio.current_time())

    def _keep_alive(self, now: float) -> None:
        if self._stream.core.unsent_bytes:
            self._secret.wrote(now)  # a window that stays shut must not pile up keep-alives
            return
        frame = self._secret.handle_timer(now)
        if frame is not None and not self._stream.finished:
            try:
                self._write(frame)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                pass  # our direction has ended: nothing to keep alive

    async def send(self, value: bytes) -> None:
        """Send one message of at most 16 MiB - 18 bytes; returns when it is queued.

        Raises:
            LocalProtocolError: the message is too long.
            trio.ClosedResourceError, trio.BrokenResourceError: closed here, or lost.
        """
        await self.send_many((value,))

    async def send_many(self, values: Sequence[bytes]) -> None:
        """Send several messages in one go: far cheaper than one `send` each."""
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            await self._stream.wait_writable()
            self.send_soon(values)

    def send_soon(self, values: Sequence[bytes]) -> None:
        """Queue messages without waiting; the caller bounds how much (see `wait_writable`)."""
        self._check_broken()
        self._write(self._secret.seal_many(values))
        self._messages_sent += len(values)

    async def wait_writable(self) -> None:
        """Return when little enough is queued that more may be sent."""
        await self._stream.wait_writable()

    async def wait_acknowledged(self) -> None:
        """Return when the peer's transport has confirmed all that was written so far.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: the connection ended before.
        """
        goal = self._bytes_written
        while self.bytes_acknowledged < goal:
            self._stream.check_usable()
            await self._stream.wait_progress()

    def set_liveness(self, interval: float = 2.0, limit: float = 5.0) -> None:
        """Break the connection when nothing at all has come from the peer for `limit` seconds.

        After `interval` idle seconds the peer is asked for a sign of life. Without this a dead peer
        is noticed about 18 s after it vanished: 5 s to our next keep-alive, 13 s to give that up.
        """
        self._stream.set_liveness(interval, limit)

    def send_unordered(self, message: bytes) -> None:
        """Send one datagram (about 1100 bytes at most) that may get lost or overtaken.

        Only the peer and nodes that relayed the handshake can read it or make such ones; messages
        of `send` are the peer's alone. The protocol of the JavaScript peers has it so.
        """
        self._stream.send_message(self._secret.seal_unordered(message))

    # -- receiving --------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed_here:
            raise trio.ClosedResourceError("this end of the connection is closed")

    def _check_broken(self) -> None:
        if self._broken is not None:
            raise trio.BrokenResourceError(str(self._broken)) from self._broken

    def _pull(self) -> None:
        chunks = self._stream.take(READ_CHUNK)
        if not chunks:
            return
        begins = not self._secret.held_bytes
        try:
            messages = self._secret.receive(chunks)
        except RemoteProtocolError:
            messages = []
        if messages or begins:
            self._held_since = trio.current_time()
        if self.on_authenticated is not None and self._secret.authenticated:
            self.on_authenticated()
            self.on_authenticated = None
        self._messages.extend(messages)
        self._messages_received += len(messages)
        if self._secret.error is not None:
            # The peer must hear of it now; a reader gets the messages in front of the fault first.
            self._broken = self._secret.error
            self._stream.destroy()
            if not messages:
                self._check_broken()

    async def receive(self) -> bytes:
        """Return the next message.

        Raises:
            trio.EndOfChannel: the peer ended its direction after its last message.
            trio.BrokenResourceError: the connection was reset, timed out, or carried forged data.
            trio.ClosedResourceError: closed on this side.
        """
        if self._messages and not self._closed_here:
            await trio.lowlevel.checkpoint()
            if self._messages:  # closing forgets them
                return self._messages.popleft()
        messages = await self.receive_many()
        first = messages[0]
        self._messages.extendleft(reversed(messages[1:]))
        return first

    async def receive_many(self) -> list[bytes]:
        """Return all messages that have arrived, at least one; raises as `receive` does."""
        with self._receive_conflict:
            await trio.lowlevel.checkpoint()
            self._check_open()
            while not self._messages:
                self._check_broken()
                if not await self._stream.wait_readable():
                    try:
                        self._secret.eof()
                    except RemoteProtocolError as err:
                        self._broken = err
                        self._check_broken()
                    raise trio.EndOfChannel
                self._pull()
            messages = list(self._messages)
            self._messages.clear()
            return messages

    def _take_unordered(self, data: bytes) -> None:
        message = self._secret.open_unordered(data) if data else None
        if message is not None and not self._closed_here:
            self._unordered.append(message)
            self._unordered_lot.unpark_all()

    def _stream_closed(self) -> None:
        self._unordered_lot.unpark_all()
        self._path_lot.unpark_all()
        callbacks, self._when_closed = self._when_closed, []
        for callback in callbacks:
            callback()

    async def receive_unordered(self) -> bytes:
        """Return the next unordered message; beyond 256 unread ones the oldest are dropped.

        It need not be the peer's, see `send_unordered`.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: closed here, or lost.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        while not self._unordered:
            self._stream.check_usable()
            await self._unordered_lot.park()
        return self._unordered.popleft()

    # -- closing ----------------------------------------------------------------------------------

    async def send_eof(self) -> None:
        """End our direction after everything sent; receiving goes on."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Deliver what was sent and end both directions; UDXStream.aclose tells how long."""
        self._closed_here = True
        self._messages.clear()
        self._unordered.clear()
        self._secret.discard()
        self._unordered_lot.unpark_all()
        await self._stream.aclose()

    def abort(self, reason: DHTError | None = None) -> None:
        """End at once: the peer sees a reset, and what was not received is forgotten.

        With a `reason`, whoever uses the connection gets a trio.BrokenResourceError that has it as
        its cause, not a trio.ClosedResourceError.
        """
        self._closed_here = self._closed_here or reason is None
        if reason is not None and self._broken is None:
            # The stream may have ended in order, and would tell that behind what is forgotten here.
            self._broken = self._stream.error or reason
        self._messages.clear()
        self._unordered.clear()
        self._secret.discard()
        self._stream.destroy(reason)
        self._unordered_lot.unpark_all()
