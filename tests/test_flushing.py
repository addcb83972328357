"""hyperlog flush-spool: what a killed application left reaches the server without it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyperlog.cli import main
from hyperlog.clientfolders import (
    client_data_path,
    client_keys_path,
    parse_spool_name,
    spool_name,
)
from hyperlog.diskspool import SpoolFolder
from hyperlog.keyfile import create_keys

ROOT = Path(__file__).parent.parent

# Traces for as long as it lives, and tells how many of its records are on disk.
APPLICATION = """
import sys, time
from hyperlog import Client, create_tracer
client = Client()
client.start(sys.argv[1], bootstrap=["127.0.0.1:9"])
class Shop: pass
trace = create_tracer(Shop())
for n in range(int(sys.argv[2])):
    trace.trace({"n": n})
while client._shipper.session.spool.next_number < int(sys.argv[2]):
    time.sleep(0.01)
print("traced", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def server_key(tmp_path) -> str:
    return create_keys(tmp_path / "keys.dat").public_key.hex()


@pytest.fixture
def server(server_key) -> Iterator[str]:
    """A running server's bootstrap address."""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "hyperlog", "serve", "--local", "--json"),
            *("--host", "127.0.0.1", "--http", "off"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            yield "127.0.0.1:{}".format(ready["port"])
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def application(path: Path, server_key: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """A program whose server cannot be reached, after it has traced."""
    path.write_text(APPLICATION)
    with subprocess.Popen(
        [sys.executable, str(path), server_key, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "traced\n"
            yield process
        finally:
            process.kill()


def flush(*arguments: str) -> tuple[int, dict[str, object], str]:
    done = subprocess.run(
        [sys.executable, "-m", "hyperlog", "flush-spool", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [
        json.loads(line) for path in folder.glob("*.log") for line in path.read_text().splitlines()
    ]


def leave(application: str, server_key: str, count: int) -> SpoolFolder:
    """What an application that was killed leaves, without having run it."""
    keys = client_keys_path(application)
    keys.parent.mkdir(parents=True)
    pair = create_keys(keys)
    folder = SpoolFolder(
        keys.parent / "spool" / spool_name(bytes.fromhex(server_key), pair.public_key)
    )
    session = folder.create("123456")
    session.put([b"%d" % n for n in range(count)])
    session.close()
    return folder


def test_what_a_killed_application_left_is_delivered_once(tmp_path, server_key, server):
    with application(tmp_path / "shop.py", server_key, 500) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    status, counts, talk = flush("--bootstrap", server, "--timeout", "20")
    assert (status, counts["delivered"], counts["left"]) == (0, 500, 0), talk
    assert "shop: delivered 500 records" in talk
    numbers = [line["traceNumber"] for line in lines_of(tmp_path / "logs") if "traceNumber" in line]
    assert numbers == list(range(500))
    status, counts, talk = flush("--bootstrap", server)
    assert (status, counts["delivered"]) == (0, 0)
    assert "nothing is left" in talk


def test_what_cannot_be_delivered_stays(server_key):
    folder = leave("shop", server_key, 7)
    status, counts, talk = flush("--bootstrap", "127.0.0.1:9", "--timeout", "1")
    assert (status, counts["delivered"], counts["left"]) == (1, 0, 7)
    assert "7 are left" in talk
    assert folder.count_orphans() == {"123456": 7}


@pytest.mark.skipif(os.name != "posix", reason="another system's signals")
def test_an_interrupt_ends_it_without_a_trace_of_the_stack(server_key):
    folder = leave("shop", server_key, 3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as node:
        node.bind(("127.0.0.1", 0))
        node.settimeout(30)
        arguments = ("--bootstrap", f"127.0.0.1:{node.getsockname()[1]}")
        with subprocess.Popen(
            [sys.executable, "-m", "hyperlog", "flush-spool", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A shell has what it runs in the background ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            node.recv(2048)  # it is on its way
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert folder.count_orphans() == {"123456": 3}


def test_a_running_application_keeps_its_records(tmp_path, server_key):
    with application(tmp_path / "shop.py", server_key, 5):
        status, counts, _ = flush("--bootstrap", "127.0.0.1:9", "--timeout", "1")
        assert (status, counts["spools"]) == (0, [])


def test_records_of_another_key_pair_are_left_and_told(server_key):
    folder = leave("shop", server_key, 7)
    os.unlink(client_keys_path("shop"))
    status, counts, talk = flush("--bootstrap", "127.0.0.1:9")
    assert (status, counts["left"]) == (1, 7)
    assert "keys.dat does not exist" in talk
    create_keys(client_keys_path("shop"))
    status, counts, talk = flush("--bootstrap", "127.0.0.1:9")
    assert (status, counts["left"]) == (1, 7)
    assert "another key pair" in talk
    assert folder.count_orphans() == {"123456": 7}


def test_one_server_can_be_chosen(server_key, capsys):
    leave("shop", server_key, 7)
    assert main(["flush-spool", "--server", "5a" * 32, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"delivered": 0, "left": 0, "spools": []}


def test_folders_of_other_names_are_left_alone(server_key, capsys):
    leave("shop", server_key, 7)
    place = client_data_path() / "shop" / "spool"
    next(place.iterdir()).rename(place / "of-a-later-version")
    assert parse_spool_name("of-a-later-version") is None
    assert main(["flush-spool", "--json"]) == 0
    assert (place / "of-a-later-version" / "123456").exists()
