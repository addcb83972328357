"""Addresses and keys as people type them.

They are checked where they are told, so that a mistake is known there, and not after a connection
was tried with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from hyperlog.dht import DHTError, decode_public_key
from hyperlog.errors import ConfigError

__all__ = [
    "Address",
    "parse_address",
    "parse_bind",
    "parse_bootstrap",
    "parse_host_name",
    "parse_mongo",
    "parse_peer",
    "parse_public_key",
    "parse_relays",
]

Address: TypeAlias = tuple[str, int]

MAX_BOOTSTRAP: Final = 64  # nodes
MAX_RELAYS: Final = 64

_MONGO = re.compile(r"mongodb(\+srv)?://[\x21-\x7e]+")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")


def parse_address(text: str) -> Address:
    """The (host, port) of `HOST:PORT`; the host is an IPv4 address or a name.

    Raises:
        ConfigError: it is something else.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{text!r} is no HOST:PORT; write it like 203.0.113.7:49737")
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{host!r} is no IPv4 address or host name (HyperDHT runs on IPv4)")
    return host, int(port)


def parse_bind(text: str) -> Address:
    """The (host, port) to serve HTTP at, of `HOST:PORT` or `[IPV6]:PORT`; port 0 is any.

    Raises:
        ConfigError: it is something else.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{text!r} is no HOST:PORT; write it like 127.0.0.1:8787")
    if _IPV6.fullmatch(host):
        return host[1:-1], int(port)
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{host!r} is no address or host name to serve HTTP at")
    return host, int(port)


def parse_host_name(text: str) -> str:
    """A name that requests may give in their Host header, in lower case, without a port.

    Raises:
        ConfigError: it is none.
    """
    if not _HOST.fullmatch(text) and not _IPV6.fullmatch(text):
        raise ConfigError(f"{text!r} is no host name; write it like logs.example.org, without port")
    return text.lower()


def parse_mongo(uri: str) -> str:
    """The address of a MongoDB server.

    Raises:
        ConfigError: it is none; the text does not repeat it, for it may have a password in it.
    """
    if not isinstance(uri, str) or not _MONGO.fullmatch(uri):
        raise ConfigError("that is no MongoDB address; it begins with mongodb:// or mongodb+srv://")
    return uri


def parse_bootstrap(nodes: Iterable[str | Address]) -> tuple[Address, ...]:
    """Bootstrap nodes given as `HOST:PORT` or as (host, port).

    Raises:
        ConfigError: an item is something else, or there are more than MAX_BOOTSTRAP.
    """
    if isinstance(nodes, str):
        nodes = [nodes]
    parsed = []
    for node in nodes:
        if isinstance(node, tuple | list) and len(node) == 2:
            node = f"{node[0]}:{node[1]}"
        if not isinstance(node, str):
            raise ConfigError(f"{node!r} is no bootstrap node; write it like 203.0.113.7:49737")
        parsed.append(parse_address(node))
    if len(parsed) > MAX_BOOTSTRAP:
        raise ConfigError(f"{len(parsed)} bootstrap nodes are too many, {MAX_BOOTSTRAP} at most")
    return tuple(parsed)


def parse_public_key(key: str | bytes) -> bytes:
    """The 32 bytes of a public key; see `parse_peer`."""
    return parse_peer(key)[0]


def parse_relays(keys: str | bytes | Iterable[str | bytes]) -> tuple[bytes, ...]:
    """The public keys of relays, one or several, each as `parse_peer` takes it.

    Raises:
        ConfigError: an item is no public key, or there are more than MAX_RELAYS.
    """
    given = [keys] if isinstance(keys, str | bytes) else list(keys)
    if len(given) > MAX_RELAYS:
        raise ConfigError(f"{len(given)} relays are too many, {MAX_RELAYS} at most")
    relays = []
    for key in given:
        try:
            relays.append(parse_public_key(key))
        except ConfigError as err:
            raise ConfigError(f"the relay's key cannot be used: {err}") from None
    return tuple(relays)


def parse_peer(key: str | bytes) -> tuple[bytes, tuple[Address, ...]]:
    """A public key, 32 bytes, and the nodes that reach its holder if they are told with it.

    It is given as 32 bytes, 64 hex digits, in z-base-32, or as a HyperDHT address in bytes or hex.

    Raises:
        ConfigError: it is something else.
    """
    try:
        public_key, nodes = decode_public_key(key.strip() if isinstance(key, str) else key)
    except DHTError as err:
        raise ConfigError(str(err)) from None
    return public_key, tuple(nodes)
