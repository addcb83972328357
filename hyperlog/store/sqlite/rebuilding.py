"""Makes a database again from all log files, beside the one that is there."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperlog.errors import StoreUnavailable
from hyperlog.store.follow import LogFollower
from hyperlog.store.policy import StorePolicy
from hyperlog.store.sqlite.locking import lock_database
from hyperlog.store.sqlite.schema import check_library, companions, remove_database
from hyperlog.store.sqlite.writer import DatabaseWriter, indexed_record_of

__all__ = ["Progress", "rebuild"]

INTERVAL: Final = 0.2  # s between two reports
PATIENCE: Final = 3  # failures until it is given up


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it has come."""

    records: int
    bytes: int
    """of log files that are done"""
    total: int
    """bytes of all log files"""
    seconds: float
    complete: bool

    @property
    def rate(self) -> float:
        """Records per second."""
        return self.records / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds that it will still take; None if that is not known yet."""
        return self.seconds * (self.total - self.bytes) / self.bytes if self.bytes else None


def rebuild(
    path: Path,
    folder: Path,
    server: str,
    report: Callable[[Progress], object] = lambda progress: None,
) -> Progress:
    """Make the database at `path` again from the log files in `folder`; blocks until it is done.

    Nothing is left out for its age: what is kept no longer is removed by the server later.

    Raises:
        StoreUnavailable: a server uses the store, or the new database cannot be written. The old
            one is as it was.
    """
    check_library()
    lock = lock_database(path)
    new = path.with_name(f"{path.name}.new")
    try:
        remove_database(new)
        progress = _fill(new, folder, server, report)
        _put_in_place(new, path)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnavailable(f"{path}: {error}") from error
    finally:
        remove_database(new)
        lock.release()
    return progress


def _fill(path: Path, folder: Path, server: str, report: Callable[[Progress], object]) -> Progress:
    follower = LogFollower(folder, DatabaseWriter(path, StorePolicy()), server, indexed_record_of)
    started = time.monotonic()
    follower.start()
    total = done = 0
    try:
        while True:
            opened = follower.wait_opened(INTERVAL)
            now = follower.statistics()
            if now.failures >= PATIENCE:
                raise StoreUnavailable(now.last_error or "the new store cannot be written")
            total = max(total, done + now.behind)
            done = total - now.behind
            seconds = time.monotonic() - started
            complete = opened and follower.is_idle
            progress = Progress(now.inserted, done, total, seconds, complete)
            if complete:
                return progress
            report(progress)
            time.sleep(INTERVAL)
    finally:
        follower.stop()


def _put_in_place(new: Path, path: Path) -> None:
    """Rename the new database over the old one, whose companions must not be taken for its own."""
    for one in companions(new):
        if one.exists():
            raise OSError(f"{one} was left behind")
    for one in companions(path):
        one.unlink(missing_ok=True)
    os.replace(new, path)
