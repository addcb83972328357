"""Service: our addresses on our own network, which peers there may use as a short cut.

Source: hyperdht index.js `validateLocalAddresses`, lib/holepuncher.js `localAddresses`;
docs/protocol/hyperdht.md section 9.
"""

from __future__ import annotations

import errno
import logging
from typing import Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.interfaces import local_addresses
from hyperlog.dht.ipv6 import interface_hosts6
from hyperlog.dht.sockets import SERVER, SERVER6, Sockets

__all__ = ["LocalAddresses"]

logger = logging.getLogger("hyperlog.dht.lan")

CHECK_TIMEOUT: Final = 0.5  # s for one byte to come back
MAX_HOSTS: Final = 64  # of this machine that peers are told: a handshake has to fit a datagram


class LocalAddresses:
    """The addresses of the server socket on the networks that this machine is part of."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._works: dict[str, bool] = {}

    def all(self) -> list[Address]:
        """Every interface's, up to 64; loopback's when there is no other."""
        return local_addresses(self._sockets.local_address(SERVER))[:MAX_HOSTS]

    def usable(self) -> list[Address]:
        """Those that `check` has not found dead."""
        return [address for address in self.all() if self._works.get(address[0], True)]

    def ipv6(self) -> list[Address]:
        """The addresses of the IPv6 socket, which nobody has checked; none without one."""
        if not self._sockets.is_open(SERVER6):
            return []
        host, port = self._sockets.local_address(SERVER6)
        hosts = interface_hosts6() if host == "::" else [host]
        return [(host, port) for host in hosts]

    @property
    def unchecked(self) -> bool:
        """Whether there is one that `check` has not seen yet."""
        return any(host not in self._works for host, _ in self.all())

    def forget(self) -> None:
        """The network has changed: check again."""
        self._works.clear()

    async def check(self) -> None:
        """Find out which of them lead to this machine, within half a second.

        An interface of a virtual machine or of a VPN may have an address that swallows everything,
        and a peer that tries such an address waits in vain.
        """
        async with trio.open_nursery() as nursery:
            for host, _ in self.all():
                if host not in self._works:
                    self._works[host] = True  # until the opposite is known
                    nursery.start_soon(self._check, host)

    async def _check(self, host: str) -> None:
        try:
            sock = self._sockets.bind(host)
        except OSError as err:
            logger.debug("no socket on one of our addresses: %s", err)
            if err.errno in (errno.EMFILE, errno.ENFILE):
                self._works.pop(host, None)  # which says nothing of the address: check it again
            else:
                self._works[host] = False
            return
        try:
            sock.send(b"\0", sock.local_address)
            with trio.move_on_after(CHECK_TIMEOUT) as scope:
                await sock.wait_readable()
            self._works[host] = not scope.cancelled_caught
        finally:
            sock.close()
