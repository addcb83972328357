"""The server: accepts clients by their public keys and writes their records into log files.

    async with Server(folder="logs", keys="keys.dat") as server:
        print(server.public_key.hex())
        await trio.sleep_forever()

`python -m hyperlog.server` is `hyperlog serve`. Here its parts are put together; what is done with
a connection stands in `intake`.

Source: hypertrace-logger server.js, start-server.js; docs/protocol/trace-protocol.md section 2.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Unpack

import trio

from hyperlog.config import (
    DEFAULT_FOLDER,
    DEFAULT_HOST,
    DEFAULT_KEYS,
    Address,
    ServerConfig,
    ServerOptions,
)
from hyperlog.connections import ConnectionManager
from hyperlog.control import ServerOffer
from hyperlog.dht import (
    BOOTSTRAP_NODES,
    DHT,
    Connection,
    KeyPair,
    Listener,
    MemoryStatistics,
    open_dht,
)
from hyperlog.errors import ConfigError, SinkError
from hyperlog.gate import Gate, GateStatistics
from hyperlog.intake import Intake, IntakeStatistics, Sender
from hyperlog.keyfile import load_or_create_keys
from hyperlog.reception import ReceptionLimits
from hyperlog.senders import Permits
from hyperlog.sinks.files import FileSink
from hyperlog.sinks.folderlock import own_folder
from hyperlog.sinks.writer import LogWriter, WriterStatistics

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from hyperlog.store.answers import Store, StoreStatistics
    from hyperlog.storing import Stores
    from hyperlog.tail import Tail
    from hyperlog.tokens import TokenAuthority

__all__ = ["Server", "ServerStatistics"]

logger = logging.getLogger("hyperlog.server")

MAX_MESSAGE_SIZE: Final = 1088 * 1024  # bytes; a batch is handled in one go, in up to 0.1 s
OFFERED_RECORD_SIZE: Final = 1024 * 1024  # bytes that our clients keep to; larger ones are cut


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatistics(IntakeStatistics):
    """The server now, and counts since it started."""

    public_key: str
    """hex"""
    address: Address
    """where the node is bound"""
    announced_to: int
    """DHT nodes that hold our record"""
    bootstrap_failing: bool
    """no bootstrap node answered the latest attempt; the next is due within 30 s"""
    gate: GateStatistics
    """who was refused or slowed down, and why"""
    memory: MemoryStatistics
    """of what peers sent and nobody could use yet"""
    files: WriterStatistics
    stores: tuple[StoreStatistics, ...]


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
        self._gate = Gate(self.config.access, self.config.limits)
        self._connections = ConnectionManager()
        self._permits: Permits | None = None
        self._intake: Intake | None = None
        self._writer: LogWriter | None = None
        self._dht: DHT | None = None
        self._listener: Listener | None = None
        self._announced = trio.Event()
        self._stores: Stores | None = None
        self._tail: Tail | None = None
        self._http_address: Address | None = None
        self.setup_secret: str | None = None
        """of the control panel's set-up link, while it has no users"""
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

    @property
    def local_address(self) -> Address:
        """Where clients on this machine or network find the server's node."""
        host, port = self.address
        if host != "0.0.0.0":
            return host, port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing: only asks for the way there
                return probe.getsockname()[0], port
            except OSError:
                return "127.0.0.1", port

    def nodes_for_clients(self) -> list[str]:
        """The bootstrap nodes, `HOST:PORT`, that clients have to name; none on the public DHT."""
        nodes = self.config.bootstrap or (self.local_address,)
        return [] if nodes == tuple(BOOTSTRAP_NODES) else [f"{host}:{port}" for host, port in nodes]

    @property
    def intake(self) -> Intake:
        """Where records come in.

        Raises:
            RuntimeError: the server does not run.
        """
        if self._intake is None:
            raise RuntimeError("the server takes nothing in before it runs")
        return self._intake

    @property
    def connections(self) -> ConnectionManager:
        """Which instances of which applications are there."""
        return self._connections

    @property
    def tokens(self) -> TokenAuthority | None:
        """The application tokens; None as long as nothing has made it necessary to open them."""
        return None if self._permits is None else self._permits.authority

    @property
    def store(self) -> Store | None:
        """What answers queries; None if nothing does."""
        return None if self._stores is None else self._stores.answering

    @property
    def tail(self) -> Tail:
        """What shows records as they are written; for a server of HTTP.

        Raises:
            RuntimeError: the server does not run, or without HTTP.
        """
        if self._tail is None:
            raise RuntimeError("only a server that runs with HTTP shows what is written")
        return self._tail

    @property
    def http_address(self) -> Address | None:
        """Where HTTP is served; None if it is not."""
        return self._http_address

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
        intake, node = self.intake.statistics(), self._dht.statistics()
        return ServerStatistics(
            **{field.name: getattr(intake, field.name) for field in fields(intake)},
            public_key=self.public_key.hex(),
            address=self.address,
            announced_to=self._announced_to(),
            bootstrap_failing=node.rpc.bootstrap_failing,
            gate=self._gate.statistics(),
            memory=node.memory,
            files=self._writer.statistics(),
            stores=() if self._stores is None else tuple(self._stores.statistics()),
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
            SinkError: the folder cannot be made or written, or another server does.
            OSError: the port or address cannot be bound.
            ConfigError: packages are missing for what was asked, or HTTP cannot be served there.
            StoreError: there cannot be an embedded store here.
            KeyFileError: the registry of tokens cannot be used.
        """
        config = self.config
        sink = _open_folder(config)
        if config.store is not None or config.mongo is not None:
            self._stores = self._make_stores()
        with closing(
            Permits(config.data, required=config.require_token, served=config.http is not None)
        ) as self._permits:
            async with (
                own_folder(config.folder),
                LogWriter(
                    sink, durability=config.durability, max_line=config.max_line
                ) as self._writer,
                open_dht(
                    bootstrap=config.bootstrap,
                    host=config.host,
                    port=config.port or 0,
                    exact_port=config.port is not None,
                    key_pair=self._key_pair,
                    cache=config.node_cache,
                ) as self._dht,
            ):
                self._listener = await self._dht.listen(
                    firewall=self._gate.refuses,
                    admit=self._gate.admits,
                    relay_through=config.relay_through,
                )
                async with trio.open_nursery() as nursery:
                    self._intake = self._make_intake(self._writer, nursery, self._permits)
                    nursery.start_soon(self._wait_first_announcement, self._listener)
                    nursery.start_soon(self._gate.watch)
                    nursery.start_soon(self._intake.watch)
                    if self._stores is not None:
                        self._writer.listeners += (self._stores.lines_written,)
                        nursery.start_soon(self._stores.run)
                    if config.http is not None:
                        await self._start_http(config.http, nursery)
                    task_status.started()
                    while True:
                        self._admit(await self._listener.accept(), self._intake, nursery)

    def _make_intake(self, writer: LogWriter, nursery: trio.Nursery, permits: Permits) -> Intake:
        limits = self.config.limits
        return Intake(
            writer,
            nursery,
            self._gate,
            permits,
            self._connections,
            limits=ReceptionLimits(MAX_MESSAGE_SIZE, limits.max_record),
            offer=ServerOffer(
                max_message=MAX_MESSAGE_SIZE,
                max_record=min(limits.max_record, OFFERED_RECORD_SIZE),
                durability=self.config.durability,
            ),
        )

    def _make_stores(self) -> Stores:
        from hyperlog.storing import Stores  # not for servers that have none

        return Stores(self.config, self.public_key.hex())

    async def _start_http(self, address: Address, nursery: trio.Nursery) -> None:
        try:
            from hyperlog.tail import Tail
            from hyperlog.web.app import create_app
            from hyperlog.web.serving import serve_http
        except ImportError as error:
            raise ConfigError(
                f"HTTP needs packages ({error.name} is missing): "
                "pip install 'hyperlog-p2p[server]', or turn it off"
            ) from error
        assert self._writer is not None
        self._tail = Tail(self.public_key.hex())
        self._writer.listeners += (self._tail.lines_written,)
        app = create_app(self, self._open_panel(nursery))
        host, port = address
        try:
            try:
                self._http_address = await nursery.start(serve_http, app, address)
            except OSError as error:
                if not self.config.http_elsewhere or error.errno != errno.EADDRINUSE:
                    raise
                logger.warning("%s:%d is taken: HTTP is served at another port", host, port)
                self._http_address = await nursery.start(serve_http, app, (host, 0))
        except OSError as error:
            raise ConfigError(
                f"HTTP cannot be served at {host}:{port}: {error.strerror or error}; choose "
                "another place (--http HOST:PORT) or turn it off (--http off)"
            ) from error

    def _open_panel(self, nursery: trio.Nursery) -> list[BaseRoute]:
        from hyperlog.web.panel.assembly import open_panel

        opened = open_panel(self, self._gate, self.nodes_for_clients())
        if opened is None:
            return []
        self.setup_secret = opened.setup_secret
        nursery.start_soon(opened.run)
        return opened.panel.routes()

    async def _wait_first_announcement(self, listener: Listener) -> None:
        await listener.wait_announced()
        self._announced.set()

    def _admit(self, connection: Connection, intake: Intake, nursery: trio.Nursery) -> None:
        key, address = connection.remote_public_key, connection.remote_address
        sender = Sender(
            source=key,
            key=key,
            application=None,
            instance=None,
            transport="hyperdht",
            socket="" if address is None else f"{address[0]}:{address[1]}",
        )
        guest = intake.enter(connection, sender)
        if guest is None:
            connection.abort()
        else:
            nursery.start_soon(intake.converse, connection, sender, guest)


def _open_folder(config: ServerConfig) -> FileSink:
    folder = config.folder
    sink = FileSink(folder, policy=config.files, synced=config.durability == "fsync")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(f"cannot write to the log folder {folder}: make it writable for this user")
    return sink


if __name__ == "__main__":
    from hyperlog.cli import main

    sys.exit(main(["serve", *sys.argv[1:]]))
