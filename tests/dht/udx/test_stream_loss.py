"""Streams over a simulated link that loses, repeats and reorders."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperlog.dht.udx import StreamClosed, UDXStreamCore

LARGE = 20 * 1024 * 1024
PEERS = (("127.0.0.1", 1), ("127.0.0.1", 2))


def exchange(link, seed: int, size: int) -> float:
    """Both ends send `size` bytes and end; return the simulated seconds."""
    rng = random.Random(seed)
    data = {}
    for endpoint in (link.a, link.b):
        data[endpoint.name] = rng.randbytes(size)
        pieces = [data[endpoint.name][at : at + 65536] for at in range(0, size, 65536)]
        endpoint.to_write = pieces[::-1]
        endpoint.end_after_writes = True
    seconds = link.run(lambda: link.a.core.closed and link.b.core.closed)
    link.run()
    assert link.a.received == data["b"]
    assert link.b.received == data["a"]
    for endpoint in (link.a, link.b):
        assert endpoint.close_event == StreamClosed(None)
        assert endpoint.core.get_timer() is None
        assert endpoint.core.write_buffer_bytes == 0
        statistics = endpoint.core.statistics()
        assert statistics.malformed == 0
        assert statistics.overflows == 0
    return seconds


@pytest.mark.parametrize("seed", range(100))
def test_a_lossy_link_delivers_every_byte(make_link, seed):
    link = make_link(seed, loss=0.1, duplicates=0.02, reorder=0.05)
    assert exchange(link, seed, LARGE) < 30


@pytest.mark.parametrize(("delay", "limit"), [(0.001, 0.5), (0.05, 8.0)])
def test_twenty_megabytes_each_way_at_ten_percent_loss(make_link, delay, limit):
    link = make_link(7, delay=delay, loss=0.1, duplicates=0.02, reorder=0.05)
    assert exchange(link, 7, LARGE) < limit


@pytest.mark.parametrize("seed", range(10))
def test_loss_at_the_start_does_not_fix_a_low_rate(make_link, seed):
    link = make_link(seed, delay=0.05, loss=0.1, reorder=0.05)
    assert exchange(link, seed, 2 * 1024 * 1024) < 5


@pytest.mark.parametrize("seed", range(10))
def test_a_third_of_all_packets_lost_only_costs_time(make_link, seed):
    assert exchange(make_link(seed, loss=0.33, delay=0.01), seed, 20_000) < 60


@pytest.mark.parametrize("queue", [0.02, 0.1])
def test_a_bottleneck_is_filled_and_not_flooded(make_link, queue):
    link = make_link(delay=0.02, bandwidth=10e6, queue=queue)
    link.a.to_write = [bytes(65536)] * 800
    seconds = link.run(lambda: len(link.b.received) == 800 * 65536)
    assert 800 * 65536 / seconds > 7e6
    statistics = link.a.core.statistics()
    assert statistics.retransmits < statistics.packets_out * 0.1
    assert statistics.bandwidth == pytest.approx(10e6, rel=0.15)


def test_a_slow_link_is_not_overrun(make_link):
    link = make_link(delay=0.05, bandwidth=125_000, queue=0.3)
    link.a.to_write = [bytes(65536)] * 20
    seconds = link.run(lambda: len(link.b.received) == 20 * 65536)
    assert seconds < 1.2 * 20 * 65536 / 125_000
    assert link.a.core.statistics().rto_count == 0


def test_a_sender_with_coarse_wake_ups_still_reaches_the_rate():
    """The loop looks in only every 5 ms; the pacer must not turn that into the rate."""
    a, b = UDXStreamCore(1), UDXStreamCore(2)
    a.connect(2, PEERS[1], 0.0)
    b.connect(1, PEERS[0], 0.0)
    now = 0.0
    received = 0
    while now < 2.0:
        while a.unsent_bytes < 1 << 20:
            a.write(bytes(65536), now)
        for sender, receiver in ((a, b), (b, a)):
            for _ in range(100):
                groups = sender.datagrams_to_send(now)
                if not groups:
                    break
                for *_, datagrams in groups:
                    for datagram in datagrams:
                        receiver.receive_datagram(datagram, PEERS[0], now)
        received += sum(map(len, b.read()))
        now += 0.005
    assert received > 2 * 50e6


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_schedule_ends_with_the_same_bytes_and_no_timer(data):
    """Write, deliver, drop, duplicate, reorder, tick, read in any order, then an intact link."""
    cores = (UDXStreamCore(1, receive_window=8192), UDXStreamCore(2, receive_window=8192))
    wire: tuple[list[bytes], list[bytes]] = ([], [])  # towards core 0, towards core 1
    written = [b"", b""]
    received = [b"", b""]
    now = 0.0
    cores[0].connect(2, PEERS[1], now)
    if data.draw(st.booleans()):
        cores[1].connect(1, PEERS[0], now)

    def collect() -> None:
        for index, core in enumerate(cores):
            for *_, datagrams in core.datagrams_to_send(now):
                wire[1 - index].extend(datagrams)

    actions = st.tuples(
        st.sampled_from(
            ["write", "write", "deliver", "deliver", "drop", "duplicate", "tick", "read"]
        ),
        st.integers(0, 1),
        st.integers(0, 3000),
    )
    for action, index, number in data.draw(st.lists(actions, max_size=60)):
        queue = wire[index]
        if action == "write" and len(written[index]) < 50_000:
            piece = bytes([number % 251]) * number
            written[index] += piece
            cores[index].write(piece, now)
        elif action == "deliver" and queue:
            cores[index].receive_datagram(queue.pop(number % len(queue)), PEERS[0], now)
        elif action == "drop" and queue:
            queue.pop(number % len(queue))
        elif action == "duplicate" and queue:
            queue.append(queue[number % len(queue)])
        elif action == "read":
            received[index] += b"".join(cores[index].read(number))
        elif action == "tick":
            now += number / 10_000
        collect()

    if not cores[1].connected:
        cores[1].connect(1, PEERS[0], now)
    for core in cores:
        core.write_end(now)
    for _ in range(3000):
        collect()
        for index, core in enumerate(cores):
            while wire[index]:
                core.receive_datagram(wire[index].pop(0), PEERS[0], now)
            received[index] += b"".join(core.read())
        collect()
        if not any(wire):
            timers = [t for core in cores if (t := core.get_timer()) is not None]
            if not timers:
                break
            now = max(now, min(timers))
    assert received == [written[1], written[0]]
    for core in cores:
        assert core.closed
        assert core.get_timer() is None
        assert core.write_buffer_bytes == 0
