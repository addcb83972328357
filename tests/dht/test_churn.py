"""A network whose nodes come and go all the time: what was announced is found, nothing grows.

With HYPERLOG_LONG=1 it is 24 simulated hours of 500 nodes, which take about half an hour.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from dataclasses import dataclass

import pytest
import trio

from hyperlog.dht.errors import DHTError
from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.simnat import SimNat
from hyperlog.dht.simulation import SimClock
from hyperlog.dht.testing import SimTestnet, sim_testnet
from tests.dht.peers import LONG
from tests.dht.scheduling import run_repeatably

GRAIN = 0.05  # s of simulated time that are handled at once
PERMANENT = 3  # bootstrap nodes


@dataclass(frozen=True)
class Plan:
    nodes: int
    hours: float
    session: float
    """s that a node lives on average"""
    lookup_interval: float
    """s"""
    servers: int


PLAN = (
    Plan(nodes=500, hours=24, session=7200, lookup_interval=8, servers=20)
    if LONG
    else Plan(nodes=100, hours=0.75, session=1800, lookup_interval=4, servers=10)
)


@dataclass
class Sample:
    """The network at one moment."""

    hour: float
    nodes: int
    persistent: int
    table_mean: float
    table_max: int
    alive: float
    """share of the tables' entries that are running nodes"""
    tasks: float
    """a node, as all that follows"""
    deadlines: float
    timers: float
    requests: float
    queries: float
    objects: float
    seconds: float
    """of real time since the start"""


class Churn:
    """Nodes that come and go, servers that stay, and lookups from everywhere."""

    def __init__(self, net: SimTestnet, plan: Plan, seed: int) -> None:
        self.net = net
        self.plan = plan
        self.rng = random.Random(seed)
        self.keys: list[bytes] = []
        self.lasting: set[DHT] = set(net.nodes[:PERMANENT])
        self.departures = self.crashes = 0
        self.found = 0
        self.missed: list[str] = []
        self.lookup_times: list[float] = []
        self.samples: list[Sample] = []
        self.started = time.perf_counter()

    async def add_node(self) -> DHT:
        """Six of ten are open and know it, three find out, one is behind a NAT."""
        kind = self.rng.random()
        if kind < 0.6:
            return await self.net.start()
        if kind < 0.9:
            return await self.net.start(ephemeral=None, firewalled=None)
        return await self.add_behind_nat()

    async def add_behind_nat(self) -> DHT:
        nat = SimNat(self.net.network, self.net.new_host())
        machine = nat.host("192.168.1.2")
        return await self.net.start(machine, ephemeral=None, firewalled=None)

    async def add_servers(self) -> None:
        for number in range(self.plan.servers):
            dht = await (self.add_behind_nat() if number % 2 else self.net.start())
            self.lasting.add(dht)
            await dht.bootstrapped()
            listener = await dht.listen()
            await listener.wait_announced()
            self.keys.append(listener.public_key)

    async def come_and_go(self) -> None:
        """At each departure somebody else comes."""
        while True:
            await trio.sleep(self.rng.expovariate(self.plan.nodes / self.plan.session))
            leaving = self.rng.choice([n for n in self.net.nodes if n not in self.lasting])
            crash = self.rng.random() < 0.5
            self.departures += 1
            self.crashes += crash
            await self.net.remove(leaving, crash=crash)
            await self.add_node()

    async def look_up(self) -> None:
        while True:
            await trio.sleep(self.plan.lookup_interval)
            dht, key = self.rng.choice(self.net.nodes), self.rng.choice(self.keys)
            if dht.node.bootstrapped.is_set():
                await self.look_up_one(dht, key)

    async def look_up_one(self, dht: DHT, key: bytes) -> None:
        started = trio.current_time()
        try:
            peers = await dht.find_peer(key)
        except DHTError as err:
            if dht not in self.net.nodes:
                return
            self.missed.append(f"{started:.0f} s: {err.code}")
            return
        if dht not in self.net.nodes:
            return  # it went meanwhile
        self.lookup_times.append(trio.current_time() - started)
        if any(peer.public_key == key for peer in peers):
            self.found += 1
        else:
            known = dht.node.table_size
            self.missed.append(f"{started:.0f} s: not found by a node that knows {known} others")

    def sample(self) -> None:
        nodes = self.net.nodes
        running = {node.address for node in nodes}
        tables = [node.node.known_nodes(sys.maxsize) for node in nodes]
        entries = sum(len(table) for table in tables)
        alive = sum(address in running for table in tables for address in table)
        rpc = [node.node.statistics() for node in nodes]
        gc.collect()
        self.samples.append(
            Sample(
                hour=trio.current_time() / 3600,
                nodes=len(nodes),
                persistent=sum(node.node.id is not None for node in nodes),
                table_mean=entries / len(nodes),
                table_max=max(len(table) for table in tables),
                alive=alive / entries,
                tasks=trio.lowlevel.current_statistics().tasks_living / len(nodes),
                deadlines=active_deadlines() / len(nodes),
                timers=sum(len(node.sockets._timers) for node in nodes) / len(nodes),
                requests=sum(s.requests_active for s in rpc) / len(nodes),
                queries=sum(s.queries_active for s in rpc) / len(nodes),
                objects=len(gc.get_objects()) / len(nodes),
                seconds=time.perf_counter() - self.started,
            )
        )
        if LONG:
            print(self.samples[-1], len(self.missed), "missed", flush=True)

    async def run(self) -> None:
        await self.add_servers()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.come_and_go)
            nursery.start_soon(self.look_up)
            for _ in range(24):
                await trio.sleep(self.plan.hours * 3600 / 24)
                self.sample()
            nursery.cancel_scope.cancel()


def active_deadlines() -> int:
    """Cancel scopes with a deadline, of which a timer that nobody cancels would leave one."""
    return trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines._active


def table(samples: list[Sample]) -> str:
    names = list(Sample.__dataclass_fields__)
    lines = ["  ".join(f"{name:>10}" for name in names)]
    for sample in samples:
        lines.append("  ".join(f"{getattr(sample, name):>10.4g}" for name in names))
    return "\n".join(lines)


@pytest.mark.timeout(5400 if LONG else 300)
def test_in_a_churning_network_announcements_are_found_and_nothing_grows():
    async def main() -> Churn:
        async with sim_testnet(PERMANENT, seed=5, delay=0.02, jitter=0.06, loss=0.01) as net:
            churn = Churn(net, PLAN, seed=6)
            for _ in range(PLAN.nodes - PERMANENT - PLAN.servers):
                await churn.add_node()
                await trio.sleep(0.2)
            await churn.run()
            return churn

    # So many living objects make the usual collections cost an eighth of the time.
    threshold = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    try:
        churn = run_repeatably(main, seed=7, clock=SimClock(GRAIN))
    finally:
        gc.set_threshold(*threshold)
    lookups = churn.found + len(churn.missed)
    times = statistics.quantiles(churn.lookup_times, n=100)
    print()
    print(table(churn.samples[:: 1 if LONG else 6]))
    print(
        f"{PLAN.hours} h of {PLAN.nodes} nodes: {churn.departures} left ({churn.crashes} without a "
        f"word), {lookups} lookups, {len(churn.missed)} missed, took {times[49]:.2f} s (median), "
        f"{times[98]:.2f} s (99 %); {churn.samples[-1].seconds:.0f} s of real time"
    )
    assert lookups > 0.9 * PLAN.hours * 3600 / (PLAN.lookup_interval + times[49])
    assert len(churn.missed) <= max(1, lookups // 1000), churn.missed
    assert churn.departures > 0.8 * PLAN.hours * 3600 * PLAN.nodes / PLAN.session
    early, late = churn.samples[len(churn.samples) // 2], churn.samples[-1]
    for sample in churn.samples:
        assert sample.nodes == PLAN.nodes
        assert sample.alive >= 0.8
        assert sample.table_max <= 256
    assert late.tasks <= 1.1 * early.tasks
    assert late.deadlines <= 1.2 * early.deadlines
    assert late.timers <= 1.1 * early.timers + 1
    assert late.requests <= 2
    assert late.queries <= 0.5
    assert late.objects <= 1.15 * early.objects
    assert late.table_mean <= 1.2 * early.table_mean
