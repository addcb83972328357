"""Service: names for the commands that a node counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hyperlog.dht import constants
from hyperlog.dht.rpc import messages
from hyperlog.dht.rpc.tally import OTHER, Tallies

__all__ = ["CommandStatistics", "command_statistics"]

INTERNAL: Final = ("PING", "PING_NAT", "FIND_NODE", "DOWN_HINT", "DELAYED_PING")
USER: Final = (
    "PEER_HANDSHAKE",
    "PEER_HOLEPUNCH",
    "FIND_PEER",
    "LOOKUP",
    "ANNOUNCE",
    "UNANNOUNCE",
    "MUTABLE_PUT",
    "MUTABLE_GET",
    "IMMUTABLE_PUT",
    "IMMUTABLE_GET",
    "PLUGIN",
)
UNKNOWN: Final = "UNKNOWN"
"""All commands that no HyperDHT node knows."""


@dataclass(frozen=True, slots=True)
class CommandStatistics:
    """Requests of one command since the node was opened.

    The difference, `received - answered - refused`, met with silence.
    """

    received: int = 0
    answered: int = 0
    """with a reply, or by passing the request on to whom it concerns"""
    refused: int = 0
    """with an error: unknown command, wrong ticket, spent sequence number"""


def command_statistics(tallies: Tallies) -> dict[str, CommandStatistics]:
    """The counts of every command by its name, those of unknown commands under "UNKNOWN"."""
    counts: dict[str, CommandStatistics] = {}
    unknown = [0, 0, 0]
    for names, module, some in (
        (INTERNAL, messages, tallies.internal),
        (USER, constants, tallies.user),
    ):
        by_number = {getattr(module, name): name for name in names}
        for number in range(OTHER + 1):
            tally = some[number]
            numbers = (tally.received, tally.answered, tally.refused)
            if number in by_number:
                counts[by_number[number]] = CommandStatistics(*numbers)
            else:
                unknown = [total + one for total, one in zip(unknown, numbers, strict=True)]
    counts[UNKNOWN] = CommandStatistics(*unknown)
    return counts
