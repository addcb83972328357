"""hyperlog.serveoptions: each option does what the documentation says, and each is in it."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from hyperlog import serveoptions
from hyperlog.access import AccessPolicy
from hyperlog.config import ServerConfig
from hyperlog.errors import ConfigError
from hyperlog.limits import ServerLimits
from hyperlog.serveoptions import add_server_options, server_options
from hyperlog.sinks.folder import FilePolicy
from hyperlog.store.policy import BucketPolicy, StorePolicy

OPERATIONS = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_server_options(made)
    return made


def parse(*arguments: str):
    return server_options(parser().parse_args(arguments))


def options() -> set[str]:
    return {text for action in parser()._actions for text in action.option_strings} - {
        "-h",
        "--help",
    }


def test_without_options_the_defaults_stand(monkeypatch):
    monkeypatch.delenv("HYPERLOG_MONGO", raising=False)
    assert parse() == {
        "durability": "write",
        "max_line": 65536,
        "files": FilePolicy(),
        "limits": ServerLimits(),
        "access": AccessPolicy(),
        "require_token": False,
        "data": None,
        "http": "127.0.0.1:8787",
        "http_elsewhere": True,
        "http_hosts": [],
        "store": "sqlite",
        "mongo": None,
        "mongo_ttl": None,
        "retention": StorePolicy(),
    }
    assert not parse("--http", "127.0.0.1:8787")["http_elsewhere"], "there or nowhere"


def test_options_reach_their_fields():
    text = (
        "--durability fsync --max-line 32K --rotate-size 10M --rotate-age 1d "
        "--keep-bytes 1G --keep-age 4w --quota off --key-quota 2G --max-keys 5 "
        "--max-connections 7 --max-handshakes off --max-bytes-per-key 1M "
        "--max-record 2M --allow list --learn 3 --require-token --data d --http off "
        "--http-host a.example --http-host B.example --store mongo --mongo mongodb://u:p@h/ "
        "--mongo-ttl 7d --keep-records 30d --keep-record-bytes 2G"
    )
    given = parse(*text.split())
    assert (given["durability"], given["max_line"]) == ("fsync", 32768)
    assert given["files"] == FilePolicy(10 * 2**20, 86400, 2**30, 28 * 86400, None, 2 * 2**30, 5)
    assert given["limits"] == ServerLimits(
        connections=7, handshakes=None, bytes_per_key=2**20, max_record=2 * 2**20
    )
    assert given["access"] == AccessPolicy(Path("list"), None, 3)
    assert (given["require_token"], given["data"]) == (True, Path("d"))
    assert (given["http"], given["http_hosts"]) == (None, ["a.example", "b.example"])
    assert (given["store"], given["mongo"]) == ("mongo", "mongodb://u:p@h/")
    assert given["mongo_ttl"] == 7 * 86400
    assert given["retention"] == StorePolicy(30 * 86400, 2 * 2**30)


def test_the_address_of_mongodb_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("HYPERLOG_MONGO", "mongodb://user:secret@db/")
    assert parse()["mongo"] == "mongodb://user:secret@db/"
    assert parse("--mongo", "mongodb://other/")["mongo"] == "mongodb://other/"
    assert "secret" not in repr(ServerConfig.checked(**parse()))


def test_a_malformed_address_of_mongodb_is_not_repeated(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        parse("--mongo", "secret@db")
    assert "mongodb://" in (told := capsys.readouterr().err)
    assert "secret" not in told
    monkeypatch.setenv("HYPERLOG_MONGO", "secret@db")
    with pytest.raises(ConfigError, match="mongodb://") as caught:
        parse()
    assert "secret" not in str(caught.value)


def test_without_the_packages_for_it_there_is_no_http_by_default(monkeypatch):
    monkeypatch.setattr(serveoptions, "find_spec", lambda name: None)
    assert parse()["http"] is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--rotate-size 0", "no size"),
        ("--keep-age 7", "no time"),
        ("--max-connections off", "no number"),
        ("--learn x", "neither"),
        ("--allow a --allow-any", "not allowed with"),
        ("--durability never", "invalid choice"),
        ("--store postgres", "invalid choice"),
        ("--http 8787", "HOST:PORT"),
        ("--http a:65536", "HOST:PORT"),
        ("--http-host a:80", "no host name"),
        ("--keep-records 7", "no time"),
        ("--keep-bucket 7d", "names no application"),
        ("--keep-bucket cerco=7", "no time"),
        ("--keep-bucket cerco=7d,x", "no size"),
    ],
)
def test_mistakes_are_told(arguments, text, capsys):
    with pytest.raises(SystemExit):
        parse(*arguments.split())
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["--learn 3", "--keep-bytes 2G --quota 1G"])
def test_options_that_exclude_each_other_are_told(arguments):
    with pytest.raises(ConfigError):
        parse(*arguments.split())


def test_each_option_is_documented():
    assert options() == set(re.findall(r"--[a-z][a-z-]+", OPERATIONS)) - {
        "--folder",
        "--keys",
        "--port",
    }


def test_the_documented_defaults_are_the_real_ones():
    text = parser().format_help()
    table = dict(re.findall(r"^\| `(--[a-z-]+)` \| ([0-9]+M?)", OPERATIONS, re.MULTILINE))
    sections = re.findall(
        r"^### (--[a-z-]+)\n\n.*?default ([0-9]+[KMG]?)", OPERATIONS, re.MULTILINE
    )
    documented = table | dict(sections)
    assert len(documented) >= 10
    given = [word for option, value in documented.items() for word in (option, value)]
    files = {name: value for name, value in parse(*given).items() if name != "durability"}
    assert files == {name: value for name, value in parse().items() if name != "durability"}
    for option, value in documented.items():
        assert re.search(rf"{option} .*?default:\s+{value}\b", text, re.DOTALL)


def test_every_limit_can_be_set():
    fixed = {"unproved_connections", "proof_time"}
    names = {field.name for field in (*fields(FilePolicy), *fields(ServerLimits))} - fixed
    made = {re.sub("^max_", "", option[2:].replace("-", "_")) for option in options()}
    assert {re.sub("^max_", "", name) for name in names} <= made


def test_an_application_can_be_kept_for_another_time():
    words = ["--keep-records", "7d", "--keep-bucket", "a=b=90d,2G", "--keep-bucket", "midas=off"]
    retention = parse(*words)["retention"]
    week, quarter = 7 * 86400, 90 * 86400
    assert retention.of("cerco") == BucketPolicy(week, None)
    assert retention.of("a=b") == BucketPolicy(quarter, 2 * 2**30)
    assert retention.of("midas") == BucketPolicy(None, None)
