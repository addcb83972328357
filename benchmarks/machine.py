"""The machine that a benchmark runs on: what it is, how busy it is, what a process costs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.interop.harness import node_modules

ROOT = Path(__file__).parent.parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Cost(Struct):
    """What a process has used."""

    cpu_seconds: float
    """in kernel and user mode, in steps of 10 ms"""
    peak_bytes: int
    """most resident memory since its start"""

    def since(self, before: Cost) -> Cost:
        return Cost(round(self.cpu_seconds - before.cpu_seconds, 2), self.peak_bytes)


def cost(pid: int) -> Cost:
    """What the process has used since its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return Cost((int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND, peak)


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used, other guests' stolen ones too."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (
        Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    ticks = sum(map(int, (user, nice, system, irq, softirq, steal)))
    return ticks / TICKS_PER_SECOND


def own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


class Observed:
    """How busy the machine is with other things, before something and during it."""

    def __init__(self) -> None:
        self.load = [round(load, 2) for load in os.getloadavg()]
        busy = busy_seconds()
        time.sleep(1.0)
        self.busy_before = round(busy_seconds() - busy, 2)
        self._begin = (time.monotonic(), busy_seconds(), own_seconds())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin[0]

    def busy_others(self) -> float:
        """Cores used by others since the beginning; call it when all children have ended."""
        _, busy, own = self._begin
        others = (busy_seconds() - busy) - (own_seconds() - own)
        return round(max(others / self.seconds, 0.0), 2)


def _output(*command: str) -> str:
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _javascript_version(package: str) -> str:
    text = (node_modules() / package / "package.json").read_text()
    version: str = json.loads(text)["version"]
    return version


def describe() -> dict[str, Any]:
    """Versions, commit and hardware."""
    commit = _output("git", "rev-parse", "--short", "HEAD")
    if _output("git", "status", "--porcelain", "--", "hyperlog"):
        commit += " with changes"
    packages = ("trio", "pynacl", "msgspec")
    javascript = ("hypertrace", "hypertrace-logger", "hyperdht", "udx-native")
    return {
        "commit": commit,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "node": _output("node", "--version").removeprefix("v"),
        **{name: _javascript_version(name) for name in javascript},
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
    }


def say(text: str) -> None:
    """Tell how far it is; results go to stdout."""
    print(text, file=sys.stderr, flush=True)
