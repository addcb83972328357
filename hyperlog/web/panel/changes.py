"""Notices what the command line has changed in the registry, so that it is in the log as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hyperlog.errors import KeyFileError
from hyperlog.registry import Registry

__all__ = ["Changes"]

Entry = tuple[str, dict[str, object]]

COMMAND_LINE = "command line"


class Changes:
    """Users and tokens, as they were when last looked at. For one thread."""

    def __init__(self, registry: Registry) -> None:
        """Raises KeyFileError if the registry cannot be used."""
        self._registry = registry
        self._users = self._read_users()
        self._tokens = self._read_tokens()

    def audited(self, audit: Callable[[str, dict[str, object]], None]) -> Callable[..., None]:
        """`audit`, which also tells here what the panel itself has done."""

        def tell(what: str, fields: dict[str, object]) -> None:
            audit(what, fields)
            if what.startswith(("user", "password", "token")):
                self._take_in()

        return tell

    def look(self) -> list[Entry]:
        """What others have changed since the last look, as audit entries."""
        try:
            if not self._registry.changed():
                return []
            users, tokens = self._read_users(), self._read_tokens()
        except KeyFileError:
            return []  # told by those who need it
        entries = [*self._user_entries(users), *self._token_entries(tokens)]
        self._users, self._tokens = users, tokens
        return entries

    def _user_entries(self, users: Mapping[str, tuple[str, str]]) -> list[Entry]:
        entries: list[Entry] = []
        for name, (role, password) in users.items():
            before = self._users.get(name)
            if before is None:
                entries.append(("user added", {"user": name, "role": role, "by": COMMAND_LINE}))
            elif before[1] != password:
                entries.append(("password changed", {"user": name, "by": COMMAND_LINE}))
        for name in self._users.keys() - users.keys():
            entries.append(("user removed", {"user": name, "by": COMMAND_LINE}))
        return entries

    def _token_entries(self, tokens: Mapping[str, tuple[str, bool]]) -> list[Entry]:
        entries: list[Entry] = []
        for jti, (application, revoked) in tokens.items():
            before = self._tokens.get(jti)
            fields: dict[str, object] = {"jti": jti, "application": application, "by": COMMAND_LINE}
            if before is None:
                entries.append(("token issued", fields))
            if revoked and (before is None or not before[1]):
                entries.append(("token revoked", fields))
        return entries

    def _take_in(self) -> None:
        try:
            self._users, self._tokens = self._read_users(), self._read_tokens()
        except KeyFileError:
            pass  # the next look tells what there is to tell

    def _read_users(self) -> dict[str, tuple[str, str]]:
        rows = self._registry.read("SELECT name, role, password FROM user")
        return {row["name"]: (row["role"], row["password"]) for row in rows}

    def _read_tokens(self) -> dict[str, tuple[str, bool]]:
        rows = self._registry.read("SELECT jti, application, revoked_at FROM token")
        return {row["jti"]: (row["application"], row["revoked_at"] is not None) for row in rows}
