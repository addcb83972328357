import os
import sqlite3
import threading
import time
from contextlib import contextmanager

import pytest

from hyperlog.errors import ConfigError, KeyFileError
from hyperlog.registry import Registry


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path / "data")
    yield registry
    registry.close()


def add(connection, kid):
    connection.execute("INSERT INTO secret VALUES (?, ?, 0)", (kid, b"s"))


def kids(registry):
    return [row["kid"] for row in registry.read("SELECT kid FROM secret ORDER BY kid")]


@pytest.mark.skipif(os.name != "posix", reason="mode bits tell nothing here")
def test_folder_and_file_are_for_their_owner_alone(tmp_path, registry):
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert registry.path.stat().st_mode & 0o777 == 0o600


def test_a_failing_block_changes_nothing(registry):
    with pytest.raises(KeyFileError), registry.transaction() as connection:
        [add(connection, kid) for kid in ("a", "a")]
    assert kids(registry) == []
    with registry.transaction() as connection:
        add(connection, "b")
    assert kids(registry) == ["b"]


def test_a_commit_that_a_reader_is_in_the_way_of_leaves_nothing_behind(tmp_path):
    registry = Registry(tmp_path, patience=0.05)
    reader = sqlite3.connect(registry.path, isolation_level=None)
    with registry.transaction() as connection:
        add(connection, "before")
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM secret").fetchone() == (1,)
    with pytest.raises(KeyFileError, match="another process"), registry.transaction() as connection:
        add(connection, "in the way")
    reader.execute("COMMIT")
    with registry.transaction() as connection:
        add(connection, "after")
    assert kids(registry) == ["after", "before"]
    reader.close()
    registry.close()


def test_a_full_disk_is_told_and_nothing_is_changed(registry):
    with registry.transaction() as connection:
        add(connection, "before")
    pages = registry.read("PRAGMA page_count")[0][0]
    registry.read(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(KeyFileError, match="disk is full"), registry.transaction() as connection:
        connection.executemany(
            "INSERT INTO secret VALUES (?, ?, 0)", [(f"{n}", b"s" * 500) for n in range(100)]
        )
    registry.read("PRAGMA max_page_count = 100000")
    with registry.transaction() as connection:
        add(connection, "after")
    assert kids(registry) == ["after", "before"]


def test_what_others_change_is_noticed_once(tmp_path, registry):
    other = Registry(tmp_path / "data")
    try:
        assert not registry.changed()
        with other.transaction() as connection:
            add(connection, "a")
        assert registry.changed()
        assert not registry.changed()
        assert kids(registry) == ["a"]
    finally:
        other.close()


def test_a_file_put_in_its_place_is_noticed(tmp_path, registry):
    other = Registry(tmp_path / "other")
    with other.transaction() as connection:
        add(connection, "z")
    other.close()
    other.path.rename(registry.path)
    assert registry.changed()
    assert kids(registry) == ["z"]


def test_without_create_nothing_is_made(tmp_path):
    with pytest.raises(KeyFileError, match="does not exist"):
        Registry(tmp_path / "nowhere", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_told(tmp_path):
    path, content = (
        tmp_path / "registry.sqlite",
        b"no database at all, but long enough to be one" * 9,
    )
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="backup"):
        Registry(tmp_path)
    assert path.read_bytes() == content


def test_a_later_version_is_left_alone(tmp_path, registry):
    registry.close()
    connection = sqlite3.connect(registry.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="version 99"):
        Registry(tmp_path / "data")


@pytest.mark.skipif(os.name != "posix", reason="links and modes")
def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "registry.sqlite").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError):
        Registry(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="cannot open"):
        Registry(tmp_path / "file" / "data")


@contextmanager
def writing(registry):
    """Another process in the midst of a transaction."""
    connection = sqlite3.connect(registry.path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        connection.close()


def test_a_server_does_not_wait_long_for_others_that_write(tmp_path, registry):
    served = Registry(tmp_path / "data", patience=0.1)
    try:
        with writing(registry):
            begin = time.monotonic()
            with pytest.raises(KeyFileError, match="try again"):
                kids(served)
            with pytest.raises(KeyFileError, match="try again"), served.transaction():
                pass
            assert time.monotonic() - begin < 2
        with served.transaction() as connection:
            add(connection, "a")
    finally:
        served.close()


def test_a_command_waits_for_others_that_write(tmp_path):
    opened = threading.Event()
    found = []

    def ask():
        registry = Registry(tmp_path)
        opened.set()
        held.wait()
        found.append(kids(registry))
        registry.close()

    held = threading.Event()
    command = threading.Thread(target=ask)
    command.start()
    opened.wait()
    other = sqlite3.connect(tmp_path / "registry.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    add(other, "a")
    held.set()
    command.join(0.3)
    assert command.is_alive()
    other.execute("COMMIT")
    other.close()
    command.join()
    assert found == [["a"]]


def test_what_could_not_be_read_is_noticed_again(tmp_path, registry):
    served = Registry(tmp_path / "data", patience=0.01)
    try:
        with registry.transaction() as connection:
            add(connection, "a")
        assert served.changed()
        with writing(registry), pytest.raises(KeyFileError):
            kids(served)
        assert served.changed()
        assert kids(served) == ["a"]
        assert not served.changed()
    finally:
        served.close()


def test_many_that_start_together_share_one_registry(tmp_path):
    failures = []

    def start(number):
        try:
            registry = Registry(tmp_path / "data")
            with registry.transaction() as connection:
                add(connection, f"{number:02}")
            registry.close()
        except Exception as err:
            failures.append(err)

    threads = [threading.Thread(target=start, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    registry = Registry(tmp_path / "data")
    assert len(kids(registry)) == 12
    registry.close()
