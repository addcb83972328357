"""How large a packet may be: search upwards from 1200 bytes by padding full data packets.

A probe is an ordinary data packet whose IP packet is made larger by zero bytes between header and
payload; losing one is no sign of congestion, and the retransmission goes without padding. One
probe is in flight at a time. The datagram socket must set don't-fragment, or the probes prove
nothing.

Spec: docs/protocol/udx.md section 10.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BASE_MTU", "MAX_MTU", "PathMTU", "header_overhead"]

BASE_MTU: Final = 1200  # bytes of IP packet, libudx include/udx.h UDX_MTU_BASE
MAX_MTU: Final = 1500  # UDX_MTU_MAX
PROBE_STEP: Final = 32  # UDX_MTU_STEP
MAX_LOST_PROBES: Final = 3  # UDX_MTU_MAX_PROBES
MAX_PADDING: Final = 255  # what the data offset byte can say


def header_overhead(host: str) -> int:
    """Bytes of IP, UDP and UDX header towards a host: 48 for IPv4, 68 for IPv6."""
    return 68 if ":" in host else 48


class PathMTU:
    __slots__ = (
        "_lost_probes",
        "_next_size",
        "_searching",
        "enabled",
        "mtu",
        "probe_seq",
        "probes_sent",
    )

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.mtu = BASE_MTU
        self.probe_seq: int | None = None
        """Unwrapped seq of the probe in flight."""
        self.probes_sent = 0
        self._next_size = BASE_MTU + PROBE_STEP
        self._searching = False  # begins with the first acknowledgement, which confirms BASE_MTU
        self._lost_probes = 0

    @property
    def wants_probe(self) -> bool:
        return self._searching and self.probe_seq is None

    def start_search(self) -> None:
        """The peer acknowledged something: packets of BASE_MTU pass."""
        if self.enabled and self.mtu < MAX_MTU and self._lost_probes < MAX_LOST_PROBES:
            self._searching = True

    def padding_for(self, packet_size: int) -> int:
        """Return the padding that makes an IP packet of `packet_size` a probe, 0 if none can."""
        padding = self._next_size - packet_size
        return padding if 0 < padding <= MAX_PADDING else 0

    def on_probe_sent(self, seq: int) -> None:
        self.probe_seq = seq
        self.probes_sent += 1

    def on_probe_acked(self) -> None:
        self.probe_seq = None
        self._lost_probes = 0
        self.mtu = self._next_size
        self._next_size = min(self._next_size + PROBE_STEP, MAX_MTU)
        self._searching = self.mtu < MAX_MTU

    def on_probe_lost(self) -> None:
        self.probe_seq = None
        self._lost_probes += 1
        if self._lost_probes >= MAX_LOST_PROBES:
            self._searching = False
