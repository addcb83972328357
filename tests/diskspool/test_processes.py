"""The spool and the life of processes: SIGKILL at full speed, forks, 200,000 traces unsent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyperlog.diskspool import SpoolFolder
from tests.diskspool.test_session import read_all

KILLS = 25 if os.environ.get("HYPERLOG_LONG") else 4


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


AT_FULL_SPEED = """
import os, sys
from hyperlog.diskspool import SpoolFolder
session = SpoolFolder(sys.argv[1]).create("1")
sizes = [0, 10, 400, 900, 3000]
while True:
    number = session.next_number
    session.put([b"%d:" % n + b"x" * sizes[n % 5] for n in range(number, number + 7)])
    os.write(1, b"%d\\n" % session.next_number)
"""


@pytest.mark.parametrize("kill", range(KILLS))
def test_everything_reported_before_a_sigkill_is_read_back_in_order(tmp_path, kill):
    process = start(AT_FULL_SPEED, str(tmp_path))
    assert line(process) == "7"
    end = time.monotonic() + 0.05 + 0.05 * (kill % 5)
    while time.monotonic() < end:
        accepted = int(line(process))
    process.kill()
    assert process.stdout is not None
    for reported in process.stdout:  # communicate() would pass over what is buffered
        accepted = int(reported)
    process.communicate()
    session = SpoolFolder(tmp_path).adopt("1")
    assert session is not None
    found = read_all(session, 0, 500_000)
    assert list(found) == list(range(session.next_number))
    # The kill may come between the write and the report, and may tear a write.
    assert accepted <= session.next_number <= accepted + 7
    sizes = [0, 10, 400, 900, 3000]
    assert all(message == b"%d:" % n + b"x" * sizes[n % 5] for n, message in found.items())
    session.release_through(session.next_number - 1)
    assert os.listdir(tmp_path) == []


FORKING = """
import os, sys
from hyperlog.diskspool import SpoolFolder
folder = SpoolFolder(sys.argv[1])
session = folder.create("1")
session.put([b"parent"] * 10)
session._memory_bytes = 2**21
session.put([b"parent"])
session.release_through(1)
assert session.read(3, 10)[1]  # a reader is open, too
if os.fork() == 0:
    open_files = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{n}")]
    assert not [path for path in open_files if path.startswith(sys.argv[1])], open_files
    session.put([b"stray"])  # what is left of the parent's session harms nobody
    session.release_through(10)
    session.close()
    own = folder.create("2")
    own.put([b"child"] * 5)
    assert folder.adopt("1") is None
    os.write(1, b"child\\n")
    sys.stdin.read()
    own.put([b"child"] * 5)
    os._exit(0)
session.put([b"parent"] * 10)
os.write(1, b"parent\\n")
while True:
    os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_forked_child_has_its_own_session_and_leaves_its_parents_alone(tmp_path):
    parent = start(FORKING, str(tmp_path))
    assert {line(parent), line(parent)} == {"parent", "child"}
    folder = SpoolFolder(tmp_path)
    assert folder.adopt("1") is None
    parent.kill()
    parent.wait()
    session = folder.adopt("1")
    assert session is not None
    assert session.released_through == 1
    assert read_all(session) == dict.fromkeys(range(2, 21), b"parent")
    session.release_through(20)
    assert folder.adopt("2") is None  # the child lives
    parent.communicate()  # it ends
    child = folder.adopt("2")
    while child is None:
        time.sleep(0)  # not our child: its end cannot be waited for
        child = folder.adopt("2")
    assert len(read_all(child)) in (5, 10)
    child.close()


OUTAGE = """
import sys
from hyperlog.diskspool import SpoolFolder
def kib(name):
    # The system's getrusage would count the peak of the process that has started this one.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
folder = SpoolFolder(sys.argv[1], max_memory_bytes=32 * 2**20)
session = folder.create("1")
session.put([b"warm"])
idle = kib('VmRSS:')
for start in range(1, 200_001, 250):
    session.put([b"%d:" % n + b"x" * 412 for n in range(start, start + 250)])
number = expected = 1
while True:
    first, messages = session.read(number, 256 * 1024)
    if not messages:
        break
    assert session.fault is not None or first == number
    assert messages[0].startswith(b"%d:" % first)
    number = first + len(messages)
    session.release_through(number - 1)
print(number, (kib("VmHWM:") - idle) // 1024, session.fault is not None)
session.close()
"""


def outage(path: Path) -> tuple[int, int, bool]:
    process = start(OUTAGE, str(path))
    number, growth, fault = process.communicate()[0].split()
    return int(number), int(growth), fault == "True"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_an_outage_of_200000_traces_takes_few_megabytes_of_memory(tmp_path):
    number, growth, fault = outage(tmp_path / "spool")
    assert (number, fault) == (200_001, False)
    assert growth <= 8, growth
    assert os.listdir(tmp_path / "spool") == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_without_a_disk_the_memory_stays_within_its_limit(tmp_path):
    (tmp_path / "spool").write_text("no folder")
    number, growth, fault = outage(tmp_path / "spool")
    assert (number, fault) == (200_001, True)
    assert growth <= 40, growth
