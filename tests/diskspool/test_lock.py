"""hyperlog.diskspool.lock: one owner per session, as long as it lives and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from hyperlog.diskspool.lock import SessionLock

HOLD = """
import sys
from hyperlog.diskspool.lock import SessionLock
lock = SessionLock.acquire(sys.argv[1])
print(lock is not None, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "1.lock")


def holder(path: str) -> subprocess.Popen[str]:
    """A process that has tried to take the lock, and waits; see `took`."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def took(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "True\n"


def test_only_one_owner_within_a_process(path):
    lock = SessionLock.acquire(path)
    assert lock is not None
    assert lock.valid
    assert SessionLock.is_held(path)
    assert SessionLock.acquire(path) is None
    lock.release()
    assert not SessionLock.is_held(path)
    again = SessionLock.acquire(path)
    assert again is not None
    again.release(remove=True)
    assert not os.path.exists(path)


def test_only_one_of_many_threads_gets_it(path):
    got: list[SessionLock | None] = []
    barrier = threading.Barrier(8)

    def run() -> None:
        barrier.wait()
        got.append(SessionLock.acquire(path))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    locks = [lock for lock in got if lock is not None]
    assert len(locks) == 1
    locks[0].release()


def test_a_lock_ends_with_its_process_also_by_sigkill(path):
    with holder(path) as process:
        assert took(process)
        assert SessionLock.acquire(path) is None
        with holder(path) as other:
            assert not took(other)
            other.communicate()
        process.send_signal(signal.SIGKILL)
        process.wait()
    lock = SessionLock.acquire(path)
    assert lock is not None
    lock.release()


def test_a_child_does_not_hold_on_to_its_parents_lock(path):
    """The parent is killed, the child lives on, and the session is free all the same."""
    program = (
        "import os, sys\n"
        "from hyperlog.diskspool.lock import SessionLock\n"
        "lock = SessionLock.acquire(sys.argv[1])\n"
        "if os.fork() == 0:\n"
        "    assert not SessionLock.is_held(sys.argv[1])\n"
        "    assert SessionLock.acquire(sys.argv[1]) is None\n"  # the parent has it
        "    print('child', flush=True)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "child\n"
        assert SessionLock.acquire(path) is None  # trying in the child has freed nothing
        parent.kill()
        parent.wait()
        # The child still waits for the end of its standard input.
        lock = SessionLock.acquire(path)
        assert lock is not None
        lock.release()


def test_a_lock_whose_file_was_removed_is_not_valid(path):
    lock = SessionLock.acquire(path)
    assert lock is not None
    os.unlink(path)
    assert not lock.valid
    with holder(path) as process:
        assert took(process)
        lock.release(remove=True)
        assert os.path.exists(path)  # it is the other's now
        process.communicate()


def test_a_lock_that_was_lost_by_a_foreign_close_comes_back(path):
    lock = SessionLock.acquire(path)
    assert lock is not None
    os.close(os.open(path, os.O_RDONLY))  # the trap of POSIX locks: it frees all of the process's
    assert lock.valid
    with holder(path) as process:
        assert not took(process)
        process.communicate()
    lock.release()
