import base64
import hashlib
import hmac
import json
import os
import time

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.errors import ConfigError, KeyFileError, TokenError
from hyperlog.tokens import MAX_TOKEN, TokenAuthority

NOW = 1_800_000_000.0
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


@pytest.fixture
def authority(tmp_path):
    authority = TokenAuthority(tmp_path / "data")
    yield authority
    authority.close()


def secret_of(authority):
    """The current kid and secret, as whoever stole them would use them."""
    row = authority._registry.read("SELECT * FROM secret ORDER BY created_at DESC")[0]
    return row["kid"], row["secret"]


def forged(authority, *, header=None, secret=None, algorithm="HS256", **payload):
    """A token with the claims of a good one, but for what is given; None leaves a claim out."""
    token, _ = authority.issue("cerco", now=NOW)
    kid, own_secret = secret_of(authority)
    content = jwt.decode(token, options={"verify_signature": False}) | payload
    content = {name: value for name, value in content.items() if value is not None}
    return jwt.encode(
        content,
        own_secret if secret is None else secret,
        algorithm=algorithm,
        headers={"typ": "hyperlog+jwt", "kid": kid, **(header or {})},
    )


def refusal(authority, token, now=NOW, **asked):
    with pytest.raises(TokenError) as raised:
        authority.verify(token, now, scope=asked.pop("scope", "ingest"), **asked)
    return raised.value.refusal


def test_a_token_is_good_for_what_it_was_issued_for(authority):
    token, claims = authority.issue(
        "cerco", now=NOW, instances="desk-*", scopes=["ingest", "read"], key=KEY, lifetime=3600
    )
    for scope in ("ingest", "read"):
        asked = {"application": "cerco", "instance": "desk-7", "key": KEY}
        assert authority.verify(token, NOW + 10, scope=scope, **asked) == claims
    assert authority.verify(token, NOW, scope="ingest", key=KEY) == claims
    assert claims.expires_at == NOW + 3600


@pytest.mark.parametrize(
    "asked",
    [
        {"application": "midas"},
        {"application": ""},
        {"instance": "phone-7"},
        {"instance": ""},
        {"key": OTHER_KEY},
        {"key": None},
        {"scope": "read"},
    ],
    ids=str,
)
def test_a_token_is_good_for_nothing_else(authority, asked):
    token, _ = authority.issue("cerco", now=NOW, instances="desk-*", key=KEY)
    good = {"application": "cerco", "instance": "desk-7", "key": KEY}
    assert authority.verify(token, NOW, scope="ingest", **good)
    assert refusal(authority, token, **{**good, **asked}) == "TOKEN_MISMATCH"


def test_a_reader_of_everything_reads_each_application(authority):
    token, _ = authority.issue("*", now=NOW, scopes=["read"])
    assert authority.verify(token, NOW, scope="read", application="cerco")
    assert refusal(authority, token, application="cerco") == "TOKEN_MISMATCH"


def test_times_hold_with_a_minute_for_clocks_that_differ(authority):
    token, claims = authority.issue("cerco", now=NOW, lifetime=3600)
    assert authority.verify(token, NOW - 59, scope="ingest")
    assert authority.verify(token, NOW + 3659, scope="ingest")
    assert refusal(authority, token, NOW - 61) == "TOKEN_INVALID"
    assert refusal(authority, token, NOW + 3661) == "TOKEN_EXPIRED"
    assert authority.refuses(claims, NOW + 3659) is None
    assert authority.refuses(claims, NOW + 3661).refusal == "TOKEN_EXPIRED"


def test_a_token_expires_unless_asked_not_to(authority):
    _, claims = authority.issue("cerco", now=NOW)
    assert claims.expires_at == NOW + 365 * 86400
    token, claims = authority.issue("cerco", now=NOW, lifetime=None)
    assert claims.expires_at is None
    assert "exp" not in jwt.decode(token, options={"verify_signature": False})
    assert authority.verify(token, NOW + 10**9, scope="ingest")


def test_a_revoked_token_is_refused_at_once_and_for_good(authority):
    token, claims = authority.issue("cerco", now=NOW)
    other, _ = authority.issue("cerco", now=NOW)
    assert authority.revoke(claims.jti, NOW)
    assert refusal(authority, token) == "TOKEN_REVOKED"
    assert authority.refuses(claims, NOW).refusal == "TOKEN_REVOKED"
    assert authority.verify(other, NOW, scope="ingest")
    assert not authority.revoke(claims.jti, NOW)
    assert not authority.revoke("no such token", NOW)


def test_a_token_that_the_registry_does_not_know_is_refused(authority):
    assert refusal(authority, forged(authority, jti="0123456789abcdef")) == "TOKEN_REVOKED"


def test_another_process_is_noticed(tmp_path, authority):
    token, claims = authority.issue("cerco", now=NOW)
    assert not authority.reload()
    other = TokenAuthority(tmp_path / "data")
    try:
        assert other.verify(token, NOW, scope="ingest") == claims
        other.revoke(claims.jti, NOW)
        assert authority.verify(token, NOW, scope="ingest"), "not noticed yet"
        assert authority.reload()
        assert refusal(authority, token) == "TOKEN_REVOKED"
        new, _ = other.issue("midas", now=NOW)
        assert authority.verify(new, NOW, scope="ingest"), "a new one is looked for at once"
        other.rotate(NOW)
        newer, _ = other.issue("midas", now=NOW)
        assert authority.verify(newer, NOW, scope="ingest"), "its secret as well"
        assert authority.verify(new, NOW, scope="ingest")
        assert authority.verify(newer, NOW, scope="ingest")
        assert not authority.reload()
    finally:
        other.close()


def test_a_registry_that_is_gone_leaves_what_was_known(tmp_path, authority):
    token, _ = authority.issue("cerco", now=NOW)
    (tmp_path / "data" / "registry.sqlite").unlink()
    with pytest.raises(KeyFileError, match="does not exist"):
        authority.reload()
    assert authority.verify(token, NOW, scope="ingest")
    TokenAuthority(tmp_path / "data").close()  # a new one in its place
    assert authority.reload()
    assert refusal(authority, token) == "TOKEN_INVALID"


def test_old_tokens_outlive_the_rotation_of_the_secret(authority):
    before, claims = authority.issue("cerco", now=NOW)
    kid = authority.rotate(NOW)
    after, newer = authority.issue("cerco", now=NOW)
    assert newer.kid == kid != claims.kid
    assert authority.verify(before, NOW, scope="ingest")
    assert authority.verify(after, NOW, scope="ingest")
    authority.revoke(claims.jti, NOW)
    authority.rotate(NOW)
    assert refusal(authority, before) == "TOKEN_INVALID", "its secret is no longer kept"
    assert authority.verify(after, NOW, scope="ingest")


def test_the_list_tells_what_became_of_each(authority):
    _, first = authority.issue("cerco", now=NOW, lifetime=60)
    _, second = authority.issue("midas", now=NOW + 1)
    authority.revoke(second.jti, NOW + 2)
    _, third = authority.issue("midas", now=NOW + 3)
    states = [(token.claims, token.state(NOW + 61)) for token in authority.list()]
    assert states == [(third, "valid"), (second, "revoked"), (first, "expired")]


def test_tokens_long_expired_are_forgotten(authority):
    authority.issue("cerco", now=NOW, lifetime=60)
    authority.issue("cerco", now=NOW + 200 * 86400)
    assert len(authority.list()) == 1


# -- forgeries: RFC 8725


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "hyperlog panel"},
        {"aud": None},
        {"aud": ["hyperlog panel"]},
        {"iss": "somebody"},
        {"iss": None},
        {"jti": None},
        {"jti": 5},
        {"iat": None},
        {"iat": "yesterday"},
        {"iat": 1e300},
        {"sub": None},
        {"sub": ["cerco"]},
        {"sub": ""},
        {"sub": "x" * 65},
        {"instances": None},
        {"instances": 5},
        {"scope": None},
        {"scope": ["ingest"]},
        {"exp": "never"},
        {"exp": 1.5},
        {"cnf": "key"},
        {"cnf": {}},
        {"cnf": {"key": "00"}},
        {"cnf": {"key": 5}},
        {"nbf": 9_000_000_000},
        {"header": {"typ": "JWT"}},
        {"header": {"typ": None}},
        {"header": {"kid": "another"}},
        {"header": {"crit": ["b64"], "b64": False}},
        {"secret": b"x" * 32},
    ],
    ids=str,
)
def test_a_token_with_odd_claims_is_invalid(authority, changes):
    assert refusal(authority, forged(authority, **changes)) == "TOKEN_INVALID"


def test_the_forgery_without_changes_is_good(authority):
    _, claims = authority.issue("cerco", now=NOW)
    assert authority.verify(forged(authority, jti=claims.jti), NOW, scope="ingest")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_with_the_right_secret_is_invalid(authority, algorithm):
    secret = secret_of(authority)[1] * 2
    token = forged(authority, algorithm=algorithm, secret=secret)
    assert refusal(authority, token) == "TOKEN_INVALID"


def _encoded(part):
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, "RS256", "ES256", "hs256"])
@pytest.mark.parametrize("signed", [False, True])
def test_the_header_does_not_choose_the_algorithm(authority, algorithm, signed):
    token, _ = authority.issue("cerco", now=NOW)
    kid, secret = secret_of(authority)
    payload = token.split(".")[1]
    head = _encoded({"alg": algorithm, "typ": "hyperlog+jwt", "kid": kid})
    digest = hmac.digest(secret, f"{head}.{payload}".encode(), hashlib.sha256) if signed else b""
    signature = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert refusal(authority, f"{head}.{payload}.{signature}") == "TOKEN_INVALID"


def test_a_public_key_is_no_secret(authority):
    """Key confusion: a secret of the attacker's choice in the header, or by reference."""
    header = {"jwk": {"kty": "oct", "k": "eHh4"}, "jku": "http://127.0.0.1/", "x5u": "x"}
    token = forged(authority, header=header, secret=b"x" * 32)
    assert refusal(authority, token) == "TOKEN_INVALID"


def test_a_short_secret_is_not_used(tmp_path):
    authority = TokenAuthority(tmp_path)
    with authority._registry.transaction() as connection:
        connection.execute("UPDATE secret SET secret = ?", (b"short",))
    authority.close()
    with pytest.raises(KeyFileError, match="256 bits"):
        TokenAuthority(tmp_path)


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b.c", "x" * (MAX_TOKEN + 1), "é.ü.ö", "\0", None, 5, b"x", "a" * MAX_TOKEN],
    ids=lambda token: str(token)[:10],
)
def test_what_is_no_token_is_invalid(authority, token):
    assert refusal(authority, token) == "TOKEN_INVALID"


def test_deep_nesting_is_invalid(authority):
    deep = base64.urlsafe_b64encode(b"[" * 2000).rstrip(b"=").decode()
    assert refusal(authority, f"{deep}.{deep}.x") == "TOKEN_INVALID"


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 10**6), char=st.sampled_from("Aa09-_."))
def test_a_changed_character_makes_a_token_useless(tmp_path_factory, position, char):
    authority = _shared(tmp_path_factory)
    token, claims = authority.issue("cerco", now=NOW)
    position %= len(token)
    changed = token[:position] + char + token[position + 1 :]
    try:
        found = authority.verify(changed, NOW, scope="ingest")
    except TokenError:
        assert changed != token
    else:
        # The last character of the base64 text has bits that mean nothing.
        assert changed == token or position == len(token) - 1
        assert found == claims


_authorities = {}


def _shared(tmp_path_factory):
    if "one" not in _authorities:
        _authorities["one"] = TokenAuthority(tmp_path_factory.mktemp("tokens"))
    return _authorities["one"]


@pytest.fixture(autouse=True, scope="module")
def _close_shared():
    yield
    for authority in _authorities.values():
        authority.close()


def test_the_reason_tells_nothing_of_the_token(authority):
    token, _ = authority.issue("cerco", now=NOW, key=KEY)
    with pytest.raises(TokenError) as raised:
        authority.verify(token, NOW, scope="ingest", key=OTHER_KEY)
    text = f"{raised.value} {raised.value!r}"
    assert KEY.hex() not in text
    assert token not in text


# -- what can be asked for


@pytest.mark.parametrize(
    "wanted",
    [
        {"application": ""},
        {"application": "x" * 65},
        {"application": "a\nb"},
        {"application": "a\0"},
        {"application": "\u202e"},
        {"application": None},
        {"instances": ""},
        {"instances": "x" * 65},
        {"scopes": []},
        {"scopes": ["admin"]},
        {"application": "*"},
        {"application": "*", "scopes": ["ingest", "read"]},
        {"key": b"short"},
        {"lifetime": 0},
        {"lifetime": -1},
        {"lifetime": float("inf")},
        {"lifetime": float("nan")},
    ],
    ids=str,
)
def test_what_cannot_be_issued_is_refused_and_leaves_nothing(authority, wanted):
    with pytest.raises(ConfigError):
        authority.issue(**{"application": "cerco", "now": NOW, **wanted})
    assert authority.list() == []


@pytest.mark.parametrize("application", ["../../etc", "a/b", "system.indexes", "$where", "ünïcödé"])
def test_names_are_only_names(authority, application):
    token, _ = authority.issue(application, now=NOW)
    assert authority.verify(token, NOW, scope="ingest", application=application)


def test_the_number_of_tokens_is_bounded(authority, monkeypatch):
    monkeypatch.setattr("hyperlog.tokens.MAX_TOKENS", 3)
    for _ in range(3):
        authority.issue("cerco", now=NOW)
    with pytest.raises(ConfigError, match="3 tokens"):
        authority.issue("cerco", now=NOW)


def test_verifying_is_cheap(authority):
    token, _ = authority.issue("cerco", now=NOW, key=KEY)
    best = min(_timed(lambda: authority.verify(token, NOW, scope="ingest", key=KEY)) for _ in "xxx")
    assert best < 0.005


def _timed(call):
    began_at = time.perf_counter()
    call()
    return time.perf_counter() - began_at


@pytest.mark.skipif(os.name != "posix", reason="mode bits tell nothing here")
def test_secrets_that_others_can_read_are_refused(tmp_path):
    TokenAuthority(tmp_path).close()
    path = tmp_path / "registry.sqlite"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match=r"chmod 600 .*registry\.sqlite"):
        TokenAuthority(tmp_path)
