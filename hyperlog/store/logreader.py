"""Reads what a folder's log files have grown by, each from where it was read to before.

A file is known by its first line, so that it may be renamed, moved out and brought back. How far it
was read is checked by the bytes before that place: a file that was truncated or written anew since
is read from its beginning. Who receives the records twice then tells them by their ids.

The live file's last line may be unfinished, and waits. What is torn for good, at the end of a file
that was rotated or before a line feed, is a line like any other here and no record later.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperlog.sinks.folder import log_files

__all__ = ["Chunk", "LogReader", "Position"]

HEAD_SIZE: Final = 4096  # bytes of a file's first line that tell it from others
CHECK_SIZE: Final = 64  # bytes before a position that are compared
CHUNK_SIZE: Final = 512 * 1024  # bytes read of one file at a time
MAX_LINE: Final = 16 * 1024 * 1024  # bytes; longer ones are passed over
SETTLED_AFTER: Final = 5.0  # s; a rotated file that rested so long gets no more lines

_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a named pipe in the way must not block us
)


@dataclass(frozen=True, slots=True)
class Position:
    """How far one log file was read."""

    source: bytes
    """32 bytes, those of the file's name"""
    file: str
    """fingerprint of its first line, 32 hex digits"""
    offset: int
    """bytes"""
    check: int
    """CRC-32 of the last bytes before it, at most 64"""


@dataclass(slots=True)
class Chunk:
    """Whole lines of one file."""

    source: bytes
    lines: list[bytes]
    """without newlines; empty ones are left out"""
    size: int
    """bytes of the file, also of what is passed over"""
    position: Position
    """behind them"""


@dataclass(slots=True, eq=False)
class _File:
    source: bytes
    number: int
    """of a rotated file; 0 for the live one"""
    identity: tuple[int, int]
    size: int
    modified: float
    print: str | None = None
    """fingerprint, once its first line is complete"""
    offset: int = 0
    check: int = 0

    @property
    def name(self) -> str:
        name = f"{self.source.hex()}.log"
        return f"{name}.{self.number}" if self.number else name

    @property
    def rest(self) -> int:
        return max(self.size - self.offset, 0)


class LogReader:
    """The files of a folder and what is unread of them. For one thread, but for `behind`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[tuple[int, int], _File] = {}
        """by device and inode"""
        self._live: dict[bytes, _File] = {}
        self._known: dict[tuple[bytes, str], Position] = {}
        self._missing: set[tuple[bytes, str]] = set()
        """those that the last look did not find"""
        self._waiting: dict[bytes, list[_File]] = {}
        """files with unread bytes by source, those that are to be read first last; the source
        whose turn is next comes first"""
        self.behind = 0
        """unread bytes, as far as known"""

    # -- what there is

    def start(self, positions: Iterable[Position]) -> None:
        """Begin at these positions, and with files that none of them names at their beginning.

        Raises:
            OSError: the folder cannot be read.
        """
        self._known = {(one.source, one.file): one for one in positions}
        self._missing = set()
        self._files.clear()
        self._live.clear()
        self.scan()

    def scan(self) -> list[Position]:
        """Look at all files; returns the positions of those that have gone for good.

        Raises:
            OSError: the folder cannot be read.
        """
        files: dict[tuple[int, int], _File] = {}
        self._live = {}
        for source, number, status in log_files(self.folder):
            identity = (status.st_dev, status.st_ino)
            file = self._files.get(identity)
            if file is None or file.source != source or status.st_size < file.offset:
                file = _File(source, number or 0, identity, status.st_size, status.st_mtime)
            file.number, file.size, file.modified = number or 0, status.st_size, status.st_mtime
            files[identity] = file
            if not number:
                self._live[source] = file
        self._files = files
        behind = 0
        self._waiting = {}
        for file in sorted(files.values(), key=lambda file: (not file.number, file.number)):
            if file.print is None:
                self._recognise(file)
            behind += file.rest
            if file.rest:
                self._waiting.setdefault(file.source, []).insert(0, file)
        self.behind = behind
        held = {(file.source, file.print) for file in files.values()}
        missing = {key for key in self._known if key not in held}
        # A file that is renamed while we look may be under neither name: it takes two looks.
        gone = [self._known.pop(key) for key in missing & self._missing]
        self._missing = missing
        return gone

    def grown(self, source: bytes, size: int) -> bool:
        """`size` bytes were appended to the live file of a source; False if it is not known yet."""
        file = self._live.get(source)
        if file is None:
            return False
        file.size += size
        self.behind += size
        files = self._waiting.setdefault(source, [])
        if file not in files:
            files.insert(0, file)
        return True

    def _recognise(self, file: _File) -> None:
        try:
            descriptor = os.open(self.folder / file.name, _FLAGS)
        except OSError:
            return  # the next look finds out
        try:
            self._recognise_open(file, descriptor)
        except OSError:
            pass
        finally:
            os.close(descriptor)

    def _recognise_open(self, file: _File, descriptor: int) -> None:
        file.print, file.offset, file.check = None, 0, 0
        head = _pread(descriptor, HEAD_SIZE, 0)
        end = head.find(b"\n")
        if end < 0 and len(head) < HEAD_SIZE and not self._is_settled(file):
            return
        head = head if end < 0 else head[:end]
        file.print = hashlib.blake2b(head, digest_size=16).hexdigest()
        position = self._known.get((file.source, file.print))
        if position is not None and position.offset <= os.fstat(descriptor).st_size:
            size = min(position.offset, CHECK_SIZE)
            if zlib.crc32(_pread(descriptor, size, position.offset - size)) == position.check:
                file.offset, file.check = position.offset, position.check

    def _is_settled(self, file: _File) -> bool:
        return file.number > 0 and time.time() - file.modified > SETTLED_AFTER

    # -- what is new

    @property
    def has_more(self) -> bool:
        """Whether `next_chunk` may find something."""
        return bool(self._waiting)

    def next_chunk(self) -> Chunk | None:
        """Lines of the source whose turn it is; None if there are none, of any source, now."""
        while self._waiting:
            source = next(iter(self._waiting))
            files = self._waiting.pop(source)
            chunk = None
            while files and chunk is None:
                chunk = self._read(files[-1])
                if chunk is None or not files[-1].rest:
                    files.pop()
            if files:
                self._waiting[source] = files  # behind the others
            if chunk is not None:
                return chunk
        return None

    def _read(self, file: _File) -> Chunk | None:
        try:
            descriptor = os.open(self.folder / file.name, _FLAGS)
        except OSError:
            return None  # the next look finds out
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != file.identity:
                return None
            self.behind -= file.rest
            file.size, file.modified = status.st_size, status.st_mtime
            if file.print is None or not self._is_as_left(file, descriptor):
                self._recognise_open(file, descriptor)
            self.behind += file.rest
            return None if file.print is None else self._read_open(file, descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _is_as_left(self, file: _File, descriptor: int) -> bool:
        size = min(file.offset, CHECK_SIZE)
        return zlib.crc32(_pread(descriptor, size, file.offset - size)) == file.check

    def _read_open(self, file: _File, descriptor: int) -> Chunk | None:
        assert file.print is not None
        size = CHUNK_SIZE
        while True:
            data = _pread(descriptor, size, file.offset)
            end = data.rfind(b"\n") + 1
            if end or len(data) < size or size >= MAX_LINE:
                break
            size *= 4
        if not end:
            if len(data) < size and not self._is_settled(file):
                return None
            end = len(data)
        if not end:
            return None
        self.behind -= file.rest
        file.offset += end
        size = min(file.offset, CHECK_SIZE)
        file.check = zlib.crc32(_pread(descriptor, size, file.offset - size))
        self.behind += file.rest
        position = Position(file.source, file.print, file.offset, file.check)
        self._known[file.source, file.print] = position
        lines = [line for line in data[:end].split(b"\n") if line]
        return Chunk(file.source, lines, end, position)


def _pread(descriptor: int, size: int, start: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, size)
