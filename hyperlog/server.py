"""The server: accepts clients by their public keys and writes their records into log files.

    async with Server(folder="logs", keys="keys.dat") as server:
        print(server.public_key.hex())
        await trio.sleep_forever()

`python -m hyperlog.server` is `hyperlog serve`. One task reads from one connection: whatever has
arrived is made into lines and handed to the writer of its key, and while that is being written the
next is read. Only what is durable is acknowledged, and counted as seen. A peer that breaks the
rules ends its connection and no other; a client that is cut off sends again what was not written.

Source: hypertrace-logger server.js, start-server.js; docs/protocol/trace-protocol.md section 2.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Unpack

import trio

from hyperlog.config import (
    DEFAULT_FOLDER,
    DEFAULT_HOST,
    DEFAULT_KEYS,
    Address,
    ServerConfig,
    ServerOptions,
)
from hyperlog.control import ServerOffer
from hyperlog.dht import DHT, Connection, DHTError, KeyPair, Listener, open_dht
from hyperlog.errors import SessionRewound, SinkError
from hyperlog.gate import Gate, GateStatistics, Guest
from hyperlog.keyfile import load_or_create_keys
from hyperlog.keywriter import Answerer, KeyWriter
from hyperlog.reception import ReceptionLimits, ServerConversation
from hyperlog.resume import Received, ResumeState
from hyperlog.sinks.files import FileSink
from hyperlog.sinks.writer import LogWriter, WriterStatistics

__all__ = ["Server", "ServerStatistics"]

logger = logging.getLogger("hyperlog.server")

MAX_MESSAGE_SIZE: Final = 1088 * 1024  # bytes; a batch is handled in one go, in up to 0.1 s
OFFERED_RECORD_SIZE: Final = 1024 * 1024  # bytes that our clients keep to; larger ones are cut
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
    gate: GateStatistics
    """who was refused or slowed down, and why"""
    files: WriterStatistics


@dataclass(slots=True)
class _Client:
    """What connections of one key share."""

    writer: KeyWriter | None = None
    """None until the log file was read back"""
    connections: int = 0
    loading: trio.Lock = field(default_factory=trio.Lock)

    @property
    def is_idle(self) -> bool:
        return not self.connections and (self.writer is None or not self.writer.busy)


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
        **options: Unpack[ServerOptions],
    ) -> None:
        """`folder` takes the log files, `keys` is a key pair or its file; both are made if missing.

        `bootstrap` are the nodes to join the DHT through, by default the public ones; `local` makes
        the server a network of its own. `port` is bound exactly, or any without it.

        Raises:
            ConfigError: a setting, or the list of allowed keys, cannot be used.
            KeyFileError: the key file cannot be read or made, or others can read it.
        """
        self.config = ServerConfig.checked(
            folder=folder,
            keys=keys,
            bootstrap=bootstrap,
            host=host,
            port=port,
            local=local,
            **options,
        )
        given = self.config.keys
        self._key_pair = (
            given if isinstance(given, KeyPair) else load_or_create_keys(given, private=True)
        )
        limits = self.config.limits
        self._gate = Gate(self.config.access, limits)
        self._counts = _Counts()
        self._clients: dict[bytes, _Client] = {}
        self._connections: set[Connection] = set()
        self._conversations: set[ServerConversation] = set()
        self._writer: LogWriter | None = None
        self._nursery: trio.Nursery | None = None
        self._dht: DHT | None = None
        self._listener: Listener | None = None
        self._announced = trio.Event()
        self._limits = ReceptionLimits(MAX_MESSAGE_SIZE, limits.max_record)
        self._offer = ServerOffer(
            max_message=MAX_MESSAGE_SIZE,
            max_record=min(limits.max_record, OFFERED_RECORD_SIZE),
            durability=self.config.durability,
        )
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
        assert self._writer is not None
        counts, conversations = self._counts, self._conversations
        return ServerStatistics(
            public_key=self.public_key.hex(),
            address=self.address,
            announced_to=self._announced_to(),
            bootstrap_failing=self._dht.statistics().rpc.bootstrap_failing,
            connections=len(self._connections),
            accepted=counts.accepted,
            refused=counts.refused,
            records=counts.records + sum(one.records for one in conversations),
            repeats=counts.repeats + sum(one.repeats for one in conversations),
            bad_messages=counts.bad_messages + sum(one.bad_messages for one in conversations),
            write_failures=counts.write_failures,
            gate=self._gate.statistics(),
            files=self._writer.statistics(),
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
        sink = _open_folder(config)
        async with (
            LogWriter(sink, durability=config.durability, max_line=config.max_line) as self._writer,
            open_dht(
                bootstrap=config.bootstrap,
                host=config.host,
                port=config.port or 0,
                exact_port=config.port is not None,
                key_pair=self._key_pair,
            ) as self._dht,
        ):
            self._listener = await self._dht.listen(
                firewall=self._gate.refuses, admit=self._gate.admits
            )
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._wait_first_announcement, self._listener)
                self._nursery.start_soon(self._gate.watch)
                task_status.started()
                while True:
                    self._admit(await self._listener.accept(), self._nursery)

    async def _wait_first_announcement(self, listener: Listener) -> None:
        await listener.wait_announced()
        self._announced.set()

    # -- connections ------------------------------------------------------------------------------

    def _admit(self, connection: Connection, nursery: trio.Nursery) -> None:
        guest = self._gate.enter(connection.remote_public_key, connection)
        if guest is None:
            self._counts.refused += 1
            connection.abort()
            return
        self._counts.accepted += 1
        self._connections.add(connection)
        nursery.start_soon(self._serve, connection, guest, self._counts.accepted)

    async def _serve(self, connection: Connection, guest: Guest, number: int) -> None:
        """One connection from its greeting to its end; nothing it does can hurt the others."""
        key = connection.remote_public_key
        name = key.hex()[:8]
        logger.info("[%s] connected (%s)", name, connection.path)
        in_order = True
        client = self._clients.setdefault(key, _Client())
        client.connections += 1
        try:
            writer = await self._load(key, client)
            conversation = ServerConversation(
                key, writer.resume, number, limits=self._limits, offer=self._offer
            )
            await self._converse(connection, guest, writer, conversation)
            if conversation.violation is not None:
                in_order = conversation.refused
                logger.warning("[%s] cut off: %s", name, conversation.violation)
        except SinkError as err:
            in_order = False
            self._report_fault(err)
        except Exception:  # isolates one peer from the rest
            in_order = False
            logger.exception("[%s] serving a connection failed", name)
        finally:
            client.connections -= 1
            self._gate.leave(guest)
            self._forget_idle_clients()
            if in_order:
                with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await connection.aclose()
            connection.abort()
            self._connections.discard(connection)
            logger.info("[%s] disconnected", name)

    async def _converse(
        self,
        connection: Connection,
        guest: Guest,
        writer: KeyWriter,
        conversation: ServerConversation,
    ) -> None:
        error: tuple[str, str] | None = None
        self._conversations.add(conversation)
        try:
            await connection.send(conversation.greeting())
            async with trio.open_nursery() as nursery:
                answerer = Answerer(conversation, nursery.cancel_scope.cancel)
                with writer.connected(answerer):
                    nursery.start_soon(self._answer, connection, answerer)
                    error = await self._receive(connection, guest, writer, answerer)
                    nursery.cancel_scope.cancel()
            if conversation.refused:
                await connection.send_many(conversation.messages_to_send())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            error = _socket_error(err)
        finally:
            self._conversations.discard(conversation)
            self._counts.records += conversation.records
            self._counts.repeats += conversation.repeats
            self._counts.bad_messages += conversation.bad_messages
        writer.add(Received(conversation.closing_lines(time.time(), error)))

    async def _receive(
        self, connection: Connection, guest: Guest, writer: KeyWriter, answerer: Answerer
    ) -> tuple[str, str] | None:
        """Read to the end of the connection; the code and text of the error that ended it."""
        conversation = answerer.conversation
        try:
            while conversation.violation is None:
                await writer.wait_for_room()
                messages = await connection.receive_many()
                count, size = len(messages), sum(map(len, messages))
                while messages:
                    batch, messages = messages[:BATCH], messages[BATCH:]
                    writer.add(conversation.receive_messages(batch, time.time()), answerer)
                    del batch  # up to 16 MiB, while this may wait for as long as the client likes
                    answerer.wake()
                    if messages:
                        await writer.wait_for_room()
                await self._gate.pace(guest, count, size)
        except trio.EndOfChannel:
            pass
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            return _socket_error(err)
        except SessionRewound as err:
            conversation.violation = str(err)
        return None

    async def _answer(self, connection: Connection, answerer: Answerer) -> None:
        try:
            while True:
                await connection.send_many(await answerer.next_messages())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the task that reads gets the reason

    def _report_fault(self, error: SinkError) -> None:
        self._counts.write_failures += 1
        now = time.monotonic()
        if now - self._fault_logged_at >= FAULT_LOG_INTERVAL:
            self._fault_logged_at = now
            logger.error("%s. Clients keep what is not written until it is", error)

    # -- what is remembered of clients ------------------------------------------------------------

    async def _load(self, key: bytes, client: _Client) -> KeyWriter:
        """Read back, once for each key, which records its log file has."""
        async with client.loading:
            if client.writer is None:
                assert self._writer is not None
                assert self._nursery is not None
                sessions = await trio.to_thread.run_sync(
                    self._writer.resume, key, limiter=self._scan_limiter, abandon_on_cancel=True
                )
                client.writer = KeyWriter(
                    key, ResumeState(sessions), self._writer, self._nursery, self._report_fault
                )
        return client.writer

    def _forget_idle_clients(self) -> None:
        """Keep the memory bounded: what is forgotten here stands in the log files."""
        if len(self._clients) > MAX_CLIENTS:
            idle = (key for key, client in self._clients.items() if client.is_idle)
            for key in list(islice(idle, len(self._clients) - MAX_CLIENTS)):
                del self._clients[key]


def _open_folder(config: ServerConfig) -> FileSink:
    folder = config.folder
    sink = FileSink(folder, policy=config.files, synced=config.durability == "fsync")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(f"cannot write to the log folder {folder}: make it writable for this user")
    return sink


def _socket_error(error: Exception) -> tuple[str, str]:
    cause = error.__cause__
    code = cause.code if isinstance(cause, DHTError) else "EPIPE"
    return code, SOCKET_ERRORS.get(code, str(cause or error))


if __name__ == "__main__":
    from hyperlog.cli import main

    sys.exit(main(["serve", *sys.argv[1:]]))
