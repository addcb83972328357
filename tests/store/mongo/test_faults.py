"""MongoDB is killed, stopped, made secondary, or does not let us in: nothing is lost or doubled.

Records come as in a server, 2,000 a second through a LogWriter whose files the store follows.
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.errors import StoreUnavailable
from hyperlog.records import iso_time
from hyperlog.sinks.files import FileSink
from hyperlog.sinks.writer import LogWriter
from hyperlog.store.query import Query
from hyperlog.store.records import record_of
from tests.mongod import ESCAPED, PASSWORD
from tests.store.mongo.following import LogFiles, database_name, drop, until
from tests.store.population import BEGIN, SERVER

pytestmark = pytest.mark.mongod

LONG = "HYPERLOG_LONG" in os.environ
RATE = 2000  # records/s
BURSTS = 50  # a second
STOP = 10.0 if LONG else 1.5  # s
HASTE = "&serverSelectionTimeoutMS=1000&connectTimeoutMS=1000&socketTimeoutMS=2000"
MAX_WRITE = 1.0  # s for lines to become durable, whatever MongoDB does
SOURCES = [bytes([number]) * 32 for number in range(4)]


class Ingest:
    """Writes numbered records into log files, at a steady rate."""

    def __init__(self, writer):
        self.writer = writer
        self.written = []
        self.slowest = 0.0
        self.going = True

    async def run(self):
        number = 0
        while self.going:
            begun = trio.current_time()
            for source in SOURCES:
                lines = []
                for _ in range(RATE // BURSTS // len(SOURCES)):
                    time = iso_time((BEGIN + number) / 1000)
                    lines.append(
                        b'{"time":"%b","app":"app%d","instance":"i","traceTimestamp":"%b",'
                        b'"traceSessionId":"1","traceNumber":%d,"level":"INFO","message":"m %d"}'
                        % (time.encode(), number % 3, time.encode(), number, number)
                    )
                    number += 1
                await self.writer.write(source, lines)
                self.written += [(source, line) for line in lines]
            taken = trio.current_time() - begun
            self.slowest = max(self.slowest, taken)
            await trio.sleep(max(1 / BURSTS - taken, 0))

    @property
    def ids(self):
        return {record_of(line, source, SERVER).id for source, line in self.written}


@asynccontextmanager
async def ingesting(folder, uri):
    """Records come at RATE; afterwards the store has caught up."""
    files = LogFiles(folder, uri)
    async with files.store, LogWriter(FileSink(folder)) as writer, trio.open_nursery() as nursery:
        writer.listeners = (files.store.lines_written,)
        ingest = Ingest(writer)
        nursery.start_soon(ingest.run)
        yield files, ingest
        ingest.going = False


async def assert_same(members, database, files, ingest):
    """The store holds each record that was written once."""
    await files.wait()
    held = []
    with members.client() as client:
        for name in client[database].list_collection_names(filter={"name": re.compile("^records")}):
            held += client[database][name].distinct("_id")
    assert len(held) == len(ingest.ids)
    assert set(held) == ingest.ids
    assert await files.store.count(Query()) == len(held)


async def held_some(files, count=500):
    """Returns when so many records more are held."""
    before = files.store.statistics().inserted
    await until(lambda: files.store.statistics().inserted >= before + count)


async def told(files, text):
    """Returns when the store's last error has this text."""
    await until(lambda: text in (files.store.statistics().last_error or ""))


async def test_a_killed_mongod_loses_and_doubles_nothing(own_mongod, tmp_path):
    (member,) = own_mongod.members
    async with ingesting(tmp_path / "logs", own_mongod.uri("db") + HASTE) as (files, ingest):
        await held_some(files)
        member.kill()
        # The first question may still find the connection on which nobody answers any more.
        with pytest.raises(StoreUnavailable, match=f"MongoDB at 127.0.0.1:{member.port}"):
            await files.store.count(Query())
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{member.port} cannot be reached"):
            await files.store.count(Query())
        await until(lambda: files.store.statistics().behind > 0)
        member.start()
        await held_some(files)
        ingest.going = False
        await assert_same(own_mongod, "db", files, ingest)
        assert files.store.statistics().last_error is None
        assert ingest.slowest < MAX_WRITE


async def test_a_stopped_mongod_keeps_nobody_waiting(own_mongod, tmp_path):
    (member,) = own_mongod.members
    async with ingesting(tmp_path / "logs", own_mongod.uri("db") + HASTE) as (files, ingest):
        await held_some(files)
        member.send(signal.SIGSTOP)
        lag = 0.0
        until = trio.current_time() + STOP
        while trio.current_time() < until:
            begun = trio.current_time()
            await trio.sleep(0.01)
            lag = max(lag, trio.current_time() - begun)
        assert files.store.statistics().behind > 0
        begun = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await files.store.count(Query())
        assert scope.cancelled_caught
        with pytest.raises(StoreUnavailable, match="MongoDB at"):
            await files.store.count(Query())
        assert trio.current_time() - begun < 4
        member.send(signal.SIGCONT)
        await held_some(files)
        ingest.going = False
        await assert_same(own_mongod, "db", files, ingest)
        assert ingest.slowest < MAX_WRITE
        assert lag < 0.5


async def test_a_new_primary_is_found(three_mongods, tmp_path):
    database = database_name()
    uri = three_mongods.uri(database) + HASTE
    try:
        async with ingesting(tmp_path / "logs", uri) as (files, ingest):
            for _ in range(3 if LONG else 1):
                await held_some(files)
                await trio.to_thread.run_sync(three_mongods.step_down)
            await held_some(files)
            first = await trio.to_thread.run_sync(three_mongods.primary)
            first.kill()
            await held_some(files)
            first.start()
            ingest.going = False
            await assert_same(three_mongods, database, files, ingest)
            assert ingest.slowest < MAX_WRITE
    finally:
        drop(three_mongods, database)


async def test_a_user_without_rights_may_get_them_later(mongod, tmp_path):
    database = database_name()
    with mongod.client() as client:
        client.admin.command("createUser", "reader", pwd="secret", roles=[])
        try:
            uri = mongod.uri(database, user="reader", password="secret") + HASTE
            async with ingesting(tmp_path / "logs", uri) as (files, ingest):
                await told(files, f"needs the role readWrite on the database {database}")
                statistics = files.store.statistics()
                assert (statistics.inserted, statistics.records) == (0, 0)
                with pytest.raises(StoreUnavailable, match="readWrite"):
                    await files.store.search(Query())
                role = {"role": "readWrite", "db": database}
                client.admin.command("grantRolesToUser", "reader", roles=[role])
                await held_some(files)
                ingest.going = False
                await assert_same(mongod, database, files, ingest)
        finally:
            client.admin.command("dropUser", "reader")
            client.drop_database(database)


async def test_a_wrong_password_is_told_and_never_shown(mongod, tmp_path, caplog):
    caplog.set_level("DEBUG")
    files = LogFiles(tmp_path / "logs", mongod.uri("db", password=f"x{ESCAPED}") + HASTE)
    async with files.store:
        await told(files, "refuses the user or the password")
        await until(lambda: files.store.statistics().failures >= 2)
        with pytest.raises(StoreUnavailable, match="refuses the user or the password") as caught:
            await files.store.count(Query())
    seen = [str(caught.value), repr(files.store), repr(files.store._access), caplog.text]
    for text in seen:
        assert PASSWORD not in text
        assert ESCAPED not in text
    messages = [one.message for one in caplog.records if "cannot feed" in one.message]
    assert len(messages) == 1, "the same fault is told once a minute"


async def test_a_store_opens_while_mongodb_is_away(own_mongod, tmp_path):
    (member,) = own_mongod.members
    member.kill()
    async with ingesting(tmp_path / "logs", own_mongod.uri("db") + HASTE) as (files, ingest):
        await told(files, f"MongoDB at 127.0.0.1:{member.port} cannot be reached")
        member.start()
        await held_some(files)
        ingest.going = False
        await assert_same(own_mongod, "db", files, ingest)
