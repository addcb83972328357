"""What the mirror writes into MongoDB, and how often."""

from __future__ import annotations

import hashlib

import pytest
import trio
from bson.decimal128 import Decimal128

from hyperlog.errors import QueryError
from hyperlog.records import instance_source
from hyperlog.store.language import parse
from hyperlog.store.mongo import branches, mirror, reading
from hyperlog.store.mongo.documents import document_of
from hyperlog.store.mongo.names import positions_name, records_name
from hyperlog.store.query import Compare, Query
from tests.store.contract import mixed_lines, records_of
from tests.store.mongo.following import LogFiles, database_name, drop, until
from tests.store.population import SERVER, realistic_lines

pytestmark = pytest.mark.mongod

OTHER = hashlib.sha256(b"another server").hexdigest()


@pytest.fixture
def database(mongod):
    name = database_name()
    yield name
    drop(mongod, name)


async def test_servers_that_share_a_database_answer_for_each_other(mongod, database, tmp_path):
    uri = mongod.uri(database)
    first = LogFiles(tmp_path / "first", uri)
    second = LogFiles(tmp_path / "second", uri, server=OTHER)
    lines = list(realistic_lines(600))
    async with first.store, second.store:
        await first.add(lines[::2])
        await second.add(lines[1::2])
        for store in (first.store, second.store):
            assert await store.count(Query()) == len(records_of(lines))
            pages, cursor = [], None
            while True:
                page = await store.search(Query(), limit=100, cursor=cursor)
                pages += page.records
                cursor = page.cursor
                if cursor is None:
                    break
            assert [r.time for r in pages] == sorted((r.time for r in pages), reverse=True)
            assert len({r.id for r in pages}) == len(pages) == len(records_of(lines))
            mine = Query(Compare("server", "=", OTHER))
            assert await store.count(mine) == len(records_of(lines[1::2]))
    with mongod.client() as client:
        names = client[database].list_collection_names()
    assert {positions_name(SERVER), positions_name(OTHER)} <= set(names)


async def test_a_store_goes_on_where_it_was(mongod, database, tmp_path):
    lines = list(realistic_lines(400))
    files = LogFiles(tmp_path / "logs", mongod.uri(database))
    async with files.store:
        await files.add(lines[:200])
    again = LogFiles(tmp_path / "logs", mongod.uri(database))
    again.append(lines[200:])
    async with again.store:
        await again.wait()
        assert again.store.statistics().inserted == len(records_of(lines[200:]))
        assert await again.store.count(Query()) == len(records_of(lines))


async def test_without_positions_all_comes_again_and_nothing_twice(mongod, database, tmp_path):
    lines = mixed_lines(1, 500)
    files = LogFiles(tmp_path / "logs", mongod.uri(database))
    async with files.store:
        await files.add(lines)

    def sizes(client):
        found = client[database]
        names = found.list_collection_names()
        return {name: found[name].count_documents({}) for name in names}

    with mongod.client() as client:
        before = sizes(client)
        client[database].drop_collection(positions_name(SERVER))
        again = LogFiles(tmp_path / "logs", mongod.uri(database))
        async with again.store:
            await again.wait()
            assert again.store.statistics().inserted == 0
        assert sizes(client) == before


async def test_records_expire_if_asked_for(mongod, database, tmp_path):
    lines = list(realistic_lines(50))
    now = b'{"time":"2100-01-01T00:00:00.000Z","note":"still there"}'
    lines.append((bytes(32), now))
    files = LogFiles(tmp_path / "logs", mongod.uri(database))
    async with files.store:
        await files.add(lines)
        assert await files.store.count(Query()) == len(records_of(lines))
    with mongod.client() as client:
        records = client[database]["records.default"]
        assert "received" not in records.index_information()
        brief = LogFiles(tmp_path / "logs", mongod.uri(database), ttl=3600 * 24 * 365 * 50)
        async with brief.store:
            await brief.add([(bytes(32), now)])
        assert records.index_information()["received"]["expireAfterSeconds"] > 1e9
        brief = LogFiles(tmp_path / "logs", mongod.uri(database), ttl=1)
        async with brief.store:
            await brief.add([(bytes(32), now.replace(b"still", b"yes, "))])
            old = Query(until=3_000_000_000_000)
            with trio.fail_after(20):
                while True:
                    if not await brief.store.count(old):
                        break
                    await trio.sleep(0.05)
            assert await brief.store.count(Query()) == 2
            assert await brief.store.count(Query(parse("yes"))) == 1


async def test_any_name_is_a_bucket_of_its_own(mongod, database, tmp_path):
    names = [
        "$cmd",
        "a.b",
        "a",
        "A",
        "system.users",
        "é" * 64,
        "\U0001f600" * 64,
        "%24cmd",
        "~",
        " ",
    ]
    names += ["\U0001f600" * 63 + "!", "..", "/", "records.a", "東京"]
    lines = []
    for name in names:
        line = f'{{"time":"2026-11-20T00:00:00.000Z","app":"{name}","instance":"i","note":"x"}}'
        lines.append((instance_source(name, "i"), line.encode()))
    files = LogFiles(tmp_path / "logs", mongod.uri(database))
    async with files.store:
        await files.add(lines)
        top = await files.store.top(Query(), "bucket", limit=100)
        assert dict(top.values) == dict.fromkeys(names, 1)
        for name in names:
            found = await files.store.search(Query(Compare("bucket", "=", name)))
            assert [record.bucket for record in found.records] == [name]


async def test_so_many_buckets_that_not_all_can_be_asked_are_asked_one_by_one(
    mongod, database, tmp_path, monkeypatch
):
    monkeypatch.setattr(branches, "MAX_BUCKETS", 3)
    names = [f"app {number}" for number in range(4)]
    at = '"time":"2026-11-20T00:00:00.000Z"'
    line = f'{{{at},"app":"%s","instance":"i","note":"about %s"}}'
    files = LogFiles(tmp_path / "logs", mongod.uri(database))
    async with files.store:
        await files.add([(bytes(32), (line % (name, name)).encode()) for name in names[:2]])
        with mongod.client() as client:
            for name in names[2:]:
                client[database].create_collection(records_name(name))
        with pytest.raises(QueryError, match="name some, like bucket:"):
            await files.store.search(Query(parse("about")))
        for text in (
            'bucket:"app 1"',
            'bucket:"app 1" about',
            '(bucket:"app 1" OR bucket:x) about',
        ):
            [found] = (await files.store.search(Query(parse(text)))).records
            assert await files.store.get(found.id) == found
            assert await files.store.count(Query(parse(text))) == 1
        assert {use.bucket for use in await files.store.buckets()} == set(names[:2])


async def test_blocks_of_single_records_are_not_all_named_in_one_question(
    mongod, database, tmp_path, monkeypatch
):
    monkeypatch.setattr(mirror, "BLOCK", 1)
    monkeypatch.setattr(reading, "MAX_BLOCKS", 3)
    named = []

    def ordered(reader, branch, *arguments):
        named.append(len(branch.terms["$and"][-1]["block"]["$in"]))
        return ask(reader, branch, *arguments)

    ask = reading.Reader._ordered
    monkeypatch.setattr(reading.Reader, "_ordered", ordered)
    at = '"time":"2026-11-20T00:00:00.%03dZ"'
    line = f'{{{at},"app":"a","instance":"i","note":"about %d"}}'
    files = LogFiles(tmp_path / "logs", mongod.uri(database))
    async with files.store:
        await files.add([(bytes(32), (line % (n, n)).encode()) for n in range(10)])
        found = (await files.store.search(Query(parse("about")))).records
        assert [one.time % 1000 for one in found] == list(range(9, -1, -1))
        assert named == [3, 3, 3, 1]
        page = await files.store.search(Query(parse("about")), limit=2, order="oldest")
        assert [one.time % 1000 for one in page.records] == [0, 1]
        assert named == [3, 3, 3, 1, 3]


async def test_lines_of_megabytes_are_held_and_found(mongod, database, tmp_path):
    source = bytes(32)
    head = b'{"time":"2026-11-20T00:00:00.000Z","traceSessionId":"1","traceNumber":%d,"message":"'
    lines = [
        (source, head % 1 + b"needle " + b"hay " * 700_000 + b'"}'),
        (source, head % 2 + "needle ﷺ ".encode() + "ﷺ ".encode() * 200_000 + b'"}'),
        (source, head % 3 + b'no hay"}'),
    ]
    files = LogFiles(tmp_path / "logs", mongod.uri(database))
    async with files.store:
        await files.add(lines)
        found = await files.store.search(Query(parse('"needle hay" OR "no hay"')))
        assert sorted(record.number for record in found.records) == [1, 3]
        assert {record.body for record in found.records} == {lines[0][1], lines[2][1]}
        assert await files.store.count(Query(parse("needle"))) == 2


async def test_a_record_that_bson_cannot_hold_is_in_nobodys_way(
    mongod, database, tmp_path, monkeypatch, caplog
):
    def document_with_one_unfit(record, *arguments):
        document = document_of(record, *arguments)
        return document | {"unfit": 2**64} if record.number == 7 else document

    monkeypatch.setattr("hyperlog.store.mongo.mirror.document_of", document_with_one_unfit)
    line = (
        b'{"time":"2026-11-20T00:00:00.000Z","traceSessionId":"1","traceNumber":%d,"message":"m"}'
    )
    files = LogFiles(tmp_path / "logs", mongod.uri(database))
    async with files.store:
        await files.add([(bytes(32), line % number) for number in range(20)])
        assert await files.store.count(Query()) == 19
        assert files.store.statistics().last_error is None
    assert "records that MongoDB cannot hold: 1" in caplog.text


async def test_what_others_put_there_is_left_alone(mongod, database, tmp_path):
    with mongod.client() as client:
        client[database]["settings"].insert_one({"_id": 1, "value": Decimal128("1.5")})
        files = LogFiles(tmp_path / "logs", mongod.uri(database))
        async with files.store:
            await files.add(list(realistic_lines(20)))
            await until(lambda: files.store.statistics().records == 20)
            assert await files.store.count(Query()) == 20
        assert client[database]["settings"].find_one()["value"] == Decimal128("1.5")


async def test_half_a_surrogate_pair_cannot_be_asked_for(mongod, database, tmp_path):
    files = LogFiles(tmp_path / "logs", mongod.uri(database))
    async with files.store:
        await files.add(list(realistic_lines(20)))
        for where in (Compare("props.x", "=", "\ud800"), Compare("\ud800", "=", 1)):
            with pytest.raises(QueryError):
                await files.store.search(Query(where))
        with pytest.raises(QueryError):
            await files.store.get("\ud800")
        assert await files.store.count(Query(Compare("props.x", "<", 2**70))) == 0
