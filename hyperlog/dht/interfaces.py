"""Service: the IPv4 addresses of this machine, and which address a LAN peer should try.

Source: hyperdht lib/holepuncher.js `localAddresses` and `matchAddress`, bogon index.js;
docs/protocol/hyperdht.md section 9.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final

from hyperlog.dht.compact import Address

__all__ = [
    "hosts_at_a_glance",
    "interface_hosts",
    "is_bogon",
    "is_reserved",
    "local_addresses",
    "match_address",
]

SIOCGIFADDR: Final = 0x8915  # linux/sockios.h: the IPv4 address of an interface

PRIVATE: Final = tuple(
    ipaddress.IPv4Network(net)
    for net in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
    )
)
RESERVED: Final = tuple(
    ipaddress.IPv4Network(net)
    for net in (
        "0.0.0.0/8",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)


def _is_in(host: str, networks: Sequence[ipaddress.IPv4Network]) -> bool:
    try:
        address = ipaddress.IPv4Address(host)
    except ipaddress.AddressValueError:
        return True
    return any(address in network for network in networks)


def is_private(host: str) -> bool:
    """Whether the address belongs to a private network, loopback included."""
    return _is_in(host, PRIVATE)


def is_reserved(host: str) -> bool:
    """Whether no host can have the address; true of what is no IPv4 address."""
    return _is_in(host, RESERVED)


def is_bogon(host: str) -> bool:
    """Whether the address cannot be reached across the internet."""
    return is_private(host) or is_reserved(host)


def local_addresses(bound: Address) -> list[Address]:
    """Where peers on the same network can reach a socket bound to `bound`.

    A socket on one address has that one; one on 0.0.0.0 has every interface's but loopback, and
    127.0.0.1 when there is no other.
    """
    host, port = bound
    if host != "0.0.0.0":
        return [bound]
    hosts = interface_hosts()
    return [(host, port) for host in hosts] or [("127.0.0.1", port)]


def interface_hosts() -> list[str]:
    """The IPv4 addresses of this machine, loopback left out.

    Empty without a network, and when the system cannot be asked.
    """
    try:
        hosts = hosts_at_a_glance()
    except OSError:
        hosts = []
    if sys.platform == "linux":
        return hosts
    try:
        hosts += [
            str(info[4][0])
            for info in socket.getaddrinfo(
                socket.gethostname(), None, socket.AF_INET, socket.SOCK_DGRAM
            )
        ]
    except OSError:
        pass
    return _without_loopback(hosts)


def hosts_at_a_glance() -> list[str]:
    """Some or all of `interface_hosts`, found without a name service, which may take seconds.

    Enough to see that something has changed.

    Raises:
        OSError: the system cannot be asked: this process has too many files open.
    """
    return _without_loopback(_linux_hosts() if sys.platform == "linux" else [_default_route_host()])


def _without_loopback(hosts: Sequence[str]) -> list[str]:
    """Each of the others once."""
    return list(dict.fromkeys(host for host in hosts if host and not host.startswith("127.")))


def _linux_hosts() -> list[str]:
    import fcntl

    hosts = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(sock, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an IPv4 address
            hosts.append(socket.inet_ntoa(reply[20:24]))
    return hosts


def _default_route_host() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing: it only asks for the route
        except OSError:
            return ""
        return str(sock.getsockname()[0])


def match_address(own: Sequence[Address], remote: Sequence[Address]) -> Address | None:
    """The remote address that shares the longest prefix of octets with one of ours, if any does.

    The first of equals wins; no common first octet gives None.
    """
    best: Address | None = None
    best_length = 0
    for own_host, _ in own:
        mine = own_host.split(".")
        for candidate in remote:
            theirs = candidate[0].split(".")
            length = 0
            while length < 3 and mine[length : length + 1] == theirs[length : length + 1]:
                length += 1
            if length > best_length:
                best, best_length = candidate, length
    return best
