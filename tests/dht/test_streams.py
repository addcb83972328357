"""UDXStream and Connection over loopback sockets and, in virtual time, over a simulated network."""

from __future__ import annotations

import os
import random
from functools import partial

import pytest
import trio
import trio.testing

from hyperlog.dht import connection, streams
from hyperlog.dht.errors import BadSignature, InvalidValue, LocalProtocolError, StreamTimeout
from hyperlog.dht.noise.secretstream import MAX_MESSAGE
from hyperlog.dht.paths import StreamPaths
from hyperlog.dht.relaying import RelayedPath
from hyperlog.dht.sockets import CLIENT, SERVER
from tests.dht.peers import (
    connection_pair,
    loopback_connections,
    new_stream,
    open_sockets,
    sim_connections,
    sim_network,
    stream_pair,
)

WINDOW = 4 * 1024 * 1024  # bytes, what a stream advertises at most


async def blocked(call, *args):
    """Fail unless the call is still waiting when nothing else can go on."""
    with trio.move_on_after(0.2) as scope:
        await call(*args)
    assert scope.cancelled_caught


async def send_all_the_time(connection):
    while True:
        await connection.send(b"x")
        await trio.sleep(0.01)


# -- UDXStream as a trio stream --------------------------------------------------------------------


CHECKS = [
    pytest.param(trio.testing.check_two_way_stream, id="two-way"),
    pytest.param(trio.testing.check_half_closeable_stream, id="half-closeable"),
]


@pytest.mark.parametrize("check", CHECKS)
async def test_stream_keeps_trios_contract_on_loopback(check, monkeypatch):
    # The check writes all the time to an end that closes: 2 s of it are a lot of packets.
    monkeypatch.setattr(streams, "LINGER", 0.2)
    async with open_sockets() as (left, right):

        async def make():
            return stream_pair(left, right)

        await check(make, None)
        assert left.statistics().streams == right.statistics().streams == 0


@pytest.mark.parametrize("check", CHECKS)
async def test_stream_keeps_trios_contract_where_packets_get_lost(
    check, autojump_clock, monkeypatch
):
    monkeypatch.setattr(streams, "LINGER", 0.2)
    async with sim_network(delay=0.02, jitter=0.01, loss=0.02, duplicate=0.02, seed=5) as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):

            async def make():
                return stream_pair(left, right)

            await check(make, None)


async def test_a_clogged_stream_keeps_trios_contract(autojump_clock, monkeypatch):
    monkeypatch.setattr(streams, "LINGER", 0.2)
    monkeypatch.setattr(streams, "HIGH_WATER", 20_000)
    async with sim_network(delay=0.001) as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):

            async def make():
                return stream_pair(left, right, receive_window=50_000)

            async def make_clogged():
                pair = await make()
                for stream in pair:
                    stream.write_soon(bytes(100_000))
                await trio.sleep(2)
                return pair

            await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_many_small_writes_share_datagrams():
    async with open_sockets() as (left, right):
        a, b = stream_pair(left, right)
        for number in range(1000):
            a.write_soon(b"%09d\n" % number)
        received = b""
        while len(received) < 10_000:
            received += await b.receive_some()
        assert received == b"".join(b"%09d\n" % number for number in range(1000))
        assert a.core.statistics().packets_out < 20


async def test_aclose_gives_up_a_peer_that_never_closes(autojump_clock):
    async with sim_connections() as (_, a, b):
        await a.send(b"last words")
        started = trio.current_time()
        await a.aclose()
        assert trio.current_time() - started == pytest.approx(streams.LINGER, abs=0.1)
        assert await b.receive() == b"last words"


async def test_aclose_reads_away_what_keeps_the_peer_from_ending(autojump_clock):
    async with sim_connections() as (_, a, b):
        with trio.move_on_after(3):
            while True:  # until the window of `a` is shut
                await b.send(bytes(65536))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.aclose)
            started = trio.current_time()
            await a.aclose()
        assert trio.current_time() - started < 1
        assert a.statistics().stream.packets_out


async def test_aclose_that_is_cancelled_resets(autojump_clock):
    async with sim_connections() as (_, a, b):
        for number in range(20):
            await a.send(bytes([number]) * 10_000)
        with trio.CancelScope() as scope:
            scope.cancel()
            await a.aclose()
        assert a.closed
        received = 0
        with pytest.raises(trio.BrokenResourceError):  # not an end: most of it is missing
            received = len([message async for message in b])
        assert received == 0


async def test_a_destroy_before_the_connect_only_ends_that_stream():
    async with open_sockets() as (left, right):
        a, b = new_stream(left), new_stream(right)
        told = []
        b.on_packet = lambda socket, address: told.append(address)
        a.connect(SERVER, b.core.local_id, right.local_address(SERVER))
        a.destroy()
        await b.wait_finished()
        assert told == []
        assert b.error is not None
        c, d = stream_pair(left, right)
        await c.send_all(b"the others live on")
        assert await d.receive_some() == b"the others live on"


# -- UDXStream: change of remote -------------------------------------------------------------------


async def test_a_stream_moves_to_another_socket_and_gives_the_old_one_back(autojump_clock):
    async with sim_network(delay=0.05) as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            a, b = new_stream(left), new_stream(right)
            old, new = (left.open_pool_socket(lambda _: None) for _ in range(2))
            a.connect(old, b.core.local_id, right.local_address(SERVER))
            b.connect(SERVER, a.core.local_id, left.local_address(old))
            left.release(old)
            sources = []
            b.on_packet = lambda _, address: sources.append(address)
            told = []
            a.on_remote_changed = lambda: told.append(trio.current_time())
            await a.send_all(b"before")
            await trio.sleep(0.01)
            a.change_remote(new, b.core.local_id, right.local_address(SERVER))
            left.release(new)
            changed_at = trio.current_time()
            assert a.remote_is_changing
            await a.send_all(b"after")
            received = b""
            while len(received) < len(b"beforeafter"):
                received += await b.receive_some()
            assert received == b"beforeafter"
            assert sources == [("1.1.1.1", left.local_address(s)[1]) for s in (old, new)]
            await trio.sleep(0.2)
            assert not a.remote_is_changing
            assert [at - changed_at for at in told] == [pytest.approx(0.09, abs=0.01)]
            await trio.sleep(5)
            with pytest.raises(KeyError):
                left.local_address(old)  # it was ours alone
            a.destroy()
            await trio.sleep(5)
            assert left.statistics().sockets == 2


async def test_a_stream_that_moves_with_nothing_in_flight_says_so_before_it_returns():
    async with open_sockets() as (left, right):
        a, b = stream_pair(left, right)
        told = []
        a.on_remote_changed = lambda: told.append(True)
        a.change_remote(CLIENT, b.core.local_id, right.local_address(CLIENT))
        assert told == [True]
        await a.send_all(b"elsewhere")
        assert await b.receive_some() == b"elsewhere"


async def test_a_stream_without_remote_or_life_has_none_to_change():
    async with open_sockets() as (left, right):
        a = new_stream(left)
        with pytest.raises(LocalProtocolError):
            a.change_remote(CLIENT, 9, right.local_address(SERVER))
        a.connect(SERVER, 9, right.local_address(SERVER))
        a.destroy()
        with pytest.raises(LocalProtocolError):
            a.change_remote(CLIENT, 9, right.local_address(SERVER))
        assert left.statistics().streams == 0


@pytest.mark.parametrize("orderly", [True, False])
async def test_a_stream_may_end_in_the_very_moment_in_which_its_move_is_over(
    orderly, autojump_clock
):
    async with sim_network(delay=0.01) as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            a, b = new_stream(left), new_stream(right)
            paths = StreamPaths(a)
            paths.expect(b.core.local_id, through_node=False)
            relay = RelayedPath(SERVER, right.local_address(SERVER), b.core.local_id)
            paths.take_relayed(relay)
            b.connect(SERVER, a.core.local_id, left.local_address(SERVER))
            if orderly:
                b.end_soon()
                assert await a.receive_some() == b""
                a.end_soon()
            else:
                a.write_soon(b"x")
            await trio.sleep(0.001)  # it is in flight on the old path
            paths.take(CLIENT, right.local_address(CLIENT))
            assert a.remote_is_changing
            if not orderly:
                assert await b.receive_some() == b"x"
                b.destroy()  # comes in one batch with the acknowledgement
            await a.wait_finished()
            assert (a.error is None) == orderly
            await trio.sleep(5)
            assert left.statistics().streams == right.statistics().streams == 0


async def test_a_connect_that_comes_too_late_holds_no_socket():
    async with open_sockets() as (left, right):
        a = new_stream(left)
        socket = left.open_pool_socket(lambda _: None)
        a.destroy()
        with pytest.raises(LocalProtocolError):
            a.connect(socket, 9, right.local_address(SERVER))
        left.release(socket)
        assert left.statistics().sockets == 2


async def test_streams_that_move_to_and_fro_on_real_sockets_lose_nothing():
    data = random.Random(8).randbytes(3_000_000)
    async with open_sockets() as (left, right):
        a, b = stream_pair(left, right)

        async def move(stream, other, sockets):
            for number in range(40):
                socket = (CLIENT, SERVER)[number % 2]
                stream.change_remote(socket, other.core.local_id, sockets.local_address(socket))
                await trio.sleep(0.002)

        async def read(stream):
            received = bytearray()
            while len(received) < len(data):
                received += await stream.receive_some()
            assert received == data

        async with trio.open_nursery() as nursery:
            for stream, other, sockets in ((a, b, right), (b, a, left)):
                nursery.start_soon(move, stream, other, sockets)
                nursery.start_soon(stream.send_all, data)
                nursery.start_soon(read, stream)


# -- Connection: messages --------------------------------------------------------------------------


async def test_messages_keep_their_boundaries_in_both_directions():
    rng = random.Random(3)
    messages = [rng.randbytes(rng.choice((1, 7, 1000, 1200, 5000, 70_000))) for _ in range(300)]
    async with loopback_connections() as (a, b):

        async def send_all(connection):
            for message in messages:
                await connection.send(message)
            await connection.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, a)
            nursery.start_soon(send_all, b)
            assert [message async for message in b] == messages
            assert [message async for message in a] == messages
        await a.aclose()
        await b.aclose()
        assert (a.statistics().messages_sent, b.statistics().messages_received) == (300, 300)


async def test_send_many_arrives_like_single_sends():
    async with loopback_connections() as (a, b):
        await a.send_many([b"%d" % number for number in range(500)])
        received = []
        while len(received) < 500:
            received += await b.receive_many()
        assert received == [b"%d" % number for number in range(500)]


async def test_an_empty_message_is_a_keep_alive_and_is_not_received():
    async with loopback_connections() as (a, b):
        await a.send_many([b"", b"x", b""])
        assert await b.receive_many() == [b"x"]
        assert b.authenticated
        await a.send(b"")
        await blocked(b.receive)


async def test_the_longest_message_passes_and_a_longer_one_is_refused():
    message = os.urandom(1024) * 1024 * 16
    async with loopback_connections() as (a, b):
        with pytest.raises(LocalProtocolError):
            await a.send(bytes(MAX_MESSAGE + 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, message[:MAX_MESSAGE])
            received = await b.receive()
        assert received == message[:MAX_MESSAGE]
        await a.send(b"and on")
        assert await b.receive() == b"and on"


async def test_a_message_over_the_receivers_limit_breaks_the_connection_at_both_ends():
    async with loopback_connections(max_message=1000) as (a, b):
        with pytest.raises(LocalProtocolError):
            await a.send(bytes(1001))
        a._secret._max_message = MAX_MESSAGE
        await a.send_many([b"fine", bytes(1001)])
        assert await b.receive() == b"fine"
        with pytest.raises(trio.BrokenResourceError) as caught:
            await b.receive()
        assert isinstance(caught.value.__cause__, InvalidValue)
        with pytest.raises(trio.BrokenResourceError):
            await b.send(b"too late")
        with pytest.raises(trio.BrokenResourceError):
            await a.receive()


async def test_forged_bytes_break_that_connection_only():
    async with open_sockets() as (left, right):
        a, b = connection_pair(*stream_pair(left, right))
        c, d = connection_pair(*stream_pair(left, right))
        await a.send(b"honest")
        assert await b.receive() == b"honest"
        a._stream.write_soon(b"\x14\0\0" + bytes(20))
        with pytest.raises(trio.BrokenResourceError) as caught:
            await b.receive()
        assert isinstance(caught.value.__cause__, BadSignature)
        with pytest.raises(trio.BrokenResourceError):
            await a.receive()
        await c.send(b"unharmed")
        assert await d.receive() == b"unharmed"


async def test_the_fault_behind_good_messages_is_told_without_waiting_for_more_bytes():
    async with loopback_connections() as (a, b):
        a._stream.write_soon(a._secret.seal(b"good") + b"\x14\0\0" + bytes(20))
        assert await b.receive_many() == [b"good"]
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await b.receive()
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await a.receive()


# -- Connection: ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["initiator", "responder"])
async def test_half_close_lets_the_other_direction_go_on(first):
    async with loopback_connections() as pair:
        a, b = pair if first == "initiator" else reversed(pair)
        await a.send(b"question")
        await a.send_eof()
        assert [message async for message in b] == [b"question"]
        with pytest.raises(trio.ClosedResourceError):
            await a.send(b"no more")
        for number in range(10):
            await b.send(b"%d" % number)
        await b.send_eof()
        assert [message async for message in a] == [b"%d" % number for number in range(10)]
        await a.aclose()
        await b.aclose()


async def test_eof_is_told_again_and_again():
    async with loopback_connections() as (a, b):
        await a.send_eof()
        for _ in range(2):
            with pytest.raises(trio.EndOfChannel):
                await b.receive()


async def test_an_end_inside_a_message_is_broken_and_not_an_end():
    async with loopback_connections() as (a, b):
        a._stream.write_soon(a._secret.seal(bytes(100))[:50])
        await a.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await b.receive()


async def test_abort_breaks_the_peer():
    async with loopback_connections() as (a, b):
        await b.opened()
        a.abort()
        for call in (b.receive, partial(b.send, b"x"), b.receive_unordered):
            with pytest.raises(trio.BrokenResourceError):
                await call()
        for call in (a.receive, partial(a.send, b"x"), a.receive_unordered):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        a.abort()
        await a.aclose()
        await b.aclose()


async def test_an_abort_with_a_reason_is_no_end_of_what_the_peer_sent(autojump_clock):
    async with sim_connections() as (_, a, b):
        await b.send(b"1")
        assert await a.receive() == b"1"
        await b.send_many([b"2", b"3"])
        await b.send_eof()
        await trio.sleep(1)  # all of it is here and nothing of it was read
        a.abort(StreamTimeout("for a test"))
        with pytest.raises(trio.BrokenResourceError) as caught:
            await a.receive()
        assert isinstance(caught.value.__cause__, StreamTimeout)


async def test_an_abort_behind_the_end_does_not_hide_the_messages_that_it_throws_away(
    autojump_clock,
):
    async with sim_connections() as (_, a, b):
        await b.send_many([b"1", b"2"])
        await b.send_eof()
        await trio.sleep(1)
        assert await a.receive() == b"1"
        await a.send_eof()
        await trio.sleep(1)
        assert a.closed
        a.abort(StreamTimeout("for a test"))
        with pytest.raises(trio.BrokenResourceError) as caught:
            await a.receive()
        assert isinstance(caught.value.__cause__, StreamTimeout)


@pytest.mark.parametrize("reason", [None, StreamTimeout("for a test")])
async def test_an_abort_between_two_messages_ends_their_reader_in_order(reason, autojump_clock):
    expected = trio.BrokenResourceError if reason else trio.ClosedResourceError

    async def expect_the_end(connection):
        with pytest.raises(expected):
            await connection.receive()

    async with sim_connections() as (_, a, b), trio.open_nursery() as nursery:

        async def abort_both():
            a.abort(reason)
            b.abort(reason)

        for sender, receiver in ((a, b), (b, a)):
            await sender.send_many([b"1", b"2", b"3"])
            assert await receiver.receive() == b"1"
        # Tasks run forwards or backwards: one of the readers has begun when the abort comes.
        nursery.start_soon(expect_the_end, a)
        nursery.start_soon(abort_both)
        nursery.start_soon(expect_the_end, b)


async def test_closing_wakes_every_waiting_task(autojump_clock):
    async with sim_connections() as (_network, a, _), trio.open_nursery() as nursery:

        async def expect(call):
            with pytest.raises(trio.ClosedResourceError):
                await call()

        nursery.start_soon(expect, a.receive)
        nursery.start_soon(expect, a.receive_unordered)
        await trio.testing.wait_all_tasks_blocked()
        await a.aclose()


async def test_nothing_is_received_after_aclose(autojump_clock):
    async with sim_connections() as (_, a, b):
        await a.send_many([b"1", b"2"])
        assert await b.receive() == b"1"
        await b.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await b.receive()


async def test_a_waiting_task_hears_of_the_node_that_closes():
    async with trio.open_nursery() as outer:
        ended = trio.Event()

        async def wait(connection, error):
            with pytest.raises(error):
                await connection.receive()
            with pytest.raises(error):
                await connection.receive_unordered()
            ended.set()

        async with open_sockets(1) as (right,):
            async with open_sockets(1) as (left,):
                a, b = connection_pair(*stream_pair(left, right))
                await b.opened()
                outer.start_soon(wait, a, trio.ClosedResourceError)
                outer.start_soon(wait, b, trio.BrokenResourceError)
                await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(1):  # its last packets tell the peer
                await b._stream.wait_finished()
        await ended.wait()


# -- Connection: waiting ---------------------------------------------------------------------------


async def test_every_await_can_be_cancelled_and_the_connection_goes_on(autojump_clock):
    async with sim_connections() as (_, a, b):
        for call in (b.receive, b.receive_many, b.receive_unordered):
            with trio.move_on_after(0.5) as scope:
                await call()
            assert scope.cancelled_caught
        await b.send(b"held up")
        with trio.move_on_after(0.001) as scope:
            await b.wait_acknowledged()
        assert scope.cancelled_caught
        sent = 0
        for _ in range(3):
            with trio.move_on_after(2) as scope:
                while True:
                    await a.send(sent.to_bytes(4, "big") * 4096)
                    sent += 1
            assert scope.cancelled_caught
        with trio.move_on_after(0.5) as scope:
            await a.wait_writable()
        assert scope.cancelled_caught
        for number in range(sent):
            assert await b.receive() == number.to_bytes(4, "big") * 4096
        await blocked(b.receive)
        assert await a.receive() == b"held up"


async def test_cancelled_calls_still_are_checkpoints_and_take_nothing():
    async with loopback_connections() as (a, b):
        await a.send_many([b"1", b"2"])
        assert await b.receive() == b"1"
        with trio.CancelScope() as scope:
            scope.cancel()
            await b.receive()
        with trio.CancelScope() as scope:
            scope.cancel()
            await a.send(b"not sent")
        assert await b.receive() == b"2"
        await a.send(b"3")
        assert await b.receive() == b"3"


async def test_a_second_task_at_the_same_end_is_busy():
    async with loopback_connections() as (a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await a.receive()
            nursery.cancel_scope.cancel()
        with trio.move_on_after(1):
            while True:
                await a.send(bytes(100_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, b"x")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await a.send(b"y")
            nursery.cancel_scope.cancel()
        b.abort()


async def test_a_reader_that_stops_holds_the_sender_within_the_window(autojump_clock):
    message = bytes(50_000)
    async with sim_connections({"delay": 0.005}) as (_, a, b):
        sent = 0
        with trio.move_on_after(20):
            while True:
                await a.send(message)
                sent += 1
        assert sent * 50_000 < WINDOW + streams.HIGH_WATER + 3 * 50_020
        assert b._stream.core.readable_bytes <= WINDOW + 64 * 1024
        assert a._stream.core.write_buffer_bytes <= streams.HIGH_WATER + 2 * 50_020
        started = trio.current_time()
        for _ in range(sent):
            assert await b.receive() == message
        assert trio.current_time() - started < 2
        await a.send(b"further")
        assert await b.receive() == b"further"


# -- Connection: acknowledgements ------------------------------------------------------------------


async def test_wait_acknowledged_returns_when_the_peer_has_everything(autojump_clock):
    async with sim_connections({"delay": 0.1}) as (_, a, b):
        await a.send(bytes(1000))
        started = trio.current_time()
        assert a.bytes_acknowledged < a.bytes_written
        await a.wait_acknowledged()
        assert trio.current_time() - started == pytest.approx(0.2, abs=0.05)
        assert a.bytes_acknowledged == a.bytes_written
        assert b._stream.core.readable_bytes > 1000


async def test_what_arrived_beyond_a_gap_is_not_taken_for_the_gap(autojump_clock):
    async with sim_connections({"delay": 0.05}) as (network, a, b):
        await b.opened()
        await trio.sleep(1)
        network.loss = 1.0
        await a.send(b"lost once")
        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        network.loss = 0.0
        async with trio.open_nursery() as nursery:

            async def confirm():
                await a.wait_acknowledged()
                assert b._stream.core.readable_bytes > 10_000

            nursery.start_soon(confirm)
            await trio.testing.wait_all_tasks_blocked()
            await a.send(bytes(10_000))  # arrives and is SACKed
        assert await b.receive() == b"lost once"


async def test_a_reset_confirms_nothing():
    async with loopback_connections() as (a, b):
        await a.send(b"arrived")
        await a.wait_acknowledged()
        confirmed = a.bytes_acknowledged
        await a.send(bytes(10_000))  # still queued when the reset comes
        a._stream.receive(
            b"\xff\x01\x08\0" + a._stream.core.local_id.to_bytes(4, "little") + bytes(12),
            ("127.0.0.1", 1),
            SERVER,
            trio.current_time(),
        )
        b.abort()
        await a._stream.wait_finished()
        assert a.bytes_acknowledged == confirmed
        with pytest.raises(trio.BrokenResourceError):
            await a.wait_acknowledged()


async def test_an_abort_of_our_own_confirms_nothing(autojump_clock):
    async with sim_connections({"delay": 0.1}) as (_, a, _b):
        await a.send(bytes(10_000))
        a.abort()
        assert a.bytes_acknowledged < a.bytes_written
        with pytest.raises(trio.ClosedResourceError):
            await a.wait_acknowledged()


async def test_an_orderly_end_confirms_everything():
    async with loopback_connections() as (a, b):
        await a.send(bytes(100_000))
        await a.send_eof()
        await b.send_eof()
        assert [len(message) async for message in b] == [100_000]
        with pytest.raises(trio.EndOfChannel):
            await a.receive()
        await a.aclose()
        assert a.bytes_acknowledged == a.bytes_written


# -- Connection: unordered messages ----------------------------------------------------------------


async def test_unordered_messages_arrive_beside_the_stream():
    async with loopback_connections() as (a, b):
        a.send_unordered(b"early")
        await a.send(b"stream")
        a.send_unordered(b"late")
        assert {await b.receive_unordered(), await b.receive_unordered()} == {b"early", b"late"}
        assert await b.receive() == b"stream"
        with pytest.raises(LocalProtocolError):
            a.send_unordered(bytes(1200))


async def test_of_too_many_unread_unordered_messages_the_newest_are_kept():
    async with loopback_connections() as (a, b):
        for number in range(10):
            for index in range(100):
                a.send_unordered(b"%d" % (number * 100 + index))
            await a.send(b"sync")
            assert await b.receive() == b"sync"
        kept = [await b.receive_unordered() for _ in range(connection.MAX_UNORDERED)]
        assert kept == [b"%d" % number for number in range(744, 1000)]
        await blocked(b.receive_unordered)


async def test_unordered_messages_are_not_kept_for_an_end_that_is_closed(autojump_clock):
    async with sim_connections() as (_, a, b), trio.open_nursery() as nursery:
        await b.opened()
        a.send_unordered(b"unread")
        await trio.sleep(1)
        assert b.held_bytes == len(b"unread")
        nursery.start_soon(b.aclose)  # waits for an end of `a`
        await trio.sleep(0.5)
        a.send_unordered(b"too late")
        await trio.sleep(0.5)
        assert not b.closed
        assert b.held_bytes == 0


async def test_a_forged_unordered_message_is_dropped():
    async with loopback_connections() as (a, b):
        a._stream.send_message(bytes(100))
        a.send_unordered(b"genuine")
        assert await b.receive_unordered() == b"genuine"


# -- Connection: signs of life ---------------------------------------------------------------------


async def test_an_idle_connection_sends_one_frame_every_five_seconds(autojump_clock):
    async with sim_connections() as (network, a, b):
        await trio.sleep(1)
        before = network.statistics.sent
        written = a.bytes_written
        await trio.sleep(60)
        assert a.bytes_written - written == 12 * 20
        assert network.statistics.sent - before <= 2 * 12 * 2  # frames and acknowledgements
        await a.send(b"alive")
        assert await b.receive() == b"alive"


async def test_keep_alives_do_not_pile_up_behind_a_window_that_stays_shut(autojump_clock):
    async with sim_connections() as (_, a, b):
        with trio.move_on_after(3):
            while True:
                await a.send(bytes(65536))
        unsent = a.stream.core.unsent_bytes
        assert unsent > 0
        await trio.sleep(600)
        assert a.stream.core.unsent_bytes == unsent
        with trio.move_on_after(3):
            while True:
                await b.receive()
        assert a.stream.core.unsent_bytes == 0
        written = a.bytes_written
        await trio.sleep(60)
        assert (a.bytes_written - written) // 20 in (11, 12)


async def test_a_connection_outlives_an_hour_of_silence(autojump_clock):
    async with sim_connections() as (_, a, b):
        await trio.sleep(3600)
        await a.send(b"still here")
        assert await b.receive() == b"still here"


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "sending"])
async def test_liveness_notices_a_dead_peer_within_its_limit(busy, autojump_clock):
    async with sim_connections() as (network, a, _):
        a.set_liveness(2.0, 5.0)
        await trio.sleep(7)
        network.loss = 1.0
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def chatter():
                with pytest.raises(trio.BrokenResourceError):
                    await send_all_the_time(a)

            if busy:
                nursery.start_soon(chatter)
            with pytest.raises(trio.BrokenResourceError) as caught:
                await a.receive()
        assert isinstance(caught.value.__cause__, StreamTimeout)
        assert 2.9 < trio.current_time() - started < 5.1


async def test_without_liveness_a_dead_peer_is_noticed_within_twenty_seconds(autojump_clock):
    async with sim_connections() as (network, a, _):
        await trio.sleep(7)
        network.loss = 1.0
        started = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await a.receive()
        assert trio.current_time() - started < 20


async def test_a_peer_may_be_given_up_in_the_moment_of_a_keep_alive(autojump_clock):
    async with sim_connections() as (network, a, b):
        await a.send(b"x")
        assert await b.receive() == b"x"
        network.cut("2.2.2.2")
        await a.send(b"y")
        await trio.sleep(12.5)
        autojump_clock.jump(5)  # the last timeout and the keep-alive are both due by now
        with pytest.raises(trio.BrokenResourceError) as caught:
            await a.receive()
        assert isinstance(caught.value.__cause__, StreamTimeout)


@pytest.mark.parametrize("pause", [1.0, 3.6, 4.3, 5.5, 60.0])
async def test_liveness_does_not_blame_the_peer_for_our_own_pause(pause):
    """A stopped process is a clock that jumps while its packets wait in the socket."""
    async with loopback_connections() as (a, b):
        a.set_liveness(2.0, 5.0)
        await b.opened()
        await a.wait_acknowledged()
        stream = a._stream
        now = trio.current_time()
        # As the timer task sees it after the pause, before any packet was read.
        check_at = stream._silence_check_at
        resumed = check_at - 0.1 + pause
        if resumed > check_at:
            stream._check_silence(resumed, 5.0)
        assert not a.closed
        assert stream._silence_check_at > resumed or resumed <= check_at
        # Only time in which we were awake counts.
        assert resumed - stream._silent_since < 3
        assert now <= resumed


# -- many of them ----------------------------------------------------------------------------------


async def test_two_hundred_connections_at_once():
    async with open_sockets() as (left, right):
        pairs = [connection_pair(*stream_pair(left, right)) for _ in range(200)]

        async def talk(number, a, b):
            await a.send(b"%d" % number)
            assert await b.receive() == b"%d" % number
            await b.send(bytes(10_000))
            assert len(await a.receive()) == 10_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.aclose)
                nursery.start_soon(b.aclose)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number, (a, b) in enumerate(pairs):
                    nursery.start_soon(talk, number, a, b)
        assert left.statistics().streams == right.statistics().streams == 0


async def test_aclose_takes_its_time_while_the_peer_confirms_more(autojump_clock):
    async with sim_network(delay=0.3, jitter=0.05, loss=0.02, seed=3) as network:
        factories = [network.host("1.1.1.1"), network.host("2.2.2.2")]
        async with open_sockets(2, factories) as (left, right):
            a, b = stream_pair(left, right)
            started = trio.current_time()
            received = 0

            async def read():
                nonlocal received
                while chunk := await b.receive_some():
                    received += len(chunk)
                await b.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                a.write_soon(bytes(4_000_000))
                await a.aclose()
            assert received == 4_000_000
            assert a.error is None
            assert trio.current_time() - started > streams.LINGER
