"""hyperlog.keyfile: made once, complete, private, and told in words when it cannot be used."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from hyperlog.dht import KeyPair
from hyperlog.errors import KeyFileError
from hyperlog.keyfile import create_keys, load_keys, load_or_create_keys, permission_warning

PAIR = KeyPair.from_seed(bytes(32))
FIELDS = {"publicKey": PAIR.public_key.hex(), "secretKey": PAIR.secret_key.hex()}

posix = pytest.mark.skipif(os.name != "posix", reason="mode bits")
not_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind root"
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "keys.dat"


def test_the_file_has_the_fields_of_the_javascript_server(path):
    assert create_keys(path, PAIR) == PAIR
    assert path.read_text() == json.dumps(FIELDS, separators=(",", ":"))
    assert load_keys(path) == PAIR


def test_a_file_of_the_javascript_server_is_read(path):
    path.write_text(json.dumps({**FIELDS, "more": 1}))
    path.chmod(0o644)
    assert load_keys(str(path)) == PAIR


def test_without_a_pair_a_random_one_is_made(tmp_path):
    first, second = create_keys(tmp_path / "a"), create_keys(tmp_path / "b")
    assert first != second
    assert load_keys(tmp_path / "a") == first


@posix
@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_only_the_owner_may_read_it(path, umask):
    old = os.umask(umask)
    try:
        create_keys(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 & ~umask


def test_nothing_else_is_left_in_the_folder(path):
    create_keys(path)
    with pytest.raises(KeyFileError):
        create_keys(path)
    assert os.listdir(path.parent) == ["keys.dat"]


def test_an_existing_file_is_never_overwritten(path):
    path.write_text("precious")
    with pytest.raises(KeyFileError, match="exists already"):
        create_keys(path)
    assert path.read_text() == "precious"


def test_a_file_system_without_hard_links_will_do(path, monkeypatch):
    def no_links(*args, **kwargs):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    pair = create_keys(path)
    assert load_keys(path) == pair
    assert os.listdir(path.parent) == ["keys.dat"]
    with pytest.raises(KeyFileError, match="exists already"):
        create_keys(path)
    assert load_keys(path) == pair


def test_load_or_create(path):
    pair = load_or_create_keys(path)
    assert load_or_create_keys(path) == pair


def test_several_that_start_together_get_one_pair(path):
    pairs: list[KeyPair] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        pairs.append(load_or_create_keys(path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({pair.public_key for pair in pairs}) == 1
    assert len(pairs) == 8


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "5",
        "\xff",
        "[" * 100_000,
        "x" * 100_000,
        "{}",
        {"publicKey": FIELDS["publicKey"]},
        {"secretKey": FIELDS["secretKey"]},
        {**FIELDS, "publicKey": 5},
        {**FIELDS, "publicKey": "ab" * 31},
        {**FIELDS, "publicKey": "xy" * 32},
        {**FIELDS, "secretKey": "ab" * 32},
        {**FIELDS, "secretKey": " " * 128},
        {**FIELDS, "publicKey": "00" * 32},
        {**FIELDS, "secretKey": "00" * 64},
    ],
    ids=range(17),
)
def test_what_cannot_be_used_is_told_with_the_file_and_without_the_secret(path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="latin-1")
    for load in (load_keys, load_or_create_keys):
        with pytest.raises(KeyFileError) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "restore it" in str(caught.value)
        assert FIELDS["secretKey"] not in str(caught.value)
    assert path.read_text(encoding="latin-1") == text


def test_a_missing_file_is_told(path):
    with pytest.raises(KeyFileError, match="does not exist: create it"):
        load_keys(path)


@pytest.mark.parametrize("call", [create_keys, load_or_create_keys])
def test_a_missing_folder_is_told(tmp_path, call):
    with pytest.raises(KeyFileError, match="check that its folder exists"):
        call(tmp_path / "nowhere" / "keys.dat")


def test_a_folder_in_its_place_is_told(tmp_path):
    with pytest.raises(KeyFileError, match="cannot read"):
        load_keys(tmp_path)


@not_root
def test_an_unreadable_file_is_told(path):
    create_keys(path)
    path.chmod(0)
    with pytest.raises(KeyFileError, match="owner and permissions"):
        load_keys(path)


@posix
def test_a_file_open_to_others_is_warned_about(path):
    create_keys(path)
    assert permission_warning(path) is None
    path.chmod(0o644)
    assert f"chmod 600 {path}" in permission_warning(path)
    assert permission_warning(path.with_name("nothing")) is None


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602])
def test_a_file_that_has_to_be_private_is_refused_until_it_is(path, mode):
    path.write_text(json.dumps(FIELDS))
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}") as caught:
        load_or_create_keys(path, private=True)
    assert FIELDS["secretKey"] not in str(caught.value)
    path.chmod(0o600)
    assert load_or_create_keys(path, private=True) == PAIR


@posix
def test_the_command_to_run_is_quoted(tmp_path):
    path = tmp_path / "my keys.dat"
    path.write_text(json.dumps(FIELDS))
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match=f"chmod 600 '{path}'"):
        load_keys(path, private=True)
