"""Service: the stores of a server, each following its log files for itself.

What a store cannot do hurts nobody else. One that cannot be opened is tried again; one that fails
or is behind says so in its statistics; and those who write files only tell that there is more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import trio

from hyperlog.config import ServerConfig
from hyperlog.errors import StoreError
from hyperlog.limits import Complaints
from hyperlog.store.answers import Store, StoreStatistics
from hyperlog.store.mongo import open_mongo
from hyperlog.store.sqlite import DATABASE, EmbeddedStore

__all__ = ["Stores"]

logger = logging.getLogger("hyperlog.storing")

RETRY: Final = 5.0  # s between two attempts to open a store


class _Following(Store, AbstractAsyncContextManager[object], Protocol):
    """A store that is fed by following log files while it is open."""

    def lines_written(self, source: bytes, lines: Sequence[bytes]) -> None: ...


class Stores:
    """Those that a configuration asks for, which may be none."""

    def __init__(self, config: ServerConfig, server: str) -> None:
        """`server` is the server's public key, hex.

        Raises:
            ConfigError: the packages for one are not installed, or its address cannot be used.
            StoreError: this Python cannot have an embedded store.
        """
        self._stores: list[_Following] = []
        self._answering: Store | None = None
        self._complaints = Complaints(logger)
        if config.store == "sqlite":
            self._add(_embedded(config, server), answering=True)
        if config.mongo is not None:
            mongo = open_mongo(config.mongo, config.folder, server=server, ttl=config.mongo_ttl)
            self._add(mongo, answering=config.store == "mongo")

    def _add(self, store: _Following, *, answering: bool) -> None:
        self._stores.append(store)
        if answering:
            self._answering = store

    @property
    def answering(self) -> Store | None:
        """The one that answers queries. It may be away, or not be open yet: then it says so."""
        return self._answering

    def statistics(self) -> list[StoreStatistics]:
        return [store.statistics() for store in self._stores]

    def lines_written(self, source: bytes, lines: Sequence[bytes]) -> None:
        """A listener of LogWriter."""
        for store in self._stores:
            store.lines_written(source, lines)

    async def run(self) -> None:
        """Feed them until cancelled."""
        async with trio.open_nursery() as nursery:
            for store in self._stores:
                nursery.start_soon(self._run, store)

    async def _run(self, store: _Following) -> None:
        while True:
            try:
                async with store:
                    await trio.sleep_forever()
            except StoreError as error:
                text = f"records are logged, but not stored for searches: {error}"
                self._complaints.warn(type(store).__name__, text, trio.current_time())
            except Exception:  # isolates a store from the server
                logger.exception("a store failed")
            await trio.sleep(RETRY)


def _embedded(config: ServerConfig, server: str) -> EmbeddedStore:
    path = config.data / DATABASE
    return EmbeddedStore(path, config.folder, server=server, policy=config.retention)
