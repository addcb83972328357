"""Which names a server answers to, as the Host header of a request gives them.

A page from anywhere can have its name resolve to an address of ours, and would then be of our
origin as far as a browser can tell. It cannot choose what the browser writes into Host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

__all__ = ["HostList"]

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")


class HostList:
    """The names that are allowed."""

    def __init__(self, bound: str, names: Iterable[str] = ()) -> None:
        """`bound` is the address that the server listens on. One that listens on all addresses can
        be called by any of them; no page can be of an origin that is an address of ours."""
        self._names = {"localhost", "127.0.0.1", "::1", _plain(bound), *map(_plain, names)}
        self._any_address = bound in ("0.0.0.0", "::")

    def allows(self, host: str) -> bool:
        """Whether a Host header, of a name and perhaps a port, is one of ours."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = _plain(match[1])
        return name in self._names or (self._any_address and _is_address(name))


def _plain(name: str) -> str:
    return name.lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
