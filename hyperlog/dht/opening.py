"""Service: starts and ends a HyperDHT node."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import BOOTSTRAP_NODES
from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.interfaces import local_addresses
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.node import RPCNode
from hyperlog.dht.nodecache import NodeCache
from hyperlog.dht.sockets import SERVER, Sockets
from hyperlog.dht.udp import SocketFactory, UDPSocket

__all__ = ["open_dht", "raise_only_leaf"]


@asynccontextmanager
async def open_dht(
    *,
    bootstrap: Sequence[Address] = BOOTSTRAP_NODES,
    host: str = "0.0.0.0",
    port: int = 0,
    exact_port: bool = False,
    key_pair: KeyPair | None = None,
    ephemeral: bool | None = None,
    firewalled: bool | None = None,
    nodes: Sequence[Address] = (),
    cache: Path | None = None,
    socket_factory: SocketFactory = UDPSocket,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> AsyncIterator[DHT]:
    """Run a HyperDHT node for as long as the context lasts.

    Args:
        bootstrap: nodes to join through, as (host name or address, port). Empty: an own network.
        host: IPv4 address to bind; "0.0.0.0" for all.
        port: UDP port of the server socket; 0 for any. Taken ports are passed over up to four times
            unless `exact_port`.
        key_pair: identity for `connect` and `listen`; a fresh one by default.
        ephemeral: False serves the network from the start (only on a reachable address), True never
            does, None decides after a while by what other nodes see.
        firewalled: False claims that the server port is reachable from outside; None finds out.
        nodes: nodes known from before.
        cache: file where known nodes are kept for the next start, which then needs no bootstrap
            node. One that is missing is made, a damaged one replaced.
        socket_factory: what binds UDP sockets; SimNetwork gives another.
        random_bytes: source of randomness, for tests that must repeat.

    Raises:
        OSError: the port (with `exact_port`) or the address cannot be bound.
        LocalProtocolError: one of `nodes` is no IPv4 address and port.
    """
    node_cache = NodeCache(cache) if cache is not None else None
    remembered = await trio.to_thread.run_sync(node_cache.load) if node_cache is not None else []
    # Whatever is open from here on is closed by `run`: nothing may be waited for before it.
    opener = Sockets.open_exact if exact_port else Sockets.open
    sockets = opener(host, port, socket_factory)
    try:
        node = RPCNode(
            sockets,
            bootstrap=list(bootstrap),
            nodes=list(nodes),
            ephemeral=ephemeral,
            firewalled=firewalled,
            outside_address=_first_node_address(sockets) if not bootstrap and not nodes else None,
            random_bytes=random_bytes,
        )
        dht = DHT(
            sockets,
            node,
            key_pair=key_pair or KeyPair.generate(),
            random_bytes=random_bytes,
            rng=random.Random(random_bytes(16)),
        )
    except BaseException:
        sockets.close()
        raise
    node.remember(remembered)
    # The node outlives a cancellation of the caller by as long as it takes to withdraw.
    scope = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await dht.run(task_status=task_status)

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            if node_cache is not None:
                nursery.start_soon(node_cache.run, node)
            # Not before: a task that is cancelled while it starts stays where start() waits for it.
            scope.shield = True
            try:
                yield dht
            finally:
                await dht.shut_down()
                scope.cancel()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery is our own affair: what the caller's block raised comes out as it was.
        raise_only_leaf(group)


def raise_only_leaf(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the one exception that a group holds at whatever depth, or else the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            raise group
        error = error.exceptions[0]
    cause, suppressed = error.__cause__, error.__suppress_context__
    try:
        raise error
    finally:
        error.__cause__, error.__suppress_context__ = cause, suppressed
        error.__context__ = None
        del group, error


def _first_node_address(sockets: Sockets) -> Address:
    """What the first node of a private network takes for its own address."""
    return local_addresses(sockets.local_address(SERVER))[0]
