"""What the web application needs of the server that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hyperlog.config import ServerConfig
from hyperlog.connections import ConnectionManager
from hyperlog.gate import GateStatistics
from hyperlog.intake import Intake
from hyperlog.sinks.writer import WriterStatistics
from hyperlog.store.answers import Store, StoreStatistics
from hyperlog.tail import Tail
from hyperlog.tokens import TokenAuthority

__all__ = ["Service", "ServiceStatistics"]


class ServiceStatistics(Protocol):
    """What of a server's statistics is told."""

    @property
    def refused(self) -> int: ...
    @property
    def refusals(self) -> dict[str, int]: ...
    @property
    def requests(self) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def repeats(self) -> int: ...
    @property
    def bad_messages(self) -> int: ...
    @property
    def gate(self) -> GateStatistics: ...
    @property
    def files(self) -> WriterStatistics: ...
    @property
    def stores(self) -> Sequence[StoreStatistics]:
        """of all stores, those too that answer no queries"""
        ...


class Service(Protocol):
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
    def statistics(self) -> ServiceStatistics: ...
