from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
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


def parse(source: bytes, line: bytes) -> StoredRecord | None:
    try:
        number = msgspec.json.decode(line)["n"]
    except (msgspec.DecodeError, KeyError):
        return None
    name = source.hex()
    return StoredRecord(
        f"{name}-s-{number}", "", name, "", "", None, "s", number, 0, None, 20, "log", "", line
    )


def line(number: int, size: int = 10) -> bytes:
    return b'{"time":"2026-11-21T00:00:00.000Z","n":%d,"x":"%s"}' % (number, b"x" * size)


@pytest.fixture
def held():
    return Held()


@pytest.fixture
def follow(tmp_path, held):
    followers: list[LogFollower] = []

    def start() -> LogFollower:
        follower = LogFollower(tmp_path, held, parse)
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
