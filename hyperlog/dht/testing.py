"""Service: private networks of nodes to test against, for this package's tests and its users'.

`testnet` runs on real sockets of one machine, `sim_testnet` on a SimNetwork (simulation.py), where
a thousand nodes are ready in seconds.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.opening import open_dht
from hyperlog.dht.simulation import SimHost, SimNetwork
from hyperlog.dht.udp import SocketFactory, UDPSocket

__all__ = ["SimTestnet", "Testnet", "sim_testnet", "testnet"]

JOIN_AT_ONCE: Final = 32  # simulated nodes; more would all know the same few
MAX_BOOTSTRAP: Final = 3  # nodes that new ones join through
HOSTS_IN_NET: Final = 250


class Testnet:
    """A running private network."""

    __test__ = False  # pytest: not a test class

    def __init__(self, nodes: list[DHT]) -> None:
        self.nodes = nodes
        self.bootstrap: list[Address] = [nodes[0].address] if nodes else []
        """Addresses to give to other nodes as `bootstrap`."""


@asynccontextmanager
async def testnet(
    size: int = 10,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    socket_factories: Sequence[SocketFactory] | None = None,
    hosts: Sequence[str] | None = None,
) -> AsyncIterator[Testnet]:
    """Run `size` persistent nodes on one machine, the first of them at `port`.

    With SimNetwork, give one host and one socket factory a node. Yields when all have joined; they
    end with the context. Compat: hyperdht testnet.js, but here the first node stores records too.
    """
    async with AsyncExitStack() as stack:
        nodes: list[DHT] = []
        for number in range(size):
            node = await stack.enter_async_context(
                open_dht(
                    bootstrap=[nodes[0].address] if nodes else [],
                    host=hosts[number] if hosts else host,
                    port=port if number == 0 else 0,
                    exact_port=True,
                    ephemeral=False,
                    firewalled=False,
                    socket_factory=socket_factories[number] if socket_factories else UDPSocket,
                )
            )
            await node.bootstrapped()
            nodes.append(node)
        yield Testnet(nodes)


testnet.__test__ = False  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class _Running:
    """A node's task, and the machine that it is on."""

    scope: trio.CancelScope
    ended: trio.Event
    machine: SimHost
    is_given: bool
    """whether the machine is the caller's, who may run other nodes on it"""


class SimTestnet:
    """A running private network on a simulated one; made by `sim_testnet`."""

    def __init__(self, network: SimNetwork, nursery: trio.Nursery) -> None:
        self.network = network
        self.nodes: list[DHT] = []
        """The nodes that run now, oldest first."""
        self._nursery = nursery
        self._rng = network.fork_rng()
        self._machines = 0
        self._running: dict[DHT, _Running] = {}

    @property
    def bootstrap(self) -> list[Address]:
        """Addresses to give to other nodes as `bootstrap`: those of the oldest nodes."""
        return [node.address for node in self.nodes[:MAX_BOOTSTRAP]]

    def new_host(self) -> str:
        """The address of a public machine that nobody has yet."""
        number = self._machines
        self._machines += 1
        net, host = divmod(number, HOSTS_IN_NET)
        return f"8.{net // 256}.{net % 256}.{host + 1}"

    async def add(
        self,
        machine: SimHost | None = None,
        **options: Any,  # noqa: ANN401 - open_dht checks them
    ) -> DHT:
        """Run one more persistent node, by default on a public machine of its own; wait for it.

        `options` go to `open_dht` in place of what is usual here. Returns when it has joined.
        """
        dht = await self.start(machine, **options)
        await dht.bootstrapped()
        return dht

    async def start(self, machine: SimHost | None = None, **options: Any) -> DHT:  # noqa: ANN401
        """Like `add`, but does not wait until the node has joined."""
        is_given = machine is not None
        if machine is None:
            machine = self.network.host(self.new_host())
        rng = random.Random(self._rng.getrandbits(64))
        options = {
            "bootstrap": self.bootstrap,
            "ephemeral": False,
            "firewalled": False,
            "key_pair": KeyPair.from_seed(rng.randbytes(32)),
            "random_bytes": rng.randbytes,
        } | options
        dht: DHT = await self._nursery.start(self._run, machine, is_given, options)
        return dht

    async def _run(
        self,
        machine: SimHost,
        is_given: bool,
        options: dict[str, Any],
        *,
        task_status: trio.TaskStatus[DHT],
    ) -> None:
        ended = trio.Event()
        with trio.CancelScope() as scope:
            async with open_dht(host=machine.address, socket_factory=machine, **options) as dht:
                self._running[dht] = _Running(scope, ended, machine, is_given)
                self.nodes.append(dht)
                task_status.started(dht)
                await trio.sleep_forever()
        ended.set()

    async def remove(self, dht: DHT, *, crash: bool = False) -> None:
        """End a node; with `crash` it vanishes without a word to anybody."""
        running = self._running.pop(dht)
        self.nodes.remove(dht)
        if crash:
            running.machine.cut()
        running.scope.cancel()
        await running.ended.wait()
        running.machine.heal()
        if not running.is_given:
            running.machine.segment.forget_host(running.machine.address)


@asynccontextmanager
async def sim_testnet(
    size: int = 10,
    *,
    network: SimNetwork | None = None,
    **options: Any,  # noqa: ANN401
) -> AsyncIterator[SimTestnet]:
    """Run `size` persistent nodes on a simulated network, each on a machine of its own.

    `network` if it runs already, otherwise one that is made with `options` of SimNetwork. Yields
    when all have joined; nodes and network end with the context. Repeats by the network's seed.
    """
    async with trio.open_nursery() as nursery:
        if network is None:
            network = SimNetwork(**options)
            await nursery.start(network.run)
        async with trio.open_nursery() as nodes:
            testnet = SimTestnet(network, nodes)
            while len(testnet.nodes) < size:
                known = len(testnet.nodes)
                async with trio.open_nursery() as joining:
                    for _ in range(min(known or 1, JOIN_AT_ONCE, size - known)):
                        dht = await testnet.start()
                        joining.start_soon(dht.bootstrapped)
            yield testnet
            nodes.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
