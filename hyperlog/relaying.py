"""What `hyperlog relay` does: be a relay for peers that have no direct way to each other."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from hyperlog.arguments import add_bootstrap, checked, parse_ipv4, parse_port
from hyperlog.config import DEFAULT_HOST
from hyperlog.dht import (
    BOOTSTRAP_NODES,
    DHT,
    Diagnosis,
    RelayLimits,
    RelayServer,
    open_dht,
)
from hyperlog.keyfile import load_or_create_keys
from hyperlog.quantities import parse_count, parse_duration, parse_size
from hyperlog.usersignal import tell_at_user_signal

__all__ = ["add_relay_options", "run_relay"]

# Not that of a server: two programs with one key take each other's peers.
DEFAULT_RELAY_KEYS: Final = Path("relay-keys.dat")
READY_PATIENCE: Final = 3.0  # s until the key is printed though it is not announced yet
WATCH_INTERVAL: Final = 1.0  # s between two looks at the announcement

_LIMITS: Final = [
    ("max_pairs", parse_count, "N", "pairs of peers at a time (default: 512)"),
    (
        "max_pairs_per_connection",
        parse_count,
        "N",
        "of these on one connection of a peer (default: 16)",
    ),
    ("max_connections", parse_count, "N", "peers connected at a time (default: 2048)"),
    ("max_bytes_per_second", parse_size, "SIZE", "relayed in all (default: off)"),
    ("max_pair_bytes_per_second", parse_size, "SIZE", "relayed for one pair (default: off)"),
    (
        "max_pair_bytes",
        parse_size,
        "SIZE",
        "end a pair that was relayed so much, in both directions together (default: off)",
    ),
    ("max_pair_time", parse_duration, "TIME", "end a pair after so long (default: off)"),
]

_encode = msgspec.json.Encoder().encode


def add_relay_options(parser: argparse.ArgumentParser) -> None:
    """The options of `hyperlog relay`."""
    parser.add_argument(
        "--keys",
        type=Path,
        default=DEFAULT_RELAY_KEYS,
        metavar="FILE",
        help=f"the relay's key pair, made if missing (default: ./{DEFAULT_RELAY_KEYS})",
    )
    parser.add_argument(
        "--host",
        type=checked(parse_ipv4),
        default=DEFAULT_HOST,
        help="IPv4 address to bind (default: all of them)",
    )
    parser.add_argument(
        "--port", type=checked(parse_port), help="UDP port, this one or none (default: any)"
    )
    add_bootstrap(parser)
    parser.add_argument("--json", action="store_true", help="events on stdout as JSON lines")
    limits = parser.add_argument_group("limits")
    for name, parse, metavar, text in _LIMITS:
        limits.add_argument(
            f"--{name.replace('_', '-')}",
            type=checked(parse),
            default=argparse.SUPPRESS,
            metavar=metavar,
            help=text,
        )


async def run_relay(options: argparse.Namespace) -> None:
    """Be a relay until cancelled, and tell what was relayed then.

    Raises:
        KeyFileError: the key file cannot be read or made, or others can read it.
        OSError: the address or the port cannot be bound.
    """
    limits = {name: getattr(options, name) for name, *_ in _LIMITS if hasattr(options, name)}
    key_pair = load_or_create_keys(options.keys, private=True)
    async with (
        open_dht(
            bootstrap=BOOTSTRAP_NODES if options.bootstrap is None else options.bootstrap,
            host=options.host,
            port=options.port or 0,
            exact_port=options.port is not None,
            key_pair=key_pair,
        ) as dht,
        trio.open_nursery() as nursery,
    ):
        relay = RelayServer(dht, limits=RelayLimits(**limits))
        await nursery.start(relay.run)
        try:
            with trio.move_on_after(READY_PATIENCE):
                await relay.wait_announced()
            await nursery.start(tell_at_user_signal, partial(_tell_statistics, relay))
            key = relay.public_key.hex()
            host, port = Diagnosis(dht).address_for_others()
            if options.json:
                _write_line({"event": "ready", "publicKey": key, "host": host, "port": port})
                await trio.sleep_forever()
            _write(f"relay started on {key}")
            said = _reachability(relay, dht)
            _say(said)
            nodes = (f" --bootstrap {host}:{port}" for host, port in options.bootstrap or ())
            _say(f"peers use it by: hyperlog serve --relay {key}{''.join(nodes)}")
            await _watch_reachability(relay, dht, said)
        finally:
            if options.json:
                _write_line({"event": "stopped", "statistics": _statistics(relay)})
            else:
                _say(_summary(relay))


def _tell_statistics(relay: RelayServer) -> None:
    _write_line({"event": "statistics", "statistics": _statistics(relay)})


async def _watch_reachability(relay: RelayServer, dht: DHT, said: str) -> None:
    """Say whenever it changes how peers find the relay."""
    while True:
        await trio.sleep(WATCH_INTERVAL)
        text = _reachability(relay, dht)
        if text != said:
            _say(text)
            said = text


def _reachability(relay: RelayServer, dht: DHT) -> str:
    here = "{}:{}".format(*Diagnosis(dht).address_for_others())
    announced_to = relay.statistics().announced_to
    if not announced_to:
        return f"at {here}; not announced yet, retrying: peers do not find it until it is"
    nodes = "node" if announced_to == 1 else "nodes"
    return f"at {here}; announced to {announced_to} DHT {nodes}"


def _statistics(relay: RelayServer) -> dict[str, Any]:
    statistics: dict[str, Any] = msgspec.to_builtins(relay.statistics())
    return statistics


def _summary(relay: RelayServer) -> str:
    counts = relay.statistics()
    return (
        f"relayed {counts.bytes_relayed} bytes for {counts.pairs_made} pairs of peers; "
        f"{counts.pairs_refused} pairs were refused, {counts.unpaired} peers waited in vain"
    )


def _write_line(value: dict[str, Any]) -> None:
    _write(_encode(value).decode())


def _write(text: str) -> None:
    # In one write: whoever reads the pipe gets a whole line.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
