"""hyperlog.spool: order, bounds and counts of what waits to be sent."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyperlog.spool import MESSAGE_OVERHEAD, UNIT, MemorySpool

SMALL = 16 * UNIT  # 12 units of messages at most
MESSAGE = b"x" * (UNIT - MESSAGE_OVERHEAD)  # counts exactly one unit


def numbered(spool: MemorySpool, count: int) -> None:
    for _ in range(count):
        spool.put(MESSAGE)


def test_pending_traces_come_out_in_order():
    spool = MemorySpool()
    for n in range(5):
        spool.append(n)
    assert spool.pending == 5
    assert spool.take_pending(3) == [0, 1, 2]
    assert spool.take_pending(3) == [3, 4]
    assert spool.take_pending(3) == []
    assert spool.take_overflow() == 0


def test_the_oldest_pending_traces_give_way_and_are_counted_once():
    spool = MemorySpool(SMALL)
    for n in range(20):
        spool.append(n)
    assert spool.take_overflow() == 4
    assert spool.take_overflow() == 0
    assert spool.take_pending(100) == list(range(4, 20))
    assert spool.dropped == {"queue-full": 4, "buffer-full": 0, "delivered": 0}


def test_long_texts_count_by_their_size():
    spool = MemorySpool(SMALL)
    spool.append("small")
    spool.append("large", text_size=10 * UNIT)
    assert spool.size == 12 * UNIT
    spool.append("next", text_size=9 * UNIT)
    assert spool.size <= SMALL
    assert spool.take_pending(100) == ["large", "next"]  # the filler before "large" went first


def test_a_trace_larger_than_all_is_still_taken():
    spool = MemorySpool(SMALL)
    spool.append("huge", text_size=1000 * UNIT)
    assert spool.size <= SMALL
    assert spool.take_pending(1) == ["huge"]


def test_messages_leave_room_for_pending_traces_and_take_theirs():
    spool = MemorySpool(SMALL)
    numbered(spool, 50)
    assert spool.size == 12 * UNIT
    for n in range(10):
        spool.append(n)
    assert spool.size == SMALL
    assert spool.take_pending(10) == [6, 7, 8, 9]
    spool.release_through(100)
    assert spool.size == 0
    for n in range(16):
        spool.append(n)
    assert spool.take_pending(20) == list(range(16))


def test_batches_are_bounded_by_bytes_but_never_empty():
    spool = MemorySpool()
    for message in (b"a" * 10, b"b" * 10, b"c" * 30, b"d"):
        spool.put(message)
    assert spool.next_batch(25) == [b"a" * 10, b"b" * 10]
    assert spool.next_batch(25) == [b"c" * 30]
    assert spool.next_batch(25) == [b"d"]
    assert spool.next_batch(25) == []
    assert (spool.first_number, spool.send_number, spool.next_number) == (0, 4, 4)


def test_rewind_brings_sent_messages_back_in_order():
    spool = MemorySpool()
    messages = [str(n).encode() for n in range(6)]
    for message in messages:
        spool.put(message)
    spool.next_batch(3)
    spool.release_through(0)
    spool.rewind()
    assert spool.send_number == 1
    assert spool.next_batch(100) == messages[1:]


def test_the_oldest_messages_give_way_counted_by_reason():
    spool = MemorySpool(SMALL)
    numbered(spool, 12)
    spool.next_batch(3 * len(MESSAGE))
    spool.delivered_through(1)
    numbered(spool, 4)
    assert spool.dropped == {"queue-full": 0, "buffer-full": 2, "delivered": 2}
    assert (spool.first_number, spool.send_number, spool.next_number) == (4, 4, 16)


def test_a_message_larger_than_the_spool_is_dropped_at_once():
    spool = MemorySpool(SMALL)
    numbered(spool, 3)
    assert spool.put(b"x" * SMALL) == 3
    assert (spool.first_number, spool.send_number, spool.next_number) == (4, 4, 4)
    assert spool.dropped["buffer-full"] == 4
    assert spool.size == 0


def test_a_spool_has_a_smallest_size():
    with pytest.raises(ValueError, match="at least"):
        MemorySpool(SMALL - 1)


def test_threads_lose_nothing_and_keep_their_order():
    spool: MemorySpool[tuple[int, int]] = MemorySpool()
    threads = 4
    each = 3000
    barrier = threading.Barrier(threads + 1)

    def run(thread: int) -> None:
        barrier.wait()
        for n in range(each):
            spool.append((thread, n), text_size=(n % 3) * UNIT)

    workers = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    taken: list[tuple[int, int]] = []
    while any(worker.is_alive() for worker in workers) or spool.pending:
        taken += spool.take_pending(100)
    for thread in range(threads):
        assert [n for t, n in taken if t == thread] == list(range(each))


def test_threads_overflowing_are_counted_exactly():
    spool: MemorySpool[int] = MemorySpool(SMALL)
    threads, each = 4, 2000

    def run() -> None:
        for n in range(each):
            spool.append(n)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    lost = taken = 0
    while any(worker.is_alive() for worker in workers) or spool.pending:
        lost += spool.take_overflow()
        taken += len(spool.take_pending(3))
    lost += spool.take_overflow()
    assert lost + taken == threads * each


class SpoolAgainstLists(RuleBasedStateMachine):
    """The spool does what two plain lists would do."""

    def __init__(self) -> None:
        super().__init__()
        self.spool: MemorySpool[int] = MemorySpool(SMALL)
        self.kept: list[tuple[int, bytes]] = []
        self.send_number = 0
        self.next_number = 0

    @rule(size=st.integers(1, 5000))
    def put(self, size):
        message = b"%d:" % self.next_number + b"x" * size
        assert self.spool.put(message) == self.next_number
        self.kept.append((self.next_number, message))
        self.next_number += 1
        while sum(len(m) + MESSAGE_OVERHEAD for _, m in self.kept) > SMALL * 3 // 4:
            number, _ = self.kept.pop(0)
            self.send_number = max(self.send_number, number + 1)

    @rule(size=st.integers(0, 8000))
    def send(self, size):
        unsent = [m for n, m in self.kept if n >= self.send_number]
        batch = self.spool.next_batch(size)
        assert batch == unsent[: len(batch)]
        assert bool(batch) == bool(unsent)
        assert len(batch) <= 1 or sum(map(len, batch)) <= size
        self.send_number += len(batch)

    @rule()
    def rewind(self):
        self.spool.rewind()
        self.send_number = self.kept[0][0] if self.kept else self.next_number

    @rule(back=st.integers(-2, 20))
    def release(self, back):
        number = self.next_number - back
        self.spool.release_through(number)
        self.kept = [(n, m) for n, m in self.kept if n > number]
        first = self.kept[0][0] if self.kept else self.next_number
        self.send_number = max(self.send_number, first)

    @rule(size=st.integers(0, 5000))
    def append(self, size):
        self.spool.append(0, size)

    @rule(limit=st.integers(0, 20))
    def take(self, limit):
        assert len(self.spool.take_pending(limit)) <= limit

    @invariant()
    def numbers_and_size_agree(self):
        spool = self.spool
        first = self.kept[0][0] if self.kept else self.next_number
        assert (spool.first_number, spool.send_number, spool.next_number) == (
            first,
            self.send_number,
            self.next_number,
        )
        assert spool.messages == len(self.kept)
        assert spool.unsent == self.next_number - self.send_number
        assert spool.size <= SMALL


TestSpoolAgainstLists = SpoolAgainstLists.TestCase
TestSpoolAgainstLists.settings = settings(max_examples=60, deadline=None)
