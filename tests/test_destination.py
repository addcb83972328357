"""hyperlog.destination: what a spool is sent with is found beside it, without a token."""

from __future__ import annotations

import os
import stat

import pytest

from hyperlog.config import parse_spool_name
from hyperlog.destination import MAX_FILE, Destination, web_spool_name

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


def test_the_folder_of_each_server_application_and_instance_is_another():
    names = {
        web_spool_name(address, "logs.example.org", application, instance)
        for address in ("https://logs.example.org", "https://logs.example.org:444")
        for application in (None, "cerco", "midas")
        for instance in ("a", "b")
    }
    assert len(names) == 12
    for name in names | {web_spool_name("https://[::1]", "::1", "../../x", "a/b")}:
        assert name.startswith(("web-logs.example.org-", "web-__1-"))
        assert "/" not in name
        assert parse_spool_name(name) is None
    assert len(web_spool_name("https://x", "x" * 253, None, "a")) < 120
