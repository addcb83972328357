"""What is lost and doubled when something breaks: hyperlog beside the JavaScript packages.

    python -m benchmarks.faults --json benchmarks/results/faults.json --table docs/reliability.md

Each scenario runs with both pairs, one after the other, on private networks of this machine. Lost:
traces that are neither in the log nor told in a gap line. Ships again: from the moment at which the
server answers (or the stop is over, or the path is there again) to the next trace in the log. Takes
about ten minutes; with `--from FILE` the table is made of figures that were measured before.

Where packets get lost, server and application are in network namespaces of their own: that needs
Linux and root, else these scenarios are left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import tempfile
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from msgspec import Struct
from msgspec import json as msgspec_json

from benchmarks.figures import WrongResult
from benchmarks.lossy_path import LossyPath, open_path, why_no_path
from benchmarks.machine import say
from benchmarks.peers import LOCALHOST, Address, Peer, js, run_peer
from tests.faults.processes import APPLICATION, Process, Scene, count_lines
from tests.interop.harness import SCRIPTS, addresses

RATE = 200  # traces a second
STEADY = 5.0  # s of quiet shipping before and after a fault
JS_PATIENCE = 45.0  # s: the stock client notices after some seconds, and retries after 10 to 15
PATIENCE = 30.0  # s
LOSS = 0.2  # share of the packets, each way


class Outcome(Struct):
    """One scenario with one pair."""

    scenario: str
    peers: str
    traced: int
    logged: int
    """different ones"""
    told: int
    """in gap lines"""
    doubled: int
    """lines too many"""
    ships_again: float | None
    """s; None if it never did"""
    outage: bool = True
    """whether shipping had to stop, so that `ships_again` means something"""

    @property
    def lost(self) -> int:
        return self.traced - self.logged - self.told


class Pair:
    """A server and an application whose parts can be broken."""

    name = ""
    patience = PATIENCE
    path: LossyPath | None = None
    """between server and application, if they do not share this machine's loopback"""
    partition = 30.0
    """s"""

    async def start_server(self) -> None: ...
    async def kill_server(self) -> None: ...
    async def kill_application(self) -> None: ...
    async def restart_application(self) -> None: ...
    async def trace(self, count: int, rate: float | None) -> None:
        """Returns when all are traced."""

    def stop_server(self, number: int) -> None: ...
    def counts(self) -> tuple[Counter[tuple[str, int]], int]:
        """How often each trace is in the log, and how many are told in gap lines."""
        raise NotImplementedError

    def lines(self) -> int:
        raise NotImplementedError


class SceneOnPath(Scene):
    """A scene whose server and application are at the two ends of a path."""

    path: LossyPath

    async def start_server(self, *options: str) -> None:
        self.bootstrap = f"{self.path.near.address}:{self.port}"
        await super().start_server("--host", self.path.near.address, *options)

    async def _start(self, command: list[str]) -> Process:
        place = self.path.far if str(APPLICATION) in command else self.path.near
        return await super()._start([str(part) for part in place.command(command)])


class PythonPair(Pair):
    name = "hyperlog"

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    async def start_server(self) -> None:
        await self.scene.start_server()

    async def kill_server(self) -> None:
        await self.scene.server.kill()

    async def trace(self, count: int, rate: float | None) -> None:
        if self.scene.application is not None:
            await self.scene.stop_application()
        await self.scene.start_application(count=count, rate=rate or 20_000)
        assert (await self.scene.application.event(300))["event"] == "traced"

    async def kill_application(self) -> None:
        await trio.sleep(0.2)  # what is traced in the last 0.1 s before a kill may be lost
        await self.scene.kill_application()

    async def restart_application(self) -> None:
        await self.scene.start_application(count=0)

    def stop_server(self, number: int) -> None:
        self.scene.server.send(number)

    def counts(self) -> tuple[Counter[tuple[str, int]], int]:
        records, gaps, _ = self.scene.read_log()
        return Counter({(str(run), n): c for (run, n), c in records.items()}), sum(
            gap["count"] for gap in gaps
        )

    def lines(self) -> int:
        return count_lines(self.scene.log)


class Hosted:
    """A script's context in a task of its own, so that any task may end it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.stop = trio.Event()
        self.ended = trio.Event()

    @classmethod
    async def start(
        cls, context: AbstractAsyncContextManager[Peer], nursery: trio.Nursery
    ) -> Hosted:
        async def run(task_status: trio.TaskStatus[Hosted]) -> None:
            async with context as peer:
                hosted = cls(peer)
                task_status.started(hosted)
                await hosted.stop.wait()
            hosted.ended.set()

        return await nursery.start(run)

    async def kill(self) -> None:
        self.peer.process.kill()
        self.stop.set()
        await self.ended.wait()


class JavaScriptPair(Pair):
    name = "JavaScript"
    patience = JS_PATIENCE

    def __init__(self, folder: Path, path: LossyPath | None, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.path = path
        self.nursery = nursery
        self.client: Hosted | None = None
        self.server: Hosted | None = None
        self.bootstrap: list[Address] = []
        self.key = ""

    @property
    def server_host(self) -> str:
        return LOCALHOST if self.path is None else self.path.near.address

    def at_server(self, command: list[str | Path]) -> list[str | Path]:
        return command if self.path is None else self.path.near.command(command)

    async def start_server(self) -> None:
        command = self.at_server(js("server.js", self.bootstrap, folder=str(self.folder)))
        self.server = await Hosted.start(run_peer(command), self.nursery)
        self.key = self.server.peer.public_key

    async def kill_server(self) -> None:
        await self.server.kill()

    async def trace(self, count: int, rate: float | None) -> None:
        if self.client is None:
            await self.restart_application()
        await self.client.peer.command(send=count)
        await self.client.peer.event("sent", timeout=300)

    async def restart_application(self) -> None:
        dht = {} if self.path is None else {"host": self.path.far.address}
        options = {"key": self.key, "mode": "rate", "rate": RATE, "seed": "37" * 32, "dht": dht}
        command = js("client.js", self.bootstrap, **options)
        if self.path is not None:
            command = self.path.far.command(command)
        self.client = await Hosted.start(run_peer(command), self.nursery)
        await self.client.peer.event("greeting")

    async def kill_application(self) -> None:
        await trio.sleep(0.2)
        await self.client.kill()
        self.client = None

    def stop_server(self, number: int) -> None:
        self.server.peer.process.send_signal(number)

    def _logs(self) -> list[Path]:
        return list(self.folder.glob("*.log"))

    def counts(self) -> tuple[Counter[tuple[str, int]], int]:
        found: Counter[tuple[str, int]] = Counter()
        for path in self._logs():
            for line in path.read_bytes().splitlines():
                try:
                    fields = json.loads(line)
                except ValueError:
                    continue
                if "caller" in fields:
                    found[fields["traceSessionId"], fields["traceNumber"]] += 1
        return found, 0

    def lines(self) -> int:
        return sum(map(count_lines, self._logs()))


# -- scenarios: each returns how many were traced, and how soon it shipped again


async def next_line(pair: Pair, before: int, patience: float) -> float | None:
    began_at = trio.current_time()
    with trio.move_on_after(patience):
        while pair.lines() <= before:  # noqa: ASYNC110 - another process writes
            await trio.sleep(0.02)
        return trio.current_time() - began_at
    return None


async def settled(pair: Pair) -> None:
    """Wait until the log has not grown for as long as the pair may need to come back."""
    lines, since = pair.lines(), trio.current_time()
    while trio.current_time() - since < (20 if isinstance(pair, JavaScriptPair) else 4):
        await trio.sleep(0.2)
        if pair.lines() != lines:
            lines, since = pair.lines(), trio.current_time()


async def killed_for_a_moment(pair: Pair) -> tuple[int, float | None]:
    """server killed, back after 3 s, at 200 traces a second"""
    await pair.start_server()
    count = int(RATE * (2 * STEADY + 30))
    again = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.trace, count, RATE)
        await trio.sleep(STEADY + 2)
        await pair.kill_server()
        await trio.sleep(3)
        before = pair.lines()
        await pair.start_server()
        again = await next_line(pair, before, pair.patience)
    return count, again


async def stopped(pair: Pair) -> tuple[int, float | None]:
    """server stopped (SIGSTOP) for 10 s, at 200 traces a second"""
    await pair.start_server()
    count = int(RATE * (2 * STEADY + 30))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.trace, count, RATE)
        await trio.sleep(STEADY + 2)
        pair.stop_server(signal.SIGSTOP)
        await trio.sleep(10)
        before = pair.lines()
        pair.stop_server(signal.SIGCONT)
        again = await next_line(pair, before, pair.patience)
    return count, again


async def long_outage(pair: Pair) -> tuple[int, float | None]:
    """6,000 traces while the server is away for 30 s"""
    await pair.start_server()
    await pair.trace(100, RATE)
    await trio.sleep(1)
    await pair.kill_server()
    await pair.trace(6000, RATE)
    before = pair.lines()
    await pair.start_server()
    return 6100, await next_line(pair, before, pair.patience)


async def application_killed(pair: Pair) -> tuple[int, float | None]:
    """1,000 traces while the server is away, then the application is killed, both come back"""
    await pair.start_server()
    await pair.trace(100, RATE)
    await trio.sleep(1)
    await pair.kill_server()
    await pair.trace(1000, RATE)
    await pair.kill_application()
    await pair.start_server()
    before = pair.lines()
    await pair.restart_application()
    return 1100, await next_line(pair, before, 10)


async def partitioned(pair: Pair) -> tuple[int, float | None]:
    """no packet gets through for {partition:.0f} s, at 200 traces a second"""
    await pair.start_server()
    count = int(RATE * (2 * STEADY + pair.partition))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.trace, count, RATE)
        await trio.sleep(STEADY + 2)
        pair.path.loss = 1.0
        await trio.sleep(1)  # what has arrived is written
        before = pair.lines()
        await trio.sleep(pair.partition - 1)
        if not 0 < before == pair.lines():
            raise WrongResult("something went another way")
        pair.path.loss = 0.0
        again = await next_line(pair, before, pair.patience)
    return count, again


async def lossy(pair: Pair) -> tuple[int, float | None]:
    """20 % of the packets are lost each way, from connecting on, at 200 traces a second"""
    await pair.start_server()
    pair.path.loss = LOSS
    count = int(RATE * pair.partition)
    await pair.trace(count, RATE)
    return count, None


Scenario = Callable[[Pair], Awaitable[tuple[int, float | None]]]
PLAIN: list[Scenario] = [killed_for_a_moment, stopped, long_outage, application_killed]
ON_A_PATH: list[Scenario] = [partitioned, lossy]


@asynccontextmanager
async def open_pair(python: bool, on_a_path: bool) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyperlog-faults-")))
        path = await stack.enter_async_context(open_path()) if on_a_path else None
        nursery = await stack.enter_async_context(trio.open_nursery())
        if python:
            scene = Scene(folder, nursery) if path is None else SceneOnPath(folder, nursery)
            scene.path = path
            stack.push_async_callback(scene.close)
            pair = PythonPair(scene)
            pair.path = path
            yield pair
        else:
            pair = JavaScriptPair(folder, path, nursery)
            testnet = json.dumps({"size": 4, "host": pair.server_host})
            command = pair.at_server(["node", SCRIPTS / "testnet.js", testnet])
            async with run_peer(command) as peer:
                pair.bootstrap = addresses(peer.ready["bootstrap"])
                yield pair
                for hosted in (pair.client, pair.server):
                    if hosted is not None:
                        hosted.stop.set()


async def run_scenario(scenario: Scenario, python: bool, partition: float) -> Outcome:
    async with open_pair(python, scenario in ON_A_PATH) as pair:
        pair.partition = partition
        traced, again = await scenario(pair)
        await settled(pair)
        found, told = pair.counts()
    return Outcome(
        scenario=(scenario.__doc__ or "").format(partition=partition),
        peers=pair.name,
        traced=traced,
        logged=len(found),
        told=told,
        doubled=sum(found.values()) - len(found),
        ships_again=None if again is None else round(again, 2),
        outage=scenario is not lossy,
    )


async def measure(names: Sequence[str], partition: float) -> list[Outcome]:
    outcomes = []
    reason = why_no_path()
    for scenario in PLAIN + ON_A_PATH:
        if scenario.__name__ not in names:
            continue
        if scenario in ON_A_PATH and reason is not None:
            say(f"{scenario.__name__} is left out: {reason}")
            continue
        for python in (True, False):
            outcome = await run_scenario(scenario, python, partition)
            outcomes.append(outcome)
            result = f"{outcome.lost} lost, {outcome.doubled} doubled"
            say(f"{outcome.peers}, {outcome.scenario}: {result}")
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    rows = [
        "| what breaks | pair | traced | lost | told to be lost | doubled | ships again after |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for o in outcomes:
        again = "never" if o.ships_again is None else f"{o.ships_again:.1f} s"
        if not o.outage:
            again = ""
        lost = f"{o.lost:,} ({o.lost / o.traced:.0%})" if o.lost else "0"
        rows.append(
            f"| {o.scenario} | {o.peers} | {o.traced:,} | {lost} | {o.told:,} | {o.doubled:,} "
            f"| {again} |"
        )
    return "\n".join(rows)


PAGE = """# Reliability: what is lost and doubled when something breaks

Made by `python -m benchmarks.faults --table`; the scenarios are in
[benchmarks/faults.py](../benchmarks/faults.py). Both pairs ran one after the other on one machine
({machine}), with real processes on private networks of 127.0.0.1. What holds, and why, is in
[protocol/session.md](protocol/session.md) section 7; the tests of it are in `tests/faults`.

{table}

*Lost*: neither in the log nor told in a gap line. *Told*: in a gap line, which says whose, how
many, which numbers and why. *Ships again*: from the moment at which the server is ready (the stop
is over, packets get through again) to the next trace in the log. Where 6,000 traces wait,
hyperlog's application was started while the server was away, and had to find it first; the
JavaScript application had known it before.

Where packets get lost, server and application run in network namespaces of their own, and all that
goes from one to the other goes through a program that drops it or not
([benchmarks/lossy_path.py](../benchmarks/lossy_path.py)): handshakes, the addresses that peers tell
each other, everything. Neither pair knows of it.
{note}
## Beside other shippers

Figures of the others are of a machine like this one, measured with their usual settings. Those of
hyperlog are what its tests assert (`tests/faults/test_processes.py`) at 500 traces a second.

| shipper | a kill or an outage | ships again after |
| --- | --- | --- |
| rsyslog, RELP over TLS | doubles 30 to 595 records at a kill | 30 s by default |
| syslog-ng, reliable disk buffer | loses 600 to 2,700 of a backlog | 59 s |
| OpenTelemetry SDK | loses 24 to 68 % of a burst, 38 % in an outage of 15 s | |
| hyperlog | 0 lost, 0 doubled | 1 s; 2 s if it never was connected |

RELP's default window of 128 records holds a sender to 700 a second; hyperlog has no window beside
the connection's flow control.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="measure nothing")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the page there")
    names = [scenario.__name__ for scenario in PLAIN + ON_A_PATH]
    parser.add_argument("--note", metavar="TEXT", help="a sentence about the run for the page")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument("--quick", action="store_true", help="8 s without a path, not 30")
    options = parser.parse_args()
    if options.source is not None:
        outcomes = msgspec_json.decode(options.source.read_bytes(), type=list[Outcome])
    else:
        outcomes = trio.run(measure, options.only, 8.0 if options.quick else Pair.partition)
    if options.json is not None:
        options.json.write_bytes(msgspec_json.format(msgspec_json.encode(outcomes), indent=1))
    text = table(outcomes)
    if options.table is not None:
        note = f"\n{textwrap.fill(options.note, 100)}\n" if options.note else ""
        machine = f"{platform.system()}, Python {platform.python_version()}"
        options.table.write_text(PAGE.format(machine=machine, table=text, note=note))
    print(text)


if __name__ == "__main__":
    main()
