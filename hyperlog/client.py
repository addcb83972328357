"""The client of an application: hooks the tracers and ships their records, whatever the app is.

    client = Client()
    client.start("<the server's key, 64 hex digits>")
    client.warning("disk almost full", disk="sda", free_bytes=1024)

`start` suits any program: it returns at once, and a daemon thread with a trio loop of its own does
the work. A trio program can run the client in its own nursery instead:

    async with client.running("<key>"):
        ...

A server that is reached over HTTP is named by its address, `https://…`, and wants a token.

The application is never blocked by it and never raised into: what goes wrong is logged under
`hyperlog.client` and told to the callbacks, what cannot be kept is counted and told to the server.

Source: hypertrace-logger client.js; docs/protocol/trace-protocol.md section 3.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import FrameType
from typing import Any, Final, Unpack

import trio

from hyperlog.config import ClientConfig, ClientOptions
from hyperlog.destination import Destination
from hyperlog.logs import LogEntry, level_name, message_of
from hyperlog.shipper import DEFAULT_MAX_BUFFER_BYTES, Shipper
from hyperlog.stacktext import CaughtError
from hyperlog.trace import Trace, clear_trace_function, set_trace_function
from hyperlog.tracefields import trace_of_fields
from hyperlog.worker import Worker

__all__ = ["Client", "ClientStatistics", "running_client"]

logger = logging.getLogger("hyperlog.client")

EXIT_TIMEOUT: Final = 1.0  # s that the end of the process may wait for records to be delivered
CLOSE_TIMEOUT: Final = 1.0  # s that the thread may take to end, of the time that `stop` is given


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """One client, now."""

    connected: bool
    connections: int
    """greetings received"""
    waiting: int
    """records that may not have reached the server yet"""
    lost: int
    """records that the server was told it will not get: the buffer had no room for them"""
    buffered_bytes: int
    """in use, of `max_buffer_bytes`"""
    failed: int
    """log messages and added traces that could not be taken: too deep a recursion, no memory"""


class _State(Enum):
    NEW = "new"
    STARTED = "started"
    STOPPED = "stopped"


class Client:
    """Ships the traces of this process to one server. All methods are safe in any thread."""

    def __init__(self, *, max_buffer_bytes: int = DEFAULT_MAX_BUFFER_BYTES) -> None:
        """`max_buffer_bytes` bounds what is kept for a server that cannot be reached, and for one
        that has to be sent again what it lost."""
        self._max_buffer_bytes = max_buffer_bytes
        self._lock = threading.RLock()  # a signal handler may stop the client anywhere
        self._state = _State.NEW
        self._config: ClientConfig | None = None
        self._shipper: Shipper | None = None
        self._worker: Worker | None = None
        self._cancel_run: Callable[[], object] | None = None
        """ends `run`, in its loop; None without one"""
        self._put: Callable[[Trace], None] | None = None
        self._put_log: Callable[[LogEntry, float], None] | None = None
        self._failed = 0

    # -- life -------------------------------------------------------------------------------------

    def start(self, server: str | bytes | None = None, **options: Unpack[ClientOptions]) -> None:
        """Hook the tracers and begin to ship, in a thread of the client's own; returns at once.

        `server` is the key that the server prints when it starts, 64 hex digits or 32 bytes: it is
        then found through the DHT. Or it is an address, `https://HOST:PORT`, or `http://` on this
        machine: it is then reached by WebSocket, and `token` is needed by most. The options are
        those of ClientOptions. A plain `get_initial_props` is called before this
        returns, so make it an async function if it takes long. Everything else of the application
        that the options name is called in the client's thread.

        Raises:
            ConfigError: a malformed key or address, or neither key nor `create_socket`.
            KeyFileError: the file named by `keys` cannot be used.
            RuntimeError: started before; a stopped client stays stopped, make another one.
        """
        shipper = self._begin(server, options, self._start_worker)
        shipper.bell.waiting = False  # what is traced until then does not start the thread
        shipper.load_initial_props()
        shipper.bell.ring()

    async def run(
        self,
        server: str | bytes | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Do what `start` does in the calling trio task, until cancelled or stopped.

        Raises as `start` does. The tracers are hooked when `task_status.started` is called.
        """
        await self._run(self._begin(server, options, lambda: None), task_status=task_status)

    async def _run(self, shipper: Shipper, *, task_status: trio.TaskStatus[None]) -> None:
        token = trio.lowlevel.current_trio_token()
        try:
            with trio.CancelScope() as scope:
                self._cancel_run = lambda: _soon(token, scope.cancel)
                shipper.load_initial_props()
                task_status.started()
                await shipper.run()
        finally:
            self._unhook()

    @asynccontextmanager
    async def running(
        self,
        server: str | bytes | None = None,
        *,
        timeout: float = 5.0,
        **options: Unpack[ClientOptions],
    ) -> AsyncIterator[Client]:
        """Run the client in the background of a block of a trio program.

        At the end of the block it has `timeout` seconds to deliver what is left; an exception out
        of the block ends it at once.
        """
        shipper = self._begin(server, options, lambda: None)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(self._run, shipper))
            try:
                yield self
            except Exception as err:  # raised again below: a nursery would wrap it in a group
                failure = err
            else:
                with trio.move_on_after(timeout):
                    await self.wait_flushed()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def stop(self, timeout: float = 2.0) -> bool:
        """Stop for good, within `timeout` seconds; True if everything had been delivered.

        The tracers are unhooked first, then what was traced before is delivered as far as time and
        connection allow.
        """
        deadline = time.monotonic() + timeout
        self._unhook()
        shipper, worker = self._shipper, self._worker
        cancel = self._cancel_run if worker is None else worker.cancel
        if shipper is None or cancel is None:
            return True
        if worker is not None and not self._has_thread(worker, shipper):
            shipper.finish()  # whoever starts next may have a thread
            return shipper.session.all_delivered
        if (worker is not None and worker.is_current) or (worker is None and _in_trio()):
            # In the loop that does the work (a callback, a trio program) nothing can be waited for.
            delivered = shipper.session.all_delivered
        else:
            delivered = self.flush(max(timeout - CLOSE_TIMEOUT, timeout / 2))
        cancel()
        if worker is not None and not worker.is_current:
            worker.join(max(deadline - time.monotonic(), 0.0))
        return delivered

    def _begin(
        self,
        server: str | bytes | None,
        options: ClientOptions,
        start: Callable[[], object],
    ) -> Shipper:
        config = ClientConfig.checked(server, options)
        with self._lock:
            if self._state is not _State.NEW:
                raise RuntimeError(
                    f"this client has been {self._state.value} already; use another Client"
                )
            self._state = _State.STARTED
        shipper = self._new_shipper(config, start)
        _keep_destination(config)
        with self._lock:
            self._config, self._shipper = config, shipper
            if self._state is _State.STARTED:
                # A bound method is made anew each time, and clear_trace_function compares by
                # equality.
                self._put = shipper.put_trace
                self._put_log = shipper.put_log
        set_trace_function(shipper.put_trace)
        if self._put is None:
            clear_trace_function(shipper.put_trace)
            shipper.finish()
            raise RuntimeError("this client has been stopped while it started")
        _clients.add(self)
        global _started
        running = [ref for ref in _started if (other := ref()) is not None and other._put_log]
        _started = (weakref.ref(self), *running)
        return shipper

    def _new_shipper(self, config: ClientConfig, start: Callable[[], object]) -> Shipper:
        return Shipper(
            config, max_buffer_bytes=self._max_buffer_bytes, start=start, end=self._unhook
        )

    def _start_worker(self) -> None:
        with self._lock:  # two threads may have rung
            shipper = self._shipper
            if shipper is None or self._worker is not None:
                return
            if self._put is not None:
                self._worker = Worker("hyperlog", shipper.run)
        if self._worker is None:
            shipper.finish()  # stopped before there was anything to wait for
            return
        self._worker.start()
        multiprocessing = sys.modules.get("multiprocessing.util")
        if multiprocessing is not None:
            # Children of multiprocessing end without atexit; in any other process this is one more
            # call of what atexit calls, and does nothing.
            multiprocessing.Finalize(None, _stop_all, exitpriority=0)

    def _has_thread(self, worker: Worker, shipper: Shipper) -> bool:
        with self._lock:  # two threads may stop it
            return not worker.has_failed or (not shipper.over and worker.start())

    def _unhook(self) -> None:
        with self._lock:
            self._state = _State.STOPPED
            put, self._put = self._put, None
            self._put_log = None
        if put is not None:
            clear_trace_function(put)

    # -- records ----------------------------------------------------------------------------------

    def add_trace(self, trace: Trace | Mapping[str, Any]) -> None:
        """Ship a trace that no tracer made: a Trace, or a mapping with the fields of one.

        As a mapping: `id`, `object` {class_name, id, props}, `parent_object` (the same, or None),
        `caller` {function_name, filename, line, column, props}; the camel case of JavaScript is all
        right too. What is missing or of a wrong type is replaced, nothing raises.
        """
        put = self._put
        if put is None:
            return
        try:
            put(trace if isinstance(trace, Trace) else trace_of_fields(trace))
        except Exception:  # a mapping of the application's may do anything
            self._failed += 1

    def debug(
        self,
        message: object,
        /,
        *,
        exception: BaseException | bool | None = None,
        **attributes: object,
    ) -> None:
        """`log` with the level DEBUG."""
        if self._put_log is not None:
            self._log("DEBUG", message, exception, attributes, sys._getframe(1))

    def info(
        self,
        message: object,
        /,
        *,
        exception: BaseException | bool | None = None,
        **attributes: object,
    ) -> None:
        """`log` with the level INFO."""
        if self._put_log is not None:
            self._log("INFO", message, exception, attributes, sys._getframe(1))

    def warning(
        self,
        message: object,
        /,
        *,
        exception: BaseException | bool | None = None,
        **attributes: object,
    ) -> None:
        """`log` with the level WARNING."""
        if self._put_log is not None:
            self._log("WARNING", message, exception, attributes, sys._getframe(1))

    def error(
        self,
        message: object,
        /,
        *,
        exception: BaseException | bool | None = None,
        **attributes: object,
    ) -> None:
        """`log` with the level ERROR."""
        if self._put_log is not None:
            self._log("ERROR", message, exception, attributes, sys._getframe(1))

    def critical(
        self,
        message: object,
        /,
        *,
        exception: BaseException | bool | None = None,
        **attributes: object,
    ) -> None:
        """`log` with the level CRITICAL."""
        if self._put_log is not None:
            self._log("CRITICAL", message, exception, attributes, sys._getframe(1))

    def log(
        self,
        level: int | str,
        message: object,
        /,
        *,
        exception: BaseException | bool | None = None,
        **attributes: object,
    ) -> None:
        """Ship a log message: text, or a mapping, which travels as a JSON object.

        `level` is a name or a number of the logging module; others count as the one below. Of any
        other message the text is taken. `attributes` are values that go along; what JSON cannot
        hold in them is replaced, later and in another thread, so that values which the application
        changes at once are sent as changed. `exception` is what the message is about; True means
        the one that is being handled.

        Costs about 2 µs, never waits and never raises. Without a server the message waits as
        traces do. Before `start` and after `stop` it goes nowhere.
        """
        if self._put_log is not None:
            self._log(level_name(level), message, exception, attributes, sys._getframe(1))

    def _log(
        self,
        level: str,
        message: Any,  # noqa: ANN401 - the application's
        exception: BaseException | bool | None,
        attributes: dict[str, object],
        frame: FrameType,
    ) -> None:
        now = time.time()
        put = self._put_log
        if put is None:
            return
        try:
            kind = type(message)
            if kind is dict:
                message = message.copy()
            elif kind is not str:
                if exception is None and isinstance(message, BaseException):
                    exception = message
                message = message_of(message)
            error = None
            if exception is not None and exception is not False:
                caught = sys.exception() if exception is True else exception
                if isinstance(caught, BaseException):
                    error = CaughtError(caught)
            code = frame.f_code
            place = (code.co_filename, code.co_qualname, frame.f_lineno)
            put(LogEntry(level, message, attributes, place, error), now)
        except Exception:  # too deep a recursion of the application, no memory
            self._failed += 1

    def put_log(self, entry: LogEntry, now: float) -> None:
        """Ship a message that was made elsewhere, at `now` in seconds since 1970."""
        put = self._put_log
        if put is not None:
            put(entry, now)

    def add_props(self, props: Mapping[str, Any]) -> None:
        """Have `props` go along with all later records, merged with those given before."""
        if self._shipper is not None:
            self._shipper.add_props(props)

    def flush(self, timeout: float | None = 10.0) -> bool:
        """Wait until everything accepted before this call is delivered; False if it was not.

        Delivered: the server has acknowledged that it is durable; a server of the JavaScript rule
        acknowledges nothing, then it is the peer's transport that has. Blocks the calling thread;
        a trio program awaits `wait_flushed`.

        Raises:
            RuntimeError: called in the loop that would have to do the work.
        """
        shipper, worker = self._shipper, self._worker
        if shipper is None:
            return True
        if worker is not None and worker.is_current:
            raise RuntimeError("flush would block the client's own thread: call it from another")
        if worker is None and _in_trio():
            raise RuntimeError("flush would block the trio loop: await wait_flushed()")
        done = threading.Event()
        delivered = False

        def resolve(result: bool) -> None:
            nonlocal delivered
            delivered = result
            done.set()

        shipper.request_flush(resolve)
        done.wait(timeout)
        return delivered

    async def wait_flushed(self) -> bool:
        """`flush` for trio programs: returns when it is decided; limit it by a cancel scope."""
        if self._shipper is None:
            return True
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()
        delivered = False

        def resolve(result: bool) -> None:
            nonlocal delivered
            delivered = result
            _soon(token, done.set)

        self._shipper.request_flush(resolve)
        await done.wait()
        return delivered

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs in the client's own thread."""
        worker = self._worker
        return worker is not None and worker.is_current

    # -- state ------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the client is connected: greeted by the server, and not cut off since."""
        return self._shipper is not None and self._shipper.connected

    @property
    def last_connection_error(self) -> Exception | None:
        """Why the last connection, or attempt at one, failed; None while none has."""
        return None if self._shipper is None else self._shipper.last_connection_error

    @property
    def public_key(self) -> bytes | None:
        """The client's own key, which names its log file at the server; None before the start."""
        return None if self._config is None else self._config.key_pair.public_key

    def statistics(self) -> ClientStatistics:
        shipper = self._shipper
        if shipper is None:
            return ClientStatistics(False, 0, 0, 0, 0, 0)
        return ClientStatistics(
            connected=shipper.connected,
            connections=shipper.connections,
            waiting=shipper.session.unconfirmed,
            lost=shipper.session.lost,
            buffered_bytes=shipper.buffered_bytes,
            failed=self._failed,
        )

    # -- the process ------------------------------------------------------------------------------

    def _forked(self) -> None:
        """In a child process: the parent's thread and records are the parent's."""
        self._lock = threading.RLock()  # a signal handler may stop the client anywhere
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.abandon()
        put, config, before = self._put, self._config, self._shipper
        if worker is None or put is None or config is None or before is None:
            # Stopped, or run by a trio loop of the parent's, which does not go on here.
            self._cancel_run = None
            self._unhook()
            return
        shipper = self._new_shipper(config, self._start_worker)
        shipper.add_props(before.props)
        clear_trace_function(put)
        self._shipper, self._put, self._put_log = shipper, shipper.put_trace, shipper.put_log
        set_trace_function(shipper.put_trace)


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_started: tuple[weakref.ref[Client], ...] = ()
"""clients that run, the one that was started last first"""


def running_client() -> Client | None:
    """The client of this process that was started last and not stopped; None if there is none."""
    for reference in _started:
        client = reference()
        if client is not None and client._put_log is not None:
            return client
    return None


def _keep_destination(config: ClientConfig) -> None:
    """Tell whoever delivers the spool later what it is sent with."""
    spool, key, web = config.spool, config.server_key, config.web
    if spool is None or (key is None and web is None):
        return
    server = str(web) if key is None else key.hex()
    Destination(
        server,
        config.application,
        config.instance,
        web is not None and not web.is_secure,
        config.ca_file,
    ).write(spool)


def _stop_all() -> None:
    """The process ends: deliver what can be delivered in EXIT_TIMEOUT."""
    deadline = time.monotonic() + EXIT_TIMEOUT
    for client in list(_clients):
        client.stop(max(deadline - time.monotonic(), 0.0))


def _forked_all() -> None:
    for client in list(_clients):
        client._forked()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forked_all)


def _soon(token: trio.lowlevel.TrioToken, call: Callable[[], object]) -> None:
    try:
        token.run_sync_soon(call)
    except trio.RunFinishedError:
        pass  # the loop has ended, and everything in it


def _in_trio() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True
