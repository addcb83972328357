"""What the options of several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from hyperlog.config import parse_address
from hyperlog.errors import ConfigError

__all__ = ["add_bootstrap", "checked"]


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` as a `type` for argparse, which tells the text of its own error type only."""

    def parse_argument(text: str) -> Any:  # noqa: ANN401 - whatever parse gives
        try:
            return parse(text)
        except ConfigError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return parse_argument


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    """Where a node of the command finds others."""
    parser.add_argument(
        "--bootstrap",
        action="append",
        type=checked(parse_address),
        metavar="HOST:PORT",
        help="node to join the DHT through; repeatable (default: the public HyperDHT)",
    )
