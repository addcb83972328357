import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.errors import LocalProtocolError, StreamReset, StreamTimeout
from hyperlog.dht.udx import EndReceived, MessageReceived, StreamClosed, UDXStreamCore
from hyperlog.dht.udx.packet import (
    DATA,
    DESTROY,
    END,
    HEARTBEAT,
    MESSAGE,
    SACK,
    STATE,
    Packet,
    decode_untrusted,
    encode,
)
from hyperlog.dht.udx.sender import MAX_PEER_WINDOW

PEER = ("127.0.0.1", 4000)
OTHER = ("127.0.0.2", 5000)
WINDOW = 4 * 1024 * 1024


def connected(**options) -> UDXStreamCore:
    core = UDXStreamCore(1, **options)
    core.connect(2, PEER, 0.0)
    core.datagrams_to_send(0.0)
    return core


def feed(core: UDXStreamCore, now: float, flags: int, seq: int = 0, ack: int = 0, **fields) -> None:
    fields.setdefault("rwnd", WINDOW)
    core.receive_datagram(
        encode(Packet(flags, core.local_id, seq=seq, ack=ack, **fields)), PEER, now
    )


def sent(core: UDXStreamCore, now: float) -> list[Packet]:
    return [decode_untrusted(d) for *_, group in core.datagrams_to_send(now) for d in group]


def events(core: UDXStreamCore) -> list:
    found = []
    while (event := core.next_event()) is not None:
        found.append(event)
    return found


# Sending


def test_the_first_flight_is_ten_packets_of_1152_bytes():
    core = connected()
    core.write(bytes(100_000), 0.0)
    [(_, address, datagrams)] = core.datagrams_to_send(0.0)
    assert address == PEER
    assert [len(d) for d in datagrams] == [1172] * 10
    assert core.unsent_bytes == 100_000 - 11_520
    assert core.inflight_bytes == 11_520
    assert core.write_buffer_bytes == 100_000
    assert core.datagrams_to_send(0.0) == []


def test_ipv6_packets_leave_room_for_the_larger_header():
    core = UDXStreamCore(1)
    core.connect(2, ("::1", 4000), 0.0)
    core.write(bytes(5000), 0.0)
    [(*_, datagrams)] = core.datagrams_to_send(0.0)
    assert len(datagrams[0]) == 1132 + 20


def test_one_call_gives_at_most_64_packets_and_the_timer_says_now():
    core = connected(mtu_probing=False)
    core.write(bytes(2_000_000), 0.0)
    now, acked, biggest = 0.0, 0, 0
    while biggest < 64:
        now += 0.001
        packets = sent(core, now)
        biggest = max(biggest, len(packets))
        assert len(packets) <= 64
        if len(packets) == 64:
            timer = core.get_timer()
            assert timer is not None
            assert timer <= now
        acked += len(packets)
        feed(core, now + 0.0005, STATE, ack=acked)
        assert now < 1


def test_new_data_carries_the_acknowledgement_along():
    core = connected()
    feed(core, 0.1, DATA, payload=b"question")
    core.write(b"answer", 0.1)
    [packet] = sent(core, 0.1)
    assert (packet.flags, packet.ack) == (DATA, 1)


def test_gaps_are_reported_even_when_there_is_new_data():
    core = connected()
    feed(core, 0.1, DATA, seq=1, payload=b"late")
    core.write(b"answer", 0.1)
    sack, data = sent(core, 0.1)
    assert (sack.flags, sack.sacks, data.flags) == (SACK, [(1, 2)], DATA)


def test_a_burst_is_acknowledged_once():
    core = connected()
    for seq in range(50):
        feed(core, 0.1, DATA, seq=seq, payload=b"x")
    [packet] = sent(core, 0.1)
    assert (packet.flags, packet.ack) == (STATE, 50)


def test_retransmissions_repeat_the_payload_and_refresh_the_header():
    core = connected(receive_window=100_000)
    core.write(b"precious", 0.0)
    core.write_end(0.0)
    [first] = sent(core, 0.0)
    feed(core, 0.5, DATA, payload=bytes(5000))
    core.datagrams_to_send(0.5)
    [again] = sent(core, 1.0)
    assert (again.flags, again.seq, again.payload) == (DATA | END, first.seq, b"precious")
    assert (again.ack, again.rwnd) == (1, 95_000)


def test_the_peers_window_bounds_what_is_in_flight():
    core = connected(mtu_probing=False)
    core.write(bytes(100_000), 0.0)
    sent(core, 0.0)
    feed(core, 0.1, STATE, ack=10, rwnd=3 * 1152 + 10)
    assert len(sent(core, 0.1)) == 3
    feed(core, 0.2, STATE, ack=13, rwnd=1)
    assert len(sent(core, 0.2)) == 1


def test_a_zero_window_is_probed_at_once_after_one_rto_and_then_every_two():
    core = connected()
    core.write(b"a", 0.0)
    sent(core, 0.0)
    feed(core, 0.0, STATE, ack=1, rwnd=0)
    sent(core, 0.0)
    core.write(b"b", 1.0)
    at = []
    now = 1.0
    while now < 60.0:
        at += [now for p in sent(core, now) if p.flags == HEARTBEAT]
        timer = core.get_timer()
        assert timer is not None
        now = timer
    assert at[:4] == [1.0, 2.0, 4.0, 6.0]
    assert len(at) > 25
    feed(core, 61.0, STATE, ack=1, rwnd=1000)
    assert [p.payload for p in sent(core, 61.0)] == [b"b"]


def test_what_is_in_flight_is_bounded_whatever_the_peer_offers_to_take():
    core = connected(mtu_probing=False)
    now = 0.0
    most = 0
    answers = deque()  # a path without limits: everything is acknowledged after half a second
    while now < 8.0:
        while answers and answers[0][0] <= now:
            feed(core, now, STATE, ack=answers.popleft()[1], rwnd=2**32 - 1)
        if core.unsent_bytes < MAX_PEER_WINDOW:
            core.write(bytes(2 * MAX_PEER_WINDOW), now)
        if core.datagrams_to_send(now):
            answers.append((now + 0.5, core.next_seq))
        most = max(most, core.inflight_bytes)
        now = max(now, min([at for at, _ in list(answers)[:1]] + [core.get_timer()]))
    assert MAX_PEER_WINDOW / 2 < most <= MAX_PEER_WINDOW


@pytest.mark.parametrize("answers", [True, False])
def test_a_peer_with_a_closed_window_lives_as_long_as_it_answers(answers):
    core = connected()
    core.write(b"a", 0.0)
    sent(core, 0.0)
    feed(core, 0.0, STATE, ack=1, rwnd=0)
    core.write(b"b", 0.0)
    now = 0.0
    while now < 3600.0 and not core.closed:
        for packet in sent(core, now):
            if answers and packet.flags == HEARTBEAT:
                feed(core, now, STATE, ack=1, rwnd=0)
        timer = core.get_timer()
        if timer is not None:
            now = max(now, timer)
    assert core.closed != answers
    if core.closed:
        assert now == pytest.approx(2 * 60, abs=5)
        event = core.next_event()
        assert isinstance(event, StreamClosed)
        assert isinstance(event.error, StreamTimeout)
        assert core.closing_reply is not None


def test_an_overtaken_packet_does_not_bring_back_an_old_window():
    core = connected()
    core.write(b"abc", 0.0)
    sent(core, 0.0)
    feed(core, 0.1, DATA, seq=1, ack=1, rwnd=5000, payload=b"two")
    feed(core, 0.1, DATA, seq=0, ack=0, rwnd=9, payload=b"one")
    assert core.statistics().peer_rwnd == 5000


def test_messages_go_unordered_and_the_oldest_makes_room():
    core = UDXStreamCore(1)
    for n in range(300):
        core.send_message(b"%d" % n, 0.0)
    assert core.datagrams_to_send(0.0) == []
    core.connect(2, PEER, 0.0)
    packets = sent(core, 0.0)
    assert [p.payload for p in packets] == [b"%d" % n for n in range(44, 300)]
    assert {(p.flags, p.seq) for p in packets} == {(MESSAGE, 0)}
    assert core.statistics().dropped_messages == 44
    assert core.get_timer() is None


def test_a_message_too_long_for_one_packet_is_refused():
    with pytest.raises(LocalProtocolError):
        connected().send_message(bytes(1133), 0.0)


def test_heartbeats_go_out_only_when_idle():
    core = connected()
    core.set_keep_alive(5.0, 0.0)
    assert core.get_timer() == 5.0
    core.write(b"x", 3.0)
    sent(core, 3.0)
    feed(core, 3.1, STATE, ack=1)
    sent(core, 3.1)
    assert core.get_timer() == 8.0
    assert [p.flags for p in sent(core, 8.0)] == [HEARTBEAT]
    core.set_keep_alive(None, 8.0)
    assert core.get_timer() is None


# Receiving


def test_data_before_connect_is_kept_and_acknowledged_at_connect():
    core = UDXStreamCore(1)
    feed(core, 0.0, DATA, payload=b"early")
    assert core.datagrams_to_send(0.0) == []
    assert core.get_timer() is None
    assert b"".join(core.read()) == b"early"
    core.connect(2, PEER, 1.0)
    timer = core.get_timer()
    assert timer is not None
    assert timer <= 1.0
    assert [(p.flags, p.ack) for p in sent(core, 1.0)] == [(STATE, 1)]
    assert core.get_timer() is None


def test_a_destroy_before_connect_closes():
    core = UDXStreamCore(1)
    feed(core, 0.0, DESTROY)
    [event] = events(core)
    assert isinstance(event.error, StreamReset)
    assert core.get_timer() is None
    with pytest.raises(LocalProtocolError):
        core.connect(2, PEER, 0.0)


def test_reading_reopens_a_window_that_was_nearly_shut():
    core = connected(receive_window=100_000)
    for seq in range(90):
        feed(core, 0.1, DATA, seq=seq, payload=bytes(1000))
    assert [p.rwnd for p in sent(core, 0.1)] == [10_000]
    core.read(30_000)
    assert core.datagrams_to_send(0.2) == []
    core.read(15_000)
    assert [(p.flags, p.rwnd) for p in sent(core, 0.2)] == [(STATE, 55_000)]
    core.read()
    assert core.datagrams_to_send(0.2) == []


def test_a_window_made_far_larger_is_told_at_once():
    core = connected(receive_window=10_000)
    feed(core, 1.0, DATA, 0, payload=bytes(1000))
    assert sent(core, 1.0)[0].rwnd == 9000
    core.set_receive_window(12_000)
    assert sent(core, 1.0) == []
    core.set_receive_window(100_000)
    assert [(p.flags, p.rwnd) for p in sent(core, 1.0)] == [(STATE, 99_000)]
    core.set_receive_window(5_000)  # the peer hears of it with the next acknowledgement
    assert sent(core, 1.0) == []
    feed(core, 2.0, DATA, 1, payload=bytes(1000))
    assert sent(core, 2.0)[0].rwnd == 3000


def test_held_bytes_count_data_and_messages_until_they_are_read_or_discarded():
    core = connected()
    feed(core, 1.0, DATA, 0, payload=bytes(1000))
    feed(core, 1.0, DATA, 2, payload=bytes(300))
    feed(core, 1.0, MESSAGE, payload=bytes(50))
    assert core.held_bytes == 1350
    core.read(400)
    assert core.held_bytes == 950
    events(core)
    assert core.held_bytes == 900
    core.discard()
    assert core.held_bytes == 0


def test_data_beyond_the_window_is_dropped_counted_and_never_acknowledged():
    core = connected(receive_window=100_000)
    for seq in range(400):
        feed(core, 0.1, DATA, seq=seq, payload=bytes(1000))
    statistics = core.statistics()
    assert statistics.overflows > 100
    [packet] = sent(core, 0.1)
    assert packet.ack * 1000 == core.readable_bytes
    assert packet.rwnd == 0


def test_a_packet_from_another_address_is_taken_but_changes_nothing():
    core = connected()
    core.receive_datagram(encode(Packet(DATA, 1, WINDOW, 0, 0, payload=b"x")), OTHER, 0.1)
    assert core.readable_bytes == 1
    [(_, address, _)] = core.datagrams_to_send(0.1)
    assert address == PEER
    assert core.remote_address == PEER


def test_empty_data_and_empty_messages_are_no_news():
    core = connected()
    feed(core, 0.1, DATA)
    feed(core, 0.1, MESSAGE, seq=1)
    assert core.read() == []
    assert events(core) == []
    assert [p.ack for p in sent(core, 0.1)] == [1]


def test_received_messages_are_bounded():
    core = connected()
    for _ in range(1000):
        feed(core, 0.1, MESSAGE, payload=bytes(1200))
    assert events(core) == [MessageReceived(bytes(1200))] * 256
    assert core.statistics().dropped_messages == 744
    feed(core, 0.1, MESSAGE, payload=b"again")
    assert events(core) == [MessageReceived(b"again")]


def test_an_acknowledgement_of_unsent_packets_is_not_taken():
    core = connected()
    core.write(b"abc", 0.0)
    sent(core, 0.0)
    feed(core, 0.1, DATA, ack=2, payload=b"x")
    assert core.inflight_bytes == 3
    assert core.readable_bytes == 1
    assert core.datagrams_to_send(0.1) == []
    assert core.statistics().malformed == 1


def test_sack_blocks_outside_of_what_is_in_flight_are_skipped():
    core = connected()
    core.write(bytes(1152 * 5), 0.0)
    sent(core, 0.0)
    blocks = [(5, 6), (0, 6), (3, 3), (4, 2), (2**31, 2**31 + 9), (2**32 - 1, 1)]
    feed(core, 0.1, SACK, sacks=blocks)
    assert core.inflight_bytes == 5 * 1152
    assert core.statistics().invalid_sacks == len(blocks)
    feed(core, 0.1, SACK, sacks=[(1, 2), (4, 5)])
    assert core.inflight_bytes == 3 * 1152


def test_huge_offsets_and_cut_packets_are_dropped():
    core = connected()
    good = encode(Packet(DATA, 1, WINDOW, 0, 0, payload=b"x"))
    for data in (b"", good[:19], good[:3] + b"\xff" + good[4:], b"\xff\x02" + good[2:], bytes(40)):
        core.receive_datagram(data, PEER, 0.1)
        core.receive_datagram(memoryview(data), PEER, 0.1)
    assert core.statistics().malformed == 10
    assert core.readable_bytes == 0
    assert core.get_timer() is None


def test_a_packet_far_ahead_is_not_stored():
    core = connected()
    for seq in range(2**31 - 1, 2**31 - 1000, -1):
        feed(core, 0.1, DATA, seq=seq, payload=bytes(1000))
    assert core.statistics().overflows == 999
    assert core.statistics().rwnd == WINDOW


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=30))
def test_any_bytes_leave_the_stream_working(packets):
    core = connected()
    core.write(bytes(5000), 0.0)
    sent(core, 0.0)
    now = 0.1
    for flags, rest in packets:
        data = b"\xff\x01" + bytes([flags]) + rest[:1] + b"\x01\0\0\0" + rest[1:]
        core.receive_datagram(data, PEER, now)
        for datagram in (d for *_, group in core.datagrams_to_send(now) for d in group):
            decode_untrusted(datagram)
        core.read()
        core.get_timer()
        core.statistics()
        now += 0.01
    assert core.inflight_bytes >= 0


# Ending


def test_half_close_leaves_the_other_direction_open(make_link):
    link = make_link()
    link.a.to_write = [b"question"]
    link.a.end_after_writes = True
    link.run(lambda: link.b.saw_end)
    assert link.b.received == b"question"
    assert not link.a.core.closed
    link.b.to_write = [bytes(50_000)]
    link.b.end_after_writes = True
    link.run()
    assert len(link.a.received) == 50_000
    assert link.a.events == link.b.events == [EndReceived(), StreamClosed(None)]


def test_the_stream_stays_until_everything_is_read():
    core = connected()
    core.write_end(0.0)
    sent(core, 0.0)
    feed(core, 0.1, DATA | END, ack=1, payload=b"last words")
    sent(core, 0.1)
    assert core.end_received
    assert not core.closed
    assert events(core) == [EndReceived()]
    core.read(4)
    assert not core.closed
    assert b"".join(core.read()) == b" words"
    assert core.closed
    assert events(core) == [StreamClosed(None)]
    assert core.get_timer() is None


def test_nothing_is_written_after_the_end():
    core = connected()
    core.write_end(0.0)
    core.write_end(0.0)
    with pytest.raises(LocalProtocolError):
        core.write(b"x", 0.0)


def test_destroy_sends_one_destroy_and_closes_at_once():
    core = connected()
    core.write(bytes(50_000), 0.0)
    sent(core, 0.0)
    core.destroy(1.0)
    core.destroy(1.0)
    assert core.closed
    assert core.write_buffer_bytes == 0
    [packet] = sent(core, 1.0)
    assert (packet.flags, packet.seq, packet.payload) == (DESTROY, 10, b"")
    assert core.get_timer() is None
    assert events(core) == [StreamClosed(None)]
    for call in (core.write_end, lambda now: core.write(b"x", now)):
        with pytest.raises(LocalProtocolError):
            call(2.0)
    core.handle_timer(2.0)
    assert core.datagrams_to_send(2.0) == []


def test_a_finished_stream_sends_no_destroy(make_link):
    link = make_link()
    link.a.end_after_writes = link.b.end_after_writes = True
    link.run()
    link.a.core.destroy(link.now)
    assert link.a.core.datagrams_to_send(link.now) == []


def test_data_received_before_a_destroy_can_still_be_read():
    core = connected()
    feed(core, 0.1, DATA, payload=b"kept")
    feed(core, 0.1, DESTROY, seq=1)
    assert b"".join(core.read()) == b"kept"
    [event] = events(core)
    assert isinstance(event.error, StreamReset)
    assert core.datagrams_to_send(0.2) == []


def test_a_lost_final_acknowledgement_does_not_become_a_timeout(make_link):
    finals = []

    def drop(sender, datagram, now):
        packet = decode_untrusted(datagram)
        if sender == "a" and packet.ack == 1 and len(finals) < 3:
            finals.append(now)
            return True
        return False

    for remembers, error in ((True, type(None)), (False, StreamTimeout)):
        finals.clear()
        link = make_link(drop=drop, remember_closed=remembers)
        link.a.end_after_writes = True
        link.run(lambda link=link: link.b.saw_end)
        link.b.end_after_writes = True
        link.run()
        assert finals
        assert link.a.close_event == StreamClosed(None)
        assert isinstance(link.b.close_event.error, error)


def test_a_peer_that_missed_the_destroy_is_told_again_when_it_writes(make_link):
    link = make_link(drop=lambda sender, _, now: sender == "a" and now < 101)
    link.a.core.destroy(link.now)
    link.run()
    link.now = 102.0
    link.b.to_write = [b"anybody there?"]
    assert link.run() < 0.1
    assert isinstance(link.b.close_event.error, StreamReset)


def test_a_blackhole_is_noticed_after_13_seconds(make_link):
    link = make_link(drop=lambda *_: True)
    link.record = True
    link.a.to_write = [b"hello?"]
    assert link.run() == pytest.approx(13.0)
    at = [at - 100 for at, _, _ in link.sent]
    probes = [0.252, 0.756, 2.008]
    assert sorted([0, 1, 3, 5, 7, 9, 11, *probes]) == pytest.approx(at)
    assert isinstance(link.a.close_event.error, StreamTimeout)


def test_a_path_that_dies_under_load_is_noticed_too(make_link):
    link = make_link(drop=lambda _sender, _data, now: now > 100.2, bandwidth=1e6)
    link.a.to_write = [bytes(65536)] * 30
    assert 13 <= link.run() < 16
    assert isinstance(link.a.close_event.error, StreamTimeout)


def test_a_path_that_comes_back_within_ten_seconds_loses_nothing(make_link):
    link = make_link(drop=lambda _sender, _data, now: 100.1 < now < 110, bandwidth=10e6)
    link.a.to_write = [bytes(65536)] * 100
    link.a.end_after_writes = link.b.end_after_writes = True
    link.run()
    assert len(link.b.received) == 6_553_600
    assert link.a.close_event == link.b.close_event == StreamClosed(None)


# Windows, MTU, remotes, wrap


def test_a_reader_that_stops_and_resumes_gets_everything(make_link):
    link = make_link(receive_window=64 * 1024)
    data = random.Random(1).randbytes(1_000_000)
    link.b.reads = False
    link.a.to_write = [data]
    link.a.end_after_writes = link.b.end_after_writes = True
    link.run(lambda: link.now > 140)
    assert link.b.core.readable_bytes <= 64 * 1024 + 1500
    assert link.b.core.statistics().rwnd < 1500
    assert link.a.core.statistics().retransmits == 0
    link.b.reads = True
    link.run()
    assert link.b.received == data
    assert link.a.close_event == StreamClosed(None)


def test_a_window_update_that_gets_lost_is_made_up_by_the_probes(make_link):
    state = {"drop": False}
    link = make_link(
        receive_window=64 * 1024,
        drop=lambda sender, _data, _now: sender == "b" and state["drop"],
    )
    link.b.reads = False
    link.a.to_write = [bytes(1_000_000)]
    link.run(lambda: link.now > 105)
    state["drop"] = True
    link.b.reads = True
    link.flush()
    state["drop"] = False
    link.run(lambda: len(link.b.received) == 1_000_000, seconds=5)


@pytest.mark.parametrize(("limit", "mtu"), [(1472, 1500), (1300, 1328), (1172, 1200)])
def test_the_path_mtu_is_found(make_link, limit, mtu):
    link = make_link(max_datagram=limit, bandwidth=10e6)
    link.record = True
    link.a.to_write = [bytes(65536)] * 16
    link.run()
    assert len(link.b.received) == 16 * 65536
    assert link.a.core.statistics().mtu == mtu
    assert link.a.core.statistics().rto_count == 0
    payloads = [len(d) - 20 - d[3] for _, sender, d in link.sent if sender == "a"]
    assert max(payloads) == mtu - 48


def test_without_probing_no_packet_exceeds_1172_bytes(make_link):
    link = make_link(mtu_probing=False)
    link.record = True
    link.a.to_write = [bytes(65536)] * 4
    link.run()
    assert max(len(d) for _, _, d in link.sent) == 1172


def test_change_remote_keeps_the_old_remote_for_what_is_in_flight():
    core = connected()
    core.write(b"old", 0.0)
    core.datagrams_to_send(0.0)
    core.change_remote(9, OTHER, 0.5)
    assert (core.remote_id, core.remote_address) == (9, OTHER)
    core.write(b"new", 0.5)
    [(_, address, [datagram])] = core.datagrams_to_send(0.5)
    assert (address, decode_untrusted(datagram).stream_id) == (OTHER, 9)
    groups = core.datagrams_to_send(1.0)
    packets = [(address, decode_untrusted(d)) for _, address, group in groups for d in group]
    assert [(a, p.stream_id, p.payload) for a, p in packets if p.payload == b"old"] == [
        (PEER, 2, b"old")
    ]
    feed(core, 1.1, STATE, ack=2)
    core.datagrams_to_send(1.1)
    assert core.inflight_bytes == 0
    assert core.get_timer() is None


def test_change_remote_starts_the_mtu_search_again(make_link):
    link = make_link(bandwidth=10e6)
    link.a.to_write = [bytes(65536)] * 16
    link.run()
    assert link.a.core.statistics().mtu == 1500
    link.a.core.change_remote(0xB, ("127.0.0.1", 2001), link.now)
    assert link.a.core.statistics().mtu == 1200
    link.a.to_write = [bytes(65536)] * 16
    link.run()
    assert link.a.core.statistics().mtu == 1500
    assert len(link.b.received) == 32 * 65536


@pytest.mark.parametrize("first", [2**32 - 1, 2**32 - 20, 2**31 - 20])
def test_sequence_numbers_wrap(make_link, first):
    link = make_link(
        seed=3, loss=0.1, reorder=0.1, duplicates=0.1, initial_seq=first, initial_ack=first
    )
    data = random.Random(2).randbytes(200_000)
    for endpoint in (link.a, link.b):
        endpoint.to_write = [data]
        endpoint.end_after_writes = True
    link.run()
    assert link.a.received == link.b.received == data
    assert link.a.close_event == link.b.close_event == StreamClosed(None)


def test_a_stream_connects_once():
    core = connected()
    with pytest.raises(LocalProtocolError):
        core.connect(3, PEER, 0.0)
    with pytest.raises(LocalProtocolError):
        UDXStreamCore(1).change_remote(3, PEER, 0.0)


def test_statistics_count_both_directions(make_link):
    link = make_link()
    link.a.to_write = [bytes(10_000)]
    link.run()
    a, b = link.a.core.statistics(), link.b.core.statistics()
    assert (a.packets_out, a.bytes_out) == (b.packets_in, b.bytes_in)
    assert (b.packets_out, b.bytes_out) == (a.packets_in, a.bytes_in)
    assert a.srtt == pytest.approx(0.002)
    assert link.a.core.rtt == a.srtt


# Reserve


def times_of_packets(core: UDXStreamCore, until: float) -> list[float]:
    """When the stream sends while nobody answers."""
    times = []
    now = 0.0
    while now < until:
        times += [now] * len(sent(core, now))
        timer = core.get_timer()
        if timer is None:
            break
        now = timer
        core.handle_timer(now)
    return times


def test_a_reserved_stream_repeats_no_sooner_than_javascript_and_goes_without_a_word():
    core = connected(reserved=True)
    core.write(b"hello", 0.0)
    assert times_of_packets(core, 10.0) == [0.0, 1.0, 3.0, 5.0, 7.0, 9.0]
    core.destroy(10.0)
    assert sent(core, 10.0) == []


def test_the_reserve_ends_with_the_first_packet_of_the_peer():
    core = connected(reserved=True)
    core.write(b"hello", 0.0)
    sent(core, 0.0)
    feed(core, 0.1, DATA, payload=b"hello")
    sent(core, 0.1)
    assert core.get_timer() == pytest.approx(0.35, abs=0.01)
    core.destroy(0.2)
    assert [packet.flags for packet in sent(core, 0.2)] == [DESTROY]


def test_packets_for_another_stream_do_not_end_the_reserve():
    core = connected(reserved=True)
    core.write(b"hello", 0.0)
    other = encode(Packet(DATA, 99, seq=0, ack=0, rwnd=WINDOW, payload=b"x"))
    core.receive_datagram(other, PEER, 0.0)
    core.receive_datagram(other[:19], PEER, 0.0)
    assert times_of_packets(core, 2.0)[:2] == [0.0, 1.0]
