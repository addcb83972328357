"""The embedded store: a database beside the log files, its follower, and the Store interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

import trio

from hyperlog.diskspool.lock import SessionLock
from hyperlog.store.answers import Bin, BucketUse, Page, StoreStatistics, Top
from hyperlog.store.follow import LogFollower
from hyperlog.store.policy import StorePolicy
from hyperlog.store.query import Query
from hyperlog.store.records import StoredRecord
from hyperlog.store.sqlite import answering, topping
from hyperlog.store.sqlite.asking import Asking
from hyperlog.store.sqlite.locking import lock_database
from hyperlog.store.sqlite.schema import check_library
from hyperlog.store.sqlite.writer import DatabaseWriter, indexed_record_of

__all__ = ["DATABASE", "EmbeddedStore"]

DATABASE: Final = "store.sqlite"  # in the data folder
OPEN_TIMEOUT: Final = 5.0  # s that are waited for the database when the store is opened


class EmbeddedStore:
    """A Store; `async with` it. While it is open it follows the log files of a folder."""

    def __init__(
        self, path: Path, folder: Path, *, server: str, policy: StorePolicy | None = None
    ) -> None:
        """The database at `path`, made if missing, of the log files in `folder`, which the server
        with the public key `server` (hex) writes.

        Raises:
            StoreError: this Python's SQLite cannot be used.
        """
        check_library()
        self.path = path
        self._writer = DatabaseWriter(path, StorePolicy() if policy is None else policy)
        self.follower = LogFollower(folder, self._writer, server, indexed_record_of)
        self._writer.breathe = self.follower.breathe
        self._asking = Asking(path, self._damaged)
        self._lock: SessionLock | None = None

    # -- life

    async def __aenter__(self) -> EmbeddedStore:
        self._lock = await trio.to_thread.run_sync(lock_database, self.path)
        self.follower.start()
        try:
            await trio.to_thread.run_sync(self.follower.wait_opened, OPEN_TIMEOUT)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Insert no more, and let go of the database."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        stopped = self.follower.stop()
        self._asking.close()
        if self._lock is not None and stopped:
            self._lock.release()

    def lines_written(self, source: bytes, lines: Sequence[bytes]) -> None:
        """A listener of LogWriter: what it has written is inserted soon."""
        self.follower.lines_written(source, lines)

    def _damaged(self, error: Exception) -> None:
        self._writer.damage = error
        self.follower.tidy_soon()

    # -- answers

    async def search(
        self,
        query: Query,
        *,
        limit: int = 100,
        cursor: str | None = None,
        order: Literal["newest", "oldest"] = "newest",
    ) -> Page:
        return await self._asking.ask(
            lambda question: answering.search(question, query, limit, cursor, order)
        )

    async def get(self, id: str) -> StoredRecord | None:
        return await self._asking.ask(lambda question: answering.get(question, id))

    async def count(self, query: Query) -> int:
        return await self._asking.ask(lambda question: answering.count(question, query))

    async def histogram(self, query: Query, *, step: int) -> list[Bin]:
        return await self._asking.ask(lambda question: answering.histogram(question, query, step))

    async def top(
        self,
        query: Query,
        field: str,
        *,
        limit: int = 10,
        report: Callable[[Top], object] | None = None,
    ) -> Top:
        def tell(top: Top) -> None:
            if report is not None:
                trio.from_thread.run_sync(report, top)

        return await self._asking.ask(
            lambda question: topping.top(question, query, field, limit, tell if report else None)
        )

    async def buckets(self) -> list[BucketUse]:
        return await self._asking.ask(answering.buckets)

    def statistics(self) -> StoreStatistics:
        follower = self.follower.statistics()
        return StoreStatistics(
            "sqlite",
            self._writer.records,
            self._size(),
            follower.behind,
            follower.inserted,
            follower.failures,
            follower.last_error,
        )

    def _size(self) -> int:
        size = 0
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            try:
                size += path.stat().st_size
            except OSError:
                pass
        return size
