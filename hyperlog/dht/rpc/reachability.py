"""Is our server socket reachable from outside without us having sent anything first?

Nodes are asked by PING_NAT, from the client socket, to answer to the server socket's port. What
comes in there proves that no firewall is in between, and shows the server socket's outside address.

Spec: docs/protocol/dht-rpc.md section 9; dht-rpc index.js `_checkIfFirewalled`.
"""

from __future__ import annotations

from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.rpc.nat_sampler import NatSampler

__all__ = ["MAX_ASKED", "FirewallTest"]

MAX_ASKED: Final = 5  # table nodes
ENOUGH_OF_MANY: Final = 3  # answers needed when MAX_ASKED or more were asked


class FirewallTest:
    """The answers to one round of PING_NAT; `asked` of them are under way."""

    __slots__ = ("_asked", "_client_host", "_missing", "_server_port", "sampler")

    def __init__(self, asked: int, client_host: str, server_port: int) -> None:
        self._asked = asked
        self._missing = asked
        self._client_host = client_host
        self._server_port = server_port
        self.sampler = NatSampler()
        """The server socket's address as seen by those whose answers came in there."""

    @property
    def finished(self) -> bool:
        return self._missing == 0

    def receive_answer(self, to: Address, on_server_socket: bool) -> None:
        """One node answered to us as `to`; only an answer on the server socket proves anything."""
        self._missing -= 1
        if on_server_socket:
            self.sampler.add(*to)

    def receive_timeout(self) -> None:
        self._missing -= 1

    @property
    def open(self) -> bool:
        """The verdict: whether the server socket can be reached at its own local port.

        A NAT that maps the port to another one counts as closed (hyperdht has no field for it).
        """
        enough = ENOUGH_OF_MANY if self._asked >= MAX_ASKED else 1
        return (
            self.sampler.size >= enough
            and self.sampler.host == self._client_host
            and self.sampler.port == self._server_port
        )
