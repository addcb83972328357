"""What is in flight, when it counts as lost, and the timers that find out: RTT, RTO, RACK, TLP.

Theory of operation. A packet is in exactly one of two tables until it is acknowledged: `in_flight`,
in the order of (re)transmission, or `lost`, waiting for retransmission. Both map the unwrapped seq.
A SACKed packet is forgotten like an acknowledged one: libudx never reneges.

- RACK (RFC 8985): when a packet is acknowledged, packets sent before it are lost as soon as they
  are older than its round trip plus a reorder window. Those still within the window arm
  `reorder_at`.
- TLP: when the last packets of a burst stay unanswered, `probe_at` fires before the RTO and one
  packet is sent, so that its acknowledgement shows the gap. Unlike libudx, which sends one probe
  and only outside of a recovery, this covers the last retransmissions as well and sends up to four
  probes, each after twice the time: at an RTO of 1 s, losing two packets of a tail costs seconds.
  They begin before the first RTT sample, too: where one packet in five is lost, one connection in
  twenty would else need 3 s more for its first words.
- RTO: `rto_at`, at least 1 s. The oldest packet and everything overdue is lost; the next expiry is
  two RTOs later, always, and the seventh in a row without cumulative progress ends the stream.

    open ──loss found by RACK──▶ recovery ──everything sent before it acknowledged──▶ open
    open, recovery ──RTO──▶ loss ──everything sent before it acknowledged──▶ open

Acknowledgements are taken in two steps, because they arrive in bursts: `on_ack` and
`on_sack_blocks` only release packets; `conclude` then takes one RTT sample, one delivery-rate
sample and one look at losses for the whole burst.

Spec: docs/protocol/udx.md section 7; RFC 8985; draft-cheng-iccrg-delivery-rate-estimation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hyperlog.dht.udx.windowed import WindowedMin

if TYPE_CHECKING:
    from hyperlog.dht.compact import Address

__all__ = ["LOSS", "OPEN", "RECOVERY", "Flight", "Path", "RateSample", "Recovery", "SentPacket"]

INITIAL_RTO: Final = 1.0  # s
MIN_RTO: Final = 1.0  # s
MAX_RTO: Final = 30.0  # s
MAX_EXPIRIES: Final = 6  # RTOs in a row that are survived, libudx UDX_MAX_RTO_TIMEOUTS
INITIAL_PROBE_TIMEOUT: Final = 0.25  # s, before the first RTT sample
MIN_PROBE_TIMEOUT: Final = (
    0.010  # s; a Python peer answers in bursts, earlier probes only duplicate
)
MAX_PROBES: Final = 4  # tail loss probes in a row without an acknowledgement
PROBE_ACK_DELAY: Final = 0.002  # s, libudx UDX_TLP_MAX_ACK_DELAY
MAX_RTT: Final = 30.0  # s
RTT_OUTLIER: Final = 5.0  # s; above it a sample may include the time a machine was suspended
MIN_RTT_STEP: Final = 30.0  # s
MIN_RTT_STEPS: Final = 10  # so the smallest RTT of 300 s, libudx UDX_RTT_MIN_WINDOW_MS

OPEN: Final = 0
RECOVERY: Final = 1
LOSS: Final = 2


class Path:
    """Where packets go; in-flight packets keep theirs when the stream changes its remote."""

    __slots__ = ("address", "remote_id", "socket")

    def __init__(self, remote_id: int, address: Address, socket: int = 0) -> None:
        self.remote_id = remote_id
        self.address = address
        self.socket = socket
        """local socket to send from; a name for the caller's use"""


class Flight:
    """What the packets of a burst share: when they left, and the state of delivery then."""

    __slots__ = ("app_limited", "delivered", "delivered_at", "first_sent_at", "path", "sent_at")

    def __init__(
        self,
        path: Path,
        sent_at: float,
        delivered: int,
        delivered_at: float,
        first_sent_at: float,
        app_limited: bool,
    ) -> None:
        self.path = path
        self.sent_at = sent_at
        self.delivered = delivered
        self.delivered_at = delivered_at
        self.first_sent_at = first_sent_at
        self.app_limited = app_limited


class SentPacket:
    """A packet with a sequence number; its payload and END flag never change."""

    __slots__ = ("datagram", "flight", "retransmitted", "seq", "size")

    def __init__(self, seq: int, datagram: bytes, size: int, flight: Flight) -> None:
        self.seq = seq
        self.datagram = datagram
        self.size = size  # payload bytes
        self.flight = flight
        self.retransmitted = False


@dataclass(slots=True)
class RateSample:
    """What one burst of acknowledgements tells the congestion control."""

    acked: int
    "Packets newly acknowledged or SACKed."
    lost: int
    "Packets newly found lost, MTU probes not counted."
    delivered: int
    "Packets delivered over `interval`; 0 when there is no valid sample."
    interval: float
    "Seconds; 0 when there is no valid sample."
    prior_delivered: int
    "The count of delivered packets when the newest acknowledged one was sent."
    app_limited: bool
    rtt: float | None
    "Seconds; None when only retransmitted packets were acknowledged."


class Recovery:
    """Loss recovery of one stream. Times are seconds, seqs unwrapped."""

    def __init__(self, next_seq: int) -> None:
        self.in_flight: dict[int, SentPacket] = {}
        self.lost: dict[int, SentPacket] = {}
        self.oldest = next_seq
        """Lowest seq not cumulatively acknowledged."""
        self.next_seq = next_seq
        self.unacked_bytes = 0
        """Payload bytes sent and neither acknowledged nor SACKed."""
        self.sacked = 0
        """Packets SACKed beyond `oldest`."""
        self.state = OPEN
        self.srtt: float | None = None
        self.rttvar = 0.0
        self.rto = INITIAL_RTO
        self._min_rtt = WindowedMin(MIN_RTT_STEPS)

        self.rto_at: float | None = None
        self.probe_at: float | None = None
        self.reorder_at: float | None = None
        self.expiries = 0

        self.delivered = 0
        self.app_limited_until = 0
        """Count of delivered packets up to which the application, not the path, set the pace."""
        self._delivered_at = 0.0
        self._first_sent_at = 0.0

        self._recovery_end = next_seq  # state returns to OPEN when this is acknowledged
        self._rack_sent_at = 0.0
        self._rack_end = next_seq
        self._rack_rtt = 0.0
        self._highest_acked = next_seq  # one past it
        self._reordering_seen = False
        self._sack_ends: dict[int, int] = {}  # the blocks of the last acknowledgement
        self._new_path: Path | None = None  # while packets of an older one are in flight
        self._old_path_age = 0.0

        self._probes_in_a_row = 0  # since anything was acknowledged
        self.reserved = False
        """Whether nothing is repeated before its RTO: as long as the peer has not been heard."""

        # Collected since the last conclude().
        self.acks_pending = False
        self._newest: SentPacket | None = None
        self._newest_fresh: SentPacket | None = None
        self._acked = 0

        self.retransmits = 0
        self.rto_count = 0
        self.probe_count = 0
        self.lost_count = 0

    @property
    def min_rtt(self) -> float:
        """Smallest round-trip time of the last 300 s, 0 before the first sample."""
        return self._min_rtt.value

    # Sending

    def begin_flight(self, path: Path, now: float) -> Flight:
        """Return the record that all packets sent at this moment share."""
        if self.oldest == self.next_seq:
            self._first_sent_at = self._delivered_at = now
        return Flight(
            path,
            now,
            self.delivered,
            self._delivered_at,
            self._first_sent_at,
            self.app_limited_until > 0,
        )

    def on_sent_new(self, count: int, size: int, now: float) -> None:
        """`count` packets of `size` payload bytes in all were added to `in_flight`."""
        self.next_seq += count
        self.unacked_bytes += size
        if self.rto_at is None:
            self.rto_at = now + self.rto
        self._arm_probe(now)

    def take_lost(self) -> SentPacket:
        """Remove the packet to retransmit first; follow with on_resent()."""
        return self.lost.pop(next(iter(self.lost)))

    def on_resent(self, packet: SentPacket, flight: Flight) -> None:
        packet.flight = flight
        packet.retransmitted = True
        self.in_flight[packet.seq] = packet
        self.retransmits += 1
        if self.rto_at is None:
            self.rto_at = flight.sent_at + self.rto
        if not self.lost:
            self._arm_probe(flight.sent_at)

    def take_newest(self) -> SentPacket | None:
        """Remove the packet that was sent last, to repeat it as a tail loss probe; None if all are
        waiting for retransmission anyway. Follow with on_resent()."""
        if not self.in_flight:
            return None
        return self.in_flight.pop(next(reversed(self.in_flight)))

    def on_probe_sent(self, now: float) -> None:
        """A tail loss probe was just sent; the next one waits twice as long."""
        self.probe_count += 1
        self._probes_in_a_row += 1
        if self._probes_in_a_row == 1 and self.srtt is not None:
            self.rto_at = now + self.rto
        self.probe_at = None
        self._arm_probe(now)

    def end_reserve(self, now: float) -> None:
        """The peer has been heard."""
        self.reserved = False
        if self.in_flight:
            self._arm_probe(now)

    def _arm_probe(self, now: float) -> None:
        if self._probes_in_a_row >= MAX_PROBES or self.lost or self.reserved:
            return
        if self.state == OPEN and self.sacked:
            return  # RACK decides about the gap soon
        if self.srtt is None:
            timeout = INITIAL_PROBE_TIMEOUT
        else:
            timeout = max(2 * self.srtt, MIN_PROBE_TIMEOUT)
        if len(self.in_flight) == 1:
            timeout += PROBE_ACK_DELAY
        at = now + timeout * (1 << self._probes_in_a_row)
        self.probe_at = at if self.rto_at is None or at < self.rto_at else None

    # Acknowledgements

    def on_ack(self, ack: int) -> None:
        """Release every packet below `ack`, which lies within oldest … next_seq."""
        in_flight_pop = self.in_flight.pop
        newest = self._newest
        sent_at = newest.flight.sent_at if newest is not None else -1.0
        fresh = self._newest_fresh
        in_order = self._highest_acked <= self.oldest
        acked = size = 0
        for seq in range(self.oldest, ack):
            packet = in_flight_pop(seq, None)
            if packet is None:
                packet = self.lost.pop(seq, None)
                if packet is None:
                    self.sacked -= 1
                    continue
            acked += 1
            size += packet.size
            if packet.flight.sent_at >= sent_at:
                newest = packet
                sent_at = packet.flight.sent_at
            if not packet.retransmitted:
                fresh = packet
                if not in_order and seq + 1 < self._highest_acked:
                    self._reordering_seen = True
        if ack > self._highest_acked:
            self._highest_acked = ack
        self._newest = newest
        self._newest_fresh = fresh
        self._acked += acked
        self.unacked_bytes -= size
        self.oldest = ack
        self.expiries = 0
        self.acks_pending = True
        if self.state != OPEN and ack >= self._recovery_end:
            self.state = OPEN

    def on_sack_blocks(self, blocks: list[tuple[int, int]]) -> None:
        """Release the packets of each [start, end), which lie within oldest … next_seq.

        Acknowledgements repeat their blocks until the gaps are filled; only what grew is looked at.
        """
        known = self._sack_ends
        self._sack_ends = dict(blocks)
        for start, end in blocks:
            known_end = known.get(start, start)
            if known_end < end:
                self._on_sack(known_end, end)

    def _on_sack(self, start: int, end: int) -> None:
        for seq in range(start, end):
            packet = self.in_flight.pop(seq, None) or self.lost.pop(seq, None)
            if packet is None:
                continue
            self.sacked += 1
            self._acked += 1
            self.unacked_bytes -= packet.size
            self.acks_pending = True
            newest = self._newest
            if newest is None or packet.flight.sent_at >= newest.flight.sent_at:
                self._newest = packet
            if not packet.retransmitted:
                fresh = self._newest_fresh
                if fresh is None or packet.flight.sent_at >= fresh.flight.sent_at:
                    self._newest_fresh = packet
                if seq + 1 < self._highest_acked:
                    self._reordering_seen = True
            if seq + 1 > self._highest_acked:
                self._highest_acked = seq + 1

    def conclude(self, now: float) -> RateSample:
        """Take the samples of the acknowledgements since the last call and set the timers.

        The `lost` field is the caller's to fill from detect_losses().
        """
        acked = self._acked
        newest = self._newest
        fresh = self._newest_fresh
        self.delivered += acked
        if self.app_limited_until and self.delivered > self.app_limited_until:
            self.app_limited_until = 0
        rtt = None
        if fresh is not None:
            rtt = self._sample_rtt(now - fresh.flight.sent_at, now)
        sample = RateSample(acked, 0, 0, 0.0, 0, False, rtt)
        if (
            newest is not None
            and newest.retransmitted
            and now - newest.flight.sent_at < self._min_rtt.value
        ):
            # This answers the first transmission: the second tells nothing about path and rounds.
            newest = fresh
        if newest is not None:
            self._update_rack(newest, now)
            self._rate(sample, newest.flight, now)
        if acked:
            self._delivered_at = now
        if self.oldest == self.next_seq:
            self.rto_at = self.probe_at = self.reorder_at = None
            self._probes_in_a_row = 0
        elif acked:
            self.rto_at = now + self.rto
            self._probes_in_a_row = 0
            self.probe_at = None
            self._arm_probe(now)
        self.acks_pending = False
        self._newest = None
        self._newest_fresh = None
        self._acked = 0
        return sample

    def _sample_rtt(self, rtt: float, now: float) -> float:
        srtt = self.srtt
        if srtt is None:
            rtt = min(rtt, MAX_RTT)
            self.srtt = srtt = rtt
            self.rttvar = rtt / 2
        else:
            outlier = srtt + 5 * self.rttvar
            if rtt > RTT_OUTLIER and rtt > outlier:
                rtt = min(outlier, MAX_RTT)
            self.rttvar += (abs(srtt - rtt) - self.rttvar) / 4
            self.srtt = srtt = srtt + (rtt - srtt) / 8
        self._min_rtt.update(int(now / MIN_RTT_STEP), rtt)
        self.rto = min(max(srtt + 4 * self.rttvar, MIN_RTO), MAX_RTO)
        return rtt

    def _update_rack(self, newest: SentPacket, now: float) -> None:
        sent_at = newest.flight.sent_at
        self._rack_rtt = now - sent_at
        if (sent_at, newest.seq + 1) > (self._rack_sent_at, self._rack_end):
            self._rack_sent_at = sent_at
            self._rack_end = newest.seq + 1

    def _rate(self, sample: RateSample, flight: Flight, now: float) -> None:
        self._first_sent_at = flight.sent_at
        interval = max(flight.sent_at - flight.first_sent_at, now - flight.delivered_at)
        if interval <= 0 or interval < self._min_rtt.value:
            return
        sample.delivered = self.delivered - flight.delivered
        sample.interval = interval
        sample.prior_delivered = flight.delivered
        sample.app_limited = flight.app_limited

    # Losses

    def begin_path_change(self, path: Path) -> None:
        """New packets take `path` from now on, and may overtake those in flight by far."""
        self._new_path = path
        self._old_path_age = (self.srtt or 0.0) + 4 * self.rttvar

    def end_path_change(self) -> None:
        """Nothing of an older path is in flight any more."""
        self._new_path = None

    def _age(self, packet: SentPacket) -> float:
        """Seconds after which a packet counts as lost, when a later one has been acknowledged."""
        age = self._rack_rtt + self._reorder_window()
        if self._new_path is not None and packet.flight.path is not self._new_path:
            # The later one took another path: this one is measured by the round trips of its own.
            age = max(age, self._old_path_age)
        return age

    def _reorder_window(self) -> float:
        if not self._reordering_seen and (self.state != OPEN or self.sacked >= 3):
            return 0.0
        return min(self._min_rtt.value / 4, self.srtt or 0.0)

    def detect_losses(self, now: float) -> list[SentPacket]:
        """Move what RACK finds overdue to `lost`, return it, and arm `reorder_at` for the rest."""
        self.reorder_at = None
        rack_sent_at = self._rack_sent_at
        rack_end = self._rack_end
        overdue: list[SentPacket] = []
        age: float | None = None
        for packet in self.in_flight.values():
            sent_at = packet.flight.sent_at
            if sent_at > rack_sent_at:
                break
            if sent_at == rack_sent_at and packet.seq + 1 >= rack_end:
                continue
            if age is None or self._new_path is not None:
                age = self._age(packet)
            if sent_at + age <= now:
                overdue.append(packet)
            elif self.reorder_at is None or sent_at + age > self.reorder_at:
                self.reorder_at = sent_at + age
        for packet in overdue:
            self.lost[packet.seq] = self.in_flight.pop(packet.seq)
        self.lost_count += len(overdue)
        return overdue

    def enter_recovery(self) -> bool:
        """Packets (not just MTU probes) were lost; return whether this begins a new recovery."""
        if self.state != OPEN:
            return False
        self.state = RECOVERY
        self._recovery_end = self.next_seq
        self.probe_at = None
        return True

    def on_probe_timeout(self) -> bool:
        """The tail stayed unanswered; return whether a probe shall be sent."""
        self.probe_at = None
        return self.oldest != self.next_seq

    def on_rto(self, now: float) -> bool:
        """Count the expiry and move overdue packets to `lost`; False when the peer is gone."""
        if self.expiries >= MAX_EXPIRIES:
            return False
        self.expiries += 1
        self.rto_count += 1
        self.state = LOSS
        self._recovery_end = self.next_seq
        self.probe_at = self.reorder_at = None
        self.rto_at = now + 2 * self.rto
        overdue = [
            packet
            for packet in self.in_flight.values()
            if packet.seq == self.oldest or packet.flight.sent_at + self._age(packet) < now
        ]
        for packet in overdue:
            del self.in_flight[packet.seq]
        self.lost_count += len(overdue)
        # Oldest first: the peer can deliver nothing before it has that one.
        lost = {**self.lost, **{packet.seq: packet for packet in overdue}}
        self.lost = dict(sorted(lost.items()))
        return True

    def clear(self) -> None:
        """Forget all packets and timers."""
        self.in_flight.clear()
        self.lost.clear()
        self.oldest = self.next_seq
        self.unacked_bytes = 0
        self.rto_at = self.probe_at = self.reorder_at = None
        self.acks_pending = False
