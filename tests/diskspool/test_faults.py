"""A spool whose disk is full, read-only, gone or forbidden: the memory takes over, nothing raises.

Where the tests run as root they mount small file systems, elsewhere they use what a user has: the
size limit of a process's files and the mode of a folder.
"""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyperlog.diskspool import SpooledSession, SpoolFolder
from hyperlog.diskspool import session as session_module
from tests.diskspool.test_session import crash, messages_of, read_all

KIB = 1024


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the sessions see; [0] can be moved."""
    now = [1000.0]
    monkeypatch.setattr(session_module.time, "monotonic", lambda: now[0])
    return now


def mount(*arguments: str) -> bool:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)):
        pytest.skip("needs to mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def make_read_only(disk: Path) -> None:
    assert mount("--bind", str(disk), str(disk))
    assert mount("-o", "remount,bind,ro", str(disk))


def make_writable(disk: Path) -> None:
    subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def numbered(session: SpooledSession, count: int, size: int = 400) -> None:
    for _ in range(0, count, 50):
        session.put(messages_of(session.next_number, 50, size))


def uncached(session: SpooledSession) -> None:
    """Whatever is on disk has to come from there."""
    while session._memory and session._memory_first < session._unsaved_from:
        session._memory_bytes -= len(session._memory.popleft()) + 48
        session._memory_first += 1


def test_a_write_that_stops_halfway_is_taken_back_and_repeated(tmp_path, clock):
    folder = SpoolFolder(tmp_path / "spool")
    session = folder.create("1")
    numbered(session, 100)
    with file_size_limit(50_000):  # in the middle of a record
        numbered(session, 100)
        assert session.fault is not None
        assert 100 <= session.unsaved <= 200 - 100
        numbered(session, 50)
        assert session.unsaved == 150
        assert list(read_all(session).values()) == messages_of(0, 250, 400)
    session.put(())
    assert session.unsaved == 150  # it is not tried all the time
    clock[0] += session_module.RETRY
    session.put(())
    assert session.fault is None
    assert session.unsaved == 0
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert list(read_all(adopted).values()) == messages_of(0, 250, 400)


def test_a_full_disk_costs_what_the_memory_cannot_hold(disk, clock):
    folder = SpoolFolder(disk / "spool", max_bytes=64 * KIB * KIB, max_memory_bytes=256 * KIB)
    session = folder.create("1")
    numbered(session, 5000)
    assert session.fault is not None
    assert session.memory_bytes <= 256 * KIB
    uncached(session)
    found = read_all(session)
    everything = messages_of(0, 5000, 400)
    assert all(message == everything[number] for number, message in found.items())
    missing = set(range(5000)) - set(found)
    assert missing == set(range(min(missing), max(missing) + 1))
    assert session.hole_reason(min(missing)) == session.hole_reason(max(missing)) == "buffer-full"
    # The server takes half of what is on disk: there is room again.
    half = min(missing) // 2
    session.release_through(half)
    clock[0] += session_module.RETRY
    session.put(messages_of(5000, 1, 400))
    # One segment of 4 MiB is all there is, and it goes on only when all of it is released.
    session.release_through(min(missing) - 1)
    clock[0] += session_module.RETRY
    session.put(messages_of(5001, 1, 400))
    assert session.fault is None
    assert session.unsaved == 0
    found = read_all(session)
    assert list(found) == list(range(session.first_number, 5002))
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert read_all(adopted) == found
    assert adopted.hole_reason(session.first_number - 1) == "buffer-full"


def test_a_disk_that_is_full_from_the_start_is_only_memory(disk):
    (disk / "ballast").write_bytes(bytes(900 * KIB))
    with open(disk / "more", "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        file.writelines(itertools.repeat(bytes(4096)))
    session = SpoolFolder(disk / "spool").create("1")
    numbered(session, 500)
    assert session.fault is not None
    assert list(read_all(session).values()) == messages_of(0, 500, 400)
    session.release_through(499)
    session.close()


def test_a_disk_that_becomes_read_only_takes_nothing_and_gives_what_it_has(disk, clock):
    folder = SpoolFolder(disk / "spool")
    session = folder.create("1")
    numbered(session, 100)
    session._files.close_descriptors()  # what is open for writing would stay so
    make_read_only(disk)
    numbered(session, 100)
    assert session.fault is not None
    uncached(session)
    assert list(read_all(session).values()) == messages_of(0, 200, 400)
    session.release_through(20)
    assert folder.orphans() == []
    make_writable(disk)
    clock[0] += session_module.RETRY
    numbered(session, 50)
    assert (session.fault, session.unsaved) == (None, 0)
    uncached(session)
    assert sorted(read_all(session)) == list(range(21, 250))
    session.close()


def test_orphans_on_a_read_only_disk_are_left_for_later(disk):
    folder = SpoolFolder(disk / "spool")
    session = folder.create("1")
    numbered(session, 50)
    session.close()
    make_read_only(disk)
    assert folder.orphans() == ["1"]
    assert folder.adopt("1") is None
    make_writable(disk)
    adopted = folder.adopt("1")
    assert adopted is not None
    adopted.close()


def test_a_folder_that_vanishes_is_made_again(tmp_path, clock):
    folder = SpoolFolder(tmp_path / "spool")
    session = folder.create("1")
    numbered(session, 100)
    shutil.rmtree(folder.path)
    numbered(session, 100)
    assert session.fault is not None
    assert list(read_all(session).values()) == messages_of(0, 200, 400)
    clock[0] += session_module.RETRY
    numbered(session, 50)
    assert (session.fault, session.unsaved) == (None, 0)
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert max(read_all(adopted)) == 249


def test_a_place_where_nothing_can_be_made_is_only_memory(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    folder = SpoolFolder(tmp_path / "file" / "spool", max_memory_bytes=64 * KIB)
    session = folder.create("1")
    numbered(session, 1000)
    assert session.fault is not None
    assert session.memory_bytes <= 64 * KIB
    assert session.hole_reason(0) == "buffer-full"
    assert folder.orphans() == []
    assert folder.adopt("1") is None
    session.release_through(999)
    session.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_folder_that_forbids_writing_is_only_memory(tmp_path):
    (tmp_path / "spool").mkdir(mode=0o500)
    session = SpoolFolder(tmp_path / "spool").create("1")
    numbered(session, 100)
    assert isinstance(session.fault, PermissionError)
    assert list(read_all(session).values()) == messages_of(0, 100, 400)
    session.close()


def test_records_that_cannot_be_read_now_are_waited_for_but_not_for_ever(tmp_path, clock):
    folder = SpoolFolder(tmp_path / "spool")
    session = folder.create("1")
    numbered(session, 100)
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    adopted.put(messages_of(100, 1, 400))
    adopted._files._close_reader()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))  # none is left to open a file
    try:
        assert adopted.read(0, 1000) == (0, [])
        clock[0] += session_module.PATIENCE
        assert adopted.read(0, 1000) == (100, messages_of(100, 1, 400))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert adopted.read(0, 1) == (0, messages_of(0, 1, 400))
    adopted.close()


def test_a_session_that_another_process_has_taken_over_waits_in_memory(tmp_path):
    """Somebody removed the lock file: the id is not written by two at once."""
    folder = SpoolFolder(tmp_path / "spool", max_bytes=64 * KIB)
    session = folder.create("1")
    numbered(session, 50, 10)
    os.unlink(tmp_path / "spool" / "1.lock")
    program = (
        "import sys\n"
        "from hyperlog.diskspool import SpoolFolder\n"
        "session = SpoolFolder(sys.argv[1]).adopt('1')\n"
        "print(session.next_number, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, folder.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "50\n"
        numbered(session, 100)  # begins another segment
        assert session.fault is not None
        assert session.unsaved == 100
        session.close()
        other.communicate()
