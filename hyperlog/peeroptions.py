"""The options of those commands that look at a peer and the way to it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from hyperlog.arguments import add_bootstrap, add_relay, checked, parse_seconds
from hyperlog.dht import KeyPair
from hyperlog.keyfile import load_keys

__all__ = ["add_peer_options", "own_key_pair"]

DEFAULT_TIMEOUT: Final = 60.0  # s; an attempt ends by itself after 50 where NATs are random


def add_peer_options(parser: argparse.ArgumentParser, *, timeout: str) -> None:
    """Add them to a command; `timeout` says what --timeout is about."""
    add_bootstrap(parser)
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="key pair to connect with, for servers that do not allow everybody (default: a new "
        "one)",
    )
    add_relay(parser, "relay to go through until there is a direct way")
    parser.add_argument(
        "--timeout",
        type=checked(parse_seconds),
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help=f"{timeout} (default: {DEFAULT_TIMEOUT:g})",
    )


def own_key_pair(options: argparse.Namespace) -> KeyPair:
    """Who we are to the peer.

    Raises:
        KeyFileError: the file that was named cannot be used.
    """
    return KeyPair.generate() if options.keys is None else load_keys(options.keys)
