"""Follows the server's log files from outside, as a tailer does, and checks what is in them."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from benchmarks.figures import WrongResult

POLL = 0.002  # s between looks at the size
READ = 1 << 20  # bytes
IN_MODIFY = 0x2
IN_CREATE = 0x100
MAX_EVENT = 16 + 256  # bytes, struct inotify_event with a name


class _Line(msgspec.Struct, rename="camel"):
    trace_number: int | None = None
    id: str | None = None
    note: str | None = None
    caller: msgspec.Raw = msgspec.Raw(b"")


class _Caller(msgspec.Struct):
    props: dict[str, object]


_decode = msgspec.json.Decoder(_Line).decode
_decode_caller = msgspec.json.Decoder(_Caller).decode


class LogFile:
    """One growing log file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = bytearray()
        """all that was read and not yet checked"""
        self._fd: int | None = None
        self._checked = 0
        self._notes = 0

    def read(self) -> None:
        """Add what has come since the last call."""
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:
                return
        while chunk := os.read(self._fd, READ):
            self.data += chunk

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)

    async def wait_traces(self, count: int, timeout: float) -> None:
        """Return when `count` more traces are complete in the file than were checked so far.

        The first line of a file is a note. Further notes tell of losses, which `check` tells of.

        Raises:
            WrongResult: they are not there within `timeout` seconds.
        """
        wanted = count + (self._checked == 0)
        counted = lines = 0
        with trio.move_on_after(timeout):
            while True:
                self.read()
                lines += self.data.count(b"\n", counted)
                counted = len(self.data)
                if lines >= wanted:
                    return
                await trio.sleep(POLL)
        raise WrongResult(f"{lines} of {wanted} lines in the log file after {timeout:g} s")

    def check(self, count: int) -> float:
        """Check that exactly the next `count` traces were read, in order; average bytes a line.

        Raises:
            WrongResult: they were not.
        """
        lines = bytes(self.data).split(b"\n")
        if lines.pop():
            raise WrongResult("the log file ends within a line")
        if self._checked == 0:
            note = _decode(lines.pop(0)).note
            if note is None or not note.startswith("New session"):
                raise WrongResult(f"the log file begins with {note!r}")
        if len(lines) != count:
            raise WrongResult(f"{len(lines)} lines instead of {count}, the last: {lines[-1:]}")
        for number, text in enumerate(lines, self._checked):
            line = _decode(text)
            if line.trace_number != number:
                raise WrongResult(f"trace {number} expected, got {text[:300]!r}")
            props = _decode_caller(line.caller).props
            if not (line.id or "").startswith("order-") or props.get("n") != number:
                raise WrongResult(f"not what was traced: {text[:600]!r}")
        size = len(self.data) / count
        self._checked += count
        self.data.clear()
        return size

    def stamps(self) -> list[int]:
        """Take the complete lines; the time of the trace in each, ns on the monotonic clock."""
        end = self.data.rfind(b"\n") + 1
        lines = bytes(self.data[:end]).split(b"\n")[:-1]
        del self.data[:end]
        stamps = []
        for text in lines:
            line = _decode(text)
            if line.note is not None:
                raise WrongResult(f"a note between traces: {line.note}")
            if line.trace_number != self._checked:
                raise WrongResult(f"trace {self._checked} expected, got {line.trace_number}")
            self._checked += 1
            stamp = _decode_caller(line.caller).props["sentAt"]
            assert isinstance(stamp, int)
            stamps.append(stamp)
        return stamps


class Watch:
    """Tells when something in a folder is written, without polling."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_MODIFY | IN_CREATE) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", folder)

    async def changed(self) -> set[str]:
        """Wait for the next change; the names of the files concerned."""
        await trio.lowlevel.wait_readable(self._fd)
        data = os.read(self._fd, 64 * MAX_EVENT)
        names = set()
        while data:
            _, _, _, length = struct.unpack_from("iIII", data)
            names.add(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        return names

    def close(self) -> None:
        os.close(self._fd)


@asynccontextmanager
async def watch(folder: Path) -> AsyncIterator[Watch]:
    """Watch a folder for as long as the context lasts."""
    watcher = Watch(folder)
    try:
        yield watcher
    finally:
        watcher.close()
