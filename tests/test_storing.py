"""hyperlog.storing: the stores of a running server, and what happens to ingest without them."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog import storing
from hyperlog.dht import KeyPair
from hyperlog.errors import ConfigError, StoreUnavailable
from hyperlog.intake import Sender
from hyperlog.records import instance_source
from hyperlog.server import Server
from hyperlog.store.query import Compare, Query
from hyperlog.store.sqlite.store import lock_database
from hyperlog.tokens import TokenClaims

CLAIMS = TokenClaims("00", "cerco", "*", frozenset(["ingest"]), None, 0.0, None, "00")


@asynccontextmanager
async def local_server(folder, **settings):
    settings.setdefault("keys", KeyPair.generate())
    async with Server(folder, host="127.0.0.1", local=True, **settings) as server:
        yield server


async def log(server, *numbers: int) -> None:
    source = instance_source("cerco", "a2b5")
    sender = Sender(source, None, "cerco", "a2b5", "http", "192.0.2.7:5000", CLAIMS)
    messages = [
        {"level": "INFO", "message": f"record {n}", "traceSessionId": "77", "traceNumber": n}
        for n in numbers
    ]
    reasons = await server.intake.take(sender, [json.dumps(one).encode() for one in messages])
    assert reasons == [None] * len(numbers)


async def held(server) -> list[int]:
    """Numbers of the log records that the store answers with."""
    query = Query(Compare("kind", "=", "log"))
    try:
        page = await server.store.search(query, limit=1000, order="oldest")
    except StoreUnavailable:
        return []
    assert {record.bucket for record in page.records} <= {"cerco"}
    return [record.number for record in page.records]


async def holds(server, numbers: int, timeout=20.0) -> None:
    with trio.fail_after(timeout):
        while await held(server) != list(range(numbers)):  # noqa: ASYNC110 - it follows by itself
            await trio.sleep(0.02)


async def told(caplog, text: str) -> None:
    with trio.fail_after(10):
        while text not in caplog.text:  # noqa: ASYNC110 - see holds
            await trio.sleep(0.02)


async def test_a_library_server_has_no_store_and_leaves_nothing_but_log_files(tmp_path):
    async with local_server(tmp_path) as server:
        await log(server, 0)
        assert server.store is None
        assert server.statistics().stores == ()
        assert server.http_address is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".log"]


async def test_what_is_logged_can_be_searched_at_once_and_after_a_restart(tmp_path):
    keys = KeyPair.generate()
    async with local_server(tmp_path, keys=keys, store="sqlite") as server:
        await log(server, *range(10))
        await holds(server, 10)
        (statistics,) = server.statistics().stores
        assert (statistics.kind, statistics.behind) == ("sqlite", 0)
        assert statistics.last_error is None
    assert (tmp_path / ".hyperlog" / "store.sqlite").exists()
    async with local_server(tmp_path, keys=keys) as server:
        await log(server, *range(10, 20))  # while there is no store
    async with local_server(tmp_path, keys=keys, store="sqlite") as server:
        await holds(server, 20)
        assert server.store.statistics().inserted == 10


async def test_a_store_that_is_deleted_is_made_again_from_the_log_files(tmp_path):
    keys = KeyPair.generate()
    for _ in range(2):
        async with local_server(tmp_path, keys=keys, store="sqlite") as server:
            await log(server, *range(10))
            await holds(server, 10)
        for path in (tmp_path / ".hyperlog").glob("store.sqlite*"):
            path.unlink()


async def test_a_store_that_another_process_has_open_is_told_and_tried_again(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(storing, "RETRY", 0.05)
    lock = lock_database(tmp_path / ".hyperlog" / "store.sqlite")
    async with local_server(tmp_path, store="sqlite") as server:
        await log(server, 0, 1)
        await told(caplog, "uses")
        assert await held(server) == []
        lock.release()
        await holds(server, 2)
    assert caplog.text.count("uses") == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
async def test_a_data_folder_that_cannot_be_written_is_no_reason_not_to_log(tmp_path):
    data = tmp_path / "data"
    data.mkdir(0o500)
    async with local_server(tmp_path / "logs", store="sqlite", data=data) as server:
        await log(server, 0)


async def test_a_data_folder_that_is_none_is_no_reason_not_to_log(tmp_path, caplog):
    data = tmp_path / "data"
    data.write_text("a file is in the way")
    async with local_server(tmp_path / "logs", store="sqlite", data=data) as server:
        await log(server, 0)
        await told(caplog, str(data))
        with pytest.raises(StoreUnavailable):
            await server.store.search(Query())
        (statistics,) = server.statistics().stores
        assert statistics.inserted == 0


async def test_a_store_that_stalls_holds_nobody_up(tmp_path, monkeypatch):
    go = threading.Event()
    async with local_server(tmp_path, store="sqlite") as server:
        await log(server, 0)
        await holds(server, 1)
        insert = server.store._writer.insert

        def stall(*arguments):
            assert go.wait(30)
            return insert(*arguments)

        monkeypatch.setattr(server.store._writer, "insert", stall)
        try:
            for start in range(1, 101, 10):
                with trio.fail_after(5):
                    await log(server, *range(start, start + 10))
            assert server.statistics().stores[0].behind > 0
        finally:
            go.set()
        await holds(server, 101)


def test_without_the_driver_mongodb_is_refused_with_the_command_that_installs_it(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pymongo", None)
    server = Server(tmp_path, local=True, keys=KeyPair.generate(), mongo="mongodb://localhost/")

    async def run() -> None:
        async with server:
            pass

    with pytest.raises(ConfigError, match=r"pip install 'hyperlog-p2p\[mongo\]'"):
        trio.run(run)


async def test_a_mongodb_that_is_away_holds_nobody_up_and_its_password_is_not_told(
    tmp_path, caplog
):
    uri = "mongodb://user:s3cr3t-word@127.0.0.1:9/?serverSelectionTimeoutMS=500"
    began_at = time.monotonic()
    with caplog.at_level(logging.INFO):
        async with local_server(tmp_path, mongo=uri, store="mongo") as server:
            assert time.monotonic() - began_at < 4  # a loaded machine takes a while, too
            await log(server, *range(5))
            with trio.fail_after(20):
                while server.statistics().stores[0].last_error is None:  # noqa: ASYNC110 - see holds
                    await trio.sleep(0.05)
            (statistics,) = server.statistics().stores
            assert statistics.behind > 0
            with pytest.raises(StoreUnavailable) as caught:
                await server.store.search(Query())
            shown = f"{caplog.text} {caught.value} {statistics} {server.config} {server.store!r}"
    assert "s3cr3t" not in shown


@pytest.mark.mongod
async def test_both_stores_follow_and_either_answers(tmp_path, mongod):
    for answering in ("sqlite", "mongo"):
        folder = tmp_path / answering
        uri = mongod.uri(f"storing_{answering}")
        async with local_server(folder, store=answering, mongo=uri) as server:
            await log(server, *range(20))
            await holds(server, 20)
            kinds = [one.kind for one in server.statistics().stores]
            assert kinds == (["sqlite", "mongo"] if answering == "sqlite" else ["mongo"])
            with trio.fail_after(20):
                while any(one.behind for one in server.statistics().stores):  # noqa: ASYNC110
                    await trio.sleep(0.02)
            assert {one.inserted for one in server.statistics().stores} == {21}  # and a note
