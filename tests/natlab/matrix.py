"""Which peers reach each other through which NATs, how, and in what time.

A case is one connection: a server and a client, each in one of the two languages and behind a NAT
of one kind, on a network of JavaScript or of Python nodes. `run_cases` tries them in laboratories
of its own, several at a time, each case with fresh peers and with routers that have seen nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from hyperlog.dht.opening import raise_only_leaf
from tests.natlab.drivers import JAVASCRIPT, LANGUAGES, CommandFailed, Driver, keep_driver
from tests.natlab.lab import NODE_HOSTS, RELAY_HOST, Lab, open_lab
from tests.natlab.nats import FORWARDED, KINDS, NATS, OPEN, PORT_RESTRICTED, RANDOM, WITHOUT_NAT

SAME_NAT, ISOLATED = "same", "isolated"
DATA = 100_000  # bytes that go each way
TIMEOUT = 90.0  # s for one connection; a random punch gives up after 35 s of probes, later if busy
EXCHANGE_TIMEOUT = 30.0  # s


@dataclass(frozen=True, order=True)
class Case:
    """One connection to be tried."""

    server_nat: str
    client_nat: str
    """a kind, or behind the server's own router: SAME_NAT, ISOLATED if it parts them there"""
    network: str = JAVASCRIPT
    server: str = JAVASCRIPT
    client: str = JAVASCRIPT
    """languages"""
    relay: str | None = None
    """language of the relay that one of the two may take"""
    relay_of: str = "client"
    """who names it: server or client"""

    def __str__(self) -> str:
        relay = f", {self.relay} relay of the {self.relay_of}" if self.relay else ""
        return (
            f"{self.server} server behind {self.server_nat}, {self.client} client behind "
            f"{self.client_nat}, {self.network} network{relay}"
        )

    @property
    def baseline(self) -> Case:
        """The same with JavaScript peers; the nodes are JavaScript's, too."""
        relay = JAVASCRIPT if self.relay else None
        return replace(self, network=JAVASCRIPT, server=JAVASCRIPT, client=JAVASCRIPT, relay=relay)

    @property
    def nats(self) -> tuple[str, str]:
        client = self.server_nat if self.client_nat in (SAME_NAT, ISOLATED) else self.client_nat
        return self.server_nat, client

    @property
    def is_impossible(self) -> bool:
        """Whether nothing but a relay helps: the ports of both sides are random, for example."""
        if self.client_nat == SAME_NAT:
            return False
        if self.client_nat == ISOLATED:  # no router here does hairpinning
            return True
        return all(nat in RANDOM for nat in self.nats)

    @property
    def is_lottery(self) -> bool:
        """Whether probes to random ports may have to meet one of many sockets, which takes time.

        The side whose ports are random opens 256 sockets, the other one sends a probe to a random
        port out of 64,536 every 20 ms.
        """
        return (
            not self.is_impossible
            and any(nat in RANDOM for nat in self.nats)
            and (OPEN not in self.nats and self.client_nat != SAME_NAT)
        )

    @property
    def waits(self) -> bool:
        """Whether it may take seconds, which say nothing of how fast a peer is."""
        behind_one = self.client_nat == ISOLATED or (
            self.client_nat == SAME_NAT and self.server_nat == FORWARDED
        )
        return self.is_lottery or behind_one


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    path: str | None
    """direct, lan, punched or relayed; None if nothing came of it"""
    milliseconds: float
    """until the first byte was there and back, or the attempt had failed"""
    error: str | None = None
    message: str = ""
    probes: tuple[int, int] = (0, 0)
    """1-byte datagrams that server and client sent through their routers"""

    @property
    def connected(self) -> bool:
        return self.path is not None

    def __str__(self) -> str:
        time = f"{self.milliseconds:.0f} ms"
        if self.milliseconds >= 1000:
            time = f"{self.milliseconds / 1000:.1f} s"
        return f"{self.path or self.error} {time}"


def cases_of(network: str, server: str, client: str, *, relay: str | None = None) -> list[Case]:
    """Every pair of NATs, for one choice of languages."""
    pairs = [(one, other) for one in KINDS for other in KINDS]
    pairs += [(nat, SAME_NAT) for nat in NATS]
    pairs.append((PORT_RESTRICTED, ISOLATED))
    return [Case(one, other, network, server, client, relay) for one, other in pairs]


def all_cases() -> list[Case]:
    """The whole matrix."""
    return [
        case
        for network in LANGUAGES
        for server in LANGUAGES
        for client in LANGUAGES
        for case in cases_of(network, server, client)
    ]


@dataclass
class Bench:
    """A laboratory with a network in it, and the drivers that were needed so far."""

    lab: Lab
    network: str
    """language of the nodes"""
    bootstrap: list[list]
    nursery: trio.Nursery
    drivers: dict[tuple[str, str], Driver] = field(default_factory=dict)
    relays: dict[str, str] = field(default_factory=dict)
    """keys of the relays that run, by language"""

    async def driver(self, place: str, language: str) -> Driver:
        """The program of a language on a host, started at the first call."""
        if (place, language) not in self.drivers:
            self.drivers[place, language] = await self.nursery.start(
                keep_driver, self.lab, place, language
            )
        return self.drivers[place, language]

    async def relay(self, language: str) -> str:
        """The key of a relay on a public host, started at the first call."""
        if language not in self.relays:
            driver = await self.driver("relay", language)
            port = 40001 + LANGUAGES.index(language)
            await driver.call("open", bootstrap=self.bootstrap, firewalled=False, port=port)
            self.relays[language] = (await driver.call("relay"))["key"]
        return self.relays[language]

    def arrange(self, case: Case) -> tuple[str, str]:
        """Set the routers for a case; gives the hosts of server and client."""
        server_nat, client_nat = case.nats
        if server_nat not in WITHOUT_NAT:
            self.lab.set_nat("left", server_nat)
        if case.client_nat == ISOLATED:
            self.lab.isolate("left")
        if case.client_nat in (SAME_NAT, ISOLATED):
            return "left", "left2"
        if client_nat not in WITHOUT_NAT:
            self.lab.set_nat("right", client_nat)
        server = "public1" if server_nat in WITHOUT_NAT else "left"
        return server, "public2" if client_nat in WITHOUT_NAT else "right"

    async def run(self, case: Case) -> Outcome:
        """Try one case.

        Raises:
            DriverFailed: a program broke, which is no outcome.
        """
        assert case.network == self.network
        server_host, client_host = self.arrange(case)
        server = await self.driver(server_host, case.server)
        client = await self.driver(client_host, case.client)
        relay = await self.relay(case.relay) if case.relay else None
        server_nat, client_nat = case.nats
        try:
            await server.call("open", bootstrap=self.bootstrap, firewalled=_claim(server_nat))
            servers_relay = relay if case.relay_of == "server" else None
            key = (await server.call("listen", relay=servers_relay))["key"]
            await client.call("open", bootstrap=self.bootstrap, firewalled=_claim(client_nat))
            clients_relay = relay if case.relay_of == "client" else None
            outcome = await self._connect(client, key, clients_relay)
            return replace(outcome, probes=self._probes(server_host, client_host))
        finally:
            with trio.CancelScope(shield=True):
                await client.call("close")
                await server.call("close")

    async def _connect(self, client: Driver, key: str, relay: str | None) -> Outcome:
        try:
            opened = await client.call("connect", key=key, relay=relay, timeout=TIMEOUT)
        except CommandFailed as failure:
            return Outcome(None, failure.milliseconds, failure.code, str(failure))
        number = opened["connection"]
        try:
            await client.call("exchange", connection=number, size=DATA, timeout=EXCHANGE_TIMEOUT)
        except CommandFailed as failure:
            code = f"SILENT ({failure.code})"
            return Outcome(None, opened["milliseconds"], code, str(failure))
        return Outcome(path_of(opened), opened["milliseconds"])

    def _probes(self, *hosts: str) -> tuple[int, int]:
        sites = {"left": "left", "right": "right"}
        server, client = (self.lab.probes_sent(sites[h]) if h in sites else 0 for h in hosts)
        return server, client


def _claim(nat: str) -> bool | None:
    """What a peer says of its own firewall."""
    return False if nat == OPEN else None


def path_of(opened: dict) -> str:
    """The path of a connection out of what the driver tells of it."""
    host = opened["remote"][0]
    if host == RELAY_HOST:
        return "relayed"
    if "path" in opened:
        return opened["path"]
    if host.startswith("192.168."):
        return "lan"
    return "punched" if opened["pool"] else "direct"


@asynccontextmanager
async def open_bench(
    network: str, *, bad_uplinks: bool = False, carriers: Collection[str] = ()
) -> AsyncIterator[Bench]:
    """A laboratory with 8 nodes of one language."""
    async with open_lab(bad_uplinks=bad_uplinks, carriers=carriers) as lab:
        try:
            async with trio.open_nursery() as nursery:
                nodes = await nursery.start(keep_driver, lab, "net", network)
                bootstrap = (await nodes.call("network", hosts=NODE_HOSTS))["bootstrap"]
                yield Bench(lab, network, bootstrap, nursery)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise_only_leaf(group)


Results = dict[Case, list[Outcome]]


async def run_cases(
    cases: Iterable[Case],
    *,
    repeats: int = 1,
    labs: int = 3,
    report: Callable[[Case, Outcome], None] = lambda _case, _outcome: None,
) -> Results:
    """Try cases, each `repeats` times (those that wait once), in `labs` a network.

    What is over at once is tried in one laboratory a network, so that the times mean something;
    beside it the others try what mostly waits.
    """
    results: Results = defaultdict(list)
    by_network: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_network[case.network].append(case)

    async def work(bench: Bench, waiting: list[tuple[Case, int]]) -> None:
        while waiting:
            case, times = waiting.pop(0)
            for _ in range(times):
                outcome = await bench.run(case)
                results[case].append(outcome)
                report(case, outcome)

    async def run_network(network: str, cases: Sequence[Case]) -> None:
        quick = [(case, repeats) for case in cases if not case.waits]
        slow = [(case, 1) for case in cases if case.waits]

        async def one_more(waiting: list[tuple[Case, int]]) -> None:
            async with open_bench(network) as bench:
                await work(bench, waiting)

        async with trio.open_nursery() as nursery:
            for _ in range(min(labs - 1, len(slow))):
                nursery.start_soon(one_more, slow)
            async with open_bench(network) as bench:
                await work(bench, quick)
                await work(bench, slow)

    try:
        async with trio.open_nursery() as nursery:
            for network, its_cases in by_network.items():
                nursery.start_soon(run_network, network, its_cases)
    except BaseExceptionGroup as group:
        raise_only_leaf(group)
    return dict(results)


def typical(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome in the middle, failures last."""
    in_order = sorted(outcomes, key=lambda o: (not o.connected, o.milliseconds))
    return in_order[(len(in_order) - 1) // 2]
