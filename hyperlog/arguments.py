"""How the command line parses what the rest of hyperlog has parsers for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from hyperlog.errors import ConfigError

__all__ = ["checked"]


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` as a `type` for argparse, which tells the text of its own error type only."""

    def parse_argument(text: str) -> Any:  # noqa: ANN401 - whatever parse gives
        try:
            return parse(text)
        except ConfigError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return parse_argument
