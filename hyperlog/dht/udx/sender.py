"""The sending half of a stream: cuts written bytes into packets and gets each one acknowledged.

Brings together what was never sent (SendBuffer), what is in flight (Recovery), how much may be
(BBR, the peer's window), how fast (Pacer) and how large (PathMTU). A sequence number is bound to
its payload for ever: a retransmission repeats payload and END flag and only refreshes window and
acknowledgement.

Spec: docs/protocol/udx.md sections 5 to 11.
"""

from __future__ import annotations

from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.udx.congestion import BBR, Pacer
from hyperlog.dht.udx.packet import (
    DATA,
    END,
    HEADER,
    HEADER_SIZE,
    MAGIC_AND_VERSION,
    SEQ_MASK,
)
from hyperlog.dht.udx.pathmtu import BASE_MTU, PathMTU, header_overhead
from hyperlog.dht.udx.recovery import Flight, Path, Recovery, SentPacket
from hyperlog.dht.udx.sendbuffer import SendBuffer

__all__ = ["Groups", "Sender"]

INITIAL_PEER_WINDOW: Final = 4 * 1024 * 1024  # bytes, libudx UDX_DEFAULT_RWND_MAX
MAX_PEER_WINDOW: Final = 16 * 1024 * 1024
"""Bytes kept in flight at most, however many the peer offers to take: up to 4 GiB fit its field.

Whoever confirms late would have us keep all that we can send meanwhile.
"""
MAX_DATA_PER_CALL: Final = 64  # datagrams with data of one send(), what UDP_SEGMENT takes
MAX_WINDOW_PROBES: Final = 60
"""Questions for a larger window, with nothing at all from the peer: two minutes or more.

Compat: libudx asks without limit, so that a stream whose peer has gone would never end.
"""

Groups = list[tuple[int, Address, list[bytes]]]
"""Datagrams by where they go: the local socket that the path names, and the address."""

_pack_header = HEADER.pack


class Sender:
    """Usable from the start for writing; sends after start()."""

    def __init__(self, initial_seq: int, *, mtu_probing: bool) -> None:
        self.buffer = SendBuffer()
        self.recovery = Recovery(initial_seq)
        self.path: Path | None = None
        self.mtu = PathMTU(enabled=mtu_probing)
        self.bbr = BBR(0.0)
        self._pacer = Pacer(0.0, BASE_MTU)
        self._overhead = header_overhead("")
        self.payload_size = BASE_MTU - self._overhead
        self._former_path: Path | None = None
        self._path_changing_until: int | None = None

        self.end_queued = False
        self.end_acked = False
        self._end_seq: int | None = None  # unwrapped seq of our END

        self.peer_rwnd = INITIAL_PEER_WINDOW

        self.send_due = False
        """Whether send() may have something to do before the next timer."""
        self.heartbeat_due = False
        self.probe_due = False
        self._pacing_at: float | None = None
        self._zero_window_at: float | None = None
        self._window_probes = 0  # since a packet came
        self._packets_heard = 0

    def start(self, path: Path, now: float) -> None:
        self._take_path(path)
        self.bbr = BBR(now)
        self._pacer = Pacer(now, BASE_MTU)
        self.send_due = True

    def change_path(self, path: Path) -> None:
        """Send new packets to `path`; the search for its MTU starts from the bottom.

        The estimates of round trip and bandwidth stay: what the new path is like, its first
        acknowledgements tell.
        """
        self.mtu = PathMTU(enabled=self.mtu.enabled)
        self._former_path = self.path
        self._path_changing_until = self.recovery.next_seq
        self.recovery.begin_path_change(path)
        self._take_path(path)

    @property
    def path_is_changing(self) -> bool:
        """Whether packets that were first sent on an older path are not acknowledged yet."""
        return self._path_changing_until is not None

    def end_path_change(self) -> bool:
        """Look whether the last change is over; True once when it is."""
        until = self._path_changing_until
        if until is None or self.recovery.oldest < until:
            return False
        self._path_changing_until = self._former_path = None
        self.recovery.end_path_change()
        return True

    def _take_path(self, path: Path) -> None:
        self.path = path
        self._overhead = header_overhead(path.address[0])
        self.payload_size = self.mtu.mtu - self._overhead

    def stop(self) -> None:
        """Forget everything that was to be sent."""
        self.buffer.clear()
        self.recovery.clear()
        self._pacing_at = self._zero_window_at = None
        self.send_due = self.heartbeat_due = self.probe_due = False

    @property
    def has_unsent(self) -> bool:
        """Whether bytes or an END wait for their first transmission."""
        return self.buffer.size > 0 or (self.end_queued and self._end_seq is None)

    # Acknowledgements

    def on_ack(self, ack: int) -> bool:
        """Take a cumulative acknowledgement, unwrapped, above `recovery.oldest` and not beyond
        `recovery.next_seq`; return whether it is the one for our END."""
        self.recovery.on_ack(ack)
        if self.mtu.mtu == BASE_MTU:
            self.mtu.start_search()
        end_seq = self._end_seq
        if end_seq is None or self.end_acked or ack <= end_seq:
            return False
        self.end_acked = True
        return True

    def on_window(self, rwnd: int) -> None:
        """The peer can take `rwnd` bytes beyond what it acknowledged."""
        self.peer_rwnd = min(rwnd, MAX_PEER_WINDOW)
        if self.has_unsent:
            self.send_due = True
        if rwnd:
            self._zero_window_at = None

    def conclude_acks(self, now: float) -> None:
        """Draw the conclusions of all acknowledgements since the last call."""
        recovery = self.recovery
        bbr = self.bbr
        sample = recovery.conclude(now)
        mtu = self.mtu
        probe = mtu.probe_seq
        if probe is not None and probe not in recovery.in_flight and probe not in recovery.lost:
            mtu.on_probe_acked()
            self.payload_size = mtu.mtu - self._overhead
        if sample.acked:
            sample.lost = self._detect_losses(now)
        bbr.on_acks(
            sample,
            now=now,
            delivered=recovery.delivered,
            in_flight=len(recovery.in_flight),
            recovery_state=recovery.state,
            srtt=recovery.srtt,
        )
        if bbr.is_probing_rtt:
            # What four packets reach says nothing about the bandwidth.
            recovery.app_limited_until = recovery.delivered + len(recovery.in_flight) or 1
        if recovery.lost or self.has_unsent:
            self.send_due = True

    def _detect_losses(self, now: float) -> int:
        """Return how many packets were found lost; a lost MTU probe does not count."""
        recovery = self.recovery
        count = len(recovery.detect_losses(now))
        if count:
            self.send_due = True
            count -= self._note_lost_probe()
            if count:
                recovery.enter_recovery()
        return count

    def _note_lost_probe(self) -> int:
        """Tell the MTU search when its probe is lost; return the number of probes lost, 0 or 1."""
        if self.mtu.probe_seq is None or self.mtu.probe_seq not in self.recovery.lost:
            return 0
        self.mtu.on_probe_lost()
        return 1

    # Timers

    def next_timer(self) -> float | None:
        recovery = self.recovery
        earliest = recovery.rto_at
        for at in (
            recovery.probe_at,
            recovery.reorder_at,
            self._pacing_at,
            self._zero_window_at,
        ):
            if at is not None and (earliest is None or at < earliest):
                earliest = at
        return earliest

    def handle_timer(self, now: float, packets_in: int) -> bool:
        """Do what is due at `now`; False when the peer has been silent for too long.

        `packets_in` counts what has come from it, of whatever kind.
        """
        recovery = self.recovery
        if recovery.rto_at is not None and recovery.rto_at <= now:
            if not recovery.on_rto(now):
                return False
            self._note_lost_probe()
            self.bbr.on_rto(len(recovery.in_flight))
            self.send_due = True
        if recovery.reorder_at is not None and recovery.reorder_at <= now:
            self._detect_losses(now)
        if recovery.probe_at is not None and recovery.probe_at <= now:
            self.probe_due = recovery.on_probe_timeout()
        if self._pacing_at is not None and self._pacing_at <= now:
            self._pacing_at = None
            self.send_due = True
        if self._zero_window_at is not None and self._zero_window_at <= now:
            if packets_in != self._packets_heard:
                self._packets_heard = packets_in
                self._window_probes = 0
            elif self._window_probes >= MAX_WINDOW_PROBES:
                return False
            self._window_probes += 1
            self.heartbeat_due = True
            self._zero_window_at = now + 2 * recovery.rto
        return True

    # Sending

    def send(self, groups: Groups, out: list[bytes], rwnd: int, ack: int, now: float) -> bool:
        """Append what all limits allow; return whether any of it was new data.

        Datagrams for the current path go to `out`, retransmissions on an older one to `groups`.
        `rwnd` and `ack` are what their headers say.
        """
        assert self.path is not None
        recovery = self.recovery
        pacer = self._pacer
        self.send_due = False
        self._pacing_at = None
        packet_size = self.payload_size + HEADER_SIZE
        rate = self.bbr.pacing_rate * packet_size
        pacer.refill(now, rate, packet_size)
        if not recovery.in_flight and recovery.app_limited_until:
            self.bbr.on_restart(now)

        budget = MAX_DATA_PER_CALL
        if recovery.lost:
            budget -= self._retransmit(groups, out, budget, rwnd, ack, now)
        sent_new = False
        if self.has_unsent:
            credit = int(pacer.credit // packet_size) + 1 if pacer.credit > 0 else 0
            count = min(self._window_room(), credit, budget)
            if self.probe_due and self.peer_rwnd and count < 1:
                count = 1  # a tail loss probe goes whatever the limits say
            if count > 0:
                sent_new = self._send_new(out, count, rwnd, ack, now)
        if self.probe_due:
            self.probe_due = False
            if sent_new:
                recovery.on_probe_sent(now)
            else:
                self._repeat_newest(groups, out, rwnd, ack, now)

        if recovery.lost:
            blocked = self.bbr.cwnd <= len(recovery.in_flight)
        elif self.has_unsent:
            blocked = self._window_room() <= 0
        else:
            if len(recovery.in_flight) < self.bbr.cwnd:
                recovery.app_limited_until = recovery.delivered + len(recovery.in_flight) or 1
            return sent_new
        if not blocked:
            if pacer.credit <= 0:
                self._pacing_at = pacer.blocked_until(rate, packet_size)
            else:
                self.send_due = True
        elif (
            self.peer_rwnd == 0
            and self._zero_window_at is None
            and recovery.oldest == recovery.next_seq
        ):
            self.heartbeat_due = True
            self._zero_window_at = now + recovery.rto
        return sent_new

    def _window_room(self) -> int:
        """Packets that the congestion window and the peer's window leave room for."""
        recovery = self.recovery
        room = self.bbr.cwnd - len(recovery.in_flight)
        rwnd = self.peer_rwnd
        packets = max(1, rwnd // self.payload_size) if rwnd else 0
        return min(room, packets - len(recovery.in_flight) - len(recovery.lost))

    def _send_new(self, out: list[bytes], count: int, rwnd: int, ack: int, now: float) -> bool:
        path = self.path
        assert path is not None
        recovery = self.recovery
        payload_size = self.payload_size
        payloads = self.buffer.take(count, payload_size)
        ends = self.end_queued and not self.buffer.size and self._end_seq is None
        if not payloads:
            if not ends:
                return False
            payloads = [b""]
        flight = recovery.begin_flight(path, now)
        in_flight = recovery.in_flight
        remote_id = path.remote_id
        first = seq = recovery.next_seq
        size = 0
        for payload in payloads:
            datagram = (
                _pack_header(MAGIC_AND_VERSION, DATA, 0, remote_id, rwnd, seq & SEQ_MASK, ack)
                + payload
            )
            length = len(payload)
            in_flight[seq] = SentPacket(seq, datagram, length, flight)
            out.append(datagram)
            size += length
            seq += 1
        if ends:
            last = in_flight[seq - 1]
            flags = DATA | END if last.size else END
            last.datagram = out[-1] = self._with_header(last, flags, path, rwnd, ack)
            self._end_seq = seq - 1
        if self.mtu.wants_probe and not self.probe_due and self._path_changing_until is None:
            self._pad_to_probe(out, first, seq)
        recovery.on_sent_new(seq - first, size, now)
        self._pacer.credit -= size + HEADER_SIZE * (seq - first)
        return True

    def _with_header(
        self, packet: SentPacket, flags: int, path: Path, rwnd: int, ack: int
    ) -> bytes:
        header = _pack_header(
            MAGIC_AND_VERSION, flags, 0, path.remote_id, rwnd, packet.seq & SEQ_MASK, ack
        )
        return header + packet.datagram[HEADER_SIZE:]

    def _pad_to_probe(self, out: list[bytes], first: int, end: int) -> None:
        """Make the last full packet of `first` … `end` - 1, the tail of `out`, a probe.

        The packet on record stays as it is, so that a retransmission goes without padding.
        """
        for seq in range(end - 1, max(first, end - 2) - 1, -1):
            packet = self.recovery.in_flight[seq]
            if packet.size == self.payload_size:
                padding = self.mtu.padding_for(packet.size + self._overhead)
                if padding:
                    datagram = packet.datagram
                    out[seq - end] = b"".join(
                        (
                            datagram[:3],
                            padding.to_bytes(1, "little"),
                            datagram[4:HEADER_SIZE],
                            bytes(padding),
                            datagram[HEADER_SIZE:],
                        )
                    )
                    self.mtu.on_probe_sent(seq)
                return

    def _repeat_newest(
        self, groups: Groups, out: list[bytes], rwnd: int, ack: int, now: float
    ) -> None:
        recovery = self.recovery
        packet = recovery.take_newest()
        if packet is None:
            return
        if packet.seq == self.mtu.probe_seq:
            # Which of the two transmissions gets acknowledged could not be told.
            self.mtu.on_probe_lost()
        recovery.on_resent(packet, recovery.begin_flight(self._path_to_repeat_on(packet), now))
        recovery.on_probe_sent(now)
        self._emit(groups, out, packet, rwnd, ack)

    def _retransmit(
        self, groups: Groups, out: list[bytes], budget: int, rwnd: int, ack: int, now: float
    ) -> int:
        recovery = self.recovery
        pacer = self._pacer
        cwnd = self.bbr.cwnd
        flight: Flight | None = None
        count = 0
        while (
            recovery.lost and count < budget and pacer.credit > 0 and len(recovery.in_flight) < cwnd
        ):
            packet = recovery.take_lost()
            path = self._path_to_repeat_on(packet)
            if flight is None or flight.path is not path:
                flight = recovery.begin_flight(path, now)
            recovery.on_resent(packet, flight)
            pacer.credit -= len(packet.datagram)
            self._emit(groups, out, packet, rwnd, ack)
            count += 1
        return count

    def _path_to_repeat_on(self, packet: SentPacket) -> Path:
        """The path of the last transmission, unless that one may not be there any more.

        libudx stays with the old path. But the peer, or a relay, may have given that up, and then
        the packet would never arrive; on the new path it may be too large. So the first repetition
        takes the old path, the second the new one, and if it is large it goes on like that.
        """
        path = packet.flight.path
        current = self.path
        assert current is not None
        if path is not current:
            return current if packet.retransmitted else path
        if self._former_path is not None and packet.size > self.payload_size:
            return self._former_path
        return path

    def _emit(
        self, groups: Groups, out: list[bytes], packet: SentPacket, rwnd: int, ack: int
    ) -> None:
        """Append a retransmission, on the path of its flight."""
        path = packet.flight.path
        datagram = self._with_header(packet, packet.datagram[2], path, rwnd, ack)
        if path is self.path:
            out.append(datagram)
        elif groups and groups[-1][:2] == (path.socket, path.address):
            groups[-1][2].append(datagram)
        else:
            groups.append((path.socket, path.address, [datagram]))
