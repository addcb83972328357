"""One UDX stream: bytes in order, unordered messages, an end for each direction.

Theory of operation. There is no handshake: each side picks an id and tells it to the other by
other means. Packets for a stream may come before it is connected; their data is taken, the
acknowledgement is held back until `connect` says where to send it.

    created ──connect──▶ connected ──both ENDs acknowledged, all read──▶ closed (no error)
    any ──DESTROY from the peer──▶ closed (StreamReset)
    connected ──7 RTOs without progress──▶ closed (StreamTimeout)
    connected ──60 unanswered probes of a closed window──▶ closed (StreamTimeout)
    any ──destroy()──▶ closed (no error)

`receive_datagram` only takes packets in; everything that follows from a burst of them (samples,
loss detection, one acknowledgement for all) happens in the next `datagrams_to_send`, so that a
burst costs this once. The two halves are receiver.py and sender.py; this module joins them: it
reads headers, carries acknowledgements from one half to the other, and decides when the stream is
over.

Sequence numbers are unwrapped inside (they grow for ever); the wire has them modulo 2**32.

Spec: docs/protocol/udx.md.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import LocalProtocolError, StreamReset, StreamTimeout
from hyperlog.dht.udx.events import Event, MessageReceived, RemoteChanged, StreamClosed
from hyperlog.dht.udx.packet import (
    DATA,
    DESTROY,
    END,
    HEADER,
    HEADER_SIZE,
    HEARTBEAT,
    MAGIC_AND_VERSION,
    MESSAGE,
    SACK,
    SEQ_MASK,
    STATE,
    sack_blocks_untrusted,
)
from hyperlog.dht.udx.receiver import HALF, Receiver
from hyperlog.dht.udx.recovery import Path
from hyperlog.dht.udx.sender import Groups, Sender
from hyperlog.dht.udx.statistics import UDXStreamStatistics

__all__ = ["UDXStreamCore", "UDXStreamStatistics"]

DEFAULT_WINDOW: Final = 4 * 1024 * 1024  # bytes, libudx UDX_DEFAULT_RWND_MAX
HIGH_WATERMARK: Final = 262144  # bytes beyond the send window, libudx UDX_HIGH_WATERMARK
MAX_MESSAGE: Final = 1132  # bytes: what a path of 1200 bytes carries over IPv6
MAX_MESSAGES: Final = 256  # unordered messages waiting to be sent

_unpack_header = HEADER.unpack_from


class UDXStreamCore:
    """A UDX stream without IO; `now` is in seconds and never goes back.

    Methods that act raise LocalProtocolError when the state does not allow it: connecting twice,
    writing after write_end() or after the close. Nothing that comes from the network raises.
    """

    def __init__(
        self,
        local_id: int,
        *,
        receive_window: int = DEFAULT_WINDOW,
        mtu_probing: bool = True,
        initial_seq: int = 0,
        initial_ack: int = 0,
        reserved: bool = False,
    ) -> None:
        """`initial_seq` and `initial_ack` must be 0 for HyperDHT, whose peers never tell them.

        A `reserved` stream goes to an address that somebody only claims to have. Until a packet has
        come it repeats nothing before its RTO, and closes without a word: else a forged handshake
        would have us send more to a third party than JavaScript peers do.
        """
        self.local_id = local_id
        self.remote_id: int | None = None
        self.remote_address: Address | None = None
        self._socket = 0
        self.connected = False
        self.closed = False

        self._now = 0.0
        self._events: deque[Event] = deque()
        self._farewell: list[bytes] = []  # what is still to be sent after the close
        self._closing_reply: bytes | None = None

        self._receiver = Receiver(receive_window, initial_ack, self._events)
        self._sender = Sender(initial_seq, mtu_probing=mtu_probing)
        self._recovery = self._sender.recovery
        self._recovery.reserved = reserved
        # Wire seq and ack of the packet that set the peer's window.
        self._window_seq = initial_ack & SEQ_MASK
        self._window_ack = initial_seq & SEQ_MASK
        self._messages_out: deque[bytes] = deque()

        self._keep_alive: float | None = None
        self._keep_alive_at: float | None = None
        self._keep_alive_due = False

        self._packets_in = 0
        self._bytes_in = 0
        self._packets_out = 0
        self._bytes_out = 0
        self._malformed = 0
        self._sacks_in = 0
        self._invalid_sacks = 0
        self._dropped_messages = 0

    # Commands

    def connect(self, remote_id: int, remote_address: Address, now: float, socket: int = 0) -> None:
        """Say where to send; an acknowledgement that was held back goes out next.

        `socket` is what datagrams_to_send names as the local socket of these datagrams.
        """
        if self.closed or self.connected:
            raise LocalProtocolError("a UDX stream connects once, before it is closed")
        self._now = now
        self.remote_id = remote_id
        self.remote_address = remote_address
        self._socket = socket
        self.connected = True
        self._sender.start(Path(remote_id, remote_address, socket), now)
        self._rearm_keep_alive(now)

    def change_remote(
        self, remote_id: int, remote_address: Address, now: float, socket: int = 0
    ) -> None:
        """Send new packets elsewhere; what is in flight keeps its old remote for retransmission.

        Once all of that is acknowledged, RemoteChanged follows. The search for the path MTU starts
        again. Packets of the peer are taken from wherever they come, as ever.

        Spec: docs/protocol/udx.md section 12.
        """
        if self.closed or not self.connected:
            raise LocalProtocolError("only a connected UDX stream can change its remote")
        self._now = now
        self.remote_id = remote_id
        self.remote_address = remote_address
        self._socket = socket
        self._sender.change_path(Path(remote_id, remote_address, socket))
        self._end_path_change()

    def _end_path_change(self) -> None:
        if self._sender.end_path_change():
            self._events.append(RemoteChanged())

    def write(self, data: bytes, now: float) -> None:
        """Append to the byte stream; allowed before connect().

        The queue is not bounded here: callers hold back by `write_buffer_bytes`.
        """
        if self.closed or self._sender.end_queued:
            raise LocalProtocolError("the writing side of this UDX stream is closed")
        self._now = now
        self._sender.buffer.append(data)
        self._sender.send_due = True

    def write_end(self, now: float) -> None:
        """Half-close after everything written so far; calling it again does nothing."""
        if self.closed:
            raise LocalProtocolError("this UDX stream is closed")
        self._now = now
        self._sender.end_queued = True
        self._sender.send_due = True

    def send_message(self, data: bytes, now: float) -> None:
        """Send one unordered, unacknowledged datagram; the oldest waiting one makes room for it.

        Raises:
            LocalProtocolError: closed, or `data` exceeds what every path carries (1132 bytes).
        """
        if self.closed:
            raise LocalProtocolError("this UDX stream is closed")
        if len(data) > MAX_MESSAGE:
            raise LocalProtocolError(f"a UDX message has at most {MAX_MESSAGE} bytes")
        self._now = now
        if len(self._messages_out) >= MAX_MESSAGES:
            self._messages_out.popleft()
            self._dropped_messages += 1
        self._messages_out.append(bytes(data))

    def destroy(self, now: float) -> None:
        """Close at once; a connected peer is told by one DESTROY, which is not repeated."""
        if self.closed:
            return
        self._now = now
        if self.connected and not self._recovery.reserved:
            self._closing_reply = self._header(DESTROY)
            self._farewell.append(self._closing_reply)
        self._close(None)

    def ask_for_answer(self) -> None:
        """Send a HEARTBEAT now, which every peer answers."""
        self._keep_alive_due = True

    def set_keep_alive(self, interval: float | None, now: float) -> None:
        """Send a HEARTBEAT when nothing was sent for `interval` seconds; None stops it."""
        self._keep_alive = interval
        self._keep_alive_at = None
        if not self.closed and self.connected:
            self._rearm_keep_alive(now)

    # Reading

    @property
    def readable_bytes(self) -> int:
        return self._receiver.buffer.readable_bytes

    @property
    def end_received(self) -> bool:
        """Whether the peer has ended and all its bytes are readable or read."""
        return self._receiver.end_received

    def read(self, max_bytes: int | None = None) -> list[bytes | memoryview]:
        """Remove and return in-order chunks, as they were received and not joined."""
        chunks = self._receiver.read(max_bytes)
        if self._receiver.end_received:
            self._finish_if_done()
        return chunks

    def set_receive_window(self, window: int) -> None:
        """Advertise another receive window, in bytes, from now on."""
        if not self.closed:
            self._receiver.resize(window)

    @property
    def receive_window(self) -> int:
        """Bytes that the peer may send ahead of the reader."""
        return self._receiver.buffer.window

    @property
    def held_bytes(self) -> int:
        """Memory that what the peer has sent counts for until it is read."""
        return self._receiver.charge

    def copy_views(self) -> None:
        """Let go of the receive buffers that unread chunks are views of."""
        self._receiver.buffer.copy_views()

    def discard(self) -> None:
        """Forget what was not read: nobody will."""
        self._receiver.buffer.drop_all()

    def next_event(self) -> Event | None:
        """Remove and return the oldest event, None when there is none."""
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, MessageReceived):
            self._receiver.on_message_read(event)
        return event

    # State

    @property
    def unsent_bytes(self) -> int:
        """Bytes written and never sent."""
        return self._sender.buffer.size

    @property
    def inflight_bytes(self) -> int:
        """Bytes sent and not acknowledged."""
        return self._recovery.unacked_bytes

    @property
    def next_seq(self) -> int:
        """Sequence number, unwrapped, of the next packet with new data."""
        return self._recovery.next_seq

    @property
    def remote_is_changing(self) -> bool:
        """Whether something that was sent before the last change_remote() is still in flight."""
        return self._sender.path_is_changing

    @property
    def acked_seq(self) -> int:
        """The peer has every packet below it; what was SACKed beyond a gap does not count."""
        return self._recovery.oldest

    @property
    def write_buffer_bytes(self) -> int:
        return self._sender.buffer.size + self._recovery.unacked_bytes

    @property
    def write_high_watermark(self) -> int:
        """The `write_buffer_bytes` above which a caller should hold back.

        It grows with the window, because a stream that is kept short of data by its own buffer
        never finds out what the path can carry. Spec: docs/protocol/udx.md section 6.
        """
        sender = self._sender
        return HIGH_WATERMARK + min(sender.bbr.cwnd * sender.payload_size, sender.peer_rwnd)

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds."""
        return self._recovery.srtt

    @property
    def closing_reply(self) -> bytes | None:
        """After the close, the datagram that answers what the peer still sends to the old id.

        A STATE that acknowledges the peer's END after an orderly close, a DESTROY when we gave up;
        None when the peer has forgotten the stream itself. See closed.py.
        """
        return self._closing_reply

    def statistics(self) -> UDXStreamStatistics:
        recovery = self._recovery
        return UDXStreamStatistics(
            packets_in=self._packets_in,
            bytes_in=self._bytes_in,
            packets_out=self._packets_out,
            bytes_out=self._bytes_out,
            retransmits=recovery.retransmits,
            lost=recovery.lost_count,
            duplicates=self._receiver.duplicates,
            malformed=self._malformed,
            overflows=self._receiver.overflows,
            sacks_in=self._sacks_in,
            invalid_sacks=self._invalid_sacks,
            dropped_messages=self._dropped_messages + self._receiver.dropped_messages,
            rto_count=recovery.rto_count,
            tlp_count=recovery.probe_count,
            srtt=recovery.srtt,
            rto=recovery.rto,
            cwnd=self._sender.bbr.cwnd,
            bandwidth=self._sender.bbr.bandwidth * self._sender.payload_size,
            mtu=self._sender.mtu.mtu,
            rwnd=self._receiver.buffer.free_window,
            peer_rwnd=self._sender.peer_rwnd,
        )

    # Network in

    def receive_datagram(self, data: bytes | memoryview, address: Address, now: float) -> None:
        """Take one UDX datagram with our id, from whatever address: the id is what proves the peer.

        A memoryview must stay unchanged, since in-order payloads are kept as views until read.

        Wire: docs/protocol/udx.md section 5; its numbered rules are named below.
        """
        try:
            magic, flags, offset, stream_id, rwnd, seq, ack = _unpack_header(data)
        except struct.error:
            self._malformed += 1
            return
        if magic != MAGIC_AND_VERSION or stream_id != self.local_id:
            self._malformed += 1
            return
        if self.closed:
            return
        self._now = now
        self._packets_in += 1
        self._bytes_in += len(data)

        if self._recovery.reserved:
            self._recovery.end_reserve(now)
        receiver = self._receiver
        buffer = receiver.buffer
        if (
            flags == DATA
            and not offset
            and seq == buffer.next_seq & SEQ_MASK
            and not buffer.has_gap
            and receiver.end_seq is None
        ):
            if not buffer.append(data[HEADER_SIZE:]):
                receiver.overflows += 1
        elif flags:
            if flags & HEARTBEAT:  # rule 2
                receiver.ack_due = True
                return
            if offset > len(data) - HEADER_SIZE:
                self._malformed += 1
                return
            # Rule 4. The seq of a DESTROY is checked before its own data is counted.
            destroys = flags & DESTROY and (seq - buffer.next_seq) & SEQ_MASK < HALF
            receiver.take(data[HEADER_SIZE + offset :], flags, seq)
            if destroys:
                self._close(StreamReset("the peer destroyed the stream"))
                return

        recovery = self._recovery
        advance = (ack - recovery.oldest) & SEQ_MASK
        if advance < HALF:
            if advance:
                if advance > recovery.next_seq - recovery.oldest:
                    # Rule 7. Compat: libudx consumes the data but does not acknowledge it.
                    self._malformed += 1
                    return
                if self._sender.on_ack(recovery.oldest + advance) and not receiver.end_received:
                    receiver.ack_due = True  # rule 9
                if self._sender.path_is_changing:
                    self._end_path_change()
            if rwnd != self._sender.peer_rwnd or seq != self._window_seq or ack != self._window_ack:
                self._take_window(rwnd, seq, ack)
        if flags & SACK:
            self._sacks_in += 1
            self._on_sacks(data, offset)
        if flags & (DATA | END):  # rule 12
            receiver.ack_due = True
        elif receiver.end_received:
            self._finish_if_done()

    def _take_window(self, rwnd: int, seq: int, ack: int) -> None:
        """Rule 8: a packet that was overtaken must not bring back an older window.

        Among packets with equal seq and ack the order is unknown. There only a smaller window
        counts, or the first one after a closed window: other growth comes with a later
        acknowledgement. libudx takes them all, which is safe for windows that never shrink.
        """
        newer_seq = (seq - self._window_seq) & SEQ_MASK
        newer_ack = (ack - self._window_ack) & SEQ_MASK
        if newer_seq >= HALF or (not newer_seq and newer_ack >= HALF):
            return
        sender = self._sender
        if newer_seq or newer_ack or rwnd < sender.peer_rwnd or not sender.peer_rwnd:
            self._window_seq = seq
            self._window_ack = ack
            if rwnd != sender.peer_rwnd:
                sender.on_window(rwnd)

    def _on_sacks(self, data: bytes | memoryview, offset: int) -> None:
        """Rule 10: blocks outside of what is in flight are skipped.

        So are blocks out of order: honest ones ascend, others would multiply the work.
        """
        recovery = self._recovery
        oldest = recovery.oldest
        span = recovery.next_seq - oldest
        valid = []
        covered = 0
        for start, end in sack_blocks_untrusted(data, offset):
            first = (start - oldest) & SEQ_MASK
            last = (end - oldest) & SEQ_MASK
            if covered <= first < last <= span:
                valid.append((oldest + first, oldest + last))
                covered = last
            else:
                self._invalid_sacks += 1
        recovery.on_sack_blocks(valid)

    # Timers

    def get_timer(self) -> float | None:
        """Return when datagrams_to_send() is needed next, a time that has passed if it is now.

        None means that nothing happens before a datagram comes in or a command is given.
        """
        if not self.connected:
            return None
        if self.closed:
            return self._now if self._farewell else None
        sender = self._sender
        if (
            self._receiver.ack_due
            or sender.send_due
            or self._recovery.acks_pending
            or sender.probe_due
            or sender.heartbeat_due
            or self._keep_alive_due
            or self._messages_out
        ):
            return self._now
        at = sender.next_timer()
        if self._keep_alive_at is not None and (at is None or self._keep_alive_at < at):
            return self._keep_alive_at
        return at

    def handle_timer(self, now: float) -> None:
        """Do what is due at `now`, after the acknowledgements that came before it."""
        self._now = now
        if not self.connected or self.closed:
            return
        sender = self._sender
        if self._recovery.acks_pending:
            sender.conclude_acks(now)
        if not sender.handle_timer(now, self._packets_in):
            self._closing_reply = self._header(DESTROY)
            self._close(StreamTimeout("the peer stopped acknowledging"))
            return
        if self._keep_alive_at is not None and self._keep_alive_at <= now:
            self._keep_alive_due = not self._recovery.in_flight
            self._rearm_keep_alive(now)

    def _rearm_keep_alive(self, now: float) -> None:
        if self._keep_alive is not None:
            self._keep_alive_at = now + self._keep_alive

    # Network out

    def datagrams_to_send(self, now: float) -> Groups:
        """Return what is due now, grouped by local socket and destination, in order.

        At most 64 of them carry data; when more is due, get_timer() lies in the past.
        """
        if not self.connected:
            return []
        self.handle_timer(now)
        address = self.remote_address
        assert address is not None
        if self.closed:
            out, self._farewell = self._farewell, []
            return self._count_out([(self._socket, address, out)] if out else [])

        groups: Groups = []
        out = []
        receiver = self._receiver
        sender = self._sender
        new_data = False
        if sender.send_due or sender.probe_due:
            rwnd = receiver.advertised = receiver.buffer.free_window
            new_data = sender.send(groups, out, rwnd, receiver.buffer.next_seq & SEQ_MASK, now)
        control = []
        if sender.heartbeat_due or self._keep_alive_due:
            sender.heartbeat_due = self._keep_alive_due = False
            control.append(self._header(HEARTBEAT))
        if receiver.ack_due:
            receiver.ack_due = False
            # New data carries the acknowledgement along, but it has no room for SACK blocks.
            area = receiver.sack_area()
            if area:
                control.append(self._header(SACK) + area)
            elif not new_data:
                control.append(self._header(STATE))
        if control:
            out = control + out
        if self._messages_out:
            out += [self._header(MESSAGE) + message for message in self._messages_out]
            self._messages_out.clear()
        if out:
            groups.append((self._socket, address, out))
        if groups and self._keep_alive is not None:
            self._rearm_keep_alive(now)
        if receiver.end_received:
            self._finish_if_done()
        return self._count_out(groups)

    def _count_out(self, groups: Groups) -> Groups:
        for _, _, datagrams in groups:
            self._packets_out += len(datagrams)
            self._bytes_out += sum(map(len, datagrams))
        return groups

    def _header(self, flags: int) -> bytes:
        """Return a header without a sequence number of its own: it carries the next unused one."""
        receiver = self._receiver
        receiver.advertised = receiver.buffer.free_window
        return HEADER.pack(
            MAGIC_AND_VERSION,
            flags,
            0,
            self.remote_id,
            receiver.advertised,
            self._recovery.next_seq & SEQ_MASK,
            receiver.buffer.next_seq & SEQ_MASK,
        )

    # Closing

    def _finish_if_done(self) -> None:
        """Close when both ENDs are acknowledged, ours has gone out, and everything is read."""
        if (
            self._receiver.end_received
            and self._sender.end_acked
            and not self._receiver.ack_due
            and not self._receiver.buffer.readable_bytes
            and not self.closed
        ):
            self._closing_reply = self._header(STATE)
            self._close(None)

    def _close(self, error: StreamReset | StreamTimeout | None) -> None:
        self.closed = True
        self._receiver.ack_due = self._keep_alive_due = False
        self._keep_alive_at = None
        self._messages_out.clear()
        self._sender.stop()
        self._receiver.buffer.drop_held()
        self._events.append(StreamClosed(error))
