"""Is our server socket reachable from outside without us having sent anything first?

Nodes are asked by PING_NAT, from the client socket, to answer to the server socket's port. What
comes in there proves that no firewall is in between, and shows the server socket's outside address.
That address makes our id; others may then keep us in their tables.

Spec: docs/protocol/dht-rpc.md section 9; dht-rpc index.js `_updateNetworkState`,
`_checkIfFirewalled`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.rpc.identity import SERVER_SOCKET, Identity
from hyperlog.dht.rpc.messages import PING_NAT, node_id
from hyperlog.dht.rpc.nat_sampler import NatSampler
from hyperlog.dht.rpc.neighbours import Neighbours
from hyperlog.dht.rpc.requests import RequestEvent, Requests, Responded
from hyperlog.dht.rpc.responder import PORT

__all__ = ["FirewallTest", "Reachability"]

MAX_ASKED: Final = 5  # table nodes
ENOUGH_OF_MANY: Final = 3  # answers needed when MAX_ASKED or more were asked

STABLE_TICKS: Final = 240  # 20 min
MORE_STABLE_TICKS: Final = 3 * STABLE_TICKS
MAPPING_MEMORY: Final = 300.0  # s that a NAT may let in whom we sent to
FORCED_RETRY_TICKS: Final = 60  # 5 min between attempts of a node that is told to be persistent


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


class Reachability:
    """Tests at the start, and from time to time, whether the node can stop hiding.

    `firewalled` and `ephemeral` are the owner's word, None where the node is to find out.
    """

    def __init__(
        self,
        identity: Identity,
        neighbours: Neighbours,
        requests: Requests,
        *,
        firewalled: bool | None,
        ephemeral: bool | None,
    ) -> None:
        self.forced = ephemeral is False
        """whether the owner wants the node to be persistent as soon as possible"""
        self.may_test = firewalled is None
        self._identity = identity
        self._neighbours = neighbours
        self._requests = requests
        self._adaptive = ephemeral is None
        self._ticks_left = STABLE_TICKS if self._adaptive else FORCED_RETRY_TICKS
        self._test: FirewallTest | None = None
        self._wait_until: float | None = None

    def on_tick(self, now: float, then: Callable[[bool, float], None]) -> None:
        """Count down to the next `update` of an adaptive or forced node.

        Compat: dht-rpc 6.27.0 tests the same outside host only once, and a node that is told to be
        persistent only at its start; a port opened later is found here.
        """
        if self._wait_until is not None and not self.must_wait(now):
            self._wait_until = None
            self.update(now, only_firewall=not self.forced, then=then)
        if self._identity.ephemeral and (self._adaptive or self.forced):
            self._ticks_left -= 1
            if self._ticks_left <= 0:
                self.update(now, then=then)

    def forget_test(self) -> None:
        """The answers to a test under way will not be heard."""
        self._test = None

    def reset(self) -> None:
        """The machine slept: it may be anywhere now."""
        self._ticks_left = MORE_STABLE_TICKS if self._adaptive else FORCED_RETRY_TICKS
        if self._adaptive:
            self._identity.set_ephemeral(True)

    def wait_after_move(self, now: float) -> None:
        """We moved, and sent from the server socket there: a NAT would let in those that we have
        sent to, so that their answers prove nothing for some time."""
        self._wait_until = now + MAPPING_MEMORY

    def must_wait(self, now: float) -> bool:
        """Whether a test would prove nothing now."""
        return self._wait_until is not None and now < self._wait_until

    def ask_for_answer(
        self, address: Address, context: Callable[[RequestEvent, float], None]
    ) -> None:
        """Ask one node to answer to our server socket."""
        value = PORT.pack(self._identity.server_port)
        self._requests.start(address, PING_NAT, internal=True, value=value, context=context)

    def update(
        self,
        now: float,
        *,
        only_firewall: bool = False,
        then: Callable[[bool, float], None] = lambda moved, now: None,
    ) -> None:
        """Find out whether we are open, and become persistent unless `only_firewall`.

        `then` is told whether the node has taken the id of its outside address; perhaps at once,
        perhaps seconds later.
        """
        identity = self._identity
        if not only_firewall:
            self._ticks_left = MORE_STABLE_TICKS if self._adaptive else FORCED_RETRY_TICKS
        nat = identity.nat
        host, port = nat.host, nat.port
        if (
            not identity.ephemeral
            or (only_firewall and not identity.firewalled)
            or host is None
            or port == 0
            or self._test is not None
        ):
            then(False, now)
            return
        if identity.firewalled and self.must_wait(now):
            then(False, now)
            return
        if not identity.firewalled:
            then(self._settle(nat, only_firewall), now)
            return

        def on_verdict(test: FirewallTest, now: float) -> None:
            moved = False
            # Otherwise we moved while the test went on, and it tells nothing of where we are now.
            if test.open and identity.nat is nat:
                identity.firewalled = False
                if identity.ephemeral and (host, port) == (nat.host, nat.port):
                    moved = self._settle(test.sampler, only_firewall)
            then(moved, now)

        self._run_test(host, on_verdict, now)

    def _run_test(
        self, host: str, on_verdict: Callable[[FirewallTest, float], None], now: float
    ) -> None:
        nodes: list[Address] = []
        if self.may_test:
            nodes = self._neighbours.latest(MAX_ASKED)
            if len(nodes) < MAX_ASKED:
                known = set(nodes)
                nodes += [node for node in self._neighbours.bootstrap_nodes if node not in known]
            nodes = nodes[: self._requests.room]
        test = self._test = FirewallTest(len(nodes), host, self._identity.server_port)

        def finish(now: float) -> None:
            if test.finished:
                self._test = None
                on_verdict(test, now)

        def on_end(event: RequestEvent, now: float) -> None:
            if isinstance(event, Responded):
                test.receive_answer(event.response.to, event.socket == SERVER_SOCKET)
            else:
                test.receive_timeout()
            finish(now)

        for address in nodes:
            self.ask_for_answer(address, on_end)
        finish(now)

    def _settle(self, sampler: NatSampler, only_firewall: bool) -> bool:
        """Take the id that belongs to the address found; True when we did."""
        host, port = sampler.host, sampler.port
        if host is None or port == 0:
            return False
        identity = self._identity
        if sampler is not identity.nat:
            identity.replace_samples(sampler)
        id = node_id((host, port))
        if id != identity.own_id:
            identity.own_id = id
            self._neighbours.move_to(id)
        if not only_firewall:
            identity.set_ephemeral(False)
        return True
