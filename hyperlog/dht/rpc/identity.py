"""What a node is to others: its id, its outside address, and the socket it asks from.

Spec: docs/protocol/dht-rpc.md sections 3, 5, 9; dht-rpc index.js.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.rpc.events import AddressChanged, Event, PersistenceChanged
from hyperlog.dht.rpc.nat_sampler import NatSampler

__all__ = ["CLIENT_SOCKET", "SERVER_SOCKET", "Identity"]

SERVER_SOCKET: Final = 0
CLIENT_SOCKET: Final = 1


class Identity:
    """Begins ephemeral; Reachability and the node core change it. Changes become events."""

    __slots__ = (
        "_events",
        "_sampled_strangers",
        "ephemeral",
        "firewalled",
        "home",
        "nat",
        "own_id",
        "server_port",
    )

    def __init__(
        self, own_id: bytes, server_port: int, *, firewalled: bool, events: deque[Event]
    ) -> None:
        self.own_id = own_id
        """where we stand in the table; random until our outside address is known"""
        self.server_port = server_port
        """local port of the server socket"""
        self.ephemeral = True
        self.firewalled = firewalled
        self.nat = NatSampler()
        self.home: Address | None = None
        """Where all that is known of us belongs to; stays when the samples begin to disagree."""
        self._sampled_strangers: set[Address] = set()
        self._events = events

    @property
    def socket(self) -> int:
        """The socket that requests leave from."""
        return CLIENT_SOCKET if self.firewalled else SERVER_SOCKET

    def id_on(self, socket: int) -> bytes | None:
        """The id to show in a datagram that leaves from `socket`."""
        # Only the server socket has the address that belongs to the id.
        return self.own_id if socket == SERVER_SOCKET and not self.ephemeral else None

    def remote_address(self) -> Address | None:
        """The address at which anybody can reach the server socket, if there is one."""
        host, port = self.nat.host, self.nat.port
        if host is None or self.firewalled or port == 0 or port != self.server_port:
            return None
        return host, port

    def set_ephemeral(self, ephemeral: bool) -> None:
        if ephemeral != self.ephemeral:
            self.ephemeral = ephemeral
            self._events.append(PersistenceChanged(ephemeral))

    def add_sample(self, to: Address) -> None:
        """Note what a node with a proven id calls us."""
        before = self.nat.host, self.nat.port
        self.nat.add(*to)
        self._tell_change(before)

    def add_sample_of_stranger(self, address: Address, to: Address, limit: int) -> None:
        """Note what a node without an id calls us; only `limit` of them are heard.

        Bootstrap nodes are often like that. Anybody else could make up as many as he likes.
        """
        strangers = self._sampled_strangers
        if len(strangers) < limit and address not in strangers:
            strangers.add(address)
            self.add_sample(to)

    def forget_address(self, *, firewalled: bool) -> None:
        """We are somewhere else: nothing is known of our address there, and the id was another's.

        `firewalled` says that we have to be taken for unreachable until it is found out.
        """
        self.firewalled = firewalled
        self.replace_samples(NatSampler())
        self.set_ephemeral(True)

    def replace_samples(self, nat: NatSampler) -> None:
        """Start afresh from the samples of a firewall test: those of the server socket."""
        before = self.nat.host, self.nat.port
        self.nat = nat
        self.home = None
        self._sampled_strangers.clear()
        self._tell_change(before)

    def _tell_change(self, before: tuple[str | None, int]) -> None:
        after = self.nat.host, self.nat.port
        if after[0] is not None:
            home = self.home
            # A NAT shows only after some samples that it uses many ports.
            if home is None or (home[0] == after[0] and (self.firewalled or after[1] == 0)):
                self.home = after[0], after[1]
        if after != before:
            self._events.append(AddressChanged(*after))
