"""Runs `hyperlog` as its users do: as a process, of which tests see the lines and the status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

ROOT = Path(__file__).parent.parent
LINE_TIMEOUT = 20.0  # s; a busy machine may take long to start Python
STOP_TIMEOUT = 10.0  # s
RUN_TIMEOUT = 60.0  # s


def environment() -> dict[str, str]:
    """That of the commands: a report is as wide everywhere."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


class Running:
    """A command that has been started."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.stdout = self.stderr = b""

    async def line(self, number: int = 0) -> str:
        """The line of stdout with this number, as soon as it is there."""
        with trio.fail_after(LINE_TIMEOUT):
            while self.stdout.count(b"\n") <= number:
                data = await self.process.stdout.receive_some()
                assert data, f"ended with {await self.process.wait()}: {self.stderr.decode()}"
                self.stdout += data
        return self.stdout.decode().splitlines()[number]

    async def says(self, text: str, timeout: float = LINE_TIMEOUT) -> None:
        """Return when stderr has this text."""
        with trio.fail_after(timeout):
            while text not in self.stderr.decode():  # noqa: ASYNC110 - another process
                await trio.sleep(0.01)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        with trio.fail_after(STOP_TIMEOUT):
            status = await self.process.wait()
            async for data in self.process.stdout:
                self.stdout += data
        return status

    async def _read_stderr(self) -> None:
        async for data in self.process.stderr:
            self.stderr += data


@asynccontextmanager
async def running(
    *arguments: object,
    module: str = "hyperlog",
    prefix: tuple[str, ...] = (),
    cwd: Path | None = None,
) -> AsyncIterator[Running]:
    """A command that runs until the context is left; `prefix` is what runs it."""
    process = await trio.lowlevel.open_process(
        [*prefix, sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=cwd,
    )
    command = Running(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command._read_stderr)
        try:
            yield command
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    await process.stdout.aclose()


async def run(
    *arguments: object, stdin: bytes = b"", prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; `prefix` is what runs it."""
    command = [*prefix, sys.executable, "-m", "hyperlog", *map(str, arguments)]
    with trio.fail_after(RUN_TIMEOUT):
        return await trio.run_process(
            command,
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(),
        )


def option(address: tuple[str, int]) -> tuple[str, str]:
    """--bootstrap for a command."""
    return "--bootstrap", f"{address[0]}:{address[1]}"


async def report(*arguments: object, prefix: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    """The exit status of `hyperlog doctor` and what it prints with --json."""
    done = await run("doctor", *arguments, "--json", prefix=prefix)
    assert b"Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)
