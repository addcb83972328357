from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from hyperlog.errors import StoreUnavailable
from hyperlog.sinks.files import FileSink
from hyperlog.sinks.folder import FilePolicy
from hyperlog.store.follow import LogFollower, Position
from hyperlog.store.records import StoredRecord

ONE, TWO = bytes(32), b"\x01" * 32


class Held:
    """A destination in memory."""

    def __init__(self) -> None:
        self.records: list[StoredRecord] = []
        self.positions: dict[tuple[bytes, str], Position] = {}
        self.batches: list[int] = []
        self.fail: Callable[[], None] = lambda: None
        self.changed = threading.Condition()
        self.opened = self.closed = 0

    def open(self) -> list[Position]:
        self.fail()
        self.opened += 1
        return list(self.positions.values())

    def insert(self, records: Sequence[StoredRecord], positions: Sequence[Position]) -> int:
        self.fail()
        with self.changed:
            self.records += records
            self.positions |= {(one.source, one.file): one for one in positions}
            self.batches.append(len(records))
            self.changed.notify_all()
        return len(records)

    def forget(self, positions: Sequence[Position]) -> None:
        for one in positions:
            self.positions.pop((one.source, one.file), None)

    def tidy(self) -> bool:
        return False

    def close(self) -> None:
        self.closed += 1

    def bodies(self) -> list[bytes]:
        return [record.body for record in self.records]

    def wait(self, count: int) -> list[bytes]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.records) >= count, 10)
        return self.bodies()


def line(number: int, size: int = 10) -> bytes:
    text = (
        b'{"time":"2026-11-21T00:00:00.000Z","traceSessionId":"s","traceNumber":%d,"message":"%s"}'
    )
    return text % (number, b"x" * size)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def held():
    return Held()


@pytest.fixture
def follow(tmp_path, held):
    followers: list[LogFollower] = []

    def start() -> LogFollower:
        follower = LogFollower(tmp_path, held, "5e" * 32)
        followers.append(follower)
        follower.start()
        return follower

    yield start
    for follower in followers:
        assert follower.stop()


@pytest.fixture
def sink(tmp_path):
    with_rotation = FileSink(tmp_path, policy=FilePolicy(rotate_size=2000))
    yield with_rotation
    with_rotation.close()


def test_what_is_there_and_what_comes_is_held_once_and_in_order(tmp_path, held, follow, sink):
    sink.write(ONE, [line(number) for number in range(10)], 0.0)
    follower = follow()
    held.wait(10)
    more = [line(number) for number in range(10, 20)]
    sink.write(ONE, more, 0.0)
    follower.lines_written(ONE, more)
    assert held.wait(20) == [line(number) for number in range(20)]
    assert follower.statistics().inserted == 20


def test_rotated_files_are_read_whatever_their_numbers(tmp_path, held, follow, sink):
    for number in range(100):
        sink.write(ONE, [line(number)], 0.0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > 5
    follow()
    assert held.wait(100) == [line(number) for number in range(100)]


def test_files_that_are_renamed_while_they_are_read_lose_nothing(tmp_path, held, follow, sink):
    follower = follow()
    for number in range(200):
        sink.write(ONE, [line(number)], 0.0)
        follower.lines_written(ONE, [line(number)])
        if number % 50 == 0:
            held.wait(number)
    assert held.wait(200) == [line(number) for number in range(200)]
    assert follower.stop()
    again = follow()
    assert again.wait_opened(10)
    sink.write(ONE, [line(200)], 0.0)
    again.lines_written(ONE, [line(200)])
    wait_until(lambda: line(200) in held.bodies())
    # A rename at the moment of a look may have a file read again: destinations know the ids.
    assert list(dict.fromkeys(held.bodies())) == [line(number) for number in range(201)]


def test_an_unfinished_last_line_waits(tmp_path, held, follow):
    path = tmp_path / f"{ONE.hex()}.log"
    path.write_bytes(line(0) + b"\n" + line(1)[:20])
    follower = follow()
    assert held.wait(1) == [line(0)]
    assert follower.behind == 20
    with open(path, "ab") as file:
        file.write(line(1)[20:] + b"\n")
    assert held.wait(2) == [line(0), line(1)]
    wait_until(lambda: follower.behind == 0)


def test_torn_lines_and_rubbish_are_passed_over(tmp_path, held, follow):
    path = tmp_path / f"{ONE.hex()}.log"
    path.write_bytes(
        b"\n".join([line(0), line(1)[:30], b"\xff\x00rubbish", b"", b"[1]", line(2), b""])
    )
    follow()
    assert held.wait(2) == [line(0), line(2)]


def test_the_last_line_of_a_rotated_file_needs_no_newline(tmp_path, held, follow):
    path = tmp_path / f"{ONE.hex()}.log.1"
    path.write_bytes(line(0) + b"\n" + line(1))
    os.utime(path, (1, 1))
    follow()
    assert held.wait(2) == [line(0), line(1)]


def test_a_file_that_was_truncated_and_written_anew_is_read_from_its_beginning(
    tmp_path, held, follow
):
    path = tmp_path / f"{ONE.hex()}.log"
    path.write_bytes(b"".join(line(number) + b"\n" for number in range(5)))
    follow()
    held.wait(5)
    path.write_bytes(b"".join(line(number) + b"\n" for number in range(10, 30)))
    assert held.wait(25)[5:] == [line(number) for number in range(10, 30)]


def test_positions_of_files_that_have_gone_are_forgotten(tmp_path, held, follow, sink):
    sink.write(ONE, [line(0)], 0.0)
    sink.write(TWO, [line(0)], 0.0)
    follow()
    held.wait(2)
    assert len(held.positions) == 2
    sink.path(TWO).unlink()
    wait_until(lambda: len(held.positions) == 1)
    assert next(iter(held.positions))[0] == ONE


def test_a_position_holds_only_for_the_file_it_was_taken_of(tmp_path, held, follow):
    path = tmp_path / f"{ONE.hex()}.log"
    path.write_bytes(line(0) + b"\n" + line(1) + b"\n")
    follower = follow()
    held.wait(2)
    assert follower.stop()
    # The same first line, and other lines after it: a copy that was restored.
    path.write_bytes(line(0) + b"\n" + line(7) + b"\n" + line(8) + b"\n")
    follow()
    assert held.wait(5)[2:] == [line(0), line(7), line(8)]


def test_one_source_does_not_keep_others_waiting(tmp_path, held, follow):
    many = [line(number, 400) for number in range(20_000)]
    (tmp_path / f"{ONE.hex()}.log").write_bytes(b"\n".join(many) + b"\n")
    (tmp_path / f"{TWO.hex()}.log").write_bytes(line(0) + b"\n")
    follow()
    held.wait(20_001)
    assert len(held.batches) > 2
    first = held.records[: held.batches[0]]
    assert {record.source for record in first} == {ONE.hex(), TWO.hex()}
    assert [record.body for record in held.records if record.source == ONE.hex()] == many


def test_faults_are_told_waited_for_and_lose_nothing(tmp_path, held, follow, sink, caplog):
    broken = threading.Event()
    broken.set()

    def fail() -> None:
        if broken.is_set():
            raise StoreUnavailable("the disk is full")

    sink.write(ONE, [line(0)], 0.0)
    held.fail = fail
    with caplog.at_level(logging.WARNING):
        follower = follow()
        wait_until(lambda: follower.statistics().failures >= 2)
    assert follower.statistics().last_error == "the disk is full"
    assert follower.behind == len(line(0)) + 1
    assert caplog.text.count("the disk is full") == 1
    broken.clear()
    assert held.wait(1) == [line(0)]
    wait_until(lambda: follower.statistics().last_error is None)
    assert follower.behind == 0


def test_an_insert_that_failed_is_tried_again_from_where_the_destination_is(
    tmp_path, held, follow, sink
):
    sink.write(ONE, [line(number) for number in range(10)], 0.0)
    follower = follow()
    held.wait(10)
    failures = iter([True, False])

    def fail() -> None:
        if next(failures, False):
            raise OSError("once")

    held.fail = fail
    more = [line(number) for number in range(10, 20)]
    sink.write(ONE, more, 0.0)
    follower.lines_written(ONE, more)
    assert held.wait(20) == [line(number) for number in range(20)]
    assert held.opened == 2
    assert follower.statistics().failures == 1


def test_other_files_links_and_folders_are_left_alone(tmp_path, held, follow):
    (tmp_path / "notes.log").write_bytes(line(0) + b"\n")
    (tmp_path / f"{TWO.hex()}.log").symlink_to(tmp_path / "notes.log")
    (tmp_path / f"{'ab' * 32}.log").mkdir()
    os.mkfifo(tmp_path / f"{'cd' * 32}.log")
    (tmp_path / f"{ONE.hex()}.log").write_bytes(line(1) + b"\n")
    follower = follow()
    assert held.wait(1) == [line(1)]
    wait_until(lambda: follower.is_idle)
    assert held.bodies() == [line(1)]


def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path, held):
    follower = LogFollower(tmp_path / "later", held, "5e" * 32)
    follower.start()
    try:
        assert follower.wait_opened(10)
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / f"{ONE.hex()}.log").write_bytes(line(0) + b"\n")
        assert held.wait(1) == [line(0)]
    finally:
        assert follower.stop()


def test_a_line_beyond_all_bounds_is_passed_over(tmp_path, held, follow):
    path = tmp_path / f"{ONE.hex()}.log"
    path.write_bytes(line(0) + b"\n" + b"x" * (40 * 1024 * 1024) + b"\n" + line(1) + b"\n")
    follow()
    assert held.wait(2) == [line(0), line(1)]
