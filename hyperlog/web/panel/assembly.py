"""Puts the panel of a server together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from hyperlog.blocklist import Blocklist
from hyperlog.config import ServerConfig
from hyperlog.connections import ConnectionManager
from hyperlog.gate import Gate
from hyperlog.intake import Intake
from hyperlog.registry import SERVER_PATIENCE, Registry
from hyperlog.store.answers import Store
from hyperlog.tail import Tail
from hyperlog.tokens import TokenAuthority
from hyperlog.web.panel.access import Access
from hyperlog.web.panel.account import add_account
from hyperlog.web.panel.applications import add_applications
from hyperlog.web.panel.audit import AuditLog
from hyperlog.web.panel.changes import Changes
from hyperlog.web.panel.explore import add_explore
from hyperlog.web.panel.export import add_export
from hyperlog.web.panel.helppage import add_help
from hyperlog.web.panel.livepage import add_live
from hyperlog.web.panel.peerspage import add_peers
from hyperlog.web.panel.routes import Panel
from hyperlog.web.panel.searches import Searches
from hyperlog.web.panel.serverpage import add_server
from hyperlog.web.panel.start import add_start
from hyperlog.web.panel.tokenspage import add_tokens

__all__ = ["OpenPanel", "create_panel", "open_panel"]


LOOK_INTERVAL: Final = 1.0  # s between two looks at what the command line has changed


class PanelServer(Protocol):
    """`hyperlog.server.Server`, as seen from here."""

    @property
    def public_key(self) -> bytes: ...
    @property
    def config(self) -> ServerConfig: ...
    @property
    def intake(self) -> Intake: ...
    @property
    def connections(self) -> ConnectionManager: ...
    @property
    def tokens(self) -> TokenAuthority | None: ...
    @property
    def store(self) -> Store | None: ...
    @property
    def tail(self) -> Tail: ...
    def statistics(self) -> object: ...


@dataclass(frozen=True, slots=True)
class OpenPanel:
    """A panel that is ready to be served."""

    panel: Panel
    setup_secret: str | None
    """of the set-up link; None if there are users"""
    _audit: AuditLog
    _changes: Changes
    _registry: Registry

    async def run(self) -> None:
        """Write what is done in it, and by the command line, to the log, until cancelled; then it
        is closed."""
        with closing(self._registry):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._audit.run)
                while True:
                    await trio.sleep(LOOK_INTERVAL)
                    for what, fields in self._changes.look():
                        self._audit(what, fields)


def open_panel(server: PanelServer, gate: Gate, bootstrap: Sequence[str]) -> OpenPanel | None:
    """The panel of a running server; None if it has no store to be searched.

    `bootstrap` are the nodes that clients have to be told of, none on the public network.

    Raises:
        KeyFileError: the registry cannot be used.
    """
    store, tokens = server.store, server.tokens
    if store is None or tokens is None:
        return None
    registry = Registry(server.config.data, patience=SERVER_PATIENCE)
    audit, changes = AuditLog(server.intake), Changes(registry)
    panel = create_panel(
        config=server.config,
        public_key=server.public_key,
        bootstrap=bootstrap,
        registry=registry,
        gate=gate,
        connections=server.connections,
        tokens=tokens,
        store=store,
        tail=server.tail,
        statistics=server.statistics,
        audit=changes.audited(audit),
    )
    return OpenPanel(panel, panel.access.begin_setup(), audit, changes, registry)


def create_panel(
    *,
    config: ServerConfig,
    public_key: bytes,
    bootstrap: Sequence[str],
    registry: Registry,
    gate: Gate,
    connections: ConnectionManager,
    tokens: TokenAuthority,
    store: Store,
    tail: Tail,
    statistics: Callable[[], object],
    audit: Callable[[str, dict[str, object]], None],
    clock: Callable[[], float] = time.time,
) -> Panel:
    """The panel of a server that has all this."""
    access = Access(registry, audit, clock=clock)
    panel = Panel(access, Searches(registry))
    blocklist = Blocklist(registry, gate, clock)
    add_start(panel, store, public_key, bootstrap)
    add_explore(panel, store)
    add_export(panel, store)
    add_live(panel, tail)
    add_applications(panel, connections, blocklist, audit)
    add_peers(panel, store)
    add_tokens(panel, tokens, audit, public_key)
    add_server(
        panel,
        config=config,
        public_key=public_key,
        statistics=statistics,
        store=store,
        allow_list=gate.access,
        audit=audit,
    )
    add_account(panel)
    add_help(panel)
    return panel
