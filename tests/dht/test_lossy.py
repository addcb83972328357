"""Whole DHT nodes and connections over a simulated network that loses, doubles and reorders.

The same over real sockets, and with JavaScript peers, is tests/interop/test_lossy.py.
"""

from __future__ import annotations

import hashlib
import random
import time

import pytest
import trio

from hyperlog.dht.connection import Connection
from hyperlog.dht.errors import HolepunchFailed, RemoteAborted
from hyperlog.dht.hyperdht import DHT
from tests.dht.peers import LONG, sim_dht

LOSSES = {"loss": 0.1, "duplicate": 0.02, "delay": 0.01, "jitter": 0.01}
SEEDS = range(1000) if LONG else range(100)
SMALL = 200_000  # bytes each way
LARGE = 20_000_000
LARGE_SEEDS = [1, 2]


async def send(connection: Connection, seed: int, size: int) -> str:
    rng = random.Random(seed)
    digest = hashlib.sha256()
    while size:
        message = rng.randbytes(min(size, rng.choice((1, 500, 5000, 50_000))))
        size -= len(message)
        digest.update(message)
        await connection.send(message)
    await connection.send_eof()
    return digest.hexdigest()


async def exchange(one: Connection, other: Connection, seed: int, size: int) -> None:
    """Both send at once; each end must get exactly what the other sent."""
    sent: dict[Connection, str] = {}
    received: dict[Connection, str] = {}

    async def write(connection, seed):
        sent[connection] = await send(connection, seed, size)

    async def read(connection):
        digest = hashlib.sha256()
        async for message in connection:
            digest.update(message)
        received[connection] = digest.hexdigest()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, one, seed)
        nursery.start_soon(write, other, ~seed)
        nursery.start_soon(read, one)
        nursery.start_soon(read, other)
    assert received == {one: sent[other], other: sent[one]}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.aclose)
        nursery.start_soon(other.aclose)


async def connect(client: DHT, key: bytes) -> tuple[Connection, int]:
    """A connection, and how many attempts failed before: samples of a NAT are not asked for again,
    so that lost ones may leave it unknown."""
    for failed in range(5):
        try:
            return await client.connect(key), failed
        except (HolepunchFailed, RemoteAborted):
            continue
    raise AssertionError("five attempts in vain")


async def run(seed: int, size: int) -> tuple[float, int, Connection]:
    """Virtual seconds that the exchange took, and failed attempts to connect."""
    options = [None, True, False]
    async with sim_dht(5, seed=seed, **LOSSES) as net:
        server = await net.add(firewalled=options[seed % 3])
        client = await net.add(firewalled=options[seed // 3 % 3])
        listener = await server.listen()
        await listener.wait_announced()
        connection, failed = await connect(client, listener.public_key)
        with trio.fail_after(60):
            accepted = await listener.accept()
            started = trio.current_time()
            await exchange(connection, accepted, seed, size)
        took = trio.current_time() - started
        assert connection._stream.error is None
        assert accepted._stream.error is None
        return took, failed, connection


async def test_every_seed_brings_the_same_bytes(autojump_clock):
    begin = time.perf_counter()
    took, failed = [], 0
    for seed in SEEDS:
        try:
            seconds, attempts, _ = await run(seed, SMALL)
        except BaseException as err:
            err.add_note(f"seed {seed}")
            raise
        took.append(seconds)
        failed += attempts
    assert failed < len(took) / 10
    took.sort()
    print(
        f"\n{len(took)} seeds, {SMALL} bytes each way: median {took[len(took) // 2]:.2f} s, "
        f"longest {took[-1]:.2f} s of virtual time; "
        f"{failed} attempts to connect failed; {time.perf_counter() - begin:.1f} s of real time"
    )


@pytest.mark.parametrize("seed", LARGE_SEEDS)
async def test_twenty_megabytes_each_way(seed, autojump_clock):
    begin = time.perf_counter()
    took, _, connection = await run(seed, LARGE)
    statistics = connection.statistics().stream
    print(
        f"\nseed {seed}: {2 * LARGE / took / 1e6:.1f} MB/s of virtual time, both ways together; "
        f"{time.perf_counter() - begin:.1f} s of real time; {statistics}"
    )
