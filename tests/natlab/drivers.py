"""Programs that run on the hosts of a laboratory, in Python or in JavaScript, and take commands.

What commands there are stands in pyhost.py.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

from tests.interop.harness import node_modules
from tests.natlab.lab import Lab

ROOT = Path(__file__).parent.parent.parent
PYTHON, JAVASCRIPT = "python", "javascript"
LANGUAGES = (PYTHON, JAVASCRIPT)
COMMANDS = {
    PYTHON: [sys.executable, "-m", "tests.natlab.pyhost"],
    JAVASCRIPT: ["node", str(Path(__file__).parent / "js" / "host.js")],
}
TIMEOUT = 30.0  # s for a command that names no limit of its own
GRACE = 20.0  # s that a driver may take beyond a limit that it was given
STOP_TIMEOUT = 4.0  # s
MAX_STDERR = 16 * 1024  # bytes kept for a failure's message

Answer = dict[str, Any]


class DriverFailed(AssertionError):
    """A driver has ended or does not answer."""


class CommandFailed(Exception):
    """The peer could not do what it was told to: an outcome."""

    def __init__(self, code: str, message: str, milliseconds: float) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.milliseconds = milliseconds


class Driver:
    """One running program."""

    def __init__(self, process: trio.Process, place: str, language: str) -> None:
        self.place = place
        self.language = language
        self._process = process
        self._ids = itertools.count(1)
        self._answers: dict[int, Answer] = {}
        self._stderr = b""
        self._ended = False
        self._changed = trio.Event()

    async def call(self, command: str, **options: Any) -> Answer:
        """Give a command and wait for its answer; options that are None are left out.

        Raises:
            CommandFailed: the peer reports an error.
            DriverFailed: it is gone, or silent for longer than the option `timeout` allows.
        """
        given = {name: value for name, value in options.items() if value is not None}
        number = next(self._ids)
        line = json.dumps({"id": number, "command": command, **given}).encode() + b"\n"
        assert self._process.stdin is not None
        limit = options["timeout"] + GRACE if "timeout" in options else TIMEOUT
        with trio.move_on_after(limit):
            try:
                await self._process.stdin.send_all(line)
            except trio.BrokenResourceError:
                raise DriverFailed(self._describe(f"cannot be told to {command}")) from None
            while number not in self._answers and not self._ended:
                await self._changed.wait()
        answer = self._answers.pop(number, None)
        if answer is None:
            raise DriverFailed(self._describe(f"did not answer {command!r}"))
        if "error" in answer:
            raise CommandFailed(answer["error"], answer["message"], answer["milliseconds"])
        return answer

    def kill(self) -> None:
        """End the program without a word to its peers."""
        self._process.kill()

    def _describe(self, what: str) -> str:
        stderr = self._stderr.decode(errors="replace").strip() or "(empty)"
        status = self._process.returncode
        return f"{self.language} on {self.place} {what}; exit status {status}, stderr:\n{stderr}"

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _read_answers(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                self._answers[answer["id"]] = answer
            self._wake()
        await self._process.wait()
        self._ended = True
        self._wake()

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        async for data in self._process.stderr:
            self._stderr = (self._stderr + data)[-MAX_STDERR:]

    async def _stop(self) -> None:
        assert self._process.stdin is not None
        with trio.move_on_after(STOP_TIMEOUT, shield=True):
            await self._process.stdin.aclose()
            await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
            with trio.CancelScope(shield=True):
                await self._process.wait()


async def keep_driver(
    lab: Lab, place: str, language: str, *, task_status: trio.TaskStatus[Driver]
) -> None:
    """Run a program on a host of the lab, or on `net`, until cancelled."""
    process = await trio.lowlevel.open_process(
        [*lab.inside(place), *COMMANDS[language]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "NODE_PATH": str(node_modules())},
    )
    driver = Driver(process, place, language)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver._read_answers)
            nursery.start_soon(driver._read_stderr)
            task_status.started(driver)
    finally:
        await driver._stop()
