"""The way to a MongoDB: a client that never waits long, and errors that say what to do.

What MongoDB's driver says may hold the records that were sent or pieces of the URI. So its errors
are never passed on: `explained` tells in words of its own what is wrong and where.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import pymongo
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WTimeoutError,
)
from pymongo.uri_parser import parse_uri

from hyperlog.errors import ConfigError, StoreUnavailable

__all__ = ["Access", "Document", "Documents"]

Document: TypeAlias = dict[str, Any]
Documents: TypeAlias = Collection[Document]

DEFAULT_DATABASE: Final = "hyperlog"
SELECTION_TIMEOUT: Final = 5.0  # s to find a server that answers; then MongoDB is away
CONNECT_TIMEOUT: Final = 5.0  # s
SOCKET_TIMEOUT: Final = 60.0  # s without a byte, above what any operation here may take
MAX_CONNECTIONS: Final = 16
MAX_REASON: Final = 200  # characters of what the driver says of a server that it does not find
SRV: Final = "mongodb+srv://"
UNKNOWN: Final = re.compile(r"Unknown option: (\w+)")
FORM: Final = "mongodb://USER:PASSWORD@HOST:PORT/DATABASE?replicaSet=NAME"

UNAUTHORIZED: Final = 13
AUTHENTICATION_FAILED: Final = 18
DUPLICATE_KEY: Final = 11000
NAMES: Final = {121: "DocumentValidationFailure", 14031: "OutOfDiskSpace"}
"""of codes that come without"""


class Access:
    """One database of a MongoDB. For any thread; nothing is connected before it is used."""

    def __init__(self, uri: str) -> None:
        """
        Raises:
            ConfigError: it is no URI of a MongoDB. The text holds nothing of its user or password.
        """
        self._uri = uri
        self._lock = threading.Lock()
        self._client: MongoClient[Document] | None = None
        self._closed = False
        self.place, self.database_name, self._options = _parsed(uri)

    def __repr__(self) -> str:
        return f"<Access to {self.place}, database {self.database_name}>"

    def database(self) -> Database[Document]:
        """May block on DNS the first time.

        Raises:
            StoreUnavailable: it is closed.
        """
        with self._lock:
            if self._closed:
                raise StoreUnavailable(f"the connection to MongoDB at {self.place} is closed")
            if self._client is None:
                self._client = MongoClient(self._uri, **self._options)
            # Dates are 64 bit of milliseconds, many more years than Python's datetime has.
            codec: CodecOptions[Document] = CodecOptions(
                datetime_conversion=DatetimeConversion.DATETIME_MS
            )
            return self._client.get_database(self.database_name, codec)

    def to_read(self, name: str) -> Documents:
        """A collection, read as the URI says."""
        return self.database()[name]

    def to_write(self, name: str) -> Documents:
        """A collection whose writes count once most members have them on disk."""
        return self.database().get_collection(
            name,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority", j=True),
        )

    def close(self) -> None:
        """Let go of all connections; what is being asked ends with an error."""
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()

    @contextmanager
    def limited(self, seconds: float, *, to_write: bool = False) -> Iterator[None]:
        """Let what is asked of MongoDB end in time, or at once if MongoDB is away.

        Within that time the driver tries again what may work with another primary.

        Raises:
            StoreUnavailable: for all that the driver raises within.
        """
        limit = seconds
        try:
            database = self.database()
            limit = min(database.client.options.server_selection_timeout, seconds)
            with pymongo.timeout(limit):
                primary = ReadPreference.PRIMARY if to_write else database.read_preference
                database.command("ping", read_preference=primary)
            limit = seconds
            with pymongo.timeout(limit):
                yield
        except PyMongoError as error:
            # Not chained: the driver's texts may hold records.
            raise StoreUnavailable(self._explained(error, limit)) from None

    def _explained(self, error: PyMongoError, seconds: float) -> str:
        place = f"MongoDB at {self.place}"
        if isinstance(error, BulkWriteError):
            return f"{place} refuses to write: {_of_bulk(error)}"
        if _code_of(error) == AUTHENTICATION_FAILED:
            return (
                f"{place} refuses the user or the password: check both, and authSource in the URI"
            )
        if isinstance(error, ServerSelectionTimeoutError):
            return f"{place} cannot be reached: {self._reason(error)}"
        if error.timeout or isinstance(
            error, NetworkTimeout | ExecutionTimeout | WTimeoutError | WaitQueueTimeoutError
        ):
            return f"{place} has not answered within {seconds:g} s"
        if isinstance(error, OperationFailure):
            return f"{place} {self._refusal(error)}"
        if isinstance(error, AutoReconnect):
            return f"{place}: the connection was lost"
        if isinstance(error, ConfigurationError):
            return f"{place} cannot be used: {self._reason(error)}"
        return f"{place}: {type(error).__name__}"

    def _refusal(self, error: OperationFailure) -> str:
        name = _code_name(error.code, error.details)
        if error.code == UNAUTHORIZED:
            return (
                "does not permit this to the user: it needs the role readWrite on the database "
                f"{self.database_name}"
            )
        return f"refuses: {name}"

    def _reason(self, error: PyMongoError) -> str:
        # Of a server that is not found the driver tells addresses and causes, then all it knows.
        text = str(error).split(" (configured timeouts")[0].split(", Timeout:")[0]
        text = text.split(", full error")[0][:MAX_REASON]
        for secret in _secrets(self._uri):
            text = text.replace(secret, "***")
        return text


def _parsed(uri: str) -> tuple[str, str, dict[str, Any]]:
    """Hosts, database and those options that the URI leaves to us."""
    defaults: dict[str, Any] = {
        "serverSelectionTimeoutMS": round(SELECTION_TIMEOUT * 1000),
        "connectTimeoutMS": round(CONNECT_TIMEOUT * 1000),
        "socketTimeoutMS": round(SOCKET_TIMEOUT * 1000),
        "waitQueueTimeoutMS": round(SELECTION_TIMEOUT * 1000),
        "maxPoolSize": MAX_CONNECTIONS,
        "appname": "hyperlog",
    }
    # The hosts of an SRV name are looked up when they are used; its form is like the other's.
    is_srv = uri.startswith(SRV)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parse_uri(f"mongodb://{uri.removeprefix(SRV)}" if is_srv else uri)
    except (ConfigurationError, ValueError, TypeError) as error:
        # The driver's text may hold a piece of what should be the password.
        unknown = UNKNOWN.match(str(error))
        if unknown and "@" not in uri.partition("?")[2]:
            raise ConfigError(f"the MongoDB URI has an unknown option: {unknown[1]}") from None
        raise ConfigError(
            f"not a MongoDB URI, which looks like {FORM}; in user and password write %XX "
            "for characters other than letters, digits and _.-~"
        ) from None
    given = {name.lower() for name in parsed["options"]}
    options = {name: value for name, value in defaults.items() if name.lower() not in given}
    place = ",".join(
        host if is_srv or port is None else f"{host}:{port}" for host, port in parsed["nodelist"]
    )
    return place, parsed["database"] or DEFAULT_DATABASE, options


def _secrets(uri: str) -> list[str]:
    """What of a URI must not be seen, also if it is not well formed."""
    rest = uri.partition("://")[2]
    user_info = rest.rpartition("@")[0]
    return [part for part in (user_info, user_info.partition(":")[2]) if part]


def _code_of(error: PyMongoError) -> int | None:
    if isinstance(error, OperationFailure):
        return error.code
    # After a refused login the driver takes the server for one that is not there.
    return AUTHENTICATION_FAILED if "'AuthenticationFailed'" in str(error) else None


def _of_bulk(error: BulkWriteError) -> str:
    details = error.details or {}
    for found in (*details.get("writeConcernErrors", ()), *details.get("writeErrors", ())):
        if found.get("code") != DUPLICATE_KEY:
            return _code_name(found.get("code"), found)
    return "no reason given"


def _code_name(code: int | None, details: object) -> str:
    name = details.get("codeName") if isinstance(details, dict) else None
    name = name or NAMES.get(code or 0)
    return f"{name} ({code})" if name else f"error {code}"
