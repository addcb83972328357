"""A `hyperlog serve` process under attack beside an honest client, both watched from outside.

Attackers are processes of their own (attacker.py) at a lower priority, since in the
world they run on other machines. The server's memory, descriptors and processor time are read from
/proc, its files from its folder. The honest client is a `hyperlog.Client`; how long each of its
traces takes is the time until its line can be read in the log file.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperlog import Client
from hyperlog.dht import KeyPair

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 20.0  # s until the server's first line
ATTACK_TIMEOUT = 30.0  # s beyond the seconds that an attack was given
SAMPLE_INTERVAL = 0.02  # s between two looks at /proc
FOLDER_INTERVAL = 0.5  # s between two looks at the sizes of all files
TRACE_INTERVAL = 0.01  # s between two traces of the honest client
POLL_INTERVAL = 0.002  # s between two looks at its log file: the error of every latency
SETTLE_TIMEOUT = 10.0  # s for what was traced to arrive
NICENESS = 15  # attackers are other machines: they do not compete for the server's processor
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")

Address = tuple[str, int]
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """A process, as the system sees it."""

    rss: int
    """bytes"""
    descriptors: int
    threads: int
    cpu: float
    """s, since its start"""


@dataclass(slots=True)
class Peak:
    """What a process and its folder came to at most."""

    rss: int = 0
    descriptors: int = 0
    folder: int = 0
    """bytes"""


class ServerProcess:
    """`hyperlog serve --local`, made by `serving`."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], stderr: Path) -> None:
        self.folder = folder
        self._process = process
        self._stderr = stderr
        started = json.loads(self._first_line())
        self.public_key = bytes.fromhex(started["publicKey"])
        self.address: Address = ("127.0.0.1", started["port"])

    def _first_line(self) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(START_TIMEOUT), f"the server does not start: {self.stderr}"
        line = self._process.stdout.readline()
        assert line, f"the server ended at once: {self.stderr}"
        return line

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def usage(self) -> Usage:
        proc = Path(f"/proc/{self._process.pid}")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        return Usage(
            rss=int((proc / "statm").read_text().split()[1]) * PAGE,
            descriptors=len(os.listdir(proc / "fd")),
            threads=int(fields[17]),
            cpu=(int(fields[11]) + int(fields[12])) / TICKS,
        )

    def folder_bytes(self) -> int:
        total = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    pass  # rotated meanwhile
        return total

    def log(self, key: bytes) -> bytes:
        """The bytes of all files of a key, oldest first."""
        live = self.folder / f"{key.hex()}.log"
        rotated = sorted(self.folder.glob(f"{live.name}.*"), key=lambda path: int(path.suffix[1:]))
        return b"".join(path.read_bytes() for path in [*rotated, live] if path.exists())

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def serving(folder: Path, *options: str, host: str = "127.0.0.1") -> Iterator[ServerProcess]:
    """Run a server whose logs go to `folder`/logs; `options` are those of `hyperlog serve`."""
    logs = folder / "logs"
    command = [sys.executable, "-m", "hyperlog", "serve", "--local", "--json", "--host", host]
    command += ["--http", "off", "--store", "off"]
    command += ["--folder", str(logs), "--keys", str(folder / "keys.dat"), *options]
    stderr = folder / "stderr"
    with open(stderr, "wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
    server = ServerProcess(logs, process, stderr)
    try:
        yield server
    finally:
        server.stop()


class HonestClient:
    """An application that traces a hundred times a second; made by `tracing`."""

    def __init__(self, server: ServerProcess) -> None:
        self.key_pair = KeyPair.generate()
        self._server = server
        self._client = Client()
        self._traced: list[float] = []
        """time of each trace, by its number"""
        self._arrived: dict[int, float] = {}
        self.doubled = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._trace, self._read)]

    def start(self) -> None:
        host, port = self._server.address
        self._client.start(
            self._server.public_key, bootstrap=[f"{host}:{port}"], key_pair=self.key_pair
        )
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._client.stop()

    def _trace(self) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            number = len(self._traced)
            self._traced.append(time.monotonic())
            # Not by a tracer: all of a process ship through the client that was started last, and
            # there may be another siege beside this one.
            self._client.add_trace({"id": "beat", "caller": {"props": {"beat": number}}})
            due += TRACE_INTERVAL
            self._over.wait(max(due - time.monotonic(), 0.0))

    def _read(self) -> None:
        path = self._server.folder / f"{self.key_pair.public_key.hex()}.log"
        file = None
        rest = b""
        while not self._over.wait(POLL_INTERVAL):
            if file is None:
                try:
                    file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
                except FileNotFoundError:
                    continue
            data = file.read()
            if data:
                now = time.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line), now)
        if file is not None:
            file.close()

    def _take(self, line: dict[str, Any], now: float) -> None:
        if line.get("id") == "beat":
            number = line["caller"]["props"]["beat"]
            self.doubled += number in self._arrived
            self._arrived[number] = now

    @property
    def traced(self) -> int:
        return len(self._traced)

    def wait_arrived(self, count: int) -> None:
        """Return when the first `count` traces stand in the file, or after SETTLE_TIMEOUT."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while self.missing(0, count) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)

    def missing(self, first: int, end: int) -> int:
        """How many of these traces do not stand in the file."""
        return sum(number not in self._arrived for number in range(first, end))

    def latencies(self, first: int, end: int) -> list[float]:
        """Seconds from trace to line for these traces, ascending; those that arrived."""
        times = [(n, self._arrived.get(n)) for n in range(first, end)]
        return sorted(at - self._traced[n] for n, at in times if at is not None)

    def traced_since(self, moment: float) -> int:
        """The number of the first trace at or after a time of the monotonic clock."""
        return bisect_left(self._traced, moment)


@contextmanager
def tracing(server: ServerProcess) -> Iterator[HonestClient]:
    """Run an honest client; its first traces are in the file when this is entered."""
    client = HonestClient(server)
    client.start()
    try:
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while client.missing(0, 10) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
        if client.missing(0, 10):
            raise RuntimeError(f"the honest client does not get in: {server.stderr}")
        yield client
    finally:
        client.stop()


@dataclass(slots=True)
class Report:
    """What one attack did to the server and to the honest client."""

    name: str
    attack: Figures
    """what the attacker says of itself"""
    seconds: float
    rss_growth: int
    """bytes, at the worst moment, over the server that served the honest client alone"""
    descriptors: int
    """at the worst moment, over the same"""
    folder_growth: int
    """bytes"""
    cpu: float
    """s of the server"""
    lost: int
    """traces of the honest client"""
    median: float
    p99: float
    worst: float
    """s, from trace to line"""

    def __str__(self) -> str:
        attack = " ".join(f"{name}={value}" for name, value in self.attack.items())
        return (
            f"{self.name:24} {self.seconds:5.1f} s  rss +{self.rss_growth / 2**20:5.1f} MB  "
            f"fds +{self.descriptors:3}  folder +{self.folder_growth / 2**20:6.1f} MB  "
            f"cpu {self.cpu:5.1f} s  honest p50/p99/max "
            f"{self.median * 1e3:3.0f}/{self.p99 * 1e3:3.0f}/{self.worst * 1e3:4.0f} ms  "
            f"lost {self.lost}  {attack}"
        )


class Siege:
    """A server, an honest client, and what they are like when nobody attacks."""

    def __init__(self, server: ServerProcess, honest: HonestClient) -> None:
        self.server = server
        self.honest = honest
        self.calm = server.usage()

    def attack(self, name: str, *, seconds: float = 1.0, seed: int = 0, **options: Any) -> Report:
        """Run an attack of hostile.py or packets.py to its end, and measure meanwhile."""
        folder_before = self.server.folder_bytes()
        cpu_before = self.server.usage().cpu
        peak = Peak()
        begun = time.monotonic()
        attacker = self.start(name, seconds=seconds, seed=seed, options=options)
        try:
            self._watch(attacker, peak, begun + seconds + ATTACK_TIMEOUT)
        finally:
            attacker.kill()
            output, _ = attacker.communicate()
        ended = time.monotonic()
        assert attacker.returncode == 0, f"{name} ended with {attacker.returncode}"
        assert self.server.alive, f"the server did not survive {name}:\n{self.server.stderr}"
        honest = self.honest
        first, end = honest.traced_since(begun), honest.traced
        honest.wait_arrived(end)
        latencies = honest.latencies(first, end) or [float("inf")]
        return Report(
            name=name,
            attack=json.loads(output),
            seconds=ended - begun,
            rss_growth=peak.rss - self.calm.rss,
            descriptors=peak.descriptors - self.calm.descriptors,
            folder_growth=peak.folder - folder_before,
            cpu=self.server.usage().cpu - cpu_before,
            lost=honest.missing(0, end),
            median=latencies[len(latencies) // 2],
            p99=latencies[len(latencies) * 99 // 100],
            worst=latencies[-1],
        )

    @contextmanager
    def newcomers(self, *, seconds: float, seed: int) -> Iterator[Figures]:
        """Have honest clients come for the first time during the block; how they fared is told in
        what is given, after it."""
        fared: Figures = {}
        visitor = self.start("newcomers", seconds=seconds, seed=seed, options={}, niceness=0)
        try:
            yield fared
            fared.update(json.loads(visitor.communicate(timeout=seconds + ATTACK_TIMEOUT)[0]))
            print(f"newcomers: {fared}")
        finally:
            visitor.kill()
            visitor.communicate()

    def start(
        self, name: str, *, seconds: float, seed: int, options: Figures, niceness: int = NICENESS
    ) -> subprocess.Popen[bytes]:
        """Start one of these as a process; `niceness` 0 for those that do no harm."""
        target = {
            "name": name,
            "key": self.server.public_key.hex(),
            "port": self.server.address[1],
            "seconds": seconds,
            "seed": seed,
            "options": options,
            "niceness": niceness,
        }
        command = [sys.executable, "-m", "tests.faults.attacker", json.dumps(target)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)

    def _watch(self, attacker: subprocess.Popen[bytes], peak: Peak, deadline: float) -> None:
        over = False
        folder_at = 0.0
        while not over:
            over = attacker.poll() is not None or time.monotonic() > deadline
            usage = self.server.usage()
            peak.rss = max(peak.rss, usage.rss)
            peak.descriptors = max(peak.descriptors, usage.descriptors)
            if over or time.monotonic() >= folder_at:
                # Seldom: with 10,000 files it takes the honest client's time, which runs here.
                peak.folder = max(peak.folder, self.server.folder_bytes())
                folder_at = time.monotonic() + FOLDER_INTERVAL
            time.sleep(SAMPLE_INTERVAL)
