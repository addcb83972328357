"""hyperlog.clientoptions: which server and with what, from the command line."""

from __future__ import annotations

import argparse

import pytest

from hyperlog.clientoptions import (
    MAX_TOKEN_FILE,
    add_client_options,
    client_options,
    parse_server,
)
from hyperlog.dht import encode_address, encode_z32
from hyperlog.errors import ConfigError

KEY = "5a" * 32


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_client_options(parser)
    return parser.parse_args(arguments)


def test_a_server_is_a_key_or_an_address():
    assert parse_server(KEY) == bytes.fromhex(KEY)
    assert parse_server(encode_z32(bytes.fromhex(KEY))) == bytes.fromhex(KEY)
    address = encode_address(bytes.fromhex(KEY), [("10.0.0.7", 49737)])
    assert parse_server(address.hex()) == address
    assert parse_server("wss://Logs.example.org/") == "https://logs.example.org"
    assert parse_server("http://10.0.0.7:8787") == "http://10.0.0.7:8787"
    with pytest.raises(ConfigError, match=r"64 hex digits.*or its address, https://HOST:PORT"):
        parse_server("logs.example.org")
    with pytest.raises(ConfigError, match="ends after the port"):
        parse_server("https://x/y")


def test_what_is_not_given_is_left_to_the_client():
    assert client_options(parsed()) == {"allow_plain": False}


def test_everything_that_is_given_reaches_the_client(tmp_path):
    given = client_options(
        parsed(
            *("--bootstrap", "127.0.0.1:1", "--bootstrap", "host:2"),
            *("--token", "t", "--ca-file", "ca.pem", "--allow-plain"),
        )
    )
    assert given.pop("ca_file").name == "ca.pem"
    assert given == {
        "bootstrap": [("127.0.0.1", 1), ("host", 2)],
        "token": "t",
        "allow_plain": True,
    }


@pytest.mark.parametrize("text", ["t.o.k", "t.o.k\n", "  t.o.k \r\n"])
def test_a_token_is_read_from_its_file(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    assert client_options(parsed("--token-file", str(path)))["token"] == "t.o.k"


@pytest.mark.parametrize("data", [b"", b"\n", b"a\nb", b"\xff", b"x\x00y", "ä".encode()])
def test_a_file_with_anything_else_is_refused_without_showing_it(tmp_path, data):
    path = tmp_path / "token"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="is no file with a token and nothing else"):
        client_options(parsed("--token-file", str(path)))


def test_a_file_that_is_missing_or_endless_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: .*No such file"):
        client_options(parsed("--token-file", str(tmp_path / "x")))
    path = tmp_path / "large"
    path.write_bytes(b"x" * 2 * MAX_TOKEN_FILE)
    assert len(client_options(parsed("--token-file", str(path)))["token"]) == MAX_TOKEN_FILE


def test_a_token_and_a_file_of_one_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        parsed("--token", "t", "--token-file", "f")
    assert "not allowed with" in capsys.readouterr().err
