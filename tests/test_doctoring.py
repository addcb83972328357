from __future__ import annotations

import json
import re
import signal
import sys

import pytest
import trio

from hyperlog.cli import build_parser
from hyperlog.dht import KeyPair, encode_address, encode_z32, open_dht, testnet
from hyperlog.doctoring import TextReport, see_doctor
from hyperlog.errors import ConfigError, KeyFileError
from hyperlog.findings import Finding, Verdict
from tests.commands import option, run, running

LOOPBACK = "127.0.0.1"
INDENT = " " * 28
KEY = KeyPair.generate().public_key


def parsed(*arguments):
    return build_parser().parse_args(["doctor", *arguments])


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


# -- what is asked for


@pytest.mark.parametrize("text", [KEY.hex(), encode_z32(KEY)])
def test_a_key_is_taken_in_every_form(text):
    assert parsed(text).target == (KEY, ())


def test_an_address_brings_its_nodes_along():
    nodes = (("192.0.2.1", 4), ("192.0.2.2", 5))
    assert parsed(encode_address(KEY, nodes).hex()).target == (KEY, nodes)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["5a"], "64 hex digits"),
        (["https://user@host"], "no user and password"),
        (["--timeout", "0"], "no number of seconds"),
        (["--bootstrap", "here"], "write it like"),
    ],
)
def test_wrong_usage_is_told(arguments, reason, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(*arguments)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


async def test_files_that_cannot_be_used_are_told_before_anything_is_looked_at(tmp_path, capsys):
    with pytest.raises(KeyFileError, match="does not exist"):
        await see_doctor(parsed(KEY.hex(), "--keys", str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="cannot be read"):
        await see_doctor(parsed("https://localhost:1", "--ca-file", str(tmp_path / "none")))
    assert capsys.readouterr().out == ""


# -- what is printed


@pytest.mark.usefixtures("wide")
async def test_a_report_has_a_line_for_each_step_advice_below_and_a_verdict_at_the_end(capsys):
    async with testnet(4) as network:
        assert not await see_doctor(parsed(KEY.hex(), *option(network.bootstrap[0])))
        assert await see_doctor(parsed(*option(network.bootstrap[0])))
    missing, whole = capsys.readouterr().out.split("record of the key.\n")
    lines = missing.splitlines()
    assert lines[0].startswith("ok       names              nothing to look up")
    assert lines[1] == "ok       UDP                datagrams go out and answers come back"
    found = next(n for n, line in enumerate(lines) if line.startswith("failed "))
    assert lines[found:] == [
        "failed   record of the key  not announced: none of 4 nodes next to the key has a record",
        f"{INDENT}→ Is the server running, is this the key that it printed when it",
        f"{INDENT}  started, and does it use the same bootstrap nodes?",
        "",
        "The server cannot be reached. It fails at: ",
    ]
    assert whole.endswith("\n\nThe network can be used.\n")


@pytest.mark.parametrize("columns", range(60, 100))
def test_numbers_are_not_torn_from_what_they_count(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = "direct, at 192.0.2.1:5; open in 31 ms, round trip 0.9 ms through 3 nodes of the network"
    TextReport(None).found(Finding("path", Verdict.OK, text))
    out = capsys.readouterr().out
    assert out.split()[2:] == text.split()
    assert all(len(line) <= columns for line in out.splitlines())
    assert not re.search(r"\d\n", out)


async def test_a_terminal_sees_the_step_that_goes_on_and_colours(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    async with testnet(1) as network:
        await see_doctor(parsed(*option(network.bootstrap[0])))
    out = capsys.readouterr().out
    assert "\r         names …\x1b[K" in out
    assert "\x1b[32mok     \x1b[m  names" in out


async def test_a_terminal_that_can_nothing_gets_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    async with testnet(1) as network:
        await see_doctor(parsed(*option(network.bootstrap[0])))
    out = capsys.readouterr().out
    assert out.startswith("ok       names ")
    assert "\x1b" not in out
    assert "\r" not in out


async def test_a_program_gets_one_object(capsys):
    async with testnet(4) as network:
        assert not await see_doctor(parsed(KEY.hex(), *option(network.bootstrap[0]), "--json"))
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert (found["target"], found["reachable"], found["failed"]) == (KEY.hex(), False, "record")
    assert [step["step"] for step in found["steps"]] == [
        "names",
        "udp",
        "bootstrap",
        "network",
        "nat",
        "record",
    ]
    for step in found["steps"]:
        assert set(step) == {"step", "verdict", "text", "advice", "figures"}


async def test_the_exit_status_tells_whether_the_server_can_be_reached():
    async with testnet(3) as network, open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as dht:
        listener = await dht.listen()
        await listener.wait_announced()
        done = {}

        async def visit(key):
            done[key] = await run("doctor", key.hex(), *option(network.bootstrap[0]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit, listener.public_key)
            nursery.start_soon(visit, KEY)
    good, bad = done[listener.public_key], done[KEY]
    assert (good.returncode, bad.returncode) == (0, 1)
    assert good.stdout.endswith(b"The server can be reached.\n")
    assert good.stderr == bad.stderr == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_without_a_trace_of_the_stack(number):
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as hole:
        await hole.bind((LOOPBACK, 0))
        async with running("doctor", *option(hole.getsockname())) as doctor:
            await doctor.line()
            assert await doctor.stop(number) == 1
        assert doctor.stderr == b""
        assert doctor.stdout.count(b"\n") == 1
