"""Service: shows records to viewers as they are written.

The writer of the log files calls `lines_written` in its own thread, which costs nothing as long as
nobody watches. Otherwise lines go to a thread that parses them once and decides for each viewer.
That thread works for a part of the time only, and everything that waits has a limit: who watches
can slow down nobody who sends. What could not be shown is counted, and each viewer is told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from hyperlog.store.evaluate import Predicate, Reading, predicate
from hyperlog.store.query import Expression, check
from hyperlog.store.records import StoredRecord, record_of

__all__ = ["Seen", "Tail", "TailStatistics", "Viewer"]

logger = logging.getLogger("hyperlog.tail")

MAX_VIEWERS: Final = 64
MAX_QUEUED: Final = 8 * 1024 * 1024  # bytes of lines that wait to be looked at
MAX_WAITING: Final = 500  # records that wait for one viewer, who gets them ten times a second
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024  # bytes of them
SLICE: Final = 256  # lines looked at before what was found is handed over
SHARE: Final = 0.25  # of a core's time for all viewers together
HANDOVER_TIMEOUT: Final = 1.0  # s that the thread waits for a busy event loop


@dataclass(frozen=True, slots=True)
class Seen:
    """What a viewer gets at a time."""

    records: list[StoredRecord]
    """in the order in which they were written, per sender"""
    left_out: int
    """records that could not be shown since the last time. Of those for which there was no time it
    is not known whether they were asked for"""


@dataclass(frozen=True, slots=True)
class TailStatistics:
    viewers: int
    records: int
    """looked at since the start"""
    left_out: int
    """not looked at since the start, while somebody watched"""


class Viewer:
    """One who watches. For one task."""

    def __init__(self, where: Expression | None) -> None:
        self.where = where
        self._records: list[StoredRecord] = []
        self._bytes = 0
        self._left_out = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def receive(self) -> Seen:
        """Wait for records, or for the news that some were left out; take all that is there."""
        await trio.lowlevel.checkpoint()
        while not self._records and not self._left_out:
            await self._waiting.park()
        seen = Seen(self._records, self._left_out)
        self._records, self._bytes, self._left_out = [], 0, 0
        return seen

    def put(self, records: Sequence[StoredRecord], left_out: int) -> None:
        """Have it shown, as far as there is room."""
        self._left_out += left_out
        for index, record in enumerate(records):
            size = len(record.body)
            if len(self._records) >= MAX_WAITING or self._bytes + size > MAX_WAITING_BYTES:
                self._left_out += len(records) - index
                break
            self._records.append(record)
            self._bytes += size
        if self._records or self._left_out:
            self._waiting.unpark_all()


class Tail:
    """All viewers of a server. `lines_written` is for any thread, the rest for the trio thread."""

    def __init__(self, server: str) -> None:
        """`server` is the public key, in hex, that records name as their server's."""
        self.observers: tuple[Callable[[bytes, Sequence[bytes]], object], ...] = ()
        """called with all lines in the thread that writes them: they have to be quick"""
        self._server = server
        self._viewers: set[Viewer] = set()
        self._token: trio.lowlevel.TrioToken | None = None
        # The lock guards what follows.
        self._work = threading.Condition()
        self._queue: deque[tuple[bytes, Sequence[bytes]]] = deque()
        self._queued = 0
        self._unseen = 0
        self._groups: dict[Expression | None, tuple[Viewer, ...]] = {}
        self._questions: list[tuple[Expression | None, Predicate]] = []
        self._thread: threading.Thread | None = None
        # Set by the trio thread for the other:
        self._handed_over = threading.Event()
        # Written by the thread:
        self._looked_at = 0
        self._left_out = 0

    def statistics(self) -> TailStatistics:
        return TailStatistics(len(self._viewers), self._looked_at, self._left_out)

    @property
    def has_room(self) -> bool:
        """Whether another viewer may come."""
        return len(self._viewers) < MAX_VIEWERS

    @contextmanager
    def subscribe(self, where: Expression | None) -> Iterator[Viewer]:
        """A viewer of the records that are written from now on and match; None is for all.

        Raises:
            QueryError: the expression is more than can be asked.
        """
        check(where)
        viewer = Viewer(where)
        self._token = trio.lowlevel.current_trio_token()
        self._viewers.add(viewer)
        self._regroup()
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)
            self._regroup()

    def lines_written(self, source: bytes, lines: Sequence[bytes]) -> None:
        """Lines, without newlines, were appended to the log of `source`."""
        for observe in self.observers:
            observe(source, lines)
        if not self._groups:
            return
        size = sum(map(len, lines))
        with self._work:
            if self._queued + size > MAX_QUEUED:
                self._unseen += len(lines)
            else:
                self._queue.append((source, lines))
                self._queued += size
            self._work.notify()

    def _regroup(self) -> None:
        """Have equal questions answered once."""
        groups: dict[Expression | None, tuple[Viewer, ...]] = {}
        for viewer in self._viewers:
            groups[viewer.where] = (*groups.get(viewer.where, ()), viewer)
        questions = [(where, _always if where is None else predicate(where)) for where in groups]
        with self._work:
            self._groups, self._questions = groups, questions
            if groups and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hyperlog tail", daemon=True)
                self._thread.start()
            self._work.notify()

    # -- in the thread

    def _run(self) -> None:
        while True:
            with self._work:
                while self._groups and not self._queue and not self._unseen:
                    self._work.wait()
                if not self._groups:
                    self._thread = None
                    self._queue.clear()
                    self._queued = self._unseen = 0
                    return
                work, left_out = self._take()
            began = time.thread_time()
            found = self._look_at(work)
            spent = time.thread_time() - began
            if not self._hand_over(found, left_out):
                return
            time.sleep(spent * (1 / SHARE - 1))

    def _take(self) -> tuple[list[tuple[bytes, Sequence[bytes]]], int]:
        """Some lines to look at, and the number of those that had no room."""
        work: list[tuple[bytes, Sequence[bytes]]] = []
        count = 0
        while self._queue and count < SLICE:
            source, lines = self._queue.popleft()
            if count + len(lines) > SLICE:
                self._queue.appendleft((source, lines[SLICE - count :]))
                lines = lines[: SLICE - count]
            work.append((source, lines))
            count += len(lines)
            self._queued -= sum(map(len, lines))
        left_out, self._unseen = self._unseen, 0
        self._looked_at += count
        self._left_out += left_out
        return work, left_out

    def _look_at(
        self, work: list[tuple[bytes, Sequence[bytes]]]
    ) -> dict[Expression | None, list[StoredRecord]]:
        found: dict[Expression | None, list[StoredRecord]] = {}
        questions = self._questions
        for source, lines in work:
            for line in lines:
                try:
                    record = record_of(line, source, self._server)
                    if record is None:
                        continue
                    reading = Reading(record)
                    for where, holds in questions:
                        if holds(reading):
                            found.setdefault(where, []).append(record)
                except Exception:  # isolates one line from the others
                    logger.exception("a line could not be shown")
        return found

    def _hand_over(self, found: dict[Expression | None, list[StoredRecord]], left_out: int) -> bool:
        """Have the trio thread give them to the viewers; False if there is no such thread."""
        if not found and not left_out:
            return True
        assert self._token is not None
        self._handed_over.clear()
        try:
            self._token.run_sync_soon(self._deliver, found, left_out)
        except trio.RunFinishedError:
            return False
        self._handed_over.wait(HANDOVER_TIMEOUT)
        return True

    # -- in the trio thread

    def _deliver(self, found: dict[Expression | None, list[StoredRecord]], left_out: int) -> None:
        for where, viewers in self._groups.items():
            records = found.get(where, ())
            for viewer in viewers:
                viewer.put(records, left_out)
        self._handed_over.set()


def _always(_: Reading) -> bool:
    return True
