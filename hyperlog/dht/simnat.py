"""Service: NATs of every kind for SimNetwork.

    mapping     consistent   one outside port for all destinations
                random       a random port for each destination: "symmetric"
                sequential   a port for each destination, one after the other
    filtering   endpoint     whoever knows the port may send: "full cone"
                address      hosts that were sent to: "restricted cone"
                port         hosts and ports that were sent to: "port-restricted cone"

Refused datagrams vanish and leave no trace, as behind a router that drops what it did not expect.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator
from typing import Final, Literal

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.simulation import SimHost, SimSegment
from hyperlog.dht.udp import DEFAULT_TTL

__all__ = ["Filtering", "Mapping", "SimNat"]

Mapping = Literal["consistent", "random", "sequential"]
Filtering = Literal["endpoint", "address", "port"]

MIN_PORT: Final = 1024
MAX_PORT: Final = 65535
MAPPING_TIMEOUT: Final = 60.0  # s since the last datagram from inside
LAN_DELAY: Final = 0.0005  # s
MAX_MAPPINGS: Final = 16_384  # of which the oldest goes when another is needed
SWEEP_AT: Final = 1024  # mappings, above which the expired ones are looked for
MAX_PERMITTED: Final = 4096  # hosts or ports that one mapping lets in


class _Mapping:
    """One outside port, and who may send to it."""

    __slots__ = ("expires_at", "inside", "permitted", "port")

    def __init__(self, inside: Address, port: int) -> None:
        self.inside = inside
        self.port = port
        self.expires_at = 0.0
        self.permitted: dict[Hashable, float] = {}
        """until when, by host or by host and port"""


class SimNat(SimSegment):
    """A router with a network behind it; `host` makes machines there, which reach each other.

    Args:
        outer: where the outside address is: the network, or another NAT (a provider's).
        outside_host: the outside address.
        port_preserving: a consistent mapping gets the inside socket's port if that is free.
        hairpin: whether machines inside reach each other by the outside address.
        mapping_timeout: s after the last datagram from inside.
        rng: chooses ports; by default one that follows from the network's seed.
    """

    def __init__(
        self,
        outer: SimSegment,
        outside_host: str,
        *,
        mapping: Mapping = "consistent",
        filtering: Filtering = "port",
        port_preserving: bool = True,
        hairpin: bool = False,
        mapping_timeout: float = MAPPING_TIMEOUT,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(outer.network)
        self.outer = outer
        self.outside_host = outside_host
        self.mapping = mapping
        self.filtering = filtering
        self.port_preserving = port_preserving
        self.hairpin = hairpin
        self.mapping_timeout = mapping_timeout
        self._rng = rng or self.network.fork_rng()
        self._next_port = self._rng.randint(MIN_PORT, MAX_PORT)
        self._by_inside: dict[Hashable, _Mapping] = {}
        self._by_port: dict[int, _Mapping] = {}
        self._sweep_at = SWEEP_AT
        outer.attach_gateway(outside_host, self)

    def host(self, address: str) -> SimHost:
        """The machine that has this IPv4 address behind the NAT; it is a socket factory."""
        return super().host(address)

    def rebind(self, outside_host: str | None = None) -> None:
        """Forget every mapping, as a router does that restarts; new ones get other ports.

        With `outside_host` it comes back with another outside address, too.
        """
        self._by_inside.clear()
        self._by_port.clear()
        self.port_preserving = False
        if outside_host is not None:
            self.outer.attach_gateway(outside_host, self)
            self.outer.detach_gateway(self.outside_host)
            self.outside_host = outside_host

    def outside_port(self, inside: Address, destination: Address | None = None) -> int | None:
        """The port that a socket inside has outside now, as `destination` sees it; None if none."""
        mapping = self._by_inside.get(self._key(inside, destination or inside))
        if mapping is None or mapping.expires_at <= trio.current_time():
            return None
        return mapping.port

    # -- from inside ------------------------------------------------------------------------------

    def transmit(
        self, source: Address, data: bytes, destination: Address, ttl: int = DEFAULT_TTL
    ) -> None:
        statistics = self.network.statistics
        if self._cut and source[0] in self._cut:
            statistics.sent += 1
            statistics.cut += 1
        elif destination[0] in self._hosts or destination[0] in self._gateways:
            self._carry_inside(self, source, data, destination, ttl)
        elif destination[0] != self.outside_host:
            outside = (self.outside_host, self._map(source, destination))
            self.outer.transmit(outside, data, destination, ttl - 1)
        elif self.hairpin:
            outside = (self.outside_host, self._map(source, destination))
            self._carry_inside(self.outer, outside, data, destination, ttl)
        else:
            statistics.sent += 1
            statistics.blocked += 1

    def _carry_inside(
        self, segment: SimSegment, source: Address, data: bytes, destination: Address, ttl: int
    ) -> None:
        self.network.carry(
            segment, source, data, destination, ttl, delay=LAN_DELAY, jitter=0.0, loss=0.0
        )

    def _map(self, inside: Address, destination: Address) -> int:
        """The outside port for this datagram, with the answers to it permitted."""
        now = trio.current_time()
        key = self._key(inside, destination)
        mapping = self._by_inside.get(key)
        if mapping is None or mapping.expires_at <= now:
            if len(self._by_inside) >= self._sweep_at:
                self._sweep(now)
            mapping = _Mapping(inside, self._choose_port(inside, now))
            self._by_inside[key] = self._by_port[mapping.port] = mapping
        mapping.expires_at = now + self.mapping_timeout
        if self.filtering != "endpoint":
            mapping.permitted.pop(permitted := self._who(destination), None)
            mapping.permitted[permitted] = mapping.expires_at
            if len(mapping.permitted) > MAX_PERMITTED:
                del mapping.permitted[next(iter(mapping.permitted))]
        return mapping.port

    def _key(self, inside: Address, destination: Address) -> Hashable:
        return inside if self.mapping == "consistent" else (inside, destination)

    def _choose_port(self, inside: Address, now: float) -> int:
        if self.mapping == "consistent" and self.port_preserving and self._is_free(inside[1], now):
            return inside[1]
        if self.mapping == "sequential":
            return next(port for port in self._ports_in_turn() if self._is_free(port, now))
        while True:
            port = self._rng.randint(MIN_PORT, MAX_PORT)
            if self._is_free(port, now):
                return port

    def _ports_in_turn(self) -> Iterator[int]:
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < MAX_PORT else MIN_PORT
            yield port

    def _is_free(self, port: int, now: float) -> bool:
        mapping = self._by_port.get(port)
        return mapping is None or mapping.expires_at <= now

    def _sweep(self, now: float) -> None:
        self._by_inside = {k: m for k, m in self._by_inside.items() if m.expires_at > now}
        self._by_port = {m.port: m for m in self._by_inside.values()}
        while len(self._by_inside) >= MAX_MAPPINGS:
            mapping = self._by_inside.pop(next(iter(self._by_inside)))
            del self._by_port[mapping.port]
        self._sweep_at = min(max(SWEEP_AT, 2 * len(self._by_inside)), MAX_MAPPINGS)

    # -- from outside -----------------------------------------------------------------------------

    def admit(self, source: Address, data: bytes, port: int, ttl: int) -> None:
        """Pass a datagram on inside if it is an answer, or the NAT asks for none; else drop it."""
        if ttl <= 0:
            self.network.statistics.expired += 1
            return
        mapping = self._by_port.get(port)
        if mapping is None or not self._permits(mapping, source, trio.current_time()):
            self.network.statistics.blocked += 1
        else:
            self.arrive(source, data, mapping.inside, ttl)

    def _permits(self, mapping: _Mapping, source: Address, now: float) -> bool:
        if self.filtering == "endpoint":
            return mapping.expires_at > now
        return mapping.permitted.get(self._who(source), 0.0) > now

    def _who(self, address: Address) -> Hashable:
        return address if self.filtering == "port" else address[0]
