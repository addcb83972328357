"""What `hyperlog doctor` finds out: one Finding for each step, as data."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from hyperlog.config import Address

__all__ = [
    "TITLES",
    "Finding",
    "Progress",
    "Verdict",
    "address_text",
    "counted",
    "milliseconds",
    "path_text",
]

TITLES: Final = {
    "names": "names",
    "udp": "UDP",
    "bootstrap": "bootstrap nodes",
    "network": "network",
    "nat": "NAT on this side",
    "record": "record of the key",
    "handshake": "handshake",
    "peerNat": "NAT of the peer",
    "path": "path",
    "server": "server",
    "clock": "clock",
    "tcp": "TCP",
    "tls": "TLS",
    "http": "HTTP",
}
"""Of all steps there are, as people read them."""


class Verdict(enum.StrEnum):
    """How a step went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    """there was no way to tell"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One step, judged."""

    step: str
    """a key of TITLES"""
    verdict: Verdict
    text: str
    advice: str | None = None
    details: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    """for programs: what was measured, in s"""


class Progress(Protocol):
    """Who is told of each step."""

    def begin(self, step: str) -> None:
        """A step begins; it may take seconds."""

    def found(self, finding: Finding) -> None:
        """It is over."""


def milliseconds(seconds: float | None) -> str:
    """A duration with two or three digits that count."""
    if seconds is None:
        return "unknown"
    if seconds >= 1.0:
        return f"{seconds:.1f} s"
    ms = seconds * 1000
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def address_text(address: Address) -> str:
    """As people write it."""
    return f"{address[0]}:{address[1]}"


def counted(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


_PATHS: Final = {
    "direct": "direct",
    "lan": "in the local network",
    "punched": "through a punched hole",
    "relayed": "through a relay",
}


def path_text(path: str, address: Address | None) -> str:
    """The way of a connection: `direct, at 203.0.113.7:4242`."""
    way = _PATHS.get(path, path)
    return way if address is None else f"{way}, at {address_text(address)}"
