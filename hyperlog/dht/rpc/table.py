"""The routing table: k-buckets around our own id, and when each node was heard of.

Spec: docs/protocol/dht-rpc.md section 8; kademlia-routing-table index.js, time-ordered-set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import K
from hyperlog.dht.rpc.messages import node_id, pack_address

__all__ = ["Node", "Table", "distance", "is_stray"]

ID_BITS: Final = 256
MAX_ORDERS: Final = 4096  # answers of closest_packed that are kept, of about 150 bytes each


# Nodes of a test network that got into the public one by accident, hyperdht index.js `filterNode`.
STRAY_HOST: Final = "150.136.142.116"
STRAY_NODES: Final = frozenset(
    {("134.209.28.98", 49738), ("167.99.142.185", 49738), ("35.233.47.252", 9400)}
)


def is_stray(address: Address) -> bool:
    """Whether the node there belongs to another network, into which it would lead us."""
    return address[0] == STRAY_HOST or address in STRAY_NODES


def distance(a: bytes, b: bytes) -> int:
    """XOR of two ids as a number: smaller is nearer."""
    return int.from_bytes(a, "big") ^ int.from_bytes(b, "big")


@dataclass(slots=True, eq=False)
class Node:
    """A persistent node that we heard of. All times are ticks of 5 s."""

    address: Address
    added: int = 0
    pinged: int = 0
    """last sign of life or last time we asked for one"""
    sampled: int = 0
    """when it last told us our own address, 0 for never"""
    down_hints: int = 0
    """how often others told us that it is down"""
    id: bytes = field(init=False)
    number: int = field(init=False)
    """the id as a big-endian number, for distances"""

    def __post_init__(self) -> None:
        self.id = node_id(self.address)
        self.number = int.from_bytes(self.id, "big")


class Table:
    """At most `k` nodes for each length of the prefix that they share with our own id.

    Iterating gives the nodes from the one unheard of for longest to the latest.
    """

    __slots__ = ("_nodes", "_number", "_orders", "_rows", "_telling_bits", "id", "k")

    def __init__(self, own_id: bytes, k: int = K) -> None:
        self.id = own_id
        self.k = k
        self._number = int.from_bytes(own_id, "big")
        self._rows: dict[int, list[Node]] = {}
        self._nodes: dict[bytes, Node] = {}  # in the order of the last sign of life
        # What closest_packed gave since the last change of nodes, by the first bits of the target.
        # As many of them decide the order of distances as tell any two nodes apart.
        self._orders: dict[int, bytes] = {}
        self._telling_bits = 1

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __contains__(self, node: Node) -> bool:
        return self._nodes.get(node.id) is node

    def latest(self) -> Iterator[Node]:
        """The nodes, beginning with the one heard of last."""
        return reversed(self._nodes.values())

    def get(self, node_id: bytes) -> Node | None:
        return self._nodes.get(node_id)

    def row(self, node_id: bytes) -> list[Node]:
        """The nodes that share as many first bits with us as `node_id`; do not change the list."""
        return self._rows.get(self._row_index(node_id), [])

    def add(self, node: Node) -> bool:
        """Take the node in; False when its row is full, when it is there already, or when it is us.

        A full row stays as it is: whoever calls may ping its oldest node and remove that first.
        """
        if node.id in self._nodes or node.id == self.id:
            return False
        row = self._rows.setdefault(self._row_index(node.id), [])
        if len(row) >= self.k:
            return False
        row.append(node)
        for other in self._nodes.values():
            shared = ID_BITS - (node.number ^ other.number).bit_length()
            if shared >= self._telling_bits:
                self._telling_bits = shared + 1
        self._nodes[node.id] = node
        self._orders.clear()
        return True

    def remove(self, node: Node) -> bool:
        """Forget the node; False when it is not (or no longer) in the table."""
        if node not in self:
            return False
        del self._nodes[node.id]
        self._orders.clear()
        self._rows[self._row_index(node.id)].remove(node)
        return True

    def touch(self, node: Node) -> None:
        """Note a sign of life of a node in the table: it becomes the latest."""
        self._nodes[node.id] = self._nodes.pop(node.id)

    def closest(self, target: bytes, count: int | None = None) -> list[Node]:
        """Up to `count` (default k) nodes, by strict XOR distance to `target`, nearest first.

        The JavaScript table goes through its rows in an order that is not quite that of the
        distance; the order here is compatible, and queries converge faster with it.
        """
        count = self.k if count is None else count
        number = int.from_bytes(target, "big")
        shared = ID_BITS - (number ^ self._number).bit_length()
        # Nodes of our row `shared` agree with the target in at least one bit more than we do. Rows
        # above it agree with the target exactly as long as we do, rows below ever less.
        found = list(self._rows.get(shared, ()))
        if len(found) < count:
            for index, row in self._rows.items():
                if index > shared:
                    found += row
        index = shared - 1
        while len(found) < count and index >= 0:
            found += self._rows.get(index, ())
            index -= 1
        found.sort(key=lambda node: node.number ^ number)
        return found[:count]

    def closest_packed(self, target: bytes) -> bytes:
        """The addresses of `closest`, each as its 6 bytes on the wire.

        Every answer to a search needs them, mostly between two changes of the table.
        """
        first_bits = int.from_bytes(target, "big") >> (ID_BITS - self._telling_bits)
        packed = self._orders.get(first_bits)
        if packed is None:
            packed = b"".join([pack_address(node.address) for node in self.closest(target)])
            if len(self._orders) >= MAX_ORDERS:
                self._orders.clear()
            self._orders[first_bits] = packed
        return packed

    def moved_to(self, own_id: bytes) -> Table:
        """A table around another id with those of the nodes that fit."""
        table = Table(own_id, self.k)
        for node in self:
            table.add(node)
        return table

    def _row_index(self, node_id: bytes) -> int:
        different = int.from_bytes(node_id, "big") ^ self._number
        return min(ID_BITS - different.bit_length(), ID_BITS - 1)
