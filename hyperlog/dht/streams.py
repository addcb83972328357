"""Service: UDX streams and encrypted connections for trio programs.

`UDXStream` is a byte stream (`trio.abc.HalfCloseableStream`); `Connection` keeps message boundaries
(`trio.abc.Channel[bytes]`): one `send` is one message and one `data` event of a JavaScript peer.

Theory of operation. The node's sockets push packets into the UDX core as they arrive; readers pull
out of it: a connection decrypts in the task that receives, and what nobody reads stays in the core,
whose advertised window then closes. That is the whole of the flow control.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import RemoteProtocolError, StreamError, StreamTimeout
from hyperlog.dht.noise.secretstream import SecretStreamCore
from hyperlog.dht.sockets import Sockets
from hyperlog.dht.udx.events import EndReceived, MessageReceived, StreamClosed
from hyperlog.dht.udx.stream import UDXStreamCore, UDXStreamStatistics

__all__ = ["Connection", "ConnectionStatistics", "UDXStream"]

logger = logging.getLogger("hyperlog.dht.streams")

HIGH_WATER: Final = 512 * 1024  # bytes written but never sent, above which writers wait
READ_CHUNK: Final = (
    256 * 1024
)  # bytes decrypted at a time, so that one reader does not hold the loop
MAX_UNORDERED: Final = 256  # unordered messages kept for a reader; older ones are dropped
SILENCE_CHECK: Final = 1.0  # s between looks at how long a peer has been silent
LATE_CHECK: Final = 0.25  # s behind time, from which on our own process must have been stopped
LINGER: Final = 2.0  # s that aclose waits for the peer to confirm the end


class _OneTask:
    """Context that a second task cannot enter while the first is in it."""

    __slots__ = ("_busy", "_doing")

    def __init__(self, doing: str) -> None:
        self._busy = False
        self._doing = doing

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(f"another task is already {self._doing} this")
        self._busy = True

    def __exit__(self, *_exc: object) -> None:
        self._busy = False


class UDXStream(trio.abc.HalfCloseableStream):
    """A reliable byte stream over UDX; connected once the peer's address is known."""

    def __init__(self, sockets: Sockets, core: UDXStreamCore) -> None:
        self.core = core
        self.socket: int | None = None
        self.on_unconnected_packet: Callable[[int, Address], None] | None = None
        """Called with local socket and source of every packet that comes before `connect`."""
        self.on_message: Callable[[bytes], None] | None = None
        """Called with each unordered message."""
        self.on_closed: Callable[[], None] | None = None
        """Called once, when the stream has ended in whatever way."""
        self.get_extra_timer: Callable[[], float | None] | None = None
        self.handle_extra_timer: Callable[[float], None] | None = None
        self._sockets = sockets
        self._heard_at = 0.0
        self._silence_limit: float | None = None
        self._silence_check_at = 0.0
        self._silent_since = 0.0
        self._written = 0
        self._acknowledged = 0
        # Of each flight under way: the seq behind it, and which of the bytes written it completes.
        self._flights: deque[tuple[int, int]] = deque()
        self._error: StreamError | None = None
        self._finished = False
        self._closed_here = False
        self._destroyed = False
        self._ended = False
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        self._progress = trio.lowlevel.ParkingLot()
        self._send_conflict = _OneTask("sending on")
        self._receive_conflict = _OneTask("receiving from")
        sockets.add_stream(core.local_id, self)

    # -- towards the sockets (StreamHandler) ------------------------------------------------------

    def receive(self, data: bytes | memoryview, address: Address, socket: int, now: float) -> None:
        self.core.receive_datagram(data, address, now)
        # The very first packet may be the peer's DESTROY: then there is nothing to connect to.
        if self.socket is None and self.on_unconnected_packet is not None and not self.core.closed:
            self.on_unconnected_packet(socket, address)

    def batch_done(self, now: float) -> None:
        core = self.core
        self._heard_at = now
        if not core.closed:
            while self._flights and self._flights[0][0] <= core.acked_seq:
                self._acknowledged = self._flights.popleft()[1]
        self._take_events()
        if self._readers and core.readable_bytes:
            self._readers.unpark_all()
        if self._progress:
            self._progress.unpark_all()

    def _take_events(self) -> None:
        core = self.core
        event = core.next_event()
        while event is not None:
            if isinstance(event, MessageReceived):
                if self.on_message is not None:
                    self.on_message(event.data)
            elif isinstance(event, EndReceived):
                self._readers.unpark_all()
            elif isinstance(event, StreamClosed):
                if event.error is None and not self._destroyed:
                    self._acknowledged = self._written  # the peer has acknowledged our end
                self._finish(event.error)
            event = core.next_event()

    def datagrams_to_send(self, now: float) -> list[tuple[Address, list[bytes]]]:
        core = self.core
        groups = core.datagrams_to_send(now)
        sent = self._written - core.unsent_bytes
        if not core.closed and sent > (
            self._flights[-1][1] if self._flights else self._acknowledged
        ):
            self._flights.append((core.next_seq, sent))
        if self._writers and core.unsent_bytes <= HIGH_WATER // 2:
            self._writers.unpark_all()
        if not groups and core.closed:
            self._take_events()  # the last acknowledgement has gone out
        return groups

    def get_timer(self) -> float | None:
        timer = self.core.get_timer()
        if self.get_extra_timer is not None:
            extra = self.get_extra_timer()
            if extra is not None and (timer is None or extra < timer):
                timer = extra
        if self._silence_limit is not None:
            check_at = self._silence_check_at
            if timer is None or check_at < timer:
                timer = check_at
        return timer

    def handle_timer(self, now: float) -> None:
        self.core.handle_timer(now)
        if self.handle_extra_timer is not None and not self._finished:
            self.handle_extra_timer(now)
        self._take_events()
        if self._silence_limit is not None and not self._finished:
            self._check_silence(now, self._silence_limit)

    def _check_silence(self, now: float, limit: float) -> None:
        late = now - self._silence_check_at
        if late < 0:
            return
        self._silent_since = max(self._silent_since, self._heard_at)
        if late > LATE_CHECK:
            # We slept, not the peer: its packets may be waiting in the socket right now, or it was
            # never asked for one. That time does not count.
            self._silent_since += late
        if now >= self._silent_since + limit:
            self._destroyed = True
            self.core.destroy(now)
            self._finish(StreamTimeout(f"nothing came from the peer for {limit:g} s"))
        else:
            self._silence_check_at = min(now + SILENCE_CHECK, self._silent_since + limit)

    @property
    def heard_at(self) -> float:
        """When the last packet of the peer came, in trio's time; 0 before the first."""
        return self._heard_at

    def set_liveness(self, interval: float, limit: float) -> None:
        """Give the peer up when nothing at all has come from it for `limit` seconds.

        After `interval` idle seconds a HEARTBEAT asks for an answer, which every UDX peer gives.
        """
        self._silence_limit = limit
        now = trio.current_time()
        self._silent_since = now
        self._silence_check_at = now + min(SILENCE_CHECK, limit)
        self.core.set_keep_alive(interval, now)
        self._sockets.mark_dirty(self.core.local_id)

    # -- life -------------------------------------------------------------------------------------

    def connect(self, socket: int, remote_id: int, address: Address) -> None:
        """Send from `socket` to `address` from now on; what came before is acknowledged."""
        self.socket = socket
        self._sockets.hold(socket)
        self.core.connect(remote_id, address, trio.current_time())
        self._sockets.mark_dirty(self.core.local_id)

    def destroy(self) -> None:
        """End at once: the peer sees a reset, unless both sides had ended already."""
        if self._finished:
            return
        self._closed_here = self._destroyed = True
        now = trio.current_time()
        self.core.destroy(now)
        self._sockets.flush(self.core.local_id, now)
        self._finish(None)

    def _finish(self, error: StreamError | None) -> None:
        if self._finished:
            return
        self._finished = True
        self._error = error
        # What the core still owes (the last acknowledgement) goes out before it is forgotten.
        self._sockets.flush(self.core.local_id, trio.current_time())
        self._sockets.remove_stream(self.core.local_id, remember=self.core)
        if self.socket is not None:
            self._sockets.release(self.socket, linger=self.core.closing_reply is not None)
        self._readers.unpark_all()
        self._writers.unpark_all()
        self._progress.unpark_all()
        if self.on_closed is not None:
            self.on_closed()

    @property
    def finished(self) -> bool:
        """Whether the stream is over: ended by both sides, reset, timed out or destroyed."""
        return self._finished

    @property
    def error(self) -> StreamError | None:
        """Why the stream broke; None while it lives and after a clean end."""
        return self._error

    async def wait_finished(self) -> None:
        """Return when the stream is over."""
        while not self._finished:
            await self._readers.park()

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes from the first one on that the peer's transport has not confirmed, to the last.

        What it has beyond a gap counts as not confirmed. The number stays what it was when the
        stream breaks: what was under way then may be lost.
        """
        return self._written - self._acknowledged

    def _check_usable(self) -> None:
        if self._closed_here:
            raise trio.ClosedResourceError("this end of the stream is closed")
        if self._finished:
            raise trio.BrokenResourceError("the stream is over") from self._error

    # -- writing ----------------------------------------------------------------------------------

    def write_soon(self, data: bytes) -> None:
        """Queue bytes without waiting; `wait_writable` tells when there is room again.

        Raises:
            trio.ClosedResourceError: closed or ended on this side.
            trio.BrokenResourceError: reset by the peer, or the peer is gone.
        """
        self._check_usable()
        if self._ended:
            raise trio.ClosedResourceError("send_eof was called")
        self.core.write(data, trio.current_time())
        self._written += len(data)
        self._sockets.mark_dirty(self.core.local_id)

    async def wait_writable(self) -> None:
        """Return when less than HIGH_WATER bytes wait for their first transmission."""
        while self.core.unsent_bytes > HIGH_WATER:
            self._check_usable()
            await self._writers.park()

    async def wait_progress(self) -> None:
        """Return after the peer acknowledged something, or the stream is over."""
        if not self._finished:
            await self._progress.park()

    def send_message(self, data: bytes) -> None:
        """Send one unordered datagram; raises like `write_soon`."""
        self._check_usable()
        self.core.send_message(data, trio.current_time())
        self._sockets.mark_dirty(self.core.local_id)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            self._check_usable()
            if self._ended:
                raise trio.ClosedResourceError("send_eof was called")
            if data:
                self.write_soon(bytes(data))
                await self.wait_writable()
                self._check_usable()

    async def wait_send_all_might_not_block(self) -> None:
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            self._check_usable()
            await self.wait_writable()

    async def send_eof(self) -> None:
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            if self._closed_here:
                raise trio.ClosedResourceError("this end of the stream is closed")
            self.end_soon()

    def end_soon(self) -> None:
        """Queue the end of our direction; the peer reads everything before it. Safe to repeat."""
        if not self._ended and not self._finished:
            self._ended = True
            self.core.write_end(trio.current_time())
            self._sockets.mark_dirty(self.core.local_id)

    # -- reading ----------------------------------------------------------------------------------

    def take(self, max_bytes: int | None = None) -> list[bytes | memoryview]:
        """In-order chunks that have arrived, without waiting; taking them reopens the window."""
        if not self.core.readable_bytes:
            return []
        chunks = self.core.read(max_bytes)
        if not self._finished:
            timer = self.core.get_timer()
            if timer is not None and timer <= trio.current_time():
                self._sockets.mark_dirty(self.core.local_id)  # tells that the window is open again
            if self.core.end_received:
                self._take_events()  # reading the last byte may have finished the stream
        return chunks

    async def wait_readable(self) -> bool:
        """Return True when there are bytes to take, False at the end of the peer's direction.

        Raises:
            trio.ClosedResourceError: closed on this side.
            trio.BrokenResourceError: reset by the peer, or the peer is gone.
        """
        while True:
            if self._closed_here:
                raise trio.ClosedResourceError("this end of the stream is closed")
            if self.core.readable_bytes:
                return True
            if self.core.end_received:
                return False
            if self._finished:
                raise trio.BrokenResourceError("the stream is over") from self._error
            await self._readers.park()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError("max_bytes must be an integer or None")
            if max_bytes < 1:
                raise ValueError("max_bytes must be at least 1")
        with self._receive_conflict:
            await trio.lowlevel.checkpoint()
            if not await self.wait_readable():
                return b""
            return b"".join(self.take(max_bytes or READ_CHUNK))

    async def aclose(self) -> None:
        """Close both directions: what was written is delivered, then the stream ends.

        Waits up to LINGER seconds for the peer to confirm; cancelled or late, it resets instead.
        """
        if self._closed_here:
            await trio.lowlevel.checkpoint()
            return
        self._closed_here = True
        try:
            if not self._finished and self.core.connected:
                self.end_soon()
            self._readers.unpark_all()
            self._writers.unpark_all()
            await trio.lowlevel.checkpoint()
            if self.core.connected:
                with trio.move_on_after(LINGER):
                    while not self._finished:
                        self.take()
                        self._take_events()
                        if not self._finished:
                            await self._readers.park()
        finally:
            self.destroy()


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """One connection, now."""

    path: str
    """direct, lan, punched or relayed"""
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
    ) -> None:
        self.public_key = public_key
        self.remote_public_key = remote_public_key
        self.handshake_hash = handshake_hash
        self.is_initiator = is_initiator
        self.path = path
        self._stream = stream
        self._secret = secret
        self._messages: deque[bytes] = deque()
        self._unordered: deque[bytes] = deque(maxlen=MAX_UNORDERED)
        self._unordered_lot = trio.lowlevel.ParkingLot()
        self._broken: RemoteProtocolError | None = None
        self._closed_here = False
        self._send_conflict = _OneTask("sending on")
        self._receive_conflict = _OneTask("receiving from")
        self._messages_sent = 0
        self._messages_received = 0
        self._bytes_written = 0
        stream.on_message = self._take_unordered
        stream.on_closed = self._wake_unordered
        stream.get_extra_timer = secret.get_timer
        stream.handle_extra_timer = self._keep_alive
        self._write(secret.hello())

    # -- what it is -------------------------------------------------------------------------------

    @property
    def remote_address(self) -> Address | None:
        """UDP address that we send to."""
        return self._stream.core.remote_address

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

    def statistics(self) -> ConnectionStatistics:
        return ConnectionStatistics(
            path=self.path,
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
            self._stream._check_usable()
            await self._stream.wait_progress()

    def set_liveness(self, interval: float = 2.0, limit: float = 5.0) -> None:
        """Break the connection when nothing at all has come from the peer for `limit` seconds.

        After `interval` idle seconds the peer is asked for a sign of life. Without this a dead peer
        is noticed about 18 s after it vanished: 5 s to our next keep-alive, 13 s to give that up.
        """
        self._stream.set_liveness(interval, limit)

    def send_unordered(self, message: bytes) -> None:
        """Send one encrypted datagram (about 1100 bytes at most) that may get lost or overtaken."""
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
        try:
            messages = self._secret.receive(chunks)
        except RemoteProtocolError:
            messages = []
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
        if message is not None:
            self._unordered.append(message)
            self._unordered_lot.unpark_all()

    def _wake_unordered(self) -> None:
        self._unordered_lot.unpark_all()

    async def receive_unordered(self) -> bytes:
        """Return the next unordered message; beyond 256 unread ones the oldest are dropped.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: closed here, or lost.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        while not self._unordered:
            self._stream._check_usable()
            await self._unordered_lot.park()
        return self._unordered.popleft()

    # -- closing ----------------------------------------------------------------------------------

    async def send_eof(self) -> None:
        """End our direction after everything sent; receiving goes on."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Deliver what was sent, end both directions, give the peer 2 s to confirm."""
        self._closed_here = True
        self._messages.clear()
        self._unordered_lot.unpark_all()
        await self._stream.aclose()

    def abort(self) -> None:
        """End at once: the peer sees a reset."""
        self._closed_here = True
        self._messages.clear()
        self._stream.destroy()
        self._unordered_lot.unpark_all()
