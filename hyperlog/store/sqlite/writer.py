"""Writes records into the database, each with all that is kept of it, in one transaction.

Python's sqlite3 lets go of the interpreter's lock for each row of an `executemany`, and stands in
line for it again: beside a thread that is busy it gets nowhere. So rows go in by the hundred with
one statement, and what is done in Python is cut into slices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec.structs import astuple

from hyperlog.errors import StoreError, StoreUnavailable
from hyperlog.store.follow import Position
from hyperlog.store.policy import StorePolicy
from hyperlog.store.records import StoredRecord, record_of
from hyperlog.store.sqlite.retention import Retention, summed, vacuum_some
from hyperlog.store.sqlite.schema import (
    COUNTERS,
    ID_BITS,
    MINUTE,
    companions,
    connect_writer,
    has_header,
    is_damage,
    move_aside,
)
from hyperlog.store.words import searched_text

__all__ = ["KINDS", "DatabaseWriter", "IndexedRecord", "indexed_record_of", "note_number"]

logger = logging.getLogger("hyperlog.store.sqlite")

KINDS: Final = ("trace", "log", "note", "gap")
"""by their number in the tables"""
ROWS: Final = 500  # in one statement
SLICE: Final = 64  # records prepared before others get the interpreter, some 0.5 ms
MAX_KNOWN: Final = 50_000  # sessions, and points in time, that are remembered
TIDY_TIME: Final = 0.1  # s
MAX_TIME: Final = 2**42  # ms; ids have room for so much

_KIND_NUMBERS: Final = {kind: number for number, kind in enumerate(KINDS)}


def note_number(id: str) -> int:
    """The number under which a record without one is kept, from the end of its id."""
    return int.from_bytes(bytes.fromhex(id[-16:]), "big", signed=True)


class IndexedRecord(StoredRecord, gc=False, frozen=True):
    """A record, and what the index of words gets of it."""

    text: str


def indexed_record_of(line: bytes, source: bytes, server: str) -> IndexedRecord | None:
    """See `record_of`."""
    record = record_of(line, source, server)
    if record is None:
        return None
    values: tuple[Any, ...] = (*astuple(record), searched_text(record))
    return IndexedRecord(*values)


class DatabaseWriter:
    """A Destination; see there. Notices if its file is deleted or damaged, and begins a new one."""

    def __init__(
        self,
        path: Path,
        policy: StorePolicy,
        *,
        now: Callable[[], float] = time.time,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        """`breathe` is called between slices of work that keep the interpreter busy."""
        self.path = path
        self.breathe = breathe
        self.records = 0
        """held, as last counted"""
        self.damage: Exception | None = None
        """set by readers that came upon it"""
        self._retention = Retention(policy, lambda: self.breathe())
        self._now = now
        self._connection: sqlite3.Connection | None = None
        self._distrustful = False
        """something that cannot be has been: look for each record whether it is held"""
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None
        self._newest = 0
        self._last_session = 0
        self._forget_known()

    def _forget_known(self) -> None:
        self._origins: dict[tuple[str, str, str, str, str | None], int] = {}
        self._sessions: dict[tuple[str, str], list[int]] = {}
        self._next_ids: dict[int, int] = {}

    # -- life

    def open(self) -> list[Position]:
        """Positions of what is held; none if the database had to be made anew.

        Raises:
            StoreUnavailable: the database cannot be used now.
        """
        with self._faults():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.damage is not None:
                self._give_up(self.damage)
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self.close()
                self._give_up(error)
                self._open()
            rows = self._db.execute('select source, file, offset, "check" from positions')
            return [Position(*row) for row in rows]

    def _open(self) -> None:
        self.close()
        if not self.path.exists():
            for one in companions(self.path):  # of a database that was deleted
                one.unlink(missing_ok=True)
        self._connection = connect_writer(self.path)
        self._forget_known()
        # Held as long as the connection is: closing it gives up SQLite's locks on the file.
        self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._identity = _identity(self.path)
        self._newest = self._one("select coalesce(max(id), 0) from records") >> ID_BITS
        self._last_session = self._one("select coalesce(max(id), 0) from sessions")
        self.records = self._one("select coalesce(sum(records), 0) from origins")

    def _give_up(self, error: Exception) -> None:
        self.damage = None
        if self.path.exists():
            aside = move_aside(self.path)
            logger.warning(
                "the store is damaged (%s): it is made again from the log files; what is left of "
                "it is %s",
                error,
                aside,
            )

    def close(self) -> None:
        """Let go of the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                logger.debug("closing the store failed", exc_info=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreUnavailable("the embedded store is not open")
        return self._connection

    def _one(self, statement: str, *values: object) -> int:
        (value,) = self._db.execute(statement, values).fetchone()
        return int(value)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what SQLite and the system raise into what followers expect."""
        try:
            yield
        except sqlite3.Error as error:
            if is_damage(error):
                self.damage = error
            self._distrustful |= isinstance(error, sqlite3.IntegrityError)
            raise StoreUnavailable(f"{self.path}: {error}") from error
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror or error}") from error

    def _check_file(self) -> None:
        """Make sure that what is written goes to where others will look for it."""
        if self.damage is not None:
            raise StoreUnavailable(f"{self.path}: {self.damage}")
        identity = _identity(self.path)
        if identity is None or identity != self._identity:
            logger.warning("the store %s has gone: it is made again from the log files", self.path)
            raise StoreUnavailable(f"{self.path} was removed")
        if not has_header(self._descriptor):
            self.damage = StoreError("it was overwritten")
        elif not companions(self.path)[0].exists():
            self.damage = StoreError("its write-ahead log was removed")
        if self.damage is not None:
            raise StoreUnavailable(f"{self.path}: {self.damage}")

    # -- what followers bring

    def insert(self, records: Sequence[StoredRecord], positions: Sequence[Position]) -> int:
        """Hold those that are not held yet; how many that were.

        Raises:
            StoreUnavailable: nothing of this has changed the database.
        """
        with self._faults():
            self._check_file()
            with self._transaction():
                count = self._insert(records)
                self._many(
                    'insert into positions (source, file, offset, "check") values',
                    [(one.source, one.file, one.offset, one.check) for one in positions],
                    "on conflict (source, file) do update set offset = excluded.offset, "
                    '"check" = excluded."check"',
                )
            self.records += count
            return count

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("begin immediate")
        try:
            yield
            self._db.execute("commit")
        except BaseException:
            self._forget_known()
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise

    def forget(self, positions: Sequence[Position]) -> None:
        """These files have gone."""
        with self._faults(), self._transaction():
            for one in positions:
                self._db.execute(
                    "delete from positions where source = ? and file = ?", (one.source, one.file)
                )

    def tidy(self) -> bool:
        """Remove what is kept no longer; whether there is more to do."""
        with self._faults():
            self._check_file()
            until = time.monotonic() + TIDY_TIME
            while time.monotonic() < until:
                with self._transaction():
                    count = self._retention.remove_some(self._db, self._now())
                if not count:
                    return vacuum_some(self._db)
                self.records -= count
                self._forget_known()
                self.breathe()
            return True

    def _insert(self, records: Sequence[StoredRecord]) -> int:
        if len(self._sessions) + len(self._next_ids) > MAX_KNOWN:
            self._forget_known()  # not within a batch: what is not yet written is nowhere else
        news = self._without_repeats(records)
        self._learn_times({min(max(one[0].time, 0), MAX_TIME) for one in news})
        rows: list[tuple[int, int, int, int, int, int, int | None]] = []
        lines: dict[int, bytes] = {}
        texts: dict[int, str] = {}
        counts: dict[tuple[int, int, int, int], int] = {}
        totals: dict[int, list[int]] = {}
        for done, (record, session, number) in enumerate(news, 1):
            if not done % SLICE:
                self.breathe()
            origin, kind = self._origin(record), _KIND_NUMBERS[record.kind]
            time = min(max(record.time, 0), MAX_TIME)
            id = self._next_ids[time]
            self._next_ids[time] = id + 1
            rows.append((id, origin, record.level, kind, session, number, record.client_time))
            lines[id] = record.body
            texts[id] = record.text if isinstance(record, IndexedRecord) else searched_text(record)
            counter = time // MINUTE * MINUTE, record.level, kind, origin
            counts[counter] = counts.get(counter, 0) + 1
            total = totals.setdefault(origin, [0, 0])
            total[0] += 1
            total[1] += len(record.body)
        rows.sort()  # ids that go back make FTS5 begin a new segment
        self._many("insert into records values", rows)
        self._many("insert into bodies values", [(row[0], lines[row[0]]) for row in rows])
        self._many("insert into words (rowid, text) values", [(r[0], texts[r[0]]) for r in rows])
        for table, step in COUNTERS:
            self._many(
                f"insert into {table} values",
                summed(counts, step),
                "on conflict (start, level, kind, origin) do update "
                "set records = records + excluded.records",
            )
        self._many(
            "update origins set records = records + column2, bytes = bytes + column3 from (values",
            [(origin, count, size) for origin, (count, size) in totals.items()],
            ") where id = column1",
        )
        return len(rows)

    def _without_repeats(
        self, records: Sequence[StoredRecord]
    ) -> list[tuple[StoredRecord, int, int]]:
        """Those that are not held, each with its session and its number there."""
        found: dict[tuple[int, int], StoredRecord] = {}
        doubtful: list[tuple[int, int]] = []
        grown: dict[int, list[int]] = {}
        for done, record in enumerate(records, 1):
            if not done % (8 * SLICE):
                self.breathe()
            if record.session is None or record.number is None:
                name, number = "", note_number(record.id)
            else:
                name, number = record.session, record.number
            session = self._session(record.source, name)
            key = session[0], number
            if key in found:
                continue
            found[key] = record
            if number > session[1]:
                session[1] = number
                grown[session[0]] = session
                if name and not self._distrustful:
                    continue  # numbers only grow
            doubtful.append(key)
        for session_id, number in self._select(
            "select column1, column2 from (values",
            doubtful,
            ") where exists (select 1 from records where session = column1 and number = column2)",
        ):
            del found[session_id, number]
        self._many(
            "update sessions set last = column2 from (values",
            list(grown.values()),
            ") where id = column1",
        )
        return [(record, *key) for key, record in found.items()]

    def _learn_times(self, times: set[int]) -> None:
        """Make sure that the next ids of these times are known."""
        known = self._next_ids
        later = {time for time in times if time > self._newest}
        known.update((time, time << ID_BITS) for time in later)
        self._newest = max(self._newest, max(times, default=0))
        asked = [
            (time, time << ID_BITS, (time + 1) << ID_BITS) for time in times if time not in known
        ]
        for ms, last in self._select(
            "select column1, (select max(id) from records where id >= column2 and id < column3) "
            "from (values",
            asked,
            ")",
        ):
            known[ms] = ms << ID_BITS if last is None else last + 1

    def _select(
        self, statement: str, rows: Sequence[Sequence[object]], ending: str
    ) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for part, values in _parts(rows):
            found += self._db.execute(f"{statement} {part} {ending}", values).fetchall()
        return found

    def _many(self, statement: str, rows: Sequence[Sequence[object]], ending: str = "") -> None:
        """Insert rows with few statements."""
        for part, values in _parts(rows):
            self._db.execute(f"{statement} {part} {ending}", values)

    def _origin(self, record: StoredRecord) -> int:
        key = record.server, record.source, record.bucket, record.instance, record.key
        known = self._origins.get(key)
        if known is None:
            found = self._db.execute(
                "select id from origins where source = ?2 and server = ?1 and bucket = ?3 "
                "and instance = ?4 and key is ?5",
                key,
            ).fetchone()
            if found is None:
                found = self._db.execute(
                    "insert into origins (server, source, bucket, instance, key) "
                    "values (?, ?, ?, ?, ?) returning id",
                    key,
                ).fetchone()
            known = self._origins[key] = found[0]
        return known

    def _session(self, source: str, name: str) -> list[int]:
        """Its id and its highest number so far."""
        known = self._sessions.get((source, name))
        if known is None:
            found = self._db.execute(
                "select id, last from sessions where source = ? and name = ?", (source, name)
            ).fetchone()
            if found is None:
                self._last_session += 1
                found = (self._last_session, -1)
                self._db.execute(
                    "insert into sessions values (?, ?, ?, ?)", (found[0], source, name, -1)
                )
            known = self._sessions[source, name] = list(found)
        return known


def _parts(rows: Sequence[Sequence[object]]) -> Iterator[tuple[str, list[object]]]:
    """Places and values, for statements of not too many rows."""
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        places = f"({', '.join('?' * len(part[0]))})"
        yield ", ".join([places] * len(part)), [value for row in part for value in row]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
