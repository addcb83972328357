"""Which server writes into a log folder: one at a time.

Two that write into one would not know of each other's lines: what a client has sent to the one it
would send to the other again.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from hyperlog.diskspool.lock import SessionLock
from hyperlog.errors import SinkError

__all__ = ["LOCK_FILE", "own_folder"]

logger = logging.getLogger("hyperlog.sinks")

LOCK_FILE: Final = ".hyperlog.lock"
PATIENCE: Final = 10.0  # s for a server that is about to end: they take 3 s, more with slow disks
RETRY: Final = 0.1  # s
# POSIX has EINVAL for a file that cannot be locked; macOS says ENOTSUP.
NO_LOCKS: Final = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@asynccontextmanager
async def own_folder(folder: Path, *, patience: float | None = None) -> AsyncIterator[None]:
    """Be the only server that writes into a folder, which exists, for as long as the block lasts.

    Waits up to `patience` seconds (10 by default) for another one to end. On file systems without
    locks it is the operator who sees to it.

    Raises:
        SinkError: the other one goes on, or the folder cannot be written.
    """
    lock = await _acquire(folder, PATIENCE if patience is None else patience)
    try:
        yield
    finally:
        if lock is not None:
            lock.release(remove=True)


async def _acquire(folder: Path, patience: float) -> SessionLock | None:
    give_up_at = trio.current_time() + patience
    waiting = False
    while True:
        try:
            lock = SessionLock.acquire(str(folder / LOCK_FILE))
        except OSError as error:
            if error.errno in NO_LOCKS:
                logger.info("%s is on a file system without locks", folder)
                return None
            raise SinkError(
                f"cannot write to the log folder {folder}: {error.strerror or error}; "
                "make it writable for this user"
            ) from error
        if lock is not None:
            return lock
        if trio.current_time() >= give_up_at:
            raise SinkError(
                f"another server writes into the log folder {folder}: stop it first, or give this "
                "one a folder of its own"
            )
        if not waiting:
            waiting = True
            logger.warning("another server still writes into %s: waiting for it to end", folder)
        await trio.sleep(RETRY)
