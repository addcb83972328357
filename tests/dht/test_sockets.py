"""Sockets: demultiplexing, pool sockets, the timers of many streams, and kernels without room."""

from __future__ import annotations

import os
import socket as stdlib_socket
import sys

import pytest
import trio
import trio.testing

from hyperlog.dht import sockets as module
from hyperlog.dht.errors import StreamReset
from hyperlog.dht.simulation import SimNetwork, SimSocket
from hyperlog.dht.sockets import CLIENT, SERVER, Sockets
from tests.dht.peers import new_stream, open_sockets, sim_network, stream_pair


class TightSocket(SimSocket):
    """A simulated socket whose send buffer fills and whose descriptor dies, as the kernel's do."""

    room: int | None = None
    """Datagrams that it still takes; None for any number."""

    def __init__(self, network, address):
        super().__init__(network, address)
        self.writable = trio.lowlevel.ParkingLot()

    def give_room(self, room):
        self.room = room
        self.writable.unpark_all()

    def send_batch(self, datagrams, address):
        self._check_descriptor()
        taken = len(datagrams) if self.room is None else min(self.room, len(datagrams))
        if self.room is not None:
            self.room -= taken
        return super().send_batch(datagrams[:taken], address)

    async def wait_writable(self):
        await trio.lowlevel.checkpoint()
        while self.room == 0:
            await self.writable.park()
            if self._closed:
                raise trio.ClosedResourceError

    async def wait_readable(self):
        if not self._inbox:
            await self._lot.park()  # once readable, epoll does not look whether it was closed since

    def receive_batch(self):
        self._check_descriptor()
        return super().receive_batch()

    def close(self):
        super().close()
        self.writable.unpark_all()

    def _check_descriptor(self):
        if self._closed:
            raise OSError(9, "Bad file descriptor")


def tight_factory(network: SimNetwork, host: str):
    def bind(_host, port):
        sock = network.host(host)(_host, port)
        tight = TightSocket(network, sock.local_address)
        network._sockets[sock.local_address] = tight
        return tight

    return bind


async def echoes(left: Sockets, right: Sockets) -> None:
    """Fail unless bytes still go from one to the other."""
    a, b = stream_pair(left, right)
    with trio.fail_after(5):
        await a.send_all(b"works")
        assert await b.receive_some() == b"works"
    a.destroy()
    b.destroy()


# -- binding ---------------------------------------------------------------------------------------


async def test_a_taken_port_gives_the_next_one_and_exactly_that_is_refused():
    taken = stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM)
    with taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            Sockets.open_exact("127.0.0.1", port)
        opened = Sockets.open("127.0.0.1", port)
        assert opened.local_address(SERVER)[1] != port
        assert opened.local_address(CLIENT)[1] not in (port, opened.local_address(SERVER)[1])
        for index in (SERVER, CLIENT):
            opened._sockets[index].close()


async def test_a_host_that_is_not_ours_is_refused():
    with pytest.raises(OSError, match="assign"):
        Sockets.open("192.0.2.1", 0)


# -- what arrives ----------------------------------------------------------------------------------


async def test_datagrams_go_where_their_first_bytes_say(autojump_clock):
    async with sim_network() as network, open_sockets(1, [network.host("1.1.1.1")]) as opened:
        (sockets,) = opened
        rpc, probes = [], []
        sockets.on_rpc = rpc.extend
        pool = sockets.open_pool_socket(probes.append)
        sender = network.host("2.2.2.2")("", 7)
        to_server, to_pool = sockets.local_address(SERVER), sockets.local_address(pool)
        for data in (b"\x03rpc", b"\x13rpc", b"\x03", b"\0", b"", b"\xff\x01", b"other"):
            sender.send(data, to_server)
        sender.send(b"\0", to_pool)
        await trio.sleep(1)
        assert [(data, socket) for data, _, socket in rpc] == [
            (b"\x03rpc", SERVER),
            (b"\x13rpc", SERVER),
        ]
        assert probes == [("2.2.2.2", 7)]
        statistics = sockets.statistics()
        assert (statistics.datagrams_received, statistics.datagrams_ignored) == (8, 5)


async def test_the_volume_is_told_whenever_as_much_as_was_asked_for_has_come(autojump_clock):
    async with sim_network() as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            asked = iter([10_000, 50_000, 10**9])
            told = []

            def on_volume(now):
                told.append(right.statistics().datagrams_received)
                return next(asked)

            right.on_volume = on_volume
            for _ in range(100):
                left.send(SERVER, right.local_address(SERVER), b"\xff" * 1000)
                await trio.sleep(1)
            # Each datagram counts for a little more than its length.
            assert told == [1, 9, 49]


async def test_a_stream_takes_its_packets_from_every_socket(autojump_clock):
    async with sim_network() as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            a, b = new_stream(left), new_stream(right)
            pool = left.open_pool_socket(lambda address: None)
            b.connect(SERVER, a.core.local_id, left.local_address(pool))
            a.connect(CLIENT, b.core.local_id, right.local_address(CLIENT))
            await a.send_all(b"to the client socket")
            await b.send_all(b"to the pool socket")
            assert await b.receive_some() == b"to the client socket"
            assert await a.receive_some() == b"to the pool socket"


# -- pool sockets ----------------------------------------------------------------------------------


async def test_a_pool_socket_given_back_at_once_does_no_harm():
    async with open_sockets() as (left, right):
        left.release(left.open_pool_socket(lambda address: None))
        await trio.testing.wait_all_tasks_blocked()
        await echoes(left, right)


async def test_a_pool_socket_given_back_as_it_becomes_readable_does_no_harm(autojump_clock):
    async with sim_network() as network:
        factories = [tight_factory(network, "1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            pool = left.open_pool_socket(lambda address: None)
            await trio.testing.wait_all_tasks_blocked()
            left._sockets[pool].deliver(b"\0", ("2.2.2.2", 7))
            left.release(pool)
            await echoes(left, right)


async def test_sockets_bound_again_while_they_are_read_go_on_with_one_reader_each():
    async with open_sockets() as (left, right):

        def bind_again(_batch):
            left.on_rpc = lambda batch: None
            left.suspend()
            left.resume()

        left.on_rpc = bind_again
        await trio.testing.wait_all_tasks_blocked()
        right.send(SERVER, left.local_address(SERVER), b"\x03rpc")
        with trio.fail_after(5):
            while left.on_rpc is bind_again:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
        await echoes(left, right)


async def test_a_pool_socket_opened_while_suspended_works_and_is_closed_when_given_back():
    async with open_sockets() as (left, right):
        left.suspend()
        probed = trio.Event()
        pool = left.open_pool_socket(lambda address: probed.set())
        left.resume()
        address = left.local_address(pool)
        right.send(SERVER, address, b"\0")
        with trio.fail_after(5):
            await probed.wait()
        left.release(pool)
        assert left.statistics().sockets == 2
        with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as other:
            other.bind(address)  # nobody holds it any more


async def test_a_pool_socket_outlives_its_last_user_by_a_while_only(autojump_clock):
    async with sim_network() as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            pool = left.open_pool_socket(lambda address: None)
            a, b = new_stream(left), new_stream(right)
            a.connect(pool, b.core.local_id, right.local_address(SERVER))
            b.connect(SERVER, a.core.local_id, left.local_address(pool))
            left.release(pool)
            await a.send_all(b"punched")
            assert await b.receive_some() == b"punched"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.aclose)
                nursery.start_soon(b.aclose)
            assert left.statistics().sockets == 3
            await trio.sleep(module.LINGER + 1)
            assert left.statistics().sockets == 2
            with pytest.raises(KeyError):
                left.local_address(pool)


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
async def test_pool_sockets_leave_no_descriptor_behind():
    opened = len(os.listdir("/proc/self/fd"))
    async with open_sockets() as (left, right):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(300):
            pool = left.open_pool_socket(lambda address: None)
            a, b = new_stream(left), new_stream(right)
            a.connect(pool, b.core.local_id, right.local_address(SERVER))
            b.connect(SERVER, a.core.local_id, left.local_address(pool))
            left.release(pool)
            a.destroy()
            b.destroy()
        await trio.testing.wait_all_tasks_blocked()
        assert len(os.listdir("/proc/self/fd")) <= before + module.MAX_LINGERING
    assert len(os.listdir("/proc/self/fd")) == opened


# -- a kernel without room -------------------------------------------------------------------------


async def test_what_the_kernel_has_no_room_for_goes_out_later(autojump_clock):
    async with sim_network() as network:
        factories = [tight_factory(network, "1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            server = left._sockets[SERVER]
            pairs = [stream_pair(left, right) for _ in range(5)]
            received = []

            async def read(stream):
                data = b""
                while len(data) < 200_000:
                    data += await stream.receive_some()
                received.append(data)

            async with trio.open_nursery() as nursery:
                for number, (a, b) in enumerate(pairs):
                    a.write_soon(bytes([number]) * 200_000)
                    nursery.start_soon(read, b)
                server.give_room(7)
                while len(received) < 5:
                    await trio.sleep(0.01)
                    server.give_room(40)
            assert sorted(received) == [bytes([number]) * 200_000 for number in range(5)]
            assert left.statistics().datagrams_dropped == 0


async def test_datagrams_go_out_as_soon_as_the_kernel_has_room(autojump_clock):
    async with sim_network(delay=0.001) as network:
        factories = [tight_factory(network, "1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            a, b = stream_pair(left, right)
            left._sockets[SERVER].give_room(0)
            a.write_soon(b"soon")
            await trio.sleep(0.1)
            left._sockets[SERVER].give_room(None)
            with trio.fail_after(0.002):
                assert await b.receive_some() == b"soon"


async def test_the_end_of_a_stream_goes_out_behind_what_the_kernel_has_no_room_for(autojump_clock):
    async with sim_network() as network:
        factories = [tight_factory(network, "1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            a, b = stream_pair(left, right)
            await a.send_all(b"hello")
            assert await b.receive_some() == b"hello"
            left._sockets[SERVER].give_room(0)
            a.write_soon(bytes(100_000))
            await trio.sleep(0.1)
            assert left._backlog
            a.destroy()
            await trio.sleep(0.1)
            left._sockets[SERVER].give_room(None)
            with trio.fail_after(1):
                await b.wait_finished()
            assert isinstance(b.error, StreamReset)


async def test_a_stream_destroyed_while_its_socket_has_no_room_does_no_harm(monkeypatch):
    monkeypatch.setattr(module, "MAX_LINGERING", 0)
    async with sim_network(delay=0.0) as network:
        factories = [tight_factory(network, "1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            pool = left.open_pool_socket(lambda address: None)
            a, b = new_stream(left), new_stream(right)
            a.connect(pool, b.core.local_id, right.local_address(SERVER))
            b.connect(SERVER, a.core.local_id, left.local_address(pool))
            left.release(pool)
            await trio.testing.wait_all_tasks_blocked()
            left._sockets[pool].give_room(0)
            a.write_soon(bytes(100_000))
            await trio.testing.wait_all_tasks_blocked()
            assert left._backlog
            a.destroy()
            await trio.testing.wait_all_tasks_blocked()
            assert not left._backlog
            await echoes(left, right)
            assert left.statistics().streams == 0


async def test_a_link_that_takes_nothing_loses_datagrams_and_the_stream_recovers(autojump_clock):
    async with sim_network() as network:
        factories = [tight_factory(network, "1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            a, b = stream_pair(left, right)
            left._sockets[SERVER].give_room(0)
            await a.send_all(b"patience")
            await trio.sleep(2.5)
            assert left.statistics().datagrams_dropped > 0
            left._sockets[SERVER].give_room(None)
            assert await b.receive_some() == b"patience"


# -- tables ----------------------------------------------------------------------------------------


async def test_closed_streams_leave_nothing_behind():
    async with open_sockets() as (left, right):

        async def one():
            a, b = stream_pair(left, right)
            await a.send_all(b"x")
            assert await b.receive_some() == b"x"
            async with trio.open_nursery() as closing:
                closing.start_soon(a.aclose)
                closing.start_soon(b.aclose)

        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(one)
        for sockets in (left, right):
            assert not sockets._streams
            assert not sockets._timer_at
            assert len(sockets._closed) <= 1000
            assert len(sockets._timers) <= module.MAX_STALE_TIMERS + 2 * 50
        with trio.fail_after(1):  # the rest goes out with the pump's next round
            while left._dirty or right._dirty:
                await trio.lowlevel.checkpoint()


async def test_the_timers_of_busy_streams_stay_bounded(autojump_clock):
    async with sim_network(delay=0.03, jitter=0.02, loss=0.01, seed=2) as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            pairs = [stream_pair(left, right) for _ in range(20)]
            most = 0
            for _ in range(500):
                for a, _ in pairs:
                    a.write_soon(b"x" * 100)
                await trio.sleep(0.007)
                most = max(most, len(left._timers))
                for _, b in pairs:
                    b.take()
            assert most <= module.MAX_STALE_TIMERS + 3 * len(pairs)
            print("largest heap of timers:", most)


async def test_a_timer_replaced_by_an_earlier_one_fires_once(autojump_clock):
    class Handler:
        socket = None

        def __init__(self):
            self.at = None
            self.fired = []

        def get_timer(self):
            return self.at

        def handle_timer(self, now):
            self.fired.append(now)
            self.at = None

        def datagrams_to_send(self, now):
            return []

        def destroy(self):
            pass

    async with sim_network() as network, open_sockets(1, [network.host("1.1.1.1")]) as opened:
        (sockets,) = opened
        handlers = {number: Handler() for number in range(3000)}
        for number, handler in handlers.items():
            sockets.add_stream(number, handler)
            for at in (50.0, 40.0, 30.0 + number / 1000):
                handler.at = at
                sockets.flush(number, trio.current_time())
        assert len(sockets._timers) <= module.MAX_STALE_TIMERS + 2 * len(handlers)
        sockets.remove_stream(7)
        await trio.sleep(100)
        assert handlers.pop(7).fired == []
        for number, handler in handlers.items():
            assert handler.fired == [pytest.approx(30.0 + number / 1000, abs=1e-6)]
        assert not sockets._timers
        for number in handlers:
            sockets.remove_stream(number)
