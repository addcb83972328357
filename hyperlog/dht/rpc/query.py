"""An iterative query: asks ever closer nodes until the k closest to the target have answered.

Theory of operation. Addresses wait in a heap ordered by the distance of their id to the target, so
the nearest one known is always asked next. Each answer names closer nodes, which go into the heap
unless they were seen before. An address that is not nearer than the worst of a full result is of no
use any more, and neither are all those behind it. The query ends when nobody is left to ask and all
answers are in; answers that are late (over one try) may be left behind once the result is full.
A node that turns out to be down is reported to those that named it.

    waiting --next_requests--> asked --receive_reply--> done (perhaps in closest_replies)
                                 |  \\--mark_slow--> asked, not counted against the concurrency
                                 \\--receive_timeout--> down

Spec: docs/protocol/dht-rpc.md section 7; dht-rpc lib/query.js. The order in which it asks is ours:
the JavaScript query takes the address that came in last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import K
from hyperlog.dht.rpc.messages import Response, node_id
from hyperlog.dht.rpc.table import distance, is_stray

__all__ = ["Query", "Reply"]

DEFAULT_CONCURRENCY: Final = 10
SLOWED_CONCURRENCY: Final = 3
MAX_SEEN: Final = 4096
"""Addresses that one query remembers: nodes that invent ever closer ones cannot keep it going."""
MAX_REFERRERS: Final = 20  # nodes told that an address is down


@dataclass(slots=True)
class Reply:
    """One node's answer to a query."""

    address: Address
    response: Response
    """its `id` is proven here: None, or the node id of `address`"""
    rtt: float = 0.0
    """seconds"""

    @classmethod
    def from_response(cls, response: Response, address: Address) -> Reply:
        """The reply that a single request to `address` got."""
        return cls(address, response)

    @property
    def id(self) -> bytes | None:
        return self.response.id

    @property
    def to(self) -> Address:
        """Our address as this node sees it."""
        return self.response.to

    @property
    def token(self) -> bytes | None:
        return self.response.token

    @property
    def value(self) -> bytes | None:
        return self.response.value


class Query:
    """The state of one iterative query for `target` (32 bytes).

    `own_id` keeps us from asking ourselves. `nodes` are addresses to begin with; when they are
    fewer than `k`, or when hardly any of them answers, `from_table(count)` is called for more.
    """

    def __init__(
        self,
        target: bytes,
        own_id: bytes,
        *,
        from_table: Callable[[int], Iterable[Address]],
        nodes: Iterable[Address] = (),
        k: int = K,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        self.target = target
        self.k = k
        self.concurrency = concurrency
        self.successes = 0
        """responses with error 0"""
        self.errors = 0
        """other responses and timeouts"""
        self.finished = False
        self.closest_replies: list[Reply] = []
        """up to `k` answers from nodes with an id, nearest first"""
        self._distances: list[int] = []  # of closest_replies
        self._own_id = own_id
        self._from_table = from_table
        self._waiting: list[tuple[int, Address]] = []
        self._asked: set[Address] = set()
        self._slow: set[Address] = set()
        self._down: set[Address] = set()
        self._referrers: dict[Address, list[Address]] = {}  # a key for every address seen
        self._hints: list[tuple[Address, Address]] = []
        self._slowdown = False
        for address in nodes:
            self._consider(address, None)
        self._table_consulted = False
        if len(self._waiting) < k:
            self._consult_table()

    @property
    def requests(self) -> int:
        """Nodes asked so far."""
        return self.successes + self.errors + len(self._asked)

    @property
    def closest_nodes(self) -> list[Address]:
        return [reply.address for reply in self.closest_replies]

    def next_requests(self) -> list[Address]:
        """Whom to ask now; each address comes once and needs a reply or a timeout later.

        Call it at the start and after every reply, timeout and mark_slow, then look at `finished`.
        """
        addresses: list[Address] = []
        while not self.finished:
            limit = SLOWED_CONCURRENCY if self._slowdown else self.concurrency
            limit += len(self._slow)
            while self._waiting and len(self._asked) < limit:
                nearness, address = heappop(self._waiting)
                if not self._is_closer(nearness):
                    self._waiting.clear()
                    break
                self._asked.add(address)
                addresses.append(address)
            # Nodes known from an earlier query: leave the nearest ones a moment to answer before
            # the whole neighbourhood is asked.
            if not self._table_consulted and not self.successes and not self.errors:
                self._slowdown = True
            if self._waiting:
                break
            enough = len(self.closest_replies) >= self.k and len(self._slow) == len(self._asked)
            if self._asked and not enough:
                break
            if self._table_consulted or self.successes >= self.k / 4:
                self.finished = True
            else:
                self._consult_table()
        return addresses

    def receive_reply(self, address: Address, response: Response, rtt: float) -> Reply | None:
        """Take the answer of a node that was asked; gives it back as a Reply unless it is an error.

        `response.id` must be proven already. An answer after the end changes nothing.
        """
        if address not in self._asked:
            return None
        self._asked.discard(address)
        self._slow.discard(address)
        if self.finished:
            return None
        reply = Reply(address, response, rtt)
        if response.error:
            self.errors += 1
        else:
            self.successes += 1
            if response.id is not None:
                self._insert(response.id, reply)
        for node in response.closer_nodes:
            self._consider(node, address)
        if self.successes + self.errors >= self.concurrency:
            self._slowdown = False
        return None if response.error else reply

    def receive_timeout(self, address: Address) -> None:
        """A node that was asked does not answer."""
        if address not in self._asked:
            return
        self.skip(address)
        self._down.add(address)
        self._hints += [(referrer, address) for referrer in self._referrers[address]]

    def skip(self, address: Address) -> None:
        """The request to a node was not sent at all; says nothing about the node."""
        self._asked.discard(address)
        self._slow.discard(address)
        self.errors += 1

    def mark_slow(self, address: Address) -> None:
        """The first try at a node had no answer; somebody else is asked meanwhile."""
        if address in self._asked:
            self._slow.add(address)

    def take_hints(self) -> list[tuple[Address, Address]]:
        """DOWN_HINTs to send, as (to whom, which node is down); each is given once."""
        hints, self._hints = self._hints, []
        return hints

    def _consult_table(self) -> None:
        self._table_consulted = True
        for address in self._from_table(self.k - len(self._waiting)):
            self._consider(address, None)

    def _consider(self, address: Address, referrer: Address | None) -> None:
        referrers = self._referrers.get(address)
        if referrers is not None:
            if referrer is None:
                return
            if address in self._down:
                self._hints.append((referrer, address))
            elif len(referrers) < MAX_REFERRERS:
                referrers.append(referrer)
            return
        if not address[1] or len(self._referrers) >= MAX_SEEN or is_stray(address):
            return
        id = node_id(address)
        nearness = distance(id, self.target)
        if id == self._own_id or not self._is_closer(nearness):
            return
        self._referrers[address] = [] if referrer is None else [referrer]
        heappush(self._waiting, (nearness, address))

    def _is_closer(self, nearness: int) -> bool:
        return len(self._distances) < self.k or nearness < self._distances[-1]

    def _insert(self, id: bytes, reply: Reply) -> None:
        nearness = distance(id, self.target)
        if not self._is_closer(nearness):
            return
        index = bisect_left(self._distances, nearness)
        self._distances.insert(index, nearness)
        self.closest_replies.insert(index, reply)
        del self._distances[self.k :], self.closest_replies[self.k :]
