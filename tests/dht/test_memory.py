"""hyperlog.dht.memory: what accepted connections hold together, and who is ended for it."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass

import pytest
import trio

from hyperlog.dht import memory as module
from hyperlog.dht.memory import MIN_INTERVAL, MIN_WINDOW, UNPROVED_WINDOW, ReceiveMemory
from hyperlog.dht.udx.stream import DEFAULT_WINDOW
from tests.dht.peers import loopback_connections, sim_dht

MB = 1024 * 1024


@dataclass(eq=False)
class Holder:
    """Stands for a connection: what it holds, since when, and what became of it."""

    held_bytes: int = 0
    held_since: float = 0.0
    authenticated: bool = True
    closed: bool = False
    window: int = UNPROVED_WINDOW
    copied: int = 0
    on_authenticated = None

    def set_receive_window(self, window: int) -> None:
        self.window = window

    def copy_views(self) -> None:
        self.copied += 1

    def abort(self) -> None:
        self.closed = True
        self.held_bytes = 0

    def prove(self) -> None:
        self.authenticated = True
        self.on_authenticated()


def memory_of(*holders: Holder, max_bytes: int = 8 * MB) -> ReceiveMemory:
    memory = ReceiveMemory(max_bytes)
    for holder in holders:
        memory.add(holder, 0.0)
    return memory


def test_below_the_bound_nobody_is_ended_and_the_next_check_is_due_before_it_can_be_reached():
    holders = [Holder(MB) for _ in range(60)]
    memory = memory_of(*holders, max_bytes=128 * MB)
    assert memory.check(1.0) == 32 * MB  # what strangers may hold
    assert not any(holder.closed for holder in holders)
    for holder in holders:
        holder.held_bytes = 2 * MB
    assert memory.check(2.0) == MIN_INTERVAL  # 8 are left
    statistics = memory.statistics()
    assert (statistics.held_bytes, statistics.ended) == (120 * MB, 0)


def test_who_sends_fast_outlives_who_holds_more_for_longer():
    slow = [Holder(MB, held_since=0.0) for _ in range(8)]
    fast = Holder(4 * MB, held_since=19.99)
    memory = memory_of(fast, *slow)
    memory.check(20.0)
    assert not fast.closed
    assert sum(holder.closed for holder in slow) == 4
    statistics = memory.statistics()
    assert (statistics.held_bytes, statistics.max_held_bytes) == (8 * MB, 12 * MB)
    assert statistics.ended == 4


def test_of_those_that_wait_as_long_the_largest_is_ended():
    holders = [Holder(MB), Holder(6 * MB), Holder(2 * MB)]
    memory_of(*holders).check(10.0)
    assert [holder.closed for holder in holders] == [False, True, False]


def test_waiting_for_longer_than_half_a_minute_makes_nobody_worse():
    idle = Holder(MB, held_since=0.0)
    stuck = Holder(8 * MB, held_since=3500.0)
    memory_of(idle, stuck).check(3600.0)
    assert (idle.closed, stuck.closed) == (False, True)


def test_strangers_have_a_quarter_and_harm_nobody_else():
    strangers = [Holder(MB, authenticated=False) for _ in range(10)]
    proved = Holder(4 * MB)
    memory = memory_of(proved, *strangers)
    memory.check(1.0)
    assert sum(holder.closed for holder in strangers) == 8
    assert not proved.closed


def test_all_windows_together_are_at_most_half_of_the_bound():
    memory = ReceiveMemory(128 * MB)
    holders: list[Holder] = []
    for number in range(1, 1200):
        holder = Holder(authenticated=False)
        memory.add(holder, 0.0)
        assert holder.window == UNPROVED_WINDOW
        holder.prove()
        holders.append(holder)
        together = sum(holder.window for holder in holders)
        assert together <= max(64 * MB, number * MIN_WINDOW)
        if number <= 16:
            assert holder.window == DEFAULT_WINDOW
    assert {holder.window for holder in holders} == {MIN_WINDOW}
    for holder in holders[3:]:
        holder.closed = True
    memory.check(1.0)
    assert {holder.window for holder in holders[:3]} == {DEFAULT_WINDOW}


def test_closed_connections_are_counted_until_they_are_read_out():
    unread, empty = Holder(MB), Holder()
    memory = memory_of(unread, empty)
    unread.closed = empty.closed = True
    memory.check(0.0)
    assert memory.statistics().held_bytes == MB
    assert len(memory._connections) == 1
    unread.held_bytes = 0
    memory.check(0.0)
    assert len(memory._connections) == 0


def test_connections_that_come_and_go_are_forgotten_without_a_check():
    memory = ReceiveMemory()
    kept = []
    for _ in range(1000):
        holder = Holder()
        kept.append(holder)
        memory.add(holder, 0.0)
        holder.closed = True
        assert len(memory._connections) <= module.MAX_GONE + 1


def test_a_connection_that_its_owner_dropped_is_not_kept():
    memory = memory_of(Holder(MB))
    gc.collect()
    memory.check(0.0)
    assert memory.statistics().held_bytes == 0


def test_the_log_tells_at_most_once_a_minute(caplog):
    caplog.set_level(logging.WARNING, "hyperlog.dht.memory")
    memory = ReceiveMemory(8 * MB)
    for now in range(120):
        memory.add(Holder(9 * MB), now)
        memory.check(float(now))
    assert len(caplog.records) == 2
    assert "61 so far" in caplog.text
    assert memory.statistics().ended == 120


# -- with real connections -------------------------------------------------------------------------


async def test_a_connection_tells_what_it_holds_since_when_and_forgets_it(autojump_clock):
    async with loopback_connections() as (a, b):
        await b.opened()
        assert b.held_bytes == 0
        frame = a._secret.seal_many([bytes(100_000)])
        a._stream.write_soon(frame[:40_000])
        with trio.move_on_after(1):
            await b.receive()
        assert b.held_bytes == 40_000
        began_at = b.held_since
        a._stream.write_soon(frame[40_000:-1])
        with trio.move_on_after(1):
            await b.receive()
        assert b.held_bytes == len(frame) - 1
        assert b.held_since == began_at
        a._stream.write_soon(frame[-1:])
        assert await b.receive() == bytes(100_000)
        assert b.held_bytes == 0
        assert b.held_since > began_at
        a._stream.write_soon(a._secret.seal_many([bytes(5000)])[:-1])
        a.send_unordered(bytes(500))
        assert await a.wait_acknowledged() is None
        assert b.held_bytes >= 5000
        b.abort()
        assert b.held_bytes == 0


async def test_a_stranger_has_a_small_window_and_a_proved_peer_a_large_one(autojump_clock):
    async with sim_dht(3) as net:
        server, client = await net.add(firewalled=False), await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        connection = await client.connect(listener.public_key)
        accepted = await listener.accept()
        core = accepted._stream.core
        assert (accepted.authenticated, core.receive_window) == (False, UNPROVED_WINDOW)
        await connection.send(b"it is me")
        assert await accepted.receive() == b"it is me"
        assert (accepted.authenticated, core.receive_window) == (True, DEFAULT_WINDOW)
        await connection.send(b"again")  # growth counts with the next acknowledgement
        await connection.wait_acknowledged()
        assert connection._stream.core.statistics().peer_rwnd > UNPROVED_WINDOW


async def test_a_first_message_larger_than_the_window_of_a_stranger_arrives(autojump_clock):
    async with sim_dht(3) as net:
        server, client = await net.add(firewalled=False), await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        connection = await client.connect(listener.public_key)
        accepted = await listener.accept()
        message = bytes(range(256)) * 20_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send, message)
            assert await accepted.receive() == message


@pytest.mark.parametrize("proved", [False, True], ids=["strangers", "proved"])
async def test_unfinished_messages_end_their_connections_and_no_other(autojump_clock, proved):
    async with sim_dht(3) as net:
        server, client = await net.add(firewalled=False), await net.add()
        server.memory.max_bytes = (2 if proved else 8) * MB
        listener = await server.listen()
        await listener.wait_announced()
        accepted = []

        async def receive(connection):
            accepted.append(connection)
            try:
                while True:
                    await connection.receive_many()
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
                pass

        async def serve():
            while True:
                nursery.start_soon(receive, await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            honest = await client.connect(listener.public_key)
            await honest.send(b"first")
            await trio.sleep(1)
            hostile = [await client.connect(listener.public_key) for _ in range(8)]
            for connection in hostile:
                if proved:
                    await connection.send(b"who I am")
                frame = connection._secret.seal_many([bytes(MB)])
                connection._stream.get_extra_timer = None  # no keep-alive inside of the frame
                await connection._stream.send_all(frame[:-1])
            for _ in range(200):  # 13 MB: more than once between two checks
                await honest.send(bytes(65536))
            await honest.wait_acknowledged()
            await trio.sleep(1)
            assert not accepted[0].closed
            assert 6 <= sum(connection.closed for connection in accepted) <= 8
            assert sum(connection.held_bytes for connection in accepted) <= 2 * MB
            statistics = server.statistics().memory
            assert statistics.ended == sum(connection.closed for connection in accepted)
            assert statistics.held_bytes <= 2 * MB
            nursery.cancel_scope.cancel()
