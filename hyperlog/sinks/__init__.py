"""Where a server's lines end up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Sink"]


class Sink(Protocol):
    """Stores lines; knows keys but no peers. Calls may block and belong into one worker thread."""

    def write(self, remote_key: bytes, lines: Sequence[bytes], now: float) -> None:
        """Store `lines` (JSON texts without newline) of one key, in order, all or an error.

        Raises:
            SinkError: only its `lines_written` leading lines are stored.
        """

    def resume(self, remote_key: bytes) -> list[tuple[str, int]]:
        """(session id, last number) of the sessions stored last of this key, the latest last.

        Raises:
            SinkError: what is stored cannot be read.
        """

    def close(self) -> None:
        """Let go of everything; more calls start anew."""
