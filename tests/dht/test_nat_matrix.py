"""Who reaches whom through which NATs, how, and how fast: 1,000 simulated networks.

Each seed is a network of its own: eight public nodes, a server and a client behind NATs of two
kinds, and delay, jitter and loss by chance. In every other network the client knows a relay: then
all pairs connect, most of them by the relay first, and change over to a direct path.

HYPERLOG_SEED=n plays one seed alone, with the log of the package; HYPERLOG_LONG=1 plays ten times
as many.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

import pytest
import trio

from hyperlog.dht.connection import Connection
from hyperlog.dht.errors import ConnectError, DoubleRandomizedNATs, HolepunchFailed
from hyperlog.dht.relayserver import RelayServer
from hyperlog.dht.simnat import SimNat
from hyperlog.dht.simulation import SimClock, SimHost, SimLink, SimNetwork, SimSegment
from hyperlog.dht.testing import SimTestnet, sim_testnet
from tests.dht.peers import LONG
from tests.dht.scheduling import run_repeatably

SEEDS = 10_000 if LONG else 1_000
PUBLIC_NODES = 8
WIDTH = 27
MESSAGE = bytes(5000)
LIMIT = 120.0  # simulated s that an attempt may take, whatever comes of it

KINDS = ("open", "full cone", "address", "port", "provider", "symmetric", "in turn")
CONSISTENT = ("full cone", "address", "port", "provider")
RANDOM = ("symmetric", "in turn")
SAME = "same NAT"
NEIGHBOURS = "neighbours"  # homes of one provider, whose NAT leads back by its address or does not
PAIRS = [
    *itertools.product(KINDS, KINDS),
    *((SAME, kind) for kind in KINDS[1:]),
    (NEIGHBOURS, "hairpin"),
    (NEIGHBOURS, "no hairpin"),
]

# Simulated s. Without losses it takes one or two; each lost datagram costs up to two more. A random
# punch is a lottery with up to 1750 draws, 20 ms apart, of which one in a thousand is lost.
BOUNDS = {
    "direct": 5.0,
    "lan": 5.0,
    "punched": 10.0,
    "random punch": 45.0,
    "hopeless": 10.0,  # two random NATs: both sides know at once
    "blocked": 20.0,  # ten rounds of probes are sent
}
FAILURES = {"hopeless": DoubleRandomizedNATs.code, "blocked": HolepunchFailed.code}
MAX_LOST = 0.005  # share of random punches


@dataclass
class Outcome:
    seed: int
    relay: bool
    """whether the client knew one"""
    loss: float
    """share of datagrams"""
    paths: tuple[str, ...] = ()
    """as the connection names them, or the code of the error"""
    opened: float = 0.0
    """simulated s from connect() to its end"""
    settled: float = 0.0
    """simulated s until the last path was found"""


def pair_of(outcome: Outcome) -> tuple[str, str]:
    """Kinds of the server's and the client's NAT."""
    return PAIRS[outcome.seed % len(PAIRS)]


def expected(server: str, client: str) -> str:
    """How they find a path between them: a key of BOUNDS."""
    if server == SAME:
        return "lan"
    if server == NEIGHBOURS:
        return "punched" if client == "hairpin" else "blocked"
    if "open" in (server, client):
        return "direct"
    if server in RANDOM and client in RANDOM:
        return "hopeless"
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
    if server == NEIGHBOURS:
        provider = SimNat(network, "5.5.5.5", hairpin=client == "hairpin")
        homes = [SimNat(provider, f"100.64.0.{number}") for number in (2, 3)]
        return homes[0].host("192.168.1.2"), homes[1].host("192.168.2.2")
    near = put_behind(network, server, "5.5.5.5")
    far = put_behind(network, client, "6.6.6.6")
    return (
        near.host("5.5.5.5" if server == "open" else "192.168.1.2"),
        far.host("6.6.6.6" if client == "open" else "192.168.2.2"),
    )


async def play(seed: int) -> Outcome:
    """Connect one pair once."""
    rng = random.Random(seed)
    outcome = Outcome(
        seed, relay=bool(seed // len(PAIRS) % 2), loss=rng.choice((0.0, 0.0, 0.01, 0.03))
    )
    async with (
        sim_testnet(
            PUBLIC_NODES,
            seed=seed,
            delay=rng.uniform(0.002, 0.04),
            jitter=rng.choice((0.0, 0.005, 0.03)),
            loss=outcome.loss,
        ) as net,
        trio.open_nursery() as nursery,
    ):
        for outside in ("5.5.5.5", "6.6.6.6"):
            net.network.set_link(outside, SimLink(delay=rng.uniform(0, 0.05)))
        relay_key = None
        if outcome.relay:
            relay = RelayServer(net.nodes[-1])
            await nursery.start(relay.run)
            relay_key = relay.public_key
        await play_pair(net, PAIRS[seed % len(PAIRS)], relay_key, outcome)
        nursery.cancel_scope.cancel()
    return outcome


async def play_pair(
    net: SimTestnet, pair: tuple[str, str], relay_key: bytes | None, outcome: Outcome
) -> None:
    near, far = machines(net.network, pair)
    server = await net.add(near, ephemeral=None, firewalled=None)
    client = await net.add(far, ephemeral=None, firewalled=None)
    listener = await server.listen()
    assert await listener.wait_announced()
    started = trio.current_time()
    try:
        with trio.fail_after(LIMIT):
            connection = await client.connect(listener.public_key, relay_through=relay_key)
    except ConnectError as err:
        outcome.paths = (err.code,)
        outcome.opened = outcome.settled = trio.current_time() - started
    else:
        outcome.opened = trio.current_time() - started
        with trio.fail_after(LIMIT):
            accepted = await listener.accept()
            await exchange(connection, accepted)
            if expected(*pair) not in FAILURES:
                await settle(connection, accepted)
            outcome.settled = trio.current_time() - started
            await exchange(connection, accepted)
        outcome.paths = connection.statistics().paths
        await connection.aclose()
        await accepted.aclose()
    for dht in (client, server):
        await net.remove(dht)
    assert not near.segment.sockets_of(near.address)
    assert not far.segment.sockets_of(far.address)


async def exchange(*ends: Connection) -> None:
    for one, other in itertools.permutations(ends):
        await one.send(MESSAGE)
        assert await other.receive() == MESSAGE


async def settle(*ends: Connection) -> None:
    """Wait until both ends have left the relay, or for as long as a punch may take."""
    with trio.move_on_after(BOUNDS["random punch"]):
        for end in ends:
            while end.path == "relayed":
                await end.path_changed()


@pytest.mark.timeout(3600 if LONG else 300)
def test_every_pair_of_nats_connects_as_it_can_and_in_time():
    started = time.perf_counter()
    seeds = range(SEEDS)
    if "HYPERLOG_SEED" in os.environ:
        logging.basicConfig(level=logging.DEBUG)
        seeds = [int(os.environ["HYPERLOG_SEED"])]
    outcomes = []
    for seed in seeds:
        outcomes.append(run_repeatably(lambda seed=seed: play(seed), seed=seed, clock=SimClock()))
    for relay in (False, True):
        print_matrix([outcome for outcome in outcomes if outcome.relay == relay], relay)
    print_summary(outcomes)
    print(f"{len(seeds)} networks in {time.perf_counter() - started:.0f} s")
    lost = [outcome for outcome in outcomes if not check(outcome)]
    played = [o for o in outcomes if expected(*pair_of(o)) == "random punch"]
    assert len(lost) <= MAX_LOST * len(played) + 1, lost


def check(outcome: Outcome) -> bool:
    """Fail unless all is as it must be; False for a random punch that drew in vain."""
    server, client = pair_of(outcome)
    where = f"server {server}, client {client}: {outcome}"
    way = expected(server, client)
    assert outcome.opened <= BOUNDS[way], where
    last = outcome.paths[-1]
    if way in FAILURES:
        assert last == ("relayed" if outcome.relay else FAILURES[way]), where
    elif way == "random punch":
        if last == ("relayed" if outcome.relay else HolepunchFailed.code):
            return False
        assert last == "punched", where
    elif way == "direct" and outcome.loss:
        # Who is open cannot know it when the one answer that tells was lost.
        assert last in ("direct", "punched"), where
    else:
        assert last == way, where
    assert outcome.settled <= BOUNDS[way], where
    assert all(path == "relayed" for path in outcome.paths[:-1]), where
    return True


def print_matrix(outcomes: list[Outcome], relay: bool) -> None:
    cells: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        cells[pair_of(outcome)].append(outcome)
    print(f"\nserver (down), client (right), with{'' if relay else 'out'} a relay: path,")
    print("median simulated s until open" + (" / until direct (most)" if relay else " (most)"))
    print(" " * 10 + "".join(f"{kind:<{WIDTH}}" for kind in KINDS))
    for server in (*KINDS, SAME):
        row = [describe(cells[server, client]) for client in KINDS]
        print(f"{server:<10}" + "".join(f"{text:<{WIDTH}}" for text in row))
    for pair in PAIRS[-2:]:
        print(f"{' '.join(pair)}: {describe(cells[pair])}")


def print_summary(outcomes: list[Outcome]) -> None:
    print("\nsimulated s until open, and until direct where a relay was known:")
    for way in BOUNDS:
        for relay in (False, True):
            some = [o for o in outcomes if o.relay == relay and expected(*pair_of(o)) == way]
            if some:
                opened, settled = (
                    f"{statistics.median(times):.2f} (most {max(times):.1f})"
                    for times in ([o.opened for o in some], [o.settled for o in some])
                )
                ways = f"{opened}, then {settled}" if relay else opened
                print(f"{way:<13} {'relay' if relay else '':<6} {len(some):>5} times: {ways}")


def describe(outcomes: list[Outcome]) -> str:
    """A cell of the matrix."""
    if not outcomes:
        return ""
    last = {"none" if o.paths[-1].isupper() else o.paths[-1] for o in outcomes}
    opened = statistics.median(outcome.opened for outcome in outcomes)
    settled = statistics.median(outcome.settled for outcome in outcomes)
    most = max(outcome.settled for outcome in outcomes)
    times = f"{opened:.2f}/{settled:.2f}" if outcomes[0].relay else f"{opened:.2f}"
    return f"{'|'.join(sorted(last))} {times} ({most:.1f})"
