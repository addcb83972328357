"""What the web application needs of the server that it belongs to."""

from __future__ import annotations

from typing import Protocol

from hyperlog.config import ServerConfig
from hyperlog.connections import ConnectionManager
from hyperlog.intake import Intake
from hyperlog.store.answers import Store
from hyperlog.tail import Tail
from hyperlog.tokens import TokenAuthority

__all__ = ["Service"]


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
    def tokens(self) -> TokenAuthority: ...
    @property
    def store(self) -> Store | None: ...
    @property
    def tail(self) -> Tail: ...
