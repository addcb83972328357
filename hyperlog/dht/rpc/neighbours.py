"""The nodes that we know: who gets into the routing table, and who has to leave it.

All times are ticks of 5 s. Spec: docs/protocol/dht-rpc.md section 8; dht-rpc index.js.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import K
from hyperlog.dht.rpc.identity import Identity
from hyperlog.dht.rpc.messages import PING, node_id
from hyperlog.dht.rpc.requests import RequestEvent, Requests, Responded
from hyperlog.dht.rpc.table import Node, Table, is_stray

__all__ = ["PING_EVERY", "Neighbours"]

PING_EVERY: Final = 8
RECENT_TICKS: Final = 12
OLD_TICKS: Final = 360
MAX_HINTED_CHECKS: Final = 10  # pings under way when a DOWN_HINT is still followed
MAX_REPINGS: Final = 3  # pings at once because of full rows
MAX_REMEMBERED: Final = 64
REMEMBERED_AT_ONCE: Final = 10  # asked by one query beside the bootstrap nodes


class Neighbours:
    """The routing table and the pings that keep it true."""

    def __init__(
        self,
        identity: Identity,
        requests: Requests,
        random_bytes: Callable[[int], bytes],
        tick: int,
    ) -> None:
        self.table = Table(identity.own_id)
        self.bootstrap_nodes: tuple[Address, ...] = ()
        """Where to ask when the table has too few nodes."""
        self._remembered: deque[Address] = deque()
        self.tick = tick
        self.reping_full_rows = False
        """Off until the bootstrap is over, when rows fill with whoever answers first."""
        self._identity = identity
        self._requests = requests
        self._random_bytes = random_bytes
        self._checks = 0
        self._repings = 0

    def closest(self, target: bytes, count: int = K) -> list[Address]:
        """Addresses of the nodes nearest to `target`, nearest first."""
        return [node.address for node in self.table.closest(target, count)]

    def to_start_from(self, target: bytes, count: int) -> list[Address]:
        """Addresses for a query to begin with; the bootstrap nodes too when the table is short.

        And some of those remembered, since the bootstrap nodes may be down.
        """
        nodes = self.closest(target, count)
        if len(nodes) >= count:
            return nodes
        remembered = islice(self._remembered, REMEMBERED_AT_ONCE)
        return [*nodes, *self.bootstrap_nodes, *remembered]

    def remember(self, addresses: Iterable[Address]) -> None:
        """Nodes known from earlier; to be asked, but in no table before they have answered."""
        self._remembered = deque(islice(addresses, MAX_REMEMBERED))

    def give_up(self, address: Address) -> None:
        """A node that a query asked does not answer."""
        self.remove(address)
        if address in self._remembered:
            self._remembered.remove(address)
            if not len(self.table):  # it may be our network: others first next time
                self._remembered.append(address)

    def latest(self, count: int) -> list[Address]:
        """Addresses of the nodes heard of last."""
        return [node.address for node in islice(self.table.latest(), count)]

    def random_id(self) -> bytes:
        """The id of any node known, our own when there is none."""
        count = len(self.table)
        if not count:
            return self.table.id
        index = int.from_bytes(self._random_bytes(4), "big") % count
        return next(islice(self.table, index, None)).id

    def note(self, address: Address, id: bytes, to: Address, socket: int) -> None:
        """A node with the proven `id` showed a sign of life; it called us `to`."""
        # Only what comes in on the socket we ask from shows the address that others see.
        is_sample = socket == self._identity.socket
        node = self.table.get(id)
        if node is None:
            node = Node(address)
            if not self.add(node):
                return
        else:
            node.pinged = self.tick
            self.table.touch(node)
        if is_sample and (not node.sampled or self.tick - node.sampled >= OLD_TICKS):
            node.sampled = self.tick
            self._identity.add_sample(to)

    def add(self, node: Node) -> bool:
        """Take a node in; if its row is full, see whether another one there is dead."""
        if is_stray(node.address):
            return False
        node.added = node.pinged = self.tick
        if self.table.add(node):
            return True
        if node.id != self.table.id:
            self._reping_row(node)
        return False

    def remove(self, address: Address) -> None:
        """Forget the node at `address`, if we know it."""
        node = self.table.get(node_id(address))
        if node is not None:
            self.table.remove(node)

    def move_to(self, own_id: bytes) -> None:
        """Arrange the table around another id of ours."""
        self.table = self.table.moved_to(own_id)

    def forget_checks(self) -> None:
        """Pings that were under way will tell nothing."""
        self._checks = self._repings = 0

    def let_all_age(self) -> None:
        """Take every node for one unheard of for long, and what it called us for outdated."""
        tick = self.tick + 2 * OLD_TICKS
        self.tick = tick + PING_EVERY - tick % PING_EVERY - 2  # pings in two ticks

    def follow_hint(self, address: Address) -> None:
        """Somebody found the node at `address` dead: look for ourselves."""
        node = self.table.get(node_id(address))
        if (
            node is not None
            and self._checks < MAX_HINTED_CHECKS
            and (node.pinged < self.tick or not node.down_hints)
        ):
            node.down_hints += 1
            self._check(node)

    def ping_stalest(self) -> None:
        """Ping some of the nodes unheard of for longest."""
        stalest = list(islice(self.table, 3 if len(self._requests) > 2 else 5))
        if stalest and self.tick - stalest[0].pinged < RECENT_TICKS:
            del stalest[2:]
        for node in stalest:
            if node.pinged != self.tick:
                self._check(node)

    def _check(self, node: Node) -> None:
        """Ping a node and forget it when it does not answer, or answers without its id."""
        if not self._requests.room:
            return
        node.pinged = self.tick
        self._checks += 1

        def on_end(event: RequestEvent, now: float) -> None:
            self._checks -= 1
            if not _is_alive(event):
                self.table.remove(node)

        self._requests.start(node.address, PING, internal=True, context=on_end)

    def _reping_row(self, new: Node) -> None:
        """Ping the stalest node of a full row; `new` takes its place if there is no answer."""
        if not self.reping_full_rows or self._repings >= MAX_REPINGS or not self._requests.room:
            return
        candidates = [node for node in self.table.row(new.id) if node.pinged != self.tick]
        if not candidates:
            return
        oldest = min(candidates, key=lambda node: (node.pinged, node.added))
        # A node heard of a minute ago that has been here for half an hour keeps its place.
        if self.tick - oldest.pinged < RECENT_TICKS and self.tick - oldest.added > OLD_TICKS:
            return
        oldest.pinged = self.tick
        self._repings += 1

        def on_end(event: RequestEvent, now: float) -> None:
            self._repings -= 1
            if not _is_alive(event) and self.table.remove(oldest):
                self.add(new)

        self._requests.start(oldest.address, PING, internal=True, context=on_end)


def _is_alive(event: RequestEvent) -> bool:
    return isinstance(event, Responded) and event.response.id is not None
