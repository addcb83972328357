"""Real server and application processes that can be killed, stopped and started again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import trio

from hyperlog.keyfile import create_keys, load_keys

ROOT = Path(__file__).parent.parent.parent
APPLICATION = Path(__file__).parent / "application.py"
START_TIMEOUT = 20.0  # s
UNSAVED = 0.1  # s before a kill in which traces may be lost with the process
STALLS_WITHIN = 1.0  # s before a kill in which it counts that the machine let the process wait
PATIENCE = 5.0  # s that an application gives its client at its end, unless told otherwise


def slowdown(seconds: float = 0.05) -> float:
    """How many times longer than alone a busy process takes on this machine now; at least 1.

    What a limit in seconds is multiplied with where other tests run at the same time.
    """
    began_at, used = time.perf_counter(), time.thread_time()
    while time.thread_time() - used < seconds:
        pass
    return max((time.perf_counter() - began_at) / seconds, 1.0)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Process:
    """One process whose stdout is lines of JSON."""

    process: trio.Process
    _buffer: bytes = b""

    async def event(self, timeout: float = START_TIMEOUT) -> dict:
        with trio.fail_after(timeout):
            while b"\n" not in self._buffer:
                data = await self.process.stdout.receive_some()
                assert data, "the process has ended"
                self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    async def kill(self) -> float:
        """End it at once; the time, on the clock of this machine's processes."""
        now = trio.current_time()
        self.process.kill()
        await self.close()
        return now

    async def close(self) -> None:
        await self.process.wait()
        await self.process.stdout.aclose()


@dataclass
class Scene:
    """A folder with the keys, logs and spool of one server and one application."""

    folder: Path
    nursery: trio.Nursery
    rate: float = 500.0
    port: int = field(default_factory=free_port)
    bootstrap: str | None = None
    """where the application finds the server; its own address unless something is between them"""
    server: Process | None = None
    application: Process | None = None
    patience: float = PATIENCE
    runs: int = 0
    kills: dict[int, float] = field(default_factory=dict)
    """run: time of its kill, by time.monotonic"""

    def __post_init__(self) -> None:
        self.server_key = create_keys(self.folder / "server.keys").public_key.hex()
        create_keys(self.folder / "application.keys")

    @property
    def log(self) -> Path:
        key = load_keys(self.folder / "application.keys").public_key.hex()
        return self.folder / "logs" / f"{key}.log"

    async def start_server(self, *options: str) -> None:
        command = [sys.executable, "-m", "hyperlog", "serve", "--json", "--local"]
        command += ["--http", "off", "--store", "off"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *options]
        command += ["--keys", str(self.folder / "server.keys")]
        command += ["--folder", str(self.folder / "logs")]
        self.server = await self._start(command)
        assert (await self.server.event())["event"] == "started"

    async def start_application(self, **options: object) -> dict:
        self.runs += 1
        settings = {
            "server": self.server_key,
            "bootstrap": [self.bootstrap or f"127.0.0.1:{self.port}"],
            "keys": str(self.folder / "application.keys"),
            "spool": str(self.folder / "spool"),
            "journal": str(self.folder / "journal"),
            "run": self.runs,
            "rate": self.rate,
            "patience": PATIENCE,
            **options,
        }
        command = [sys.executable, str(APPLICATION), json.dumps(settings)]
        self.application = await self._start(command)
        self.patience = settings["patience"]
        return await self.application.event()

    async def _start(self, command: list[str]) -> Process:
        with (self.folder / "stderr").open("ab") as stderr:
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT
            )
        return Process(process)

    async def kill_application(self) -> None:
        self.kills[self.runs] = time.monotonic()
        await self.application.kill()

    async def stop_application(self) -> dict:
        """End it in order; what it told. The client has the application's `patience` for it."""
        self.application.send(signal.SIGTERM)
        while True:
            event = await self.application.event(self.patience + START_TIMEOUT)
            if event["event"] == "stopped":
                break
        await self.application.close()
        self.application = None
        return event

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            for process in (self.server, self.application):
                if process is not None and process.process.returncode is None:
                    await process.kill()

    # -- what came of it

    def journal(self) -> list[tuple[int, int, float]]:
        path = self.folder / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(run), int(n), float(at)) for run, n, at in map(str.split, lines)]

    def read_log(self) -> tuple[Counter[tuple[int, int]], list[dict], list[str]]:
        """How often each (run, n) is there, the gaps, and the notes."""
        records: Counter[tuple[int, int]] = Counter()
        gaps, notes = [], []
        for path in [*self.log.parent.glob(f"{self.log.name}.*"), self.log]:
            for line in path.read_bytes().splitlines() if path.exists() else ():
                try:
                    fields = json.loads(line)
                except ValueError:
                    continue  # torn, and closed off
                if "caller" in fields:
                    props = fields["caller"]["props"]
                    records[props["run"], props["n"]] += 1
                elif "gap" in fields:
                    gaps.append(fields["gap"])
                else:
                    notes.append(fields["note"])
        return records, gaps, notes

    def spooled(self) -> list[Path]:
        """Segments of the spool that hold something."""
        return [path for path in (self.folder / "spool").rglob("*.seg") if path.stat().st_size]

    async def until_logged(self, count: int, timeout: float) -> float:
        """Wait for records in the log; returns the time."""
        with trio.fail_after(timeout):
            while count_lines(self.log) < count:  # noqa: ASYNC110 - another process writes
                await trio.sleep(0.02)
        return trio.current_time()

    def assert_nothing_lost_or_doubled(self) -> int:
        """Each trace is in the log once; those of the last moment before a kill may be missing.

        Returns how many those are. The moment is longer by the longest time that the application
        had to wait for the machine just before: then its client had to, too.
        """
        records, gaps, notes = self.read_log()
        assert not gaps
        assert not [note for note in notes if note.startswith(("Skipped", "Bad", "Lost"))]
        assert max(records.values(), default=0) <= 1, "a record is doubled"
        journal = self.journal()
        stalls = {run: self._stall(run, journal) for run in self.kills}
        unsaved = 0
        for run, n, at in journal:
            if (run, n) in records:
                continue
            since = self.kills.get(run, float("inf")) - UNSAVED - stalls.get(run, 0.0)
            assert at >= since, f"{run}, {n} is lost, {since - at:.3f} s too early"
            unsaved += 1
        return unsaved

    def _stall(self, run: int, journal: list[tuple[int, int, float]]) -> float:
        """The longest time without an entry just before a run was killed, in s."""
        killed_at = self.kills[run]
        times = [at for number, _, at in journal if number == run]
        times = [at for at in times if killed_at - STALLS_WITHIN <= at <= killed_at]
        return max((after - at for at, after in pairwise([*times, killed_at])), default=0.0)


def count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b'"caller":') for block in iter(lambda: file.read(2**20), b""))
