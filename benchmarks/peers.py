"""The processes that are measured: the JavaScript drivers of tests/interop/js, and their
counterparts in benchmarks/python, which speak the same lines of JSON.

A peer gets its options as a JSON object in its last argument, prints one JSON event a line, takes
commands as JSON lines, and ends when its stdin is closed, or at SIGTERM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from benchmarks.figures import WrongResult
from benchmarks.machine import ROOT, Cost, cost
from tests.interop.harness import SCRIPTS, addresses, node_modules

Address = tuple[str, int]
Event = dict[str, Any]

START_TIMEOUT = 30.0  # s
STOP_TIMEOUT = 5.0  # s
EVENT_TIMEOUT = 120.0  # s
LOCALHOST = "127.0.0.1"
JS_BENCHMARKS = Path(__file__).parent / "js"
ERRORS_KEPT = 4000  # bytes of standard error in the message about a failure


class Peer:
    """One running process."""

    def __init__(self, process: trio.Process, name: str) -> None:
        self.process = process
        self.name = name
        self.ready: Event = {}
        """its first event"""
        self._events: list[Event] = []
        self._errors = b""
        self._ended = False
        self._changed = trio.Event()

    @property
    def public_key(self) -> str:
        """64 hex digits."""
        key: str = self.ready["publicKey"]
        return key

    def cost(self) -> Cost:
        """What the process has used so far."""
        return cost(self.process.pid)

    async def event(self, name: str, timeout: float = EVENT_TIMEOUT) -> Event:
        """The next event of this name, earlier ones that nobody asked for included.

        Raises:
            WrongResult: the process reported an error, ended, or let `timeout` seconds go by.
        """
        with trio.move_on_after(timeout):
            while True:
                for event in self._events:
                    if event["event"] in (name, "error"):
                        self._events.remove(event)
                        if event["event"] != name:
                            raise WrongResult(f"{self.name}: {event}")
                        return event
                if self._ended:
                    raise self._failure(f"ended before it reported {name!r}")
                await self._changed.wait()
        raise self._failure(f"did not report {name!r} within {timeout:g} s")

    async def command(self, **fields: object) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(fields).encode() + b"\n")

    def _failure(self, what: str) -> WrongResult:
        return WrongResult(f"{self.name} {what}; stderr:\n{self._errors.decode(errors='replace')}")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _read_events(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            self._events += [json.loads(line) for line in lines]
            self._wake()
        await self.process.wait()
        self._ended = True
        self._wake()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        async for data in self.process.stderr:
            self._errors = (self._errors + data)[-ERRORS_KEPT:]

    async def _stop(self) -> None:
        assert self.process.stdin is not None
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_TIMEOUT):
                await self.process.stdin.aclose()
                self.process.terminate()
                await self.process.wait()
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()


@asynccontextmanager
async def run_peer(command: Sequence[str | Path], *, ready: str = "ready") -> AsyncIterator[Peer]:
    """Run a process and wait for its event `ready`; end it with the context."""
    # Compiled files are kept, as in any installation.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = await trio.lowlevel.open_process(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**environment, "NODE_PATH": str(node_modules())},
    )
    peer = Peer(process, " ".join(Path(part).name for part in command[:3]))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer._read_events)
        nursery.start_soon(peer._read_errors)
        try:
            peer.ready = await peer.event(ready, START_TIMEOUT)
            yield peer
        except Exception as error:  # raised again below: a nursery would wrap it in a group
            failure = error
        finally:
            await peer._stop()  # the readers end with the process's pipes
    if failure is not None:
        raise failure


def _options(bootstrap: Sequence[Address], options: dict[str, Any]) -> str:
    nodes = [{"host": host, "port": port} for host, port in bootstrap]
    given = {name: value for name, value in options.items() if value is not None}
    return json.dumps({"bootstrap": nodes, **given})


def js(script: str, bootstrap: Sequence[Address], **options: object) -> list[str | Path]:
    """The command that runs a script of benchmarks/js, or else of tests/interop/js."""
    own = JS_BENCHMARKS / script
    return ["node", own if own.exists() else SCRIPTS / script, _options(bootstrap, options)]


def python(module: str, bootstrap: Sequence[Address], **options: object) -> list[str | Path]:
    """The command that runs a module of benchmarks/python."""
    return [sys.executable, "-m", f"benchmarks.python.{module}", _options(bootstrap, options)]


@asynccontextmanager
async def network(size: int = 4) -> AsyncIterator[list[Address]]:
    """A private DHT of JavaScript nodes on loopback; gives its bootstrap addresses."""
    async with run_peer(["node", SCRIPTS / "testnet.js", json.dumps({"size": size})]) as peer:
        yield addresses(peer.ready["bootstrap"])


def serve_command(folder: Path, bootstrap: Sequence[Address]) -> list[str | Path]:
    """The command that runs `hyperlog serve` on loopback, with log files alone.

    Its files are not rotated: LogFile reads one, and 200,000 lines are more than the 100 MB of the
    default.
    """
    nodes = [part for host, port in bootstrap for part in ("--bootstrap", f"{host}:{port}")]
    files = ["--folder", folder, "--keys", folder / "keys.dat"]
    return [
        *(sys.executable, "-m", "hyperlog", "serve", "--json", "--host", LOCALHOST),
        *("--http", "off", "--store", "off", "--rotate-size", "off"),
        *nodes,
        *files,
    ]


@asynccontextmanager
async def trace_server(
    language: str, folder: Path, bootstrap: Sequence[Address]
) -> AsyncIterator[Peer]:
    """The log server of one language, "js" or "python", with its log files in `folder`."""
    if language == "js":
        command, ready = js("server.js", bootstrap, folder=str(folder)), "ready"
    else:
        command, ready = serve_command(folder, bootstrap), "started"
    async with run_peer(command, ready=ready) as peer:
        yield peer


def trace_client_command(
    language: str, key: str, bootstrap: Sequence[Address], **options: object
) -> list[str | Path]:
    """The command that runs the tracing client of one language."""
    if language == "js":
        return js("client.js", bootstrap, key=key, **options)
    return python("trace_client", bootstrap, key=key, **options)
