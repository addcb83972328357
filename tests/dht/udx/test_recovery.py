import pytest

from hyperlog.dht.udx.recovery import (
    LOSS,
    MAX_EXPIRIES,
    MAX_PROBES,
    OPEN,
    RECOVERY,
    Path,
    Recovery,
    SentPacket,
)

PATH = Path(1, ("127.0.0.1", 4000))


def send(recovery: Recovery, count: int, now: float) -> None:
    flight = recovery.begin_flight(PATH, now)
    first = recovery.next_seq
    for seq in range(first, first + count):
        recovery.in_flight[seq] = SentPacket(seq, b"", 100, flight)
    recovery.on_sent_new(count, 100 * count, now)


def resend(recovery: Recovery, now: float) -> list[int]:
    flight = recovery.begin_flight(PATH, now)
    seqs = []
    while recovery.lost:
        packet = recovery.take_lost()
        recovery.on_resent(packet, flight)
        seqs.append(packet.seq)
    return seqs


def with_rtt(rtt: float = 0.1) -> Recovery:
    """One packet, acknowledged after `rtt`, at time 10."""
    recovery = Recovery(0)
    send(recovery, 1, 10 - rtt)
    recovery.on_ack(1)
    recovery.conclude(10.0)
    return recovery


def lost_seqs(recovery: Recovery, now: float) -> list[int]:
    recovery.conclude(now)
    lost = [packet.seq for packet in recovery.detect_losses(now)]
    if lost:
        recovery.enter_recovery()
    return lost


def test_rto_is_one_second_before_and_at_least_after_the_first_sample():
    recovery = Recovery(0)
    assert recovery.rto == 1.0
    assert with_rtt(0.1).rto == 1.0
    assert with_rtt(1.0).rto == pytest.approx(3.0)  # srtt + 4 * srtt / 2
    assert with_rtt(29.0).rto == 30.0


def test_srtt_follows_rfc_6298():
    recovery = with_rtt(0.1)
    assert recovery.srtt == pytest.approx(0.1)
    assert recovery.rttvar == pytest.approx(0.05)
    send(recovery, 1, 10.0)
    recovery.on_ack(2)
    recovery.conclude(10.2)
    assert recovery.srtt == pytest.approx(0.1 * 7 / 8 + 0.2 / 8)
    assert recovery.rttvar == pytest.approx(0.05 * 3 / 4 + 0.1 / 4)
    assert recovery.min_rtt == pytest.approx(0.1)


def test_a_sample_that_spans_a_suspended_machine_is_clamped():
    recovery = with_rtt(0.1)
    send(recovery, 1, 10.0)
    recovery.on_ack(2)
    recovery.conclude(3610.0)
    assert recovery.rto == 1.0


def test_a_retransmitted_packet_gives_no_rtt_sample():
    recovery = with_rtt(0.1)
    send(recovery, 1, 10.0)
    recovery.on_rto(11.0)
    assert resend(recovery, 11.0) == [1]
    recovery.on_ack(2)
    assert recovery.conclude(11.5).rtt is None
    assert recovery.srtt == pytest.approx(0.1)


def test_nothing_in_flight_means_no_timer():
    recovery = with_rtt()
    send(recovery, 5, 10.0)
    assert recovery.rto_at == 11.0
    recovery.on_ack(6)
    recovery.conclude(10.1)
    assert (recovery.rto_at, recovery.probe_at, recovery.reorder_at) == (None, None, None)


def test_the_rto_repeats_after_two_rtos_and_gives_up_at_the_seventh():
    recovery = Recovery(0)
    send(recovery, 1, 0.0)
    at = []
    while recovery.rto_at is not None:
        now = recovery.rto_at
        if not recovery.on_rto(now):
            break
        at.append(now)
        resend(recovery, now)
    assert at == [1, 3, 5, 7, 9, 11]
    assert now == 13
    assert len(at) == MAX_EXPIRIES


def test_cumulative_progress_starts_the_count_of_expiries_anew():
    recovery = Recovery(0)
    send(recovery, 2, 0.0)
    for now in (1, 3, 5, 7, 9, 11):
        assert recovery.on_rto(float(now))
        resend(recovery, float(now))
    recovery.on_ack(1)
    recovery.conclude(11.5)
    assert recovery.expiries == 0
    assert recovery.on_rto(20.0)


def test_a_gap_is_lost_when_three_later_packets_are_sacked():
    recovery = with_rtt(0.1)
    send(recovery, 5, 10.0)  # 1 … 5
    recovery.on_sack_blocks([(3, 6)])
    assert lost_seqs(recovery, 10.1) == [1, 2]
    assert recovery.state == RECOVERY
    assert recovery.sacked == 3
    assert recovery.unacked_bytes == 200
    assert resend(recovery, 10.1) == [1, 2]
    recovery.on_ack(6)
    recovery.conclude(10.2)
    assert recovery.state == OPEN
    assert recovery.sacked == recovery.unacked_bytes == 0


def test_a_small_gap_waits_for_the_reorder_window():
    recovery = with_rtt(0.1)
    send(recovery, 3, 10.0)
    recovery.on_sack_blocks([(2, 3)])
    assert lost_seqs(recovery, 10.1) == []
    assert recovery.reorder_at == pytest.approx(10.125)
    assert [p.seq for p in recovery.detect_losses(recovery.reorder_at)] == [1]
    assert 3 in recovery.in_flight


def test_a_lost_retransmission_is_found_by_time():
    recovery = with_rtt(0.1)
    send(recovery, 4, 10.0)
    recovery.on_sack_blocks([(2, 5)])
    assert lost_seqs(recovery, 10.1) == [1]
    resend(recovery, 10.1)
    send(recovery, 3, 10.15)  # 5, 6, 7
    recovery.on_sack_blocks([(2, 8)])
    assert lost_seqs(recovery, 10.25) == [1]


def test_repeated_sack_blocks_count_once():
    recovery = with_rtt(0.1)
    send(recovery, 10, 10.0)
    for blocks in ([(3, 5)], [(3, 5), (7, 9)], [(3, 9)], [(3, 9)]):
        recovery.on_sack_blocks(blocks)
    assert recovery.conclude(10.1).acked == 6
    assert recovery.sacked == 6
    recovery.on_ack(11)
    assert recovery.conclude(10.2).acked == 4
    assert recovery.sacked == 0


def test_the_tail_is_probed_with_doubling_distance():
    recovery = with_rtt(0.1)
    send(recovery, 2, 10.0)
    at = []
    while recovery.probe_at is not None:
        now = recovery.probe_at
        at.append(now - 10.0)
        assert recovery.on_probe_timeout()
        packet = recovery.take_newest()
        assert packet is not None
        assert packet.seq == 2
        recovery.on_resent(packet, recovery.begin_flight(PATH, now))
        recovery.on_probe_sent(now)
    assert at == pytest.approx([0.2, 0.6])  # the next one would come after the RTO
    assert recovery.rto_at == pytest.approx(11.2)
    assert len(at) < MAX_PROBES


def test_a_probe_of_one_packet_waits_for_a_late_acknowledgement():
    recovery = with_rtt(0.1)
    send(recovery, 1, 10.0)
    assert recovery.probe_at == pytest.approx(10.202)


def test_before_the_first_rtt_sample_probes_come_between_the_rtos_and_move_none():
    recovery = Recovery(0)
    send(recovery, 1, 0.0)
    at = []
    while recovery.probe_at is not None:
        now = recovery.probe_at
        at.append(now)
        assert recovery.on_probe_timeout()
        packet = recovery.take_newest()
        recovery.on_resent(packet, recovery.begin_flight(PATH, now))
        recovery.on_probe_sent(now)
    assert at == pytest.approx([0.252, 0.756])
    assert recovery.rto_at == 1.0


def test_an_rto_loses_the_oldest_packet_and_what_is_overdue():
    recovery = with_rtt(0.1)
    send(recovery, 2, 10.0)
    send(recovery, 2, 10.95)
    assert recovery.on_rto(11.0)
    assert list(recovery.lost) == [1, 2]
    assert list(recovery.in_flight) == [3, 4]
    assert recovery.state == LOSS


def test_reordering_widens_the_patience():
    recovery = with_rtt(0.1)
    send(recovery, 4, 10.0)
    recovery.on_sack_blocks([(2, 5)])
    recovery.conclude(10.1)
    recovery.on_ack(5)  # number 1 was only late
    recovery.conclude(10.1)
    send(recovery, 5, 10.2)
    recovery.on_sack_blocks([(6, 10)])
    assert lost_seqs(recovery, 10.3) == []
    assert recovery.reorder_at is not None


def test_the_delivery_rate_is_packets_over_the_longer_of_send_and_ack_time():
    recovery = with_rtt(0.1)
    send(recovery, 10, 10.0)
    recovery.on_ack(11)
    sample = recovery.conclude(10.1)
    assert sample.delivered == 10
    assert sample.interval == pytest.approx(0.1)
    assert not sample.app_limited
    send(recovery, 10, 10.1)
    send(recovery, 10, 10.3)
    recovery.on_ack(31)
    sample = recovery.conclude(10.4)
    assert (sample.acked, sample.delivered) == (20, 20)
    assert sample.interval == pytest.approx(0.3)


def test_the_late_answer_to_a_first_transmission_gives_no_rate_and_no_round():
    recovery = with_rtt(0.1)
    send(recovery, 4, 10.0)
    recovery.on_sack_blocks([(2, 5)])
    assert lost_seqs(recovery, 10.1) == [1]
    resend(recovery, 10.1)
    recovery.on_ack(5)  # 1 ms later: number 1 was only late
    sample = recovery.conclude(10.101)
    assert sample.acked == 1
    assert (sample.delivered, sample.interval, sample.rtt) == (0, 0.0, None)
