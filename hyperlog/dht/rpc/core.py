"""A dht-rpc node without IO: answers others, asks others, and keeps its routing table alive.

Theory of operation.

Requests of others come in by `receive_datagram`. The internal commands are answered here; a user
command becomes a RequestReceived event, to be answered by `reply` or `relay`. Our own requests
(`request`) end in a RequestFinished event, queries (`start_query`) in a QueryFinished event. Every
node whose proven id shows up goes into the routing table; what it calls us is a NAT sample.

    start -> BootstrapDue -> bootstrap: query for our own id -> [firewall test] -> Bootstrapped
                  ^------------ nobody answered: 1, 2, 4 … 30 s later ------------'

A node begins *ephemeral* (it shows no id, others do not keep it) and *firewalled* (it asks from its
client socket). Both end one way only: the firewall test, or the owner's word, says that the server
socket can be reached. The id is then that of the outside address. An adaptive node lets 20 minutes
pass before it becomes persistent; after the machine has slept it starts over.

A tick of 5 s drives liveness: every 8th pings the nodes unheard of for longest, every 60th without
any query refreshes the table.

Spec: docs/protocol/dht-rpc.md sections 4, 5, 8, 9; dht-rpc index.js.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import K
from hyperlog.dht.errors import RemoteProtocolError
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
from hyperlog.dht.rpc.health import Health
from hyperlog.dht.rpc.messages import (
    DELAYED_PING,
    DOWN_HINT,
    FIND_NODE,
    INVALID_TOKEN,
    PING,
    PING_NAT,
    UNKNOWN_COMMAND,
    Request,
    Response,
    decode_untrusted,
    node_id,
    pack_address,
    unpack_address,
)
from hyperlog.dht.rpc.nat_sampler import NatSampler
from hyperlog.dht.rpc.query import DEFAULT_CONCURRENCY, Query
from hyperlog.dht.rpc.reachability import MAX_ASKED, FirewallTest
from hyperlog.dht.rpc.requests import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT,
    PendingRequest,
    RequestEvent,
    Requests,
    Responded,
    Slow,
)
from hyperlog.dht.rpc.table import Node, Table
from hyperlog.dht.rpc.tickets import Tickets

__all__ = ["CLIENT_SOCKET", "SERVER_SOCKET", "RPCCore"]

SERVER_SOCKET: Final = 0
CLIENT_SOCKET: Final = 1

TICK: Final = 5.0  # s; the limits below are ticks, dht-rpc index.js
SLEPT_AFTER: Final = 3 * TICK  # s between two ticks
STABLE_TICKS: Final = 240  # 20 min
MORE_STABLE_TICKS: Final = 3 * STABLE_TICKS
FORCED_RETRY_TICKS: Final = 60  # 5 min between attempts of a node that is told to be persistent
REFRESH_TICKS: Final = 60
RECENT_TICKS: Final = 12
OLD_TICKS: Final = 360
PING_EVERY: Final = 8
REFRESH_SMALL_EVERY: Final = 64

MAX_CHECKS: Final = 10  # pings at once because of DOWN_HINTs
MAX_REPINGS: Final = 3  # pings at once because of full rows
MAX_DOWN_HINTS: Final = 50  # sent in one tick
MAX_PING_DELAY: Final = 10.0  # s
MAX_DELAYED_PINGS: Final = 256
MAX_BOOTSTRAP_NODES: Final = 64
QUERY_RETRIES: Final = 5
BACKGROUND_CONCURRENCY: Final = 2
QUIET_BELOW: Final = 3  # requests in flight below which a background query may hurry
MIN_BOOTSTRAP_RETRY: Final = 1.0  # s
MAX_BOOTSTRAP_RETRY: Final = 30.0  # s

PORT: Final = struct.Struct("<H")
DELAY_MS: Final = struct.Struct("<I")

Continuation = Callable[[RequestEvent, float], None]
"""What the core does when one of its own requests ends."""


class RPCCore:
    """One node; `start` it once, then pass it datagrams and time.

    Sockets are named by small ints: 0 is the server socket, 1 the client socket, others are pool
    sockets that only requests with an explicit `socket` use.

    `server_port` is the local port of the server socket. `ephemeral` and `firewalled` state what
    the owner knows; None lets the node find out. `outside_address` is for a node that nobody else
    can tell its address, the first of a network: it is persistent from the start.
    """

    def __init__(
        self,
        *,
        random_bytes: Callable[[int], bytes],
        server_port: int,
        now: float,
        ephemeral: bool | None = None,
        firewalled: bool | None = None,
        quick_firewall: bool = True,
        nodes: Iterable[Address] = (),
        outside_address: Address | None = None,
    ) -> None:
        if outside_address is not None:
            ephemeral = False if ephemeral is None else ephemeral
            firewalled = False if firewalled is None else firewalled
        self.ephemeral = True
        self.firewalled = firewalled is not False
        self.bootstrapped = False
        self.bootstrap_attempts = 0
        self.bootstrap_nodes: tuple[Address, ...] = ()
        self.malformed = 0
        """datagrams dropped because they did not parse"""
        self.health = Health()
        self.table = Table(random_bytes(32))
        self.requests = Requests(random_bytes, now)
        self._random_bytes = random_bytes
        self._server_port = server_port
        self._adaptive = ephemeral is None
        self._force_persistent = ephemeral is False
        self._may_test_firewall = firewalled is None
        self._quick_firewall = quick_firewall
        self._tickets = Tickets(random_bytes, now)
        self._nat = NatSampler()
        self._sampled_strangers: set[Address] = set()
        self._queries: set[RunningQuery] = set()
        self._bootstrap_query: RunningQuery | None = None
        self._bootstrap_round = 0
        self._bootstrapping = False
        self._unresolved = False
        self._bootstrap_retry = MIN_BOOTSTRAP_RETRY
        self._bootstrap_at: float | None = None
        self._quick_test_pending = False
        self._quick_test_passed = False
        self._firewall_test: FirewallTest | None = None
        self._checks = 0
        self._repings = 0
        self._down_hints_sent = 0
        self._tick = 100 - self._random_below(50)  # nodes that start together tick apart
        self._tick_at = now + TICK
        self._last_tick_at = now
        self._refresh_ticks = REFRESH_TICKS - self._random_below(30)
        self._stable_ticks = STABLE_TICKS if self._adaptive else FORCED_RETRY_TICKS
        self._delayed: list[tuple[float, int, RequestReceived]] = []
        self._delayed_count = 0
        self._outbox: list[tuple[int, Address, bytes]] = []
        self._events: deque[Event] = deque()
        for address in nodes:
            self._add_node(Node(address))
        if outside_address is not None:
            self._nat.add(*outside_address)

    # -- what the owner may ask ---------------------------------------------------------------

    @property
    def id(self) -> bytes | None:
        """Our node id, or None while ephemeral."""
        return None if self.ephemeral else self.table.id

    @property
    def socket(self) -> int:
        """The socket that requests leave from."""
        return CLIENT_SOCKET if self.firewalled else SERVER_SOCKET

    @property
    def nat_address(self) -> tuple[str | None, int]:
        """Host and port as others see them: (None, 0) unknown, (host, 0) one port for each peer."""
        return self._nat.host, self._nat.port

    @property
    def bootstrap_failing(self) -> bool:
        """Whether nobody answered the latest search for nodes, so that another one is due."""
        return self._bootstrap_retry > MIN_BOOTSTRAP_RETRY

    def remote_address(self) -> Address | None:
        """The address at which anybody can reach our server socket, if there is one."""
        host, port = self.nat_address
        if host is None or self.firewalled or port == 0 or port != self._server_port:
            return None
        return host, port

    def closest(self, target: bytes, count: int = K) -> list[Address]:
        """Addresses of the nodes in our table nearest to `target`, nearest first."""
        return [node.address for node in self.table.closest(target, count)]

    # -- the common face ----------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin: a BootstrapDue event follows."""
        self._tick_at = now + TICK
        self._last_tick_at = now
        self._bootstrapping = True
        self._events.append(BootstrapDue())

    def receive_datagram(self, data: bytes, address: Address, socket: int, now: float) -> None:
        """Take one datagram from the network; whatever is not dht-rpc is counted and dropped."""
        if not address[1]:
            self.malformed += 1
            return
        try:
            message = decode_untrusted(data)
        except RemoteProtocolError:
            self.malformed += 1
            return
        if message.id is not None and message.id != node_id(address):
            message.id = None
        if type(message) is Request:
            self._receive_request(message, address, socket, now)
        elif type(message) is Response:
            request = self.requests.receive_response(message, address, socket, now)
            if request is not None:
                self._note_response(message, address, socket)
                self._handle_request_events(now)

    def datagrams_to_send(self, now: float) -> list[tuple[int, Address, bytes]]:
        """What is to leave now, as (socket, address, data); call it after everything else."""
        datagrams, self._outbox = self._outbox, []
        datagrams += self.requests.datagrams_to_send(now)
        return datagrams

    def get_timer(self) -> float:
        """When handle_timer wants to be called next; never None, since ticks go on for ever."""
        timer = self._tick_at
        requests = self.requests.get_timer()
        if requests is not None and requests < timer:
            timer = requests
        if self._delayed and self._delayed[0][0] < timer:
            timer = self._delayed[0][0]
        if self._bootstrap_at is not None and self._bootstrap_at < timer:
            timer = self._bootstrap_at
        return timer

    def handle_timer(self, now: float) -> None:
        self.requests.handle_timer(now)
        self._handle_request_events(now)
        while self._delayed and self._delayed[0][0] <= now:
            self._pong(heappop(self._delayed)[2], now)
        if self._bootstrap_at is not None and self._bootstrap_at <= now:
            self._bootstrap_at = None
            self._begin_bootstrap()
        if self._tick_at <= now:
            self._on_tick(now)

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # -- requests of others -------------------------------------------------------------------

    def _receive_request(self, request: Request, address: Address, socket: int, now: float) -> None:
        event = RequestReceived(request, address, socket)
        if request.token is not None and not self._tickets.accepts(request.token, address[0], now):
            self.reply(event, None, error=INVALID_TOKEN, now=now)
            return
        if request.id is not None:
            self._note_node(address, request.id, request.to, socket)
        if not request.internal:
            self._events.append(event)
        elif request.command == PING:
            self._pong(event, now)
        elif request.command == FIND_NODE:
            if request.target is not None:
                self.reply(event, None, token=False, now=now)
        elif request.command == PING_NAT:
            self._receive_ping_nat(event, now)
        elif request.command == DOWN_HINT:
            self._receive_down_hint(event, now)
        elif request.command == DELAYED_PING:
            self._receive_delayed_ping(event, now)
        else:
            self.reply(event, None, error=UNKNOWN_COMMAND, token=False, now=now)

    def _pong(self, event: RequestReceived, now: float) -> None:
        self.reply(event, None, token=False, closer_nodes=False, now=now)

    def _receive_ping_nat(self, event: RequestReceived, now: float) -> None:
        value = event.request.value
        if value is None or len(value) < PORT.size:
            return
        (port,) = PORT.unpack_from(value)
        if port:
            to = event.address[0], port
            self.reply(event, None, token=False, closer_nodes=False, to=to, now=now)

    def _receive_down_hint(self, event: RequestReceived, now: float) -> None:
        value = event.request.value
        if value is None or len(value) < 6:
            return
        node = self.table.get(node_id(unpack_address(value[:6])))
        if (
            node is not None
            and self._checks < MAX_CHECKS
            and (node.pinged < self._tick or not node.down_hints)
        ):
            node.down_hints += 1
            self._check(node)
        self._pong(event, now)

    def _receive_delayed_ping(self, event: RequestReceived, now: float) -> None:
        value = event.request.value
        if value is None or len(value) < DELAY_MS.size:
            return
        delay = DELAY_MS.unpack_from(value)[0] / 1000
        if delay <= MAX_PING_DELAY and len(self._delayed) < MAX_DELAYED_PINGS:
            self._delayed_count += 1
            heappush(self._delayed, (now + delay, self._delayed_count, event))

    def reply(
        self,
        event: RequestReceived,
        value: bytes | None,
        *,
        error: int = 0,
        token: bool = True,
        closer_nodes: bool = True,
        to: Address | None = None,
        socket: int | None = None,
        now: float,
    ) -> None:
        """Answer a request, by default to where it came from and from the socket it came in on.

        `token` adds a ticket for the requester's host, `closer_nodes` the nodes nearest to the
        request's target if it has one.

        Raises:
            LocalProtocolError: a field does not fit.
        """
        request = event.request
        to = event.address if to is None else to
        socket = event.socket if socket is None else socket
        response = Response(
            request.tid,
            to,
            id=self._id_on(socket),
            token=self._tickets.issue(to[0], now) if token else None,
            closer_nodes=self.closest(request.target)
            if closer_nodes and request.target is not None
            else [],
            error=error,
            value=value,
        )
        self._outbox.append((socket, to, response.encode()))

    def relay(
        self,
        event: RequestReceived,
        value: bytes | None,
        to: Address,
        *,
        socket: int | None = None,
    ) -> None:
        """Pass a request on to `to` with another value; it stays a request and keeps its tid.

        Spec: docs/protocol/hyperdht.md section 7.

        Raises:
            LocalProtocolError: a field does not fit.
        """
        request = event.request
        socket = event.socket if socket is None else socket
        message = Request(
            request.tid,
            to,
            request.command,
            request.internal,
            id=self._id_on(socket),
            target=request.target,
            value=value,
        )
        self._outbox.append((socket, to, message.encode()))

    def _id_on(self, socket: int) -> bytes | None:
        # Only the server socket has the address that belongs to the id.
        return self.table.id if socket == SERVER_SOCKET and not self.ephemeral else None

    # -- our requests -------------------------------------------------------------------------

    def request(
        self,
        address: Address,
        command: int,
        *,
        internal: bool = False,
        target: bytes | None = None,
        token: bytes | None = None,
        value: bytes | None = None,
        retries: int = DEFAULT_RETRIES,
        timeout: float = DEFAULT_TIMEOUT,
        socket: int | None = None,
    ) -> PendingRequest:
        """Send a request; a RequestFinished event with this very object follows.

        Raises:
            LocalProtocolError: too many requests are under way, or a field does not fit.
        """
        return self._send_request(
            address,
            command,
            None,
            internal=internal,
            target=target,
            token=token,
            value=value,
            retries=retries,
            timeout=timeout,
            socket=socket,
        )

    def cancel_request(self, request: PendingRequest) -> None:
        """Give a request up; no event follows."""
        self.requests.cancel(request)

    def _send_request(
        self,
        address: Address,
        command: int,
        context: Continuation | RunningQuery | None,
        *,
        internal: bool = True,
        target: bytes | None = None,
        token: bytes | None = None,
        value: bytes | None = None,
        retries: int = DEFAULT_RETRIES,
        timeout: float = DEFAULT_TIMEOUT,
        socket: int | None = None,
    ) -> PendingRequest:
        socket = self.socket if socket is None else socket
        return self.requests.start(
            address,
            socket,
            command,
            internal=internal,
            id=self._id_on(socket),
            target=target,
            token=token,
            value=value,
            retries=retries,
            timeout=timeout,
            context=context,
        )

    def _handle_request_events(self, now: float) -> None:
        while (event := self.requests.next_event()) is not None:
            context = event.request.context
            if isinstance(context, RunningQuery):
                self._handle_query_event(context, event, now)
            elif isinstance(event, Slow):
                continue
            elif context is not None:
                context(event, now)  # type: ignore[operator]
            elif isinstance(event, Responded):
                self._events.append(RequestFinished(event.request, event.response, event.rtt))
            else:
                self._events.append(RequestFinished(event.request, None, 0.0))

    # -- queries ------------------------------------------------------------------------------

    def start_query(
        self,
        command: int,
        target: bytes,
        *,
        value: bytes | None = None,
        internal: bool = False,
        nodes: Iterable[Address] = (),
        retries: int = QUERY_RETRIES,
        concurrency: int = DEFAULT_CONCURRENCY,
        now: float,
    ) -> RunningQuery:
        """Ask ever closer nodes; QueryReplied events and one QueryFinished event follow."""
        query = self._make_query(target, command, internal, value, nodes, retries, concurrency)
        self._advance_query(query, now)
        return query

    def cancel_query(self, query: RunningQuery) -> None:
        """Give a query up; no event follows. Nothing happens when it has finished."""
        if query not in self._queries:
            return
        self._queries.remove(query)
        for request in query.pending.values():
            self.requests.cancel(request)
        query.pending.clear()

    def _make_query(
        self,
        target: bytes,
        command: int,
        internal: bool,
        value: bytes | None,
        nodes: Iterable[Address],
        retries: int,
        concurrency: int,
        background: bool = False,
    ) -> RunningQuery:
        self._refresh_ticks = REFRESH_TICKS
        state = Query(
            target,
            self.table.id,
            from_table=lambda count: self._starting_nodes(target, count),
            nodes=nodes,
            concurrency=concurrency,
        )
        query = RunningQuery(state, command, internal, value, retries, {}, background)
        self._queries.add(query)
        return query

    def _starting_nodes(self, target: bytes, count: int) -> list[Address]:
        nodes = self.closest(target, count)
        return nodes if len(nodes) >= count else [*nodes, *self.bootstrap_nodes]

    def _start_background_query(self, target: bytes, now: float) -> RunningQuery:
        query = self._make_query(
            target, FIND_NODE, True, None, (), QUERY_RETRIES, BACKGROUND_CONCURRENCY, True
        )
        self._advance_query(query, now)
        return query

    def _handle_query_event(self, query: RunningQuery, event: RequestEvent, now: float) -> None:
        address = event.request.address
        state = query.state
        if isinstance(event, Slow):
            state.mark_slow(address)
        else:
            query.pending.pop(address, None)
            if isinstance(event, Responded):
                reply = state.receive_reply(address, event.response, event.rtt)
                if query.background:
                    quiet = len(self.requests) < QUIET_BELOW
                    state.concurrency = DEFAULT_CONCURRENCY if quiet else BACKGROUND_CONCURRENCY
                elif reply is not None:
                    self._events.append(QueryReplied(query, reply))
                if query is self._bootstrap_query and self._quick_test_pending:
                    self._start_quick_test(address)
            else:
                state.receive_timeout(address)
                node = self.table.get(node_id(address))
                if node is not None:
                    self.table.remove(node)
        self._advance_query(query, now)

    def _advance_query(self, query: RunningQuery, now: float) -> None:
        state = query.state
        while addresses := state.next_requests():
            for address in addresses:
                if self.requests.is_full:
                    state.skip(address)
                    continue
                query.pending[address] = self._send_request(
                    address,
                    query.command,
                    query,
                    internal=query.internal,
                    target=state.target,
                    value=query.value,
                    retries=query.retries,
                )
        for referrer, down in state.take_hints():
            if self._down_hints_sent >= MAX_DOWN_HINTS or self.requests.is_full:
                break
            self._down_hints_sent += 1
            self._send_request(referrer, DOWN_HINT, _ignore, value=pack_address(down))
        if state.finished and query in self._queries:
            # Requests to slow nodes go on, so that dead ones leave the tables, ours and others'.
            # Compat: dht-rpc 6.27.0 lib/query.js gives them up.
            self._queries.discard(query)
            if not query.background:
                self._events.append(QueryFinished(query))
            elif query is self._bootstrap_query:
                self._bootstrap_query = None
                self._on_bootstrap_query_end(query, now)

    # -- bootstrap ----------------------------------------------------------------------------

    def bootstrap(
        self, addresses: Sequence[Address], now: float, *, unresolved: bool = False
    ) -> None:
        """Look for nodes, starting from `addresses`; the answer to a BootstrapDue event.

        `unresolved` says that there would be more nodes if only their names could be resolved.
        """
        self._unresolved = unresolved
        self.bootstrap_nodes = tuple(addresses[:MAX_BOOTSTRAP_NODES])
        self.bootstrap_attempts += 1
        self._bootstrap_round = 0
        self._quick_test_passed = False
        self._quick_test_pending = (
            self._may_test_firewall
            and self.firewalled
            and self._quick_firewall
            and not self._force_persistent
        )
        self._run_bootstrap_query(now)

    def _begin_bootstrap(self) -> None:
        if not self._bootstrapping:
            self._bootstrapping = True
            self._events.append(BootstrapDue())

    def _run_bootstrap_query(self, now: float) -> None:
        query = self._make_query(
            self.table.id, FIND_NODE, True, None, (), QUERY_RETRIES, BACKGROUND_CONCURRENCY, True
        )
        self._bootstrap_query = query  # before it can finish: without nodes it does so at once
        self._advance_query(query, now)

    def _start_quick_test(self, address: Address) -> None:
        """Ask the first node that answers to reach our server socket: cheap, and often enough."""
        self._quick_test_pending = False

        def on_end(event: RequestEvent, now: float) -> None:
            if not isinstance(event, Responded) or event.socket != SERVER_SOCKET:
                return
            if self._bootstrapping:
                self._quick_test_passed = True
            else:  # the JavaScript node forgets an answer that comes after its bootstrap query
                self._update_network_state(now, only_firewall=True)

        if not self.requests.is_full:
            value = PORT.pack(self._server_port)
            self._send_request(address, PING_NAT, on_end, value=value)

    def _on_bootstrap_query_end(self, query: RunningQuery, now: float) -> None:
        if not query.state.successes and (query.state.errors or self._unresolved):
            self._bootstrap_at = now + self._bootstrap_retry
            self._bootstrap_retry = min(2 * self._bootstrap_retry, MAX_BOOTSTRAP_RETRY)
            self._end_bootstrap()
            return
        self._bootstrap_retry = MIN_BOOTSTRAP_RETRY
        self._bootstrap_round += 1
        if self._bootstrap_round == 1 and (self._force_persistent or self._quick_test_passed):
            only_firewall = not self._force_persistent
            self._update_network_state(
                now, only_firewall=only_firewall, then=self._on_bootstrap_test_end
            )
        else:
            self._end_bootstrap()

    def _on_bootstrap_test_end(self, moved: bool, now: float) -> None:
        if moved and (len(self.table) or self.bootstrap_nodes):
            self._run_bootstrap_query(now)  # once more, for the id that we have now
        else:
            self._end_bootstrap()

    def _end_bootstrap(self) -> None:
        self._bootstrapping = False
        if not self.bootstrapped:
            self.bootstrapped = True
            self._events.append(Bootstrapped())

    # -- firewalled or open, ephemeral or persistent ------------------------------------------

    def _update_network_state(
        self,
        now: float,
        *,
        only_firewall: bool = False,
        then: Callable[[bool, float], None] = lambda moved, now: None,
    ) -> None:
        """Find out whether we are open, and become persistent unless `only_firewall`."""
        if not only_firewall:
            self._stable_ticks = MORE_STABLE_TICKS if self._adaptive else FORCED_RETRY_TICKS
        host, port = self._nat.host, self._nat.port
        if (
            not self.ephemeral
            or (only_firewall and not self.firewalled)
            or host is None
            or port == 0
            or self._firewall_test is not None
        ):
            then(False, now)
            return
        if not self.firewalled:
            then(self._become_open(self._nat, only_firewall, now), now)
            return

        def on_verdict(test: FirewallTest, now: float) -> None:
            unchanged = self.ephemeral and (host, port) == (self._nat.host, self._nat.port)
            if not test.open:
                then(False, now)
                return
            self.firewalled = False
            then(unchanged and self._become_open(test.sampler, only_firewall, now), now)

        self._start_firewall_test(host, on_verdict, now)

    def _start_firewall_test(
        self, host: str, on_verdict: Callable[[FirewallTest, float], None], now: float
    ) -> None:
        nodes = [node.address for node in islice(self.table.latest(), MAX_ASKED)]
        if len(nodes) < MAX_ASKED:
            nodes += [address for address in self.bootstrap_nodes if address not in nodes]
        if not self._may_test_firewall or self.requests.is_full:
            nodes = []
        test = FirewallTest(len(nodes), host, self._server_port)
        self._firewall_test = test

        def on_end(event: RequestEvent, now: float) -> None:
            if isinstance(event, Responded):
                test.receive_answer(event.response.to, event.socket == SERVER_SOCKET)
            else:
                test.receive_timeout()
            finish_when_done(now)

        def finish_when_done(now: float) -> None:
            if test.finished:
                self._firewall_test = None
                on_verdict(test, now)

        value = PORT.pack(self._server_port)
        for address in nodes:
            self._send_request(address, PING_NAT, on_end, value=value)
        finish_when_done(now)

    def _become_open(self, sampler: NatSampler, only_firewall: bool, now: float) -> bool:
        """Take the id that belongs to the address found; True when we did."""
        host, port = sampler.host, sampler.port
        if host is None or port == 0:
            return False
        if sampler is not self._nat:
            before = self.nat_address
            self._nat = sampler
            self._sampled_strangers.clear()
            self._tell_address_change(before)
        id = node_id((host, port))
        if self.table.id != id:
            self.table = self.table.moved_to(id)
            if self.bootstrapped and not self._bootstrapping:
                self._refresh(now)
        if not only_firewall:
            self.ephemeral = False
            self._events.append(PersistenceChanged(ephemeral=False))
        return True

    # -- the routing table --------------------------------------------------------------------

    def _note_response(self, response: Response, address: Address, socket: int) -> None:
        if response.id is not None:
            self._note_node(address, response.id, response.to, socket)
        elif address not in self._sampled_strangers and len(self._sampled_strangers) < max(
            1, len(self.bootstrap_nodes)
        ):
            # Nodes without an id (bootstrap nodes, mostly) are free to invent: few may speak.
            self._sampled_strangers.add(address)
            self._add_sample(response.to)

    def _note_node(self, address: Address, id: bytes, to: Address, socket: int) -> None:
        # Only what comes in on the socket we ask from shows the address that others see.
        to_sample = to if socket == self.socket else None
        node = self.table.get(id)
        if node is None:
            self._add_node(Node(address), to_sample)
            return
        tick = self._tick
        if to_sample is not None and (not node.sampled or tick - node.sampled >= OLD_TICKS):
            node.sampled = tick
            self._add_sample(to_sample)
        node.pinged = tick
        self.table.touch(node)

    def _add_node(self, node: Node, to_sample: Address | None = None) -> None:
        node.added = node.pinged = self._tick
        if self.table.add(node):
            if to_sample is not None:
                node.sampled = self._tick
                self._add_sample(to_sample)
        elif node.id != self.table.id:
            self._on_full_row(node)

    def _add_sample(self, to: Address) -> None:
        before = self.nat_address
        self._nat.add(*to)
        self._tell_address_change(before)

    def _tell_address_change(self, before: tuple[str | None, int]) -> None:
        if self.nat_address != before:
            self._events.append(AddressChanged(*self.nat_address))

    def _on_full_row(self, new: Node) -> None:
        """Ping the row's stalest node; the new one takes its place if there is no answer."""
        if not self.bootstrapped or self._repings >= MAX_REPINGS or self.requests.is_full:
            return
        tick = self._tick
        candidates = [node for node in self.table.row(new.id) if node.pinged != tick]
        if not candidates:
            return
        oldest = min(candidates, key=lambda node: (node.pinged, node.added))
        # A node heard of a minute ago that has been here for half an hour keeps its place.
        if tick - oldest.pinged < RECENT_TICKS and tick - oldest.added > OLD_TICKS:
            return
        oldest.pinged = tick
        self._repings += 1

        def on_end(event: RequestEvent, now: float) -> None:
            self._repings -= 1
            if not _is_alive(event) and self.table.remove(oldest):
                self._add_node(new)

        self._send_request(oldest.address, PING, on_end)

    def _check(self, node: Node) -> None:
        """Ping a node and forget it when it does not answer, or without its id."""
        if self.requests.is_full:
            return
        node.pinged = self._tick
        self._checks += 1

        def on_end(event: RequestEvent, now: float) -> None:
            self._checks -= 1
            if not _is_alive(event):
                self.table.remove(node)

        self._send_request(node.address, PING, on_end)

    def _ping_some(self) -> None:
        count = 3 if len(self.requests) > 2 else 5
        stalest = list(islice(self.table, count))
        if not stalest:
            if self._bootstrap_at is None:
                self._begin_bootstrap()
            return
        if self._tick - stalest[0].pinged < RECENT_TICKS:
            del stalest[2:]
        for node in stalest:
            if node.pinged != self._tick:
                self._check(node)

    def _refresh(self, now: float) -> None:
        nodes = len(self.table)
        if nodes:
            chosen = self._random_below(nodes)
            target = next(node.id for i, node in enumerate(self.table) if i == chosen)
        else:
            target = self.table.id
        self._start_background_query(target, now)

    def _random_below(self, limit: int) -> int:
        return int.from_bytes(self._random_bytes(4), "big") % limit

    # -- ticks --------------------------------------------------------------------------------

    def _on_tick(self, now: float) -> None:
        slept = now - self._last_tick_at > SLEPT_AFTER
        self._last_tick_at = now
        self._tick_at = now + TICK
        self._tick += 1
        if slept:
            self.wake_up()
        self._down_hints_sent = 0
        if not self.bootstrapped:
            return
        if self.ephemeral and (self._adaptive or self._force_persistent):
            self._stable_ticks -= 1
            if self._stable_ticks <= 0:
                self._update_network_state(now)
        if self._tick % PING_EVERY == 0:
            self._ping_some()
        self._refresh_ticks -= 1
        small = self._tick % REFRESH_SMALL_EVERY == 0 and len(self.table) < self.table.k
        if small or self._refresh_ticks <= 0:
            self._refresh(now)
        if self.health.update(self.requests.responses, self.requests.timeouts):
            self._events.append(NetworkChanged(self.health.online, self.health.degraded))

    def wake_up(self) -> None:
        """The machine slept or changed networks: nothing known is sure any more.

        A late tick calls this by itself; owners whose clock stops during sleep call it.
        """
        self._tick += 2 * OLD_TICKS
        self._tick += PING_EVERY - self._tick % PING_EVERY - 2  # pings follow in two ticks
        self._refresh_ticks = 1
        self._stable_ticks = MORE_STABLE_TICKS if self._adaptive else FORCED_RETRY_TICKS
        was_well = self.health.online and not self.health.degraded
        self.health = Health()
        if not was_well:
            self._events.append(NetworkChanged(online=True, degraded=False))
        if self._adaptive and not self.ephemeral:
            self.ephemeral = True
            self._events.append(PersistenceChanged(ephemeral=True))


def _is_alive(event: RequestEvent) -> bool:
    return isinstance(event, Responded) and event.response.id is not None


def _ignore(event: RequestEvent, now: float) -> None:
    """The end of a request whose outcome does not matter."""
