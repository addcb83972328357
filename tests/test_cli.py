from __future__ import annotations

import argparse
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from hyperlog.cli import build_parser, main
from hyperlog.dht import KeyPair, open_dht, testnet
from tests.commands import environment, run, running
from tests.commands import option as bootstrap

KEY = "5a" * 32


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def records(folder):
    (log,) = folder.glob("*.log")
    return [line for line in map(json.loads, log.read_text().splitlines()) if "note" not in line]


# -- usage


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: COMMAND"),
        (["nonsense"], "invalid choice"),
        (["serve", "--bootstrap", "nowhere"], "write it like 203.0.113.7:49737"),
        (["serve", "--bootstrap", "a:99999"], "write it like 203.0.113.7:49737"),
        (["serve", "--port", "65536"], "ports go from 1 to 65535"),
        (["serve", "--prot", "1", "--local"], "unrecognized arguments: --prot 1"),
        (["serve", "--port", "x"], "ports go from 1 to 65535"),
        (["serve", "--host", "example.org"], "no IPv4 address to bind"),
        (["serve", "--local", "--bootstrap", "a:1"], "leave out one of the two"),
        (["send", "5a"], "64 hex digits"),
        (["send", "zz" * 32], "not all of them are hex digits"),
        (["send", KEY, "x", "--timeout", "-1"], "no number of seconds"),
        (["send", KEY, "x", "--bootstrap", "a"], "write it like"),
        (["send", KEY, "--lvl", "INFO", "x"], "unrecognized arguments: --lvl INFO x"),
        (["testnet", "--size", "0"], "no number of nodes"),
    ],
)
def test_wrong_usage_is_exit_status_2_and_says_what_to_do(arguments, reason, capsys):
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    out, err = capsys.readouterr()
    assert reason in err
    assert "usage: hyperlog" in err
    assert out == ""
    assert list(Path.cwd().iterdir()) == []  # nothing was made


def test_a_malformed_key_file_is_exit_status_1(capsys):
    Path("keys.dat").write_text('{"publicKey": "5a"}')
    assert main(["serve", "--local"]) == 1
    err = capsys.readouterr().err
    assert "keys.dat cannot be used: publicKey is not 64 hexadecimal digits" in err


def test_a_log_folder_that_cannot_be_made_is_exit_status_1(capsys):
    Path("file").write_text("")
    assert main(["serve", "--local", "--folder", "file/logs"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hyperlog: error: cannot make the log folder file/logs")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["node", "--host", "240.0.0.1"], "choose another --host"),
        (["serve", "--local", "--folder", "file"], "choose a folder, not a file"),
        (["send", KEY, "text"], "name a key pair to send with by --keys FILE"),
        (["keygen", "."], "exists already"),
    ],
)
def test_what_the_system_refuses_is_exit_status_1_and_says_what_to_do(arguments, reason, capsys):
    for name in ("file", "data"):
        Path(name).write_text("in the way")
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert (out, reason in err) == ("", True)


def test_wrong_settings_name_the_command_whose_help_tells_more(capsys):
    assert main(["serve", "--local", "--host", "x"]) == 2
    assert "usage: hyperlog serve ...; --help tells more\n" in capsys.readouterr().err


def test_help_fits_into_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    seen = 0
    parsers = [build_parser()]
    while parsers:
        parser = parsers.pop()
        assert max(map(len, parser.format_help().splitlines())) <= 80, parser.prog
        seen += 1
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    assert seen > 20


async def test_a_reader_that_has_gone_is_told_and_no_trace_of_the_stack():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = await trio.run_process(
            [sys.executable, "-m", "hyperlog", "doctor", "--bootstrap", "127.0.0.1:9"],
            stdout=writer,
            capture_stderr=True,
            check=False,
            env=environment(),
        )
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b"hyperlog: error: nobody reads the output any more\n"


@pytest.mark.skipif(os.name != "posix", reason="needs sh")
@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
async def test_streams_that_are_closed_disturb_nothing(closed):
    without = ("sh", "-c", f'exec "$@" {closed}', "sh")
    async with open_dht(bootstrap=[], host="127.0.0.1") as dht:
        done = await run("doctor", *bootstrap(dht.address), prefix=without)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def test_a_port_in_use_is_exit_status_1():
    async with open_dht(bootstrap=[], host="127.0.0.1") as dht:
        port = dht.address[1]
        for command in ("serve", "testnet"):
            done = await run(command, "--host", "127.0.0.1", "--port", port)
            assert done.returncode == 1
            assert b"in use" in done.stderr
            assert b"choose another --port" in done.stderr
            assert done.stdout == b""


def test_version_and_help_are_data(capsys):
    for option, text in (("--version", "hyperlog "), ("--help", "serve")):
        with pytest.raises(SystemExit) as end:
            main([option])
        assert end.value.code == 0
        assert text in capsys.readouterr().out


def test_keygen_makes_a_file_for_its_owner_and_never_overwrites(capsys):
    assert main(["keygen"]) == 0
    key = capsys.readouterr().out.strip()
    made = json.loads(Path("keys.dat").read_text())
    assert made["publicKey"] == key
    assert KeyPair.from_seed(bytes.fromhex(made["secretKey"])[:32]).public_key.hex() == key
    if os.name == "posix":
        assert stat.S_IMODE(Path("keys.dat").stat().st_mode) == 0o600
    assert main(["keygen"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["keygen", "other.dat"]) == 0


# -- serving and sending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_prints_its_key_takes_records_and_ends_cleanly(number, tmp_path):
    async with testnet(4) as network:
        node = "{}:{}".format(*network.bootstrap[0])
        async with running(
            "--bootstrap", node, "--http", "off", module="hyperlog.server"
        ) as server:
            line = await server.line()
            key = re.fullmatch("server started on ([0-9a-f]{64})", line)[1]
            await server.says("announced to 3 DHT nodes")
            await server.says(f'Client().start("{key}", bootstrap=["{node}"])')
            await server.says("hypertrace-logger")
            # Messages may stand before options and behind them.
            done = await run("send", key, "one", "--bootstrap", node, "two words")
            assert done.returncode == 0, done.stderr
            assert done.stdout == b""
            assert b"delivered 2 records" in done.stderr
            assert await server.stop(number) == 0
        assert server.stdout.decode().splitlines() == [line]
        assert b"Traceback" not in server.stderr
        async with open_dht(bootstrap=network.bootstrap, host="127.0.0.1") as dht:
            assert await dht.find_peer(bytes.fromhex(key)) == []  # withdrawn
    assert stat.S_IMODE((tmp_path / "keys.dat").stat().st_mode) == 0o600
    sent = records(tmp_path / "logs")
    assert [(record["level"], record["message"]) for record in sent] == [
        ("INFO", "one"),
        ("INFO", "two words"),
    ]


async def test_a_local_server_is_all_the_network_that_send_needs(tmp_path):
    options = ("--local", "--host", "127.0.0.1", "--folder", "here", "--keys", "k.dat", "--json")
    options += ("--http", "off")
    async with running("serve", *options) as server:
        started = json.loads(await server.line())
        assert started["event"] == "started"
        node = f"{started['host']}:{started['port']}"
        lines = "".join(f"line {number}\n" for number in range(3000)) + "\nJørgen\r\nlast"
        done = await run(
            "send", started["publicKey"], "--bootstrap", node, "--json", stdin=lines.encode()
        )
        assert done.returncode == 0, done.stderr
        counts = json.loads(done.stdout)
        assert (counts["sent"], counts["delivered"]) == (3002, 3002)
        assert await server.stop() == 0
    sent = [record["message"] for record in records(tmp_path / "here")]
    assert sent == [f"line {number}" for number in range(3000)] + ["Jørgen", "last"]
    assert [log.stem for log in (tmp_path / "here").glob("*.log")] == [counts["publicKey"]]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1")
async def test_a_server_tells_its_statistics_when_asked_for():
    arguments = ("--local", "--host", "127.0.0.1", "--http", "off", "--store", "off")
    async with running("serve", *arguments) as server:
        key = (await server.line()).split()[-1]
        server.process.send_signal(signal.SIGUSR1)
        event = json.loads(await server.line(1))
        assert event["event"] == "statistics"
        assert event["statistics"]["public_key"] == key
        assert event["statistics"]["files"]["lines"] == 0
        assert await server.stop() == 0


async def test_without_a_network_serve_says_so_within_two_seconds_and_can_be_reached():
    options = ("--bootstrap", "127.0.0.1:9", "--host", "127.0.0.1", "--http", "off")
    async with running("serve", *options) as server:
        began_at = trio.current_time()
        key = (await server.line()).split()[-1]
        # The key is due 2 s after the start; a loaded machine may take a while to start Python.
        assert trio.current_time() - began_at < 5
        await server.says("with bootstrap 127.0.0.1:")
        node = re.search(r"bootstrap (127\.0\.0\.1:\d+)", server.stderr.decode())[1]
        done = await run("send", key, "hello", "--bootstrap", node)
        assert done.returncode == 0, done.stderr
        await server.says("no bootstrap node answered, retrying", timeout=30)
        assert await server.stop() == 0


async def test_a_server_keeps_its_key_and_its_port():
    async with open_dht(bootstrap=[], host="127.0.0.1") as dht:
        port = dht.address[1]
    seen = set()
    for _ in range(2):
        options = ("--local", "--host", "127.0.0.1", "--port", port, "--http", "off")
        async with running("serve", *options) as server:
            seen.add(await server.line())
            await server.says(f"bootstrap 127.0.0.1:{port}")
            assert await server.stop() == 0
    assert len(seen) == 1


async def test_http_is_served_where_it_is_asked_for_and_a_port_that_is_taken_is_told():
    options = ("--local", "--host", "127.0.0.1", "--json", "--http")
    async with running("serve", *options, "127.0.0.1:0") as server:
        url = json.loads(await server.line())["http"]
        await server.says(f"HTTP: {url}")
        host, port = url.removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        done = await run("serve", *options, f"{host}:{port}", "--folder", "b", "--keys", "b.dat")
        assert done.returncode != 0
        assert f"HTTP cannot be served at {host}:{port}".encode() in done.stderr
        assert b"--http off" in done.stderr
        assert await server.stop() == 0


async def test_a_second_server_of_one_machine_serves_http_at_another_port():
    options = ("--local", "--host", "127.0.0.1", "--json")
    async with running("serve", *options, "--http", "127.0.0.1:0") as first:
        taken = json.loads(await first.line())["http"].removeprefix("http://127.0.0.1:")
        # What is the default cannot be taken for sure in a test: name it as the default is named.
        program = f"import hyperlog.serveoptions as o; o.DEFAULT_HTTP = '127.0.0.1:{taken}'"
        program += "; import sys; from hyperlog.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", program, "serve", *options, "--folder", "b"]
        done = await trio.lowlevel.open_process(
            [*command, "--keys", "b.dat"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        async with done.stdout, done.stderr:
            url = json.loads(await done.stdout.receive_some())["http"]
            assert url.startswith("http://127.0.0.1:")
            assert not url.endswith(f":{taken}")
            done.terminate()
            said = b""
            async for part in done.stderr:
                said += part
            assert await done.wait() == 0
        assert f"127.0.0.1:{taken} is taken".encode() in said
        assert await first.stop() == 0


async def test_a_key_file_that_others_can_read_is_refused():
    main(["keygen"])
    os.chmod("keys.dat", 0o644)
    done = await run("serve", "--local", "--host", "127.0.0.1")
    assert done.returncode == 1
    assert b"chmod 600 keys.dat" in done.stderr


async def test_send_fails_when_nobody_is_there():
    async with testnet(2) as network:
        node = "{}:{}".format(*network.bootstrap[0])
        done = await run("send", KEY, "x", "--bootstrap", node, "--timeout", "1", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["delivered"] == 0
    assert b"delivered 0 of 1 record" in done.stderr
    assert b"is the server running" in done.stderr
    assert b"kept on disk: 1 record, for the next run or `hyperlog flush-spool`" in done.stderr


async def test_send_tells_of_a_server_that_is_there_and_takes_no_more():
    arguments = ("--local", "--host", "127.0.0.1", "--http", "off", "--store", "off")
    async with running("serve", *arguments, "--quota", "64K") as server:
        key = (await server.line()).split()[-1]
        await server.says("with bootstrap 127.0.0.1:")
        node = re.search(r"bootstrap (127\.0\.0\.1:\d+)", server.stderr.decode())[1]
        lines = b"%1000d\n" % 0 * 5000
        done = await run("send", key, "--bootstrap", node, "--timeout", "1", stdin=lines)
        assert await server.stop() == 0
    assert done.returncode == 1
    assert b"the server is there and takes no more: its log tells why" in done.stderr
    assert b"is the server running" not in done.stderr
    assert b"--quota" in server.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
async def test_whoever_waits_at_a_terminal_sees_for_what():
    import termios

    ours, theirs = os.openpty()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        node = bootstrap(silent.getsockname())
        commands = [
            (("send", KEY, *node, "--timeout", "1"), "each line is a message; Ctrl-D ends"),
            (("flush-spool", *node, "--timeout", "1"), f"hyperlog: 1 record for {KEY[:16]}…"),
            (("ping", KEY, *node, "--timeout", "1"), f"connecting to {KEY[:16]}…"),
        ]
        for arguments, text in commands:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "hyperlog", *arguments],
                stdin=theirs,
                stderr=theirs,
                env=environment(),
            )
            with trio.fail_after(20):
                seen = await trio.to_thread.run_sync(os.read, ours, 1000)
                assert seen.decode().splitlines()[0] == text
                os.write(ours, b"hello\n\x04")
                assert await process.wait() == 1
            while select.select([ours], [], [], 0)[0]:
                os.read(ours, 1000)
            termios.tcflush(theirs, termios.TCIFLUSH)
    os.close(ours)
    os.close(theirs)


async def test_a_testnet_prints_one_json_line_and_runs_until_a_signal():
    async with running("testnet", "--size", "3") as network:
        ready = json.loads(await network.line())
        (node,) = ready["bootstrap"]
        assert node["host"] == "127.0.0.1"
        async with open_dht(bootstrap=[("127.0.0.1", node["port"])], host="127.0.0.1") as dht:
            await dht.bootstrapped()
            listener = await dht.listen()
            assert await listener.wait_announced() == 3
        assert await network.stop(signal.SIGINT) == 0
    assert network.stdout.count(b"\n") == 1
