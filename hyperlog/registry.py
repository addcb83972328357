"""The server's own small database: secrets that sign tokens, tokens, users and their logins.

One SQLite file of mode 0600 beside the stores. The server and the commands `hyperlog token` and
`hyperlog user` use it at the same time: whoever has it open notices what others have changed.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hyperlog.errors import ConfigError, KeyFileError

__all__ = ["PATIENCE", "REGISTRY_NAME", "SERVER_PATIENCE", "Registry"]

REGISTRY_NAME: Final = "registry.sqlite"
PATIENCE: Final = 5.0  # s that a command waits for others that are writing
SERVER_PATIENCE: Final = 0.2  # s; nothing else happens in the server meanwhile
SCHEMA_VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE secret (
    kid TEXT PRIMARY KEY,
    secret BLOB NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE token (
    jti TEXT PRIMARY KEY,
    kid TEXT NOT NULL REFERENCES secret (kid),
    application TEXT NOT NULL,
    instances TEXT NOT NULL,
    scopes TEXT NOT NULL,
    key BLOB,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) WITHOUT ROWID;
CREATE TABLE blocked (
    key BLOB PRIMARY KEY,
    since INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE user (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    password TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE search (
    user TEXT NOT NULL REFERENCES user (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (user, name)
) WITHOUT ROWID;
CREATE TABLE login (
    digest BLOB PRIMARY KEY,
    user TEXT NOT NULL REFERENCES user (name) ON DELETE CASCADE,
    source TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL
) WITHOUT ROWID;
"""


class Registry:
    """An open registry; for one thread. Times are seconds since 1970."""

    def __init__(self, folder: Path, *, create: bool = True, patience: float = PATIENCE) -> None:
        """Open the registry in `folder`; with `create` both are made if missing, for this user
        alone.

        Once it is open, calls wait up to `patience` seconds for others that are writing.

        Raises:
            KeyFileError: it cannot be read or made, or others can read it; the text says what to
                do.
        """
        self.path = folder / REGISTRY_NAME
        self._patience = patience
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        """of the file that is open, or was; None if that is gone"""
        self._version = -1
        self._open(create=create)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Change something, alone among all processes; nothing is changed if the block raises.

        Raises:
            KeyFileError: the file cannot be written.
        """
        connection = self._connected()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._fault(error) from error
        finally:
            # Also after a COMMIT that somebody who reads was in the way of. For some errors, a full
            # disk among them, SQLite has done it itself.
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def read(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """Rows of a SELECT.

        Raises:
            KeyFileError: the file cannot be read.
        """
        try:
            return self._connected().execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._version = -1  # what others have changed may not have been read
            raise self._fault(error) from error

    def changed(self) -> bool:
        """Whether anybody else has changed it since the last call; cheap.

        Raises:
            KeyFileError: the file is gone, or another one that cannot be used is in its place.
        """
        if self._identity != _identity(self.path):
            self.close()
            self._identity = None
            self._reopen()
            return True
        version = self.read("PRAGMA data_version")[0][0]
        if version == self._version:
            return False
        self._version = version
        return True

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._reopen()
        assert self._connection is not None
        return self._connection

    def _reopen(self) -> None:
        try:
            self._open(create=False)
        except ConfigError as error:  # somebody has put one of a later version in its place
            raise KeyFileError(str(error)) from None

    def _open(self, *, create: bool) -> None:
        path = self.path
        try:
            if create:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                os.close(os.open(path, flags, 0o600))
            status = os.stat(path)
        except FileNotFoundError:
            raise KeyFileError(
                f"{path} does not exist: name the server's folder by --folder or --data; it has "
                "neither tokens nor users before the first is made"
            ) from None
        except OSError as error:
            raise KeyFileError(
                f"cannot open {path}: {error.strerror}; check that its folder is this user's"
            ) from error
        mode = stat.S_IMODE(status.st_mode)
        if os.name == "posix" and mode & 0o077:  # mode bits tell nothing elsewhere
            raise KeyFileError(
                f"{path} holds secrets and is open to others (mode {mode:04o}): "
                f"chmod 600 {shlex.quote(os.fspath(path))}"
            )
        try:
            # Servers and commands may start together, and each of them has to make the tables.
            timeout = PATIENCE if create else self._patience
            connection = sqlite3.connect(path, timeout=timeout, isolation_level=None)
            try:
                _make_tables(connection)
                connection.execute(f"PRAGMA busy_timeout = {int(self._patience * 1000)}")
                connection.row_factory = sqlite3.Row
                self._version = connection.execute("PRAGMA data_version").fetchone()[0]
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise self._fault(error) from error
        self._connection = connection
        self._identity = _identity(path)

    def _fault(self, error: sqlite3.Error) -> KeyFileError:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_BUSY:
            return KeyFileError(f"{self.path} is being used by another process: try again")
        if code == sqlite3.SQLITE_FULL:
            return KeyFileError(f"{self.path} cannot be written: the disk is full")
        return KeyFileError(
            f"{self.path} cannot be used: {error}; restore it from a backup, or move it away and "
            "issue all tokens again"
        )


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        connection.execute("BEGIN IMMEDIATE")  # several processes may start together
        if not connection.execute("PRAGMA user_version").fetchone()[0]:
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    elif version != SCHEMA_VERSION:
        raise ConfigError(
            f"the registry is of version {version}, this program knows {SCHEMA_VERSION}: "
            "use the version of hyperlog that made it, or a later one"
        )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
