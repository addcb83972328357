"""hyperlog.sinks.folder: the table agrees with the disk; what goes and what stays."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from hyperlog.errors import LogQuotaReached
from hyperlog.sinks.files import FileSink
from hyperlog.sinks.folder import FilePolicy, LogFolder

A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))
NOW = 1_800_000_000.0
DAY = 86400


def put(folder, key: bytes, number: int | None, size: int, age: float = 0) -> None:
    path = folder / (f"{key.hex()}.log" + ("" if number is None else f".{number}"))
    path.write_bytes(b"x" * (size - 1) + b"\n")
    os.utime(path, (NOW - age, NOW - age))


def table(folder, **policy) -> LogFolder:
    found = LogFolder(folder, FilePolicy(**policy))
    found.rescan()
    return found


def names(folder) -> set[str]:
    return {path.name[:2] + path.name[64:] for path in folder.iterdir()}


def test_only_files_of_keys_are_counted(tmp_path):
    put(tmp_path, A, None, 10)
    put(tmp_path, A, 7, 100)
    put(tmp_path, B, 2, 1000)
    for name in ("server.log", f"{A.hex()}.log.gz", f"{A.hex()}.log.01", f"{'AB' * 32}.log"):
        (tmp_path / name).write_bytes(b"x" * 5)
    (tmp_path / f"{C.hex()}.log").symlink_to(tmp_path / "server.log")
    (tmp_path / f"{C.hex()}.log.1").mkdir()
    found = table(tmp_path)
    assert (found.size, found.keys) == (1110, 2)
    assert (found.size_of(A), found.size_of(B), found.size_of(C)) == (110, 1000, 0)
    assert found.next_number(A) == 8
    assert found.next_number(C) == 2


def test_a_folder_that_is_not_there_is_empty(tmp_path):
    assert table(tmp_path / "nothing").size == 0


def test_the_table_follows_what_the_sink_does(tmp_path):
    sink = FileSink(tmp_path, policy=FilePolicy(rotate_size=300))
    for n in range(50):
        sink.write((A, B, C)[n % 3], [b"%d" % n * 20], n)
        assert sink.table.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    followed = [sink.table.size, *map(sink.table.size_of, (A, B, C))]
    sink.table.rescan()
    assert followed == [sink.table.size, *map(sink.table.size_of, (A, B, C))]
    assert sink.rotations > 5
    sink.close()


def test_the_newest_rotated_file_comes_first_whoever_named_it(tmp_path):
    put(tmp_path, A, 3, 10, age=300)
    put(tmp_path, A, 4, 10, age=200)
    assert [path.name[-1] for path in table(tmp_path).rotated_paths(A)] == ["4", "3"]
    found = table(tmp_path)
    put(tmp_path, A, 1, 10, age=0)  # logrotate, after the table was read
    assert [path.name[-1] for path in found.rotated_paths(A)] == ["1", "4", "3"]
    found.rescan()
    assert [path.name[-1] for path in found.rotated_paths(A)] == ["1", "4", "3"]


def test_the_oldest_rotated_files_go_first_and_live_ones_stay(tmp_path):
    put(tmp_path, A, None, 500)
    for number in range(1, 6):
        put(tmp_path, A, number, 100, age=(10 - number) * DAY)
    found = table(tmp_path, keep_bytes=750)
    found.remove_old(NOW)
    assert names(tmp_path) == {"01.log", "01.log.4", "01.log.5"}
    assert (found.size, found.removed) == (700, 3)
    found = table(tmp_path, keep_bytes=1)
    found.remove_old(NOW)
    assert names(tmp_path) == {"01.log"}


def test_a_noisy_key_pushes_out_its_own_files(tmp_path):
    for number in range(1, 10):
        put(tmp_path, A, number, 1000, age=100 - number)
    put(tmp_path, B, 1, 100, age=DAY)
    put(tmp_path, C, None, 100, age=DAY)
    found = table(tmp_path, keep_bytes=3300)
    found.remove_old(NOW)
    assert names(tmp_path) == {"01.log.7", "01.log.8", "01.log.9", "02.log.1", "03.log"}


def test_files_are_removed_by_age_idle_live_ones_too(tmp_path):
    put(tmp_path, A, None, 10, age=1 * DAY)
    put(tmp_path, A, 1, 10, age=8 * DAY)
    put(tmp_path, A, 2, 10, age=6 * DAY)
    put(tmp_path, B, None, 10, age=8 * DAY)
    found = table(tmp_path, keep_age=7 * DAY)
    found.remove_old(NOW)
    assert names(tmp_path) == {"01.log", "01.log.2"}
    assert (found.size, found.keys) == (20, 1)


def test_an_idle_file_that_was_removed_is_begun_anew(tmp_path):
    sink = FileSink(tmp_path, policy=FilePolicy(keep_age=7 * DAY))
    sink.write(A, [b"{}"], 0)
    os.utime(sink.path(A), (0, 0))
    sink.tidy(time.time())
    assert not sink.path(A).exists()
    sink.write(A, [b"[]"], 0.1)  # the file is still open
    assert sink.path(A).read_bytes() == b"[]\n"
    sink.close()


@pytest.mark.parametrize(
    ("policy", "key", "text"),
    [
        ({"quota": 1000}, B, "its quota.*--quota"),
        ({"key_quota": 900}, A, "quota of a key.*--key-quota"),
        ({"max_keys": 2}, C, "files of 2 keys.*--max-keys"),
    ],
)
def test_a_quota_that_is_reached_is_told_with_what_to_do(tmp_path, policy, key, text):
    put(tmp_path, A, None, 400)
    put(tmp_path, A, 1, 500)
    put(tmp_path, B, None, 100)
    sink = FileSink(tmp_path, policy=FilePolicy(**policy))
    with pytest.raises(LogQuotaReached, match=text) as caught:
        sink.write(key, [b"{}"], 0)
    assert caught.value.lines_written == 0
    if "quota" not in policy:
        sink.write(B, [b"{}"], 0)  # the others go on
    (tmp_path / f"{A.hex()}.log.1").unlink()
    (tmp_path / f"{A.hex()}.log").unlink()
    sink.tidy(NOW)
    sink.write(key, [b"{}"], 0)
    sink.close()


def test_retention_and_quota_agree_on_a_folder_that_is_always_written(tmp_path):
    policy = FilePolicy(rotate_size=1000, keep_bytes=5000, quota=8000)
    sink = FileSink(tmp_path, policy=policy)
    for n in range(500):
        sink.write((A, B)[n % 5 == 0], [b"x" * 90], n)
        if n % 10 == 0:
            sink.tidy(time.time())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 7000
    sink.close()


def test_the_table_can_be_asked_while_the_writer_s_thread_changes_it(tmp_path):
    found = table(tmp_path)
    interval = sys.getswitchinterval()

    def change(first: int) -> None:
        for number in range(first, first + 5000):
            found.opened(number.to_bytes(32, "big"), 1, NOW)
            found.rotated(A, number, NOW)

    change(1)
    thread = threading.Thread(target=change, args=(5001,))
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        while thread.is_alive():
            assert found.files >= 0
            assert found.size_of(A) >= 0
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert found.files == 10_001 + 10_000
