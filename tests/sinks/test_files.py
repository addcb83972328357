"""hyperlog.sinks.files: whole lines in real files, through crashes, rotation and full disks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import SinkError
from hyperlog.records import (
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
    sink.write(KEY, [trace_line(0, str(n)) for n in range(100)], 0)
    assert sink.resume(KEY) == [(str(n), 0) for n in range(36, 100)]


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
