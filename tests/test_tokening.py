import json
import time

import pytest

from hyperlog.cli import main
from hyperlog.tokens import TokenAuthority

KEY = "ab" * 32


@pytest.fixture
def token(tmp_path, capsys):
    """Runs `hyperlog token …` on one data folder: status, stdout, stderr."""

    def run(*words):
        command, *rest = words
        status = main(["token", command, "--data", str(tmp_path / "data"), *rest])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def test_a_token_is_printed_alone_and_works(tmp_path, token):
    status, out, err = token(
        "issue", "cerco", "--instances", "desk-*", "--key", KEY, "--expires", "2d"
    )
    assert status == 0
    text = out.strip()
    authority = TokenAuthority(tmp_path / "data", create=False)
    asked = {"application": "cerco", "instance": "desk-1", "key": bytes.fromhex(KEY)}
    claims = authority.verify(text, time.time(), scope="ingest", **asked)
    authority.close()
    assert claims.expires_at - claims.issued_at == 2 * 86400
    assert f"hyperlog token revoke {claims.jti}" in err
    assert text not in err


def test_the_list_shows_no_token(token):
    _, secret, _ = token("issue", "cerco", "--scope", "ingest", "--scope", "read")
    issued = json.loads(token("issue", "*", "--scope", "read", "--expires", "never", "--json")[1])
    status, out, _ = token("list")
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 3
    assert "ingest,read" in out
    assert secret.strip() not in out
    entries = json.loads(token("list", "--json")[1])
    mine = next(entry for entry in entries if entry["jti"] == issued["jti"])
    assert (mine["state"], mine["expires"], mine["scopes"]) == ("valid", None, ["read"])


def test_revoking_tells_what_was_done(token):
    issued = json.loads(token("issue", "cerco", "--json")[1])
    status, out, err = token("revoke", issued["jti"], "unknown")
    assert (status, out) == (1, f"revoked {issued['jti']}\n")
    assert "no token unknown" in err
    assert json.loads(token("list", "--json")[1])[0]["state"] == "revoked"
    assert token("revoke", issued["jti"])[0] == 1


def test_rotation_names_the_new_secret(token):
    token("issue", "cerco")
    kid = json.loads(token("rotate", "--json")[1])["kid"]
    assert json.loads(token("issue", "cerco", "--json")[1])["kid"] == kid


@pytest.mark.parametrize("command", [["list"], ["revoke", "x"], ["rotate"]], ids=str)
def test_a_wrong_folder_is_told_and_not_made(tmp_path, token, command):
    status, _, err = token(*command)
    assert status == 1
    assert "does not exist" in err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["issue", "cerco", "--expires", "3"], "90s, 12h or 7d"),
        (["issue", "cerco", "--key", "ab"], "64 hex digits"),
        (["issue", "cerco", "--scope", "admin"], "invalid choice"),
        (["issue"], "APP"),
    ],
)
def test_wrong_usage_is_told(token, capsys, words, reason):
    with pytest.raises(SystemExit) as raised:
        token(*words)
    assert raised.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_token_that_cannot_be_issued_is_told(token):
    status, out, err = token("issue", "*")
    assert (status, out) == (2, "")
    assert "only be for reading" in err
