"""Which server writes into a log folder: one at a time.

Two that write into one would not know of each other's lines: what a client has sent to the one it
would send to the other again. The lock is on the folder itself, in which nothing else has to lie
then, and ends with the process, however that ends.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from hyperlog.errors import SinkError

if sys.platform != "win32":
    import fcntl

__all__ = ["own_folder"]

logger = logging.getLogger("hyperlog.sinks")

PATIENCE: Final = 10.0  # s for a server that is about to end: they take 3 s, more with slow disks
RETRY: Final = 0.1  # s
# POSIX has EINVAL for a file that cannot be locked; macOS says ENOTSUP, NFS wants a file to write.
NO_LOCKS: Final = (
    errno.EBADF,
    errno.EINVAL,
    errno.ENOLCK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
)

_open: set[int] = set()
"""descriptors of folders that this process owns"""


@asynccontextmanager
async def own_folder(folder: Path, *, patience: float | None = None) -> AsyncIterator[None]:
    """Be the only server that writes into a folder, which exists, for as long as the block lasts.

    Waits up to `patience` seconds (10 by default) for another one to end. On Windows, on NFS and on
    file systems without locks it is the operator who sees to it.

    Raises:
        SinkError: the other one goes on, or the folder cannot be opened.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SinkError(f"cannot open the log folder {folder}: {error.strerror}") from error
    _open.add(descriptor)
    try:
        await _lock(descriptor, folder, PATIENCE if patience is None else patience)
        yield
    finally:
        if descriptor in _open:
            _open.discard(descriptor)
            os.close(descriptor)


async def _lock(descriptor: int, folder: Path, patience: float) -> None:
    give_up_at = trio.current_time() + patience
    waiting = False
    while not _try_lock(descriptor, folder):
        if trio.current_time() >= give_up_at:
            raise SinkError(
                f"another server writes into the log folder {folder}: stop it first, or give this "
                "one a folder of its own"
            )
        if not waiting:
            waiting = True
            logger.warning("another server still writes into %s: waiting for it to end", folder)
        await trio.sleep(RETRY)


def _try_lock(descriptor: int, folder: Path) -> bool:
    if sys.platform == "win32":
        raise AssertionError("there is no such lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise SinkError(f"cannot lock the log folder {folder}: {error.strerror}") from error
        logger.info("%s is on a file system without locks", folder)
    return True


def _forked() -> None:
    """In a child: the folders are the parent's, whose locks would last as long as both."""
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
