import io
import json

import pytest

from hyperlog.cli import main
from hyperlog.registry import Registry
from hyperlog.users import Users, password_matches

PASSWORD = "correct horse battery"


@pytest.fixture
def user(tmp_path, capsys, monkeypatch):
    """Runs `hyperlog user …` on one data folder: status, stdout, stderr."""

    def run(command, *words, typed=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        status = main(["user", command, "--data", str(tmp_path / "data"), *words])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def test_a_user_is_added_with_the_password_from_standard_input(tmp_path, user):
    assert user("add", "ada", "--role", "admin", typed=PASSWORD + "\n")[0] == 0
    registry = Registry(tmp_path / "data", create=False)
    stored = Users(registry).stored_password("ada")
    registry.close()
    assert password_matches(stored, PASSWORD)
    assert json.loads(user("list", "--json")[1])[0]["role"] == "admin"


def test_passwd_and_remove(user):
    user("add", "ada", "--role", "admin", typed=PASSWORD)
    user("add", "bob", typed=PASSWORD)
    assert user("passwd", "bob", typed=PASSWORD + " 2")[:2] == (
        0,
        "set the password of bob; all logins are over\n",
    )
    assert user("remove", "bob")[0] == 0
    assert "ada" in user("list")[1]
    assert "bob" not in user("list")[1]


@pytest.mark.parametrize(
    ("words", "typed", "reason"),
    [
        (["add", "bob"], "short", "10 to 256 characters"),
        (["add", "bob"], "", "10 to 256 characters"),
        (["add", "../bob"], PASSWORD, "letters, digits"),
        (["add", "ada"], PASSWORD, "already"),
        (["passwd", "bob"], PASSWORD, "no user bob"),
        (["remove", "bob"], "", "no user bob"),
        (["remove", "ada"], "", "last admin"),
    ],
)
def test_what_cannot_be_done_is_told(user, words, typed, reason):
    user("add", "ada", "--role", "admin", typed=PASSWORD)
    status, out, err = user(*words, typed=typed)
    assert (status, out) == (2, "")
    assert reason in err
    assert PASSWORD not in err
    assert len(json.loads(user("list", "--json")[1])) == 1


def test_a_wrong_folder_is_told(tmp_path, user):
    assert user("list")[0] == 1
    assert not (tmp_path / "data").exists()
