import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.udx.reassembly import MIN_CHUNK_CHARGE, WINDOW_SLACK, ReceiveBuffer


def deliver(buffer: ReceiveBuffer, seq: int, payload: bytes) -> bool:
    if seq < buffer.next_seq:
        return False
    taken = buffer.append(payload) if seq == buffer.next_seq else buffer.hold(seq, payload)
    buffer.release_held()
    return taken


@given(st.data())
def test_any_order_gives_the_same_bytes(data):
    payloads = data.draw(st.lists(st.binary(max_size=5), min_size=1, max_size=40))
    order = data.draw(st.lists(st.integers(0, len(payloads) - 1), max_size=120))
    buffer = ReceiveBuffer(1 << 20, 7)
    got = b""
    for index in [*order, *range(len(payloads))]:
        deliver(buffer, 7 + index, payloads[index])
        blocks = buffer.blocks(100)
        held = [seq for start, end in blocks for seq in range(start, end)]
        assert held == sorted(seq for seq in range(500) if buffer.is_held(seq))
        assert all(end < start for (_, end), (start, _) in pairwise(blocks))
        assert buffer.has_gap == bool(blocks)
        if index % 3 == 0:
            got += b"".join(buffer.read(4))
    got += b"".join(buffer.read(None))
    assert got == b"".join(payloads)
    assert buffer.readable_bytes == buffer.held_bytes == 0
    assert buffer.free_window == buffer.window


def test_the_window_counts_unread_and_held_bytes():
    buffer = ReceiveBuffer(100_000, 0)
    assert buffer.append(bytes(1000))
    assert buffer.hold(2, bytes(500))
    assert buffer.free_window == 98_500
    buffer.read(400)
    assert buffer.free_window == 98_900


def test_tiny_packets_are_charged_for_the_objects_they_cost():
    buffer = ReceiveBuffer(100 * MIN_CHUNK_CHARGE, 0)
    for _ in range(60):
        buffer.append(b"x")
    assert buffer.free_window == 40 * MIN_CHUNK_CHARGE


def test_a_flood_beyond_a_gap_stops_at_the_window_plus_slack():
    buffer = ReceiveBuffer(100_000, 0)
    refused = [seq for seq in range(1, 1000) if not buffer.hold(seq, bytes(1000))]
    assert refused
    assert buffer.held_bytes <= 100_000 + WINDOW_SLACK
    assert buffer.free_window == 0


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_flood_in_order_that_nobody_reads_stops_at_twice_the_window(size):
    buffer = ReceiveBuffer(100_000, 0)
    taken = sum(buffer.append(bytes(size)) for _ in range(10_000))
    limit = 2 * 100_000 + WINDOW_SLACK
    assert buffer.readable_bytes <= limit
    if size:
        assert taken * MIN_CHUNK_CHARGE <= limit + MIN_CHUNK_CHARGE or taken * size <= limit
        assert taken < 10_000
    else:
        assert buffer.read(None) == []


def test_the_packets_that_fill_a_gap_fit_when_the_window_is_full():
    buffer = ReceiveBuffer(100_000, 0)
    seq = 10
    while buffer.hold(seq, bytes(1000)):
        seq += 1
    assert all(buffer.append(bytes(1000)) for _ in range(10))
    buffer.release_held()
    assert not buffer.has_gap
    assert buffer.next_seq == seq


def test_a_far_sequence_number_is_refused():
    buffer = ReceiveBuffer(1 << 20, 0)
    assert not buffer.hold(2**31 - 1, b"far")
    assert not buffer.has_gap


def test_small_payloads_do_not_pin_the_receive_buffer():
    buffer = ReceiveBuffer(1 << 20, 0)
    datagram = memoryview(bytes(65536))
    buffer.append(datagram[:10])
    buffer.append(datagram[:1000])
    buffer.hold(5, datagram[:1000])
    small, large = buffer.read(None)
    assert isinstance(small, bytes)
    assert isinstance(large, memoryview)
    assert isinstance(buffer._held[5], bytes)


def test_many_random_gaps_merge_into_one_range():
    rng = random.Random(5)
    buffer = ReceiveBuffer(1 << 22, 0)
    seqs = list(range(1, 3000))
    rng.shuffle(seqs)
    for seq in seqs:
        assert buffer.hold(seq, b"x")
    assert buffer.blocks(10) == [(1, 3000)]


def test_a_smaller_window_takes_nothing_back():
    buffer = ReceiveBuffer(100_000, 0)
    buffer.resize(10_000)
    assert buffer.free_window == 10_000
    for seq in range(90):  # the peer has not heard of it yet
        assert buffer.append(bytes(1000))
        assert buffer.hold(200 + seq, bytes(500))
    assert buffer.free_window == 0
    buffer.resize(400_000)
    assert buffer.free_window == 400_000 - 90_000 - 45_000
    assert all(buffer.append(bytes(1000)) for _ in range(600))


def test_copied_views_let_go_of_the_receive_buffer():
    joined = bytearray(64 * 1024)
    buffer = ReceiveBuffer(1 << 20, 0)
    buffer.append(memoryview(joined)[:300])
    with pytest.raises(BufferError):
        joined.clear()
    buffer.copy_views()
    joined.clear()
    assert buffer.read(None) == [bytes(300)]


def test_what_is_dropped_counts_no_more():
    buffer = ReceiveBuffer(1 << 20, 0)
    buffer.append(bytes(1000))
    buffer.hold(2, b"x")
    assert buffer.charge == 1001
    buffer.drop_all()
    assert (buffer.charge, buffer.readable_bytes, buffer.has_gap) == (0, 0, False)
    assert buffer.read(None) == []
