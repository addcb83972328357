"""hyperlog.destination: what a spool is sent with is found beside it, without a token."""

from __future__ import annotations

import os
import stat

import pytest

from hyperlog.destination import MAX_FILE, Destination

HERE = Destination("https://logs.example.org", None, "till 3", False, "/etc/ca.pem")


def test_what_is_written_is_read_and_private(tmp_path):
    spool = tmp_path / "web-x"
    spool.mkdir()
    HERE.write(spool)
    assert Destination.read(spool) == HERE
    other = Destination("5a" * 32, "cerco", "a2b5")
    other.write(spool)
    assert Destination.read(spool) == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["web-x", "web-x.json"]
    assert stat.S_IMODE(Destination.path(spool).stat().st_mode) == 0o600


def test_a_file_that_says_the_same_is_left_alone(tmp_path):
    HERE.write(tmp_path / "x")
    before = Destination.path(tmp_path / "x").stat().st_ino
    HERE.write(tmp_path / "x")
    assert Destination.path(tmp_path / "x").stat().st_ino == before


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"server":3}', b"\xff", b"x" * 2 * MAX_FILE])
def test_what_is_no_such_file_counts_as_none(tmp_path, data):
    Destination.path(tmp_path / "x").write_bytes(data)
    assert Destination.read(tmp_path / "x") is None
    assert Destination.read(tmp_path / "y") is None


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    HERE.write(tmp_path / "missing" / "x")
    (tmp_path / f"x.json.{os.getpid()}").mkdir()
    HERE.write(tmp_path / "x")
    assert Destination.read(tmp_path / "x") is None


def test_a_file_name_that_is_no_text_is_no_reason_to_stop(tmp_path):
    name = os.fsdecode(b"/etc/\xff.pem")
    Destination("https://logs.example.org", None, "till 3", False, name).write(tmp_path / "x")
    assert Destination.read(tmp_path / "x") is None
