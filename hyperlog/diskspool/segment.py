"""One file of records: appended in batches, read in runs, also around damage.

A record is a header and the bytes of the message:

    magic ff 48 4c fe | length u32 | index u32 | crc32 u32        little-endian

The index is the record's number less the number in the name of the file, so that the name vouches
for the upper bits. It seeds the checksum of the message: a header that lies about its index or
length does not pass. The magic cannot occur in UTF-8, so that after damage the next one found is a
record and not a part of a text. Indexes only grow; what does not grow is passed over, so that a
batch may be written again after a write that failed halfway.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from struct import Struct
from typing import Final
from zlib import crc32

__all__ = ["HEADER_SIZE", "MAX_INDEX", "SegmentReader", "SegmentWriter", "encode_records"]

MAGIC: Final = b"\xffHL\xfe"
MAX_LENGTH: Final = 16 * 1024 * 1024  # bytes of a message; longer ones are damage
MAX_INDEX: Final = 2**32 - 1
CHUNK: Final = 256 * 1024  # bytes read at a time, unless a record is longer
FILE_MODE: Final = 0o600

_HEADER: Final = Struct("<4sIII")
HEADER_SIZE: Final = _HEADER.size
_EXTRA_FLAGS: Final = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
)


def open_file(path: str, flags: int) -> int:
    """A descriptor that no other program inherits, of a file that is no link; mode 0600."""
    return os.open(path, flags | _EXTRA_FLAGS, FILE_MODE)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; what stands in the file after an OSError may be a part of it."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def encode_records(messages: Sequence[bytes], index: int) -> bytes:
    """The records of `messages`, the first with `index`."""
    pack = _HEADER.pack
    parts: list[bytes] = []
    append = parts.append
    for message in messages:
        append(pack(MAGIC, len(message), index, crc32(message, index)))
        append(message)
        index += 1
    return b"".join(parts)


class SegmentWriter:
    """The end of one segment."""

    def __init__(self, path: str) -> None:
        """Open the segment, made if missing.

        Raises:
            OSError: it cannot be.
        """
        self._descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.size = os.fstat(self._descriptor).st_size
        """bytes in the file"""

    def append(self, data: bytes) -> None:
        """Hand `data` to the kernel: from then on it survives this process.

        Raises:
            OSError: nothing of it counts; close the segment.
        """
        if os.fstat(self._descriptor).st_nlink == 0:
            raise FileNotFoundError("the spool's file was removed")
        try:
            write_all(self._descriptor, data)
        except OSError:
            try:
                os.ftruncate(self._descriptor, self.size)
            except OSError:
                pass  # readers pass over the half batch
            raise
        self.size += len(data)

    def close(self) -> None:
        os.close(self._descriptor)


class SegmentReader:
    """A place in one segment, which moves on as records are read; sees what is appended later."""

    def __init__(self, path: str, first: int) -> None:
        """`first` is the number in the name of the file.

        Raises:
            OSError: it cannot be opened.
        """
        self.first = first
        self._descriptor = open_file(path, os.O_RDONLY)
        self._offset = 0
        self._index = 0  # lowest that may come next

    def close(self) -> None:
        os.close(self._descriptor)

    def read(self, number: int, max_bytes: int) -> tuple[int, list[bytes]] | None:
        """The first run of consecutive records at or after `number`: (its first number, messages).

        The messages have up to `max_bytes` together, but there is at least one. None when the
        segment has no such record.

        Raises:
            OSError: the file cannot be read now.
        """
        wanted = number - self.first
        if wanted < self._index:
            self._offset = self._index = 0
        run: list[bytes] = []
        unpack = _HEADER.unpack_from
        index = self._index
        chunk = min(CHUNK, max_bytes + CHUNK // 4)
        while True:
            data = self._chunk(chunk)
            at, end = 0, len(data)
            while end - at >= HEADER_SIZE:
                magic, length, found, checksum = unpack(data, at)
                stop = at + HEADER_SIZE + length
                if magic == MAGIC and length <= MAX_LENGTH:
                    if stop > end:
                        break
                    message = data[at + HEADER_SIZE : stop]
                    if crc32(message, found) == checksum:
                        if found >= wanted and found >= index:
                            if run and (found != index or length > max_bytes):
                                self._offset += at
                                self._index = index
                                return self.first + index - len(run), run
                            run.append(message)
                            max_bytes -= length
                        index = max(index, found + 1)
                        at = stop
                        continue
                at = _next_magic(data, at)
            else:
                stop = at + HEADER_SIZE
            # The record at `at`, if it is one, goes on beyond the chunk.
            self._offset += at
            self._index = index
            if at == 0 and end < chunk:
                if end < HEADER_SIZE:
                    break
                self._offset += _next_magic(data, 0)  # torn off, or its length is damaged
                chunk = CHUNK
            else:
                chunk = max(CHUNK, stop - at)
        if run:
            return self.first + index - len(run), run
        return None

    def _chunk(self, size: int) -> bytes:
        os.lseek(self._descriptor, self._offset, os.SEEK_SET)
        return os.read(self._descriptor, size)


def _next_magic(data: bytes, at: int) -> int:
    """Where after `at` the next record may begin."""
    place = data.find(MAGIC, at + 1)
    return place if place >= 0 else max(len(data) - len(MAGIC) + 1, at + 1)
