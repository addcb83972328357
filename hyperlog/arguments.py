"""What the options of several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from hyperlog.config import parse_address, parse_public_key
from hyperlog.errors import ConfigError

__all__ = ["add_bootstrap", "add_relay", "checked", "parse_ipv4", "parse_port", "parse_seconds"]


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` as a `type` for argparse, which tells the text of its own error type only."""

    def parse_argument(text: str) -> Any:  # noqa: ANN401 - whatever parse gives
        try:
            return parse(text)
        except ConfigError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return parse_argument


def parse_port(text: str) -> int:
    """A UDP port, 0 for any.

    Raises:
        ConfigError: it is none.
    """
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) < 65536:
        raise ConfigError(f"{text!r} is no UDP port; ports go from 1 to 65535, 0 means any")
    return int(text)


def parse_ipv4(text: str) -> str:
    """An IPv4 address to bind.

    Raises:
        ConfigError: it is none.
    """
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise ConfigError(f"{text!r} is no IPv4 address to bind") from None


def parse_seconds(text: str) -> float:
    """A duration above 0.

    Raises:
        ConfigError: it is none.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{text!r} is no number of seconds above 0")
    return seconds


def add_bootstrap(
    parser: argparse.ArgumentParser,
    help: str = "node to join the DHT through; repeatable (default: the public HyperDHT)",
) -> None:
    """Where a node of the command finds others."""
    parser.add_argument(
        "--bootstrap",
        action="append",
        type=checked(parse_address),
        metavar="HOST:PORT",
        help=help,
    )


def add_relay(parser: argparse.ArgumentParser, help: str) -> None:
    """Relays to go through; `help` says when."""
    parser.add_argument(
        "--relay",
        action="append",
        type=checked(parse_public_key),
        metavar="KEY",
        help=f"{help}; repeatable, each connection takes one of them",
    )
