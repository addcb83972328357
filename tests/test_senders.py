"""hyperlog.senders: who may bring records, by name and by token."""

from __future__ import annotations

import logging
import sqlite3
import sys
import time

import pytest

from hyperlog.control import Hello
from hyperlog.errors import BadRecord, ConfigError, TokenError
from hyperlog.records import instance_source
from hyperlog.senders import OWN_APPLICATION, Permits, Sender
from hyperlog.tokens import TokenAuthority

KEY = bytes(range(32))
OTHER_KEY = bytes(32)


@pytest.fixture
def authority(tmp_path):
    authority = TokenAuthority(tmp_path)
    yield authority
    authority.close()


@pytest.fixture
def permits(tmp_path, authority):
    permits = Permits(tmp_path, required=False, served=False)
    yield permits
    permits.close()


def peer(key=KEY, **fields) -> Sender:
    return Sender(key, key, None, None, "hyperdht", "192.0.2.7:49737", **fields)


def poster(claims, application=None, instance=None) -> Sender:
    source = instance_source(application or "x", instance or "y")
    return Sender(source, None, application, instance, "http", "192.0.2.7:5000", claims)


def hello(**fields) -> Hello:
    return Hello({}, **fields)


def code(permits, sender, said) -> str | None:
    refusal = permits.admit(sender, said)
    if refusal is None:
        return None
    permits.refused(sender, refusal)
    return refusal.code


def test_without_a_token_the_names_that_are_told_stand(permits):
    sender = peer()
    assert permits.admit(sender, hello(application="cerco", instance="a2b5")) is None
    assert (sender.application, sender.instance, sender.claims) == ("cerco", "a2b5", None)


def test_who_tells_nothing_stays_without_names(permits):
    for said in (None, hello()):
        sender = peer()
        assert permits.admit(sender, said) is None
        assert (sender.application, sender.instance) == (None, None)
        assert (sender.told_application, sender.told_instance) == ("default", KEY.hex()[:8])


def test_half_a_name_is_completed(permits):
    sender = peer()
    permits.admit(sender, hello(application="cerco"))
    assert (sender.application, sender.instance) == ("cerco", KEY.hex()[:8])
    sender = peer()
    permits.admit(sender, hello(instance="a2b5"))
    assert (sender.application, sender.instance) == ("default", "a2b5")


@pytest.mark.parametrize(
    "name", ["", " ", "a\0b", "x" * 65, "x" * 65536, "\x1b[2J", "\u202e", "\ud800"]
)
@pytest.mark.parametrize("field", ["application", "instance"])
def test_a_name_of_no_use_is_refused_and_field_and_limit_are_told(permits, field, name):
    refusal = permits.admit(peer(), hello(**{field: name}))
    assert refusal.code == "HELLO"
    assert refusal.reason == f"{field} has 1 to 64 printable characters"


def test_a_name_that_looks_like_a_path_is_a_name(permits):
    sender = peer()
    assert permits.admit(sender, hello(application="../../x", instance="/etc/passwd")) is None
    assert (sender.application, sender.instance) == ("../../x", "/etc/passwd")


def test_the_server_s_own_name_is_nobody_else_s(permits, authority):
    refusal = permits.admit(peer(), hello(application=OWN_APPLICATION, instance="panel"))
    assert (refusal.code, "server itself" in refusal.reason) == ("HELLO", True)
    _, claims = authority.issue(OWN_APPLICATION, now=time.time())
    with pytest.raises(BadRecord):
        permits.permit(poster(claims))
    own = Sender(KEY, None, OWN_APPLICATION, "panel", "internal", "")
    permits.permit(own)
    assert own.application == OWN_APPLICATION


def test_a_token_gives_the_application(permits, authority):
    token, claims = authority.issue("cerco", now=time.time())
    sender = peer()
    assert permits.admit(sender, hello(token=token, instance="a2b5")) is None
    assert (sender.application, sender.instance, sender.claims) == ("cerco", "a2b5", claims)


def test_a_token_for_one_instance_gives_that_too(permits, authority):
    token, _ = authority.issue("cerco", instances="a2b5", now=time.time())
    sender = peer()
    assert permits.admit(sender, hello(token=token)) is None
    assert sender.instance == "a2b5"


@pytest.mark.parametrize(
    ("issued", "said", "expected"),
    [
        ({}, {"application": "midas"}, "TOKEN_MISMATCH"),
        ({"instances": "desk-*"}, {"instance": "a2b5"}, "TOKEN_MISMATCH"),
        ({"instances": "desk-*"}, {}, "TOKEN_MISMATCH"),
        ({"instances": "desk-*"}, {"instance": "desk-7"}, None),
        ({"key": OTHER_KEY}, {}, "TOKEN_MISMATCH"),
        ({"key": KEY}, {}, None),
        ({"scopes": ["read"]}, {}, "TOKEN_MISMATCH"),
        ({"lifetime": 1, "now": time.time() - 3600}, {}, "TOKEN_EXPIRED"),
        ({"now": time.time() + 3600}, {}, "TOKEN_INVALID"),
    ],
)
def test_a_token_that_does_not_fit_is_refused(permits, authority, issued, said, expected):
    token, _ = authority.issue("cerco", **{"now": time.time(), **issued})
    sender = peer()
    assert code(permits, sender, hello(token=token, **said)) == expected
    if expected is not None:
        assert (sender.application, sender.instance, sender.claims) == (None, None, None)
        assert permits.refusals == {expected: 1}


def test_a_token_of_another_server_is_refused(permits, tmp_path):
    other = TokenAuthority(tmp_path / "other")
    token, _ = other.issue("cerco", now=time.time())
    other.close()
    for bad in (token, token[:-2], "", "x" * 8000, "a.b.c", "\0"):
        assert code(permits, peer(), hello(token=bad)) == "TOKEN_INVALID"


def test_a_token_is_refused_by_a_server_that_has_issued_none(tmp_path):
    permits = Permits(tmp_path / "empty", required=False, served=False)
    assert code(permits, peer(), hello(token="a.b.c")) == "TOKEN_INVALID"
    assert not (tmp_path / "empty").exists()
    assert permits.authority is None


def test_tokens_that_are_issued_while_the_server_runs_count_at_once(tmp_path):
    permits = Permits(tmp_path, required=False, served=False)
    authority = TokenAuthority(tmp_path)
    token, _ = authority.issue("cerco", now=time.time())
    authority.close()
    assert code(permits, peer(), hello(token=token)) is None
    permits.close()


def test_tokens_can_be_required(tmp_path):
    permits = Permits(tmp_path, required=True, served=False)
    assert code(permits, peer(), hello(application="cerco")) == "TOKEN_REQUIRED"
    assert code(permits, peer(), None) == "TOKEN_REQUIRED"
    token, _ = permits.authority.issue("cerco", now=time.time())
    assert code(permits, peer(), hello(token=token)) is None
    assert permits.refusals == {"TOKEN_REQUIRED": 2}
    permits.close()


def test_a_token_that_is_revoked_or_expires_ends_what_it_began(permits, authority):
    token, claims = authority.issue("cerco", now=time.time())
    sender = peer()
    permits.admit(sender, hello(token=token))
    permits.reload()
    assert permits.check(sender) is None
    authority.revoke(claims.jti, time.time())
    permits.reload()
    assert permits.check(sender).code == "TOKEN_REVOKED"
    assert permits.check(peer()) is None


def test_senders_of_requests_are_held_to_their_tokens(permits, authority):
    _, claims = authority.issue("cerco", instances="desk-*", now=time.time())
    sender = poster(claims, None, "desk-1")
    permits.permit(sender)
    assert (sender.application, sender.instance) == ("cerco", "desk-1")
    for application, instance in (("midas", "desk-1"), ("cerco", "a2b5"), ("cerco", None)):
        with pytest.raises(TokenError) as caught:
            permits.permit(poster(claims, application, instance))
        assert caught.value.refusal == "TOKEN_MISMATCH"
    with pytest.raises(BadRecord, match="instance has 1 to 64"):
        permits.permit(poster(claims, "cerco", "desk-\0"))
    assert permits.refusals == {"TOKEN_MISMATCH": 3}


def test_refusals_are_logged_once_a_minute_and_tokens_never(permits, authority, caplog):
    token, _ = authority.issue("cerco", now=time.time())
    with caplog.at_level(logging.DEBUG):
        for _ in range(100):
            code(permits, peer(), hello(token=token, application="midas"))
            code(permits, peer(), hello(token=token[:-3]))
    assert len(caplog.records) == 2
    assert "TOKEN_MISMATCH" in caplog.text
    assert token[:20] not in caplog.text
    assert permits.refusals == {"TOKEN_MISMATCH": 100, "TOKEN_INVALID": 100}


def test_without_pyjwt_a_server_runs_and_says_what_to_install_if_tokens_are_wanted(
    tmp_path, authority, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ConfigError, match=r"pip install 'hyperlog-p2p\[server\]'"):
        Permits(tmp_path, required=True, served=False)
    with pytest.raises(ConfigError, match="PyJWT"):
        Permits(tmp_path, required=False, served=True)
    permits = Permits(tmp_path, required=False, served=False)
    assert "PyJWT" in caplog.text
    assert code(permits, peer(), hello(application="cerco")) is None
    assert code(permits, peer(), hello(token="a.b.c")) == "TOKEN_INVALID"


def test_a_registry_that_vanishes_is_told_and_what_was_known_goes_on_to_hold(
    permits, authority, tmp_path, caplog
):
    token, claims = authority.issue("cerco", now=time.time())
    permits.reload()
    sender = poster(claims, "cerco", "1")
    (tmp_path / "registry.sqlite").rename(tmp_path / "elsewhere")
    permits.reload()
    permits.reload()
    assert permits.check(sender) is None
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    (tmp_path / "elsewhere").rename(tmp_path / "registry.sqlite")
    permits.reload()
    assert code(permits, peer(), hello(token=token)) is None


def test_a_registry_of_a_later_version_in_its_place_harms_no_server(
    permits, authority, tmp_path, caplog
):
    token, _ = authority.issue("cerco", now=time.time())
    permits.reload()
    later = sqlite3.connect(tmp_path / "later")
    later.execute("PRAGMA user_version = 99")
    later.close()
    (tmp_path / "later").chmod(0o600)
    (tmp_path / "later").rename(tmp_path / "registry.sqlite")
    permits.reload()
    permits.reload()
    assert "version 99" in caplog.text
    assert code(permits, peer(), hello(token=token)) is None
