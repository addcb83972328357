"""hyperlog.access: who may come, from a file that people edit while the server runs."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog import access
from hyperlog.access import Access, AccessPolicy, parse_key_list
from hyperlog.errors import ConfigError

A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))
# Agrees with the npm package z32: z32.encode(Buffer.alloc(32, 1)) and so on.
ALPHABET = "ybndrfg8ejkmcpqxot1uwisza345h769"


def zbase32(key: bytes) -> str:
    bits = "".join(f"{byte:08b}" for byte in key) + "0000"
    return "".join(ALPHABET[int(bits[n : n + 5], 2)] for n in range(0, len(bits), 5))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "allowed"


def test_without_a_file_anybody_may_come():
    open_to_all = Access(AccessPolicy(), 0)
    assert not open_to_all.refuses(A, 0)
    assert open_to_all.keys is None
    assert open_to_all.refused == 0


def test_only_listed_keys_may_come(path):
    path.write_text(f"# hosts\n\n{A.hex()}  # a\n  {B.hex().upper()}\n")
    listed = Access(AccessPolicy(path), 0)
    assert [listed.refuses(key, 0) for key in (A, B, C)] == [False, False, True]
    assert listed.keys == 2
    assert listed.refused == 1


def test_the_known_form_of_a_key_in_z_base_32():
    text = "yryonyebyryonyebyryonyebyryonyebyryonyebyryonyebyryo"
    assert zbase32(A) == text
    assert parse_key_list(text) == {A}


@given(st.binary(min_size=32, max_size=32))
def test_keys_are_read_in_both_forms(key):
    assert parse_key_list(f"{key.hex()}\r\n{zbase32(key)} # again") == {key}


@given(st.text(alphabet="yb01fF#\n \t", max_size=200))
def test_any_text_is_a_list_or_told(text):
    try:
        keys = parse_key_list(text)
    except ConfigError:
        return
    assert all(len(key) == 32 for key in keys)


@pytest.mark.parametrize("last", "9b")
def test_bits_beyond_the_key_are_no_key(last):
    with pytest.raises(ConfigError):
        parse_key_list(zbase32(A)[:-1] + last)


def test_lines_that_are_no_keys_are_told_by_their_numbers(path):
    path.write_text("\n".join([A.hex(), "nobody", "", A.hex()[1:], B.hex() + " " + C.hex()]))
    with pytest.raises(ConfigError, match=r"allowed, line 2, 4, 5: no public key"):
        Access(AccessPolicy(path), 0)


def test_many_wrong_lines_are_told_in_short():
    with pytest.raises(ConfigError, match=r"line 1, 2, 3, 4, 5 and 995 more"):
        parse_key_list("x\n" * 1000)


def test_a_missing_file_is_told(path):
    with pytest.raises(ConfigError, match="does not exist: make it"):
        Access(AccessPolicy(path), 0)


def test_a_file_that_is_none_is_told(path):
    path.mkdir()
    with pytest.raises(ConfigError):
        Access(AccessPolicy(path), 0)


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_pipe_is_told_and_does_not_block(path):
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="no ordinary file"):
        Access(AccessPolicy(path), 0)


def test_a_changed_file_is_read_again_at_most_once_a_second(path):
    path.write_text(A.hex())
    listed = Access(AccessPolicy(path), 100.0)
    path.write_text(f"{A.hex()}\n{B.hex()}")
    assert listed.refuses(B, 100.9)
    assert not listed.refuses(B, 101.0)
    assert listed.revision == 0
    path.write_text(f"{B.hex()}")
    assert listed.refuses(A, 102.0)
    assert listed.revision == 1  # open connections of A are to be ended


def test_a_broken_list_leaves_the_old_one_in_force(path, caplog):
    path.write_text(A.hex())
    listed = Access(AccessPolicy(path), 0)
    path.write_text(f"{B.hex()}\noops\n")
    listed.check(1)
    listed.check(2)
    assert listed.allows(A)
    assert not listed.allows(B)
    assert listed.failed_reloads == 1
    assert caplog.text.count("line 2: no public key") == 1
    path.write_text(f"{B.hex()}\n")
    listed.check(3)
    assert listed.allows(B)
    assert not listed.allows(A)


def test_a_list_that_vanishes_leaves_the_old_one_in_force(path, caplog):
    path.write_text(A.hex())
    listed = Access(AccessPolicy(path), 0)
    away = path.rename(path.with_name("away"))
    for now in range(1, 5):
        listed.check(now)
    assert listed.allows(A)
    assert not listed.allows(B)
    assert caplog.text.count("stays in force") == 1
    away.write_text(B.hex())
    away.rename(path)
    listed.check(5)
    assert listed.allows(B)


# -- learning


def test_learning_needs_a_file():
    with pytest.raises(ConfigError, match="--allow FILE"):
        AccessPolicy(learn_count=1)


def test_a_number_of_keys_is_learned_and_then_no_more(path):
    policy = AccessPolicy(path, learn_count=2)
    learning = Access(policy, 0)
    assert learning.learning
    for key in (A, A, B):
        assert learning.allows(key)
        learning.proved(key)
    assert not learning.learning
    assert not learning.allows(C)
    learning.proved(C)
    assert path.read_text() == f"{A.hex()} # learned\n{B.hex()} # learned\n"
    again = Access(policy, 0)  # a restart does not open it again
    assert not again.learning
    assert (again.allows(A), again.allows(C)) == (True, False)


def test_a_key_that_proved_nothing_is_not_learned(path):
    learning = Access(AccessPolicy(path, learn_count=1), 0)
    assert not learning.refuses(A, 0)
    assert learning.learning
    assert not path.exists()


def test_keys_are_learned_for_a_time(path):
    policy = AccessPolicy(path, learn_seconds=10)
    learning = Access(policy, 100)
    learning.check(109.9)
    learning.proved(A)
    assert learning.allows(B)
    learning.check(111)
    assert not learning.allows(B)
    assert learning.allows(A)
    assert learning.revision == 1
    assert not Access(policy, 200).learning


def test_learned_keys_are_appended_to_what_people_wrote(path):
    path.write_text(f"# ours\n{A.hex()}")
    learning = Access(AccessPolicy(path, learn_count=2), 0)
    learning.proved(B)
    assert path.read_text() == f"# ours\n{A.hex()}\n{B.hex()} # learned\n"
    learning.check(5)
    assert learning.keys == 2


def test_learning_is_bounded(path, monkeypatch):
    monkeypatch.setattr(access, "MAX_LEARNED", 3)
    learning = Access(AccessPolicy(path, learn_seconds=1000), 0)
    for n in range(10):
        learning.proved(bytes([n]) * 32)
    assert learning.keys == 3
    assert not learning.learning


def test_a_list_that_cannot_be_written_is_told_and_nothing_is_learned(tmp_path, caplog):
    learning = Access(AccessPolicy(tmp_path / "missing" / "list", learn_count=1), 0)
    learning.proved(A)
    assert "cannot write the list of keys" in caplog.text
    assert learning.keys == 0
    assert learning.learning


# -- what an operator does while the server runs


def test_keys_are_added_and_removed_and_remarks_stay(path):
    path.write_text(f"# hosts\n{A.hex()}  # a\n{zbase32(B)}\r\n")
    path.chmod(0o640)
    listed = Access(AccessPolicy(path), 0)
    listed.add(C)
    listed.add(C)
    assert listed.listed() == [A, B, C]
    assert path.read_text().count(C.hex()) == 1
    before = listed.revision
    listed.remove(B)
    assert listed.revision > before, "open connections are looked at again"
    assert listed.refuses(B, 0)
    assert path.read_bytes() == f"# hosts\n{A.hex()}  # a\n{C.hex()} # added\n".encode()
    assert path.stat().st_mode & 0o777 == 0o640
    listed.check(10)
    assert listed.listed() == [A, C]
    assert Access(AccessPolicy(path), 0).listed() == [A, C]
    assert os.listdir(path.parent) == [path.name]


def test_without_a_list_there_is_nothing_to_change():
    open_to_all = Access(AccessPolicy(), 0)
    for change in (
        lambda: open_to_all.add(A),
        lambda: open_to_all.remove(A),
        lambda: open_to_all.learn(10.0, None, 0),
    ):
        with pytest.raises(ConfigError, match="--allow FILE"):
            change()


def test_learning_can_be_begun_and_ended_while_the_server_runs(path):
    path.write_text(A.hex())
    listed = Access(AccessPolicy(path), 0)
    listed.learn(None, 1, 0)
    assert not listed.refuses(B, 0)
    listed.proved(B)
    assert not listed.learning
    assert listed.listed() == [A, B]
    listed.learn(60.0, None, 100)
    listed.proved(C)
    listed.check(159)
    assert listed.learning
    listed.check(161)
    assert not listed.learning
    assert listed.listed() == [A, B, C]
    listed.learn(60.0, None, 200)
    listed.lock()
    assert not listed.learning


def test_a_change_that_cannot_be_written_is_told_and_not_made(tmp_path):
    path = tmp_path / "gone" / "allowed"
    path.parent.mkdir()
    path.write_text(A.hex())
    listed = Access(AccessPolicy(path), 0)
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(ConfigError, match="cannot write"):
        listed.add(B)
    with pytest.raises(ConfigError, match="cannot write"):
        listed.remove(A)
    assert listed.listed() == [A]
