"""The options of `hyperlog serve` beside its place in the network; docs/operations.md has them all.

Limits are left out of the result when they are not given, so that their defaults stand in one
place: with FilePolicy and ServerLimits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from hyperlog.access import AccessPolicy
from hyperlog.config import DEFAULT_MAX_LINE, ServerOptions
from hyperlog.errors import ConfigError
from hyperlog.limits import ServerLimits
from hyperlog.quantities import parse_count, parse_duration, parse_learning, parse_size
from hyperlog.sinks.folder import FilePolicy

__all__ = ["add_server_options", "server_options"]

Option: TypeAlias = tuple[str, Callable[[str], Any], str, str]
"""field, how it is parsed, metavar, help"""

FILE_OPTIONS: Final[list[Option]] = [
    ("rotate_size", parse_size, "SIZE", "rename a file that would grow beyond (default: 100M)"),
    ("rotate_age", parse_duration, "TIME", "rename a file that is older (default: off)"),
    ("keep_bytes", parse_size, "SIZE", "remove old renamed files above so much (default: off)"),
    ("keep_age", parse_duration, "TIME", "remove files not written for so long (default: off)"),
    ("quota", parse_size, "SIZE", "read no more when all files have so much (default: 64G)"),
    ("key_quota", parse_size, "SIZE", "the same for each client's files (default: 4G)"),
    ("max_keys", parse_count, "N", "take no new client above so many (default: 10000)"),
]
LIMIT_OPTIONS: Final[list[Option]] = [
    ("connections", parse_count, "N", "at a time (default: 1024)"),
    ("connections_per_key", parse_count, "N", "at a time from one client key (default: 32)"),
    ("handshakes", parse_count, "N", "per second (default: 500)"),
    ("handshakes_per_source", parse_count, "N", "per second from one address (default: 50)"),
    ("records_per_key", parse_count, "N", "per second, read more slowly above (default: 100000)"),
    ("bytes_per_key", parse_size, "SIZE", "per second, read more slowly above (default: 64M)"),
    ("max_record", parse_size, "SIZE", "of one record (default: 8M)"),
]
NEVER_OFF: Final = {"connections", "connections_per_key", "max_record"}


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add them in two groups."""
    _add_file_options(parser.add_argument_group("log files"))
    _add_access_options(parser.add_argument_group("who may come, and how much"))


def server_options(options: argparse.Namespace) -> ServerOptions:
    """What `Server` is to be given of parsed options.

    Raises:
        ConfigError: two of them exclude each other.
    """
    return ServerOptions(
        durability=options.durability,
        max_line=options.max_line,
        files=FilePolicy(**_given(options, FILE_OPTIONS)),
        limits=ServerLimits(**_given(options, LIMIT_OPTIONS)),
        access=AccessPolicy(options.allow, *options.learn),
    )


def _given(options: argparse.Namespace, table: Sequence[Option]) -> dict[str, Any]:
    return {name: getattr(options, name) for name, *_ in table if hasattr(options, name)}


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` for argparse, which tells the text of its own error type only."""

    def checked(text: str) -> Any:  # noqa: ANN401 - whatever parse gives
        try:
            return parse(text)
        except ConfigError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return checked


def _add_limit(group: argparse._ArgumentGroup, prefix: str, option: Option) -> None:
    name, parse, metavar, text = option

    def limit(value: str) -> Any:  # noqa: ANN401 - whatever parse gives
        return None if value == "off" and name not in NEVER_OFF else parse(value)

    group.add_argument(
        f"--{prefix}{name.replace('_', '-')}",
        dest=name,
        type=_checked(limit),
        default=argparse.SUPPRESS,
        metavar=metavar,
        help=text,
    )


def _add_file_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--durability",
        choices=["write", "fsync"],
        default="write",
        help="acknowledge records that survive the server's process or its machine "
        "(default: write)",
    )
    group.add_argument(
        "--max-line",
        type=_checked(parse_size),
        default=DEFAULT_MAX_LINE,
        metavar="SIZE",
        help="cut longer lines (default: 64K)",
    )
    for option in FILE_OPTIONS:
        _add_limit(group, "", option)


def _add_access_options(group: argparse._ArgumentGroup) -> None:
    who = group.add_mutually_exclusive_group()
    who.add_argument(
        "--allow", type=Path, metavar="FILE", help="only the public keys in it, one a line"
    )
    who.add_argument("--allow-any", action="store_true", help="any key may come (default)")
    group.add_argument(
        "--learn",
        type=_checked(parse_learning),
        default=(None, None),
        metavar="TIME|N",
        help="add the keys that come within a time (10m), or the first N, to --allow; then lock",
    )
    for option in LIMIT_OPTIONS:
        prefix = "" if option[0].startswith("max_") else "max-"
        _add_limit(group, prefix, option)
