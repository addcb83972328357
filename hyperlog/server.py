"""The server: accepts clients by their public keys and writes their records into log files.

    async with Server(folder="logs", keys="keys.dat") as server:
        print(server.public_key.hex())
        await trio.sleep_forever()

`python -m hyperlog.server` is `hyperlog serve`. One task serves one connection: greeting first,
then whatever has arrived is made into lines, written at one go and only then counted as seen. A
peer that breaks the rules, or a file that cannot be written, ends that connection and no other; a
client that is cut off sends again what had not been written.

Source: hypertrace-logger server.js, start-server.js; docs/protocol/trace-protocol.md section 2.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import trio

from hyperlog.config import DEFAULT_FOLDER, DEFAULT_HOST, DEFAULT_KEYS, Address, ServerConfig
from hyperlog.dht import DHT, Connection, DHTError, KeyPair, Listener, open_dht
from hyperlog.errors import SessionRewound, SinkError
from hyperlog.keyfile import load_or_create_keys
from hyperlog.session import ResumeState, ServerSession
from hyperlog.sinks.files import FileSink

__all__ = ["Server", "ServerStatistics"]

logger = logging.getLogger("hyperlog.server")

MAX_CONNECTIONS: Final = 1024  # at a time; each has a UDX stream and a task
MAX_CONNECTIONS_PER_KEY: Final = 32  # at a time; processes of one application share a key
MAX_RECORD_SIZE: Final = 8 * 1024 * 1024  # bytes of one record; JavaScript peers could send 16 MiB
MAX_CLIENTS: Final = 4096  # keys whose last seen numbers are kept in memory
MAX_SCANS: Final = 2  # log files read back at a time; each may take some 10 MB
BATCH: Final = 1024  # messages handled before other connections get their turn, some ms
FAULT_LOG_INTERVAL: Final = 60.0  # s between two log entries about files that cannot be written
CLOSE_TIMEOUT: Final = 0.5  # s that open connections have to end when the server stops
SOCKET_ERRORS: Final = {
    "ECONNRESET": "connection reset by peer",
    "ETIMEDOUT": "connection timed out",
}
"""What the JavaScript server notes for these codes: the texts of libuv."""


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """The server now, and counts since it started."""

    public_key: str
    """hex"""
    address: Address
    """where the node is bound"""
    announced_to: int
    """DHT nodes that hold our record"""
    bootstrap_failing: bool
    """no bootstrap node answered the latest attempt; the next is due within 30 s"""
    connections: int
    accepted: int
    refused: int
    """because too many were open"""
    records: int
    repeats: int
    """records that had been written before"""
    bad_messages: int
    write_failures: int


@dataclass(slots=True)
class _Client:
    """What connections of one key share."""

    resume: ResumeState | None = None
    """None until it was read from the log file"""
    connections: int = 0
    loading: trio.Lock = field(default_factory=trio.Lock)


@dataclass(slots=True)
class _Counts:
    accepted: int = 0
    refused: int = 0
    records: int = 0
    repeats: int = 0
    bad_messages: int = 0
    write_failures: int = 0


class Server:
    """One trace server; `async with` it, or `run` it in a nursery."""

    def __init__(
        self,
        folder: str | os.PathLike[str] = DEFAULT_FOLDER,
        *,
        keys: str | os.PathLike[str] | KeyPair = DEFAULT_KEYS,
        bootstrap: Iterable[str | Address] | None = None,
        host: str = DEFAULT_HOST,
        port: int | None = None,
        local: bool = False,
    ) -> None:
        """`folder` takes the log files, `keys` is a key pair or its file; both are made if missing.

        `bootstrap` are the nodes to join the DHT through, by default the public ones; `local` makes
        the server a network of its own. `port` is bound exactly, or any without it.

        Raises:
            ConfigError: a setting cannot be used.
            KeyFileError: the key file cannot be read or made.
        """
        self.config = ServerConfig.checked(
            folder=folder, keys=keys, bootstrap=bootstrap, host=host, port=port, local=local
        )
        given = self.config.keys
        self._key_pair = given if isinstance(given, KeyPair) else load_or_create_keys(given)
        self._counts = _Counts()
        self._clients: dict[bytes, _Client] = {}
        self._connections: set[Connection] = set()
        self._sessions: set[ServerSession] = set()
        self._sink: FileSink | None = None
        self._dht: DHT | None = None
        self._listener: Listener | None = None
        self._announced = trio.Event()
        self._scan_limiter = trio.CapacityLimiter(MAX_SCANS)
        self._fault_logged_at = -FAULT_LOG_INTERVAL
        self._running: AbstractAsyncContextManager[Server] | None = None

    # -- what it is -------------------------------------------------------------------------------

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that clients know the server by."""
        return self._key_pair.public_key

    @property
    def address(self) -> Address:
        """Where the server's DHT node is bound; a client may name it as its bootstrap node.

        Raises:
            RuntimeError: the server does not run.
        """
        if self._dht is None:
            raise RuntimeError("the server has no address before it runs")
        return self._dht.address

    async def wait_announced(self) -> int:
        """Return the number of nodes that hold our record, once the first attempt is over."""
        await self._announced.wait()
        return self._announced_to()

    def _announced_to(self) -> int:
        return 0 if self._listener is None else self._listener.statistics().announced_to

    def statistics(self) -> ServerStatistics:
        """Counts and state; RuntimeError before the server runs."""
        assert self._dht is not None, "the server has no statistics before it runs"
        counts, sessions = self._counts, self._sessions
        return ServerStatistics(
            public_key=self.public_key.hex(),
            address=self.address,
            announced_to=self._announced_to(),
            bootstrap_failing=self._dht.statistics().rpc.bootstrap_failing,
            connections=len(self._connections),
            accepted=counts.accepted,
            refused=counts.refused,
            records=counts.records + sum(session.records for session in sessions),
            repeats=counts.repeats + sum(session.repeats for session in sessions),
            bad_messages=counts.bad_messages + sum(session.bad_messages for session in sessions),
            write_failures=counts.write_failures,
        )

    # -- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Server:
        self._running = self._run_behind()
        return await self._running.__aenter__()

    async def __aexit__(self, *exc_info: object) -> bool | None:
        assert self._running is not None
        return await self._running.__aexit__(*exc_info)  # type: ignore[arg-type]

    @asynccontextmanager
    async def _run_behind(self) -> AsyncIterator[Server]:
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self.run)
                yield self
            except Exception as err:  # raised again below: a nursery would wrap it in a group
                failure = err
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then the announcement is withdrawn and connections are closed.

        Reports itself started when it accepts connections, before it is announced.

        Raises:
            SinkError: the folder cannot be made or written.
            OSError: the port or address cannot be bound.
        """
        config = self.config
        with closing(_open_folder(config.folder)) as self._sink:
            async with open_dht(
                bootstrap=config.bootstrap,
                host=config.host,
                port=config.port or 0,
                exact_port=config.port is not None,
                key_pair=self._key_pair,
            ) as self._dht:
                self._listener = await self._dht.listen()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._wait_first_announcement, self._listener)
                    task_status.started()
                    while True:
                        self._admit(await self._listener.accept(), nursery)

    async def _wait_first_announcement(self, listener: Listener) -> None:
        await listener.wait_announced()
        self._announced.set()

    # -- connections ------------------------------------------------------------------------------

    def _admit(self, connection: Connection, nursery: trio.Nursery) -> None:
        client = self._clients.get(connection.remote_public_key)
        if len(self._connections) >= MAX_CONNECTIONS or (
            client is not None and client.connections >= MAX_CONNECTIONS_PER_KEY
        ):
            self._counts.refused += 1
            connection.abort()
            return
        self._counts.accepted += 1
        self._connections.add(connection)
        nursery.start_soon(self._serve, connection, self._counts.accepted)

    async def _serve(self, connection: Connection, number: int) -> None:
        """One connection from its greeting to its end; nothing it does can hurt the others."""
        key = connection.remote_public_key
        name = key.hex()[:8]
        logger.info("[%s] connected (%s)", name, connection.path)
        in_order = True
        client = self._clients.setdefault(key, _Client())
        client.connections += 1
        try:
            resume = await self._load(key, client)
            session = ServerSession(key, resume, number, MAX_RECORD_SIZE)
            await self._converse(connection, client, session)
            if session.violation is not None:
                in_order = False
                logger.warning("[%s] cut off: %s", name, session.violation)
        except SinkError as err:
            in_order = False
            self._report_fault(err)
        except SessionRewound:
            in_order = False  # the write that failed has been reported
        except Exception:  # isolates one peer from the rest
            in_order = False
            logger.exception("[%s] serving a connection failed", name)
        finally:
            client.connections -= 1
            self._forget_idle_clients()
            if in_order:
                with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await connection.aclose()
            connection.abort()
            self._connections.discard(connection)
            logger.info("[%s] disconnected", name)

    async def _converse(
        self, connection: Connection, client: _Client, session: ServerSession
    ) -> None:
        error: tuple[str, str] | None = None
        self._sessions.add(session)
        try:
            await connection.send(session.greeting())
            while session.violation is None:
                messages = await connection.receive_many()
                self._store(connection, client, session, messages[:BATCH])
                for start in range(BATCH, len(messages), BATCH):
                    await trio.lowlevel.checkpoint()
                    self._store(connection, client, session, messages[start : start + BATCH])
        except trio.EndOfChannel:
            pass
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            cause = err.__cause__
            code = cause.code if isinstance(cause, DHTError) else "EPIPE"
            error = (code, SOCKET_ERRORS.get(code, str(cause or err)))
        finally:
            self._sessions.discard(session)
            self._counts.records += session.records
            self._counts.repeats += session.repeats
            self._counts.bad_messages += session.bad_messages
        lines = session.closing_lines(time.time(), error)
        self._write(connection.remote_public_key, client, lines)

    def _store(
        self,
        connection: Connection,
        client: _Client,
        session: ServerSession,
        messages: list[bytes],
    ) -> None:
        # No await between the two: lines of one key are written in the order of their numbers,
        # and a write of this size takes 2 to 40 microseconds.
        lines = session.receive_messages(messages, time.time())
        self._write(connection.remote_public_key, client, lines)
        session.written()

    def _write(self, key: bytes, client: _Client, lines: list[bytes]) -> None:
        assert self._sink is not None
        assert client.resume is not None
        try:
            self._sink.write(key, lines, time.monotonic())
        except SinkError:
            client.resume.rewind()
            raise

    def _report_fault(self, error: SinkError) -> None:
        self._counts.write_failures += 1
        now = time.monotonic()
        if now - self._fault_logged_at >= FAULT_LOG_INTERVAL:
            self._fault_logged_at = now
            logger.error("%s. Clients are cut off and send again what was not written", error)

    # -- what is remembered of clients ------------------------------------------------------------

    async def _load(self, key: bytes, client: _Client) -> ResumeState:
        """Read back, once for each key, which records its log file has."""
        async with client.loading:
            if client.resume is None:
                assert self._sink is not None
                client.resume = ResumeState(
                    await trio.to_thread.run_sync(
                        self._sink.resume, key, limiter=self._scan_limiter, abandon_on_cancel=True
                    )
                )
        return client.resume

    def _forget_idle_clients(self) -> None:
        """Keep the memory bounded: what is forgotten here stands in the log files."""
        if len(self._clients) > MAX_CLIENTS:
            idle = (key for key, client in self._clients.items() if not client.connections)
            for key in list(islice(idle, len(self._clients) - MAX_CLIENTS)):
                del self._clients[key]


def _open_folder(folder: Path) -> FileSink:
    sink = FileSink(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(f"cannot write to the log folder {folder}: make it writable for this user")
    return sink


if __name__ == "__main__":
    from hyperlog.cli import main

    sys.exit(main(["serve", *sys.argv[1:]]))
