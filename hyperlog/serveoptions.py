"""The options of `hyperlog serve` beside its place in the network; docs/operations.md has them all.

Limits are left out of the result when they are not given, so that their defaults stand in one
place: with FilePolicy and ServerLimits.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from hyperlog.access import AccessPolicy
from hyperlog.arguments import checked
from hyperlog.config import (
    DEFAULT_HTTP,
    DEFAULT_MAX_LINE,
    ServerOptions,
    parse_bind,
    parse_host_name,
    parse_mongo,
)
from hyperlog.errors import ConfigError, StoreError
from hyperlog.limits import ServerLimits
from hyperlog.quantities import parse_count, parse_duration, parse_learning, parse_size
from hyperlog.sinks.folder import FilePolicy
from hyperlog.store.policy import BucketPolicy, StorePolicy

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
STORE_OPTIONS: Final[list[Option]] = [
    ("keep_records", parse_duration, "TIME", "remove older records (default: off)"),
    (
        "keep_record_bytes",
        parse_size,
        "SIZE",
        "remove the oldest records of an application above so much (default: off)",
    ),
]
MONGO_VARIABLE: Final = "HYPERLOG_MONGO"
NEVER_OFF: Final = {"connections", "connections_per_key", "max_record"}


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add them in groups."""
    _add_file_options(parser.add_argument_group("log files"))
    _add_store_options(parser.add_argument_group("search"))
    _add_http_options(parser.add_argument_group("HTTP"))
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
        require_token=options.require_token,
        data=options.data,
        http=getattr(options, "http", DEFAULT_HTTP if _has_web() else None),
        http_elsewhere=not hasattr(options, "http"),
        http_hosts=options.http_host,
        store=_store(options),
        mongo=_mongo(options),
        mongo_ttl=options.mongo_ttl,
        retention=StorePolicy(
            keep_age=getattr(options, "keep_records", None),
            keep_bytes=getattr(options, "keep_record_bytes", None),
            buckets=dict(options.keep_bucket),
        ),
    )


def _store(options: argparse.Namespace) -> Literal["sqlite", "mongo"] | None:
    if options.store is None:
        return "sqlite" if _has_search() else None
    return None if options.store == "off" else options.store


def _mongo(options: argparse.Namespace) -> str | None:
    uri = options.mongo or os.environ.get(MONGO_VARIABLE)
    return parse_mongo(uri) if uri else None


def _given(options: argparse.Namespace, table: Sequence[Option]) -> dict[str, Any]:
    return {name: getattr(options, name) for name, *_ in table if hasattr(options, name)}


def _add_limit(group: argparse._ArgumentGroup, prefix: str, option: Option) -> None:
    name, parse, metavar, text = option
    group.add_argument(
        f"--{prefix}{name.replace('_', '-')}",
        dest=name,
        type=checked(parse if name in NEVER_OFF else _unless_off(parse)),
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
        type=checked(parse_size),
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
        type=checked(parse_learning),
        default=(None, None),
        metavar="TIME|N",
        help="add the keys that come within a time (10m), or the first N, to --allow; then lock",
    )
    for option in LIMIT_OPTIONS:
        prefix = "" if option[0].startswith("max_") else "max-"
        _add_limit(group, prefix, option)
    group.add_argument(
        "--require-token",
        action="store_true",
        help="refuse whoever has no application token, JavaScript clients among them",
    )


def _add_store_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the embedded store and the issued tokens "
        "(default: .hyperlog in the folder of the log files)",
    )
    group.add_argument(
        "--store",
        choices=["sqlite", "mongo", "off"],
        help="what answers queries: the embedded store, MongoDB, or nothing (default: sqlite, and "
        "off where Python's SQLite cannot search texts)",
    )
    group.add_argument(
        "--mongo",
        type=checked(parse_mongo),
        metavar="URI",
        help=f"mirror all records into this MongoDB; better told by the variable {MONGO_VARIABLE}, "
        "since other users see the arguments of a process",
    )
    group.add_argument(
        "--mongo-ttl",
        type=checked(_unless_off(parse_duration)),
        metavar="TIME",
        help="have MongoDB remove older records (default: off)",
    )
    for option in STORE_OPTIONS:
        _add_limit(group, "", option)
    group.add_argument(
        "--keep-bucket",
        type=checked(parse_bucket_policy),
        action="append",
        default=[],
        metavar="APP=TIME[,SIZE]",
        help="keep the records of this application for so long and up to so much instead; "
        "may be repeated",
    )


def _add_http_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--http",
        type=checked(_unless_off(_bind)),
        default=argparse.SUPPRESS,
        metavar="HOST:PORT",
        help=f"serve HTTP and WebSockets here, or off (default: {DEFAULT_HTTP}, or, if that is "
        "taken, any port, and off where the packages of the extra `server` are missing)",
    )
    group.add_argument(
        "--http-host",
        type=checked(parse_host_name),
        action="append",
        default=[],
        metavar="NAME",
        help="a name that requests may give in their Host header, beside the address above and "
        "localhost; may be repeated",
    )


def parse_bucket_policy(text: str) -> tuple[str, BucketPolicy]:
    """An application and what is kept of it, of `cerco=30d`, `cerco=30d,2G` or `cerco=off,2G`.

    Raises:
        ConfigError: it is something else.
    """
    name, equals, limits = text.rpartition("=")
    age, _, size = limits.partition(",")
    if not equals or not name:
        raise ConfigError(f"{text!r} names no application: write it like cerco=30d,2G")
    return name, BucketPolicy(
        _unless_off(parse_duration)(age), _unless_off(parse_size)(size) if size else None
    )


def _has_web() -> bool:
    return all(find_spec(name) for name in ("hypercorn", "starlette", "jwt"))


def _has_search() -> bool:
    try:
        from hyperlog.store.sqlite.schema import check_library

        check_library()
    except (ImportError, StoreError):
        return False
    return True


def _bind(text: str) -> str:
    parse_bind(text)
    return text


def _unless_off(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:  # noqa: ANN401 - whatever parse gives
        return None if text == "off" else parse(text)

    return parsed
