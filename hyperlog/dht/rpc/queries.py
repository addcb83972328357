"""Queries under way: their requests, their events, and the DOWN_HINTs they lead to.

Spec: docs/protocol/dht-rpc.md section 7; dht-rpc lib/query.js, index.js `_backgroundQuery`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.rpc.events import Event, QueryFinished, QueryReplied, RunningQuery
from hyperlog.dht.rpc.messages import DOWN_HINT, FIND_NODE, pack_address
from hyperlog.dht.rpc.neighbours import Neighbours
from hyperlog.dht.rpc.query import DEFAULT_CONCURRENCY, Query
from hyperlog.dht.rpc.requests import RequestEvent, Requests, Responded, Slow

__all__ = ["QUERY_RETRIES", "Queries"]

QUERY_RETRIES: Final = 5
MAX_DOWN_HINTS: Final = 50  # sent in one tick
BACKGROUND_CONCURRENCY: Final = 2
QUIET_BELOW: Final = 3  # requests in flight below which a background query may hurry


class Queries:
    """Drives Query objects by requests, those of users and the node's own."""

    def __init__(self, neighbours: Neighbours, requests: Requests, events: deque[Event]) -> None:
        self.idle_ticks = 0
        """ticks since the latest query began; the owner counts"""
        self.down_hints_sent = 0
        """in this tick; the owner resets it"""
        self._neighbours = neighbours
        self._requests = requests
        self._events = events
        self._running: set[RunningQuery] = set()

    def start(
        self,
        command: int,
        target: bytes,
        *,
        value: bytes | None,
        internal: bool,
        nodes: Iterable[Address],
        retries: int,
        concurrency: int,
        now: float,
    ) -> RunningQuery:
        """See RPCCore.start_query."""
        state = self._make_state(target, nodes, concurrency)
        query = RunningQuery(state, command, internal, value, retries)
        self._begin(query, now)
        return query

    def start_background(
        self,
        target: bytes,
        now: float,
        *,
        concurrency: int = BACKGROUND_CONCURRENCY,
        on_reply: Callable[[Address], None] = lambda address: None,
        on_end: Callable[[Query, float], None] = lambda state, now: None,
    ) -> None:
        """Look for the nodes around `target`, gently; `on_end` is given the result.

        Without anybody to ask, `on_end` is called before this returns.
        """
        state = self._make_state(target, (), concurrency)
        query = RunningQuery(state, FIND_NODE, True, None, QUERY_RETRIES, on_reply, on_end)
        self._begin(query, now)

    def cancel(self, query: RunningQuery) -> None:
        """See RPCCore.cancel_query."""
        if query not in self._running:
            return
        self._running.remove(query)
        for request in query.pending.values():
            self._requests.cancel(request)
        query.pending.clear()

    def cancel_all(self) -> None:
        """Give every query up; the owner sees to their requests."""
        for query in self._running:
            query.pending.clear()
        self._running.clear()

    def handle_event(self, query: RunningQuery, event: RequestEvent, now: float) -> None:
        """Take the news of a request that belongs to `query`."""
        address = event.request.address
        state = query.state
        if isinstance(event, Slow):
            state.mark_slow(address)
        else:
            query.pending.pop(address, None)
            if isinstance(event, Responded):
                reply = state.receive_reply(address, event.response, event.rtt)
                if query.on_reply is not None:
                    quiet = len(self._requests) < QUIET_BELOW
                    state.concurrency = DEFAULT_CONCURRENCY if quiet else BACKGROUND_CONCURRENCY
                    query.on_reply(address)
                elif reply is not None:
                    self._events.append(QueryReplied(query, reply))
            else:
                state.receive_timeout(address)
                self._neighbours.give_up(address)
        self._advance(query, now)

    def _make_state(self, target: bytes, nodes: Iterable[Address], concurrency: int) -> Query:
        return Query(
            target,
            self._neighbours.table.id,
            from_table=lambda count: self._neighbours.to_start_from(target, count),
            nodes=nodes,
            concurrency=concurrency,
        )

    def _begin(self, query: RunningQuery, now: float) -> None:
        self.idle_ticks = 0
        self._running.add(query)
        try:
            self._advance(query, now)
        except LocalProtocolError:  # a field does not fit, as the first request shows
            self.cancel(query)
            raise

    def _advance(self, query: RunningQuery, now: float) -> None:
        state = query.state
        while addresses := state.next_requests():
            for address in addresses:
                if not self._requests.room:
                    state.skip(address)
                    continue
                query.pending[address] = self._requests.start(
                    address,
                    query.command,
                    internal=query.internal,
                    target=state.target,
                    value=query.value,
                    retries=query.retries,
                    context=query,
                )
        for referrer, down in state.take_hints():
            if self.down_hints_sent >= MAX_DOWN_HINTS or not self._requests.room:
                break
            self.down_hints_sent += 1
            self._requests.start(
                referrer, DOWN_HINT, internal=True, value=pack_address(down), context=_ignore
            )
        if state.finished and query in self._running:
            # Requests to slow nodes go on, so that dead ones leave the tables, ours and others'.
            # Compat: dht-rpc 6.27.0 lib/query.js gives them up.
            self._running.remove(query)
            if query.on_end is None:
                self._events.append(QueryFinished(query))
            else:
                query.on_end(state, now)


def _ignore(event: RequestEvent, now: float) -> None:
    """The end of a request whose outcome does not matter."""
