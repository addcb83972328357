"""All sessions of one application for one server: made, found again, and kept within a limit."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from hyperlog.diskspool.files import SessionFiles, load_acknowledged, segment_name, segments_in
from hyperlog.diskspool.lock import SessionLock
from hyperlog.diskspool.session import SpooledSession

__all__ = ["DEFAULT_MAX_SPOOL_BYTES", "LEAST_MAX_SPOOL_BYTES", "SpoolFolder"]

logger = logging.getLogger("hyperlog.spool")

DEFAULT_MAX_SPOOL_BYTES: Final = 256 * 1024 * 1024
DEFAULT_MAX_MEMORY_BYTES: Final = 48 * 1024 * 1024  # for one session, while the disk has a fault
LEAST_MAX_SPOOL_BYTES: Final = 64 * 1024
SEGMENT_BYTES: Final = 4 * 1024 * 1024
LEAST_SEGMENT_BYTES: Final = 4 * 1024
WARN_INTERVAL: Final = 60.0  # s
BLOCK: Final = 4096  # bytes that a file takes at least; a session counts one more

_SESSION = re.compile(r"[0-9]{1,64}")


@dataclass(slots=True)
class _Found:
    """A segment of some session."""

    session_id: str
    first: int
    size: int
    written_at: int
    """ns since 1970"""
    next_first: int | None
    """number in the name of the segment after it, which is above all of its own"""


@dataclass(slots=True)
class _Usage:
    size: int = 0
    segments: list[_Found] = field(default_factory=list)


class SpoolFolder:
    """The folder of one application and server; several processes may use it at a time.

    The limit holds over all of them, but for what they write while one of them makes room: a
    segment each.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = DEFAULT_MAX_SPOOL_BYTES,
        max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
    ) -> None:
        """The folder is made when there is something to write.

        `max_bytes` bounds the disk, in whole blocks, `max_memory_bytes` the memory of a session
        whose disk has a fault.

        Raises:
            ValueError: `max_bytes` is below LEAST_MAX_SPOOL_BYTES.
        """
        if max_bytes < LEAST_MAX_SPOOL_BYTES:
            raise ValueError(
                f"a spool needs at least {LEAST_MAX_SPOOL_BYTES} bytes, got {max_bytes}"
            )
        self.path = os.path.abspath(path)
        self._max_bytes = max_bytes
        self._warn_at = 0.0
        self._max_memory_bytes = max_memory_bytes
        self._segment_bytes = max(LEAST_SEGMENT_BYTES, min(SEGMENT_BYTES, max_bytes // 16))

    def create(self, session_id: str) -> SpooledSession:
        """A new session of this process; `session_id` is text of decimal digits, used never before.

        Raises:
            ValueError: it is something else.
        """
        if not _SESSION.fullmatch(session_id):
            raise ValueError("a session's id is text of 1 to 64 decimal digits")
        return self._session(session_id, self._files(session_id))

    def orphans(self) -> list[str]:
        """Sessions that this process does not hold, the one written longest ago first.

        Other processes may hold them, which `adopt` finds out.
        """
        found: list[tuple[int, str]] = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    name = entry.name
                    if _SESSION.fullmatch(name) and entry.is_dir(follow_symlinks=False):
                        if not SessionLock.is_held(self._lock_path(name)):
                            found.append((self._written_at(name), name))
                    elif name.endswith(".lock") and _SESSION.fullmatch(name[:-5]):
                        self._sweep(name[:-5])
        except OSError:
            pass  # there is no spool yet, or it cannot be read now
        return [session_id for _, session_id in sorted(found)]

    def adopt(self, session_id: str) -> SpooledSession | None:
        """Take a session over; None when it is in use, or has nothing that is to be told.

        It can be read and released at once, and is removed when all of it is released. The next
        process finds what is left of it after `close`, or the end of this one.
        """
        lock = self._lock_orphan(session_id)
        if lock is None:
            return None
        files = self._files(session_id)
        try:
            files.load(lock)
            session = self._session(session_id, files)
        except OSError as error:
            logger.warning("a session of the spool cannot be read (%s): left for later", error)
            files.close_descriptors()
            lock.release()
            return None
        if session.finished:
            session.close()
            return None
        return session

    def count_orphans(self) -> dict[str, int]:
        """The sessions that nobody holds, oldest first, and how many records of each are kept."""
        counts: dict[str, int] = {}
        for session_id in self.orphans():
            session = self.adopt(session_id)
            if session is not None:
                counts[session_id] = session.next_number - session.first_number
                session.close()
        return counts

    def acknowledged(self, session_id: str) -> int | None:
        """How far a session has come, whoever holds it; None when it is gone, or cannot be read."""
        folder = os.path.join(self.path, session_id)
        try:
            return load_acknowledged(folder) if os.path.isdir(folder) else None
        except OSError:
            return None

    def usage(self) -> int:
        """Bytes on disk, of all sessions."""
        return self._usage().size

    def _files(self, session_id: str) -> SessionFiles:
        path = os.path.join(self.path, session_id)
        return SessionFiles(path, self._segment_bytes, self._make_room)

    def _session(self, session_id: str, files: SessionFiles) -> SpooledSession:
        return SpooledSession(
            session_id,
            files,
            max_memory_bytes=self._max_memory_bytes,
            max_message_bytes=min(self._max_bytes // 2, self._max_memory_bytes),
        )

    def _lock_path(self, session_id: str) -> str:
        return os.path.join(self.path, f"{session_id}.lock")

    def _written_at(self, session_id: str) -> int:
        return max((found.written_at for found in self._segments(session_id)), default=0)

    def _lock_orphan(self, session_id: str) -> SessionLock | None:
        if not os.path.isdir(os.path.join(self.path, session_id)):
            return None
        try:
            return SessionLock.acquire(self._lock_path(session_id))
        except OSError as error:
            logger.debug("cannot lock a session of the spool: %s", error)
            return None

    def _sweep(self, session_id: str) -> None:
        """Remove a lock file that nobody holds and that has no folder."""
        path = self._lock_path(session_id)
        folder = os.path.join(self.path, session_id)
        if os.path.lexists(folder) or SessionLock.is_held(path):
            return
        try:
            lock = SessionLock.acquire(path)
        except OSError:
            return  # somebody else's
        if lock is not None:
            lock.release(remove=not os.path.lexists(folder))

    # -- the limit

    def _segments(self, session_id: str) -> Iterator[_Found]:
        folder = os.path.join(self.path, session_id)
        try:
            firsts = segments_in(os.listdir(folder))
        except OSError:
            return
        for first, after in zip(firsts, [*firsts[1:], None], strict=False):
            try:
                status = os.stat(os.path.join(folder, segment_name(first)))
            except OSError:
                continue  # released in the meantime
            size = -(-status.st_size // BLOCK) * BLOCK
            yield _Found(session_id, first, size, status.st_mtime_ns, after)

    def _usage(self) -> _Usage:
        usage = _Usage()
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return usage
        for name in names:
            if not name.endswith(".lock") and _SESSION.fullmatch(name):
                segments = list(self._segments(name))
                usage.segments += segments
                usage.size += BLOCK + sum(segment.size for segment in segments)
        return usage

    def _make_room(self, owner: SessionFiles, needed: int) -> None:
        """Remove the oldest segments until `needed` bytes fit within the limit.

        Raises:
            OSError: they do not fit: other processes' last segments take too much.
        """
        usage = self._usage()
        too_much = usage.size + needed + BLOCK - self._max_bytes
        if too_much <= 0:
            return
        usage.segments.sort(key=lambda found: (found.written_at, found.first))
        for found in usage.segments:
            if too_much <= 0:
                break
            if self._drop(found, owner):
                too_much -= found.size
        owner.forget_removed()
        self._warn_full()
        if too_much > 0:
            raise OSError(errno.ENOSPC, "the spool is full")

    def _warn_full(self) -> None:
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + WARN_INTERVAL
            logger.warning(
                "the spool has reached its limit of %d bytes: the oldest records give way",
                self._max_bytes,
            )

    def _drop(self, found: _Found, owner: SessionFiles) -> bool:
        folder = os.path.join(self.path, found.session_id)
        if folder == owner.folder:
            owner.drop(found.first)
            return True
        try:
            return self._drop_foreign(found)
        except OSError as error:  # another user's, or damaged: there may be room without it
            logger.debug("cannot make room in a session of the spool: %s", error)
            return False

    def _drop_foreign(self, found: _Found) -> bool:
        files = self._files(found.session_id)
        if found.next_first is not None:
            # Not the one being written: its owner, if there is one, notices when it comes to it.
            files.note_lost(found.first, found.next_first - 1, "spool-full")
            files.unlink(found.first)
            return True
        lock = self._lock_orphan(found.session_id)
        if lock is None:
            return False
        remove = False
        try:
            files.load(lock)
            if files.first_number is not None:
                files.drop(found.first)
            remove = files.last_number <= files.acknowledged
        finally:
            files.close(remove=remove)
        return True
