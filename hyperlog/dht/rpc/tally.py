"""How many requests of each command came in, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["OTHER", "Tallies", "Tally"]

OTHER: Final = 15
"""Index under which all commands from that number on are counted; those that exist are below."""


@dataclass(slots=True)
class Tally:
    """Counts of one command; what was neither answered nor refused met with silence."""

    received: int = 0
    answered: int = 0
    """with a reply, or by passing it on to whom it concerns"""
    refused: int = 0
    """with an error: unknown command, wrong ticket, spent sequence number"""


class Tallies:
    """The counts of one node since it was opened, in lists by the number of the command."""

    __slots__ = ("internal", "user")

    def __init__(self) -> None:
        self.internal = [Tally() for _ in range(OTHER + 1)]
        """dht-rpc's own commands"""
        self.user = [Tally() for _ in range(OTHER + 1)]
        """commands of the layer above"""

    def of(self, command: int, internal: bool) -> Tally:
        tallies = self.internal if internal else self.user
        return tallies[command if command < OTHER else OTHER]
