from __future__ import annotations

import sqlite3
import stat

import pytest

from hyperlog.errors import StoreError, StoreUnavailable
from hyperlog.store.follow import Position
from hyperlog.store.policy import StorePolicy
from hyperlog.store.records import record_of
from hyperlog.store.sqlite import schema
from hyperlog.store.sqlite.schema import check_library, connect_reader, connect_writer
from hyperlog.store.sqlite.writer import DatabaseWriter
from tests.store.population import SERVER, realistic_lines

POSITION = Position(bytes(32), "00" * 16, 7, 42)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.sqlite"


@pytest.fixture
def writer(path):
    opened = DatabaseWriter(path, StorePolicy())
    yield opened
    opened.close()


def test_sqlite_that_is_too_old_is_told(monkeypatch):
    check_library()
    monkeypatch.setattr(schema, "MIN_LIBRARY", (99, 0, 0))
    with pytest.raises(StoreError, match=r"needs SQLite 99\.0\.0, this Python has"):
        check_library()


def test_only_the_owner_can_read_the_database(path):
    connect_writer(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_positions_come_back(writer):
    assert writer.open() == []
    assert writer.insert([], [POSITION]) == 0
    later = Position(POSITION.source, POSITION.file, 9, 43)
    writer.insert([], [later])
    writer.close()
    assert writer.open() == [later]
    writer.forget([later])
    assert writer.open() == []


@pytest.mark.parametrize("pragma", ["user_version = 99", "application_id = 1"])
def test_a_database_of_another_version_or_program_is_put_aside(writer, path, pragma, caplog):
    writer.open()
    writer.insert([], [POSITION])
    writer.close()
    with sqlite3.connect(path) as other:
        other.execute(f"pragma {pragma}")
    other.close()
    with pytest.raises(sqlite3.DatabaseError, match="no store of version"):
        connect_reader(path)
    assert writer.open() == []
    assert path.with_name("store.sqlite.damaged").exists()
    assert "made again from the log files" in caplog.text


def test_a_folder_in_its_place_is_told_and_left_alone(writer, path):
    path.mkdir()
    with pytest.raises(StoreUnavailable, match=r"store\.sqlite"):
        writer.open()
    assert path.is_dir()


def test_records_and_positions_are_held_together_or_not_at_all(writer, path):
    found = [record_of(line, source, SERVER) for source, line in realistic_lines(20)]
    records = [record for record in found if record is not None]
    writer.open()
    with sqlite3.connect(path) as other:
        other.execute(
            "create trigger no before insert on positions begin select raise(abort, 'no'); end"
        )
    other.close()
    with pytest.raises(StoreUnavailable, match="no"):
        writer.insert(records, [POSITION])
    with sqlite3.connect(path) as other:
        assert other.execute("select count(*) from records").fetchone() == (0,)
        assert other.execute("select count(*) from sessions").fetchone() == (0,)
        other.execute("drop trigger no")
    other.close()
    assert writer.insert(records, [POSITION]) == len(records)
    assert writer.insert(records, [POSITION]) == 0
    assert writer.insert(records[::-1], []) == 0
