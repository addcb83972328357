"""hyperlog.tracequeue: order, bounds and counts of traces that wait for their numbers."""

from __future__ import annotations

import threading

import pytest

from hyperlog.tracequeue import LEAST_MAX_BYTES, UNIT, TraceQueue

SMALL = 16 * UNIT


def test_pending_traces_come_out_in_order():
    queue = TraceQueue(2**20)
    for n in range(5):
        queue.append(n)
    assert queue.pending == 5
    assert queue.take_pending(3) == [0, 1, 2]
    assert queue.take_pending(3) == [3, 4]
    assert queue.take_pending(3) == []
    assert queue.take_overflow() == 0


def test_the_oldest_pending_traces_give_way_and_are_counted_once():
    queue = TraceQueue(SMALL)
    for n in range(20):
        queue.append(n)
    assert queue.take_overflow() == 4
    assert queue.take_overflow() == 0
    assert queue.take_pending(100) == list(range(4, 20))


def test_a_queue_is_crowded_when_told_so_and_at_the_latest_when_it_is_nearly_full():
    for crowd, at in (None, 14), (5, 5), (100, 14):
        queue = TraceQueue(SMALL, crowd)
        for n in range(at):
            queue.append(n)
        assert not queue.crowded
        queue.append(at)
        assert queue.crowded
        queue.take_pending(1)
        assert not queue.crowded


def test_long_texts_count_by_their_size():
    queue = TraceQueue(SMALL)
    queue.append("small")
    queue.append("large", text_size=10 * UNIT)
    assert queue.size == 12 * UNIT
    queue.append("next", text_size=9 * UNIT)
    assert queue.size <= SMALL
    assert queue.take_pending(100) == ["large", "next"]  # the filler before "large" went first


def test_a_trace_larger_than_all_is_still_taken():
    queue = TraceQueue(SMALL)
    queue.append("huge", text_size=1000 * UNIT)
    assert queue.size <= SMALL
    assert queue.take_pending(1) == ["huge"]


def test_a_queue_has_a_smallest_size():
    with pytest.raises(ValueError, match="at least"):
        TraceQueue(LEAST_MAX_BYTES - 1)


def test_threads_lose_nothing_and_keep_their_order():
    queue: TraceQueue[tuple[int, int]] = TraceQueue(2**26)
    threads = 4
    each = 3000
    barrier = threading.Barrier(threads + 1)

    def run(thread: int) -> None:
        barrier.wait()
        for n in range(each):
            queue.append((thread, n), text_size=(n % 3) * UNIT)

    workers = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    taken: list[tuple[int, int]] = []
    while any(worker.is_alive() for worker in workers) or queue.pending:
        taken += queue.take_pending(100)
    for thread in range(threads):
        assert [n for t, n in taken if t == thread] == list(range(each))


def test_threads_overflowing_are_counted_exactly():
    queue: TraceQueue[int] = TraceQueue(SMALL)
    threads, each = 4, 2000

    def run() -> None:
        for n in range(each):
            queue.append(n)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    lost = taken = 0
    while any(worker.is_alive() for worker in workers) or queue.pending:
        lost += queue.take_overflow()
        taken += len(queue.take_pending(3))
    lost += queue.take_overflow()
    assert lost + taken == threads * each
