"""The `hyperlog` command: serve, send, query, doctor and the others.

stdout carries data, stderr talk. Exit status: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import trio

from hyperlog.accounts import add_user_commands, run_user_command
from hyperlog.arguments import add_bootstrap, add_relay, checked, parse_port
from hyperlog.clientoptions import add_client_options, client_options, parse_server
from hyperlog.config import DEFAULT_FOLDER, DEFAULT_HOST, DEFAULT_KEYS
from hyperlog.dht import DHTError
from hyperlog.doctoring import add_doctor_options, see_doctor
from hyperlog.errors import ConfigError, HyperlogError
from hyperlog.flushing import flush_spools
from hyperlog.keyfile import create_keys
from hyperlog.noding import add_node_options, add_testnet_options, run_node, run_testnet
from hyperlog.pinging import Pings, add_ping_options, ping_peer
from hyperlog.querying import add_query_options, run_query
from hyperlog.records import LOG_LEVELS
from hyperlog.reindexing import reindex
from hyperlog.relaying import add_relay_options, run_relay
from hyperlog.sending import send_records
from hyperlog.serveoptions import add_server_options, server_options
from hyperlog.server import Server
from hyperlog.serving import serve
from hyperlog.tokening import add_token_commands, run_token_command

__all__ = ["main"]

DATA_NAME = ".hyperlog"
EXIT_FAILURE = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's); the exit status."""
    _replace_closed_streams()
    options, unknown = build_parser().parse_known_args(arguments)
    logging.basicConfig(
        level=[logging.WARNING, logging.INFO, logging.DEBUG][min(options.verbose, 2)],
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    run: Callable[[argparse.Namespace], int] = options.run
    if options.command == "send" and not any(one.startswith("-") for one in unknown):
        options.messages += unknown  # argparse leaves those that stand behind an option
        unknown = []
    try:
        if unknown:
            raise ConfigError(f"unrecognized arguments: {' '.join(unknown)}")
        return run(options)
    except ConfigError as err:
        print(f"usage: hyperlog {options.command} ...; --help tells more", file=sys.stderr)
        return _say_error(err, EXIT_USAGE)
    except (HyperlogError, DHTError, OSError) as err:
        return _say_error(err, EXIT_FAILURE)
    except BaseExceptionGroup as group:
        # A nursery wraps what ended it; one known reason is told as such.
        if group.subgroup(KeyboardInterrupt) is not None:
            return 128 + signal.SIGINT
        known, others = group.split((HyperlogError, DHTError, OSError))
        if others is not None or known is None:
            raise
        return _say_error(_first(known), EXIT_FAILURE)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _replace_closed_streams() -> None:
    """Lead nowhere what was closed when the process was started (`>&-`).

    Otherwise the next socket or log file would get its number, and with it whatever is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _say_error(error: BaseException, status: int) -> int:
    text = _system_error(error) if isinstance(error, OSError) else str(error)
    print(f"hyperlog: error: {text}", file=sys.stderr)
    return status


def _system_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is not None:
        advice = "; check its owner and permissions" if error.errno == errno.EACCES else ""
        return f"{error.filename}: {reason}{advice}"
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return f"the UDP port cannot be used ({error}): choose another --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine does not have that address ({error}): choose another --host"
    if error.errno == errno.EPIPE:
        return "nobody reads the output any more"
    return str(error)


# -- the parser


def build_parser() -> argparse.ArgumentParser:
    """All sub-commands and their options."""
    parser = argparse.ArgumentParser(
        prog="hyperlog", description="Ships traces and logs peer to peer over HyperDHT."
    )
    parser.add_argument("--version", action="version", version=f"hyperlog {_version()}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "-v", "--verbose", action="count", default=0, help="log more to stderr; twice: everything"
    )
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command"
    )
    for add in (
        _add_serve,
        _add_send,
        _add_flush_spool,
        _add_query,
        _add_reindex,
        _add_token,
        _add_user,
        _add_doctor,
        _add_ping,
        _add_node,
        _add_relay,
        _add_testnet,
        _add_keygen,
    ):
        add(commands, shared)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("hyperlog-p2p")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _add_serve(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "serve",
        parents=[shared],
        usage="%(prog)s [OPTION ...]",  # all of them would hide what was wrong with one
        help="receive traces into log files",
        description="Receives traces and logs into log files, one for each client, until SIGINT or "
        "SIGTERM. At every SIGUSR1 it prints a line of JSON with its statistics.",
    )
    parser.add_argument(
        "--folder", type=Path, default=DEFAULT_FOLDER, help="log files go here (default: ./logs)"
    )
    parser.add_argument(
        "--keys",
        type=Path,
        default=DEFAULT_KEYS,
        metavar="FILE",
        help="the server's key pair, made if missing (default: ./keys.dat)",
    )
    add_bootstrap(parser)
    parser.add_argument(
        "--host", default=DEFAULT_HOST, help="IPv4 address to bind (default: all of them)"
    )
    parser.add_argument(
        "--port", type=checked(parse_port), help="UDP port, this one or none (default: any)"
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="be a private network of its own: clients name this server as their bootstrap node",
    )
    add_relay(parser, "relay that clients without a direct way come through")
    parser.add_argument("--json", action="store_true", help="events on stdout as JSON lines")
    add_server_options(parser)
    parser.set_defaults(run=_serve)


def _add_send(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "send",
        parents=[shared],
        help="ship messages to a server and wait until they are delivered",
        description="Ships messages to a server and waits until they are delivered. What is not is "
        "kept on disk, and sent by the next run or by `hyperlog flush-spool`.",
    )
    parser.add_argument(
        "server",
        type=checked(parse_server),
        metavar="SERVER",
        help="the server's key, 64 hex digits, or its address, https://HOST:PORT",
    )
    parser.add_argument(
        "messages", nargs="*", metavar="MESSAGE", help="default: the lines of standard input"
    )
    parser.add_argument(
        "--level",
        type=str.upper,
        choices=LOG_LEVELS,
        default="INFO",
        help="of all messages (default: INFO)",
    )
    parser.add_argument(
        "--application", metavar="NAME", help="what sends them (default: as the token says)"
    )
    parser.add_argument(
        "--instance", metavar="NAME", help="which of its instances (default: from the key pair)"
    )
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="key pair to send with, made if missing"
    )
    add_client_options(parser)
    parser.set_defaults(run=_send)


def _add_flush_spool(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "flush-spool",
        parents=[shared],
        help="deliver what applications that have ended left on disk",
        description="Delivers the records that this user's applications kept on disk and could not "
        "deliver before they ended. Applications that are running send theirs themselves.",
    )
    parser.add_argument(
        "--server",
        type=checked(parse_server),
        metavar="SERVER",
        help="only what is for this server, its key or address (default: all of them)",
    )
    add_client_options(parser)
    parser.set_defaults(run=_flush_spool)


def _add_query(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "query", parents=[shared, _data_options()], help="search the records of a server"
    )
    add_query_options(parser)
    parser.set_defaults(run=_query)


def _add_reindex(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "reindex",
        parents=[shared, _data_options()],
        help="make the embedded store again from the log files",
        description="Makes the embedded store again from all log files, beside the one that is "
        "there, and then puts it in its place. The server must not be running.",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        default=DEFAULT_KEYS,
        metavar="FILE",
        help="the server's key pair (default: ./keys.dat)",
    )
    parser.add_argument("--json", action="store_true", help="progress on stdout as JSON lines")
    parser.set_defaults(run=_reindex)


def _add_token(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "token",
        help="issue, list and revoke application tokens",
        description="Application tokens let programs bring records over HTTP and WebSocket, prove "
        "which application a client is of, or read records. A running server takes notice of "
        "changes within a second.",
    )
    add_token_commands(parser, [shared, _data_options()])
    parser.set_defaults(run=_token)


def _add_user(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser("user", help="add and remove users of the control panel")
    add_user_commands(parser, [shared, _data_options()])
    parser.set_defaults(run=_user)


def _data_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--folder", type=Path, default=DEFAULT_FOLDER, help="the server's logs (default: ./logs)"
    )
    options.add_argument(
        "--data", type=Path, help="the server's data (default: .hyperlog in the folder of the logs)"
    )
    return options


def _add_doctor(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "doctor",
        parents=[shared],
        help="find out why a server cannot be reached",
        description="Goes the way to a server step by step, and tells which of them fails and what "
        "can be done about it. The exit status is 0 if the server can be reached, or without KEY "
        "if the network can be used.",
    )
    add_doctor_options(parser)
    parser.set_defaults(run=_doctor)


def _add_ping(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "ping",
        parents=[shared],
        help="measure the connection to a server",
        description="Opens a connection and measures round trips on it, which disturbs nobody. The "
        "exit status is 0 if the connection came about and lasted.",
    )
    add_ping_options(parser)
    parser.set_defaults(run=_ping)


def _add_node(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "node",
        parents=[shared],
        help="be a node of a private DHT",
        description="Is one node of a private DHT until SIGINT or SIGTERM, and prints the address "
        "that others name to join through it. At every SIGUSR1 it prints statistics.",
    )
    add_node_options(parser)
    parser.set_defaults(run=_node)


def _add_relay(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "relay",
        parents=[shared],
        usage="%(prog)s [OPTION ...]",
        help="relay for peers that have no direct way to each other",
        description="Relays connections of peers that name this relay's key. What they say stays "
        "encrypted between the two of them.",
    )
    add_relay_options(parser)
    parser.set_defaults(run=_relay)


def _add_testnet(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "testnet",
        parents=[shared],
        help="run a private DHT",
        description="Runs all nodes of a private DHT, for trying and for tests, until SIGINT or "
        "SIGTERM. At every SIGUSR1 it prints statistics of each.",
    )
    add_testnet_options(parser)
    parser.set_defaults(run=_testnet)


def _add_keygen(commands: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - private type
    parser = commands.add_parser(
        "keygen",
        parents=[shared],
        help="make a key pair and print its public key",
        description="Makes a key pair in a file that only its owner can read, and prints its "
        "public key. A file that is there is never written over.",
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=DEFAULT_KEYS,
        metavar="FILE",
        help="new file (default: ./keys.dat)",
    )
    parser.set_defaults(run=_keygen)


# -- the commands


@asynccontextmanager
async def _until_signal() -> AsyncIterator[None]:
    """Cancel the body at SIGINT or SIGTERM, and swallow that cancellation."""
    signals = [signal.SIGINT, signal.SIGTERM]
    async with trio.open_nursery() as nursery:

        async def watch(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.open_signal_receiver(*signals) as received:
                task_status.started()
                async for _ in received:
                    nursery.cancel_scope.cancel()
                    return

        await nursery.start(watch)
        yield
        nursery.cancel_scope.cancel()


def _serve(options: argparse.Namespace) -> int:
    given = server_options(options)
    given["relay_through"] = options.relay
    server = Server(
        options.folder,
        keys=options.keys,
        bootstrap=options.bootstrap,
        host=options.host,
        port=options.port,
        local=options.local,
        **given,
    )

    async def run() -> None:
        async with _until_signal():
            await serve(server, as_json=options.json)

    trio.run(run)
    return 0


def _send(options: argparse.Namespace) -> int:
    delivered = send_records(
        options.server,
        options.messages or None,
        client_options(options),
        level=options.level,
        application=options.application,
        instance=options.instance,
        keys=options.keys,
        timeout=options.timeout,
        as_json=options.json,
    )
    return 0 if delivered else EXIT_FAILURE


def _flush_spool(options: argparse.Namespace) -> int:
    complete = flush_spools(
        options.server,
        client_options(options),
        timeout=options.timeout,
        as_json=options.json,
    )
    return 0 if complete else EXIT_FAILURE


def _query(options: argparse.Namespace) -> int:
    return run_query(options, options.folder, options.data or options.folder / DATA_NAME)


def _reindex(options: argparse.Namespace) -> int:
    data = options.data or options.folder / DATA_NAME
    reindex(options.folder, data, options.keys, as_json=options.json)
    return 0


def _token(options: argparse.Namespace) -> int:
    return run_token_command(options, options.data or options.folder / DATA_NAME)


def _user(options: argparse.Namespace) -> int:
    return run_user_command(options, options.data or options.folder / DATA_NAME)


def _doctor(options: argparse.Namespace) -> int:
    passable = False

    async def run() -> None:
        nonlocal passable
        async with _until_signal():
            passable = await see_doctor(options)

    trio.run(run)
    return 0 if passable else EXIT_FAILURE


def _ping(options: argparse.Namespace) -> int:
    pings = Pings()

    async def run() -> None:
        async with _until_signal():
            await ping_peer(options, pings)

    trio.run(run)
    return 0 if pings.reached else EXIT_FAILURE


def _node(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with _until_signal():
            await run_node(options.host, options.port, options.bootstrap or ())

    trio.run(run)
    return 0


def _relay(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with _until_signal():
            await run_relay(options)

    trio.run(run)
    return 0


def _testnet(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with _until_signal():
            await run_testnet(options.size, options.host, options.port)

    trio.run(run)
    return 0


def _keygen(options: argparse.Namespace) -> int:
    print(create_keys(options.file).public_key.hex())
    return 0


def _exit() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _exit()
