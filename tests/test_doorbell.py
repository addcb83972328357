from __future__ import annotations

import threading
from collections import deque

import trio
import trio.testing

from hyperlog.doorbell import MAX_WAIT, Doorbell


async def test_the_first_ring_starts_the_loop():
    started = []
    bell = Doorbell(lambda: started.append(True))
    assert bell.waiting
    bell.ring()
    assert started == [True]
    assert not bell.waiting


async def test_a_loop_that_is_awake_is_not_rung():
    bell = Doorbell(lambda: None)
    bell.attach()
    await bell.wait(lambda: True)
    assert not bell.waiting


async def test_work_that_came_before_the_wait_ends_it_at_once(autojump_clock):
    bell = Doorbell(lambda: None)
    bell.attach()
    await bell.wait(lambda: True)
    assert trio.current_time() < MAX_WAIT


async def test_a_lost_ring_delays_the_work_by_a_bounded_time(autojump_clock):
    bell = Doorbell(lambda: None)
    bell.attach()
    began_at = trio.current_time()
    await bell.wait(lambda: False)
    assert trio.current_time() - began_at == MAX_WAIT


async def test_a_ring_from_another_thread_wakes_the_loop():
    bell = Doorbell(lambda: None)
    bell.attach()
    with trio.fail_after(MAX_WAIT / 2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.wait, lambda: False)
            await trio.testing.wait_all_tasks_blocked()
            assert bell.waiting
            await trio.to_thread.run_sync(bell.ring)


def test_no_wake_up_is_lost_between_many_threads_and_the_loop():
    count, threads = 2_000, 4
    work: deque[int] = deque()
    bell = Doorbell(lambda: None)
    attached = threading.Event()

    def produce():
        attached.wait()
        for number in range(count):
            work.append(number)
            if bell.waiting:
                bell.ring()

    async def consume():
        bell.attach()
        attached.set()
        done = 0
        # Any lost wake-up would cost MAX_WAIT seconds.
        with trio.fail_after(MAX_WAIT - 0.5):
            while done < count * threads:
                while work:
                    work.popleft()
                    done += 1
                if done < count * threads:
                    await bell.wait(lambda: bool(work))

    producers = [threading.Thread(target=produce) for _ in range(threads)]
    for producer in producers:
        producer.start()
    trio.run(consume)
    for producer in producers:
        producer.join()


async def test_a_loop_that_has_ended_is_left_alone():
    bell = Doorbell(lambda: None)

    async def attach():
        bell.attach()

    await trio.to_thread.run_sync(trio.run, attach)
    bell.ring()
    bell.detach()
    assert not bell.waiting
    bell.ring()
