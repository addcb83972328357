"""Questions to the database: each in a thread that ends with its task, on a connection of its own.

A question that is cancelled, or takes longer than MAX_TIME, is interrupted within the statement
that it is at. Connections are kept for the next question.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from hyperlog.errors import StoreUnavailable
from hyperlog.store.sqlite.schema import connect_reader, is_damage

__all__ = ["Asking", "Question"]

MAX_QUESTIONS: Final = 3  # at a time; others wait
MAX_TIME: Final = 60.0  # s
STEPS: Final = 100_000  # of SQLite's machine between two looks at the clock, about a ms

Answer = TypeVar("Answer")


class Question:
    """One that is being answered; methods are for its thread, but for `cancel`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._until = time.monotonic() + MAX_TIME
        self._cancelled = False
        connection.set_progress_handler(self._must_stop, STEPS)

    def cancel(self) -> None:
        """Let it end soon. May be called in any thread."""
        self._cancelled = True

    def _must_stop(self) -> bool:
        return self._cancelled or time.monotonic() > self._until

    def check(self) -> None:
        """To be called from time to time in long work.

        Raises:
            StoreUnavailable: it is cancelled, or has taken too long.
        """
        if self._must_stop():
            raise StoreUnavailable(
                f"the answer takes longer than {MAX_TIME:g} s: ask for a shorter time"
            )

    def rows(self, statement: str, values: list[Any] | tuple[Any, ...] = ()) -> sqlite3.Cursor:
        self.check()
        return self._connection.execute(statement, values)

    def row(self, statement: str, values: list[Any] | tuple[Any, ...] = ()) -> Any:  # noqa: ANN401
        return self.rows(statement, values).fetchone()


class Asking:
    """The connections that answer."""

    def __init__(self, path: Path, damaged: Callable[[Exception], None]) -> None:
        """`damaged` is told of what makes the database no use any more, in some thread."""
        self._path = path
        self._damaged = damaged
        self._limiter = trio.CapacityLimiter(MAX_QUESTIONS)
        self._lock = threading.Lock()
        self._idle: list[tuple[tuple[int, int], sqlite3.Connection]] = []
        self._closed = False

    async def ask(self, answer: Callable[[Question], Answer]) -> Answer:
        """What `answer` returns, called in a thread.

        Raises:
            StoreUnavailable: the database cannot answer, or the question takes too long.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        question: Question | None = None
        result: Answer
        error: Exception | None = None

        def run() -> None:
            nonlocal question, result, error
            try:
                identity, connection = self._take()
                question = Question(connection)
                if cancelled:
                    question.cancel()
                reusable = False
                try:
                    with _snapshot(connection):
                        result = answer(question)
                    reusable = True
                finally:
                    self._give_back(identity, connection, reusable)
            except Exception as err:  # goes on in the task
                error = err

        cancelled = False

        async def watch() -> None:
            nonlocal cancelled
            try:
                await trio.sleep_forever()
            finally:
                cancelled = True
                if question is not None:
                    question.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.to_thread.run_sync(run, limiter=self._limiter)
            nursery.cancel_scope.cancel()
        if error is not None:
            raise self._known(error)
        return result

    def _known(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error):
            if is_damage(error):
                self._damaged(error)
                return StoreUnavailable("the store is damaged, and is being made again")
            if isinstance(error, sqlite3.OperationalError) and "interrupted" in str(error):
                return StoreUnavailable(
                    f"the answer takes longer than {MAX_TIME:g} s: ask for a shorter time"
                )
            return StoreUnavailable(f"the store cannot answer: {error}")
        if isinstance(error, OSError):
            return StoreUnavailable(f"the store cannot answer: {error.strerror or error}")
        return error

    def _take(self) -> tuple[tuple[int, int], sqlite3.Connection]:
        identity = _identity(self._path)
        with self._lock:
            while self._idle:
                known, connection = self._idle.pop()
                if known == identity:
                    return identity, connection
                connection.close()  # of a file that has been replaced since
        return identity, connect_reader(self._path)

    def _give_back(
        self, identity: tuple[int, int], connection: sqlite3.Connection, reusable: bool
    ) -> None:
        connection.set_progress_handler(None, 0)
        with self._lock:
            if reusable and not self._closed:
                self._idle.append((identity, connection))
                return
        connection.close()

    def close(self) -> None:
        """Let go of the file. Questions that are being answered end as they would."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop()[1].close()


class _snapshot:
    """All that is asked in it is about the same moment."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("begin")

    def __exit__(self, *exc_info: object) -> None:
        if self._connection.in_transaction:
            self._connection.execute("rollback")


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise StoreUnavailable("the embedded store is being made; try again soon") from None
    return status.st_dev, status.st_ino
