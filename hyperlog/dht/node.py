"""Service: a DHT node's requests, queries and answers over its sockets, with real time.

Drives an RPCCore: datagrams come in batches from Sockets, `run` sleeps until the core's next timer,
and whatever the core has to send leaves at the end of either. Names of bootstrap nodes are resolved
here. What the user commands mean is not known here: see `on_request`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import BOOTSTRAP_NODES
from hyperlog.dht.errors import (
    DHTError,
    LocalProtocolError,
    RequestDestroyed,
    RequestSuspended,
    RequestTimeout,
)
from hyperlog.dht.incomingrequest import IncomingRequest
from hyperlog.dht.lookups import QueryReplies, QueryResult, commit_to_all
from hyperlog.dht.resolver import known_addresses, resolve
from hyperlog.dht.rpc.core import QUERY_RETRIES, SERVER_SOCKET, RPCCore
from hyperlog.dht.rpc.events import (
    AddressChanged,
    BootstrapDue,
    Bootstrapped,
    Event,
    NetworkChanged,
    PersistenceChanged,
    QueryFinished,
    QueryReplied,
    RequestFinished,
    RequestReceived,
    RunningQuery,
)
from hyperlog.dht.rpc.messages import DELAYED_PING, PING, UNKNOWN_COMMAND, Response
from hyperlog.dht.rpc.query import DEFAULT_CONCURRENCY, Reply
from hyperlog.dht.rpc.requests import DEFAULT_RETRIES, DEFAULT_TIMEOUT, PendingRequest
from hyperlog.dht.rpc.responder import DELAY_MS, MAX_PING_DELAY, Read
from hyperlog.dht.rpc.tally import Tallies
from hyperlog.dht.sockets import Sockets
from hyperlog.dht.surroundings import Surroundings

__all__ = [
    "IncomingRequest",
    "QueryReplies",
    "QueryResult",
    "RPCNode",
    "RPCStatistics",
    "Reply",
]

logger = logging.getLogger("hyperlog.dht.node")


@dataclass(frozen=True, slots=True)
class RPCStatistics:
    """The node now, and counts since it was opened."""

    nodes: int
    """in the routing table"""
    bootstrapped: bool
    bootstrap_attempts: int
    bootstrap_failing: bool
    """The latest attempt got no answer at all; the next one is due within 30 s."""
    online: bool
    """False when nobody has answered for some time"""
    degraded: bool
    """True when most requests of some time had no answer"""
    suspended: bool
    ephemeral: bool
    firewalled: bool
    nat_host: str | None
    nat_port: int
    requests_active: int
    requests_sent: int
    responses: int
    timeouts: int
    retries: int
    queries_active: int
    datagrams_malformed: int
    callback_failures: int
    """datagrams dropped because `on_request`, or something else that answers, raised"""


class _Waiter:
    __slots__ = ("ended", "error", "response")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.response: Response | None = None
        self.error: DHTError | None = None


class RPCNode:
    """One DHT node on its sockets; alive while `run` runs.

    `bootstrap` are (host or name, port) pairs. `ephemeral` None means: persistent when the node
    has been reachable for 20 minutes. `firewalled` None means: find out (with `quick_firewall`
    at the start already); True and False are taken as said. `outside_address` makes the first node
    of a network, which nobody can tell its address. `nodes` are nodes known from earlier.
    """

    def __init__(
        self,
        sockets: Sockets,
        *,
        bootstrap: Iterable[Address] = BOOTSTRAP_NODES,
        ephemeral: bool | None = None,
        firewalled: bool | None = None,
        quick_firewall: bool = True,
        nodes: Iterable[Address] = (),
        outside_address: Address | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.bootstrapped = trio.Event()
        """Set when the first search for nodes is over, even if nobody answered (see statistics)."""
        self.on_request: Callable[[IncomingRequest], bool] = lambda request: False
        """Called with each user command that is not answered at once (see there); False leaves
        it to be answered with UNKNOWN_COMMAND."""
        self.on_network_change: Callable[[], None] = lambda: None
        """Called when our address, our reachability or the network's health has changed."""
        self.on_disruption: Callable[[], None] = lambda: None
        """Called when the machine slept or has other addresses: what is connected may be dead."""
        self._sockets = sockets
        self._bootstrap_nodes = tuple(bootstrap)
        self._clock = clock
        self._core = RPCCore(
            random_bytes=random_bytes,
            server_port=sockets.local_address(SERVER_SOCKET)[1],
            now=clock(),
            ephemeral=ephemeral,
            firewalled=firewalled,
            quick_firewall=quick_firewall,
            nodes=nodes,
            outside_address=outside_address,
        )
        self._nursery: trio.Nursery | None = None
        self._sleep = trio.CancelScope()
        self._resolving = trio.CancelScope()
        self._pumping = False
        self._closed = False
        self._suspended = False
        self._surroundings = Surroundings(
            lambda: sockets.local_address(SERVER_SOCKET)[0], self._clock()
        )
        self._waiters: dict[PendingRequest, _Waiter] = {}
        self._queries: dict[RunningQuery, QueryReplies] = {}
        self._callback_failures = 0

    # -- state -------------------------------------------------------------------------------------

    @property
    def id(self) -> bytes | None:
        """Our node id, 32 bytes, or None while ephemeral."""
        return self._core.id

    @property
    def ephemeral(self) -> bool:
        """Whether others do not keep us in their tables."""
        return self._core.identity.ephemeral

    @property
    def firewalled(self) -> bool:
        """Whether strangers cannot reach our server socket, as far as we know."""
        return self._core.identity.firewalled

    @property
    def online(self) -> bool:
        """Whether the network answers."""
        return self._core.online

    @property
    def request_socket(self) -> int:
        """The socket that requests leave from: the client socket while firewalled."""
        return self._core.identity.socket

    def remote_address(self) -> Address | None:
        """The address at which anybody can reach our server socket, if there is one."""
        return self._core.identity.remote_address()

    def closest(self, target: bytes) -> list[Address]:
        """Up to 20 nodes of our table, nearest to `target` first."""
        return self._core.closest(target)

    def to_start_from(self, target: bytes, count: int) -> list[Address]:
        """Up to `count` nodes to ask first about `target`, each once."""
        return list(dict.fromkeys(self._core.to_start_from(target, count)))[:count]

    def known_nodes(self, limit: int) -> list[Address]:
        """Nodes of our table, the one heard of last first."""
        return [node.address for node in islice(self._core.table.latest(), limit)]

    @property
    def tallies(self) -> Tallies:
        """What became of the requests of others, by command."""
        return self._core.tallies

    @property
    def table_size(self) -> int:
        """Nodes in our table."""
        return len(self._core.table)

    def answer_at_once(self, reads: Mapping[int, Read]) -> None:
        """Answer user commands that only read without `on_request` where that is possible.

        `reads` are called with target and value of the request and the time in seconds, and give
        the value of the answer; see RPCCore.answer_at_once.
        """
        self._core.answer_at_once(reads)

    def statistics(self) -> RPCStatistics:
        core = self._core
        identity = core.identity
        return RPCStatistics(
            nodes=len(core.table),
            bootstrapped=core.bootstrapped,
            bootstrap_attempts=core.bootstrap_attempts,
            bootstrap_failing=core.bootstrap_failing,
            online=core.online,
            degraded=core.health.degraded,
            suspended=self._suspended,
            ephemeral=identity.ephemeral,
            firewalled=identity.firewalled,
            nat_host=identity.nat.host,
            nat_port=identity.nat.port,
            requests_active=len(core.requests),
            requests_sent=core.requests.total,
            responses=core.requests.responses,
            timeouts=core.requests.timeouts,
            retries=core.requests.retries,
            queries_active=len(self._queries),
            datagrams_malformed=core.malformed,
            callback_failures=self._callback_failures,
        )

    # -- life --------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the network until cancelled; requests under way then fail."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._sockets.on_rpc = self._receive_batch
                self._core.start(self._clock())
                self._pump()
                task_status.started()
                await self._run_timers()
        finally:
            self._nursery = None
            self._close()

    async def _run_timers(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._core.get_timer()) as self._sleep:
                await trio.sleep_forever()
            now = self._clock()
            if not self._suspended and self._surroundings.look(now):
                if self._surroundings.slept:
                    self._core.wake_up()
                else:
                    self._core.network_changed()
                self.on_network_change()
                self.on_disruption()
            self._core.handle_timer(now)
            self._pump()

    def suspend(self) -> None:
        """Give up all that is under way, and do nothing until `resume`; the sockets may close."""
        if not self._suspended:
            self._suspended = True
            self._resolving.cancel()
            self._core.suspend(self._clock())
            self._give_up(RequestSuspended("the node was suspended meanwhile"))

    def resume(self) -> None:
        """Take part in the network again; the sockets are open, perhaps on other ports."""
        if self._suspended:
            self._suspended = False
            now = self._clock()
            self._surroundings.forget(now)
            self._core.resume(self._sockets.local_address(SERVER_SOCKET)[1], now)
            self._pump()

    def remember(self, nodes: Iterable[Address]) -> None:
        """Nodes known from earlier, to be asked where the bootstrap nodes do not answer."""
        self._core.remember(nodes)

    def _close(self) -> None:
        self._closed = True
        self._sockets.on_rpc = lambda batch: None
        self._give_up(RequestDestroyed("the node was closed meanwhile"))

    def _give_up(self, error: DHTError) -> None:
        for waiter in self._waiters.values():
            waiter.error = error
            waiter.ended.set()
        self._waiters.clear()
        for replies in self._queries.values():
            replies.destroy(error)
        self._queries.clear()

    def _check_running(self) -> None:
        if self._closed:
            raise RequestDestroyed("the node is closed")
        if self._suspended:
            raise RequestSuspended("the node is suspended")

    def _receive_batch(self, batch: list[tuple[bytes, Address, int]]) -> None:
        now = self._clock()
        receive = self._core.receive_datagram
        for data, address, socket in batch:
            try:
                receive(data, address, socket, now)
            except Exception:
                self._note_failure(address)
        self._pump()

    def _pump(self) -> None:
        """Hand on what the core tells, send what it has to send, and note its next timer."""
        if self._pumping:  # a callback that replied or asked: the loop below sees to it
            return
        self._pumping = True
        core = self._core
        try:
            while (event := core.next_event()) is not None:
                if type(event) is RequestReceived:  # by far the most frequent
                    self._handle_request(event)
                else:
                    self._handle_event(event)
            self._sockets.send_all(core.datagrams_to_send(self._clock()))
        finally:
            self._pumping = False
        timer = core.get_timer()
        if timer < self._sleep.deadline:
            self._sleep.deadline = timer

    def _handle_event(self, event: Event) -> None:
        match event:
            case RequestFinished():
                waiter = self._waiters.pop(event.request, None)
                if waiter is not None:
                    waiter.response = event.response
                    waiter.ended.set()
            case QueryReplied():
                if event.query in self._queries:
                    self._queries[event.query].put(event.reply)
            case QueryFinished():
                replies = self._queries.pop(event.query, None)
                if replies is not None:
                    replies.finish(event.query.state)
            case BootstrapDue():
                self._begin_bootstrap()
            case Bootstrapped():
                if self._core.bootstrap_failing:
                    logger.info("no bootstrap node answers yet; trying again until one does")
                self.bootstrapped.set()
            case PersistenceChanged() | NetworkChanged() | AddressChanged():
                logger.debug("%r", event)
                self.on_network_change()

    def _handle_request(self, event: RequestReceived) -> None:
        try:
            handled = self.on_request(IncomingRequest(self._core, event, self._pump))
        except Exception:
            self._note_failure(event.address)
            return
        if not handled:
            now = self._clock()
            self._core.reply(event, None, error=UNKNOWN_COMMAND, token=False, now=now)

    def _note_failure(self, address: Address) -> None:
        # Bytes that a stranger chose led here: they must not end the node.
        self._callback_failures += 1
        logger.exception("a datagram from %s:%d failed", *address)

    # -- bootstrap ---------------------------------------------------------------------------------

    def _begin_bootstrap(self) -> None:
        addresses, names = known_addresses(self._bootstrap_nodes)
        # Name services may be slow or absent: they are asked when there is no other way.
        if self._core.bootstrap_failing:
            names = list(self._bootstrap_nodes)
        if names and self._nursery is not None:
            self._resolving = trio.CancelScope()
            self._nursery.start_soon(self._resolve_and_bootstrap, addresses, names, self._resolving)
        else:
            self._core.bootstrap(addresses, self._clock())

    async def _resolve_and_bootstrap(
        self, addresses: list[Address], names: list[Address], scope: trio.CancelScope
    ) -> None:
        with scope:
            addresses = list(dict.fromkeys([*addresses, *await resolve(names)]))
            self._core.bootstrap(addresses, self._clock(), unresolved=not addresses)
            self._pump()

    # -- requests and queries ----------------------------------------------------------------------

    async def request(
        self,
        command: int,
        *,
        to: Address,
        target: bytes | None = None,
        value: bytes | None = None,
        token: bytes | None = None,
        retries: int = DEFAULT_RETRIES,
        timeout: float = DEFAULT_TIMEOUT,
        internal: bool = False,
        socket: int | None = None,
    ) -> Response:
        """Ask one node; `retries` tries follow the first, `timeout` seconds apart.

        An error that the node reports comes back in `Response.error`; `Response.id` is proven.

        Raises:
            RequestTimeout: no answer to any try.
            RequestDestroyed, RequestSuspended: the node was closed, or suspended.
            LocalProtocolError: a field does not fit, or 4096 requests are under way.
        """
        self._check_running()
        request = self._core.request(
            to,
            command,
            internal=internal,
            target=target,
            token=token,
            value=value,
            retries=retries,
            timeout=timeout,
            socket=socket,
        )
        waiter = self._waiters[request] = _Waiter()
        self._pump()
        try:
            await waiter.ended.wait()
        finally:
            if self._waiters.pop(request, None) is not None:
                self._core.cancel_request(request)
        if waiter.error is not None:
            raise waiter.error
        if waiter.response is None:
            raise RequestTimeout(f"no answer from {to[0]}:{to[1]} after {retries + 1} tries")
        return waiter.response

    async def ping(
        self, address: Address, *, socket: int | None = None, retries: int = DEFAULT_RETRIES
    ) -> Response:
        """Ask a node for a sign of life; its answer tells our address as it sees it (`to`).

        Raises:
            RequestTimeout: no answer.
            RequestDestroyed, RequestSuspended: the node was closed, or suspended.
        """
        return await self.request(PING, to=address, internal=True, socket=socket, retries=retries)

    async def delayed_ping(
        self,
        address: Address,
        delay: float,
        *,
        socket: int | None = None,
        retries: int = DEFAULT_RETRIES,
    ) -> Response:
        """Ask a node to answer `delay` seconds later, at most 10.

        Nothing else goes to it meanwhile: the answer shows that a NAT keeps a path open so long.

        Raises:
            LocalProtocolError: the delay is too long.
            RequestTimeout: no answer; each try lasts a second more than the delay.
            RequestDestroyed, RequestSuspended: the node was closed, or suspended.
        """
        if not 0 <= delay <= MAX_PING_DELAY:
            raise LocalProtocolError(f"a ping is delayed by 0 to {MAX_PING_DELAY:g} s, not {delay}")
        value = DELAY_MS.pack(round(delay * 1000))
        for tries_left in range(retries, -1, -1):
            try:
                return await self.request(
                    DELAYED_PING,
                    to=address,
                    internal=True,
                    value=value,
                    retries=0,  # a retry of the request itself would be early, see rpc/requests.py
                    timeout=delay + DEFAULT_TIMEOUT,
                    socket=socket,
                )
            except RequestTimeout:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    async def query(
        self,
        command: int,
        target: bytes,
        value: bytes | None = None,
        *,
        nodes: Iterable[Address] = (),
        internal: bool = False,
        retries: int = QUERY_RETRIES,
        concurrency: int = DEFAULT_CONCURRENCY,
        on_reply: Callable[[Reply], None] | None = None,
        commit: Callable[[Reply], Awaitable[object]] | None = None,
    ) -> QueryResult:
        """Send a command to nodes ever closer to `target`, until the closest have answered.

        `commit` is then called for all closest replies at once (typically to store something with
        the reply's token). `nodes` are nodes to start from, such as those of an earlier result.

        Raises:
            TooFewNodes: with `commit`, and not one call succeeded.
            RequestDestroyed, RequestSuspended: the node was closed, or suspended.
            LocalProtocolError: a field does not fit.
        """
        async with self.query_replies(
            command,
            target,
            value,
            nodes=nodes,
            internal=internal,
            retries=retries,
            concurrency=concurrency,
        ) as replies:
            async for reply in replies:
                if on_reply is not None:
                    on_reply(reply)
        assert replies.result is not None
        if commit is not None:
            await commit_to_all(commit, replies.result.closest_replies)
        return replies.result

    @asynccontextmanager
    async def query_replies(
        self,
        command: int,
        target: bytes,
        value: bytes | None = None,
        *,
        nodes: Iterable[Address] = (),
        internal: bool = False,
        retries: int = QUERY_RETRIES,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> AsyncIterator[QueryReplies]:
        """Like `query`, but gives the replies to iterate over while the query goes on.

        Leaving the block ends the query. Error replies are not among them.

        Raises:
            RequestDestroyed, RequestSuspended: the node is closed, or suspended; out of the
                iteration, if that happens meanwhile.
            LocalProtocolError: a field does not fit.
        """
        self._check_running()
        replies = QueryReplies()
        query = self._core.start_query(
            command,
            target,
            value=value,
            internal=internal,
            nodes=nodes,
            retries=retries,
            concurrency=concurrency,
            now=self._clock(),
        )
        self._queries[query] = replies
        self._pump()
        try:
            yield replies
        finally:
            if self._queries.pop(query, None) is not None:
                self._core.cancel_query(query)
            replies.close()
