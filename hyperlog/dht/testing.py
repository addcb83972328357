"""Service: private networks of nodes to test against, for this package's tests and its users'.

`testnet` runs on real sockets of one machine, or on a SimNetwork (simulation.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from hyperlog.dht.compact import Address
from hyperlog.dht.hyperdht import DHT, open_dht
from hyperlog.dht.udp import SocketFactory, UDPSocket

__all__ = ["Testnet", "testnet"]


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
