from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from hyperlog.clientfolders import (
    application_name,
    client_keys_path,
    parse_spool_name,
    spool_name,
    web_spool_name,
)


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("/srv/My App/run it.py", "run_it"),
        ("shop", "shop"),
        ("", "python"),
        ("-c", "python"),
        ("../../..", "python"),
        ("/x/ünï.py", "n"),
        ("a" * 300, "a" * 64),
    ],
)
def test_the_application_is_named_after_its_script(script, name, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [script])
    assert application_name() == name
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", application_name())


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/hyperlog/shop/keys.dat"),
        ("linux", {"XDG_DATA_HOME": "data"}, "/home/ann/.local/share/hyperlog/shop/keys.dat"),
        ("linux", {}, "/home/ann/.local/share/hyperlog/shop/keys.dat"),
        ("darwin", {}, "/home/ann/Library/Application Support/hyperlog/shop/keys.dat"),
        ("win32", {"APPDATA": "/roaming"}, "/roaming/hyperlog/shop/keys.dat"),
        ("win32", {}, "/home/ann/AppData/Roaming/hyperlog/shop/keys.dat"),
    ],
)
def test_each_system_has_its_place_for_a_clients_keys(platform, variables, folder, monkeypatch):
    for name in ("XDG_DATA_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/ann", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert client_keys_path("shop") == Path(folder)


def test_a_spool_tells_whose_records_it_has_and_for_whom():
    server, client = bytes(range(32)), bytes(range(32, 64))
    assert parse_spool_name(spool_name(server, client)) == (server, client.hex()[:16])
    for name in ("of-a-later-version", spool_name(server, client).upper(), ""):
        assert parse_spool_name(name) is None


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
