"""MongoDB as a store: what any number of servers may share, each following its own log files.

Questions are answered in threads. One that nobody waits for any more ends by itself, at the latest
when its time is over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, TypeVar

import trio
from bson.errors import BSONError

from hyperlog.errors import QueryError
from hyperlog.store.answers import Bin, BucketUse, Page, StoreStatistics, Top
from hyperlog.store.follow import LogFollower
from hyperlog.store.mongo.access import Access
from hyperlog.store.mongo.branches import Branches, Question
from hyperlog.store.mongo.counting import Counting
from hyperlog.store.mongo.mirror import Mirror
from hyperlog.store.mongo.reading import Order, Place, Reader
from hyperlog.store.query import Has, Query, check
from hyperlog.store.records import StoredRecord

__all__ = ["MongoStore"]

MAX_QUESTIONS: Final = 4  # at a time; others wait
OPEN_TIMEOUT: Final = 5.0  # s that are waited for MongoDB when the store is opened
MAX_LIMIT: Final = 1000
MIN_STEP: Final = 1000  # ms
MAX_STEP: Final = 2**53

UNASKABLE: Final = (BSONError, OverflowError, UnicodeError)

Answer = TypeVar("Answer")

_CURSOR = re.compile(r"(-?[0-9]{1,19})_([0-9]{1,19})_(newest|oldest)", re.ASCII)


class MongoStore:
    """A Store; `async with` it. While it is open it follows the log files of a folder."""

    def __init__(self, uri: str, folder: Path, *, server: str, ttl: float | None = None) -> None:
        """The database that the URI names, of the log files in `folder`, which the server with the
        public key `server` (hex) writes. MongoDB removes records `ttl` s after they were received.

        Nothing is connected yet, and it is no error if MongoDB is away when the store is opened.

        Raises:
            ConfigError: it is no URI of a MongoDB.
        """
        self._access = Access(uri)
        self._mirror = Mirror(self._access, server, ttl=ttl)
        self.follower = LogFollower(folder, self._mirror, server)
        self._mirror.breathe = self.follower.breathe
        branches = Branches(self._access)
        self._reader = Reader(branches)
        self._counting = Counting(branches)
        self._limiter = trio.CapacityLimiter(MAX_QUESTIONS)

    # -- life

    async def __aenter__(self) -> MongoStore:
        """Waits until MongoDB has answered or refused, though not for long if it is away."""
        self.follower.start()
        await trio.to_thread.run_sync(self._wait_opened, abandon_on_cancel=True)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _wait_opened(self) -> None:
        if self._mirror.tried.wait(OPEN_TIMEOUT) and self._mirror.is_open:
            self.follower.wait_opened(OPEN_TIMEOUT)

    async def aclose(self) -> None:
        """Copy no more, and let go of MongoDB."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        self.follower.stop()
        self._access.close()

    def lines_written(self, source: bytes, lines: Sequence[bytes]) -> None:
        """A listener of LogWriter: what it has written is copied soon."""
        self.follower.lines_written(source, lines)

    # -- answers

    async def search(
        self,
        query: Query,
        *,
        limit: int = 100,
        cursor: str | None = None,
        order: Literal["newest", "oldest"] = "newest",
    ) -> Page:
        check(query.where)
        _check_limit(limit)
        after = None if cursor is None else _place(cursor, order)
        records, place = await self._ask(
            lambda question: self._reader.search(question, query, limit, after, order)
        )
        return Page(records, None if place is None else f"{place[0]}_{place[1]}_{order}")

    async def get(self, id: str) -> StoredRecord | None:
        return await self._ask(lambda _: self._reader.get(id))

    async def count(self, query: Query) -> int:
        check(query.where)
        return await self._ask(lambda question: self._counting.count(question, query))

    async def histogram(self, query: Query, *, step: int) -> list[Bin]:
        check(query.where)
        if not MIN_STEP <= step <= MAX_STEP:
            raise QueryError(f"a step of {step} ms, at least {MIN_STEP} are counted")
        return await self._ask(lambda question: self._counting.histogram(question, query, step))

    async def top(
        self,
        query: Query,
        field: str,
        *,
        limit: int = 10,
        report: Callable[[Top], object] | None = None,
    ) -> Top:
        """`report` hears nothing: MongoDB tells no progress."""
        check(query.where)
        check(Has(field))
        _check_limit(limit)
        return await self._ask(lambda question: self._counting.top(question, query, field, limit))

    async def buckets(self) -> list[BucketUse]:
        return await self._ask(self._counting.buckets)

    async def _ask(self, answer: Callable[[Question], Answer]) -> Answer:
        question = Question()
        try:
            return await trio.to_thread.run_sync(
                answer, question, limiter=self._limiter, abandon_on_cancel=True
            )
        except UNASKABLE:
            raise QueryError("a value is no text that can be encoded") from None
        finally:
            question.cancel()

    def statistics(self) -> StoreStatistics:
        follower = self.follower.statistics()
        return StoreStatistics(
            "mongo",
            self._mirror.records,
            self._mirror.bytes,
            follower.behind,
            follower.inserted,
            follower.failures,
            follower.last_error,
        )


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise QueryError(f"limit is {limit}: 1 to {MAX_LIMIT} can be asked for")


def _place(cursor: str, order: Order) -> Place:
    found = _CURSOR.fullmatch(cursor)
    if found is None or found[3] != order:
        raise QueryError(f"that is no cursor of a page of the {order} records")
    return int(found[1]), int(found[2])
