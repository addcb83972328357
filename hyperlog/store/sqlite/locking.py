"""Who writes a database: one process at a time, a server or a reindex."""

from __future__ import annotations

from pathlib import Path

from hyperlog.diskspool.lock import SessionLock
from hyperlog.errors import StoreUnavailable

__all__ = ["lock_database"]


def lock_database(path: Path) -> SessionLock:
    """Make sure that nobody else writes the database at `path`; its folder is made if missing.

    Raises:
        StoreUnavailable: somebody does, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = SessionLock.acquire(f"{path}.lock")
    except OSError as error:
        raise StoreUnavailable(f"{path.parent}: {error.strerror or error}") from error
    if lock is None:
        raise StoreUnavailable(
            f"a server that is running, or a reindex, uses {path}: stop it first"
        )
    return lock
