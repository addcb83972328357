"""Log files: one `<64 hex digits>.log` per remote key, one JSON object per line.

Made for tailers (promtail, Alloy, tail -F) as the JavaScript server's files are: lines are only
ever appended, whole lines in one write, never rewritten or truncated. What does not end in a
newline after a crash is closed off before the next line.

Rotate by renaming (`<key>.log.1`; a name that ends in `.log` would be read twice): the new file is
begun within a second. Files that are moved away must keep their last lines readable under
`<key>.log.1` for `resume`, or clients repeat what they still have.

The files are also the server's memory of sessions: `resume` reads it back from their ends.

Source: hypertrace-logger server.js `_writeToLogFile`; docs/protocol/trace-protocol.md section 2.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from hyperlog.errors import SinkError

__all__ = ["FileSink"]

FILE_MODE = 0o640  # readable by the group: a tailer needs no root
FOLDER_MODE = 0o750
MAX_OPEN_FILES = 128
CHECK_INTERVAL = 1.0  # s, between two looks for a rotated file
KEY_SIZE = 32  # bytes
MAX_SESSIONS = 64  # looked for in a file
FIRST_SCAN = 4 * 1024 * 1024  # bytes at a file's end that are always read
MAX_SCAN = 64 * 1024 * 1024  # bytes read as long as no session is found

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

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota or free some space",
    errno.EACCES: "make it writable for this user",
    errno.EPERM: "make it writable for this user",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "create the folder again",
    errno.ENOTDIR: "choose a folder, not a file",
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
    torn: bool
    """the last line has no newline"""
    check_at: float


class _GapEnd(Struct, gc=False):
    session: str = ""
    to: int = -1


class _LineEnd(Struct, rename="camel", gc=False):
    trace_session_id: str | None = None
    trace_number: int = -1
    gap: _GapEnd | None = None


_decode_line = msgspec.json.Decoder(_LineEnd).decode


class FileSink:
    """Appends lines to one file per key in a folder. For one thread; calls block on the disk."""

    def __init__(
        self, folder: str | os.PathLike[str], max_open_files: int = MAX_OPEN_FILES
    ) -> None:
        """The folder is made if it is missing.

        Raises:
            SinkError: it cannot be made, or is no folder.
        """
        self.folder = Path(folder)
        self._max_open_files = max_open_files
        self._files: OrderedDict[bytes, _OpenFile] = OrderedDict()
        try:
            self.folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise self._error("cannot make the log folder", error) from error

    def path(self, remote_key: bytes) -> Path:
        """The file of a key."""
        if len(remote_key) != KEY_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes, got {len(remote_key)}")
        return self.folder / f"{remote_key.hex()}.log"

    def write(self, remote_key: bytes, lines: Sequence[bytes], now: float) -> None:
        """Append `lines` (JSON texts without newline), in one write if the system allows.

        Returns when the operating system has them; see `sync`. `now` is in seconds and only
        compared with other calls.

        Raises:
            SinkError: some of the lines may be missing. What was written stays, and the next write
                begins on a new line.
        """
        if not lines:
            return
        file = self._file(remote_key, now)
        data = b"\n".join(lines) + b"\n"
        if file.torn:
            data = b"\n" + data
        try:
            written = os.write(file.descriptor, data)
            while written < len(data):  # the disk is nearly full
                data = data[written:]
                written = os.write(file.descriptor, data)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._close(remote_key)  # opening it again finds out whether a line was torn
            raise self._error("cannot write to the log folder", error) from error
        file.torn = False

    def sync(self, remote_key: bytes) -> None:
        """Wait until the lines of a key are on the disk and would survive a power failure.

        Raises:
            SinkError: they may not be.
        """
        file = self._files.get(remote_key)
        if file is not None:
            try:
                os.fsync(file.descriptor)
            except OSError as error:
                self._close(remote_key)
                raise self._error("cannot write to the log folder", error) from error

    def resume(self, remote_key: bytes) -> list[tuple[str, int]]:
        """(session id, last number) of the sessions at the end of a key's file, the latest last.

        At least the last FIRST_SCAN bytes are read, and up to MAX_SCAN until a session is found;
        of those, the MAX_SESSIONS latest are told. If the file has none, because it was just
        rotated, the file before it (`.log.1`) is asked.

        Raises:
            SinkError: a file cannot be read.
        """
        path = self.path(remote_key)
        for candidate in (path, path.with_name(f"{path.name}.1")):
            try:
                sessions = _sessions_at_end(candidate)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._error("cannot read in the log folder", error) from error
            if sessions:
                return sessions
        return []

    def close(self) -> None:
        """Close all files; later writes open them again."""
        for remote_key in list(self._files):
            self._close(remote_key)

    def _file(self, remote_key: bytes, now: float) -> _OpenFile:
        file = self._files.get(remote_key)
        if file is not None and not file.check_at - CHECK_INTERVAL <= now < file.check_at:
            if _is_still_there(file):
                file.check_at = now + CHECK_INTERVAL
            else:
                self._close(remote_key)
                file = None
        if file is None:
            return self._open(remote_key, now)
        self._files.move_to_end(remote_key)
        return file

    def _open(self, remote_key: bytes, now: float) -> _OpenFile:
        path = str(self.path(remote_key))
        while len(self._files) >= self._max_open_files:
            self._close(next(iter(self._files)))
        try:
            try:
                descriptor = os.open(path, _FLAGS, FILE_MODE)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                    raise
                self.close()
                descriptor = os.open(path, _FLAGS, FILE_MODE)
        except OSError as error:
            raise self._error("cannot open a file in the log folder", error) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SinkError(f"{path} is no ordinary file: move it away")
            torn = False
            if status.st_size > 0:
                os.lseek(descriptor, -1, os.SEEK_END)
                torn = os.read(descriptor, 1) != b"\n"
        except OSError as error:
            os.close(descriptor)
            raise self._error("cannot read in the log folder", error) from error
        except BaseException:
            os.close(descriptor)
            raise
        identity = (status.st_dev, status.st_ino)
        file = _OpenFile(path, descriptor, identity, torn, now + CHECK_INTERVAL)
        self._files[remote_key] = file
        return file

    def _close(self, remote_key: bytes) -> None:
        file = self._files.pop(remote_key, None)
        if file is not None:
            try:
                os.close(file.descriptor)
            except OSError:
                pass  # a late report of a failed write (NFS): there is nothing left to close

    def _error(self, what: str, error: OSError) -> SinkError:
        advice = _ADVICE.get(error.errno or 0, "see the system's message")
        return SinkError(f"{what} {self.folder}: {error.strerror or error}; {advice}")


def _is_still_there(file: _OpenFile) -> bool:
    try:
        status = os.stat(file.path, follow_symlinks=False)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == file.identity


def _sessions_at_end(path: Path) -> list[tuple[str, int]]:
    window = FIRST_SCAN
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            start = max(size - window, 0)
            file.seek(start)
            # The first piece may be the end of a line and the last a torn one: neither decodes.
            lines = file.read(size - start).split(b"\n")
            latest: dict[str, int] = {}
            for line in reversed(lines):
                found = _session_of_line(line)
                if found is None:
                    continue
                session_id, number = found
                if session_id in latest:
                    latest[session_id] = max(number, latest[session_id])
                elif len(latest) < MAX_SESSIONS:
                    latest[session_id] = number
            if latest or start == 0 or window >= MAX_SCAN:
                return list(latest.items())[::-1]
            window = min(window * 4, MAX_SCAN)


def _session_of_line(line: bytes) -> tuple[str, int] | None:
    try:
        end = _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if end.gap is not None:
        session_id, number = end.gap.session, end.gap.to
    elif end.trace_session_id is not None:
        session_id, number = end.trace_session_id, end.trace_number
    else:
        return None
    return (session_id, number) if session_id and number >= 0 else None
