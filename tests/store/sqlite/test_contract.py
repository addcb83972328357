from __future__ import annotations

from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hyperlog.store.sqlite import DATABASE, EmbeddedStore
from tests.store.contract import StoreContract
from tests.store.population import SERVER, PopulationLine


class LogFiles:
    """An embedded store and the log files that it follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = EmbeddedStore(folder / ".hyperlog" / DATABASE, folder, server=SERVER)

    def append(self, lines: Sequence[PopulationLine]) -> None:
        by_source: dict[bytes, list[bytes]] = {}
        for source, line in lines:
            by_source.setdefault(source, []).append(line)
        for source, mine in by_source.items():
            with open(self.folder / f"{source.hex()}.log", "ab") as file:
                file.write(b"".join(line + b"\n" for line in mine))
            self.store.lines_written(source, mine)

    async def add(self, lines: Sequence[PopulationLine]) -> None:
        self.append(lines)
        await self.wait()

    async def wait(self) -> None:
        with trio.fail_after(60):
            while self.store.follower.behind:  # noqa: ASYNC110 - a thread changes it
                await trio.sleep(0.005)


class TestEmbeddedStore(StoreContract):
    @pytest.fixture
    def store_factory(self, tmp_path):
        @asynccontextmanager
        async def opened(lines):
            files = LogFiles(tmp_path)
            files.append(lines)
            async with files.store:
                await files.wait()
                yield files

        return opened
