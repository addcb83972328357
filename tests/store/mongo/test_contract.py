"""MongoDB answers what every store answers."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from tests.store.contract import StoreContract
from tests.store.mongo.following import LogFiles, database_name, drop

pytestmark = pytest.mark.mongod


class TestMongoStore(StoreContract):
    @pytest.fixture
    def store_factory(self, mongod, tmp_path):
        @asynccontextmanager
        async def opened(lines):
            database = database_name()
            files = LogFiles(tmp_path, mongod.uri(database))
            files.append(lines)
            try:
                async with files.store:
                    await files.wait()
                    yield files
            finally:
                drop(mongod, database)

        return opened
