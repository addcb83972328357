from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog import control
from hyperlog.addresses import MAX_BOOTSTRAP
from hyperlog.clientfolders import application_name, client_keys_path
from hyperlog.config import (
    MAX_TOKEN,
    ClientConfig,
    ServerConfig,
    parse_address,
    parse_bootstrap,
    parse_peer,
    parse_public_key,
)
from hyperlog.dht import BOOTSTRAP_NODES, KeyPair, encode_address, encode_z32
from hyperlog.errors import ConfigError, KeyFileError

KEY = "5a" * 32


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:49737", ("127.0.0.1", 49737)),
        ("node1.hyperdht.org:1", ("node1.hyperdht.org", 1)),
        (" localhost:65535 ", ("localhost", 65535)),
        ("my_host.:80", ("my_host.", 80)),
    ],
)
def test_an_address_is_host_and_port(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":80",
        "host:0",
        "host:65536",
        "host:-1",
        "host:8o",
        "host:٣",
        "a b:80",
        "-host:80",
        "[::1]:80",
        "1.2.3.4:80:90",
        "http://host:80",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"HOST:PORT; write it like|is no IPv4 address or host"):
        parse_address(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_config_error(text):
    try:
        host, port = parse_address(text)
    except ConfigError:
        return
    assert parse_address(f"{host}:{port}") == (host, port)


def test_bootstrap_nodes_may_be_texts_pairs_or_a_single_text():
    assert parse_bootstrap(["a:1", ("b", 2)]) == (("a", 1), ("b", 2))
    assert parse_bootstrap("a:1") == (("a", 1),)
    with pytest.raises(ConfigError, match="too many"):
        parse_bootstrap(["a:1"] * (MAX_BOOTSTRAP + 1))
    for wrong in (7, ("b", "c", "d"), None):
        with pytest.raises(ConfigError):
            parse_bootstrap([wrong])


def test_a_public_key_is_hex_or_bytes():
    assert parse_public_key(KEY) == parse_public_key(bytes.fromhex(KEY)) == bytes.fromhex(KEY)
    assert parse_public_key(f" {KEY.upper()}\n") == bytes.fromhex(KEY)
    assert parse_public_key(encode_z32(bytes.fromhex(KEY))) == bytes.fromhex(KEY)


def test_a_peer_is_a_key_or_an_address_that_names_nodes():
    nodes = (("10.0.0.7", 49737), ("203.0.113.9", 1))
    address = encode_address(bytes.fromhex(KEY), nodes)
    assert parse_peer(address) == parse_peer(f"{address.hex()}\n") == (bytes.fromhex(KEY), nodes)
    assert parse_peer(KEY) == (bytes.fromhex(KEY), ())


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("5a" * 31, "got 62 characters"),
        ("zz" * 32, "not all of them are hex"),
        ("", "got 0 characters"),
        (b"short", "got 5"),
        (7, "bytes or text"),
    ],
)
def test_a_malformed_public_key_is_refused_with_the_reason(key, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_public_key(key)


# -- server


def test_a_server_joins_the_public_network_unless_told_otherwise():
    assert ServerConfig.checked().bootstrap == tuple(BOOTSTRAP_NODES)
    assert ServerConfig.checked(bootstrap=["a:1"]).bootstrap == (("a", 1),)
    assert ServerConfig.checked(local=True).bootstrap == ()


def test_what_a_server_keeps_of_its_own_lies_with_its_log_files_unless_told_otherwise():
    assert ServerConfig.checked(folder="logs").data == Path("logs/.hyperlog")
    assert ServerConfig.checked(folder="logs", data="x").data == Path("x")


def test_known_nodes_are_kept_for_each_network_in_a_file_of_its_own():
    public, private = ServerConfig.checked(), ServerConfig.checked(bootstrap=["b:2", "a:1"])
    assert public.node_cache == Path("logs/.hyperlog/nodes.json")
    assert private.node_cache.parent == public.node_cache.parent
    assert private.node_cache.name not in ("nodes.json", "nodes-.json")
    assert private.node_cache == ServerConfig.checked(bootstrap=["a:1", "b:2"]).node_cache
    assert private.node_cache != ServerConfig.checked(bootstrap=["a:1"]).node_cache
    assert ServerConfig.checked(local=True).node_cache is None


def test_a_client_keeps_known_nodes_beside_its_spool(tmp_path):
    pair = KeyPair.generate()
    config = ClientConfig.checked(KEY, {"spool": tmp_path, "key_pair": pair})
    assert config.node_cache == tmp_path / "nodes.json"
    assert ClientConfig.checked(KEY, {"spool": None, "key_pair": pair}).node_cache is None
    web = ClientConfig.checked("https://a.example", {"spool": tmp_path, "key_pair": pair})
    assert web.node_cache is None


def test_a_library_server_has_neither_http_nor_a_store_unless_asked():
    config = ServerConfig.checked()
    assert (config.http, config.store, config.mongo) == (None, None, None)
    assert ServerConfig.checked(http="[::1]:0").http == ("::1", 0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"local": True, "bootstrap": ["a:1"]}, "leave out one of the two"),
        ({"port": 65536}, "no UDP port"),
        ({"host": "localhost"}, "no IPv4 address to bind"),
        ({"host": "300.0.0.1"}, "no IPv4 address to bind"),
        ({"bootstrap": ["a"]}, "HOST:PORT"),
        ({"http": "8787"}, "HOST:PORT"),
        ({"http": "[::1:80"}, "no address or host name"),
        ({"http_hosts": ["a b"]}, "no host name"),
        ({"store": "postgres"}, "'sqlite', 'mongo' or None"),
        ({"store": "mongo"}, "its address"),
        ({"mongo": "localhost"}, "mongodb://"),
        ({"mongo_ttl": 60.0}, "needs the address"),
        ({"mongo": "mongodb://h", "mongo_ttl": 2.0**31}, "at most 68 years"),
    ],
)
def test_server_settings_that_cannot_be_used_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        ServerConfig.checked(**settings)


# -- client


@pytest.fixture
def data_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


def test_an_application_keeps_its_key_pair(data_home):
    first = ClientConfig.checked(KEY, {})
    assert ClientConfig.checked(KEY, {}).key_pair == first.key_pair
    assert list(data_home.glob("hyperlog/*/keys.dat")) == [client_keys_path()]


def test_keys_none_makes_a_fresh_pair_and_no_file(data_home):
    pairs = {ClientConfig.checked(KEY, {"keys": None}).key_pair.public_key for _ in range(2)}
    assert len(pairs) == 2
    assert list(data_home.iterdir()) == []


def test_a_named_key_file_is_used_and_made_if_missing(tmp_path):
    path = tmp_path / "mine.dat"
    first = ClientConfig.checked(KEY, {"keys": path}).key_pair
    assert ClientConfig.checked(KEY, {"keys": str(path)}).key_pair == first
    path.write_text("{}")
    with pytest.raises(KeyFileError, match="publicKey"):
        ClientConfig.checked(KEY, {"keys": path})


def test_a_given_key_pair_goes_before_any_file(data_home):
    pair = KeyPair.generate()
    assert ClientConfig.checked(KEY, {"key_pair": pair}).key_pair == pair
    assert list(data_home.iterdir()) == []


def test_an_unusable_data_folder_costs_the_key_and_not_the_application(
    tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "hyperlog"):
        config = ClientConfig.checked(KEY, {})
    assert len(config.key_pair.public_key) == 32
    assert "gets a fresh one" in caplog.text


@pytest.mark.parametrize(
    ("key", "options", "error", "reason"),
    [
        (None, {}, ConfigError, "server's key or address, or else create_socket"),
        (
            KEY,
            {"create_socket": print},
            ConfigError,
            "server's key or address, or else create_socket",
        ),
        ("5a", {}, ConfigError, "64 hex digits"),
        (KEY, {"bootstrap": ["nonsense"]}, ConfigError, "HOST:PORT"),
        (KEY, {"on_opne": print}, TypeError, "no option 'on_opne'"),
        (KEY, {"on_open": 7}, TypeError, "on_open is a function, not int"),
    ],
)
def test_client_options_that_cannot_be_used_are_refused(key, options, error, reason):
    with pytest.raises(error, match=reason):
        ClientConfig.checked(key, options)


def test_a_client_is_named_after_its_program_and_its_key_unless_told_otherwise():
    pair = KeyPair.generate()
    config = ClientConfig.checked(KEY, {"key_pair": pair, "application": None})
    assert config.application == application_name()
    assert config.instance == pair.public_key.hex()[:8]
    config = ClientConfig.checked(KEY, {"keys": None, "application": "Läden", "instance": "x" * 64})
    assert (config.application, config.instance) == ("Läden", "x" * 64)


@pytest.mark.parametrize("option", ["application", "instance"])
@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\nb", "\x1b[31m", "\ud800", 7])
def test_names_are_short_and_printable(option, name):
    with pytest.raises(ConfigError, match=f"^{option} "):
        ClientConfig.checked(KEY, {"keys": None, option: name})


def test_a_token_is_neither_shown_nor_repeated_in_errors():
    config = ClientConfig.checked(KEY, {"keys": None, "token": "s3cret"})
    assert config.token == "s3cret"
    assert "s3cret" not in repr(config)
    assert MAX_TOKEN == control.MAX_TOKEN
    for token in ("", "s3cret\n", "s3cret" * 2000, b"s3cret"):
        with pytest.raises(ConfigError, match="token is text") as caught:
            ClientConfig.checked(KEY, {"keys": None, "token": token})
        assert "s3cret" not in str(caught.value)


def test_one_class_name_to_ignore_may_stand_alone():
    options = {"keys": None, "ignore_class_names": "Noise"}
    assert ClientConfig.checked(KEY, options).ignore_class_names == {"Noise"}


def test_a_spool_belongs_to_a_kept_key_pair_and_a_server(data_home):
    config = ClientConfig.checked(KEY, {})
    assert config.spool is not None
    assert config.spool.parent == client_keys_path().with_name("spool")
    assert config.spool == ClientConfig.checked(KEY, {}).spool
    other = ClientConfig.checked("5b" * 32, {}).spool
    assert other is not None
    assert other != config.spool
    assert other.parent == config.spool.parent
    assert ClientConfig.checked(KEY, {"key_pair": KeyPair.generate()}).spool != config.spool
    given = ClientConfig.checked(KEY, {"spool": data_home / "mine"}).spool
    assert given == data_home / "mine" / config.spool.name
    assert not config.spool.exists()  # made when there is something to keep


@pytest.mark.skipif(sys.platform == "win32", reason="a working directory cannot be removed there")
def test_a_spool_in_a_working_directory_that_is_gone_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(ConfigError, match="no working directory"):
        ClientConfig.checked(None, {"create_socket": print, "spool": "spool"})
    config = ClientConfig.checked(None, {"create_socket": print, "spool": tmp_path / "spool"})
    assert config.spool == tmp_path / "spool"


@pytest.mark.parametrize("options", [{"spool": None}, {"keys": None}])
def test_records_are_kept_in_memory_on_demand_or_where_nobody_could_send_them(data_home, options):
    assert ClientConfig.checked(KEY, options).spool is None


def test_a_client_with_its_own_connections_has_a_spool_if_one_is_named(tmp_path):
    assert ClientConfig.checked(None, {"create_socket": print}).spool is None
    config = ClientConfig.checked(None, {"create_socket": print, "spool": tmp_path})
    assert config.spool == tmp_path


def test_the_limit_of_the_spool_has_a_default_and_a_least_value(data_home):
    assert ClientConfig.checked(KEY, {}).max_spool_bytes == 256 * 1024 * 1024
    assert ClientConfig.checked(KEY, {"max_spool_bytes": 2**20}).max_spool_bytes == 2**20
    with pytest.raises(ConfigError, match="spool=None"):
        ClientConfig.checked(KEY, {"max_spool_bytes": 1000})
