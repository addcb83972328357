import pytest

from hyperlog.dht.udx.congestion import (
    BBR,
    BURST_TIME,
    INITIAL_CWND,
    LATE_WAKE_UP,
    MIN_BURST,
    MIN_CWND,
    Pacer,
)
from hyperlog.dht.udx.recovery import OPEN, RECOVERY, RateSample


class Bottleneck:
    """A path of `rate` packets per second and `rtt` seconds that the model sees through samples."""

    def __init__(self, rate: float, rtt: float) -> None:
        self.rate = rate
        self.rtt = rtt
        self.now = 50.0
        self.delivered = 0
        self.bbr = BBR(self.now)

    def round(self, lost: int = 0, state: int = OPEN) -> None:
        """One round trip of what window and pacing allow, in ten bursts of acknowledgements."""
        flown = min(self.bbr.cwnd, max(MIN_CWND, int(self.bbr.pacing_rate * self.rtt)))
        queueing = max(self.rtt, flown / self.rate)
        prior = self.delivered
        per_burst = max(1, flown // 10)
        for number in range(10):
            self.now += queueing / 10
            self.delivered += per_burst
            sample = RateSample(
                acked=per_burst,
                lost=lost if number == 0 else 0,
                delivered=per_burst * 10,
                interval=queueing,
                prior_delivered=prior if number == 0 else self.delivered - per_burst * 10,
                app_limited=False,
                rtt=queueing,
            )
            self.bbr.on_acks(
                sample,
                now=self.now,
                delivered=self.delivered,
                in_flight=flown - per_burst if number < 9 else flown // 2,
                recovery_state=state,
                srtt=queueing,
            )


def test_startup_finds_the_rate_of_the_path_and_ends():
    path = Bottleneck(rate=10_000, rtt=0.05)
    assert path.bbr.cwnd == INITIAL_CWND
    for _ in range(40):
        path.round()
    assert path.bbr.bandwidth == pytest.approx(10_000, rel=0.05)
    assert path.bbr.cwnd >= 10_000 * 0.05
    assert path.bbr.cwnd <= 10_000 * 0.05 * 4
    assert 0.7 * 10_000 <= path.bbr.pacing_rate <= 1.3 * 10_000


def test_loss_of_a_tenth_does_not_lower_the_rate():
    path = Bottleneck(rate=10_000, rtt=0.05)
    for _ in range(40):
        path.round()
    for _ in range(20):
        path.round(lost=path.bbr.cwnd // 10, state=RECOVERY)
        path.round()
    assert path.bbr.bandwidth == pytest.approx(10_000, rel=0.1)
    assert path.bbr.cwnd >= 10_000 * 0.05


def test_an_rto_falls_to_one_packet_and_recovers():
    path = Bottleneck(rate=10_000, rtt=0.05)
    for _ in range(40):
        path.round()
    before = path.bbr.cwnd
    path.bbr.on_rto(0)
    assert path.bbr.cwnd == 1
    path.round()
    path.round()
    assert path.bbr.cwnd >= before * 0.7


def test_the_smallest_rtt_is_measured_anew_after_ten_seconds():
    path = Bottleneck(rate=1_000, rtt=0.05)
    seen = []
    while path.now < 63:
        path.round()
        seen.append((path.now - 50, path.bbr.is_probing_rtt, path.bbr.cwnd))
    probing = [(at, cwnd) for at, probes, cwnd in seen if probes]
    assert probing
    assert 10 <= probing[0][0] <= 11
    assert all(cwnd <= MIN_CWND for _, cwnd in probing)
    assert probing[-1][0] - probing[0][0] < 0.6
    assert seen[-1][2] > 50


def test_cwnd_never_falls_below_four():
    path = Bottleneck(rate=20, rtt=0.05)
    for _ in range(60):
        path.round()
    assert path.bbr.cwnd >= MIN_CWND


def test_an_app_limited_sample_cannot_lower_the_bandwidth():
    path = Bottleneck(rate=10_000, rtt=0.05)
    for _ in range(10):
        path.round()
    before = path.bbr.bandwidth
    for _ in range(30):
        path.now += 0.05
        path.delivered += 1
        sample = RateSample(1, 0, 1, 0.05, path.delivered - 1, True, 0.05)
        path.bbr.on_acks(
            sample,
            now=path.now,
            delivered=path.delivered,
            in_flight=0,
            recovery_state=OPEN,
            srtt=0.05,
        )
    assert path.bbr.bandwidth == before


def test_the_pacer_lets_a_burst_go_and_then_the_rate():
    pacer = Pacer(0.0, 1000)
    assert pacer.credit == MIN_BURST * 1000
    pacer.credit = 0.0
    pacer.refill(0.001, 1_000_000.0, 1000)
    assert pacer.credit == pytest.approx(1000)


def test_an_idle_sender_saves_up_no_more_than_a_burst():
    pacer = Pacer(0.0, 1000)
    pacer.refill(100.0, 100e6, 1000)
    assert pacer.credit == pytest.approx(100e6 * BURST_TIME)
    pacer.refill(200.0, 1e3, 1000)
    assert pacer.credit == MIN_BURST * 1000


def test_a_sender_that_waited_for_the_pacer_gets_the_time_it_overslept():
    pacer = Pacer(0.0, 1000)
    pacer.credit = -500.0
    at = pacer.blocked_until(100e6, 1000)
    assert 0 < at < BURST_TIME
    pacer.refill(0.010, 100e6, 1000)
    assert pacer.credit == pytest.approx(100e6 * 0.010 - 500)
    pacer.credit = 0.0
    pacer.blocked_until(100e6, 1000)
    pacer.refill(5.0, 100e6, 1000)
    assert pacer.credit == pytest.approx(100e6 * LATE_WAKE_UP)
