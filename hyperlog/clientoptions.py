"""The options of those commands that are clients: which server, with what, as whom."""

from __future__ import annotations

import argparse
from pathlib import Path

from hyperlog.arguments import add_bootstrap, add_relay, checked, parse_seconds
from hyperlog.config import ClientOptions, parse_peer
from hyperlog.dht import encode_address
from hyperlog.errors import ConfigError
from hyperlog.webaddress import is_web_address, parse_web_address

__all__ = ["add_client_options", "client_options", "parse_server"]

MAX_TOKEN_FILE = 64 * 1024  # bytes


def parse_server(text: str) -> bytes | str:
    """The public key of a server, or its address over HTTP.

    A HyperDHT address that names nodes comes back whole, as bytes.

    Raises:
        ConfigError: it is neither.
    """
    if is_web_address(text):
        # Whether it may be plain is decided with the other options.
        return str(parse_web_address(text, allow_plain=True))
    try:
        key, nodes = parse_peer(text)
    except ConfigError as err:
        raise ConfigError(f"{err}; or its address, https://HOST:PORT") from None
    return encode_address(key, nodes) if nodes else key


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a command."""
    add_bootstrap(parser)
    add_relay(parser, "relay to go through where there is no direct way to the server")
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument(
        "--token-file", type=Path, metavar="FILE", help="file with the application token"
    )
    tokens.add_argument(
        "--token",
        help="the application token; other users see it here, so better the file or the variable "
        "HYPERLOG_TOKEN",
    )
    parser.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="certificates to know an https server by (default: those of the system)",
    )
    parser.add_argument(
        "--allow-plain",
        action="store_true",
        help="allow http:// to another machine, readable for everybody on the way",
    )
    parser.add_argument(
        "--timeout",
        type=checked(parse_seconds),
        default=30.0,
        metavar="SECONDS",
        help="give up with a server when nothing is delivered for so long (default: 30)",
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def client_options(options: argparse.Namespace) -> ClientOptions:
    """What was given, for a Client.

    Raises:
        ConfigError: the token's file cannot be read.
    """
    given: ClientOptions = {"allow_plain": options.allow_plain}
    if options.bootstrap is not None:
        given["bootstrap"] = options.bootstrap
    if options.relay is not None:
        given["relay_through"] = options.relay
    if options.ca_file is not None:
        given["ca_file"] = options.ca_file
    if options.token is not None:
        given["token"] = options.token
    elif options.token_file is not None:
        given["token"] = _read_token(options.token_file)
    return given


def _read_token(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_TOKEN_FILE).decode("ascii").strip()
    except OSError as err:
        raise ConfigError(f"the token's file cannot be read: {err}") from err
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise ConfigError(f"{path} is no file with a token and nothing else")
    return text
