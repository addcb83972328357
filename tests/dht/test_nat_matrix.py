"""Who reaches whom through which NATs, how, and how fast: 1,000 simulated networks.

Each seed is a network of its own: eight public nodes, a server and a client behind NATs of two
kinds, and delay, jitter and loss by chance. HYPERLOG_SEED=n plays one of them alone, with the log
of the package; HYPERLOG_LONG=1 plays ten times as many.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field

import trio

from hyperlog.dht.errors import ConnectError, DoubleRandomizedNATs, HolepunchFailed
from hyperlog.dht.simnat import SimNat
from hyperlog.dht.simulation import SimClock, SimHost, SimLink, SimNetwork, SimSegment
from hyperlog.dht.testing import SimTestnet, sim_testnet
from tests.dht.peers import LONG
from tests.dht.scheduling import run_repeatably

SEEDS = 10_000 if LONG else 1_000
PUBLIC_NODES = 8
LIMIT = 120.0  # simulated s that an attempt may take, whatever comes of it

KINDS = ("open", "full cone", "address", "port", "provider", "symmetric", "in turn")
CONSISTENT = ("full cone", "address", "port", "provider")
RANDOM = ("symmetric", "in turn")
SAME = "same NAT"
PAIRS = [*itertools.product(KINDS, KINDS), *((SAME, kind) for kind in KINDS[1:])]

# Simulated s. Without losses it takes one or two; each lost datagram costs up to two more. A random
# punch is a lottery with up to 1750 draws, 20 ms apart, of which one in a thousand is lost.
BOUNDS = {"direct": 5.0, "lan": 5.0, "punched": 10.0, "random punch": 45.0, "none": 10.0}
MAX_LOST = 0.005  # share of random punches


@dataclass
class Outcome:
    seed: int
    path: str
    """as the connection names it, or the code of the error"""
    seconds: float
    """simulated, from connect() to its end"""
    loss: float
    """share of datagrams"""


@dataclass
class Cell:
    """All outcomes of one pair."""

    outcomes: list[Outcome] = field(default_factory=list)

    def __str__(self) -> str:
        paths = sorted({outcome.path for outcome in self.outcomes})
        times = sorted(outcome.seconds for outcome in self.outcomes)
        return f"{'/'.join(paths)} {statistics.median(times):.2f} ({times[-1]:.1f})"


def expected(server: str, client: str) -> str:
    """How they connect: a key of BOUNDS."""
    if server == SAME:
        return "lan"
    if "open" in (server, client):
        return "direct"
    if server in RANDOM and client in RANDOM:
        return "none"
    return "random punch" if server in RANDOM or client in RANDOM else "punched"


def put_behind(network: SimNetwork, kind: str, outside: str) -> SimSegment:
    """A network behind a NAT of this kind; the public one for "open"."""
    match kind:
        case "open":
            return network
        case "full cone":
            return SimNat(network, outside, filtering="endpoint")
        case "address":
            return SimNat(network, outside, filtering="address")
        case "port":
            return SimNat(network, outside)
        case "provider":
            return SimNat(SimNat(network, outside), "100.64.0.2")
        case "symmetric":
            return SimNat(network, outside, mapping="random")
        case "in turn":
            return SimNat(network, outside, mapping="sequential")
    raise AssertionError(kind)


def machines(network: SimNetwork, pair: tuple[str, str]) -> tuple[SimHost, SimHost]:
    """Where server and client run."""
    server, client = pair
    if server == SAME:
        home = put_behind(network, client, "5.5.5.5")
        return home.host("192.168.1.2"), home.host("192.168.1.3")
    near = put_behind(network, server, "5.5.5.5")
    far = put_behind(network, client, "6.6.6.6")
    return (
        near.host("5.5.5.5" if server == "open" else "192.168.1.2"),
        far.host("6.6.6.6" if client == "open" else "192.168.2.2"),
    )


async def play(seed: int) -> Outcome:
    """Connect one pair once."""
    rng = random.Random(seed)
    async with sim_testnet(
        PUBLIC_NODES,
        seed=seed,
        delay=rng.uniform(0.002, 0.04),
        jitter=rng.choice((0.0, 0.005, 0.03)),
        loss=rng.choice((0.0, 0.0, 0.01, 0.03)),
    ) as net:
        for outside in ("5.5.5.5", "6.6.6.6"):
            net.network.set_link(outside, SimLink(delay=rng.uniform(0, 0.05)))
        return await connect_once(net, seed)


async def connect_once(net: SimTestnet, seed: int) -> Outcome:
    near, far = machines(net.network, PAIRS[seed % len(PAIRS)])
    server = await net.add(near, ephemeral=None, firewalled=None)
    client = await net.add(far, ephemeral=None, firewalled=None)
    listener = await server.listen()
    assert await listener.wait_announced()
    started = trio.current_time()
    try:
        with trio.fail_after(LIMIT):
            connection = await client.connect(listener.public_key)
    except ConnectError as err:
        path, seconds = err.code, trio.current_time() - started
    else:
        path, seconds = connection.path, trio.current_time() - started
        with trio.fail_after(LIMIT):
            accepted = await listener.accept()
            assert accepted.path == path
            for one, other in ((connection, accepted), (accepted, connection)):
                await one.send(b"x" * 5000)
                assert await other.receive() == b"x" * 5000
            await connection.aclose()
            await accepted.aclose()
    for dht in (client, server):
        await net.remove(dht)
    assert not near.segment.sockets_of(near.address)
    assert not far.segment.sockets_of(far.address)
    return Outcome(seed, path, seconds, net.network.loss)


def test_every_pair_of_nats_connects_as_it_can_and_in_time():
    started = time.perf_counter()
    seeds = range(SEEDS)
    if "HYPERLOG_SEED" in os.environ:
        logging.basicConfig(level=logging.DEBUG)
        seeds = [int(os.environ["HYPERLOG_SEED"])]
    cells: dict[tuple[str, str], Cell] = defaultdict(Cell)
    for seed in seeds:
        outcome = run_repeatably(lambda seed=seed: play(seed), seed=seed, clock=SimClock())
        cells[PAIRS[seed % len(PAIRS)]].outcomes.append(outcome)
    print_matrix(cells)
    print(f"{len(seeds)} networks in {time.perf_counter() - started:.0f} s")
    lost = played = 0
    for (server, client), cell in cells.items():
        way = expected(server, client)
        for outcome in cell.outcomes:
            where = f"server {server}, client {client}: {outcome}"
            assert outcome.seconds <= BOUNDS[way], where
            if way == "none":
                assert outcome.path == DoubleRandomizedNATs.code, where
            elif way == "random punch":
                played += 1
                lost += outcome.path == HolepunchFailed.code
                assert outcome.path in ("punched", HolepunchFailed.code), where
            elif way == "direct" and outcome.loss:
                # Who is open cannot know it when the one answer that tells was lost.
                assert outcome.path in ("direct", "punched"), where
            else:
                assert outcome.path == way, where
    assert lost <= MAX_LOST * played + 1


def print_matrix(cells: dict[tuple[str, str], Cell]) -> None:
    print("\nserver (down), client (right): path, simulated s until connected, median (most)")
    width = 26
    print(" " * 10 + "".join(f"{kind:<{width}}" for kind in KINDS))
    for server in (*KINDS, SAME):
        row = [str(cells[server, client]) if (server, client) in cells else "" for client in KINDS]
        print(f"{server:<10}" + "".join(f"{text:<{width}}" for text in row))
