"""Keys that an admin has shut out, kept over restarts."""

from __future__ import annotations

from collections.abc import Callable

from hyperlog.errors import ConfigError
from hyperlog.gate import Gate
from hyperlog.registry import Registry

__all__ = ["Blocklist"]

MAX_BLOCKED = 10_000


class Blocklist:
    """The keys in a server's registry, and at its gate. For one thread."""

    def __init__(self, registry: Registry, gate: Gate, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970.

        Raises:
            KeyFileError: the registry cannot be used.
        """
        self._registry = registry
        self._gate = gate
        self._clock = clock
        gate.block(self.blocked())

    def blocked(self) -> list[bytes]:
        """The keys, the one that was shut out last first."""
        rows = self._registry.read("SELECT key FROM blocked ORDER BY since DESC, key")
        return [row["key"] for row in rows]

    def block(self, key: bytes) -> None:
        """Let a key in no more, until `unblock`; its connections end.

        Raises:
            ConfigError: there are too many.
        """
        with self._registry.transaction() as connection:
            count = connection.execute("SELECT count(*) FROM blocked").fetchone()[0]
            if count >= MAX_BLOCKED:
                raise ConfigError(
                    f"{MAX_BLOCKED} keys are blocked: better list those that may come"
                )
            values = (key, int(self._clock()))
            connection.execute("INSERT OR IGNORE INTO blocked VALUES (?, ?)", values)
        self._gate.block(self.blocked())

    def unblock(self, key: bytes) -> None:
        """The key may come again, if the list of keys lets it."""
        with self._registry.transaction() as connection:
            connection.execute("DELETE FROM blocked WHERE key = ?", (key,))
        self._gate.block(self.blocked())

    def disconnect(self, key: bytes) -> int:
        """See `Gate.disconnect`."""
        return self._gate.disconnect(key)
