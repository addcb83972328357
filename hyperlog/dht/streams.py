"""Service: UDX streams for trio programs.

Theory of operation. The node's sockets push packets into the UDX core as they arrive; readers pull
out of it. What nobody reads stays in the core, whose advertised window then closes. That is the
whole of the flow control.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import DHTError, StreamTimeout
from hyperlog.dht.sockets import Sockets
from hyperlog.dht.udx.events import (
    EndReceived,
    MessageReceived,
    RemoteChanged,
    StreamClosed,
)
from hyperlog.dht.udx.sender import Groups
from hyperlog.dht.udx.stream import UDXStreamCore

__all__ = ["READ_CHUNK", "OneTask", "UDXStream"]

HIGH_WATER: Final = 512 * 1024  # bytes written but never sent, above which writers wait
READ_CHUNK: Final = 256 * 1024  # bytes taken at a time, so that one reader does not hold the loop
TRIAL_REPEAT: Final = 0.5  # s between questions whether a peer is still there
SILENCE_CHECK: Final = 1.0  # s between looks at how long a peer has been silent
LATE_CHECK: Final = 0.25  # s behind time, from which on our own process must have been stopped
LINGER: Final = 2.0  # s that aclose waits for the peer to confirm more than before
MAX_LINGER: Final = 30.0  # s that aclose waits in all


class OneTask:
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
        self.on_packet: Callable[[int, Address], None] | None = None
        """Called with local socket and source of every packet, for as long as it is set."""
        self.on_message: Callable[[bytes], None] | None = None
        """Called with each unordered message."""
        self.on_remote_changed: Callable[[], None] | None = None
        """Called after `change_remote`, when nothing is in flight on the old path any more."""
        self.on_closed: Callable[[], None] | None = None
        """Called once, when the stream has ended in whatever way."""
        self.get_extra_timer: Callable[[], float | None] | None = None
        self.handle_extra_timer: Callable[[float], None] | None = None
        self._sockets = sockets
        self._former_sockets: list[int] = []
        self._heard_at = 0.0
        self._silence_limit: float | None = None
        self._silence_check_at = 0.0
        self._silent_since = 0.0
        self._tried_at: float | None = None
        self._trial_ends_at = 0.0
        self._trial_check_at = 0.0
        self._written = 0
        self._acknowledged = 0
        # Of each flight under way: the seq behind it, and which of the bytes written it completes.
        self._flights: deque[tuple[int, int]] = deque()
        self._error: DHTError | None = None
        self._finished = False
        self._closed_here = False
        self._destroyed = False
        self._cut = False
        self._ended = False
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        self._progress = trio.lowlevel.ParkingLot()
        self._send_conflict = OneTask("sending on")
        self._receive_conflict = OneTask("receiving from")
        sockets.add_stream(core.local_id, self)

    # -- towards the sockets (StreamHandler) ------------------------------------------------------

    def receive(self, data: bytes | memoryview, address: Address, socket: int, now: float) -> None:
        self.core.receive_datagram(data, address, now)
        # The very first packet may be the peer's DESTROY: then there is nothing to connect to.
        if self.on_packet is not None and not self.core.closed:
            self.on_packet(socket, address)

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
            elif isinstance(event, RemoteChanged):
                self._release_former_sockets()
                if self.on_remote_changed is not None:
                    self.on_remote_changed()
            elif isinstance(event, StreamClosed):
                if event.error is None and not self._destroyed:
                    self._acknowledged = self._written  # the peer has acknowledged our end
                self._finish(event.error)
            event = core.next_event()

    def datagrams_to_send(self, now: float) -> Groups:
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
        if self._tried_at is not None and (timer is None or self._trial_check_at < timer):
            timer = self._trial_check_at
        return timer

    def handle_timer(self, now: float) -> None:
        self.core.handle_timer(now)
        if self.handle_extra_timer is not None and not self.finished:
            self.handle_extra_timer(now)
        self._take_events()
        if self._silence_limit is not None and not self._finished:
            self._check_silence(now, self._silence_limit)
        if self._tried_at is not None and not self._finished and now >= self._trial_check_at:
            self._check_trial(self._tried_at, now)

    def put_on_trial(self, limit: float, now: float) -> None:
        """Give the peer up unless something comes from it within `limit` seconds.

        It is asked for an answer at once, and again every TRIAL_REPEAT seconds.
        """
        if self.core.connected and not self._finished:
            self._tried_at = self._trial_check_at = now
            self._trial_ends_at = now + limit

    def _check_trial(self, tried_at: float, now: float) -> None:
        if self._heard_at > tried_at:
            self._tried_at = None
        elif now >= self._trial_ends_at:
            self._destroyed = True
            self.core.destroy(now)
            self._finish(StreamTimeout("nothing came from the peer since the network changed"))
        else:
            self.core.ask_for_answer()
            self._trial_check_at = min(now + TRIAL_REPEAT, self._trial_ends_at)

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

    def set_receive_window(self, window: int) -> None:
        """Let the peer send so many bytes ahead of the reader."""
        self.core.set_receive_window(window)
        self._sockets.mark_dirty(self.core.local_id)  # the peer may wait for a larger one

    # -- life -------------------------------------------------------------------------------------

    def connect(self, socket: int, remote_id: int, address: Address) -> None:
        """Send from `socket` to `address` from now on; what came before is acknowledged."""
        self.core.connect(remote_id, address, trio.current_time(), socket)
        self.socket = socket
        self._sockets.hold(socket)
        self._sockets.mark_dirty(self.core.local_id)

    def change_remote(self, socket: int, remote_id: int, address: Address) -> None:
        """Send from `socket` to `address` from now on, in the middle of the stream.

        Nothing gets lost or doubled by it. What is in flight may still be repeated to the old
        address, until `on_remote_changed` is called: perhaps before this returns.

        Raises:
            LocalProtocolError: the stream is not connected, or it is over.
        """
        self.core.change_remote(remote_id, address, trio.current_time(), socket)
        assert self.socket is not None
        self._former_sockets.append(self.socket)
        self._sockets.hold(socket)
        self.socket = socket
        self._take_events()
        self._sockets.mark_dirty(self.core.local_id)

    @property
    def remote_is_changing(self) -> bool:
        """Whether something sent before the last `change_remote` is not acknowledged yet."""
        return self.core.remote_is_changing

    def _release_former_sockets(self) -> None:
        # The peer makes its own change when it likes, and until then its packets come in there.
        for socket in self._former_sockets:
            self._sockets.release(socket, linger=True)
        self._former_sockets.clear()

    def destroy(self, error: DHTError | None = None) -> None:
        """End at once: the peer sees a reset, unless both sides had ended already.

        What was not read is forgotten. With `error`, whoever uses the stream has lost it for that
        reason; without it, has closed it.
        """
        # What was thrown away must not look like the end of what the peer sent.
        self._cut = self._cut or self.core.readable_bytes > 0 or not self._finished
        self.core.discard()
        if self._finished:
            return
        self._closed_here = self._closed_here or error is None
        self._destroyed = True
        self.core.destroy(trio.current_time())
        self._finish(error)

    def _finish(self, error: DHTError | None) -> None:
        if self._finished:
            return
        self._finished = True
        self._error = error
        # What the core still owes (the last acknowledgement) goes out before it is forgotten.
        self._sockets.flush(self.core.local_id, trio.current_time(), last=True)
        self._sockets.remove_stream(self.core.local_id, remember=self.core)
        if self.socket is not None:
            self._sockets.release(self.socket, linger=self.core.closing_reply is not None)
        self._release_former_sockets()
        self._readers.unpark_all()
        self._writers.unpark_all()
        self._progress.unpark_all()
        if self.on_closed is not None:
            self.on_closed()

    @property
    def finished(self) -> bool:
        """Whether the stream is over: ended by both sides, reset, timed out or destroyed."""
        return self.core.closed  # callbacks run before the event of it is taken

    @property
    def error(self) -> DHTError | None:
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

    def check_usable(self) -> None:
        """Raise what reading or writing would: closed here, or over."""
        if self._closed_here:
            raise trio.ClosedResourceError("this end of the stream is closed")
        if self.finished:
            raise trio.BrokenResourceError("the stream is over") from self._error

    # -- writing ----------------------------------------------------------------------------------

    def write_soon(self, data: bytes) -> None:
        """Queue bytes without waiting; `wait_writable` tells when there is room again.

        Raises:
            trio.ClosedResourceError: closed or ended on this side.
            trio.BrokenResourceError: reset by the peer, or the peer is gone.
        """
        self.check_usable()
        if self._ended:
            raise trio.ClosedResourceError("send_eof was called")
        self.core.write(data, trio.current_time())
        self._written += len(data)
        self._sockets.mark_dirty(self.core.local_id)

    async def wait_writable(self) -> None:
        """Return when less than HIGH_WATER bytes wait for their first transmission."""
        while self.core.unsent_bytes > HIGH_WATER:
            self.check_usable()
            await self._writers.park()

    async def wait_progress(self) -> None:
        """Return after the peer acknowledged something, or the stream is over."""
        if not self._finished:
            await self._progress.park()

    def send_message(self, data: bytes) -> None:
        """Send one unordered datagram; raises like `write_soon`."""
        self.check_usable()
        self.core.send_message(data, trio.current_time())
        self._sockets.mark_dirty(self.core.local_id)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            self.check_usable()
            if self._ended:
                raise trio.ClosedResourceError("send_eof was called")
            if data:
                self.write_soon(bytes(data))
                await self.wait_writable()
                self.check_usable()

    async def wait_send_all_might_not_block(self) -> None:
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            self.check_usable()
            await self.wait_writable()

    async def send_eof(self) -> None:
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            if self._closed_here:
                raise trio.ClosedResourceError("this end of the stream is closed")
            self.end_soon()

    def end_soon(self) -> None:
        """Queue the end of our direction; the peer reads everything before it. Safe to repeat."""
        if not self._ended and not self.finished:
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
            if self.core.end_received and not self._cut:
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

        Waits for the peer to confirm, as long as that goes on: LINGER seconds without progress, or
        MAX_LINGER in all, and it resets instead. So does a cancellation.
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
                with trio.move_on_after(MAX_LINGER):
                    await self._linger()
        finally:
            self.destroy()

    async def _linger(self) -> None:
        left = self.core.write_buffer_bytes  # what was received behind a gap counts as progress
        with trio.move_on_after(LINGER) as scope:
            while not self._finished:
                self.take()
                self._take_events()
                if self.core.write_buffer_bytes < left:
                    left = self.core.write_buffer_bytes
                    scope.deadline = trio.current_time() + LINGER
                if not self._finished:
                    await self._progress.park()
