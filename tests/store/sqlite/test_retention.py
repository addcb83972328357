from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from hyperlog.errors import ConfigError
from hyperlog.store.policy import BucketPolicy, StorePolicy
from hyperlog.store.records import StoredRecord, record_of
from hyperlog.store.sqlite import DATABASE
from hyperlog.store.sqlite.writer import DatabaseWriter
from tests.store.population import BEGIN, SERVER, realistic_lines

END = BEGIN + 10_000 * 40  # ms, about when the last of 10,000 lines came


def records(count: int = 10_000, seed: int = 1) -> list[StoredRecord]:
    found = [record_of(line, source, SERVER) for source, line in realistic_lines(count, seed)]
    return [record for record in found if record is not None]


@pytest.fixture
def path(tmp_path):
    return tmp_path / DATABASE


@pytest.fixture
def writer_of(path):
    writers = []

    def opened(policy: StorePolicy, now: float = END / 1000) -> DatabaseWriter:
        writer = DatabaseWriter(path, policy, now=lambda: now)
        writer.open()
        writers.append(writer)
        return writer

    yield opened
    for writer in writers:
        writer.close()


def fill(writer: DatabaseWriter, kept: list[StoredRecord]) -> None:
    for start in range(0, len(kept), 1000):
        assert writer.insert(kept[start : start + 1000], []) == len(kept[start : start + 1000])


def tidy(writer: DatabaseWriter) -> None:
    while writer.tidy():
        pass


def assert_consistent(path, kept: list[StoredRecord]) -> None:
    """The database holds these records, and nothing else anywhere."""
    with closing(sqlite3.connect(path)) as db:
        bodies = [body for (body,) in db.execute("select body from bodies order by id")]
        assert bodies == [record.body for record in sorted(kept, key=lambda r: r.time)]
        assert db.execute("select count(*) from records").fetchone()[0] == len(kept)
        for table in ("minutes", "hours", "origins"):
            total = db.execute(f"select coalesce(sum(records), 0) from {table}").fetchone()[0]
            assert total == len(kept), table
            least = db.execute(f"select min(records) from {table}").fetchone()[0]
            assert least is None or least > 0, table
        size = db.execute("select coalesce(sum(bytes), 0) from origins").fetchone()[0]
        assert size == sum(len(record.body) for record in kept)
        named = {record.session for record in kept if record.session is not None}
        assert {name for (name,) in db.execute("select name from sessions")} - {""} == named
        words = "select count(*) from words where words match ?"
        for word in ("timeout", "payment", "create_user", '"cache session"'):
            phrase = word.strip('"')
            holding = db.execute(words, (f'"{phrase}"',)).fetchone()[0]
            expected = db.execute(
                "select count(*) from words w join records r on r.id = w.rowid where words match ?",
                (f'"{phrase}"',),
            ).fetchone()[0]
            assert holding == expected
        db.execute("insert into words (words) values ('integrity-check')")


def test_records_that_are_too_old_are_removed_with_all_that_is_kept_of_them(writer_of, path):
    all_of_them = records()
    writer = writer_of(StorePolicy(keep_age=100.0))
    fill(writer, all_of_them)
    tidy(writer)
    kept = [record for record in all_of_them if record.time >= END - 100_000]
    assert 0 < len(kept) < len(all_of_them) / 2
    assert_consistent(path, kept)
    assert writer.records == len(kept)


def test_each_bucket_keeps_the_newest_that_fit(writer_of, path):
    all_of_them = records()
    limit = 200_000
    writer = writer_of(StorePolicy(keep_bytes=limit))
    fill(writer, all_of_them)
    tidy(writer)
    kept = []
    for bucket in {record.bucket for record in all_of_them}:
        newest, size = [], 0
        for record in sorted(
            (record for record in all_of_them if record.bucket == bucket),
            key=lambda record: record.time,
        )[::-1]:
            size += len(record.body)
            if size > limit:
                break
            newest.append(record)
        kept += newest
    with closing(sqlite3.connect(path)) as db:
        held = {body for (body,) in db.execute("select body from bodies")}
        assert held == {record.body for record in kept}
        sizes = dict(db.execute("select bucket, sum(bytes) from origins group by bucket"))
    assert all(size <= limit for size in sizes.values())
    assert len(sizes) > 2


def test_a_bucket_can_have_a_policy_of_its_own(writer_of, path):
    all_of_them = records(2000)
    buckets = {"cerco": BucketPolicy(), "midas": BucketPolicy(keep_bytes=10_000)}
    writer = writer_of(StorePolicy(keep_age=0.001, buckets=buckets), now=END / 1000 + 1000)
    fill(writer, all_of_them)
    tidy(writer)
    with closing(sqlite3.connect(path)) as db:
        sizes = dict(db.execute("select bucket, sum(bytes) from origins group by bucket"))
    assert set(sizes) == {"cerco", "midas"}
    assert sizes["cerco"] == sum(len(r.body) for r in all_of_them if r.bucket == "cerco")
    assert 9000 < sizes["midas"] <= 10_000


def test_all_buckets_together_have_a_bound(writer_of, path):
    all_of_them = records(5000)
    writer = writer_of(StorePolicy(keep_total=500_000))
    fill(writer, all_of_them)
    tidy(writer)
    with closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("select sum(bytes) from origins").fetchone()
        assert 499_000 < size <= 500_000
        oldest = db.execute("select min(id) >> 20 from records").fetchone()[0]
    kept = [record for record in all_of_them if record.time >= oldest]
    assert abs(sum(len(record.body) for record in kept) - size) < 2000


def test_everything_can_go_and_come_again(writer_of, path):
    some = records(1000)
    writer = writer_of(StorePolicy(keep_age=1.0), now=END / 1000 + 1000)
    fill(writer, some)
    tidy(writer)
    assert_consistent(path, [])
    writer_of(StorePolicy()).insert(some, [])
    assert_consistent(path, some)


def test_the_file_gets_smaller_again(writer_of, path):
    writer = writer_of(StorePolicy(keep_age=10.0), now=(BEGIN + 20_000 * 40) / 1000)
    fill(writer, records(20_000))
    with closing(sqlite3.connect(path)) as db:
        before = db.execute("pragma page_count").fetchone()[0]
        tidy(writer)
        after = db.execute("pragma page_count").fetchone()[0]
        free = db.execute("pragma freelist_count").fetchone()[0]
    assert free <= 256
    assert after < before / 2


@pytest.mark.parametrize("limits", [{"keep_age": 0}, {"keep_bytes": -1}, {"keep_total": 0.0}])
def test_limits_are_above_zero(limits):
    with pytest.raises(ConfigError, match="above 0"):
        StorePolicy(**limits)
