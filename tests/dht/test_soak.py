"""A private network that is used for a long time gives everything back: files, tasks, memory.

Real time and real sockets: 50 nodes, servers and clients that are open and that punch holes, nodes
that come and go. After each spell of work the network comes to rest, and then has to hold just what
it held before. With HYPERLOG_LONG=1 it works for 30 minutes.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import trio

from hyperlog.dht.errors import DHTError
from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.listener import Listener
from hyperlog.dht.opening import open_dht
from hyperlog.dht.rpc import table
from hyperlog.dht.rpc.messages import ADDRESS_CACHE, node_id, pack_address, unpack_address
from hyperlog.dht.testing import Testnet, testnet
from tests.dht.peers import LONG

NODES = 50
SERVERS = 6  # every other one behind a firewall, as far as it knows
CLIENTS = 4
SPELLS, SPELL = (10, 175.0) if LONG else (1, 8.0)  # and seconds each
REST = 60.0  # s after which something that has not been given back counts as lost
WARM = 4  # spells, after which most caches are full and memory may hardly grow any more
FILES = "/proc/self/fd"
JOBS = ("look_up", "announce", "connect", "come_and_go")


@dataclass
class Held:
    """What the process holds."""

    files: int
    tasks: int
    blocks: int = 0
    """pieces of memory that Python has given out: what is held, in whatever kind of object"""
    memory: int = 0
    """bytes, resident"""

    def is_within(self, other: Held) -> bool:
        return self.files <= other.files and self.tasks <= other.tasks

    def weigh(self) -> Held:
        """Add blocks and memory; takes a moment."""
        gc.collect()
        self.blocks = sys.getallocatedblocks()
        with open("/proc/self/statm") as statm:
            self.memory = int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        return self

    def __str__(self) -> str:
        return (
            f"{self.files} files, {self.tasks} tasks, {self.blocks} blocks, "
            f"{self.memory / 2**20:.1f} MB"
        )


def fill_address_caches() -> None:
    """The process keeps the addresses that it met of late: it takes hours to meet so many.

    Each cache gets keys of its own, made like those of datagrams: if they shared them, or had ports
    that Python keeps ready, the addresses met later would take twice as much memory in their place.
    """
    for number in range(ADDRESS_CACHE):
        high, low = divmod(number, 256)
        pack_address((f"10.0.{high}.{low}", 1024 + number))
        node_id((f"10.0.{high}.{low}", 1024 + number))
        unpack_address(bytes((10, 0, high, low, 0, 4)))


def held() -> Held:
    return Held(len(os.listdir(FILES)), trio.lowlevel.current_statistics().tasks_living)


async def held_at_rest() -> Held:
    """The fewest of a while: pings of the announcers come and go."""
    seen = []
    for _ in range(40):
        seen.append(held())
        await trio.sleep(0.05)
    return Held(min(state.files for state in seen), min(state.tasks for state in seen)).weigh()


class Soak:
    """The network under work."""

    def __init__(self, net: Testnet) -> None:
        self.net = net
        self.rng = random.Random(9)
        self.counts: Counter[str] = Counter()
        self.listeners: list[Listener] = []
        self.clients: list[DHT] = []

    async def open_peers(self, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
        for number in range(SERVERS + CLIENTS):
            dht = await stack.enter_async_context(
                open_dht(
                    bootstrap=self.net.bootstrap,
                    host="127.0.0.1",
                    firewalled=True if number % 2 else None,
                )
            )
            await dht.bootstrapped()
            if number >= SERVERS:
                self.clients.append(dht)
                continue
            listener = await dht.listen()
            await listener.wait_announced()
            self.listeners.append(listener)
            nursery.start_soon(self._serve, listener)

    async def _serve(self, listener: Listener) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(_echo, await listener.accept())

    async def work(self, duration: float) -> None:
        """For so many seconds, or longer on a slow machine: every job is to be done some times."""
        enough = Counter(self.counts) + Counter(dict.fromkeys(JOBS, 5))
        end = trio.current_time() + duration
        async with trio.open_nursery() as nursery:
            for job, pause in (
                (self.look_up, 0.02),
                (self.announce, 0.2),
                (self.connect, 0.05),
                (self.break_off, 0.5),
                (self.come_and_go, 1.0),
            ):
                nursery.start_soon(self._repeat, job, pause)
            await trio.sleep_until(end)
            while any(self.counts[job] < enough[job] for job in JOBS):  # noqa: ASYNC110 - four events
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()

    async def _repeat(self, job, pause: float) -> None:
        while True:
            try:
                await job()
            except DHTError as err:
                self.counts[err.code] += 1
            else:
                self.counts[job.__name__] += 1
            await trio.sleep(pause)

    async def look_up(self) -> None:
        key = self.rng.choice(self.listeners).public_key
        if not await self.rng.choice(self.net.nodes).find_peer(key):
            self.counts["NOT_FOUND"] += 1

    async def announce(self) -> None:
        dht, topic = self.rng.choice(self.net.nodes), self.rng.randbytes(32)
        await dht.announce(topic)
        if not await self.rng.choice(self.net.nodes).lookup(topic):
            self.counts["TOPIC_NOT_FOUND"] += 1
        await dht.unannounce(topic)

    async def connect(self) -> None:
        dht, key = self.rng.choice(self.clients), self.rng.choice(self.listeners).public_key
        async with await dht.connect(key, local_connection=self.rng.random() < 0.5) as connection:
            self.counts[f"path {connection.path}"] += 1
            message = self.rng.randbytes(10_000)
            await connection.send(message)
            assert await connection.receive() == message

    async def break_off(self) -> None:
        """Give up in the middle of connecting, and drop an open connection."""
        dht, key = self.rng.choice(self.clients), self.rng.choice(self.listeners).public_key
        with trio.move_on_after(self.rng.random() * 0.05):
            connection = await dht.connect(key)
            connection.abort()

    async def come_and_go(self) -> None:
        async with open_dht(bootstrap=self.net.bootstrap, host="127.0.0.1") as dht:
            await dht.bootstrapped()
            listener = await dht.listen()
            await listener.wait_announced()


async def _echo(connection) -> None:
    try:
        async with connection:
            async for message in connection:
                await connection.send(message)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the peer has broken off


@pytest.mark.skipif(not os.path.isdir(FILES), reason="counts files in /proc")
@pytest.mark.timeout(3600 if LONG else 300)
async def test_a_network_at_rest_holds_what_it_held_before_its_work(monkeypatch):
    # A table keeps up to 0.6 MB of answers, which 50 nodes of one process take hours to fill.
    monkeypatch.setattr(table, "MAX_ORDERS", 512)
    started = time.monotonic()
    async with testnet(NODES) as net, trio.open_nursery() as nursery, AsyncExitStack() as stack:
        soak = Soak(net)
        await soak.open_peers(stack, nursery)
        fill_address_caches()
        before = await held_at_rest()
        history = [before]
        for _ in range(SPELLS):
            await soak.work(SPELL)
            with trio.move_on_after(REST):
                while not held().is_within(before):  # noqa: ASYNC110 - a leak has no event
                    await trio.sleep(0.05)
            history.append(held().weigh())
            if LONG:
                print(f"{time.monotonic() - started:.0f} s: {history[-1]}", flush=True)
        nursery.cancel_scope.cancel()
    print()
    print(*history, sep="\n")
    print(dict(sorted(soak.counts.items())), f"{time.monotonic() - started:.0f} s")
    assert all(state.is_within(before) for state in history), history
    failures = sum(count for name, count in soak.counts.items() if name.isupper())
    done = sum(count for name, count in soak.counts.items() if name in JOBS)
    assert failures <= done // 20
    if LONG:
        warm = history[WARM]
        assert history[-1].memory <= 1.05 * warm.memory
        assert history[-1].blocks <= 1.05 * warm.blocks
