"""hyperlog.sinks.files: whole lines in real files, through crashes, rotation and full disks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import SinkError
from hyperlog.records import (
    MAX_SESSIONS,
    Gap,
    encode_gap,
    gap_line,
    iso_time,
    note_line,
    parse_client_message_untrusted,
    record_line,
)
from hyperlog.sinks import files, scan
from hyperlog.sinks.files import FileSink
from hyperlog.sinks.folder import FilePolicy

CAPTURE = Path(__file__).parents[1] / "vectors" / "dht" / "capture-trace-logger.json"
KEY = bytes(range(32))
OTHER = bytes(32)
NOW = 1795223619.131

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full, /proc")
not_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind root"
)


@pytest.fixture
def sink(tmp_path):
    sink = FileSink(tmp_path / "logs")
    yield sink
    sink.close()


def trace_line(number: int, session: str = "77", pad: int = 0) -> bytes:
    message = {
        "traceSessionId": session,
        "traceNumber": number,
        "object": {"id": 1, "className": "Main", "props": {"pad": "x" * pad}},
        "caller": {"filename": "f", "functionName": "run"},
    }
    record = parse_client_message_untrusted(json.dumps(message).encode())
    return record_line(record, iso_time(NOW), b'"User-1___00010203"')


def test_lines_are_appended_to_the_file_of_the_key(sink):
    sink.write(KEY, [b"a", b"b"], 0)
    sink.write(OTHER, [b"c"], 0)
    sink.write(KEY, [b"d"], 0)
    sink.write(KEY, [], 0)
    assert sorted(os.listdir(sink.folder)) == sorted([f"{KEY.hex()}.log", f"{OTHER.hex()}.log"])
    assert sink.path(KEY).read_bytes() == b"a\nb\nd\n"
    assert sink.path(OTHER).read_bytes() == b"c\n"


def test_an_existing_file_is_continued(sink):
    sink.path(KEY).write_bytes(b"before\n")
    sink.write(KEY, [b"after"], 0)
    assert sink.path(KEY).read_bytes() == b"before\nafter\n"


def test_a_torn_last_line_is_closed_off(sink):
    sink.path(KEY).write_bytes(b'whole\n{"torn')
    sink.write(KEY, [b"after"], 0)
    sink.write(KEY, [b"more"], 0)
    assert sink.path(KEY).read_bytes() == b'whole\n{"torn\nafter\nmore\n'


@posix
def test_the_group_may_read_and_others_may_not(sink):
    old = os.umask(0)
    try:
        sink.write(KEY, [b"a"], 0)
    finally:
        os.umask(old)
    assert stat.S_IMODE(sink.path(KEY).stat().st_mode) == 0o640


@pytest.mark.parametrize("key", [b"", b"../../etc/passwd", bytes(31), bytes(33)])
def test_only_keys_make_file_names(sink, key):
    with pytest.raises(ValueError, match="32 bytes"):
        sink.write(key, [b"a"], 0)


def test_two_writers_do_not_tear_each_others_lines(tmp_path):
    sinks = [FileSink(tmp_path) for _ in range(3)]

    def run(number: int) -> None:
        for n in range(300):
            sinks[number].write(KEY, [b"%d-%d-" % (number, n) + b"x" * 500] * 3, n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = sinks[0].path(KEY).read_bytes().split(b"\n")
    assert lines.pop() == b""
    for number in range(3):
        mine = [line for line in lines if line.startswith(b"%d-" % number)]
        assert mine == [b"%d-%d-" % (number, n) + b"x" * 500 for n in range(300) for _ in range(3)]
    assert len(lines) == 2700
    for sink in sinks:
        sink.close()


@linux
def test_open_files_are_bounded(tmp_path):
    sink = FileSink(tmp_path, max_open_files=4)
    before = len(os.listdir("/proc/self/fd"))
    for round in range(2):
        for n in range(20):
            sink.write(bytes([n]) * 32, [b"line %d" % round], 0)
            assert len(os.listdir("/proc/self/fd")) <= before + 4
    sink.close()
    assert len(os.listdir("/proc/self/fd")) == before
    for n in range(20):
        assert sink.path(bytes([n]) * 32).read_bytes() == b"line 0\nline 1\n"


@posix
def test_a_rotated_file_is_followed_within_a_second(sink):
    sink.write(KEY, [b"old"], 100.0)
    path = sink.path(KEY)
    path.rename(f"{path}.1")
    sink.write(KEY, [b"still old"], 100.5)
    assert not path.exists()
    sink.write(KEY, [b"new"], 101.0)
    assert path.read_bytes() == b"new\n"
    assert Path(f"{path}.1").read_bytes() == b"old\nstill old\n"


@posix
def test_a_file_replaced_by_another_is_followed(sink):
    sink.write(KEY, [b"old"], 100.0)
    path = sink.path(KEY)
    path.rename(f"{path}.1")
    path.write_bytes(b"theirs\n")
    sink.write(KEY, [b"new"], 50.0)  # a clock that was set back does not stop the looks
    assert path.read_bytes() == b"theirs\nnew\n"


@posix
def test_a_folder_that_vanished_is_made_again(sink):
    sink.write(KEY, [trace_line(0)], 100.0)
    shutil.rmtree(sink.folder)
    sink.write(KEY, [trace_line(1)], 100.1)  # before the next look at the name
    assert stat.S_IMODE(sink.folder.stat().st_mode) == 0o750
    assert sink.path(KEY).read_bytes().endswith(trace_line(1) + b"\n")
    assert sink.resume(KEY) == [("77", 1)]


@posix
def test_a_folder_that_vanished_with_the_one_above_is_told_until_it_is_back(tmp_path):
    above = tmp_path / "mount"
    sink = FileSink(above / "logs")
    sink.write(KEY, [b"a"], 100.0)
    away = tmp_path / "away"
    above.rename(away)
    with pytest.raises(SinkError, match="create the folder above it again") as caught:
        sink.write(KEY, [b"b"], 101.0)
    assert str(sink.folder) in str(caught.value)
    assert caught.value.lines_written == 0
    away.rename(above)
    sink.write(KEY, [b"c"], 101.1)
    assert sink.path(KEY).read_bytes() == b"a\nc\n"
    sink.close()


@posix
def test_symbolic_links_are_not_followed(sink, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious\n")
    sink.path(KEY).symlink_to(target)
    with pytest.raises(SinkError, match="symbolic link"):
        sink.write(KEY, [b"a"], 0)
    assert target.read_bytes() == b"precious\n"


@posix
def test_a_pipe_in_the_way_is_told_and_does_not_block(sink):
    os.mkfifo(sink.path(KEY))
    with pytest.raises(SinkError, match="no ordinary file"):
        sink.write(KEY, [b"a"], 0)


def test_a_folder_in_the_way_is_told(sink):
    sink.path(KEY).mkdir()
    with pytest.raises(SinkError, match="cannot open"):
        sink.write(KEY, [b"a"], 0)


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "logs").write_bytes(b"")
    with pytest.raises(SinkError, match="cannot make the log folder"):
        FileSink(tmp_path / "logs")


@not_root
def test_an_unwritable_folder_is_told(sink):
    sink.folder.chmod(0o500)
    try:
        with pytest.raises(SinkError, match="make it writable"):
            sink.write(KEY, [b"a"], 0)
    finally:
        sink.folder.chmod(0o700)


class ShortWrites:
    """os.write of a disk that fills up: `accepted` bytes go through, then ENOSPC."""

    def __init__(self, monkeypatch, accepted: int, step: int = 10**9) -> None:
        self.accepted = accepted
        self.step = step
        self.write = os.write
        monkeypatch.setattr(files.os, "write", self)

    def __call__(self, descriptor: int, data: bytes) -> int:
        if not self.accepted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = self.write(descriptor, data[: min(self.accepted, self.step)])
        self.accepted -= count
        return count


def test_short_writes_are_completed(sink, monkeypatch):
    ShortWrites(monkeypatch, 10**9, step=3)
    sink.write(KEY, [b"first line", b"second line"], 0)
    assert sink.path(KEY).read_bytes() == b"first line\nsecond line\n"


@given(accepted=st.integers(0, 40), step=st.integers(1, 40))
def test_a_full_disk_is_told_and_the_next_line_begins_anew(tmp_path_factory, accepted, step):
    sink = FileSink(tmp_path_factory.mktemp("logs"))
    lines = [b"first line", b"second line", b"third line"]
    whole = b"\n".join(lines) + b"\n"
    with pytest.MonkeyPatch.context() as patch:
        ShortWrites(patch, accepted, step)
        if accepted < len(whole):
            with pytest.raises(SinkError, match="free some space") as caught:
                sink.write(KEY, lines, 0)
            assert str(sink.folder) in str(caught.value)
        else:
            sink.write(KEY, lines, 0)
    sink.write(KEY, [b"after"], 0)
    sink.close()
    content = sink.path(KEY).read_bytes()
    before = whole[:accepted]
    if before and not before.endswith(b"\n"):
        before += b"\n"
    assert content == before + b"after\n"


@linux
def test_a_disk_that_is_really_full_is_told(sink, monkeypatch):
    # /dev/full is no ordinary file, so it takes the place of one after opening.
    sink.write(KEY, [b"a"], 0)
    descriptor = os.open("/dev/full", os.O_WRONLY)
    os.dup2(descriptor, sink._files[KEY].descriptor)
    os.close(descriptor)
    with pytest.raises(SinkError, match="free some space"):
        sink.write(KEY, [b"b"], 0)
    sink.write(KEY, [b"c"], 0)
    assert sink.path(KEY).read_bytes() == b"a\nc\n"


@linux
def test_too_many_open_files_are_survived_by_closing_ours(tmp_path):
    import resource

    sink = FileSink(tmp_path)
    sink.write(KEY, [b"a"], 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        sink.write(OTHER, [b"b"], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
        sink.close()
    assert sink.path(OTHER).read_bytes() == b"b\n"


def numbers(path: Path) -> list[int]:
    """Numbers of the records that a reader of the file finds."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "traceNumber" in record:
            found.append(record["traceNumber"])
    return found


@contextmanager
def file_size_limit(size: int):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@linux
@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("torn", [False, True])
def test_a_write_that_fails_at_any_byte_tells_which_lines_are_there(tmp_path, synced, torn):
    sink = FileSink(tmp_path / "logs", synced=synced)
    lines = [trace_line(n, pad=n * 7) for n in range(1, 5)]
    before = trace_line(0) + b"\n" + (b'{"torn' if torn else b"")
    for offset in range(sum(map(len, lines)) + len(lines) + torn):
        sink.path(KEY).write_bytes(before)
        with file_size_limit(len(before) + offset):
            with pytest.raises(SinkError, match="ulimit -f") as caught:
                sink.write(KEY, lines, 0)
            written = caught.value.lines_written
            assert numbers(sink.path(KEY)) == list(range(written + 1))
            assert sink.resume(KEY) == [("77", written)]
        sink.write(KEY, lines[written:], 0)
        if synced:
            sink.sync(KEY)
        assert numbers(sink.path(KEY)) == [0, 1, 2, 3, 4]
        assert sink.resume(KEY) == [("77", 4)]
        sink.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        may_skip = not (os.environ.get("CI") == "true" and os.geteuid() == 0)
        assert may_skip, done.stderr
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@linux
@pytest.mark.parametrize("filler", [0, 1, 100, 4095])
def test_a_file_system_that_is_full_keeps_whole_lines_and_goes_on_when_it_is_not(
    small_disk, filler
):
    sink = FileSink(small_disk, synced=True)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 16 * 1024)
    sink.write(KEY, [note_line("x" * filler, "")], 0)
    sent = 0
    faults = 0
    while sent < 400:
        lines = [trace_line(n, pad=n % 50) for n in range(sent, min(sent + 7, 400))]
        try:
            sink.write(KEY, lines, 0)
            sink.sync(KEY)
            sent += len(lines)
        except SinkError as error:
            faults += 1
            sent += error.lines_written
            assert numbers(sink.path(KEY)) == list(range(sent))
            assert sink.resume(KEY) == [("77", sent - 1)]
            if ballast.exists():
                ballast.unlink()
            else:
                break
    assert faults == 2
    assert numbers(sink.path(KEY)) == list(range(sent))
    sink.close()


def test_a_failed_sync_tells_what_the_file_still_holds(tmp_path, monkeypatch):
    sink = FileSink(tmp_path, synced=True)
    sink.write(KEY, [trace_line(0)], 0)
    sink.sync(KEY)
    sink.write(KEY, [trace_line(n) for n in range(1, 4)], 0)

    def fail(descriptor: int) -> None:
        # What the system could not write back, it drops: here all behind the second line.
        os.truncate(descriptor, 2 * len(trace_line(0)) + 10)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync_data", fail)
        with pytest.raises(SinkError, match="check the disk") as caught:
            sink.sync(KEY)
    assert caught.value.lines_written == 1
    sink.write(KEY, [trace_line(n) for n in range(2, 4)], 0)
    sink.sync(KEY)
    assert numbers(sink.path(KEY)) == [0, 1, 2, 3]
    sink.close()


def test_sync_reaches_the_disk(sink):
    sink.sync(KEY)
    sink.write(KEY, [b"a"], 0)
    sink.sync(KEY)


# -- what the files remember


def test_a_key_without_a_file_has_no_sessions(sink):
    assert sink.resume(KEY) == []
    sink.path(KEY).write_bytes(b"")
    assert sink.resume(KEY) == []


def test_sessions_are_read_back_with_the_latest_last(sink):
    lines = [note_line("New session", iso_time(NOW))]
    lines += [trace_line(n, "1") for n in range(5)]
    lines += [trace_line(n, "2") for n in range(3)]
    lines += [trace_line(5, "1"), note_line("Socket error", iso_time(NOW))]
    sink.write(KEY, lines, 0)
    assert sink.resume(KEY) == [("2", 2), ("1", 5)]


def test_a_file_of_the_javascript_server_is_read_back(sink):
    rows = json.loads(CAPTURE.read_text())["rows"]
    (row,) = [row for row in rows if row.get("event") == "log-file-final"]
    sink.path(KEY).write_bytes(row["text"].encode())
    last = [json.loads(line) for line in row["text"].splitlines() if "traceNumber" in line][-1]
    assert sink.resume(KEY)[-1] == (last["traceSessionId"], last["traceNumber"])


def test_gaps_count_as_seen(sink):
    gap = parse_client_message_untrusted(encode_gap(Gap("77", 3, 9, 7, "x"), NOW)).gap
    sink.write(KEY, [trace_line(2), gap_line(gap, iso_time(NOW))], 0)
    assert sink.resume(KEY) == [("77", 9)]


@given(cut=st.integers(0, 400))
def test_a_torn_last_line_was_not_written(tmp_path_factory, cut):
    sink = FileSink(tmp_path_factory.mktemp("logs"))
    last = trace_line(2)
    cut = min(cut, len(last))
    sink.path(KEY).write_bytes(trace_line(0) + b"\n" + trace_line(1) + b"\n" + last[:cut])
    assert sink.resume(KEY) == [("77", 2 if cut == len(last) else 1)]


@given(st.lists(st.binary(max_size=60) | st.just(trace_line(3)), max_size=8))
def test_any_content_can_be_read_back(tmp_path_factory, pieces):
    sink = FileSink(tmp_path_factory.mktemp("logs"))
    sink.path(KEY).write_bytes(b"\n".join(pieces))
    assert sink.resume(KEY) in ([], [("77", 3)])


def test_reading_back_is_bounded(sink, monkeypatch):
    sink.write(KEY, [trace_line(0, "1"), trace_line(0, "2"), note_line("x" * 5000, "")], 0)
    monkeypatch.setattr(scan, "MAX_SCAN", 5100)
    assert sink.resume(KEY) == [("2", 0)]


def test_sessions_read_back_are_bounded(sink):
    sink.write(KEY, [trace_line(0, str(n)) for n in range(MAX_SESSIONS + 36)], 0)
    assert sink.resume(KEY) == [(str(n), 0) for n in range(36, MAX_SESSIONS + 36)]


def test_after_rotation_the_file_before_is_asked(sink):
    sink.write(KEY, [trace_line(4)], 0)
    sink.close()
    path = sink.path(KEY)
    path.rename(f"{path}.1")
    assert sink.resume(KEY) == [("77", 4)]
    sink.write(KEY, [note_line("Socket error", iso_time(NOW))], 0)
    assert sink.resume(KEY) == [("77", 4)]
    sink.write(KEY, [trace_line(0, "78")], 0)
    assert sink.resume(KEY) == [("77", 4), ("78", 0)]


def test_what_cannot_be_read_is_told(sink):
    sink.path(KEY).mkdir()
    with pytest.raises(SinkError, match="cannot read"):
        sink.resume(KEY)


# -- rotation


def rotated(sink: FileSink) -> list[str]:
    return sorted(path.name[64:] for path in sink.folder.iterdir() if path != sink.path(KEY))


def test_a_file_that_would_grow_too_large_is_rotated_first(tmp_path):
    sink = FileSink(tmp_path, policy=FilePolicy(rotate_size=2000))
    for number in range(30):
        sink.write(KEY, [trace_line(number, str(number % 3))], 0)
    names = rotated(sink)
    assert len(names) == sink.rotations == 3
    assert set(names) == {f".log.{n}" for n in range(1, len(names) + 1)}
    assert all(path.stat().st_size <= 2000 for path in sink.folder.iterdir())
    everything = [sink.table.rotated_path(KEY, n) for n in range(1, len(names) + 1)]
    assert [n for path in [*everything, sink.path(KEY)] for n in numbers(path)] == list(range(30))
    assert FileSink(tmp_path).resume(KEY) == [("0", 27), ("1", 28), ("2", 29)]
    sink.close()


def test_a_new_file_begins_with_what_the_files_before_it_hold(tmp_path):
    sink = FileSink(tmp_path, policy=FilePolicy(rotate_size=2000))
    sink.write(KEY, [trace_line(0, str(n)) for n in range(MAX_SESSIONS + 6)], 0)
    sink.write(KEY, [trace_line(1, "5")], 0)
    first = json.loads(sink.path(KEY).read_bytes().split(b"\n")[0])
    assert list(first) == ["time", "note", "sessions"]
    assert first["note"] == "Log continues"
    assert first["sessions"] == {str(n): 0 for n in range(6, MAX_SESSIONS + 6)}
    sink.table.rotated_path(KEY, 1).unlink()  # retention
    latest = [(str(n), 0) for n in range(7, MAX_SESSIONS + 6)] + [("5", 1)]
    assert sink.resume(KEY) == FileSink(tmp_path).resume(KEY) == latest
    sink.close()


def test_resumption_survives_rotation_by_a_sink_that_did_not_begin_the_file(tmp_path):
    FileSink(tmp_path).write(KEY, [trace_line(3, "1"), trace_line(4, "2")], 0)
    sink = FileSink(tmp_path, policy=FilePolicy(rotate_size=700))
    sink.write(KEY, [trace_line(5, "2")], 0)
    sink.write(KEY, [trace_line(6, "2")], 0)
    assert sink.rotations
    sink.table.rotated_path(KEY, 1).unlink()
    assert sink.resume(KEY) == [("1", 3), ("2", 6)]
    sink.close()


@posix
def test_a_file_that_others_rotated_is_continued_the_same_way(sink):
    sink.write(KEY, [trace_line(4, "1"), trace_line(9, "2")], 0)
    path = sink.path(KEY)
    path.rename(f"{path}.1")
    sink.write(KEY, [trace_line(5, "1")], 2)
    Path(f"{path}.1").unlink()
    assert sink.resume(KEY) == [("2", 9), ("1", 5)]


@posix
def test_a_file_that_others_gave_the_next_number_is_continued_after_a_restart(tmp_path):
    sink = FileSink(tmp_path)
    path = sink.path(KEY)
    for number in range(3):
        sink.write(KEY, [trace_line(number)], 0)
        sink.close()
        if number == 1:
            sink = FileSink(tmp_path)  # knows of the first one
        path.rename(f"{path}.{number + 1}")
    sink.write(KEY, [trace_line(0, "78")], 0)
    sink.close()
    assert FileSink(tmp_path).resume(KEY) == [("77", 2), ("78", 0)]


@posix
def test_files_that_others_rename_in_turn_are_asked_in_the_order_of_their_age(tmp_path):
    sink = FileSink(tmp_path)
    path = sink.path(KEY)
    for number in range(4):
        sink.write(KEY, [trace_line(number)], 0)
        sink.close()
        os.utime(path, (NOW + number, NOW + number))
        for older in range(number, 0, -1):
            Path(f"{path}.{older}").rename(f"{path}.{older + 1}")
        path.rename(f"{path}.1")
        if number == 1:
            sink = FileSink(tmp_path)
    assert sink.resume(KEY) == [("77", 3)]
    sink.write(KEY, [trace_line(0, "78")], 0)
    sink.close()
    assert FileSink(tmp_path).resume(KEY) == [("77", 3), ("78", 0)]


@posix
def test_the_line_that_continues_a_log_is_repeated_when_it_was_torn(tmp_path):
    sink = FileSink(tmp_path)
    sink.write(KEY, [trace_line(4, "1")], 0)
    sink.close()
    header = scan.continuation_line({"1": 4}, NOW) + b"\n"
    path = sink.path(KEY)
    path.rename(f"{path}.1")
    for cut in range(len(header)):
        sink = FileSink(tmp_path)
        path.write_bytes(header[:cut])
        assert sink.resume(KEY) == [("1", 4)]
        sink.write(KEY, [trace_line(5, "2")], 0)
        sink.close()
        gone = Path(f"{path}.1").rename(tmp_path / "gone")
        assert sink.resume(KEY) == [("1", 4), ("2", 5)]
        gone.rename(f"{path}.1")


def test_a_file_is_rotated_at_its_age_even_after_a_restart(tmp_path):
    sink = FileSink(tmp_path, policy=FilePolicy(rotate_age=3600))
    sink.write(KEY, [note_line("x", iso_time(time.time() - 3500))], 0)
    sink.close()
    sink.write(KEY, [trace_line(0)], 0)
    assert sink.rotations == 0
    sink.close()
    sink.path(KEY).write_bytes(note_line("x", iso_time(time.time() - 3700)) + b"\n")
    sink.write(KEY, [trace_line(1)], 0)
    assert sink.rotations == 1
    assert numbers(sink.path(KEY)) == [1]
    sink.close()


@pytest.mark.parametrize("first", ["note", "continuation"])
def test_the_age_of_a_file_is_known_from_a_first_line_of_any_length(tmp_path, first):
    begun = time.time() - 3700
    many = {f"{number:0128}": number for number in range(MAX_SESSIONS * 3)}
    line = (
        note_line("x", iso_time(begun))[:-2] + b"x" * files.HEAD_SIZE + b'"}'
        if first == "note"
        else scan.continuation_line(many, begun)
    )
    assert len(line) > files.HEAD_SIZE
    sink = FileSink(tmp_path, policy=FilePolicy(rotate_age=3600))
    sink.path(KEY).write_bytes(line + b"\n")
    sink.write(KEY, [trace_line(1)], 0)
    assert sink.rotations == 1
    assert numbers(sink.path(KEY)) == [1]
    sink.close()


def test_lines_are_written_though_the_file_cannot_be_looked_at_then(sink, monkeypatch):
    sink.write(KEY, [trace_line(0)], 0)

    def fail(_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fstat", fail)
        sink.write(KEY, [trace_line(1)], 0)
    sink.write(KEY, [trace_line(2)], 0)
    assert numbers(sink.path(KEY)) == [0, 1, 2]
    assert dict(sink.resume(KEY)) == {"77": 2}


@not_root
def test_a_file_that_cannot_be_rotated_is_written_on(tmp_path):
    sink = FileSink(tmp_path, policy=FilePolicy(rotate_size=100))
    sink.write(KEY, [trace_line(0)], 0)
    tmp_path.chmod(0o500)
    try:
        sink.write(KEY, [trace_line(1)], 0)
    finally:
        tmp_path.chmod(0o700)
    assert numbers(sink.path(KEY)) == [0, 1]
    sink.close()


def test_a_rename_that_fails_is_tried_again_later(tmp_path, monkeypatch):
    sink = FileSink(tmp_path, policy=FilePolicy(rotate_size=100))
    sink.write(KEY, [trace_line(0)], 0)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "rename", fail)
        sink.write(KEY, [trace_line(1)], 0)
    sink.write(KEY, [trace_line(2)], files.ROTATION_RETRY - 1)
    assert numbers(sink.path(KEY)) == [0, 1, 2]
    sink.write(KEY, [trace_line(3)], files.ROTATION_RETRY)
    assert numbers(sink.path(KEY)) == [3]
    sink.close()


def test_a_client_cannot_forge_what_a_log_continues(sink):
    message = {
        "traceSessionId": "9",
        "traceNumber": 1,
        "note": "Log continues",
        "sessions": {"77": 1000},
    }
    record = parse_client_message_untrusted(json.dumps(message).encode())
    forged = record_line(record, iso_time(NOW), b'"User-1___00010203"')
    sink.write(KEY, [trace_line(4), forged], 0)
    assert sink.resume(KEY) == [("77", 4), ("9", 1)]


@linux
def test_more_files_than_are_kept_open_stay_until_they_are_synced(tmp_path):
    sink = FileSink(tmp_path, max_open_files=2, synced=True)
    keys = [bytes([n]) * 32 for n in range(6)]
    for key in keys:
        sink.write(key, [b"line"], 0)
    assert len(sink._files) == 6
    for key in keys:
        sink.sync(key)
    sink.write(OTHER[:31] + b"x", [b"line"], 0)
    assert len(sink._files) == 2
    sink.close()


def test_what_is_read_back_is_synced_before_it_is_believed(tmp_path, monkeypatch):
    FileSink(tmp_path).write(KEY, [trace_line(3)], 0.0)
    synced = []
    monkeypatch.setattr(files, "_sync_data", lambda descriptor: synced.append(os.fstat(descriptor)))
    assert FileSink(tmp_path, synced=True).resume(KEY) == [("77", 3)]
    assert [status.st_ino for status in synced] == [FileSink(tmp_path).path(KEY).stat().st_ino]
    assert FileSink(tmp_path).resume(KEY) == [("77", 3)]
    assert len(synced) == 1
