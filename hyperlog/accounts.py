"""`hyperlog user`: add, passwd, remove, list the users of the control panel."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from hyperlog.errors import ConfigError
from hyperlog.records import iso_time
from hyperlog.registry import Registry
from hyperlog.users import MAX_PASSWORD, ROLES, Users, check_password, hash_password

__all__ = ["add_user_commands", "run_user_command"]

MAX_LINE: Final = 4 * MAX_PASSWORD + 2  # bytes read of a password given on standard input


def add_user_commands(parser: argparse.ArgumentParser, parents: Sequence[Any]) -> None:
    """Add the sub-commands of `hyperlog user`; each sets `user_command`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
        told = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, parents=parents, help=text, description=told)
        command.set_defaults(user_command=run)
        return command

    asked = "; the password is asked for, or read from standard input"
    command = add("add", _add, f"add a user{asked}")
    command.add_argument("name", metavar="NAME")
    command.add_argument(
        "--role", choices=ROLES, default="viewer", help="what the user may do (default: viewer)"
    )
    command = add("passwd", _passwd, f"set a user's password, which ends all logins{asked}")
    command.add_argument("name", metavar="NAME")
    command = add("remove", _remove, "remove a user, which ends all logins")
    command.add_argument("name", metavar="NAME")
    command = add("list", _list, "list the users")
    command.add_argument("--json", action="store_true", help="print JSON")


def run_user_command(options: argparse.Namespace, folder: Path) -> int:
    """Run what was asked for on the registry in `folder`; the exit status.

    Raises:
        ConfigError: what was asked for cannot be done.
        KeyFileError: the registry cannot be used.
    """
    registry = Registry(folder, create=options.user_command is _add)
    try:
        options.user_command(Users(registry), options)
    finally:
        registry.close()
    return 0


def _add(users: Users, options: argparse.Namespace) -> None:
    if users.get(options.name) is not None:
        raise ConfigError(f"there is a user {options.name} already")
    users.add(options.name, options.role, _new_password(options.name), time.time())
    print(f"added {options.name} ({options.role})")


def _passwd(users: Users, options: argparse.Namespace) -> None:
    if users.get(options.name) is None:
        raise ConfigError(f"there is no user {options.name}")
    users.set_password(options.name, _new_password(options.name), time.time())
    print(f"set the password of {options.name}; all logins are over")


def _remove(users: Users, options: argparse.Namespace) -> None:
    users.remove(options.name)
    print(f"removed {options.name}")


def _list(users: Users, options: argparse.Namespace) -> None:
    found = [
        {"name": user.name, "role": user.role, "created": iso_time(user.created_at)}
        for user in users.list()
    ]
    if options.json:
        print(json.dumps(found))
        return
    if not found:
        print("no users: add one with `hyperlog user add NAME --role admin`", file=sys.stderr)
    for user in found:
        print(f"{user['name']:<24} {user['role']:<8} since {user['created']}")


def _new_password(name: str) -> str:
    """The hash of what is typed twice, or of the first line of standard input."""
    if sys.stdin.isatty():
        password = getpass.getpass(f"new password for {name}: ")
        check_password(password, name)
        if getpass.getpass("once more: ") != password:
            raise ConfigError("the two passwords differ: nothing was changed")
    else:
        password = sys.stdin.readline(MAX_LINE).rstrip("\r\n")
        check_password(password, name)
    return hash_password(password)
