"""A handler for the standard logging module that ships what is logged.

    logging.getLogger().addHandler(hyperlog.Handler("https://logs.example.org", token="…"))

or in a dictionary for `logging.config.dictConfig`:

    "handlers": {"hyperlog": {"class": "hyperlog.Handler", "server": "<key or address>"}}

What the module knows of a record travels as fields: level, logger, message, caller, exception, and
what was given as `extra`. A dictionary as message travels as an object. A formatter has nothing to
do here and is not asked.

The thread that logs is never held up, and gets no error: see `Client.log`. It pays for the text of
a message with arguments, which cannot wait, and for nothing else.

Not shipped are the records of hyperlog itself, and what the packages below it log in the thread
that ships: each of them would be the reason of the next.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any, Final, Unpack

from hyperlog.client import Client, running_client
from hyperlog.config import ClientOptions
from hyperlog.logs import LogEntry, level_name, message_of
from hyperlog.replacer import safe_text
from hyperlog.stacktext import CaughtError

__all__ = ["Handler"]

CLOSE_TIMEOUT: Final = 1.0  # s that `close` gives a client of its own
MAX_STACK_INFO: Final = 32 * 1024  # characters
MAX_TIME: Final = 253402300799.0  # s since 1970: the end of the year 9999
TRANSPORTS: Final = frozenset({"trio", "wsproto", "h11"})
"""loggers of the packages that carry records"""

# What every record has, and what formatters add to it; the rest was given as `extra`.
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__)
_FORMATTED: Final = frozenset({"message", "asctime", "taskName"})
_STANDARD_NAMES: Final = frozenset(logging.getLevelName(level) for level in (10, 20, 30, 40, 50))


class Handler(logging.Handler):
    """Ships records over a Client, one of its own or one that is given."""

    def __init__(
        self,
        server: Client | str | bytes | None = None,
        *,
        level: int | str = logging.NOTSET,
        flush_timeout: float = 2.0,
        **options: Unpack[ClientOptions],
    ) -> None:
        """`server` is a key or an address, as for `Client.start`, which also takes the options; or
        a client, which the handler then leaves to its owner. Without it the environment variable
        HYPERLOG_SERVER is the address; if there is none, records go over whichever client runs in
        this process at that time, and nowhere while there is none.

        `flush_timeout` is what `flush` may take, in seconds.

        Raises:
            ConfigError: what is given cannot be used; as `Client.start` does.
            TypeError: options beside a client that is given, or an unknown one.
        """
        super().__init__(level)
        self._flush_timeout = flush_timeout
        self._own: Client | None = None
        self._given: Client | None = None
        self._is_closed = False
        self._state = threading.local()
        if server is None:
            server = os.environ.get("HYPERLOG_SERVER") or None
        if isinstance(server, Client):
            if options:
                raise TypeError(f"a client that runs takes no options: {', '.join(options)}")
            self._given = server
        elif server is not None or options:
            self._own = self._given = Client()
            self._own.start(server, **options)

    @property
    def client(self) -> Client | None:
        """What ships the records now."""
        return self._given or running_client()

    def createLock(self) -> None:
        """None is needed: threads that log do not wait for each other."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> Any:  # noqa: ANN401 - as logging has it
        """Ship the record if the filters let it through."""
        passed = self.filter(record)
        if isinstance(passed, logging.LogRecord):  # a filter may give another one, since 3.12
            record = passed
        if passed:
            self.emit(record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Ship the record; never waits, and never raises."""
        try:
            client = self._given or running_client()
            name = record.name
            if client is None or (name.startswith("hyperlog") and name[8:9] in ("", ".")):
                return
            if client.is_current_thread and name.partition(".")[0] in TRANSPORTS:
                return
            client.put_log(self._entry(record), _time_of(record))
        except Exception:  # makeLogRecord makes records of anything
            self.handleError(record)

    def _entry(self, record: logging.LogRecord) -> LogEntry:
        message: Any = record.msg
        if record.args:
            message = self._formatted(record)
        elif type(message) is dict:
            message = message.copy()
        elif type(message) is not str:
            message = message_of(message)
        exc_info = record.exc_info
        error = None
        if exc_info and isinstance(exc_info, tuple) and exc_info[1] is not None:
            error = CaughtError(exc_info[1], exc_info[2])
        line = record.lineno
        return LogEntry(
            level_name(record.levelno),
            message,
            _attributes(record),
            (str(record.pathname), str(record.funcName or ""), line if type(line) is int else None),
            error,
            str(record.name),
        )

    def _formatted(self, record: logging.LogRecord) -> str:
        state = self._state
        if getattr(state, "formatting", False):
            # An argument logs while its text is made. Its record goes without its own arguments:
            # making their text might never end.
            return f"{_plain_text(record.msg)} [arguments left out]"
        state.formatting = True
        try:
            return record.getMessage()
        except Exception as error:
            return f"{_plain_text(record.msg)} [arguments do not fit: {type(error).__name__}]"
        finally:
            state.formatting = False

    def flush(self) -> None:
        """Wait until what was logged is delivered, at most `flush_timeout` seconds; not in a trio
        loop that would have to do the work."""
        client = self.client
        if client is None:
            return
        try:
            client.flush(self._flush_timeout)
        except RuntimeError:
            pass

    def close(self) -> None:
        """Stop the client, if it is the handler's own."""
        own, self._own = self._own, None
        if own is not None:
            own.stop(CLOSE_TIMEOUT)
        super().close()


def _plain_text(message: object) -> str:
    return message if type(message) is str else str(message_of(message))


def _time_of(record: logging.LogRecord) -> float:
    created = record.created
    if type(created) is float and 0.0 <= created <= MAX_TIME:
        return created
    return time.time()


def _attributes(record: logging.LogRecord) -> dict[str, Any] | None:
    """What was given as `extra`, and what of the rest is not as usual; None for nothing."""
    fields = record.__dict__
    attributes: dict[str, Any] | None = None
    if len(fields) > len(_STANDARD):
        attributes = {
            str(name): value
            for name, value in fields.items()
            if name not in _STANDARD and name not in _FORMATTED
        }
    if (
        record.levelname in _STANDARD_NAMES
        and record.stack_info is None
        and record.threadName == "MainThread"
        and record.processName == "MainProcess"
    ):
        return attributes
    told: dict[str, Any] = {}
    if record.levelname not in _STANDARD_NAMES:
        told["levelName"] = record.levelname
    if record.threadName is not None and record.threadName != "MainThread":
        told["threadName"] = record.threadName
    if record.processName is not None and record.processName != "MainProcess":
        told["processName"] = record.processName
    if isinstance(record.stack_info, str):
        told["stackInfo"] = safe_text(record.stack_info, MAX_STACK_INFO)
    return told if attributes is None else {**told, **attributes}
