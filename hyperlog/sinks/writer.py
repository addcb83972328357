"""Writes the lines of all clients into their files, in one thread of its own.

    async with LogWriter(FileSink(folder)) as writer:
        await writer.write(key, lines)  # they are durable now

Disks stall for seconds: a full journal, a network file system, a RAID that spins up. So no task
waits on a disk but on this thread, which takes everything that waits at that moment (group commit):

    tasks --write--> queue of each key --a share of each key--> one write per key
                                                            --> with fsync: one fdatasync per key
    tasks <--------------- one run_sync_soon for all that is done ---'

A key with thousands of records per second gets the same share of each round as any other. What is
queued belongs to tasks that wait, so a server bounds it by `wait_for_room` before it reads on: then
a slow disk closes the receive windows of those who send.

After a failed write the lines that were queued behind it are not written either, nor are others of
that key until the tasks concerned have been told: they would leave a hole. A server that takes its
state back as soon as `write` raises, before it awaits anything, can rely on that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, TypeAlias

import trio

from hyperlog.errors import LogQuotaReached, SinkError
from hyperlog.sinks.files import FileSink
from hyperlog.sinks.linecut import cut_line

__all__ = ["Durability", "Listener", "LogWriter", "WriterStatistics"]

logger = logging.getLogger("hyperlog.sinks.writer")

Durability: TypeAlias = Literal["write", "fsync"]
Listener: TypeAlias = Callable[[bytes, Sequence[bytes]], object]
"""(key, lines as they stand in its file); called in the writer's thread, so it must be quick"""

MAX_LINE: Final = 64 * 1024  # bytes; above that many tailers cut or drop lines
KEY_SHARE: Final = 512 * 1024  # bytes of one key in one round
ROUND_SIZE: Final = 8 * 1024 * 1024  # bytes in one round
ROUND_KEYS: Final = 64  # files in one round: below what the sink keeps open
MAX_KEY_QUEUE: Final = 4 * 1024 * 1024  # bytes of one key, then wait_for_room waits
MAX_QUEUE: Final = 64 * 1024 * 1024  # bytes of all keys
MAX_OVER_QUOTA: Final = 65536  # keys remembered
TIDY_INTERVAL: Final = 30.0  # s between two looks at the folder as a whole
QUOTA_INTERVAL: Final = 1.0  # s, the same while a quota is reached
CLOSE_TIMEOUT: Final = 5.0  # s for what is queued when the writer is closed


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """The writer now, and counts since it started."""

    queued_bytes: int
    keys_with_room: bool
    """False while all have to wait"""
    rounds: int
    batches: int
    lines: int
    bytes: int
    cut_lines: int
    failures: int
    """batches that were not written in full"""
    quota_failures: int
    """those of them for which a quota left no room"""
    rotations: int
    removed_files: int
    """by retention"""
    folder_bytes: int
    folder_files: int
    folder_keys: int
    slowest_round: float
    """s"""


@dataclass(slots=True, eq=False)
class _Batch:
    key: bytes
    lines: Sequence[bytes]
    size: int
    task: trio.lowlevel.Task
    error: SinkError | None = None


@dataclass(slots=True)
class _Queue:
    """What waits of one key."""

    batches: deque[_Batch] = field(default_factory=deque)
    size: int = 0


@dataclass(slots=True)
class _Counts:
    rounds: int = 0
    batches: int = 0
    lines: int = 0
    bytes: int = 0
    cut_lines: int = 0
    failures: int = 0
    quota_failures: int = 0
    slowest_round: float = 0.0


class LogWriter:
    """Durable lines for trio tasks. `async with` it; `resume` may be called from any thread."""

    def __init__(
        self, sink: FileSink, *, durability: Durability = "write", max_line: int = MAX_LINE
    ) -> None:
        """The sink belongs to the writer from now on, which also closes it.

        With "write" lines survive the process, with "fsync" the machine; for that the sink has to
        be made `synced`. Lines of more than `max_line` bytes are cut, see `cut_line`.
        """
        self.sink = sink
        self.durability: Durability = durability
        self.listeners: tuple[Listener, ...] = ()
        """told of all lines that have become durable; may be replaced at any time"""
        self._written: list[tuple[bytes, Sequence[bytes]]] = []  # in this round
        self._max_line = max_line
        self._counts = _Counts()
        # The lock guards what follows; it is never held during a system call on a file.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._queues: OrderedDict[bytes, _Queue] = OrderedDict()
        self._size = 0
        self._failing: dict[bytes, int] = {}
        self._closing = False
        self._over_quota_found = False
        # Only for the trio thread:
        self._rooms: dict[bytes, trio.lowlevel.ParkingLot] = {}
        self._token: trio.lowlevel.TrioToken | None = None
        self._stopped = trio.Event()
        # Only the thread takes keys out:
        self._over_quota: set[bytes] = set()

    # -- life

    async def __aenter__(self) -> LogWriter:
        self._token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._run, name="hyperlog log writer", daemon=True).start()
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Write what is queued, for at most CLOSE_TIMEOUT, and end the thread."""
        with self._lock:
            self._closing = True
            self._work.notify()
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
            await self._stopped.wait()
        if scope.cancelled_caught:
            logger.error("the disk of %s does not answer; lines were left behind", self.sink.folder)

    def statistics(self) -> WriterStatistics:
        counts, table = self._counts, self.sink.table
        return WriterStatistics(
            queued_bytes=self._size,
            keys_with_room=self._size < MAX_QUEUE,
            rounds=counts.rounds,
            batches=counts.batches,
            lines=counts.lines,
            bytes=counts.bytes,
            cut_lines=counts.cut_lines,
            failures=counts.failures,
            quota_failures=counts.quota_failures,
            rotations=self.sink.rotations,
            removed_files=table.removed,
            folder_bytes=table.size,
            folder_files=table.files,
            folder_keys=table.keys,
            slowest_round=counts.slowest_round,
        )

    # -- for tasks

    async def write(self, key: bytes, lines: Sequence[bytes]) -> int:
        """Wait until `lines` (JSON texts without newline) are durable; returns how many they are.

        Lines of one key are written in the order of the calls. If the task is cancelled while it
        waits, none of them is written; once the thread has begun with them, it waits to the end.

        Raises:
            SinkError: its `lines_written` leading lines are durable and no others; take your state
                back before you await anything.
            LogQuotaReached: the same, because there is no room for more.
            trio.ClosedResourceError: the writer is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not lines:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return 0
        size = sum(map(len, lines)) + len(lines)
        batch = _Batch(key, lines, size, trio.lowlevel.current_task())
        with self._lock:
            if self._closing or self._token is None:
                raise trio.ClosedResourceError("the log writer is closed")
            if key in self._failing:
                raise SinkError("lines before these were not written")
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = _Queue()
            queue.batches.append(batch)
            queue.size += size
            self._size += size
            self._work.notify()

        def abort(_: object) -> trio.lowlevel.Abort:
            return self._withdraw(batch)

        await trio.lowlevel.wait_task_rescheduled(abort)
        if batch.error is not None:
            self._told(key)
            raise batch.error
        return len(lines)

    async def wait_for_room(self, key: bytes) -> None:
        """Return when more lines of a key may be brought: neither too much is queued nor is a quota
        reached. To be called before reading on from a client."""
        await trio.lowlevel.checkpoint()
        while not self._has_room(key):
            lot = self._rooms.get(key)
            if lot is None:
                lot = self._rooms[key] = trio.lowlevel.ParkingLot()
            await lot.park()

    def check_quota(self, key: bytes) -> None:
        """Make sure that lines of a key may be written, as far as quotas go; does not wait.

        Raises:
            LogQuotaReached: they may not. From then on it is looked for room each second.
        """
        try:
            self.sink.table.check_quota(key)
        except LogQuotaReached:
            if key not in self._over_quota and len(self._over_quota) < MAX_OVER_QUOTA:
                self._over_quota.add(key)
                with self._lock:
                    self._over_quota_found = True
                    self._work.notify()
            raise

    def resume(self, key: bytes) -> list[tuple[str, int]]:
        """(session id, last number) of a key's sessions, the latest last. Blocks on the disk.

        Raises:
            SinkError: what is stored cannot be read.
        """
        return self.sink.resume(key)

    def _has_room(self, key: bytes) -> bool:
        if self._size >= MAX_QUEUE or key in self._over_quota:
            return False
        queue = self._queues.get(key)
        return queue is None or queue.size < MAX_KEY_QUEUE

    def _withdraw(self, batch: _Batch) -> trio.lowlevel.Abort:
        with self._lock:
            queue = self._queues.get(batch.key)
            if queue is None or batch not in queue.batches:
                return trio.lowlevel.Abort.FAILED  # being written
            position = queue.batches.index(batch)
            behind = list(queue.batches)[position + 1 :]
            for _ in range(len(behind) + 1):
                queue.batches.pop()
            self._forget(queue, batch.key, [batch, *behind])
            if behind:
                self._failing[batch.key] = self._failing.get(batch.key, 0) + len(behind)
        for other in behind:
            other.error = SinkError("lines before these were withdrawn")
            trio.lowlevel.reschedule(other.task)
        return trio.lowlevel.Abort.SUCCEEDED

    def _forget(self, queue: _Queue, key: bytes, batches: Sequence[_Batch]) -> None:
        size = sum(batch.size for batch in batches)
        queue.size -= size
        self._size -= size
        if not queue.batches:
            del self._queues[key]

    def _told(self, key: bytes) -> None:
        with self._lock:
            self._failing[key] -= 1
            if not self._failing[key]:
                del self._failing[key]

    def _wake(self, done: Sequence[_Batch]) -> None:
        """In the trio thread: let the tasks of these batches go on."""
        for batch in done:
            trio.lowlevel.reschedule(batch.task)
        for key in [key for key in self._rooms if self._has_room(key)]:
            self._rooms.pop(key).unpark_all()

    # -- in the thread

    def _run(self) -> None:
        assert self._token is not None
        tidy_at = time.monotonic()
        try:
            while True:
                with self._lock:
                    while not (self._queues or self._closing or self._over_quota_found):
                        if not self._work.wait(max(tidy_at - time.monotonic(), 0)):
                            break
                    if self._closing and not self._queues:
                        break
                    self._over_quota_found = False
                    batches = self._take_round()
                now = time.monotonic()
                if batches:
                    batches = self._write_round(batches, now)
                if now >= tidy_at:
                    self._tidy()
                    tidy_at = now + (QUOTA_INTERVAL if self._over_quota else TIDY_INTERVAL)
                elif self._over_quota:
                    tidy_at = min(tidy_at, now + QUOTA_INTERVAL)
                self._token.run_sync_soon(self._wake, batches)
                self._tell_listeners()
            self.sink.close()
            self._token.run_sync_soon(self._stopped.set)
        except trio.RunFinishedError:
            self.sink.close()

    def _take_round(self) -> list[_Batch]:
        batches: list[_Batch] = []
        room = ROUND_SIZE
        for key in list(self._queues)[:ROUND_KEYS]:
            queue = self._queues[key]
            taken: list[_Batch] = []
            share = KEY_SHARE
            while queue.batches and share > 0:
                batch = queue.batches.popleft()
                share -= batch.size
                room -= batch.size
                taken.append(batch)
            self._forget(queue, key, taken)
            if queue.batches:
                self._queues.move_to_end(key)
            batches += taken
            if room <= 0:
                break
        return batches

    def _write_round(self, batches: Sequence[_Batch], now: float) -> list[_Batch]:
        """Write them; returns all batches whose tasks may go on now."""
        counts = self._counts
        counts.rounds += 1
        by_key: dict[bytes, list[_Batch]] = {}
        for batch in batches:
            by_key.setdefault(batch.key, []).append(batch)
        for key, mine in by_key.items():
            self._guarded(key, mine, now, self._write_key)
        if self.durability == "fsync":
            for key, mine in by_key.items():
                if mine[-1].error is None:
                    self._guarded(key, mine, now, self._sync_key)
            unsynced = {key for key, mine in by_key.items() if mine[-1].error is not None}
            self._written = [entry for entry in self._written if entry[0] not in unsynced]
        done = [batch for mine in by_key.values() for batch in mine]
        for batch in done:
            counts.batches += 1
            if batch.error is None:
                counts.lines += len(batch.lines)
                counts.bytes += batch.size
            else:
                counts.failures += 1
                counts.lines += batch.error.lines_written
                counts.quota_failures += isinstance(batch.error, LogQuotaReached)
        counts.slowest_round = max(counts.slowest_round, time.monotonic() - now)
        return done

    def _guarded(
        self,
        key: bytes,
        batches: list[_Batch],
        now: float,
        action: Callable[[bytes, list[_Batch], float], None],
    ) -> None:
        try:
            action(key, batches, now)
        except SinkError as error:
            # After a failed sync nobody knows for sure, whatever the file looks like.
            self._fail(key, batches, error, all_of_them=action == self._sync_key)
        except Exception as error:  # isolates one key's lines from the others
            logger.exception("writing lines failed")
            failure = SinkError(f"cannot write: {type(error).__name__}")
            self._fail(key, batches, failure, all_of_them=True)

    def _write_key(self, key: bytes, batches: list[_Batch], now: float) -> None:
        lines: Sequence[bytes] = batches[0].lines
        if len(batches) > 1:
            lines = [line for batch in batches for line in batch.lines]
        limit = self._max_line
        if max(map(len, lines)) > limit:
            self._counts.cut_lines += sum(len(line) > limit for line in lines)
            lines = [line if len(line) <= limit else cut_line(line, limit) for line in lines]
        try:
            self.sink.write(key, lines, now)
        except SinkError as error:
            self._written.append((key, lines[: error.lines_written]))
            raise
        self._written.append((key, lines))

    def _sync_key(self, key: bytes, batches: list[_Batch], now: float) -> None:
        self.sink.sync(key)

    def _tell_listeners(self) -> None:
        written, self._written = self._written, []
        for listener in self.listeners:
            for key, lines in written:
                try:
                    if lines:
                        listener(key, lines)
                except Exception:  # isolates who listens from who writes
                    logger.exception("telling of written lines failed")

    def _fail(
        self, key: bytes, batches: list[_Batch], error: SinkError, *, all_of_them: bool
    ) -> None:
        """Tell the tasks of these batches, and of those that are queued behind them."""
        with self._lock:
            queue = self._queues.get(key)
            if queue is not None:
                behind = list(queue.batches)
                queue.batches.clear()
                self._forget(queue, key, behind)
                batches += behind
            count = error.lines_written
            for batch in batches:
                written = min(count, len(batch.lines))
                count -= written
                if all_of_them or written < len(batch.lines):
                    batch.error = type(error)(str(error), written)
                    self._failing[key] = self._failing.get(key, 0) + 1
        if isinstance(error, LogQuotaReached):
            if len(self._over_quota) >= MAX_OVER_QUOTA:
                self._over_quota.clear()  # they come back with their next line
            self._over_quota.add(key)

    def _tidy(self) -> None:
        try:
            self.sink.tidy(time.time())
        except SinkError as error:
            logger.warning("%s", error)
        for key in list(self._over_quota):
            try:
                self.sink.table.check_quota(key)
            except LogQuotaReached:
                continue
            self._over_quota.discard(key)
