"""Our own address as others see it, agreed on by the latest 16 observations.

Spec: docs/protocol/dht-rpc.md section 9; nat-sampler index.js.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Final

__all__ = ["NatSampler"]

MAX_SAMPLES: Final = 16
COMPARED_SAMPLES: Final = 4


@dataclass(slots=True, eq=False)
class _Sighting:
    """How often one address (port 0: one host) was seen among the samples kept."""

    host: str
    port: int
    hits: int = 1


class NatSampler:
    """Majority of the observed addresses, tolerant of a few liars and of a changed network."""

    __slots__ = ("_samples", "_top_address", "_top_host", "host", "port")

    def __init__(self) -> None:
        self.host: str | None = None
        """outside host, or None while the samples disagree"""
        self.port = 0
        """outside port; 0 with a known host means that the NAT uses many ports"""
        self._samples: deque[tuple[_Sighting, _Sighting]] = deque()
        self._top_address: _Sighting | None = None
        self._top_host: _Sighting | None = None

    @property
    def size(self) -> int:
        """Samples in use, 0 … 16."""
        return len(self._samples)

    @property
    def threshold(self) -> int:
        """Sightings that an address needs to count as known."""
        size = len(self._samples)
        return size - (0 if size < 4 else 1 if size < 8 else 2 if size < 12 else 3)

    def add(self, host: str, port: int) -> int:
        """Note one observation; gives how often this very address is among the samples now."""
        address = self._sight(0, host, port)
        any_port = self._sight(1, host, 0)
        if len(self._samples) == MAX_SAMPLES:
            for sighting in self._samples.popleft():
                sighting.hits -= 1
        self._samples.append((address, any_port))
        if self._top_address is None or self._top_address.hits < address.hits:
            self._top_address = address
        if self._top_host is None or self._top_host.hits < any_port.hits:
            self._top_host = any_port

        threshold = self.threshold
        if self._top_address.hits >= threshold:
            self.host, self.port = self._top_address.host, self._top_address.port
        elif self._top_host.hits >= threshold:
            self.host, self.port = self._top_host.host, 0
        else:
            self.host, self.port = None, 0
        return address.hits

    def _sight(self, which: int, host: str, port: int) -> _Sighting:
        for sample in islice(reversed(self._samples), COMPARED_SAMPLES):
            sighting = sample[which]
            if sighting.port == port and sighting.host == host:
                sighting.hits += 1
                return sighting
        return _Sighting(host, port)
