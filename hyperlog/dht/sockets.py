"""Service: the UDP sockets of one node, and what arrives on them.

A node has a server socket (its announced port), a client socket, and a pool socket per hole punch.
Each carries three protocols, told apart by the first bytes: UDX packets go to the stream that owns
the id, dht-rpc datagrams to the RPC node, one-byte datagrams are hole punch probes.

One stream table serves all sockets, because a stream's packets may come in on any of them
(docs/protocol/udx.md section 1). One pump task serves every stream: it sends what `write` left to
send and fires timers. A stream that has something to send is marked dirty and flushed when the
running task yields, so that many small writes leave in one system call.
"""

from __future__ import annotations

import heapq
import logging
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import DHTError, Suspended
from hyperlog.dht.ipv6 import UDP6Socket
from hyperlog.dht.udp import (
    DEFAULT_TTL,
    MAX_BATCH,
    DatagramSocket,
    SocketFactory,
    UDPSocket,
)
from hyperlog.dht.udx.closed import ClosedStreams
from hyperlog.dht.udx.stream import UDXStreamCore

__all__ = ["CLIENT", "SERVER", "SERVER6", "Sockets", "SocketsStatistics", "StreamHandler"]

logger = logging.getLogger("hyperlog.dht.sockets")

SERVER: Final = 0
CLIENT: Final = 1
SERVER6: Final = -1  # for neighbours on IPv6; there may be none

PORT_RANGE: Final = 5  # ports tried from the given one on, dht-rpc lib/io.js
MAX_BACKLOG: Final = 256  # groups of datagrams waiting for a full kernel buffer
LINGER: Final = 3.0  # s that a pool socket outlives its stream, hyperdht lib/socket-pool.js
MAX_LINGERING: Final = 64  # pool sockets
MAX_STALE_TIMERS: Final = 1024  # entries of the heap that are kept without use
MAX_FLUSH_ROUNDS: Final = 16  # calls of datagrams_to_send before other streams get their turn
DATAGRAM_COST: Final = 256  # bytes that the smallest datagram may take up in memory

UDX_MAGIC: Final = b"\xff\x01"
STREAM_ID = struct.Struct("<4xI")
RPC_FIRST_BYTES: Final = (0x03, 0x13)


class StreamHandler(Protocol):
    """What the table needs of a stream; UDXStream in streams.py is one."""

    socket: int | None
    """Local socket that the stream sends from; None until it is connected."""

    def receive(self, data: bytes | memoryview, address: Address, socket: int, now: float) -> None:
        """Take one packet of this stream."""

    def batch_done(self, now: float) -> None:
        """All packets that were waiting have been handed over: wake readers and writers."""

    def datagrams_to_send(self, now: float) -> list[tuple[int, Address, list[bytes]]]:
        """What is due, by local socket and destination."""

    def get_timer(self) -> float | None: ...

    def handle_timer(self, now: float) -> None: ...

    def put_on_trial(self, limit: float, now: float) -> None:
        """End unless something comes from the peer within `limit` seconds."""

    def destroy(self, error: DHTError | None = None) -> None:
        """End at once, and tell the peer; the user too, if there is an error."""


@dataclass(frozen=True, slots=True)
class SocketsStatistics:
    """Counts since the node was opened."""

    datagrams_received: int
    datagrams_ignored: int
    """neither UDX of a known stream nor RPC nor a probe that somebody waits for"""
    datagrams_dropped: int
    """given up because the kernel's send buffer stayed full"""
    streams: int
    sockets: int


class Sockets:
    """The sockets of one node; made by `Sockets.open`, alive while `run` runs."""

    def __init__(
        self,
        server: DatagramSocket,
        client: DatagramSocket,
        factory: SocketFactory,
        *,
        exact_port: bool = False,
    ) -> None:
        self._exact_port = exact_port
        self._bound: dict[int, Address] = {}  # of the node's own two, when they are closed
        self._host6: str | None = None
        self._sockets: dict[int, DatagramSocket] = {SERVER: server, CLIENT: client}
        self._references: dict[int, int] = {}
        self._reusable: set[int] = set()
        self._factory = factory
        self._next_socket = 2
        self._lingering = 0
        self._nursery: trio.Nursery | None = None
        self._streams: dict[int, StreamHandler] = {}
        self._closed = ClosedStreams()
        self._timers: list[tuple[float, int]] = []
        self._timer_at: dict[int, float] = {}
        self._dirty: dict[int, StreamHandler] = {}
        self._pump_lot = trio.lowlevel.ParkingLot()
        self._pump_scope: trio.CancelScope | None = None
        self._backlog: deque[tuple[int, Address, list[bytes]]] = deque()
        self._received = 0
        self._volume = 0
        self._volume_limit = 0
        self._ignored = 0
        self._dropped = 0
        self.on_rpc: Callable[[list[tuple[bytes, Address, int]]], None] = lambda batch: None
        """Called with every drained batch of dht-rpc datagrams: (data, source, local socket)."""
        self.on_volume: Callable[[float], int] = lambda now: sys.maxsize
        """Called with the time; returns how many bytes are to be received until the next call."""
        self.on_probe: dict[int, Callable[[Address], None]] = {}
        """By pool socket: called with the source of each hole punch probe."""

    @classmethod
    def open(cls, host: str, port: int, factory: SocketFactory = UDPSocket) -> Sockets:
        """Bind the server socket (`port`, else the next four, else any) and the client socket.

        Port 0 takes any free one. Compat: dht-rpc lib/io.js tries the same range.

        Raises:
            OSError: not even a port of the system's choice can be bound on `host`.
        """
        server: DatagramSocket | None = None
        candidates = range(port, min(port + PORT_RANGE, 65536)) if port else ()
        for candidate in candidates:
            try:
                server = factory(host, candidate)
                break
            except OSError:
                continue
        if server is None:
            server = factory(host, 0)
        try:
            client = factory(host, 0)
        except OSError:
            server.close()
            raise
        return cls(server, client, factory)

    @classmethod
    def open_exact(cls, host: str, port: int, factory: SocketFactory = UDPSocket) -> Sockets:
        """Like `open`, but the server socket gets `port` or nothing.

        Raises:
            OSError: the port is taken, or `host` is not an address of this machine.
        """
        server = factory(host, port)
        try:
            client = factory(host, 0)
        except OSError:
            server.close()
            raise
        return cls(server, client, factory, exact_port=True)

    # -- life -------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Receive, send and fire timers until cancelled; closes every socket at the end."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for index, sock in self._sockets.items():
                    nursery.start_soon(self._receive_loop, index, sock)
                task_status.started()
                await self._pump()
        finally:
            self._nursery = None
            for stream in list(self._streams.values()):
                stream.destroy()
            self.close()

    def close(self) -> None:
        """Close all sockets; `run` does so when it ends, so that only who never runs them must."""
        for index, sock in self._sockets.items():
            if index in (SERVER, CLIENT):
                self._bound[index] = sock.local_address
            sock.close()
        self._sockets.clear()

    def suspend(self) -> None:
        """Close all sockets until `resume`; streams end, and their peers are told."""
        for stream in list(self._streams.values()):
            stream.destroy(Suspended("the node was suspended"))
        self._backlog.clear()
        self.close()

    def resume(self) -> None:
        """Bind the server and the client socket again, to the ports that they had if those are
        free. The pool sockets of before are gone for good.

        Raises:
            OSError: they cannot be bound; all is as before.
        """
        if self._nursery is None:
            raise RuntimeError("the node is not running")
        server = self._bind_again(SERVER, exact=self._exact_port)
        try:
            client = self._bind_again(CLIENT)
        except OSError:
            server.close()
            raise
        for index, sock in ((SERVER, server), (CLIENT, client)):
            self._sockets[index] = sock
            self._nursery.start_soon(self._receive_loop, index, sock)
        if self._host6 is not None:
            self.open_ipv6(self._host6)

    def _bind_again(self, index: int, *, exact: bool = False) -> DatagramSocket:
        host, port = self._bound[index]
        try:
            return self._factory(host, port)
        except OSError:
            if exact:
                raise
            return self._factory(host, 0)

    def put_streams_on_trial(self, limit: float) -> None:
        """Have every stream end unless something comes from its peer within `limit` seconds."""
        now = trio.current_time()
        for stream in self._streams.values():
            stream.put_on_trial(limit, now)
        self._dirty.update(self._streams)
        self._pump_lot.unpark()

    def open_ipv6(self, host: str = "::") -> bool:
        """Have a socket for streams to neighbours on IPv6; False when the system has none for us.

        Its port is the server socket's if that is free.
        """
        if self._nursery is None:
            raise RuntimeError("the node is not running")
        for port in (self.local_address(SERVER)[1], 0):
            try:
                sock = self._sockets[SERVER6] = UDP6Socket(host, port)
            except OSError as err:
                logger.debug("no IPv6 socket: %s", err)
            else:
                self._host6 = host
                self._nursery.start_soon(self._receive_loop, SERVER6, sock)
                return True
        return False

    def local_address(self, socket: int) -> Address:
        """Address that a socket is bound to; of the node's own two also when they are closed.

        Raises:
            KeyError: no such socket (any more).
        """
        sock = self._sockets.get(socket)
        return self._bound[socket] if sock is None else sock.local_address

    def open_pool_socket(self, on_probe: Callable[[Address], None]) -> int:
        """Bind one more socket for a hole punch; the caller holds it until `release`."""
        if self._nursery is None:
            raise RuntimeError("the node is not running")
        index = self._next_socket
        self._next_socket += 1
        sock = self._sockets[index] = self.bind(self.local_address(CLIENT)[0])
        self._references[index] = 1
        self.on_probe[index] = on_probe
        self._nursery.start_soon(self._receive_loop, index, sock)
        return index

    def bind(self, host: str) -> DatagramSocket:
        """A socket on any free port, for the caller alone: nothing of it is dispatched here.

        Raises:
            OSError: `host` is not an address of this machine, or there are too many sockets.
        """
        return self._factory(host, 0)

    def is_open(self, socket: int) -> bool:
        """Whether the socket can be sent from: a pool socket may have been closed."""
        return socket in self._sockets

    def set_reusable(self, socket: int) -> None:
        """Let a pool socket linger after its last user: another connection may go the same way."""
        if socket in self._references:
            self._reusable.add(socket)

    def hold(self, socket: int) -> None:
        """Keep a pool socket open for one more user; no effect on the node's own two."""
        if socket in self._references:
            self._references[socket] += 1

    def release(self, socket: int, *, linger: bool = False) -> None:
        """Give a pool socket back; the last user closes it.

        With `linger` that happens LINGER seconds later: the peer may need to be told again how a
        stream ended.
        """
        if socket not in self._references:
            return
        self._references[socket] -= 1
        if self._references[socket] == 0:
            linger = linger or socket in self._reusable
            if linger and self._nursery is not None and self._lingering < MAX_LINGERING:
                self._references[socket] = 1
                self._lingering += 1
                self._nursery.start_soon(self._release_later, socket)
            else:
                self._close_pool_socket(socket)

    async def _release_later(self, socket: int) -> None:
        await trio.sleep(LINGER)
        self._lingering -= 1
        self._references[socket] -= 1
        if self._references[socket] == 0:  # nobody else has come meanwhile
            self._close_pool_socket(socket)

    def _close_pool_socket(self, socket: int) -> None:
        del self._references[socket]
        self._reusable.discard(socket)
        self.on_probe.pop(socket, None)
        sock = self._sockets.pop(socket, None)
        if sock is not None:
            sock.close()  # which ends its receive loop

    def statistics(self) -> SocketsStatistics:
        return SocketsStatistics(
            datagrams_received=self._received,
            datagrams_ignored=self._ignored,
            datagrams_dropped=self._dropped,
            streams=len(self._streams),
            sockets=len(self._sockets),
        )

    # -- streams ----------------------------------------------------------------------------------

    def add_stream(self, stream_id: int, stream: StreamHandler) -> None:
        """Register a stream under its local id, which the caller made sure is free."""
        self._streams[stream_id] = stream

    def is_free(self, stream_id: int) -> bool:
        """Whether no live or recently closed stream uses the id."""
        return stream_id not in self._streams and stream_id not in self._closed

    def remove_stream(self, stream_id: int, *, remember: UDXStreamCore | None = None) -> None:
        """Forget a stream; with `remember` (its closed core) late packets are answered."""
        self._streams.pop(stream_id, None)
        self._dirty.pop(stream_id, None)
        self._timer_at.pop(stream_id, None)
        if remember is not None:
            self._closed.remember(remember, trio.current_time())

    def mark_dirty(self, stream_id: int) -> None:
        """Flush this stream as soon as the running task yields."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._dirty[stream_id] = stream
            self._pump_lot.unpark()

    def flush(self, stream_id: int, now: float, *, last: bool = False) -> None:
        """Send what the stream has to send, and note its next timer.

        While the kernel has no room, a stream keeps that for later, unless this is its `last` call.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.socket is not None and (last or not self._backlog):
            for _ in range(MAX_FLUSH_ROUNDS):
                groups = stream.datagrams_to_send(now)
                if not groups:
                    break
                for socket, address, datagrams in groups:
                    self._send_batch(socket, address, datagrams)
                if self._backlog:
                    break
        if stream_id in self._streams:  # sending may have been its last act
            self._note_timer(stream_id, stream)

    def _note_timer(self, stream_id: int, stream: StreamHandler) -> None:
        timer = stream.get_timer()
        if timer is None:
            return
        known = self._timer_at.get(stream_id)
        # A later deadline is left to the earlier entry, which re-arms itself when it fires.
        if known is None or timer < known:
            self._timer_at[stream_id] = timer
            heapq.heappush(self._timers, (timer, stream_id))
            if len(self._timers) > MAX_STALE_TIMERS + 2 * len(self._timer_at):
                # Replaced entries would stay until their time comes.
                self._timers = [(at, stream_id) for stream_id, at in self._timer_at.items()]
                heapq.heapify(self._timers)
            scope = self._pump_scope
            if scope is not None and timer < scope.deadline:
                scope.deadline = timer

    async def _pump(self) -> None:
        while True:
            deadline = self._timers[0][0] if self._timers else float("inf")
            if not self._dirty and not self._backlog:
                with trio.CancelScope(deadline=deadline) as self._pump_scope:
                    await self._pump_lot.park()
                self._pump_scope = None
            else:
                await trio.lowlevel.checkpoint()
            now = trio.current_time()
            while self._timers and self._timers[0][0] <= now:
                self._fire_timer(now)
            if self._backlog:
                await self._drain_backlog()
                now = trio.current_time()
                # Streams that stopped at the backlog go on, whatever their timers say.
                self._dirty.update(self._streams)
            dirty, self._dirty = self._dirty, {}
            for stream_id in dirty:
                self.flush(stream_id, now)

    def _fire_timer(self, now: float) -> None:
        at, stream_id = heapq.heappop(self._timers)
        if self._timer_at.get(stream_id) != at:
            return  # replaced by an earlier one, or the stream is gone
        del self._timer_at[stream_id]
        stream = self._streams[stream_id]  # remove_stream forgets the timer, too
        due = stream.get_timer()
        if due is not None and due <= now:
            stream.handle_timer(now)
            self._dirty[stream_id] = stream
        else:
            self._note_timer(stream_id, stream)

    # -- datagrams out ----------------------------------------------------------------------------

    def send(self, socket: int, address: Address, data: bytes, ttl: int = DEFAULT_TTL) -> None:
        """Send one datagram; drop it when the kernel has no room (RPC and probes are repeated)."""
        sock = self._sockets.get(socket)
        if sock is None or not sock.send(data, address, ttl):
            self._dropped += 1

    def send_all(self, datagrams: Iterable[tuple[int, Address, bytes]]) -> None:
        """Send datagrams, each from its socket to its address, as `send` does."""
        sockets = self._sockets
        for socket, address, data in datagrams:
            sock = sockets.get(socket)
            if sock is None or not sock.send(data, address):
                self._dropped += 1

    def _send_batch(self, socket: int, address: Address, datagrams: Sequence[bytes]) -> None:
        sock = self._sockets.get(socket)
        if sock is None:
            self._dropped += len(datagrams)
            return
        if self._backlog:
            self._keep(socket, address, list(datagrams))
            return
        taken = sock.send_batch(datagrams, address)
        if taken < len(datagrams):
            self._keep(socket, address, list(datagrams[taken:]))

    def _keep(self, socket: int, address: Address, datagrams: list[bytes]) -> None:
        if len(self._backlog) >= MAX_BACKLOG:
            self._dropped += len(datagrams)
            return
        self._backlog.append((socket, address, datagrams))
        self._pump_lot.unpark()

    async def _drain_backlog(self) -> None:
        while self._backlog:
            socket, address, datagrams = self._backlog[0]
            sock = self._sockets.get(socket)
            if sock is None:
                self._backlog.popleft()
                self._dropped += len(datagrams)
                continue
            taken = sock.send_batch(datagrams, address)
            if taken == len(datagrams):
                self._backlog.popleft()
                continue
            del datagrams[:taken]
            with trio.move_on_after(1.0):  # a link that takes nothing for so long has lost them
                try:
                    await sock.wait_writable()
                except trio.ClosedResourceError:
                    pass  # a pool socket that was given back: found out above
                continue
            self._dropped += sum(len(group) for _, _, group in self._backlog)
            self._backlog.clear()

    # -- datagrams in -----------------------------------------------------------------------------

    async def _receive_loop(self, index: int, sock: DatagramSocket) -> None:
        # A socket may be closed before this task first runs, and in the very moment in which it
        # becomes readable; `resume` may have another one in its place by then, with its own task.
        while self._sockets.get(index) is sock:
            try:
                await sock.wait_readable()
            except trio.ClosedResourceError:
                return
            handled = 0
            # More has come meanwhile when there is much to do, and asking the socket costs less
            # than a round of the scheduler.
            while self._sockets.get(index) is sock and (batch := sock.receive_batch()):
                self._dispatch(index, batch)
                handled += len(batch)
                if handled >= MAX_BATCH:
                    await trio.lowlevel.checkpoint()
                    handled = 0

    def _dispatch(self, index: int, batch: list[tuple[bytes | memoryview, Address]]) -> None:
        now = trio.current_time()
        self._received += len(batch)
        streams = self._streams
        touched: dict[int, StreamHandler] = {}
        rpc: list[tuple[bytes, Address, int]] = []
        volume = 0
        for data, address in batch:
            size = len(data)
            volume += size
            first = data[0] if size >= 2 else -1
            if first in RPC_FIRST_BYTES and index != SERVER6:
                rpc.append((data if type(data) is bytes else bytes(data), address, index))
            elif size >= 20 and data[:2] == UDX_MAGIC:
                (stream_id,) = STREAM_ID.unpack_from(data)
                stream = streams.get(stream_id)
                if stream is not None:
                    stream.receive(data, address, index, now)
                    touched[stream_id] = stream
                else:
                    self._answer_closed(data, index, now)
            elif size == 1 and index in self.on_probe:
                self.on_probe[index](address)
            else:
                self._ignored += 1
        for stream_id, stream in touched.items():
            stream.batch_done(now)
            self.flush(stream_id, now)
        if rpc:
            self.on_rpc(rpc)
        self._volume += volume + DATAGRAM_COST * len(batch)
        if self._volume >= self._volume_limit:
            self._volume = 0
            self._volume_limit = self.on_volume(now)

    def _answer_closed(self, data: bytes | memoryview, index: int, now: float) -> None:
        answer = self._closed.receive_datagram(data, now)
        if answer is None:
            self._ignored += 1
        else:
            address, reply = answer
            self.send(index, address, reply)
