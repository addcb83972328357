"""A client and a server that it reaches by address: the same promises as over the DHT."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from hyperlog import config as config_module
from hyperlog.client import Client
from hyperlog.clientfolders import client_data_path
from hyperlog.config import ClientConfig
from hyperlog.dht import KeyPair
from hyperlog.errors import ConfigError, ServerRefused
from hyperlog.keyfile import create_keys
from hyperlog.tokens import TokenAuthority
from hyperlog.trace import create_tracer
from tests.tcp_proxy import tcp_proxy
from tests.web.site import site, until

ROOT = Path(__file__).parent.parent
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("HYPERLOG_TOKEN", raising=False)


@pytest.fixture
def client():
    client = Client()
    yield client
    client.stop(timeout=0.2)


async def in_thread(function, *arguments, **named):
    return await trio.to_thread.run_sync(partial(function, *arguments, **named))


def numbers(lines) -> list[int]:
    return [line["attributes"]["n"] for line in lines]


def gaps(folder: Path) -> list[dict]:
    lines = [
        json.loads(line) for path in folder.glob("*.log") for line in path.read_bytes().splitlines()
    ]
    return [line for line in lines if "gap" in line or "Skipped" in line.get("note", "")]


# -- records


async def test_traces_and_log_messages_arrive_in_order_under_one_application(tmp_path, client):
    async with site(tmp_path) as there:
        client.start(there.url, token=there.token("cerco"), instance="till 3", keys=None)
        tracer = create_tracer(client)
        for number in range(500):
            client.info("order", n=number)
            tracer.trace({"n": number})
        assert await in_thread(client.flush)
        lines = there.lines()
        assert [line["traceNumber"] for line in lines] == list(range(1000))
        assert {(line["app"], line["instance"]) for line in lines} == {("cerco", "till 3")}
        assert numbers(lines[::2]) == list(range(500))
        assert [line["caller"]["props"]["n"] for line in lines[1::2]] == list(range(500))
        assert client.is_running
        assert client.statistics().waiting == 0


async def test_a_trio_program_runs_the_client_in_its_own_loop(tmp_path):
    async with site(tmp_path) as there:
        async with Client().running(there.url, token=there.token(), keys=None) as client:
            client.warning({"disk": "sda"}, n=1)
            assert await client.wait_flushed()
        (line,) = there.lines()
        assert (line["level"], line["message"]) == ("WARNING", {"disk": "sda"})


async def test_the_token_may_come_from_the_environment(tmp_path, client, monkeypatch):
    async with site(tmp_path, require_token=True) as there:
        monkeypatch.setenv("HYPERLOG_TOKEN", there.token("cerco"))
        client.start(there.url, keys=None)
        client.info("hello")
        assert await in_thread(client.flush)
        assert [line["app"] for line in there.lines()] == ["cerco"]


# -- refusals


async def test_a_refused_client_is_told_why_and_keeps_its_records(tmp_path, client):
    errors = []
    async with site(tmp_path, require_token=True) as there:
        token = there.token("cerco", instances="till *")
        client.start(there.url, token=token, instance="office", on_connection_error=errors.append)
        client.info("hello", n=1)
        await until(lambda: errors)
        (error,) = errors
        assert isinstance(error, ServerRefused)
        assert error.refusal == "TOKEN_MISMATCH"
        assert client.statistics().waiting == 1
        await in_thread(client.stop, 0.5)
        assert there.lines() == []
    assert sum(path.stat().st_size for path in client_data_path().glob("*/spool/web-*/*")) > 100


async def test_a_token_that_is_revoked_ends_the_connection_and_loses_nothing(tmp_path, client):
    errors = []
    async with site(tmp_path) as there:
        token, claims = there.server.tokens.issue("cerco", scopes=("ingest",), now=time.time())
        client.start(there.url, token=token, on_connection_error=errors.append)
        client.info("before", n=0)
        assert await in_thread(client.flush)
        there.server.tokens.revoke(claims.jti, time.time())
        await until(lambda: errors)
        assert isinstance(errors[0], ServerRefused)
        assert errors[0].refusal == "TOKEN_REVOKED"
        client.info("after", n=1)
        assert not await in_thread(client.flush, 0.2)
        assert numbers(there.lines()) == [0]
    assert client.statistics().waiting == 1


@pytest.mark.parametrize(
    ("address", "options", "reason"),
    [
        ("http://10.0.0.7:8787", {}, "allow_plain"),
        ("https://x/path", {}, "ends after the port"),
        ("gopher://x", {}, "begins with https://"),
        ("http://127.0.0.1", {"ca_file": "x.pem"}, "has no certificate"),
        ("https://127.0.0.1", {"ca_file": "x.pem"}, "ca_file cannot be used"),
        ("https://127.0.0.1", {"token": "a\nb"}, "token is text of 1 to"),
        ("https://127.0.0.1", {"token": "ä"}, "token is text of 1 to"),
        ("https://127.0.0.1", {"keys": None, "spool": "x"}, "fresh key pair"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_runs(address, options, reason):
    with pytest.raises(ConfigError, match=reason):
        ClientConfig.checked(address, options)


def test_a_missing_package_is_told_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(config_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hyperlog-p2p\[web\]'"):
        Client().start(NOWHERE)


def test_tls_trusts_the_system_or_the_given_certificates():
    config = ClientConfig.checked("https://127.0.0.1", {"keys": None})
    assert config.tls is not None
    assert config.tls.verify_mode is ssl.CERT_REQUIRED
    assert config.tls.check_hostname
    assert ClientConfig.checked(NOWHERE, {"keys": None}).tls is None


# -- exactly once


async def test_connections_that_are_cut_lose_and_double_nothing(tmp_path, client):
    async with site(tmp_path) as there, tcp_proxy(there.address) as proxy:
        client.start(proxy.url, token=there.token(), keys=None)
        for number in range(4000):
            client.info("x" * 200, n=number)
            if number % 800 == 799:
                await until(lambda: client.is_running)
                proxy.cut()
            if number % 50 == 0:
                await trio.sleep(0.002)
        assert await in_thread(client.flush, 30)
        assert numbers(there.lines()) == list(range(4000))
        assert gaps(there.folder) == []
    assert client.statistics().connections == 6
    assert client.statistics().lost == 0


@asynccontextmanager
async def serving(folder: Path, port: int):
    """A server process; its HTTP port."""
    arguments = ["serve", "--local", "--json", "--host", "127.0.0.1", "--store", "off"]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "hyperlog", *arguments, "--http", f"127.0.0.1:{port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        ready = b""
        while b"\n" not in ready:
            received = await process.stdout.receive_some()
            assert received, "the server has ended"
            ready += received
        yield process, int(json.loads(ready)["http"].rpartition(":")[2])
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


async def test_a_server_that_is_killed_again_and_again_has_every_record_once(tmp_path, client):
    create_keys(tmp_path / "keys.dat")
    authority = TokenAuthority(tmp_path / "logs" / ".hyperlog")
    token, _ = authority.issue("cerco", now=time.time())
    authority.close()
    stop = threading.Event()
    told = []

    def log_all():
        while not stop.is_set():
            client.info("text", n=len(told))
            told.append(True)
            time.sleep(0.001)

    port = 0
    thread = threading.Thread(target=log_all)
    recovery = []
    try:
        for run in range(4):
            async with serving(tmp_path, port) as (process, port):
                if run == 0:
                    client.start(f"http://127.0.0.1:{port}", token=token, instance="1")
                    thread.start()
                began_at = time.monotonic()
                connections = client.statistics().connections
                await until(lambda before=connections: client.statistics().connections > before)
                recovery.append(time.monotonic() - began_at)
                await trio.sleep(0.5)
                if run == 3:
                    stop.set()
                    thread.join()
                    assert await in_thread(client.flush, 20)
                process.kill()
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join()
    lines = [
        json.loads(line)
        for path in (tmp_path / "logs").glob("*.log")
        for line in path.read_bytes().splitlines()
    ]
    counts = Counter(line["attributes"]["n"] for line in lines if "level" in line)
    assert set(counts) == set(range(len(told)))
    assert set(counts.values()) == {1}
    assert gaps(tmp_path / "logs") == []
    assert max(recovery) < 2.0


async def test_a_server_that_falls_silent_is_left_within_six_seconds(tmp_path, client):
    errors = []
    async with site(tmp_path) as there, tcp_proxy(there.address) as proxy:
        client.start(proxy.url, token=there.token(), keys=None, on_connection_error=errors.append)
        client.info("x", n=0)
        assert await in_thread(client.flush)
        proxy.freeze()
        began_at = trio.current_time()
        client.info("x", n=1)
        await until(lambda: errors)
        assert trio.current_time() - began_at <= 6.5
        assert "no sign of life" in str(errors[0])
        proxy.cut()
        proxy.thaw()
        assert await in_thread(client.flush, 10)
        assert numbers(there.lines()) == [0, 1]


# -- the spool


def test_without_a_server_records_wait_on_disk_and_stopping_is_short(tmp_path):
    client = Client()
    client.start(NOWHERE, instance="1")
    for number in range(3000):
        client.info("hello", n=number)
    began_at = time.monotonic()
    assert not client.stop()
    assert time.monotonic() - began_at < 2.5
    (folder,) = client_data_path().glob("*/spool/web-127.0.0.1-*[0-9a-f]")
    assert folder.is_dir()
    about = json.loads(folder.with_name(f"{folder.name}.json").read_text())
    assert about["server"] == NOWHERE
    assert about["instance"] == "1"


SHOP = """
import os, sys, time
from hyperlog import Client
client = Client()
client.start(sys.argv[1], token=sys.argv[2] or None)
for n in range(int(sys.argv[3])):
    client.info("hello", n=n, run=sys.argv[4])
spool = client._shipper.session.spool
while spool.next_number < int(sys.argv[3]) or spool.unsaved:
    time.sleep(0.01)
if sys.argv[5] == "kill":
    os.kill(os.getpid(), 9)
if sys.argv[5] == "fork":
    client.flush(5)
    if os.fork() == 0:
        client.info("child", n=-1, run="child")
        sys.exit(0 if client.flush(5) else 1)
    assert os.wait()[1] == 0
    client.info("parent", n=-1, run="parent")
if sys.argv[5] == "work on":  # what others left is sent while a program runs, not when it ends
    time.sleep(60)
if sys.argv[5] == "end":
    print(time.monotonic(), flush=True)
"""


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


async def shop(url: str, token: str, count: int, run: str, how: str) -> subprocess.CompletedProcess:
    write("shop.py", SHOP)
    command = [sys.executable, "-W", "ignore", "shop.py", url, token, str(count), run, how]
    return await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)


async def test_the_next_start_delivers_what_a_killed_process_left(tmp_path):
    done = await shop(NOWHERE.replace(":9", ":19"), "", 10, "elsewhere", "kill")
    assert done.returncode == -signal.SIGKILL
    async with site(tmp_path) as there, tcp_proxy(there.address) as proxy:
        proxy.freeze()
        token = there.token("cerco")
        await shop(proxy.url, token, 200, "first", "kill")
        proxy.thaw()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shop, proxy.url, token, 100, "second", "work on")
            await until(lambda: len(there.lines()) == 300, 20)
            nursery.cancel_scope.cancel()
        for run, count in (("first", 200), ("second", 100)):
            found = [line for line in there.lines() if line["attributes"]["run"] == run]
            assert numbers(found) == list(range(count))
            assert {line["app"] for line in found} == {"cerco"}


async def test_a_forked_child_and_its_parent_both_get_through(tmp_path):
    async with site(tmp_path) as there:
        url = there.url.replace("127.0.0.1", "localhost")  # the child looks the name up itself
        done = await shop(url, there.token(), 50, "before", "fork")
        assert done.returncode == 0, done.stderr
        runs = Counter(line["attributes"]["run"] for line in there.lines())
        assert runs == {"before": 50, "child": 1, "parent": 1}


async def test_the_end_of_a_process_is_short_when_the_server_is_silent(tmp_path):
    async with site(tmp_path) as there, tcp_proxy(there.address) as proxy:
        proxy.freeze()
        done = await shop(proxy.url, "t", 2000, "x", "end")
        assert time.monotonic() - float(done.stdout) < 2.5  # 1 s, and what the interpreter takes
        assert done.stderr == b""


async def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-m", "hyperlog", *arguments]
    return await trio.run_process(
        command, check=False, capture_stdout=True, capture_stderr=True, **options
    )


async def test_flush_spool_delivers_with_a_token_and_asks_for_it_without(tmp_path):
    async with site(tmp_path, require_token=True) as there, tcp_proxy(there.address) as proxy:
        proxy.freeze()
        token = there.token("cerco")
        await shop(proxy.url, token, 300, "first", "kill")
        proxy.thaw()
        done = await run("flush-spool", "--json")
        assert done.returncode == 1
        assert "application token" in json.loads(done.stdout)["spools"][0]["error"]
        write("token.txt", there.token("cerco") + "\n")
        done = await run("flush-spool", "--json", "--token-file", "token.txt")
        assert done.returncode == 0, done.stdout
        counts = json.loads(done.stdout)
        assert counts["delivered"] == 300
        assert counts["spools"][0]["server"] == proxy.url
        assert numbers(there.lines()) == list(range(300))
        assert not list(client_data_path().glob("shop/spool/*/*"))
        done = await run("flush-spool", "--json", "--server", "https://elsewhere.example")
        assert json.loads(done.stdout)["spools"] == []


# -- hyperlog send


async def test_send_ships_lines_with_a_level(tmp_path):
    async with site(tmp_path, require_token=True) as there:
        environment = {**os.environ, "HYPERLOG_TOKEN": there.token("cerco")}
        done = await run("send", there.url, "one", "two", "--level", "error", env=environment)
        assert done.returncode == 0, done.stderr
        assert b"delivered 2 records" in done.stderr
        write("token.txt", there.token("cerco"))
        done = await run(
            "send",
            there.url,
            "--json",
            "--token-file",
            "token.txt",
            "--instance",
            "x y",
            stdin="größe\n\nlast".encode(),
        )
        assert json.loads(done.stdout)["delivered"] == 2
        assert json.loads(done.stdout)["publicKey"] is None
        told = [(line["level"], line["message"], line["app"]) for line in there.lines()]
    assert sorted(told) == [
        ("ERROR", "one", "cerco"),
        ("ERROR", "two", "cerco"),
        ("INFO", "größe", "cerco"),
        ("INFO", "last", "cerco"),
    ]


async def test_send_without_a_token_says_at_once_that_one_is_needed(tmp_path):
    async with site(tmp_path, require_token=True) as there:
        began_at = trio.current_time()
        done = await run("send", there.url, "x")
        assert trio.current_time() - began_at < 15
        assert done.returncode == 1
        assert b"delivered 0 of 1 record" in done.stderr
        assert b"TOKEN_REQUIRED" in done.stderr
        done = await run("send", there.url, "x", "--token-file", "missing")
        assert done.returncode == 2
        assert b"token's file cannot be read" in done.stderr
        done = await run("send", "http://10.0.0.7", "x")
        assert done.returncode == 2
        assert b"allow" in done.stderr


def test_the_key_pair_is_no_part_of_it():
    config = ClientConfig.checked(NOWHERE, {"key_pair": KeyPair.generate(), "instance": "1"})
    other = ClientConfig.checked(NOWHERE, {"key_pair": KeyPair.generate(), "instance": "1"})
    assert config.spool == other.spool
