"""What `hyperlog node` and `hyperlog testnet` do: be a node of a private network, or all of them.

Both print one line of JSON when they are ready, `{"bootstrap": [{"host": …, "port": …}]}`, and
after that only what they are asked for: a line with statistics at every SIGUSR1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import trio

from hyperlog.arguments import add_bootstrap, checked, parse_ipv4, parse_port
from hyperlog.config import DEFAULT_HOST, Address
from hyperlog.dht import DHT, Diagnosis, addresses_of, open_dht, testnet
from hyperlog.errors import ConfigError
from hyperlog.usersignal import tell_at_user_signal

__all__ = ["add_node_options", "add_testnet_options", "run_node", "run_testnet"]

READY_PATIENCE: Final = 2.0  # s for the first search for others, which may start after this one
WATCH_INTERVAL: Final = 1.0  # s between looks at how the node stands
MAX_SIZE: Final = 1000  # nodes in one process

_encode = msgspec.json.Encoder().encode


def add_node_options(parser: argparse.ArgumentParser) -> None:
    """The options of `hyperlog node`."""
    parser.add_argument(
        "--host",
        type=checked(parse_ipv4),
        default=DEFAULT_HOST,
        help="IPv4 address to bind (default: all of them)",
    )
    parser.add_argument(
        "--port",
        type=checked(parse_port),
        default=0,
        help="UDP port, this one or none (default: any)",
    )
    add_bootstrap(
        parser,
        "node of the network to join, this one itself does no harm; repeatable (default: be a "
        "network's first node)",
    )


def add_testnet_options(parser: argparse.ArgumentParser) -> None:
    """The options of `hyperlog testnet`."""
    parser.add_argument(
        "--size", type=checked(_size), default=4, help="number of nodes (default: 4)"
    )
    parser.add_argument(
        "--host",
        type=checked(parse_ipv4),
        default="127.0.0.1",
        help="IPv4 address to bind (default: loopback)",
    )
    parser.add_argument(
        "--port", type=checked(parse_port), default=0, help="port of the first node (default: any)"
    )


def _size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_SIZE:
        raise ConfigError(f"{text!r} is no number of nodes; 1 to {MAX_SIZE} are possible")
    return int(text)


async def run_testnet(size: int, host: str, port: int) -> None:
    """Be a network until cancelled.

    Raises:
        OSError: the address or the port cannot be bound.
    """
    async with trio.open_nursery() as nursery, testnet(size, host=host, port=port) as network:
        await nursery.start(tell_at_user_signal, partial(_tell_statistics, network.nodes))
        _write_ready(network.bootstrap)
        await trio.sleep_forever()


async def run_node(host: str, port: int, bootstrap: Sequence[Address]) -> None:
    """Be a node until cancelled; says on stderr how it stands with the network.

    Raises:
        OSError: the address or the port cannot be bound.
    """
    # One list for all nodes of a network is easiest: what a node hears from itself proves nothing.
    own = addresses_of((host, port))
    others = [node for node in bootstrap if node not in own]
    async with (
        trio.open_nursery() as nursery,
        open_dht(bootstrap=others, host=host, port=port, exact_port=True, ephemeral=False) as dht,
    ):
        await nursery.start(tell_at_user_signal, partial(_tell_statistics, [dht]))
        with trio.move_on_after(READY_PATIENCE):
            await dht.bootstrapped()
        _write_ready([Diagnosis(dht).address_for_others()])
        await _say_standing(dht, alone=not others)


async def _say_standing(dht: DHT, *, alone: bool) -> None:
    """Say on stderr what the node is to the network, and whenever that changes."""
    said = ""
    while True:
        text = _standing(dht, alone=alone)
        if text != said:
            print(text, file=sys.stderr, flush=True)
            said = text
        await trio.sleep(WATCH_INTERVAL)


def _standing(dht: DHT, *, alone: bool) -> str:
    address = "{}:{}".format(*Diagnosis(dht).address_for_others())
    rpc = dht.statistics().rpc
    if not rpc.ephemeral:
        text = f"a persistent node at {address}"
        return f"{text}, the first of its network" if alone else text
    if not rpc.nodes:
        return f"no bootstrap node answers yet, trying on; this node answers at {address}"
    if not rpc.bootstrapped:
        return f"joining the network; this node answers at {address}"
    return (
        f"other nodes cannot reach this one at UDP port {dht.address[1]}: it is behind a NAT or a "
        "firewall, and stays a guest of the network, which nobody keeps in a table. Forward the "
        "port to this machine, or open it in the firewall; it is tried again every 5 minutes"
    )


def _write_ready(bootstrap: Iterable[Address]) -> None:
    _write_line({"bootstrap": [{"host": host, "port": port} for host, port in bootstrap]})


def _tell_statistics(nodes: Sequence[DHT]) -> None:
    _write_line({"statistics": [_statistics(node) for node in nodes]})


def _statistics(node: DHT) -> dict[str, Any]:
    host, port = Diagnosis(node).address_for_others()
    return {"host": host, "port": port, **msgspec.to_builtins(node.statistics())}


def _write_line(value: dict[str, Any]) -> None:
    # In one write: whoever reads the pipe gets a whole line.
    sys.stdout.buffer.write(_encode(value) + b"\n")
    sys.stdout.buffer.flush()
