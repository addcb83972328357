"""Keeps a store up with the log files: a thread per store that reads what they have grown by.

    LogWriter --lines_written--> LogFollower --insert--> Destination
                                      ^-- the log files, each from its Position

A destination keeps records and positions together: what it tells by `open` is what it holds. So
live records, those that came while the store was away, and those of a store that is made again are
one and the same case. Faults are not the follower's to mend: it tries again, less and less often,
and begins each time with the positions that the destination tells then. In between it may be that
records come twice, after a crash or when files were restored: destinations tell them by their ids.

The interpreter's lock is shared with the tasks that receive records. While some arrive, the
follower works in slices of less than a millisecond and rests after each: it would rather lag.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from hyperlog.errors import HyperlogError
from hyperlog.store.logreader import LogReader, Position
from hyperlog.store.records import StoredRecord, record_of

__all__ = ["Destination", "FollowerStatistics", "LogFollower", "Position", "RecordMaker"]

logger = logging.getLogger("hyperlog.store.follow")

MAX_BATCH_RECORDS: Final = 8192
MAX_BATCH_SIZE: Final = 4 * 1024 * 1024  # bytes of lines
LINGER: Final = 0.2  # s in which more may come, for batches of a size
SCAN_INTERVAL: Final = 1.0  # s between two looks at the folder
SCAN_SHARE: Final = 0.01  # of the time at most is spent on looking
TIDY_INTERVAL: Final = 30.0  # s
MIN_BACKOFF: Final = 0.5  # s before the next attempt after a fault, doubled each time
MAX_BACKOFF: Final = 30.0
REPORT_INTERVAL: Final = 60.0  # s between two warnings of the same fault
CLOSE_TIMEOUT: Final = 5.0  # s for the batch that is being inserted when the follower is stopped
SLICE: Final = 64  # lines made into records before a rest, some 0.5 ms
BUSY: Final = 0.1  # s after the last lines in which the server counts as busy
REST: Final = 0.001  # s

RecordMaker: TypeAlias = Callable[[bytes, bytes, str], StoredRecord | None]
"""as `record_of` is; what it returns may be of a class below StoredRecord"""


class Destination(Protocol):
    """What a follower feeds. All calls are made in the follower's thread, which may block.

    Any exception makes the follower call `close`, wait, and go on with `open`.
    """

    def open(self) -> Iterable[Position]:
        """Make ready, and tell how far each log file is held, at most one position for a file."""
        ...

    def insert(self, records: Sequence[StoredRecord], positions: Sequence[Position]) -> int:
        """Hold the records, then the positions, durably; how many of the records are new.

        At most MAX_BATCH_RECORDS and a chunk's more, of several sources, each in the order of its
        file. `positions` take the place of earlier ones of the same file. Either may be empty.
        """
        ...

    def forget(self, positions: Sequence[Position]) -> None:
        """These files have gone."""
        ...

    def tidy(self) -> bool:
        """Called each half minute, and again at once if it returns True: some work, of some 0.1 s,
        that keeps the store in shape."""
        ...

    def close(self) -> None:
        """Let go of everything; never raises."""
        ...


@dataclass(frozen=True, slots=True)
class FollowerStatistics:
    """A follower, now."""

    behind: int
    """bytes of log files that are not held yet"""
    inserted: int
    """records that were new to the destination"""
    failures: int
    last_error: str | None
    """None while all is well"""


@dataclass(slots=True)
class _Batch:
    records: list[StoredRecord] = field(default_factory=list)
    positions: dict[tuple[bytes, str], Position] = field(default_factory=dict)
    size: int = 0
    """bytes of log files"""

    @property
    def is_full(self) -> bool:
        return len(self.records) >= MAX_BATCH_RECORDS or self.size >= MAX_BATCH_SIZE


class LogFollower:
    """A thread that reads the log files of a folder for one destination.

    All methods may be called in any thread.
    """

    def __init__(
        self,
        folder: Path,
        destination: Destination,
        server: str,
        make: RecordMaker = record_of,
    ) -> None:
        """`server` is the public key of the server whose folder it is, hex.

        `make` makes the records of lines, in a thread of its own while there are many, so that what
        can be done for each record alone is best done there.
        """
        self._reader = LogReader(folder)
        self._destination = destination
        self._server = server
        self._make = make
        self._ahead: Future[_Batch] | None = None
        self._executor = ThreadPoolExecutor(1, "hyperlog follower")
        self.is_idle = False
        """all that can be read is held: but for unfinished last lines nothing is behind"""
        self._inserted = 0
        self._failures = 0
        self._last_error: str | None = None
        self._reported_at = -REPORT_INTERVAL
        self._backoff = MIN_BACKOFF
        self._scan_at = self._tidy_at = 0.0
        self._thread: threading.Thread | None = None
        self._opened = threading.Event()
        self._held: dict[tuple[bytes, str], Position] = {}
        self._unheld = 0
        """bytes that were read and are not held"""
        self._counting = False
        """some are neither unread nor counted in `_unheld` yet"""
        # The lock guards what follows:
        self._work = threading.Condition()
        self._grown: dict[bytes, int] = {}
        self._grown_at = 0.0
        self._stopping = False

    # -- for others

    def start(self) -> None:
        """Begin; a follower is started once."""
        self._thread = threading.Thread(target=self._run, name="hyperlog follower", daemon=True)
        self._thread.start()

    def notify(self, source: bytes, size: int = 0) -> None:
        """`size` bytes were appended to the live file of a source."""
        with self._work:
            idle = not self._grown
            self._grown[source] = self._grown.get(source, 0) + size
            self._grown_at = time.monotonic()
            if idle:
                self._work.notify()

    def lines_written(self, source: bytes, lines: Sequence[bytes]) -> None:
        """A listener of LogWriter."""
        self.notify(source, sum(map(len, lines)) + len(lines))

    def tidy_soon(self) -> None:
        """Let the destination's `tidy` be called at once."""
        with self._work:
            self._tidy_at = 0.0
            self._work.notify()

    @property
    def behind(self) -> int:
        """Bytes of log files that the destination does not hold yet, as far as known."""
        with self._work:
            known = self._reader.behind + sum(self._grown.values()) + self._unheld
            return max(known, 1 if self._counting else 0)

    def wait_opened(self, timeout: float) -> bool:
        """Whether the destination is open, or was once, within `timeout` s."""
        return self._opened.wait(timeout)

    def statistics(self) -> FollowerStatistics:
        return FollowerStatistics(self.behind, self._inserted, self._failures, self._last_error)

    def stop(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """End the thread, after the batch that it is at; False if that takes longer. Blocks."""
        with self._work:
            self._stopping = True
            self._work.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- in the thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._held = {(one.source, one.file): one for one in self._destination.open()}
                self._reader.start(self._held.values())
                self._opened.set()
                while not self._stopping:
                    self._step()
            except Exception as error:  # isolates one store from the rest
                self._failed(error)
                self._destination.close()
                self._rest_after_failure()
        self._executor.shutdown()
        self._destination.close()

    def _step(self) -> None:
        """Insert what there is, or else tidy up, or else wait."""
        started = time.monotonic()
        ahead, self._ahead = self._ahead, None
        batch = None if ahead is None else ahead.result()
        self._look()
        if batch is None:
            batch = self._read_batch()
        if batch.is_full and self._reader.has_more:
            self._ahead = self._executor.submit(self._read_batch)
        if batch.positions:
            self.is_idle = False
            self._insert(batch)
        now = time.monotonic()
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_INTERVAL
            if self._destination.tidy():
                self._tidy_at = now
            self._succeeded()
        elif self._ahead is None and not self._reader.has_more:
            self.is_idle = not batch.size
            if batch.size:
                self._pause(started + LINGER - now)
            else:
                self._wait(min(self._scan_at, self._tidy_at) - now)

    def _look(self) -> None:
        """Take what was notified, and look at the folder from time to time."""
        with self._work:
            grown, self._grown = self._grown, {}
            self._counting = bool(grown)
            unknown = [
                source for source, size in grown.items() if not self._reader.grown(source, size)
            ]
        now = time.monotonic()
        if unknown or now >= self._scan_at:
            gone = self._reader.scan()
            if gone:
                self._destination.forget(gone)
                for one in gone:
                    self._held.pop((one.source, one.file), None)
            ended = time.monotonic()
            self._scan_at = ended + max(SCAN_INTERVAL, (ended - now) / SCAN_SHARE)
        self._counting = False

    def _read_batch(self) -> _Batch:
        batch = _Batch()
        while not batch.is_full and not self._stopping:
            self._counting = self._reader.has_more
            chunk = self._reader.next_chunk()
            if chunk is None:
                break
            batch.size += chunk.size
            with self._work:
                self._unheld += chunk.size
                self._counting = False
            self._make_records(chunk.source, chunk.lines, batch.records)
            batch.positions[chunk.position.source, chunk.position.file] = chunk.position
        self._counting = False
        return batch

    def _make_records(
        self, source: bytes, lines: Sequence[bytes], records: list[StoredRecord]
    ) -> None:
        make, server = self._make, self._server
        for start in range(0, len(lines), SLICE):
            made = [make(line, source, server) for line in lines[start : start + SLICE]]
            records += [record for record in made if record is not None]
            self.breathe()

    def _insert(self, batch: _Batch) -> None:
        self._inserted += self._destination.insert(batch.records, list(batch.positions.values()))
        self._held |= batch.positions
        with self._work:
            self._unheld -= batch.size
        self._succeeded()

    def breathe(self) -> None:
        """Let the server's tasks run, if they are busy; for destinations, too, in long work."""
        if time.monotonic() - self._grown_at < BUSY:
            time.sleep(REST)

    def _succeeded(self) -> None:
        if self._last_error is not None:
            logger.info("the store of %s is fed again", self._reader.folder)
        self._last_error = None
        self._backoff = MIN_BACKOFF

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        text = str(error) or type(error).__name__
        now = time.monotonic()
        if text != self._last_error or now >= self._reported_at + REPORT_INTERVAL:
            known = isinstance(error, HyperlogError | OSError)
            logger.warning(
                "cannot feed the store of %s, log files are kept for it: %s",
                self._reader.folder,
                text,
                exc_info=None if known else error,
            )
            self._reported_at = now
        self._last_error = text

    def _rest_after_failure(self) -> None:
        until = time.monotonic() + self._backoff
        self._backoff = min(2 * self._backoff, MAX_BACKOFF)
        if self._ahead is not None:
            wait([self._ahead])
            self._ahead = None
        try:
            self._reader.start(self._held.values())
            self._unheld = 0
            while not self._stopping and time.monotonic() < until:
                self._pause(min(SCAN_INTERVAL, until - time.monotonic()))
                with self._work:
                    grown, self._grown = self._grown, {}
                for source, size in grown.items():
                    self._reader.grown(source, size)
        except OSError:  # the folder cannot be read: told when it matters
            self._pause(until - time.monotonic())

    def _wait(self, timeout: float) -> None:
        """Until something was written."""
        with self._work:
            if not self._grown and not self._stopping:
                self._work.wait(max(timeout, 0))

    def _pause(self, timeout: float) -> None:
        """Until the follower is stopped."""
        with self._work:
            self._work.wait_for(lambda: self._stopping, max(timeout, 0))
