"""A MongoDB store and the log files that it follows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from hyperlog.store.mongo import open_mongo
from tests.mongod import ReplicaSet
from tests.store.population import SERVER, PopulationLine

TIMEOUT = 60.0  # s
POLL = 0.005  # s

_numbers = itertools.count(1)


def database_name() -> str:
    """One that no other test has."""
    return f"test{next(_numbers)}"


class LogFiles:
    """Log files of one server, and the store that follows them."""

    def __init__(
        self, folder: Path, uri: str, *, server: str = SERVER, ttl: float | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.store = open_mongo(uri, folder, server=server, ttl=ttl)

    def append(self, lines: Sequence[PopulationLine]) -> None:
        by_source: dict[bytes, list[bytes]] = {}
        for source, line in lines:
            by_source.setdefault(source, []).append(line)
        for source, mine in by_source.items():
            with open(self.folder / f"{source.hex()}.log", "ab") as file:
                file.write(b"".join(line + b"\n" for line in mine))
            self.store.lines_written(source, mine)

    async def add(self, lines: Sequence[PopulationLine]) -> None:
        """Returns when the store holds their records."""
        self.append(lines)
        await self.wait()

    async def wait(self, timeout: float = TIMEOUT) -> None:
        """Until the store has caught up."""
        assert await trio.to_thread.run_sync(self.store.follower.wait_opened, timeout)
        await until(lambda: not self.store.follower.behind, timeout)


async def until(holds: Callable[[], object], timeout: float = TIMEOUT) -> None:
    with trio.fail_after(timeout):
        while True:
            if holds():
                return
            await trio.sleep(POLL)


def drop(members: ReplicaSet, database: str) -> None:
    with members.client() as client:
        client.drop_database(database)
