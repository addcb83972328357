import pytest

from hyperlog.registry import Registry
from hyperlog.tokens import TokenAuthority
from hyperlog.users import Users
from hyperlog.web.panel.changes import Changes

NOW = 1_800_000_000.0


@pytest.fixture
def registries(tmp_path):
    """The panel's, and that of somebody at the command line."""
    ours, theirs = Registry(tmp_path), Registry(tmp_path)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_what_others_change_is_told_once(registries, tmp_path):
    ours, theirs = registries
    changes = Changes(ours)
    assert changes.look() == []
    users = Users(theirs)
    users.add("ada", "admin", "hash", NOW)
    users.add("bob", "viewer", "hash", NOW)
    assert changes.look() == [
        ("user added", {"user": "ada", "role": "admin", "by": "command line"}),
        ("user added", {"user": "bob", "role": "viewer", "by": "command line"}),
    ]
    users.set_password("ada", "other hash", NOW)
    users.remove("bob")
    assert changes.look() == [
        ("password changed", {"user": "ada", "by": "command line"}),
        ("user removed", {"user": "bob", "by": "command line"}),
    ]
    assert changes.look() == []
    authority = TokenAuthority(tmp_path)
    _, claims = authority.issue("cerco", now=NOW)
    fields = {"jti": claims.jti, "application": "cerco", "by": "command line"}
    assert changes.look() == [("token issued", fields)]
    authority.revoke(claims.jti, NOW)
    assert changes.look() == [("token revoked", fields)]
    authority.close()


def test_what_the_panel_did_itself_is_not_told_again(registries, tmp_path):
    ours, _ = registries
    told = []
    changes = Changes(ours)
    audit = changes.audited(lambda what, fields: told.append(what))
    Users(ours).add("ada", "admin", "hash", NOW)
    audit("user added", {"user": "ada"})
    authority = TokenAuthority(tmp_path)
    authority.issue("cerco", now=NOW)
    audit("token issued", {})
    authority.close()
    assert changes.look() == []
    assert told == ["user added", "token issued"]
