import pytest

from hyperlog.errors import ConfigError
from hyperlog.registry import Registry
from hyperlog.users import (
    IDLE_TIME,
    LIFETIME,
    MAX_LOGINS_PER_USER,
    Logins,
    Users,
    check_password,
    hash_password,
    password_matches,
)

NOW = 1_800_000_000.0
PASSWORD = "correct horse battery"


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path)
    yield registry
    registry.close()


@pytest.fixture
def users(registry):
    return Users(registry)


@pytest.fixture
def logins(registry):
    return Logins(registry)


# -- passwords


def test_a_password_matches_its_hash_alone():
    stored = hash_password(PASSWORD)
    assert stored.startswith("$argon2id$")
    assert PASSWORD not in stored
    assert stored != hash_password(PASSWORD)
    assert password_matches(stored, PASSWORD)
    assert not password_matches(stored, PASSWORD + "x")
    assert not password_matches(stored, "")
    assert not password_matches(stored, "x" * 100_000)
    assert not password_matches(None, PASSWORD)
    assert not password_matches(None, "")


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short",
        "a" * 9,
        "aaaaaaaaaaaa",
        "abababababab",
        "Password123",
        "ada.lovelace1",
        "xxhyperlogxx",
        "x" * 257,
    ],
)
def test_a_password_that_is_easy_to_guess_is_refused(password):
    with pytest.raises(ConfigError):
        check_password(password, "ada.lovelace")


@pytest.mark.parametrize(
    "password", [PASSWORD, "Tr0ub4dor&3xy", "пароль из слов", "a b c d e f", "p" * 5 + "qrstuv" * 9]
)
def test_any_other_password_will_do(password):
    check_password(password, "ada")


# -- users


def test_users_are_added_changed_and_removed(users):
    ada = users.add("ada", "admin", "hash 1", NOW)
    bob = users.add("bob", "viewer", "hash 2", NOW)
    assert users.list() == [ada, bob]
    assert len(users) == 2
    assert users.get("bob") == bob
    users.set_password("bob", "hash 3", NOW + 5)
    assert users.stored_password("bob") == "hash 3"
    assert users.get("bob").changed_at == NOW + 5
    users.remove("bob")
    assert users.get("bob") is None
    assert users.stored_password("bob") is None


def test_the_last_admin_stays(users):
    users.add("ada", "admin", "hash", NOW)
    users.add("bob", "viewer", "hash", NOW)
    with pytest.raises(ConfigError, match="last admin"):
        users.remove("ada")
    users.add("eve", "admin", "hash", NOW)
    users.remove("ada")


@pytest.mark.parametrize(
    "name", ["", " ", "a b", ".a", "a.", "../x", "a\n", "é", "x" * 65, "<b>", "a\0"]
)
def test_a_name_that_is_none_is_refused(users, name):
    with pytest.raises(ConfigError, match="name"):
        users.add(name, "admin", "hash", NOW)
    assert len(users) == 0


def test_what_cannot_be_is_told(users):
    users.add("ada", "admin", "hash", NOW)
    with pytest.raises(ConfigError, match="already"):
        users.add("ada", "viewer", "hash", NOW)
    with pytest.raises(ConfigError, match="role"):
        users.add("bob", "root", "hash", NOW)
    for call in (lambda: users.remove("bob"), lambda: users.set_password("bob", "hash", NOW)):
        with pytest.raises(ConfigError, match="no user bob"):
            call()


def test_the_number_of_users_is_bounded(users, monkeypatch):
    monkeypatch.setattr("hyperlog.users.MAX_USERS", 1)
    users.add("ada", "admin", "hash", NOW)
    with pytest.raises(ConfigError, match="1 users"):
        users.add("bob", "admin", "hash", NOW)


# -- logins


@pytest.fixture
def ada(users):
    return users.add("ada", "admin", "hash", NOW)


def test_a_login_is_found_by_its_id_until_it_is_closed(logins, ada, registry):
    id = logins.open(ada, "127.0.0.1", NOW)
    login = logins.find(id, NOW + 1)
    assert (login.user, login.source, login.created_at) == (ada, "127.0.0.1", NOW)
    assert logins.find(id + "x", NOW) is None
    assert logins.find("", NOW) is None
    assert id.encode() not in registry.path.read_bytes(), "only its digest is kept"
    logins.close(id)
    assert logins.find(id, NOW) is None
    logins.close(id)


def test_each_login_has_an_id_of_its_own(logins, ada):
    ids = {logins.open(ada, "s", NOW) for _ in range(10)}
    assert len(ids) == 10
    assert all(len(id) >= 43 for id in ids), "256 bits"


def test_a_login_ends_when_it_is_not_used(logins, ada):
    id = logins.open(ada, "s", NOW)
    assert logins.find(id, NOW + IDLE_TIME - 1)
    assert logins.find(id, NOW + 2 * IDLE_TIME - 2), "it was used meanwhile"
    assert logins.find(id, NOW + 3 * IDLE_TIME) is None
    assert logins.find(id, NOW) is None, "it does not come back"


def test_a_login_ends_after_its_lifetime_however_it_is_used(logins, ada):
    id = logins.open(ada, "s", NOW)
    at = NOW
    while at < NOW + LIFETIME - 3600:
        at += 3600
        assert logins.find(id, at)
    assert logins.find(id, NOW + LIFETIME) is None


def test_a_new_password_and_removal_end_all_logins(users, logins, ada):
    first, second = (logins.open(ada, "s", NOW) for _ in "ab")
    bob = users.add("bob", "viewer", "hash", NOW)
    other = logins.open(bob, "s", NOW)
    users.set_password("ada", "hash 2", NOW)
    assert logins.find(first, NOW) is logins.find(second, NOW) is None
    assert logins.find(other, NOW)
    users.remove("bob")
    assert logins.find(other, NOW) is None


def test_old_logins_give_way(logins, ada):
    ids = [logins.open(ada, "s", NOW + number) for number in range(MAX_LOGINS_PER_USER + 3)]
    alive = [id for id in ids if logins.find(id, NOW + 100)]
    assert alive == ids[3:]
