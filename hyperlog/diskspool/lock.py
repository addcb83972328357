"""Which process owns a session: a lock on a file, which ends with the process, however that ends.

POSIX record locks belong to a process, so that a child after a fork does not hold its parent's
sessions for ever. Their price: they do not exclude two owners in one process, and are lost when the
process closes any descriptor of the file. Hence the register of the files that this process holds,
which are not opened again.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Final, TypeAlias

from hyperlog.diskspool.segment import open_file

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["SessionLock"]

ATTEMPTS: Final = 8

_Identity: TypeAlias = tuple[int, int]

_register = threading.Lock()
_held: dict[_Identity, SessionLock] = {}


class SessionLock:
    """A lock that this process holds; made by `acquire`."""

    def __init__(self, path: str, descriptor: int, identity: _Identity) -> None:
        self._path = path
        self._descriptor = descriptor
        self._identity = identity

    @classmethod
    def acquire(cls, path: str) -> SessionLock | None:
        """Lock the file, made if missing; None when somebody else holds it.

        Raises:
            OSError: the file cannot be made, or the file system has no locks.
        """
        with _register:
            for _ in range(ATTEMPTS):
                if _identity(path) in _held:
                    return None
                descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
                try:
                    locked = _try_lock(descriptor)
                    status = os.fstat(descriptor)
                except OSError:
                    os.close(descriptor)
                    raise
                if not locked:
                    os.close(descriptor)
                    return None
                identity = (status.st_dev, status.st_ino)
                if _identity(path) == identity:
                    lock = _held[identity] = cls(path, descriptor, identity)
                    return lock
                os.close(descriptor)  # it was the former owner's, who has removed it since
        return None

    @staticmethod
    def is_held(path: str) -> bool:
        """Whether this process holds it."""
        return _identity(path) in _held

    @property
    def valid(self) -> bool:
        """Whether the lock still protects: its file is in place, and locked by this process."""
        try:
            # Locking again does no harm, and brings back a lock lost by somebody's close().
            return _identity(self._path) == self._identity and _try_lock(self._descriptor)
        except OSError:
            return False

    def release(self, *, remove: bool = False) -> None:
        """Give the lock up; with `remove`, leave no file behind."""
        with _register:
            if _held.pop(self._identity, None) is None:
                return
            if remove and sys.platform != "win32" and _identity(self._path) == self._identity:
                _remove(self._path)
            os.close(self._descriptor)
        if remove and sys.platform == "win32":  # an open file has to stay there
            _remove(self._path)


def _identity(path: str) -> _Identity | None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # a lock file left behind is nobody's, and gets removed with the next look


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _forked() -> None:
    """In a child: the locks are the parent's."""
    global _register
    _register = threading.Lock()
    for lock in _held.values():
        os.close(lock._descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
