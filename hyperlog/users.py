"""Who may use the control panel: users with a password and a role, and their logins.

Passwords are kept as argon2id hashes, which take a fifth of a second and 64 MiB to make on purpose:
`hash_password` and `password_matches` belong into a thread. Of a login only the SHA-256 digest of
its id is kept: whoever reads the registry cannot use it.

Spec: OWASP ASVS 5.0, chapters V6 (authentication) and V7 (sessions).
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import nacl.exceptions
from nacl.pwhash import argon2id

from hyperlog.errors import ConfigError, KeyFileError
from hyperlog.registry import Registry

__all__ = [
    "Login",
    "Logins",
    "Role",
    "User",
    "Users",
    "check_password",
    "hash_password",
    "password_matches",
]

Role: TypeAlias = Literal["admin", "viewer"]
ROLES: Final[tuple[Role, ...]] = ("admin", "viewer")

MIN_PASSWORD: Final = 10  # characters
MAX_PASSWORD: Final = 256  # characters
MAX_USERS: Final = 1000
MAX_LOGINS_PER_USER: Final = 20  # the one that was silent longest gives way
IDLE_TIME: Final = 8 * 3600.0  # s without a request until a login is over
LIFETIME: Final = 7 * 86400.0  # s
SEEN_INTERVAL: Final = 60.0  # s between two notes in the registry that a login is used
COMMON: Final = (
    "password", "passw0rd", "letmein", "welcome", "qwerty", "qwertz", "azerty", "iloveyou",
    "administrator", "hyperlog", "changeme", "default", "secret", "abcdef", "123456",
)  # fmt: skip
"""a password that is little more than one of these is refused"""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")

_decoy: str | None = None


@dataclass(frozen=True, slots=True)
class User:
    name: str
    role: Role
    created_at: float
    changed_at: float
    """when the password was set"""


@dataclass(frozen=True, slots=True)
class Login:
    """A user who is logged in, until `ends_at` at the latest."""

    user: User
    source: str
    created_at: float
    seen_at: float

    @property
    def ends_at(self) -> float:
        return min(self.created_at + LIFETIME, self.seen_at + IDLE_TIME)


# -- passwords


def check_password(password: str, name: str) -> None:
    """Make sure that a password is fit for a user of this name.

    Raises:
        ConfigError: it is not; the text says why.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise ConfigError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    if len(set(password)) < 4:
        raise ConfigError("this password is too easy to guess: a few words in a row are better")
    plain = password.casefold()
    for word in (*COMMON, name.casefold()):
        rest = plain.replace(word, "") if word else plain
        if len(plain) - len(rest) and len(rest) < 6:
            raise ConfigError("this password is too easy to guess: a few words in a row are better")


def hash_password(password: str) -> str:
    """An argon2id hash with its salt and costs; takes 0.2 s."""
    return argon2id.str(password.encode("utf-8", "surrogatepass")).decode("ascii")


def password_matches(stored: str | None, password: str) -> bool:
    """Whether a password is the one that was hashed; False, after the same time, for None.

    Takes 0.2 s.
    """
    global _decoy
    if _decoy is None:
        _decoy = hash_password(secrets.token_hex(16))
    if len(password) > MAX_PASSWORD:
        password = ""
    try:
        argon2id.verify(
            (_decoy if stored is None else stored).encode("ascii"),
            password.encode("utf-8", "surrogatepass"),
        )
    except nacl.exceptions.InvalidkeyError:
        return False
    return stored is not None


# -- users


class Users:
    """The users in a registry; for the thread that opened it. Times are seconds since 1970.

    All methods raise KeyFileError when the registry cannot be used.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __len__(self) -> int:
        count: int = self._registry.read("SELECT count(*) FROM user")[0][0]
        return count

    def list(self) -> list[User]:
        """All of them by name."""
        return [_user(row) for row in self._registry.read("SELECT * FROM user ORDER BY name")]

    def get(self, name: str) -> User | None:
        rows = self._registry.read("SELECT * FROM user WHERE name = ?", name)
        return _user(rows[0]) if rows else None

    def stored_password(self, name: str) -> str | None:
        """What `password_matches` takes; None for a name that nobody has."""
        rows = self._registry.read("SELECT password FROM user WHERE name = ?", name)
        return rows[0][0] if rows else None

    def add(self, name: str, role: Role, stored_password: str, now: float) -> User:
        """A new user; the password comes from `hash_password`.

        Raises:
            ConfigError: the name is taken or cannot be used, or there are too many users.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                "a user's name has up to 64 letters, digits, dots, @, - or _, "
                "and begins and ends with a letter or digit"
            )
        if role not in ROLES:
            raise ConfigError(f"a role is one of {', '.join(ROLES)}")
        with self._registry.transaction() as connection:
            if connection.execute("SELECT count(*) FROM user").fetchone()[0] >= MAX_USERS:
                raise ConfigError(f"there are {MAX_USERS} users already")
            if connection.execute("SELECT 1 FROM user WHERE name = ?", (name,)).fetchone():
                raise ConfigError(f"there is a user {name} already")
            values = (name, role, stored_password, int(now), int(now))
            connection.execute("INSERT INTO user VALUES (?, ?, ?, ?, ?)", values)
        return User(name, role, int(now), int(now))

    def set_password(self, name: str, stored_password: str, now: float) -> None:
        """Change a password; all logins of the user are over.

        Raises:
            ConfigError: there is no such user.
        """
        with self._registry.transaction() as connection:
            changed = connection.execute(
                "UPDATE user SET password = ?, changed_at = ? WHERE name = ?",
                (stored_password, int(now), name),
            ).rowcount
            if not changed:
                raise ConfigError(f"there is no user {name}")
            connection.execute("DELETE FROM login WHERE user = ?", (name,))

    def remove(self, name: str) -> None:
        """Remove a user and all logins of it.

        Raises:
            ConfigError: there is no such user, or it is the last admin.
        """
        with self._registry.transaction() as connection:
            row = connection.execute("SELECT role FROM user WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise ConfigError(f"there is no user {name}")
            admins = connection.execute("SELECT count(*) FROM user WHERE role = 'admin'")
            if row["role"] == "admin" and admins.fetchone()[0] == 1:
                raise ConfigError(f"{name} is the last admin: add another one first")
            connection.execute("DELETE FROM user WHERE name = ?", (name,))


# -- logins


class Logins:
    """Who is logged in. All methods raise KeyFileError when the registry cannot be used."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def open(self, user: User, source: str, now: float) -> str:
        """A new login; its id, for the cookie of `source` and nobody else."""
        id = secrets.token_urlsafe(32)
        with self._registry.transaction() as connection:
            connection.execute(
                "DELETE FROM login WHERE created_at < ? OR seen_at < ?",
                (now - LIFETIME, now - IDLE_TIME),
            )
            connection.execute(
                "DELETE FROM login WHERE user = ? AND digest NOT IN ("
                "SELECT digest FROM login WHERE user = ? ORDER BY seen_at DESC LIMIT ?)",
                (user.name, user.name, MAX_LOGINS_PER_USER - 1),
            )
            connection.execute(
                "INSERT INTO login VALUES (?, ?, ?, ?, ?)",
                (_digest(id), user.name, source[:64], int(now), int(now)),
            )
        return id

    def find(self, id: str, now: float) -> Login | None:
        """The login with this id, which counts as used now; None if it is over."""
        rows = self._registry.read(
            "SELECT user.*, login.source, login.created_at AS opened_at, login.seen_at "
            "FROM login JOIN user ON user.name = login.user WHERE digest = ?",
            _digest(id),
        )
        if not rows:
            return None
        row = rows[0]
        login = Login(_user(row), row["source"], row["opened_at"], row["seen_at"])
        if now >= login.ends_at:
            self.close(id)
            return None
        if now - login.seen_at >= SEEN_INTERVAL:
            # Where others are writing, the next use is soon enough.
            with suppress(KeyFileError), self._registry.transaction() as connection:
                connection.execute(
                    "UPDATE login SET seen_at = ? WHERE digest = ?", (int(now), _digest(id))
                )
        return login

    def close(self, id: str) -> None:
        """The login with this id is over, if there is one."""
        with self._registry.transaction() as connection:
            connection.execute("DELETE FROM login WHERE digest = ?", (_digest(id),))


def _digest(id: str) -> bytes:
    return hashlib.sha256(id.encode("utf-8", "replace")).digest()


def _user(row: sqlite3.Row) -> User:
    return User(row["name"], row["role"], row["created_at"], row["changed_at"])
