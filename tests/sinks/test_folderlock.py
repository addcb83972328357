"""A log folder belongs to one server at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import trio

from hyperlog.errors import SinkError
from hyperlog.sinks import folderlock
from hyperlog.sinks.folderlock import own_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")

HOLD = """
import sys, trio
from pathlib import Path
from hyperlog.sinks.folderlock import own_folder

async def main():
    async with own_folder(Path(sys.argv[1])):
        print("mine", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the folder until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "mine\n"
        try:
            yield process
        finally:
            process.kill()


async def test_the_folder_of_another_process_is_refused(tmp_path, other):
    with pytest.raises(SinkError, match="another server writes into the log folder"):
        async with own_folder(tmp_path, patience=0.0):
            pass


async def test_a_server_that_ends_is_waited_for(tmp_path, other, caplog):
    async def end_it():
        while not caplog.records:  # noqa: ASYNC110 - a log record is no event
            await trio.sleep(0.01)
        other.stdin.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_it)
        async with own_folder(tmp_path):
            pass
    assert "waiting for it to end" in caplog.text


async def test_the_folder_of_a_process_that_was_killed_is_free(tmp_path, other):
    other.kill()
    other.wait()
    async with own_folder(tmp_path, patience=0.0):
        pass
    assert os.listdir(tmp_path) == []


async def test_two_servers_of_one_process_cannot_have_one_folder_either(tmp_path):
    async with own_folder(tmp_path):
        with pytest.raises(SinkError):
            async with own_folder(tmp_path, patience=0.0):
                pass
    async with own_folder(tmp_path, patience=0.0):
        pass


async def test_a_folder_that_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(SinkError, match="cannot open the log folder"):
        async with own_folder(tmp_path / "gone"):
            pass


@pytest.mark.parametrize(
    "reason",
    [errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP],
    ids=errno.errorcode.get,
)
async def test_a_file_system_without_locks_is_the_operator_s_matter(
    tmp_path, monkeypatch, caplog, reason
):
    def refuse(descriptor, command):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(folderlock.fcntl, "flock", refuse)
    caplog.set_level("INFO")
    async with own_folder(tmp_path):
        assert "a file system without locks" in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # idle threads of other tests
async def test_a_child_of_a_server_holds_no_folder(tmp_path):
    there, is_there = os.pipe()
    end, is_over = os.pipe()
    async with own_folder(tmp_path):
        child = os.fork()
        if not child:
            os.close(is_over)
            os.write(is_there, b"!")
            os.read(end, 1)  # until the parent has done
            os._exit(0)
        os.read(there, 1)
    try:
        async with own_folder(tmp_path, patience=0.0):
            pass
    finally:
        for descriptor in (is_over, end, there, is_there):
            os.close(descriptor)
        await trio.to_thread.run_sync(os.waitpid, child, 0)
