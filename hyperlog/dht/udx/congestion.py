"""How much may be in flight (BBR version 1) and how fast it may leave (pacing).

BBR models the path by two numbers, the largest delivery rate of the last ten round trips and the
smallest round-trip time of the last ten seconds, and derives both outputs from them:

    pacing rate = pacing gain × bandwidth        cwnd = cwnd gain × bandwidth × round-trip time

    startup ──three rounds without 25 % growth──▶ drain ──queue empty──▶ probe bandwidth
    any ──smallest RTT is 10 s old──▶ probe RTT ──4 packets for 200 ms──▶ where it came from

Random loss does not lower the model, so a lossy path keeps its rate. Differences to libudx, all
because a Python event loop wakes up late and then works in bursts: `cwnd` gets an allowance for the
bursts on both sides, and time is not rounded to milliseconds.

Spec: docs/protocol/udx.md section 8; draft-cardwell-iccrg-bbr-congestion-control-00; libudx
src/udx_bbr.c for the gains.
"""

from __future__ import annotations

from typing import Final

from hyperlog.dht.udx.recovery import LOSS, OPEN, RECOVERY, RateSample
from hyperlog.dht.udx.windowed import WindowedMax

__all__ = ["BBR", "INITIAL_CWND", "Pacer"]

INITIAL_CWND: Final = 10  # packets
MIN_CWND: Final = 4  # packets
HIGH_GAIN: Final = 2.88539  # 2 / ln 2: doubles the rate each round
PACING_GAINS: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
FIRST_PHASE: Final = 4  # of PACING_GAINS, so that a stream does not begin with a probe
CWND_GAIN: Final = 2.0
PACING_MARGIN: Final = 0.99
BANDWIDTH_WINDOW: Final = len(PACING_GAINS) + 2  # round trips
FULL_BANDWIDTH_GROWTH: Final = 1.25
FULL_BANDWIDTH_ROUNDS: Final = 3
MIN_RTT_WINDOW: Final = 10.0  # s
PROBE_RTT_TIME: Final = 0.2  # s
EXTRA_ACKED_ROUNDS: Final = 5
MAX_EXTRA_ACKED_TIME: Final = 0.1  # s of the bandwidth
MIN_RTT_FLOOR: Final = 0.001  # s; libudx rounds up to its 1 ms clock as well

BURST_TIME: Final = 0.002  # s of the pacing rate that may leave at once
MIN_BURST: Final = 32  # packets that may leave at once, whatever the rate
LATE_WAKE_UP: Final = 0.025  # s of the pacing rate that a sender held back by pacing may catch up

STARTUP: Final = 0
DRAIN: Final = 1
PROBE_BANDWIDTH: Final = 2
PROBE_RTT: Final = 3


class BBR:
    """The model and its two outputs, `cwnd` in packets and `pacing_rate` in packets per second."""

    def __init__(self, now: float) -> None:
        self.cwnd = INITIAL_CWND
        self.state = STARTUP
        self.pacing_rate = HIGH_GAIN * INITIAL_CWND / MIN_RTT_FLOOR
        self.min_rtt: float | None = None
        self._min_rtt_at = now
        self._bandwidth = WindowedMax(BANDWIDTH_WINDOW)
        self._pacing_gain = HIGH_GAIN
        self._cwnd_gain = HIGH_GAIN
        self._rtt_seen = False

        self._rounds = 0
        self._round_start = False
        self._next_round_delivered = 0

        self._full_bandwidth = 0.0
        self._full_bandwidth_rounds = 0
        self._full = False

        self._phase = 0
        self._phase_at = now

        self._probe_rtt_done_at: float | None = None
        self._probe_rtt_round_done = False
        self._idle_restart = False

        self._prior_cwnd = 0
        self._prior_recovery_state = OPEN
        self._conserve_packets = False
        self._round_was_held_back = False

        self._ack_epoch_at = now
        self._ack_epoch_acked = 0
        self._extra_acked = [0, 0]
        self._extra_acked_index = 0
        self._extra_acked_rounds = 0

    @property
    def bandwidth(self) -> float:
        """Largest recent delivery rate in packets per second, 0 before the first sample."""
        return self._bandwidth.value

    @property
    def is_probing_rtt(self) -> bool:
        return self.state == PROBE_RTT

    def on_restart(self, now: float) -> None:
        """The first packet leaves after the application had nothing to send for a while."""
        self._idle_restart = True
        self._ack_epoch_at = now
        self._ack_epoch_acked = 0
        if self.state == PROBE_BANDWIDTH:
            self._set_pacing_rate(1.0, None)
        elif self.state == PROBE_RTT:
            self._finish_probe_rtt(now)

    def on_rto(self, in_flight: int) -> None:
        """Every packet may be lost: fall to one packet beyond what is still in flight."""
        self._save_cwnd()
        self._prior_recovery_state = LOSS
        self._full_bandwidth = 0.0
        self._round_start = True
        self.cwnd = in_flight + 1

    def on_acks(
        self,
        sample: RateSample,
        *,
        now: float,
        delivered: int,
        in_flight: int,
        recovery_state: int,
        srtt: float | None,
    ) -> None:
        """Update the model with one burst of acknowledgements, then both outputs.

        `delivered` counts packets since the start of the stream, `in_flight` after losses were
        found.
        """
        self._update_bandwidth(sample, delivered)
        self._update_extra_acked(sample, now)
        self._update_phase(sample, in_flight, now)
        self._check_full(sample)
        self._check_drain(in_flight, now)
        self._update_min_rtt(sample, delivered, in_flight, now)
        self._update_gains()
        self._set_pacing_rate(self._pacing_gain, srtt)
        self._set_cwnd(sample, delivered, in_flight, recovery_state)

    # Model

    def _update_bandwidth(self, sample: RateSample, delivered: int) -> None:
        self._round_start = False
        if sample.interval <= 0:
            return
        if sample.prior_delivered >= self._next_round_delivered:
            self._next_round_delivered = delivered
            self._rounds += 1
            self._round_start = True
            self._round_was_held_back = self._conserve_packets
            self._conserve_packets = False
        bandwidth = sample.delivered / sample.interval
        if not sample.app_limited or bandwidth >= self._bandwidth.value:
            self._bandwidth.update(self._rounds, bandwidth)

    def _update_extra_acked(self, sample: RateSample, now: float) -> None:
        """Track how many packets come acknowledged at once, beyond what the bandwidth explains."""
        if not sample.acked or sample.interval <= 0:
            return
        if self._round_start:
            self._extra_acked_rounds += 1
            if self._extra_acked_rounds >= EXTRA_ACKED_ROUNDS:
                self._extra_acked_rounds = 0
                self._extra_acked_index ^= 1
                self._extra_acked[self._extra_acked_index] = 0
        expected = int(self._bandwidth.value * (now - self._ack_epoch_at))
        if self._ack_epoch_acked <= expected:
            self._ack_epoch_acked = 0
            self._ack_epoch_at = now
            expected = 0
        self._ack_epoch_acked += sample.acked
        extra = min(self._ack_epoch_acked - expected, self.cwnd)
        if extra > self._extra_acked[self._extra_acked_index]:
            self._extra_acked[self._extra_acked_index] = extra

    def _update_phase(self, sample: RateSample, in_flight: int, now: float) -> None:
        if self.state != PROBE_BANDWIDTH or self.min_rtt is None:
            return
        elapsed = now - self._phase_at > self.min_rtt
        if self._pacing_gain > 1.0:
            done = elapsed and (sample.lost > 0 or in_flight > self._bdp(self._pacing_gain))
        elif self._pacing_gain < 1.0:
            done = elapsed or in_flight <= self._bdp(1.0)
        else:
            done = elapsed
        if done:
            self._phase = (self._phase + 1) % len(PACING_GAINS)
            self._phase_at = now

    def _check_full(self, sample: RateSample) -> None:
        if self._full or not self._round_start or sample.app_limited:
            return
        if self._bandwidth.value >= self._full_bandwidth * FULL_BANDWIDTH_GROWTH:
            self._full_bandwidth = self._bandwidth.value
            self._full_bandwidth_rounds = 0
            return
        if self._round_was_held_back:
            return  # the first round of a recovery could not grow, which says nothing of the path
        self._full_bandwidth_rounds += 1
        self._full = self._full_bandwidth_rounds >= FULL_BANDWIDTH_ROUNDS

    def _check_drain(self, in_flight: int, now: float) -> None:
        if self.state == STARTUP and self._full:
            self.state = DRAIN
        if self.state == DRAIN and in_flight <= self._bdp(1.0):
            self._enter_probe_bandwidth(now)

    def _enter_probe_bandwidth(self, now: float) -> None:
        self.state = PROBE_BANDWIDTH
        self._phase = FIRST_PHASE
        self._phase_at = now

    def _update_min_rtt(
        self, sample: RateSample, delivered: int, in_flight: int, now: float
    ) -> None:
        expired = now > self._min_rtt_at + MIN_RTT_WINDOW
        if sample.rtt is not None and (
            self.min_rtt is None or sample.rtt < self.min_rtt or expired
        ):
            self.min_rtt = max(sample.rtt, MIN_RTT_FLOOR)
            self._min_rtt_at = now
        if expired and not self._idle_restart and self.state != PROBE_RTT:
            self._save_cwnd()
            self.state = PROBE_RTT
            self._probe_rtt_done_at = None
        if self.state == PROBE_RTT:
            if self._probe_rtt_done_at is None:
                if in_flight <= MIN_CWND:
                    self._probe_rtt_done_at = now + PROBE_RTT_TIME
                    self._probe_rtt_round_done = False
                    self._next_round_delivered = delivered
            else:
                if self._round_start:
                    self._probe_rtt_round_done = True
                if self._probe_rtt_round_done:
                    self._finish_probe_rtt(now)
        if sample.delivered > 0:
            self._idle_restart = False

    def _finish_probe_rtt(self, now: float) -> None:
        if self._probe_rtt_done_at is None or now <= self._probe_rtt_done_at:
            return
        self._min_rtt_at = now
        self.cwnd = max(self.cwnd, self._prior_cwnd)
        if self._full:
            self._enter_probe_bandwidth(now)
        else:
            self.state = STARTUP

    # Outputs

    def _update_gains(self) -> None:
        if self.state == STARTUP:
            self._pacing_gain = self._cwnd_gain = HIGH_GAIN
        elif self.state == DRAIN:
            self._pacing_gain = 1 / HIGH_GAIN
            self._cwnd_gain = HIGH_GAIN
        elif self.state == PROBE_BANDWIDTH:
            self._pacing_gain = PACING_GAINS[self._phase]
            self._cwnd_gain = CWND_GAIN
        else:
            self._pacing_gain = self._cwnd_gain = 1.0

    def _bdp(self, gain: float) -> int:
        """Packets that fill the path, times a gain."""
        if self.min_rtt is None:
            return INITIAL_CWND
        return int(self._bandwidth.value * self.min_rtt * gain)

    def _set_pacing_rate(self, gain: float, srtt: float | None) -> None:
        if not self._rtt_seen and srtt is not None:
            self._rtt_seen = True
            self.pacing_rate = PACING_MARGIN * HIGH_GAIN * self.cwnd / max(srtt, MIN_RTT_FLOOR)
        rate = PACING_MARGIN * gain * self._bandwidth.value
        if rate > 0 and (self._full or rate > self.pacing_rate):
            self.pacing_rate = rate

    def _save_cwnd(self) -> None:
        if self._prior_recovery_state == OPEN and self.state != PROBE_RTT:
            self._prior_cwnd = self.cwnd
        else:
            self._prior_cwnd = max(self._prior_cwnd, self.cwnd)

    def _set_cwnd(
        self, sample: RateSample, delivered: int, in_flight: int, recovery_state: int
    ) -> None:
        acked = sample.acked
        if acked:
            cwnd = self.cwnd
            if sample.lost:
                cwnd = max(cwnd - sample.lost, 1)
            prior_state = self._prior_recovery_state
            if recovery_state == RECOVERY and prior_state != RECOVERY:
                self._save_cwnd()
                self._conserve_packets = True
                self._next_round_delivered = delivered
                cwnd = in_flight + acked
            elif prior_state != OPEN and recovery_state == OPEN:
                cwnd = max(cwnd, self._prior_cwnd)
                self._conserve_packets = False
            self._prior_recovery_state = recovery_state
            if self._conserve_packets:
                cwnd = max(cwnd, in_flight + acked)
            else:
                target = self._bdp(self._cwnd_gain) + self._burst_allowance()
                if self._full:
                    cwnd = min(cwnd + acked, target)
                elif cwnd < target or delivered < INITIAL_CWND:
                    cwnd += acked
                cwnd = max(cwnd, MIN_CWND)
            self.cwnd = cwnd
        if self.state == PROBE_RTT:
            self.cwnd = min(self.cwnd, MIN_CWND)

    def _burst_allowance(self) -> int:
        """Packets beyond the model that keep the path busy while either side works in bursts.

        One burst each is being sent, received and acknowledged (as Linux does for its offload).
        """
        allowance = 3 * max(2, int(self.pacing_rate * BURST_TIME))
        if self._full:
            extra = min(max(self._extra_acked), int(self._bandwidth.value * MAX_EXTRA_ACKED_TIME))
            allowance += extra
        return allowance


class Pacer:
    """A token bucket of bytes, filled at the pacing rate.

    Its depth is a burst when the sender was idle; a sender that was waiting for the bucket and
    woke up late gets all the time it waited, up to LATE_WAKE_UP, or the loop's delay would become
    the rate.
    """

    __slots__ = ("_blocked", "_filled_at", "credit")

    def __init__(self, now: float, packet_size: int) -> None:
        self.credit = float(MIN_BURST * packet_size)
        self._filled_at = now
        self._blocked = False

    def refill(self, now: float, rate: float, packet_size: int) -> None:
        """Add the bytes of the time gone by at `rate` bytes per second."""
        depth = max(MIN_BURST * packet_size, rate * (LATE_WAKE_UP if self._blocked else BURST_TIME))
        credit = self.credit + (now - self._filled_at) * rate
        self.credit = credit if credit < depth else depth
        self._filled_at = now
        self._blocked = False

    def blocked_until(self, rate: float, packet_size: int) -> float:
        """Note that credit was missing; return when there is enough for a worthwhile burst."""
        self._blocked = True
        wanted = max(packet_size, rate * BURST_TIME / 2)
        return self._filled_at + (wanted - self.credit) / rate
