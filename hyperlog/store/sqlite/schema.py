"""The database: its tables, how it is opened, and how damage is told from other faults.

    records   what can be filtered by columns; small, so that a million are read in no time
    bodies    the lines, under the same ids
    words     full-text index of all values and messages, under the same ids, without the texts
    minutes   records by minute, level, kind and origin: answers what needs nothing else
    hours     the same by hour, for what is asked about longer times
    origins   who sent it: server, source, bucket, instance, key
    sessions  of a source; one without a name for its notes, whose number is their hash
    positions how far each log file is held

An id is the time of reception and a count: `ms << 20 | count`. So all tables are in order of time,
whatever the order of arrival, and the newest are found without an index.

Spec: docs/store.md.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from hyperlog.errors import StoreError, StoreUnavailable

__all__ = [
    "COUNTERS",
    "ID_BITS",
    "MINUTE",
    "check_library",
    "companions",
    "connect_reader",
    "connect_writer",
    "has_header",
    "is_damage",
    "move_aside",
    "remove_database",
]

ID_BITS: Final = 20
MINUTE: Final = 60_000  # ms
COUNTERS: Final = (("minutes", MINUTE), ("hours", 60 * MINUTE))
"""tables of counters, and ms between two of their starts, which are multiples of it"""
APPLICATION_ID: Final = 0x68796C67  # "hylg", in the header of the file
VERSION: Final = 1  # of the tables and of how texts are split into words
MIN_LIBRARY: Final = (3, 35, 0)
PAGE_SIZE: Final = 16_384  # bytes; takes less time to insert, and less space, than 4,096
WRITER_CACHE: Final = 32 * 1024  # KiB
READER_CACHE: Final = 16 * 1024
CHECKPOINT_PAGES: Final = 6_000  # 96 MB; busy pages are then copied less often
MAX_LOG_SIZE: Final = 64 * 1024 * 1024  # bytes that the write-ahead log keeps once it was larger
BUSY_TIMEOUT: Final = 5.0  # s

_TABLES: Final = """
create table records (
    id integer primary key,
    origin integer not null,
    level integer not null,
    kind integer not null,
    session integer not null,
    number integer not null,
    client_time integer
);
create unique index records_by_number on records (session, number);
create table bodies (id integer primary key, body blob not null);
create virtual table words using fts5 (
    text, content = '', columnsize = 0, detail = full,
    tokenize = "ascii tokenchars '_'"
);
create table minutes (
    start integer not null,
    level integer not null,
    kind integer not null,
    origin integer not null,
    records integer not null,
    primary key (start, level, kind, origin)
) without rowid;
create table hours (
    start integer not null,
    level integer not null,
    kind integer not null,
    origin integer not null,
    records integer not null,
    primary key (start, level, kind, origin)
) without rowid;
create table origins (
    id integer primary key,
    server text not null,
    source text not null,
    bucket text not null,
    instance text not null,
    key text,
    records integer not null default 0,
    bytes integer not null default 0
);
create index origins_by_source on origins (source);
create table sessions (
    id integer primary key,
    source text not null,
    name text not null,
    last integer not null,
    unique (source, name)
);
create table positions (
    source blob not null,
    file text not null,
    offset integer not null,
    "check" integer not null,
    primary key (source, file)
) without rowid;
"""

_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
_HEADER: Final = b"SQLite format 3\0"


def check_library() -> None:
    """Make sure that Python's SQLite can be used.

    Raises:
        StoreError: it is too old, or was built without full-text search.
    """
    if sqlite3.sqlite_version_info < MIN_LIBRARY:
        wanted = ".".join(map(str, MIN_LIBRARY))
        raise StoreError(
            f"the embedded store needs SQLite {wanted}, this Python has {sqlite3.sqlite_version}: "
            "use a newer Python, or --store mongo"
        )
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("create virtual table probe using fts5 (text)")
    except sqlite3.Error:
        raise StoreError(
            "the embedded store needs SQLite with FTS5, which this Python's lacks: "
            "use another Python, or --store mongo"
        ) from None
    finally:
        connection.close()


def connect_writer(path: Path) -> sqlite3.Connection:
    """The connection that writes; the file and its tables are made if they are missing.

    Raises:
        sqlite3.DatabaseError: the file is damaged, see `is_damage`, or cannot be used now.
    """
    if not path.exists():
        _create(path)
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT, isolation_level=None, cached_statements=256
    )
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.execute(f"pragma cache_size = -{WRITER_CACHE}")
        connection.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(f"pragma journal_size_limit = {MAX_LOG_SIZE}")
        connection.execute("pragma secure_delete = off")
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Make an empty database, which appears with all its tables: somebody may ask it already."""
    temporary = path.with_name(path.name + ".new")
    remove_database(temporary)
    connection = sqlite3.connect(temporary, isolation_level=None)
    try:
        os.chmod(temporary, 0o600)  # what is in it may be readable by fewer than the log files
        connection.execute(f"pragma page_size = {PAGE_SIZE}")
        connection.execute("pragma auto_vacuum = incremental")
        connection.execute("begin immediate")
        for statement in _TABLES.split(";"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
        connection.execute(f"pragma user_version = {VERSION}")
        connection.execute("commit")
    finally:
        connection.close()
    os.replace(temporary, path)


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; may be handed from thread to thread.

    Raises:
        StoreUnavailable: there is no database, or none of ours.
        sqlite3.DatabaseError: as above.
    """
    if not path.exists():
        raise StoreUnavailable("the embedded store is being made; try again soon")
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("pragma query_only = on")
        connection.execute(f"pragma cache_size = -{READER_CACHE}")
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


class ForeignDatabase(sqlite3.DatabaseError):
    """It is of another program, or another version."""

    sqlite_errorcode = sqlite3.SQLITE_FORMAT


def _check(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("pragma application_id").fetchone()
    (version,) = connection.execute("pragma user_version").fetchone()
    if (application, version) != (APPLICATION_ID, VERSION):
        raise ForeignDatabase(f"it is no store of version {VERSION}")
    for table in ("records", "bodies", "minutes", "hours", "origins", "sessions", "positions"):
        connection.execute(f"select * from {table} limit 1").fetchone()
    connection.execute("select rowid from words where words match 'x' limit 1").fetchone()


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the database is no use any more, rather than that it cannot be
    used now (full, locked, unreadable)."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(code, int) and code & 0xFF in _DAMAGE


def has_header(descriptor: int) -> bool:
    """Whether the open file begins as ours does."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    header = os.read(descriptor, 100)
    return header.startswith(_HEADER) and header[68:72] == APPLICATION_ID.to_bytes(4, "big")


def companions(path: Path) -> list[Path]:
    """The files that SQLite keeps beside a database."""
    return [path.with_name(path.name + suffix) for suffix in _COMPANIONS]


def remove_database(path: Path) -> None:
    """Remove a database and what belongs to it, if it is there."""
    for one in (path, *companions(path)):
        one.unlink(missing_ok=True)


def move_aside(path: Path) -> Path:
    """Rename a database out of the way, over one that was there before; what it is called now."""
    aside = path.with_name(path.name + ".damaged")
    for one in companions(path):
        one.unlink(missing_ok=True)
    os.replace(path, aside)
    return aside
