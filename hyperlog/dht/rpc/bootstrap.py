"""Joining the network: find nodes around our id, and try again until somebody answers.

    begin -> BootstrapDue -> run -> query -> [firewall test -> query for the new id] -> Bootstrapped
               ^                      |
               '---- 1, 2, 4 … 30 s --' nobody answered

Spec: docs/protocol/dht-rpc.md section 9; dht-rpc index.js `_bootstrap`. The repetition is ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.rpc.events import BootstrapDue, Bootstrapped, Event, NetworkChanged
from hyperlog.dht.rpc.identity import SERVER_SOCKET, Identity
from hyperlog.dht.rpc.neighbours import Neighbours
from hyperlog.dht.rpc.queries import Queries
from hyperlog.dht.rpc.query import DEFAULT_CONCURRENCY, Query
from hyperlog.dht.rpc.reachability import Reachability
from hyperlog.dht.rpc.requests import RequestEvent, Responded

__all__ = ["Bootstrap"]

MIN_RETRY: Final = 1.0  # s
MAX_RETRY: Final = 30.0  # s
MAX_NODES: Final = 64


class Bootstrap:
    """The way into the network; `begin` it at the start and whenever no node is known any more."""

    def __init__(
        self,
        identity: Identity,
        neighbours: Neighbours,
        queries: Queries,
        reachability: Reachability,
        events: deque[Event],
        *,
        quick_firewall: bool,
    ) -> None:
        self.attempts = 0
        self.done = False
        """whether the first attempt is over, successful or not"""
        self.failing = False
        """whether nobody answered the latest attempt, so that another one is due"""
        self._identity = identity
        self._neighbours = neighbours
        self._queries = queries
        self._reachability = reachability
        self._events = events
        self._quick_firewall = quick_firewall
        self._active = False
        self._again = False
        self._unresolved = False
        self._retry = MIN_RETRY
        self._retry_at: float | None = None
        self._quick_test_wanted = False
        self._quick_test_passed = False

    def get_timer(self) -> float | None:
        return self._retry_at

    def handle_timer(self, now: float) -> None:
        if self._retry_at is not None and self._retry_at <= now:
            self.begin()

    def begin(self) -> None:
        """Ask the owner for the addresses to start from, unless that is going on already."""
        if not self._active:
            self._active = True
            self._retry_at = None
            self._events.append(BootstrapDue())

    def begin_again(self) -> None:
        """Like `begin`, but what is going on already was begun somewhere else: another follows."""
        self._again = self._active
        self._retry = MIN_RETRY
        self.begin()

    def stop(self) -> None:
        """Nothing of what is going on will be heard of again."""
        self._active = self._again = False
        self._retry_at = None

    def begin_soon(self) -> None:
        """Like `begin`, but an attempt that is due later is waited for."""
        if self._retry_at is None:
            self.begin()

    def run(self, addresses: Sequence[Address], now: float, *, unresolved: bool) -> None:
        """See RPCCore.bootstrap."""
        self._neighbours.bootstrap_nodes = tuple(addresses[:MAX_NODES])
        self._active = True
        self._unresolved = unresolved
        self.attempts += 1
        self._quick_test_passed = False
        self._quick_test_wanted = (
            self._quick_firewall
            and self._reachability.may_test
            and self._identity.firewalled
            and not self._reachability.forced
            and not self._reachability.must_wait(now)
        )
        self._look_around(now, self._on_first_query_end)

    def _look_around(self, now: float, on_end: Callable[[Query, float], None]) -> None:
        self._queries.start_background(
            self._identity.own_id,
            now,
            concurrency=DEFAULT_CONCURRENCY,
            on_reply=self._on_reply,
            on_end=on_end,
        )

    def _on_reply(self, address: Address) -> None:
        """Ask the first node that answers to reach our server socket: cheap, and often enough."""
        if self._quick_test_wanted:
            self._quick_test_wanted = False
            self._reachability.ask_for_answer(address, self._on_quick_test_end)

    def _on_quick_test_end(self, event: RequestEvent, now: float) -> None:
        if not isinstance(event, Responded) or event.socket != SERVER_SOCKET:
            return
        if self._active:
            self._quick_test_passed = True
        else:
            # Compat: dht-rpc 6.27.0 forgets an answer that comes after its bootstrap query, so that
            # on a fast network open nodes often count as firewalled.
            self._reachability.update(now, only_firewall=True, then=self._on_late_test_end)

    def _on_late_test_end(self, moved: bool, now: float) -> None:
        if moved:
            self._queries.start_background(self._identity.own_id, now)

    def _on_first_query_end(self, query: Query, now: float) -> None:
        if not query.successes and (query.errors or self._unresolved):
            self.failing = True
            self._retry_at = now + self._retry
            self._retry = min(2 * self._retry, MAX_RETRY)
            self._end()
            return
        if self.failing:  # whoever waits for the network need not wait on
            self.failing = False
            self._events.append(NetworkChanged(online=True, degraded=False))
        self._retry = MIN_RETRY
        if self._reachability.forced or self._quick_test_passed:
            only_firewall = not self._reachability.forced
            self._reachability.update(now, only_firewall=only_firewall, then=self._on_test_end)
        else:
            self._end()

    def _on_test_end(self, moved: bool, now: float) -> None:
        if moved:
            self._look_around(now, lambda query, now: self._end())
        else:
            self._end()

    def _end(self) -> None:
        self._active = False
        if not self.done:
            self.done = True
            self._neighbours.reping_full_rows = True
            self._events.append(Bootstrapped())
        if self._again:
            self._again = False
            self.begin()
