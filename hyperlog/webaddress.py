"""Addresses of servers that are reached over HTTP: `https://logs.example.org`, `ws://[::1]:8787`.

Where such a server is, scheme, host and port alone tell: it is the same whether a program writes
`https` or `wss`. Without TLS only this machine is reached, unless that is asked for: tokens and
records would go over the network for everybody to read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import urlsplit

from hyperlog.errors import ConfigError

__all__ = ["WebAddress", "is_web_address", "parse_web_address"]

_SECURE: Final = {"https": True, "wss": True, "http": False, "ws": False}
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?\.?")


@dataclass(frozen=True, slots=True)
class WebAddress:
    """Where a server is."""

    host: str
    """name or IP address, without brackets"""
    port: int
    is_secure: bool

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether it names this machine."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host.rstrip(".") == "localhost"

    def __str__(self) -> str:
        return f"{'https' if self.is_secure else 'http'}://{self.authority}"


def is_web_address(text: object) -> bool:
    """Whether it is meant as an address, and not as a public key."""
    return isinstance(text, str) and "://" in text


def parse_web_address(text: str, *, allow_plain: bool = False) -> WebAddress:
    """The server of an `http`, `https`, `ws` or `wss` address.

    `allow_plain` allows other machines without TLS.

    Raises:
        ConfigError: it is none, has more than scheme, host and port, or needs TLS.
    """
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as err:
        raise ConfigError(f"this is no address of a server: {err}") from None
    secure = _SECURE.get(parts.scheme)
    if secure is None:
        raise ConfigError(
            f"a server's address begins with https:// or wss://, not {parts.scheme[:16]}://"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError("an address has no user and password in it: tokens go into `token`")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"an address ends after the port: {parts.scheme}://HOST:PORT")
    host = _checked_host(parts.hostname or "")
    if port == 0:
        raise ConfigError("there is no port 0")
    address = WebAddress(host, port or (443 if secure else 80), secure)
    if not secure and not address.is_local and not allow_plain:
        raise ConfigError(
            f"{address} is another machine and not encrypted, everybody on the way could read "
            "token and records: use https://, or allow_plain if the way is safe"
        )
    return address


def _checked_host(host: str) -> str:
    if ":" in host:
        try:
            if "%" not in host:  # a zone means something to this machine alone
                return str(IPv6Address(host))
        except ValueError:
            pass
        raise ConfigError(f"{host[:64]!r} is no IPv6 address")
    try:
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        host = ""
    if not _HOST.fullmatch(host):
        raise ConfigError("an address names a host: https://HOST:PORT")
    return host
