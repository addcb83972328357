"""The spool in the life of an application: kills, forks, exits, several processes; real servers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyperlog.clientfolders import client_data_path
from hyperlog.keyfile import create_keys

ROOT = Path(__file__).parent.parent
KILLS = 20 if os.environ.get("HYPERLOG_LONG") else 4

# Traces at some hundred records a second and tells the time and number of each.
TRACING = """
import os, sys, time
from hyperlog import Client, create_tracer
client = Client()
client.start(sys.argv[1], bootstrap=[sys.argv[2]])
tracer = create_tracer(object())
name = os.getpid()
for n in range(10**6):
    tracer.trace({"run": name, "n": n})
    os.write(1, b"%d %d %f\\n" % (name, n, time.monotonic()))
    time.sleep(0.0005)
"""

FORKING = """
import os, sys
from hyperlog import Client, create_tracer
client = Client()
client.start(sys.argv[1], bootstrap=[sys.argv[2]])
tracer = create_tracer(object())
for n in range(100):
    tracer.trace({"run": "parent", "n": n})
while client._shipper.session.spool.next_number < 100:
    pass
child = os.fork()
if child == 0:
    for n in range(100):
        tracer.trace({"run": "child", "n": n})
    while client._shipper.session.spool.next_number < 100:
        pass
    os.write(1, b"child\\n")
    sys.stdin.read()
    os._exit(0)
for n in range(100, 200):
    tracer.trace({"run": "parent", "n": n})
while client._shipper.session.spool.next_number < 200:
    pass
os.write(1, b"parent\\n")
os.waitpid(child, 0)
"""

EXITING = """
import sys, time
from hyperlog import Client, create_tracer
client = Client()
client.start(sys.argv[1], bootstrap=[sys.argv[2]])
tracer = create_tracer(object())
for n in range(3000):
    tracer.trace({"run": "exiting", "n": n})
print(time.monotonic(), flush=True)
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")


@pytest.fixture
def key(tmp_path) -> str:
    return create_keys(tmp_path / "keys.dat").public_key.hex()


@contextmanager
def server() -> Iterator[str]:
    """A running server's bootstrap address."""
    with subprocess.Popen(
        [sys.executable, "-m", "hyperlog", "serve", "--local", "--json", "--host", "127.0.0.1"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield "127.0.0.1:{}".format(json.loads(process.stdout.readline())["port"])
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def application(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run of the application `shop`."""
    Path("shop.py").write_text(program)
    with subprocess.Popen(
        [sys.executable, "shop.py", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def flush(bootstrap: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "hyperlog", "flush-spool", "--json", "--bootstrap", bootstrap],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert isinstance(counts, dict)
    return counts


def delivered() -> dict[str, list[int]]:
    """The numbers of the records in the server's logs, by the run that traced them."""
    found: dict[str, list[int]] = defaultdict(list)
    gaps = []
    for path in Path("logs").glob("*.log"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if "gap" in record or "Skipped" in record.get("note", ""):
                gaps.append(record)
            elif "traceNumber" in record:
                props = record["caller"]["props"]
                found[str(props["run"])].append(props["n"])
    assert gaps == []
    return found


def nothing_is_left() -> bool:
    return not list(client_data_path().glob("shop/spool/*/*"))


def run_and_kill(key: str, bootstrap: str, seconds: float) -> tuple[str, int, int]:
    """(the run, numbers traced 100 ms before the kill, numbers traced)."""
    with application(TRACING, key, bootstrap) as process:
        assert process.stdout is not None
        told = [process.stdout.readline()]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told.append(process.stdout.readline())
        killed_at = time.monotonic()
        process.kill()
        told += process.stdout
    lines = [line.split() for line in told if re.fullmatch(r"\d+ \d+ [\d.]+\n", line)]
    in_time = [n for _, n, traced_at in lines if float(traced_at) < killed_at - 0.1]
    return lines[0][0], len(in_time), len(lines) + 1


def test_killed_applications_lose_and_double_nothing(key):
    runs = [run_and_kill(key, "127.0.0.1:9", 0.4)]  # before the server was ever there
    with server() as bootstrap:
        for kill in range(KILLS):
            runs.append(run_and_kill(key, bootstrap, 0.5 + 0.13 * (kill % 5)))
        flush(bootstrap)
        found = delivered()
    assert nothing_is_left()
    for run, in_time, at_most in runs:
        numbers = found.pop(run)
        assert numbers == list(range(len(numbers)))
        assert in_time <= len(numbers) <= at_most
    assert not found
    assert sum(in_time for _, in_time, _ in runs) > 100 * len(runs)


def test_the_next_start_of_an_application_delivers_what_the_one_before_left(key):
    run, in_time, _ = run_and_kill(key, "127.0.0.1:9", 0.4)
    assert in_time
    with server() as bootstrap, application(TRACING, key, bootstrap):
        deadline = time.monotonic() + 20
        while len(delivered()[run]) < in_time:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_processes_of_an_application_share_its_spool(key):
    """Three at a time, killed at different times while the server is away; then all arrives."""
    runs = []
    Path("shop.py").write_text(TRACING)
    processes = [
        subprocess.Popen(
            [sys.executable, "shop.py", key, "127.0.0.1:9"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(400)]
        process.kill()
        told += process.stdout
        process.wait()
        process.stdout.close()
        runs.append((str(process.pid), sum(line.endswith("\n") for line in told)))
    with server() as bootstrap:
        flush(bootstrap)
        found = delivered()
    for run, told_numbers in runs:
        assert found[run] == list(range(len(found[run])))
        assert 0 <= told_numbers + 1 - len(found[run]) <= 400  # 100 ms
    assert nothing_is_left()


def test_a_forked_child_and_its_killed_parent_both_get_through(key):
    with server() as bootstrap:
        with application(FORKING, key, "127.0.0.1:9") as process:
            assert process.stdout is not None
            assert {process.stdout.readline() for _ in range(2)} == {"child\n", "parent\n"}
            process.kill()
            process.wait()
            # The child lives, and does not hold on to what its parent left.
            assert flush(bootstrap)["delivered"] == 200
            assert delivered() == {"parent": list(range(200))}
        while not flush(bootstrap)["delivered"]:
            time.sleep(0.05)  # until the child has noticed the end of its standard input
        assert delivered() == {"parent": list(range(200)), "child": list(range(100))}
    assert nothing_is_left()


def test_the_end_of_a_process_is_short_and_leaves_the_rest_to_the_next(key):
    with application(EXITING, key, "127.0.0.1:9") as process:
        output, _ = process.communicate()
    assert time.monotonic() - float(output) < 2.0  # 1 s, and what the interpreter takes
    with server() as bootstrap:
        assert flush(bootstrap)["delivered"] == 3000
        assert delivered() == {"exiting": list(range(3000))}
    assert nothing_is_left()
