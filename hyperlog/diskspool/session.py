"""One session's records, wherever they lie: on disk, and the newest in memory.

Theory of operation. Every message goes to the memory, and from there to the disk in the same call.
What is on disk may leave the memory, and does beyond CACHE bytes; a connection that keeps up is
served from there. When the disk refuses, messages wait in memory, up to a limit, and the disk is
tried again every RETRY seconds: what waits goes first. So numbers rise from the disk to the memory,
and the disk never has a number that is above one that waits.

    released | on disk ............ | on disk and in memory | in memory only
             first_number             _memory_first           files.last_number + 1    next_number

Holes are what a limit or damage took out; whoever reads sees them as numbers that do not come.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from hyperlog.diskspool.files import Hole, SessionFiles

__all__ = ["SpooledSession"]

logger = logging.getLogger("hyperlog.spool")

CACHE: Final = 1024 * 1024  # bytes of messages kept in memory that are on disk, too
MESSAGE_OVERHEAD: Final = 48  # bytes of a message beside its text: object header and deque slot
MAX_HOLES: Final = 1024  # remembered with their reason
RETRY: Final = 3.0  # s from a disk fault to the next attempt
PATIENCE: Final = 60.0  # s that records that cannot be read hold up those after them
SPILL: Final = 1024  # messages written at a time after a fault

_open: dict[int, SpooledSession] = {}
"""Sessions of this process that have files open, by id()."""


class SpooledSession:
    """One session's records, oldest first; for one thread. No method raises for a disk's sake."""

    def __init__(
        self,
        session_id: str,
        files: SessionFiles | None = None,
        *,
        max_memory_bytes: int,
        max_message_bytes: int | None = None,
    ) -> None:
        """Without `files` everything is in memory, as messages and MESSAGE_OVERHEAD for each.

        `files` may hold what a process before this one left. Messages above `max_message_bytes` are
        not taken.
        """
        self.session_id = session_id
        self.first_number = 0
        """no record below it is kept; rises as records are released, or given up"""
        self.next_number = 0
        """one past the newest"""
        self.released_through = -1
        """the highest number known to be acknowledged"""
        self.fault: OSError | None = None
        """why the disk takes nothing at present"""
        self._files = files
        self._max_memory_bytes = max_memory_bytes
        self._max_cache_bytes = min(CACHE, max_memory_bytes)
        self._max_message_bytes = max_message_bytes or max_memory_bytes
        self._memory: deque[bytes] = deque()
        self._memory_first = 0
        self._memory_bytes = 0
        self._holes: list[Hole] = []
        self._unnoted: list[Hole] = []  # holes that the disk does not know of
        self._retry_at = 0.0
        self._unreadable_since: float | None = None
        self._adopted = False
        if files is not None:
            _open[id(self)] = self
            if files.lock is not None:
                self._adopt(files)

    def _adopt(self, files: SessionFiles) -> None:
        self._adopted = True
        self.released_through = files.acknowledged
        self.next_number = self._memory_first = files.last_number + 1
        self._holes = _merged(files.load_lost(), files.acknowledged)
        run = files.read(files.acknowledged + 1, 1)
        self.first_number = self.next_number if run is None else run[0]

    # -- state

    @property
    def memory_bytes(self) -> int:
        """In use, with MESSAGE_OVERHEAD for each message."""
        return self._memory_bytes

    @property
    def unsaved(self) -> int:
        """Records that would be lost with the process."""
        return self.next_number - self._unsaved_from

    @property
    def finished(self) -> bool:
        """Whether the server holds everything, or was told what it will not get."""
        return self.released_through + 1 >= self.next_number

    @property
    def _unsaved_from(self) -> int:
        """The lowest number that is in memory only."""
        if self._files is None:
            return self._memory_first
        return max(self._memory_first, self._files.last_number + 1)

    # -- writing

    def put(self, messages: Sequence[bytes]) -> None:
        """Append messages, numbered from `next_number`; once it returns they survive SIGKILL.

        Unless there is a `fault`: then they wait in memory, the oldest of them give way, and
        putting nothing now and then tries the disk again.
        """
        limit = self._max_message_bytes
        size = 0
        for message in messages:
            if len(message) > limit:
                self._put_around_large(messages)
                return
            size += len(message)
        self._memory.extend(messages)
        self._memory_bytes += size + MESSAGE_OVERHEAD * len(messages)
        first = self.next_number
        self.next_number = first + len(messages)
        if self._files is not None:
            self._save(self._files, first, messages)
        if self._memory_bytes > self._max_cache_bytes:
            self._trim_memory()
        self._update_first()  # also where room was made on the disk

    def _put_around_large(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            if len(message) <= self._max_message_bytes:
                self.put((message,))
                continue
            # What waits in memory has no gaps, so it goes as well.
            if self.unsaved:
                self._add_hole(self._unsaved_from, self.next_number - 1, "buffer-full")
            reason = "buffer-full" if self._files is None else "spool-full"
            self._add_hole(self.next_number, self.next_number, reason)
            self.next_number += 1
            self._memory.clear()
            self._memory_bytes = 0
            self._memory_first = self.next_number
            self.put(())  # has the disk know of it

    def _save(self, files: SessionFiles, first: int, messages: Sequence[bytes]) -> None:
        if self.fault is not None and time.monotonic() < self._retry_at:
            return
        try:
            if self.fault is None and not self._unnoted and first == self._unsaved_from:
                files.append(first, messages)
            else:
                self._spill(files)
        except OSError as error:
            if self.fault is None:
                logger.warning(
                    "the spool cannot be written (%s): records wait in memory, up to %d bytes",
                    error,
                    self._max_memory_bytes,
                )
            self.fault = error
            self._retry_at = time.monotonic() + RETRY
        else:
            if self.fault is not None:
                logger.warning("the spool can be written again")
                self.fault = None

    def _spill(self, files: SessionFiles) -> None:
        """Write what waits in memory, and what was lost there."""
        while (number := self._unsaved_from) < self.next_number:
            start = number - self._memory_first
            files.append(number, list(islice(self._memory, start, start + SPILL)))
        while self._unnoted:
            files.note_own_loss(self._unnoted[0])
            del self._unnoted[0]

    def _trim_memory(self) -> None:
        memory = self._memory
        saved = 0 if self._files is None else self._unsaved_from
        lost_from = -1
        while memory:
            in_cache = self._memory_first < saved
            if self._memory_bytes <= (
                self._max_cache_bytes if in_cache else self._max_memory_bytes
            ):
                break
            if not in_cache and lost_from < 0:
                lost_from = self._memory_first
            self._memory_bytes -= len(memory.popleft()) + MESSAGE_OVERHEAD
            self._memory_first += 1
        if lost_from >= 0:
            self._add_hole(lost_from, self._memory_first - 1, "buffer-full")

    def _add_hole(self, first: int, last: int, reason: str) -> None:
        for holes in (self._holes, self._unnoted):
            if holes and holes[-1].last == first - 1 and holes[-1].reason == reason:
                holes[-1].last = last
            else:
                holes.append(Hole(first, last, reason))
                del holes[:-MAX_HOLES]
        if self._files is None:
            self._unnoted.clear()

    # -- reading

    def read(self, number: int, max_bytes: int) -> tuple[int, list[bytes]]:
        """The first run of consecutive records at or after `number`: (its first number, messages).

        Up to `max_bytes` of messages, but at least one if there is any. Numbers that are missing
        show as a first number above `number`: `hole_reason` tells why. Without a run it returns
        (`next_number`, []), or (`number`, []) if there is one that cannot be read at present.
        """
        number = max(number, self.first_number)
        if number >= self.next_number:
            return self.next_number, []
        if number < self._memory_first and self._files is not None:
            try:
                run = self._files.read(number, max_bytes, skip_unreadable=self._out_of_patience)
            except OSError as error:
                if self._unreadable_since is None:
                    self._unreadable_since = time.monotonic()
                    logger.warning("the spool cannot be read (%s)", error)
                return number, []
            self._unreadable_since = None
            if run is not None and run[0] < self._memory_first:
                return run
        number = max(number, self._memory_first)
        start = number - self._memory_first
        messages: list[bytes] = []
        for message in islice(self._memory, start, None):
            max_bytes -= len(message)
            if max_bytes < 0 and messages:
                break
            messages.append(message)
        return number, messages

    @property
    def _out_of_patience(self) -> bool:
        since = self._unreadable_since
        return since is not None and time.monotonic() - since >= PATIENCE

    def hole_reason(self, number: int) -> str:
        """Why the record with `number` is missing: spool-full, spool-damaged or buffer-full."""
        for hole in self._holes:
            if hole.first <= number <= hole.last:
                return hole.reason
        if self._files is not None:
            try:
                self._holes = _merged(
                    [*self._holes, *self._files.load_lost()], self.released_through
                )
            except OSError:
                pass  # the reason is not known then
            for hole in self._holes:
                if hole.first <= number <= hole.last:
                    return hole.reason
        return "spool-damaged"

    # -- forgetting

    def release_through(self, number: int) -> None:
        """Forget the records up to `number`: the server holds them, or was told of them."""
        if number <= self.released_through:
            return
        self.released_through = number
        memory = self._memory
        while memory and self._memory_first <= number:
            self._memory_bytes -= len(memory.popleft()) + MESSAGE_OVERHEAD
            self._memory_first += 1
        if number >= self.next_number:  # known from a process that ended before it wrote them
            self.next_number = self._memory_first = number + 1
        self._holes = [hole for hole in self._holes if hole.last > number]
        if self._files is not None:
            try:
                self._files.release_through(number)
            except OSError as error:
                logger.debug("cannot clean up in the spool: %s", error)
        self._update_first()
        if self._adopted and self.finished:
            self.close()

    def _update_first(self) -> None:
        first = self._memory_first
        if self._files is not None:
            on_disk = self._files.first_number
            if on_disk is not None and on_disk < first:
                first = on_disk
        self.first_number = max(self.first_number, first, self.released_through + 1)
        self.first_number = min(self.first_number, self.next_number)

    # -- the end

    def close(self) -> None:
        """Leave what is not acknowledged to the next process; leave nothing if there is nothing."""
        files = self._files
        if files is None:
            return
        try:
            self._spill(files)
        except OSError:
            pass  # it was tried all the time
        self._files = None
        _open.pop(id(self), None)
        files.close(remove=self.finished)

    def _abandon(self) -> None:
        """In a child after a fork: the files are the parent's."""
        files, self._files = self._files, None
        if files is not None:
            files.close_descriptors()


def _merged(holes: Sequence[Hole], released: int) -> list[Hole]:
    """The holes above `released` in order, those that touch joined; the newest MAX_HOLES."""
    merged: list[Hole] = []
    for hole in sorted(holes, key=lambda hole: (hole.first, hole.last)):
        if hole.last <= released:
            continue
        before = merged[-1] if merged else None
        if before is not None and hole.first <= before.last + 1 and hole.reason == before.reason:
            before.last = max(before.last, hole.last)
        else:
            merged.append(Hole(hole.first, hole.last, hole.reason))
    return merged[-MAX_HOLES:]


def _forked() -> None:
    for session in list(_open.values()):
        session._abandon()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
