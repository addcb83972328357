"""One session's folder: its segments in order, how far it is acknowledged, what was given up.

Only the owner of the session's lock appends and releases. Any process may remove segments that are
not the last, to keep the spool within its limit; it says so in `lost` first. The owner notices when
it comes to read them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final
from zlib import crc32

from hyperlog.diskspool.lock import SessionLock
from hyperlog.diskspool.segment import (
    HEADER_SIZE,
    MAX_INDEX,
    SegmentReader,
    SegmentWriter,
    encode_records,
    open_file,
    write_all,
)

__all__ = ["Hole", "SessionFiles", "load_acknowledged", "segment_name", "segments_in"]

FOLDER_MODE: Final = 0o700
MAX_WRITE: Final = 512 * 1024  # bytes encoded at a time, unless a message is longer
MAX_LOST_SIZE: Final = 1024 * 1024  # bytes read of the file
MAX_NUMBER: Final = 2**53
SCAN: Final = 256 * 1024  # bytes

_SEGMENT = re.compile(r"([0-9]{20})\.seg")
_LOST = re.compile(rb"([0-9]{1,16}) ([0-9]{1,16}) (spool-full|spool-damaged|buffer-full)")
_ACKNOWLEDGED: Final = Struct("<QI")


@dataclass(slots=True)
class Hole:
    """Numbers of records that nobody has any more."""

    first: int
    last: int
    reason: str


@dataclass(slots=True)
class _Segment:
    first: int
    """number in its name"""
    last: int
    """no higher number is in it"""
    path: str


def segment_name(first: int) -> str:
    return f"{first:020d}.seg"


def segments_in(names: Iterable[str]) -> list[int]:
    """First numbers of the segments among the names of files, in order."""
    found = []
    for name in names:
        match = _SEGMENT.fullmatch(name)
        if match is not None and int(match[1]) <= MAX_NUMBER:
            found.append(int(match[1]))
    return sorted(found)


def load_acknowledged(folder: str) -> int:
    """The highest number of a session that the server is known to hold; -1 for none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(os.path.join(folder, "acknowledged"), "rb") as file:
            data = file.read(_ACKNOWLEDGED.size)
    except FileNotFoundError:
        return -1
    if len(data) == _ACKNOWLEDGED.size:
        number: int
        number, checksum = _ACKNOWLEDGED.unpack(data)
        if crc32(data[:8]) == checksum and number <= MAX_NUMBER:
            return number
    return -1


class SessionFiles:
    """The files of one session, for the owner of its lock.

    Every method may raise OSError, and may be called again later: what was written stays.
    """

    def __init__(
        self,
        folder: str,
        segment_bytes: int,
        make_room: Callable[[SessionFiles, int], None],
    ) -> None:
        """`folder` and its lock are made when there is something to write.

        `make_room` is asked before a segment is made, with the bytes that it will have.
        """
        self.folder = folder
        self.last_number = -1
        """the highest that was written; none above it is on disk"""
        self.acknowledged = -1
        self.lock: SessionLock | None = None
        self._segment_bytes = segment_bytes
        self._make_room = make_room
        self._segments: list[_Segment] = []
        self._writer: SegmentWriter | None = None
        self._reader: SegmentReader | None = None
        self._acknowledged_file: int | None = None

    # -- what a process before this one left

    def load(self, lock: SessionLock) -> None:
        """Take over what is in the folder."""
        self.lock = lock
        self.acknowledged = load_acknowledged(self.folder)
        firsts = segments_in(os.listdir(self.folder))
        for first, after in zip(firsts, [*firsts[1:], None], strict=False):
            last = MAX_NUMBER if after is None else after - 1
            self._segments.append(_Segment(first, last, self._path(segment_name(first))))
        self.last_number = self.acknowledged
        if self._segments:
            final = self._segments[-1]
            final.last = self._last_in(final)
            self.last_number = max(self.last_number, final.last)
        for hole in self.load_lost():
            self.last_number = max(self.last_number, hole.last)
        self._forget_through(self.acknowledged)

    def _last_in(self, segment: _Segment) -> int:
        """The highest number in a segment; a segment that only has damage was begun for one."""
        reader = SegmentReader(segment.path, segment.first)
        last = segment.first - 1
        try:
            while (run := reader.read(last + 1, SCAN)) is not None:
                first, messages = run
                last = first + len(messages) - 1
        finally:
            reader.close()
        if last < segment.first and os.stat(segment.path).st_size:
            return segment.first
        return last

    def load_lost(self) -> list[Hole]:
        """What was given up, in no order; may overlap."""
        try:
            with open(self._path("lost"), "rb") as file:
                lines = file.read(MAX_LOST_SIZE).split(b"\n")
        except FileNotFoundError:
            return []
        holes = []
        for line in lines:
            match = _LOST.fullmatch(line)
            if match is not None and int(match[1]) <= int(match[2]) <= MAX_NUMBER:
                holes.append(Hole(int(match[1]), int(match[2]), match[3].decode()))
        return holes

    # -- writing

    def append(self, number: int, messages: Sequence[bytes]) -> None:
        """Write `messages`, the first of which has `number`, above all that were written.

        After an OSError those up to `last_number` are written.
        """
        limit = min(MAX_WRITE, self._segment_bytes)
        start, size = 0, 0
        for end, message in enumerate(messages):
            record_size = HEADER_SIZE + len(message)
            if size and size + record_size > limit:
                self._append_chunk(number + start, messages[start:end])
                start, size = end, 0
            size += record_size
        if start < len(messages):
            self._append_chunk(number + start, messages[start:] if start else messages)

    def _append_chunk(self, number: int, messages: Sequence[bytes]) -> None:
        writer, segments = self._writer, self._segments
        try:
            if writer is not None:
                first = segments[-1].first
                data = encode_records(messages, number - first)
                if (
                    writer.size + len(data) <= self._segment_bytes
                    and number - first + len(messages) <= MAX_INDEX
                ):
                    writer.append(data)
                    segments[-1].last = self.last_number = number + len(messages) - 1
                    return
            data = encode_records(messages, 0)
            writer = self._begin_segment(number, len(data))
            writer.append(data)
        except OSError:
            self._end_failed_segment()
            raise
        segments[-1].last = self.last_number = number + len(messages) - 1

    def _begin_segment(self, first: int, size: int) -> SegmentWriter:
        self._end_segment()
        self._take_lock()
        self._make_room(self, max(size, self._segment_bytes))
        os.makedirs(self.folder, FOLDER_MODE, exist_ok=True)
        path = self._path(segment_name(first))
        self._writer = SegmentWriter(path)
        if not self._segments or self._segments[-1].first != first:
            self._segments.append(_Segment(first, first - 1, path))
        return self._writer

    def _take_lock(self) -> None:
        # Before the folder is made: a folder without a lock that is held is an orphan.
        if self.lock is not None:
            if self.lock.valid:
                return
            self.close_descriptors()
            self.lock.release()
            self.lock = None
        os.makedirs(os.path.dirname(self.folder), FOLDER_MODE, exist_ok=True)
        self.lock = SessionLock.acquire(f"{self.folder}.lock")
        if self.lock is None:
            raise OSError(errno.EAGAIN, "another process has taken this session over")

    def _end_segment(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _end_failed_segment(self) -> None:
        empty = self._writer is not None and self._writer.size == 0
        self._end_segment()
        if empty:
            self._remove(self._segments[-1])

    def note_own_loss(self, hole: Hole) -> None:
        """`note_lost` for the owner, who may have nothing on disk yet."""
        self._take_lock()
        os.makedirs(self.folder, FOLDER_MODE, exist_ok=True)
        self.note_lost(hole.first, hole.last, hole.reason)

    def note_lost(self, first: int, last: int, reason: str) -> None:
        """Remember why numbers are missing, for the process that takes the session over."""
        descriptor = open_file(self._path("lost"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            write_all(descriptor, b"%d %d %s\n" % (first, last, reason.encode()))
        finally:
            os.close(descriptor)

    def drop(self, first: int) -> None:
        """Give a segment up, to make room."""
        for segment in self._segments:
            if segment.first == first:
                self.note_lost(first, max(segment.last, first), "spool-full")
                self._remove(segment)
                return
        self.unlink(first)  # what is not known is of no use

    def unlink(self, first: int) -> None:
        """Remove the file of a segment, unless somebody has."""
        try:
            os.unlink(self._path(segment_name(first)))
        except FileNotFoundError:
            pass

    # -- reading

    @property
    def first_number(self) -> int | None:
        """A number that no record on disk is below; None when there is none."""
        return self._segments[0].first if self._segments else None

    def read(
        self, number: int, max_bytes: int, *, skip_unreadable: bool = False
    ) -> tuple[int, list[bytes]] | None:
        """The first run at or after `number`; None when there is none up to `last_number`.

        Damage is passed over. Raises OSError where the reason may go away, unless such segments are
        to be passed over, too.
        """
        for segment in list(self._segments):
            if segment.last < number:
                continue
            try:
                run = self._open_reader(segment).read(number, max_bytes)
            except FileNotFoundError:
                self._close_reader()
                self._segments.remove(segment)  # another process made room
                continue
            except OSError as error:
                self._close_reader()
                if error.errno != errno.EIO and not skip_unreadable:
                    raise
                continue  # the disk cannot read it: damage
            if run is not None:
                return run
        return None

    def _open_reader(self, segment: _Segment) -> SegmentReader:
        reader = self._reader
        if reader is None or reader.first != segment.first:
            self._close_reader()
            reader = self._reader = SegmentReader(segment.path, segment.first)
        return reader

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    # -- forgetting

    def release_through(self, number: int) -> None:
        """Remember that the server holds all up to `number`, and remove what is below."""
        self.acknowledged = number
        if self.lock is None:
            return  # nothing was written
        try:
            self._write_acknowledged(number)
        finally:
            self._forget_through(number)

    def _write_acknowledged(self, number: int) -> None:
        if self._acknowledged_file is None:
            flags = os.O_WRONLY | os.O_CREAT
            self._acknowledged_file = open_file(self._path("acknowledged"), flags)
        checksum = crc32(number.to_bytes(8, "little"))
        os.lseek(self._acknowledged_file, 0, os.SEEK_SET)
        write_all(self._acknowledged_file, _ACKNOWLEDGED.pack(number, checksum))

    def _forget_through(self, number: int) -> None:
        while self._segments and self._segments[0].last <= number:
            if self._writer is not None and len(self._segments) == 1:
                break  # it goes on
            self._remove(self._segments[0])

    def _remove(self, segment: _Segment) -> None:
        if self._reader is not None and self._reader.first == segment.first:
            self._close_reader()
        self._segments.remove(segment)
        self.unlink(segment.first)

    def forget_removed(self) -> None:
        """Look which segments are still there."""
        try:
            left = set(segments_in(os.listdir(self.folder)))
        except FileNotFoundError:
            left = set()
        self._segments[:] = [segment for segment in self._segments if segment.first in left]

    # -- the end

    def close(self, *, remove: bool = False) -> None:
        """Give the session up; with `remove`, leave nothing behind that is its own."""
        self.close_descriptors()
        if self.lock is None:
            return
        if remove:
            try:
                self._remove_folder()
            except OSError:
                remove = False
        self.lock.release(remove=remove)
        self.lock = None

    def close_descriptors(self) -> None:
        """All but the lock's."""
        self._end_segment()
        self._close_reader()
        descriptor, self._acknowledged_file = self._acknowledged_file, None
        if descriptor is not None:
            os.close(descriptor)

    def _remove_folder(self) -> None:
        # `acknowledged` goes last: without it, records would seem to be missing.
        for segment in list(self._segments):
            self._remove(segment)
        for name in ("lost", "acknowledged"):
            try:
                os.unlink(self._path(name))
            except FileNotFoundError:
                pass
        try:
            os.rmdir(self.folder)
        except FileNotFoundError:
            pass

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)
