"""Relay streams between two sockets, on loopback and on a simulated network."""

from __future__ import annotations

import os
import random
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht import streamrelay
from hyperlog.dht.sockets import CLIENT, SERVER
from hyperlog.dht.streamrelay import Budget, relay_pair
from hyperlog.dht.udx.packet import DATA, DESTROY, HEADER_SIZE, Packet, encode
from tests.dht.peers import connection_pair, new_stream, open_sockets, sim_network

TOWARDS_LEFT, TOWARDS_RIGHT = 1001, 1002
PAYLOAD = random.Random(1).randbytes(300_000)


@asynccontextmanager
async def three_machines(**options):
    """A simulated network, and the sockets of a peer, the relay and another peer."""
    async with sim_network(**options) as network:
        factories = [network.host(host) for host in ("1.1.1.1", "9.9.9.9", "2.2.2.2")]
        async with open_sockets(3, factories) as (left, relay, right):
            yield network, left, relay, right


def join(left, relay, right):
    """Two connected streams, and the two of the relay between them."""
    a, b = new_stream(left), new_stream(right)
    ids = (a.core.local_id, b.core.local_id)
    middle = relay_pair(relay, (TOWARDS_LEFT, TOWARDS_RIGHT), ids)
    address = relay.local_address(SERVER)
    a.connect(SERVER, TOWARDS_LEFT, address)
    b.connect(SERVER, TOWARDS_RIGHT, address)
    for stream in (a, b):
        stream.send_message(b"")  # the relay learns addresses from first packets
    return a, b, middle


async def transfer(a, b, data):
    with trio.fail_after(60):
        await _transfer(a, b, data)


async def _transfer(a, b, data):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send_all, data)
        received = bytearray()
        while len(received) < len(data):
            received += await b.receive_some()
    assert received == data


@pytest.mark.parametrize("seed", range(3))
async def test_bytes_pass_in_both_directions_where_packets_get_lost(autojump_clock, seed):
    options = {"delay": 0.02, "jitter": 0.02, "loss": 0.03, "duplicate": 0.03, "seed": seed}
    async with three_machines(**options) as (_, left, relay, right):
        a, b, middle = join(left, relay, right)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer, a, b, PAYLOAD)
            nursery.start_soon(transfer, b, a, PAYLOAD[::-1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.aclose)
            nursery.start_soon(b.aclose)
        assert a.error is b.error is None
        assert all(stream.bytes > len(PAYLOAD) and not stream.dropped for stream in middle)


async def test_an_encrypted_connection_runs_through_a_relay_on_real_sockets():
    async with open_sockets(3) as (left, relay, right):
        a, b, _ = join(left, relay, right)
        ours, theirs = connection_pair(a, b)
        await ours.send(PAYLOAD)
        assert await theirs.receive() == PAYLOAD
        await theirs.send(b"back")
        assert await ours.receive() == b"back"


async def test_a_burst_leaves_the_relay_in_bursts():
    async with open_sockets(3) as (left, relay, right):
        a, b, _ = join(left, relay, right)
        calls = 0
        send_batch = relay._sockets[SERVER].send_batch

        def counted(datagrams, address):
            nonlocal calls
            calls += 1
            return send_batch(datagrams, address)

        relay._sockets[SERVER].send_batch = counted
        for _ in range(20):
            await transfer(a, b, PAYLOAD)
        packets = b.core.statistics().packets_in + a.core.statistics().packets_in
        assert calls < packets / 4


@settings(max_examples=25, deadline=None)
@given(
    datagrams=st.lists(
        st.builds(
            lambda flags, offset, rest: bytes([0xFF, 1, flags, offset]) + bytes(4) + rest,
            st.integers(0, 255).filter(lambda flags: not flags & DESTROY),
            st.integers(0, 255),
            st.binary(min_size=12, max_size=60),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_whatever_has_the_form_of_a_packet_passes_unchanged_but_for_its_id(datagrams):
    async def main():
        async with three_machines(delay=0.001) as (network, _, relay, _):
            relay_pair(relay, (TOWARDS_LEFT, TOWARDS_RIGHT), (7, 8))
            raw = network.host("3.3.3.3")("", 0)
            address = relay.local_address(SERVER)
            hello = encode(Packet(DATA, TOWARDS_RIGHT, 0, 0, 0))
            raw.send(hello, address)
            await trio.sleep(0.1)
            other = network.host("4.4.4.4")("", 0)
            for datagram in datagrams:
                packet = datagram[:4] + TOWARDS_LEFT.to_bytes(4, "little") + datagram[8:]
                other.send(packet, address)
            await trio.sleep(0.1)
            expected = [d[:4] + (8).to_bytes(4, "little") + d[8:] for d in datagrams]
            assert [bytes(data) for data, _ in raw.receive_batch()] == expected
            # And what came before the other peer was known has been kept for it.
            [(kept, _)] = other.receive_batch()
            assert kept[HEADER_SIZE:] == b""

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_packets_for_a_peer_that_has_not_come_are_kept_within_a_limit(autojump_clock):
    async with three_machines(delay=0.001) as (network, _, relay, _):
        early, _ = relay_pair(relay, (TOWARDS_LEFT, TOWARDS_RIGHT), (7, 8))
        raw = network.host("3.3.3.3")("", 0)
        address = relay.local_address(SERVER)
        size = 1000
        for number in range(100):
            raw.send(encode(Packet(DATA, TOWARDS_LEFT, 0, number, 0, payload=bytes(size))), address)
        await trio.sleep(0.1)
        late = network.host("4.4.4.4")("", 0)
        late.send(encode(Packet(DATA, TOWARDS_RIGHT, 0, 0, 0)), address)
        await trio.sleep(0.1)
        kept = len(late.receive_batch())
        assert 10 < kept <= streamrelay.MAX_EARLY // size
        assert early.dropped == 100 - kept


async def test_a_peer_is_followed_to_another_address_after_a_silence_only(autojump_clock):
    async with three_machines(delay=0.001) as (network, _, relay, _):
        towards_left, _ = relay_pair(relay, (TOWARDS_LEFT, TOWARDS_RIGHT), (7, 8))
        address = relay.local_address(SERVER)
        home, moved, right = (network.host(f"3.3.3.{n}")("", 0) for n in (1, 2, 3))
        packet = encode(Packet(DATA, TOWARDS_LEFT, 0, 0, 0))
        home.send(packet, address)
        right.send(encode(Packet(DATA, TOWARDS_RIGHT, 0, 0, 0)), address)
        await trio.sleep(0.1)
        moved.send(packet, address)
        await trio.sleep(0.1)
        assert towards_left.address == home.local_address
        assert len(right.receive_batch()) == 2  # handed on nevertheless, as from anywhere
        await trio.sleep(streamrelay.FOLLOW_AFTER)
        moved.send(packet, address)
        await trio.sleep(0.1)
        assert towards_left.address == moved.local_address


async def test_a_nat_that_changes_the_address_in_mid_connection_does_not_end_it(autojump_clock):
    async with three_machines(delay=0.02) as (_, left, relay, right):
        a, b, _ = join(left, relay, right)
        await transfer(a, b, PAYLOAD)
        # Another socket of the same machine stands for another mapping of its NAT.
        a.change_remote(CLIENT, TOWARDS_LEFT, relay.local_address(SERVER))
        with trio.fail_after(10):
            await transfer(a, b, PAYLOAD)
            await transfer(b, a, PAYLOAD)


async def test_a_destroy_passes_and_is_noticed(autojump_clock):
    async with three_machines() as (_, left, relay, right):
        a, b, (towards_left, towards_right) = join(left, relay, right)
        await transfer(a, b, b"hello")
        a.destroy()
        await b.wait_finished()
        assert b.error.code == "ECONNRESET"
        assert towards_left.destroyed_at is not None
        assert towards_right.destroyed_at is None


async def test_a_relay_that_forgets_its_streams_tells_nobody_and_keeps_nothing(autojump_clock):
    async with three_machines() as (_, left, relay, right):
        a, b, middle = join(left, relay, right)
        await transfer(a, b, b"hello")
        for stream in middle:
            stream.destroy()
            stream.destroy()
        await trio.sleep(1)
        assert relay.statistics().streams == 0
        assert not a.finished
        assert not b.finished


@pytest.mark.parametrize("rate", [100_000, 1_000_000])
async def test_a_budget_holds_a_transfer_to_its_rate_and_nothing_breaks(autojump_clock, rate):
    async with three_machines(delay=0.02) as (_, left, relay, right):
        a, b, middle = join(left, relay, right)
        budget = Budget(rate, trio.current_time())
        for stream in middle:
            stream.budgets = (budget,)
        started = trio.current_time()
        data = os.urandom(4 * rate)
        await transfer(a, b, data)
        seconds = trio.current_time() - started
        moved = sum(stream.bytes for stream in middle)
        assert moved <= rate * seconds + streamrelay.MIN_BURST + 2000
        assert len(data) / seconds > 0.75 * rate
        assert middle[0].dropped < middle[0].packets / 10


async def test_two_pairs_share_a_budget(autojump_clock):
    async with three_machines(delay=0.02) as (_, left, relay, right):
        budget = Budget(1_000_000, trio.current_time())
        done = []

        async def run(a, b):
            await transfer(a, b, PAYLOAD * 5)
            done.append(trio.current_time())

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(2):
                a, b = new_stream(left), new_stream(right)
                ids = (2000 + number, 3000 + number)
                for stream in relay_pair(relay, ids, (a.core.local_id, b.core.local_id)):
                    stream.budgets = (budget,)
                a.connect(SERVER, ids[0], relay.local_address(SERVER))
                b.connect(SERVER, ids[1], relay.local_address(SERVER))
                b.send_message(b"")
                nursery.start_soon(run, a, b)
        first, second = (at - started for at in done)
        assert second > 3.0
        assert first > second / 2


async def test_what_waits_for_a_budget_is_bounded_for_all_streams_together(autojump_clock):
    async with three_machines(delay=0.001) as (network, _, relay, _):
        budget = Budget(1000, trio.current_time())
        raw = network.host("3.3.3.3")("", 0)
        address = relay.local_address(SERVER)
        streams = []
        for number in range(10):
            ids = (2000 + number, 3000 + number)
            pair = relay_pair(relay, ids, (1, 2))
            for stream in pair:
                stream.budgets = (budget,)
            streams += pair
            raw.send(encode(Packet(DATA, ids[1], 0, 0, 0)), address)
            await trio.sleep(0.01)
        for number in range(10):
            for seq in range(40):
                packet = Packet(DATA, 2000 + number, 0, seq, 0, payload=bytes(1000))
                raw.send(encode(packet), address)
        await trio.sleep(0.01)
        waiting = sum(stream._queued for stream in streams)
        assert waiting == budget.queued
        # All that fits has come in, and the first burst has gone out.
        assert waiting <= streamrelay.MIN_QUEUE - streamrelay.MIN_BURST < waiting + 3000
        assert sum(stream.dropped for stream in streams) > 100
        for stream in streams:
            stream.destroy()
        assert budget.queued == 0


def test_a_budget_gives_what_has_come_in_and_no_more_than_its_depth():
    budget = Budget(1_000_000, 10.0)
    assert budget.available(10.0) == streamrelay.MIN_BURST
    budget.spend(streamrelay.MIN_BURST + 500_000)
    assert budget.available(10.0) == -500_000
    assert budget.wait() == pytest.approx(0.5, abs=1e-5)
    assert budget.available(10.5) == pytest.approx(0)
    assert budget.available(1000.0) == streamrelay.MIN_BURST
