"""The proxy that other tests trust to impair real traffic."""

from __future__ import annotations

import random
import socket
from collections import Counter

import pytest
import trio

from tests.udp_proxy import LossyProxy, open_lossy_proxy

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
async def target():
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind(LOOPBACK)
        yield sock


@pytest.fixture
async def client():
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind(LOOPBACK)
        yield sock


async def send_numbers(sock, count, destination):
    for number in range(count):
        await sock.sendto(number.to_bytes(4, "big"), destination)


async def received_numbers(sock, count):
    with trio.fail_after(5):
        return [int.from_bytes(await sock.recv(100), "big") for _ in range(count)]


async def test_without_impairments_all_arrives_in_order_and_answers_come_back(target, client):
    async with open_lossy_proxy(target.getsockname()) as proxy:
        await send_numbers(client, 100, proxy.address)
        assert await received_numbers(target, 100) == list(range(100))

        await client.sendto(b"question", proxy.address)
        question, seen_as = await target.recvfrom(100)
        assert question == b"question"
        assert seen_as != client.getsockname()
        await target.sendto(b"answer", seen_as)
        assert await client.recvfrom(100) == (b"answer", proxy.address)


async def test_each_client_is_seen_under_its_own_address(target, client):
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        await other.bind(LOOPBACK)
        async with open_lossy_proxy(target.getsockname()) as proxy:
            seen = {}
            for sock, name in ((client, b"first"), (other, b"second"), (client, b"first")):
                await sock.sendto(name, proxy.address)
                data, address = await target.recvfrom(100)
                assert seen.setdefault(data, address) == address
            assert len(set(seen.values())) == 2
            await target.sendto(b"for the second", seen[b"second"])
            assert await other.recv(100) == b"for the second"


async def test_a_stranger_cannot_send_into_the_way_back(target, client):
    async with open_lossy_proxy(target.getsockname()) as proxy:
        await client.sendto(b"hello", proxy.address)
        _, upstream = await target.recvfrom(100)
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            await stranger.sendto(b"stray", upstream)
        await target.sendto(b"genuine", upstream)
        assert await client.recv(100) == b"genuine"


async def test_losses_have_the_asked_share_and_repeat_with_the_seed(target, client):
    async def survivors(seed):
        async with open_lossy_proxy(target.getsockname(), loss=0.3, seed=seed) as proxy:
            await send_numbers(client, 200, proxy.address)
            with trio.fail_after(5):
                while proxy.statistics.received < 200:
                    await trio.lowlevel.checkpoint()
            arrived = await received_numbers(target, proxy.statistics.forwarded)
        assert 40 <= proxy.statistics.dropped <= 80
        assert len(arrived) == 200 - proxy.statistics.dropped
        return arrived

    first = await survivors(1)
    assert await survivors(1) == first
    assert await survivors(2) != first


async def test_duplicates_arrive_twice(target, client):
    async with open_lossy_proxy(target.getsockname(), duplicate=0.5, seed=3) as proxy:
        await send_numbers(client, 100, proxy.address)
        with trio.fail_after(5):
            while proxy.statistics.received < 100:
                await trio.lowlevel.checkpoint()
        copies = Counter(await received_numbers(target, proxy.statistics.forwarded))
    assert set(copies) == set(range(100))
    assert Counter(copies.values())[2] == proxy.statistics.duplicated
    assert 30 <= proxy.statistics.duplicated <= 70


async def test_reordered_datagrams_all_arrive_within_the_bound(target, client):
    settings = {"reorder": 0.3, "max_delay": 0.05, "seed": 5}
    async with open_lossy_proxy(target.getsockname(), **settings) as proxy:
        begin = trio.current_time()
        await send_numbers(client, 200, proxy.address)
        numbers = await received_numbers(target, 200)
        elapsed = trio.current_time() - begin
    assert sorted(numbers) == list(range(200))
    assert numbers != list(range(200))
    assert 30 <= proxy.statistics.reordered <= 90
    assert elapsed < 1.0


async def test_a_fixed_delay_keeps_the_order(target, client):
    async with open_lossy_proxy(target.getsockname(), delay=0.03) as proxy:
        begin = trio.current_time()
        await send_numbers(client, 50, proxy.address)
        assert await received_numbers(target, 50) == list(range(50))
    assert trio.current_time() - begin >= 0.03


async def test_a_target_that_is_gone_does_not_end_the_proxy(target, client):
    address = target.getsockname()
    async with open_lossy_proxy(address) as proxy:
        target.close()
        await send_numbers(client, 10, proxy.address)
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            await again.bind(address)
            with trio.fail_after(5):
                while proxy.statistics.received < 10:
                    await trio.lowlevel.checkpoint()
            await client.sendto(b"still here", proxy.address)
            with trio.fail_after(5):
                while await again.recv(100) != b"still here":
                    pass


async def test_a_window_of_traffic_passes_without_loss_of_its_own(target, client):
    """20,000 datagrams of 1,200 bytes, 60 under way: as many as a default receive buffer holds."""
    count, window, payload = 20_000, 60, random.Random(1).randbytes(1200)
    async with open_lossy_proxy(target.getsockname()) as proxy:
        plain_client = client._sock
        plain_target = target._sock
        sent = received = 0
        with trio.fail_after(20):
            while received < count:
                while sent < count and sent - received < window:
                    plain_client.sendto(payload, proxy.address)
                    sent += 1
                await trio.lowlevel.wait_readable(plain_target)
                try:
                    while True:
                        plain_target.recv(2000)
                        received += 1
                except BlockingIOError:
                    pass
    assert proxy.statistics.received == proxy.statistics.forwarded == count
    assert proxy.statistics.refused == 0


async def test_the_sockets_are_closed_at_the_end(target):
    async with open_lossy_proxy(target.getsockname()) as proxy:
        address = proxy.address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(address)


def test_the_address_is_known_before_it_runs():
    proxy = LossyProxy(("127.0.0.1", 9))
    assert proxy.address[1] > 0
    proxy._listening.close()
