"""hyperlog.diskspool.folder: sessions of many processes, found again, kept within one limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperlog.diskspool import SpoolFolder
from tests.diskspool.test_session import crash, messages_of, read_all

MIB = 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path / "spool")


def leave(folder: SpoolFolder, session_id: str, count: int, size: int = 100) -> None:
    session = folder.create(session_id)
    session.put(messages_of(0, count, size))
    session.close()


def age(folder: SpoolFolder, session_id: str, seconds: int) -> None:
    """Have a session's files be older by as much."""
    for path in Path(folder.path, session_id).iterdir():
        written_at = path.stat().st_mtime - seconds
        os.utime(path, (written_at, written_at))


def test_orphans_come_oldest_first_and_without_own_sessions(folder):
    for number, session_id in enumerate(["30", "10", "20"]):
        leave(folder, session_id, 3)
        age(folder, session_id, 100 - number)
    own = folder.create("5")
    own.put(messages_of(0, 1))
    assert folder.orphans() == ["30", "10", "20"]
    assert folder.adopt("5") is None
    adopted = folder.adopt("10")
    assert adopted is not None
    assert folder.orphans() == ["30", "20"]
    assert folder.adopt("10") is None
    adopted.close()
    assert sorted(folder.orphans()) == ["10", "20", "30"]
    own.close()


def test_there_may_be_no_folder(folder):
    assert folder.orphans() == []
    assert folder.adopt("1") is None
    assert folder.usage() == 0
    assert not os.path.exists(folder.path)


@pytest.mark.parametrize("session_id", ["", "x", "../1", "1/2", "1" * 65, "１"])
def test_a_session_id_is_digits(folder, session_id):
    with pytest.raises(ValueError, match="decimal digits"):
        folder.create(session_id)


def test_a_limit_has_a_least_value(tmp_path):
    with pytest.raises(ValueError, match="at least"):
        SpoolFolder(tmp_path, max_bytes=1000)


def test_foreign_files_are_left_alone(folder):
    leave(folder, "1", 3)
    place = Path(folder.path)
    (place / "notes.txt").write_text("mine")
    (place / "2").mkdir()
    (place / "2" / "00000000000000000000.seg2").write_text("of a later version")
    (place / "abc").mkdir()
    (place / "3").write_text("a file, no folder")
    (place / "1" / "extra").write_text("mine")
    assert set(folder.orphans()) == {"1", "2"}
    assert folder.adopt("2") is None
    assert folder.adopt("3") is None
    adopted = folder.adopt("1")
    assert adopted is not None
    adopted.release_through(2)
    left = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert left >= {"notes.txt", "2/00000000000000000000.seg2", "3", "1/extra"}
    assert not [name for name in left if name.endswith(".seg")]


def test_a_lock_file_without_a_session_is_swept_up(folder):
    leave(folder, "1", 1)
    Path(folder.path, "77.lock").touch()
    Path(folder.path, "77.lock.txt").touch()
    folder.orphans()
    assert sorted(os.listdir(folder.path)) == ["1", "1.lock", "77.lock.txt"]


def test_lock_files_that_cannot_be_opened_hide_no_session(folder):
    # A directory instead of a file of another user's: to root all files can be opened.
    for number in range(100, 150):
        Path(folder.path, f"{number}.lock").mkdir(parents=True)
    for number in range(10):
        leave(folder, str(number), 1)
    for number in range(150, 200):
        Path(folder.path, f"{number}.lock").mkdir()
    assert sorted(folder.orphans()) == [str(number) for number in range(10)]


def test_a_session_that_cannot_be_read_when_room_is_made_is_left_whole(tmp_path):
    folder = SpoolFolder(tmp_path, max_bytes=MIB)
    leave(folder, "1", 100, 400)
    age(folder, "1", 1000)
    segment = tmp_path / "1" / "00000000000000000000.seg"
    moved = segment.rename(tmp_path / "elsewhere")
    segment.symlink_to(moved)  # which is not followed: as good as a disk that does not read
    session = folder.create("2")
    for start in range(0, 3000, 100):
        session.put(messages_of(start, 100, 400))
    assert session.fault is None
    assert folder.usage() <= MIB
    session.close()
    segment.unlink()
    moved.rename(segment)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert len(read_all(adopted)) == 100
    adopted.close()


def test_a_session_of_somebody_else_does_not_keep_room_from_being_made(tmp_path):
    folder = SpoolFolder(tmp_path, max_bytes=MIB)
    session = folder.create("1")
    for start in range(0, 500, 100):
        session.put(messages_of(start, 100, 400))
    session.close()
    age(folder, "1", 1000)
    (tmp_path / "1" / "lost").mkdir()  # what is lost there cannot be said
    session = folder.create("2")
    for start in range(0, 3000, 100):
        session.put(messages_of(start, 100, 400))
    assert session.fault is None
    assert folder.usage() <= MIB
    session.close()
    (tmp_path / "1" / "lost").rmdir()
    adopted = folder.adopt("1")
    assert adopted is not None
    assert len(read_all(adopted)) == 500
    adopted.close()


def test_the_oldest_records_of_the_session_give_way_in_whole_segments(tmp_path):
    folder = SpoolFolder(tmp_path, max_bytes=MIB)
    session = folder.create("1")
    for start in range(0, 8000, 100):
        session.put(messages_of(start, 100, 400))
        assert folder.usage() <= MIB
    assert session.first_number > 0
    found = read_all(session)
    assert found == dict(enumerate(messages_of(0, 8000, 400)[session.first_number :], min(found)))
    assert 3 / 4 * MIB < sum(map(len, found.values())) <= MIB
    assert session.hole_reason(0) == "spool-full"
    assert session.hole_reason(session.first_number - 1) == "spool-full"
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    # Some of it was on its way out, and still in memory.
    kept = adopted.first_number
    assert read_all(adopted) == {n: message for n, message in found.items() if n >= kept}
    assert adopted.released_through == -1
    assert adopted.hole_reason(kept - 1) == "spool-full"


def test_older_sessions_give_way_first_and_tell_what_they_had(tmp_path):
    folder = SpoolFolder(tmp_path, max_bytes=MIB)
    leave(folder, "1", 500, 400)
    leave(folder, "2", 500, 400)
    age(folder, "1", 1000)
    age(folder, "2", 500)
    session = folder.create("3")
    for start in range(0, 2000, 100):
        session.put(messages_of(start, 100, 400))
    assert folder.usage() <= MIB
    assert session.first_number == 0
    first = folder.adopt("1")
    assert first is not None
    assert (first.first_number, first.next_number) == (500, 500)
    assert first.read(0, 1000) == (500, [])
    assert first.hole_reason(0) == first.hole_reason(499) == "spool-full"
    first.release_through(499)
    second = folder.adopt("2")
    assert second is not None
    assert second.next_number == 500
    assert 0 < second.first_number < 500
    assert second.hole_reason(second.first_number - 1) == "spool-full"
    second.close()
    session.close()


def test_an_owner_notices_what_another_process_removed(tmp_path):
    folder = SpoolFolder(tmp_path, max_bytes=MIB)
    mine = folder.create("1")
    for start in range(0, 1000, 100):
        mine.put(messages_of(start, 100, 400))
    program = (
        "import sys\n"
        "from hyperlog.diskspool import SpoolFolder\n"
        "session = SpoolFolder(sys.argv[1], max_bytes=2**20).create('2')\n"
        "for n in range(26): session.put([b'x' * 400] * 100)\n"
        "assert session.fault is None\n"
        "print(session.first_number)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder.path], capture_output=True, text=True, check=True
    )
    assert folder.usage() <= MIB
    mine._memory.clear()
    mine._memory_bytes, mine._memory_first = 0, mine.next_number
    found = read_all(mine)
    assert 0 < len(found) < 1000  # the last segment is its owner's
    assert max(found) == 999
    assert mine.hole_reason(0) == "spool-full"
    assert mine.hole_reason(min(found) - 1) == "spool-full"
    assert int(done.stdout) > 0  # what is left was not enough
    mine.put(messages_of(1000, 1))
    assert mine.fault is None
    mine.close()


def test_a_damaged_segment_is_a_hole_and_a_fresh_start_says_so(tmp_path):
    folder = SpoolFolder(tmp_path, max_bytes=MIB)
    session = folder.create("1")
    for start in range(0, 1000, 100):
        session.put(messages_of(start, 100, 400))
    crash(session)
    segments = sorted(Path(tmp_path, "1").glob("*.seg"))
    segments[0].write_bytes(b"\xff" * segments[0].stat().st_size)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert adopted.first_number == int(segments[1].stem)
    assert adopted.released_through == -1
    assert adopted.hole_reason(0) == "spool-damaged"
    assert list(read_all(adopted).values()) == messages_of(0, 1000, 400)[adopted.first_number :]


@pytest.mark.parametrize("name", ["lost", "acknowledged"])
@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"9 5 spool-full\n", b"1 " * 9999])
def test_damaged_notes_are_as_good_as_none(folder, name, content):
    leave(folder, "1", 10)
    Path(folder.path, "1", name).write_bytes(content)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert (adopted.first_number, adopted.next_number) == (0, 10)
    adopted.close()


ADOPT_ALL = """
import sys
from hyperlog.diskspool import SpoolFolder
folder = SpoolFolder(sys.argv[1])
sys.stdin.readline()
for session_id in folder.orphans():
    session = folder.adopt(session_id)
    if session is not None:
        number = 0
        while (run := session.read(number, 10_000))[1]:
            for message in run[1]:
                print(session_id, message.decode())
            number = run[0] + len(run[1])
        session.release_through(number - 1)
sys.stdout.flush()
sys.stdin.readline()
"""


def test_each_orphan_is_adopted_by_exactly_one_of_many_processes(folder):
    for number in range(40):
        leave(folder, str(number), 5, 0)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADOPT_ALL, folder.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lines: list[str] = []
    for process in processes:
        lines += process.communicate("end\n")[0].splitlines()
    assert sorted(lines) == sorted(f"{n} {k}:" for n in range(40) for k in range(5))
    assert os.listdir(folder.path) == []


WRITE = """
import sys
from hyperlog.diskspool import SpoolFolder
folder = SpoolFolder(sys.argv[1], max_bytes=int(sys.argv[3]))
session = folder.create(sys.argv[2])
for start in range(0, 3000, 50):
    session.put([b"%d:" % n + b"x" * 300 for n in range(start, start + 50)])
print(session.fault)
"""


def write_at_once(folder: SpoolFolder, max_bytes: int, count: int) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, folder.path, str(n), str(max_bytes)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]
    for process in processes:
        assert process.communicate()[0] == "None\n"


def test_processes_that_share_a_folder_do_not_mix(folder):
    write_at_once(folder, 100 * MIB, 4)
    for n in range(4):
        session = folder.adopt(str(n))
        assert session is not None
        assert list(read_all(session, 0, 50_000).values()) == messages_of(0, 3000, 300)
        session.release_through(2999)
    assert os.listdir(folder.path) == []


def test_processes_that_share_a_folder_keep_its_limit_and_count_what_gave_way(tmp_path):
    folder = SpoolFolder(tmp_path, max_bytes=MIB)
    write_at_once(folder, MIB, 4)
    assert folder.usage() <= MIB + 4 * MIB // 16
    kept = 0
    for n in range(4):
        session = folder.adopt(str(n))
        assert session is not None
        assert session.next_number == 3000
        found = read_all(session)
        assert all(message == messages_of(k, 1, 300)[0] for k, message in found.items())
        missing = set(range(3000)) - set(found)
        assert {session.hole_reason(k) for k in missing} <= {"spool-full"}
        kept += sum(map(len, found.values()))
        session.release_through(2999)
    assert kept > MIB / 2


def test_orphans_are_counted_and_their_progress_can_be_followed(folder):
    leave(folder, "1", 10)
    leave(folder, "2", 4)
    own = folder.create("3")
    own.put(messages_of(0, 2))
    assert folder.count_orphans() == {"1": 10, "2": 4}
    assert folder.acknowledged("1") == -1
    adopted = folder.adopt("1")
    assert adopted is not None
    adopted.release_through(5)
    assert folder.acknowledged("1") == 5
    adopted.close()
    assert folder.count_orphans() == {"1": 4, "2": 4}
    again = folder.adopt("1")
    assert again is not None
    again.release_through(9)
    assert folder.acknowledged("1") is None
    own.close()
