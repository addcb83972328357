"""Service: IPv6 between neighbours, the only place where HyperDHT knows of it.

The network itself speaks IPv4: its messages have no room for other addresses. Only the payload of a
handshake has, so that two peers on one network can tell each other theirs. A packet of the stream
that comes through is the proof that an address works, in both directions.

Wire: docs/protocol/hyperdht.md section 3, addresses6; hyperdht 6.34.0 neither sends nor uses them.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path
from typing import Final

from hyperlog.dht.udp import DEFAULT_TTL, Datagram, UDPSocket
from hyperlog.dht.udx.packet import HEADER, HEARTBEAT, MAGIC_AND_VERSION

__all__ = ["UDP6Socket", "interface_hosts6", "is_neighbourly", "knock"]

MAX_HOSTS: Final = 4  # of this machine that peers are told: a handshake has to fit a datagram
IF_INET6: Final = Path("/proc/net/if_inet6")
UNUSABLE: Final = 0x68  # flags there: tentative, deprecated, duplicate; linux/if_addr.h
IPV6_MTU_DISCOVER: Final = 23  # linux/in6.h
IPV6_PMTUDISC_PROBE: Final = 3


class UDP6Socket(UDPSocket):
    """A non-blocking IPv6 UDP socket of the system, which takes no IPv4."""

    def __init__(self, host: str, port: int) -> None:
        """Bind to `host` and `port` (0 for any).

        Raises:
            OSError: no IPv6 here, the address is in use, or not one of this machine.
        """
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._socket.bind((host, port))
            self._set_buffers()
            if sys.platform == "linux":
                self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE)
        except OSError:
            self._socket.close()
            raise
        name = self._socket.getsockname()
        self.local_address = (name[0], name[1])
        self._gro = self._enable_gro()
        self._gso = self._has_gso()
        self._ttl = DEFAULT_TTL

    def receive_batch(self) -> list[Datagram]:
        return [(data, address[:2]) for data, address in super().receive_batch()]


def is_neighbourly(host: str) -> bool:
    """Whether an IPv6 address may be a neighbour's: not loopback, nor of one link alone."""
    try:
        address = ipaddress.IPv6Address(host)
    except ipaddress.AddressValueError:
        return False
    return not (
        address.is_link_local
        or address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or address.ipv4_mapped is not None
    )


def interface_hosts6() -> list[str]:
    """The IPv6 addresses of this machine that neighbours can use; at most four."""
    try:
        hosts = _linux_hosts() if sys.platform == "linux" else _named_hosts()
    except (OSError, ValueError):
        return []  # no IPv6
    return [host for host in dict.fromkeys(hosts) if is_neighbourly(host)][:MAX_HOSTS]


def _linux_hosts() -> list[str]:
    hosts = []
    for line in IF_INET6.read_text().splitlines():
        digits, _index, _prefix, _scope, flags, _name = line.split()
        if not int(flags, 16) & UNUSABLE:
            hosts.append(str(ipaddress.IPv6Address(bytes.fromhex(digits))))
    return hosts


def _named_hosts() -> list[str]:
    found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET6, socket.SOCK_DGRAM)
    return [str(info[4][0]) for info in found]


def knock(stream_id: int) -> bytes:
    """A UDX packet that asks the peer's stream for a sign of life."""
    return HEADER.pack(MAGIC_AND_VERSION, HEARTBEAT, 0, stream_id, 0, 0, 0)
