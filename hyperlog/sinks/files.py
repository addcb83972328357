"""Log files: one `<64 hex digits>.log` per remote key, one JSON object per line.

Made for tailers (promtail, Alloy, tail -F) as the JavaScript server's files are: lines are only
ever appended, whole lines in one write, never rewritten or truncated. What does not end in a
newline after a crash or on a full disk is closed off before the next line.

Files are rotated by renaming to `<key>.log.<n>` (a name that ends in `.log` would be read twice),
here by size and age or by others at any time: the new file is begun within a second. It starts with
a line that tells what the files before it hold, see `scan`.

The files are also the server's memory of sessions: `resume` reads it back from their ends.

Source: hypertrace-logger server.js `_writeToLogFile`; docs/protocol/trace-protocol.md section 2.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from hyperlog.errors import SinkError
from hyperlog.sinks.folder import FilePolicy, LogFolder
from hyperlog.sinks.scan import (
    MAX_SESSIONS,
    Sessions,
    continuation_line,
    is_continuation,
    session_of_line,
)

__all__ = ["FileSink"]

FILE_MODE: Final = 0o640  # readable by the group: a tailer needs no root
FOLDER_MODE: Final = 0o750
MAX_OPEN_FILES: Final = 128
ROTATION_RETRY: Final = 60.0  # s, after a file could not be renamed
CHECK_INTERVAL: Final = 1.0  # s, between two looks for a file that others have renamed
HEAD_SIZE: Final = 64 * 1024  # bytes read for a file's first line

# Each where the platform has it; binary because Windows would write \r\n.
_FLAGS = (
    os.O_RDWR
    | os.O_APPEND
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a named pipe in the way must not block us
)
_sync_data = getattr(os, "fdatasync", os.fsync)

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota or free some space",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f) or rotate earlier",
    errno.EACCES: "make it writable for this user",
    errno.EPERM: "make it writable for this user",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "create the folder above it again",
    errno.ENOTDIR: "choose a folder, not a file",
    errno.EEXIST: "choose a folder, not a file",
    errno.ELOOP: "remove the symbolic link",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
    errno.EIO: "check the disk",
}


@dataclass(slots=True)
class _OpenFile:
    path: str
    descriptor: int
    identity: tuple[int, int]
    """device and inode"""
    size: int
    torn: bool
    """the last line has no newline"""
    header: bytes
    """to be written before anything else"""
    begun_at: float
    """s since 1970"""
    check_at: float
    sessions: dict[str, int] = field(default_factory=dict)
    """last number by session id, those that are known here, the latest last"""
    all_sessions: bool = False
    """there are no others in this file and those before it"""
    synced_size: int = 0
    """bytes that were there at the last sync"""
    unsynced: list[bytes] = field(default_factory=list)
    """lines written since then, in a sink that is synced"""


class _FirstLine(Struct, gc=False):
    time: str = ""


_TIME = re.compile(rb'\{"time":"([^"\\]{1,40})"')
_decode_first_line = msgspec.json.Decoder(_FirstLine).decode


class FileSink:
    """Appends lines to one file per key in a folder. For one thread; calls block on the disk.

    Only `resume` may be called from other threads at the same time.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        max_open_files: int = MAX_OPEN_FILES,
        policy: FilePolicy | None = None,
        *,
        synced: bool = False,
    ) -> None:
        """The folder is made if it is missing.

        With `synced`, every call of `write` is going to be followed by `sync`; new names are then
        made durable, too.

        Raises:
            SinkError: the folder cannot be made or read, or is no folder.
        """
        self.folder = Path(folder)
        self.policy = FilePolicy() if policy is None else policy
        self.table = LogFolder(self.folder, self.policy)
        self.rotations = 0
        self._rotate_again_at = -ROTATION_RETRY
        self._max_open_files = max_open_files
        self._synced = synced
        self._files: OrderedDict[bytes, _OpenFile] = OrderedDict()
        try:
            self.folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise self._error("cannot make the log folder", error) from error
        try:
            self.table.rescan()
        except OSError as error:
            raise self._error("cannot read the log folder", error) from error

    def path(self, remote_key: bytes) -> Path:
        """The file of a key."""
        return self.table.live_path(remote_key)

    # -- writing

    def write(self, remote_key: bytes, lines: Sequence[bytes], now: float) -> None:
        """Append `lines` (JSON texts without newline), in one write if the system allows.

        Returns when the operating system has them; see `sync`. `now` is in seconds and only
        compared with other calls.

        Raises:
            SinkError: its `lines_written` leading lines are in the file as a whole and no others.
                What is there of the next one is closed off, at the latest by the next write.
            LogQuotaReached: nothing was written.
        """
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        while True:
            self.table.check_quota(remote_key)
            file = self._file(remote_key, now)
            if self._is_due(file, len(data)) and now >= self._rotate_again_at:
                try:
                    file = self._rotate(remote_key, file, now)
                except OSError:  # a line in a large file is better than none
                    self._rotate_again_at = now + ROTATION_RETRY
                    file = self._file(remote_key, now)
            self._append(remote_key, file, data, lines)
            if not _is_deleted(file):
                break
            # Somebody deleted the file, and what was written went with it: begin it anew.
            self._close(remote_key)
        for line in lines:
            found = session_of_line(line)
            if found is not None:
                file.sessions.pop(found[0], None)
                file.sessions[found[0]] = found[1]
        while len(file.sessions) > MAX_SESSIONS:
            del file.sessions[next(iter(file.sessions))]

    def _append(
        self, remote_key: bytes, file: _OpenFile, data: bytes, lines: Sequence[bytes]
    ) -> None:
        before = (b"\n" if file.torn else b"") + file.header
        whole = before + data if before else data
        rest = whole
        try:
            while True:
                count = os.write(file.descriptor, rest)
                if count == len(rest):
                    break
                if not count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest = rest[count:]  # the disk is nearly full
        except OSError as error:
            written = len(whole) - len(rest)
            if written and whole[written - 1] != 0x0A:
                try:
                    os.write(file.descriptor, b"\n")
                except OSError:
                    pass  # opening it again finds out
            self.table.grown(remote_key, written, time.time())
            complete = _complete_lines(lines, written - len(before))
            if self._synced and complete:
                file.unsynced += lines[:complete]
                try:
                    _sync_data(file.descriptor)
                except OSError:
                    complete = _lines_held(file)
            self._close(remote_key)
            raise self._error("cannot write to the log folder", error, complete) from error
        file.torn, file.header = False, b""
        file.size += len(whole)
        self.table.grown(remote_key, len(whole), time.time())
        if self._synced:
            file.unsynced += lines

    def sync(self, remote_key: bytes) -> None:
        """Wait until the lines of a key are on the disk and would survive a power failure.

        Raises:
            SinkError: some are not. `lines_written` leading ones of those that were written since
                the last sync are in the file: the system may have dropped what it could not write
                back, and then looks as if all were well.
        """
        file = self._files.get(remote_key)
        if file is None:
            return
        try:
            _sync_data(file.descriptor)
        except OSError as error:
            held = _lines_held(file)
            self._close(remote_key)
            raise self._error("cannot write to the log folder", error, held) from error
        file.synced_size = file.size
        file.unsynced.clear()

    # -- rotation

    def rotate(self, remote_key: bytes, now: float) -> None:
        """Rename the file of a key, if it has one, and begin the next.

        Raises:
            SinkError: it was not renamed, or the next one cannot be made.
        """
        if os.path.lexists(self.path(remote_key)):
            try:
                self._rotate(remote_key, self._file(remote_key, now), now)
            except OSError as error:
                raise self._error("cannot rename in the log folder", error) from error

    def tidy(self, now: float) -> None:
        """Look at the folder again and remove what the policy does not keep; at times, say once a
        minute. `now` is in seconds since 1970.

        Raises:
            SinkError: the folder cannot be read, or a file not removed.
        """
        try:
            self.table.rescan()
            self.table.remove_old(now)
        except OSError as error:
            raise self._error("cannot tidy the log folder", error) from error

    def _is_due(self, file: _OpenFile, count: int) -> bool:
        if not file.size:
            return False
        policy = self.policy
        if policy.rotate_size is not None and file.size + count > policy.rotate_size:
            return True
        return policy.rotate_age is not None and time.time() - file.begun_at >= policy.rotate_age

    def _rotate(self, remote_key: bytes, file: _OpenFile, now: float) -> _OpenFile:
        sessions = self._all_sessions(remote_key, file)
        self._close(remote_key)
        number = self.table.next_number(remote_key)
        os.rename(file.path, self.table.rotated_path(remote_key, number))
        self.rotations += 1
        self.table.rotated(remote_key, number, time.time())
        return self._open(remote_key, now, sessions)

    def _all_sessions(self, remote_key: bytes, file: _OpenFile) -> dict[str, int]:
        if file.all_sessions:
            return file.sessions
        sessions = dict(self.resume(remote_key))
        # Nothing is lost if others have moved files out of our sight.
        for session_id, number in file.sessions.items():
            number = max(number, sessions.pop(session_id, -1))
            sessions[session_id] = number
        return sessions

    # -- what the files remember

    def resume(self, remote_key: bytes) -> list[tuple[str, int]]:
        """(session id, last number) of the sessions that a key's files hold, the latest last.

        Those are the MAX_SESSIONS latest of all its files, or of the last MAX_SCAN bytes. Mostly
        the live file is enough, since its first line tells of those before.

        Raises:
            SinkError: a file cannot be read.
        """
        sessions = Sessions()
        paths = [self.path(remote_key)]
        try:
            self._read_sessions(sessions, paths[0])
            # Only now: a file that is rotated meanwhile is read twice rather than not at all.
            for path in self.table.rotated_paths(remote_key):
                if sessions.complete:
                    break
                self._read_sessions(sessions, path)
        except OSError as error:
            raise self._error("cannot read in the log folder", error) from error
        return list(sessions.oldest_first().items())

    def _read_sessions(self, sessions: Sessions, path: Path) -> None:
        flags = os.O_RDONLY | (_FLAGS & ~(os.O_RDWR | os.O_APPEND | os.O_CREAT))
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            return
        with open(descriptor, "rb", buffering=0) as file:
            if self._synced:
                # The process before this one may have died between writing and syncing, and what is
                # found here is going to be acknowledged.
                _sync_data(descriptor)
            sessions.read(file)

    # -- open files

    def close(self) -> None:
        """Close all files; later writes open them again."""
        for remote_key in list(self._files):
            self._close(remote_key)

    def _file(self, remote_key: bytes, now: float) -> _OpenFile:
        file = self._files.get(remote_key)
        sessions = None
        if file is not None and not file.check_at - CHECK_INTERVAL <= now < file.check_at:
            if _is_still_there(file):
                file.check_at = now + CHECK_INTERVAL
            else:
                sessions = self._all_sessions(remote_key, file)
                self._close(remote_key)
                file = None
        if file is None:
            return self._open(remote_key, now, sessions)
        self._files.move_to_end(remote_key)
        return file

    def _open(
        self, remote_key: bytes, now: float, sessions: dict[str, int] | None = None
    ) -> _OpenFile:
        """`sessions` are those of the files before it, if a new file is expected."""
        path = str(self.path(remote_key))
        if len(self._files) >= self._max_open_files:
            self._close_idle(len(self._files) - self._max_open_files + 1)
        try:
            descriptor = self._open_descriptor(path)
        except OSError as error:
            raise self._error("cannot open a file in the log folder", error) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SinkError(f"{path} is no ordinary file: move it away")
            if not status.st_size and self._synced:
                _sync_folder(self.folder)
            file = _OpenFile(
                path=path,
                descriptor=descriptor,
                identity=(status.st_dev, status.st_ino),
                size=status.st_size,
                torn=status.st_size > 0 and _read(descriptor, status.st_size - 1, 1) != b"\n",
                header=b"",
                begun_at=time.time(),
                check_at=now + CHECK_INTERVAL,
                synced_size=status.st_size,
            )
            head = _read(descriptor, 0, HEAD_SIZE).split(b"\n") if file.size else []
            file.begun_at = (_time_of(head) if head else None) or file.begun_at
            if file.size < HEAD_SIZE and not any(map(_tells_sessions, head)):
                # A new file, or one whose first line was torn.
                if sessions is None and self.table.rotated_paths(remote_key):
                    sessions = dict(self.resume(remote_key))
                if sessions:
                    file.header = continuation_line(sessions, time.time()) + b"\n"
                file.sessions, file.all_sessions = dict(sessions or {}), True
        except OSError as error:
            os.close(descriptor)
            raise self._error("cannot read in the log folder", error) from error
        except BaseException:
            os.close(descriptor)
            raise
        self.table.opened(remote_key, file.size, time.time())
        self._files[remote_key] = file
        return file

    def _open_descriptor(self, path: str) -> int:
        try:
            return os.open(path, _FLAGS, FILE_MODE)
        except FileNotFoundError:
            # The folder vanished. It is made again, but nothing above it: that may be a place
            # where another file system is mounted.
            self.folder.mkdir(FOLDER_MODE, exist_ok=True)
            self.table.rescan()
            if self._synced:
                _sync_folder(self.folder.parent)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                raise
            self._close_idle(len(self._files))
        return os.open(path, _FLAGS, FILE_MODE)

    def _close_idle(self, count: int) -> None:
        """Close files, those that were not used for longest first and none that is yet to sync."""
        idle = (key for key, file in self._files.items() if not file.unsynced)
        for remote_key in list(islice(idle, count)):
            self._close(remote_key)

    def _close(self, remote_key: bytes) -> None:
        file = self._files.pop(remote_key, None)
        if file is not None:
            try:
                os.close(file.descriptor)
            except OSError:
                pass  # a late report of a failed write (NFS): there is nothing left to close

    def _error(self, what: str, error: OSError, lines_written: int = 0) -> SinkError:
        advice = _ADVICE.get(error.errno or 0, "see the system's message")
        text = f"{what} {self.folder}: {error.strerror or error}; {advice}"
        return SinkError(text, lines_written)


def _complete_lines(lines: Sequence[bytes], written: int) -> int:
    """How many lines have their whole text in the first `written` bytes."""
    for count, line in enumerate(lines):
        written -= len(line)
        if written < 0:
            return count
        written -= 1
    return len(lines)


def _lines_held(file: _OpenFile) -> int:
    """How many of the unsynced lines are in the file, after a sync that failed."""
    if not file.unsynced:
        return 0
    try:
        if hasattr(os, "posix_fadvise"):  # to see the disk, not the cache
            os.posix_fadvise(file.descriptor, file.synced_size, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(file.descriptor).st_size - file.synced_size
        found = iter(_read(file.descriptor, file.synced_size, size).split(b"\n"))
    except OSError:
        return 0
    for count, line in enumerate(file.unsynced):
        if line not in found:  # goes on behind it; headers are passed over
            return count
    return len(file.unsynced)


def _read(descriptor: int, start: int, count: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)  # no matter for O_APPEND
    return os.read(descriptor, count)


def _tells_sessions(line: bytes) -> bool:
    return is_continuation(line) or session_of_line(line) is not None


def _time_of(head: Sequence[bytes]) -> float | None:
    """Of the first line, which may be longer than the head."""
    try:
        if len(head) == 1 and (found := _TIME.match(head[0])):
            return datetime.fromisoformat(found[1].decode()).timestamp()
        return datetime.fromisoformat(_decode_first_line(head[0]).time).timestamp()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
        return None


def _sync_folder(folder: Path) -> None:
    """Make new names durable, where folders can be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_deleted(file: _OpenFile) -> bool:
    try:
        return not os.fstat(file.descriptor).st_nlink
    except OSError:  # of a network; what was written is written
        return False


def _is_still_there(file: _OpenFile) -> bool:
    try:
        status = os.stat(file.path, follow_symlinks=False)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == file.identity
