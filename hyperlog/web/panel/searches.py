"""Searches that users have given a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hyperlog.registry import Registry
from hyperlog.web.problems import Problem

__all__ = ["Search", "Searches"]

MAX_NAME: Final = 64  # characters
MAX_ADDRESS: Final = 4096  # characters
MAX_SEARCHES: Final = 100  # of one user


@dataclass(frozen=True, slots=True)
class Search:
    name: str
    address: str
    """of the page, with its query string"""


class Searches:
    """In the server's registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def list(self, user: str) -> list[Search]:
        """A user's searches by name."""
        rows = self._registry.read(
            "SELECT name, address FROM search WHERE user = ? ORDER BY name", user
        )
        return [Search(row["name"], row["address"]) for row in rows]

    def save(self, user: str, name: str, address: str) -> None:
        """Keep a search; one of the same name is replaced.

        Raises:
            Problem: the name cannot be used, or there are too many.
        """
        name = name.strip()
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise Problem(400, f"a search is named by 1 to {MAX_NAME} characters", field="name")
        if len(address) > MAX_ADDRESS:
            raise Problem(400, "this search is too long to be kept", limit=MAX_ADDRESS)
        with self._registry.transaction() as connection:
            connection.execute("DELETE FROM search WHERE user = ? AND name = ?", (user, name))
            count = connection.execute("SELECT count(*) FROM search WHERE user = ?", (user,))
            if count.fetchone()[0] >= MAX_SEARCHES:
                raise Problem(400, f"{MAX_SEARCHES} searches are kept: remove one first")
            connection.execute("INSERT INTO search VALUES (?, ?, ?)", (user, name, address))

    def remove(self, user: str, name: str) -> None:
        """Forget a search, if there is one of this name."""
        with self._registry.transaction() as connection:
            connection.execute("DELETE FROM search WHERE user = ? AND name = ?", (user, name))
