"""Service: the addresses of bootstrap nodes, which are configured by name."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from typing import Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import BOOTSTRAP_SUGGESTED_HOSTS

__all__ = ["known_addresses", "resolve"]

logger = logging.getLogger("hyperlog.dht.resolver")

RESOLVE_TIMEOUT: Final = 5.0  # s for all names together


def known_addresses(nodes: Sequence[Address]) -> tuple[list[Address], list[Address]]:
    """What needs no name service: (addresses, names without any known address).

    The public bootstrap nodes have addresses that are tried before their names.
    """
    addresses: list[Address] = []
    names: list[Address] = []
    for host, port in nodes:
        suggested = host if _is_ipv4(host) else BOOTSTRAP_SUGGESTED_HOSTS.get(host)
        if suggested is None:
            names.append((host, port))
        else:
            addresses.append((suggested, port))
    return addresses, names


async def resolve(nodes: Sequence[Address]) -> list[Address]:
    """The IPv4 addresses of those nodes whose names resolve within 5 s, literal ones included."""
    addresses: list[Address] = []

    async def resolve_one(host: str, port: int) -> None:
        try:
            found = await trio.socket.getaddrinfo(
                host, port, trio.socket.AF_INET, trio.socket.SOCK_DGRAM
            )
        except (OSError, UnicodeError) as err:  # UnicodeError: no name has such a form
            logger.debug("bootstrap node %s does not resolve: %s", host, err)
        else:
            addresses.append((str(found[0][4][0]), port))

    with trio.move_on_after(RESOLVE_TIMEOUT):
        async with trio.open_nursery() as nursery:
            for host, port in nodes:
                nursery.start_soon(resolve_one, host, port)
    return addresses


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ipaddress.AddressValueError:
        return False
    return True
