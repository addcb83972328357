"""A dht-rpc node without IO: answers others, asks others, and keeps its routing table alive.

Theory of operation. Requests of others come in by `receive_datagram`. The internal commands are
answered by Responder, and so are the user commands that `answer_at_once` names, where that can be
done. Any other becomes a RequestReceived event, to be answered by `reply` or `relay`. Our own
requests (`request`) end in a RequestFinished event, queries (`start_query`) in a QueryFinished
event. Every node whose proven id shows up goes into the table of Neighbours; what it calls us is a
NAT sample for Identity.

A node begins *ephemeral* (it shows no id, others do not keep it) and *firewalled* (it asks from its
client socket). Both end one way only: Reachability, or the owner's word, says that the server
socket can be reached. The id is then that of the outside address. An adaptive node lets 20 minutes
pass before it becomes persistent; after the machine has slept it starts over. When others see us
at another address than before (Witnesses), all of that is given up and found out again.

`suspend` gives up whatever is under way and leaves no timer; `resume` begins as after a sleep.

A tick of 5 s drives liveness: every 8th pings the nodes unheard of for longest, every 60th without
any query refreshes the table.

Spec: docs/protocol/dht-rpc.md sections 4, 5, 8, 9; dht-rpc index.js.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import K
from hyperlog.dht.errors import RemoteProtocolError
from hyperlog.dht.rpc.bootstrap import Bootstrap
from hyperlog.dht.rpc.events import (
    Event,
    NetworkChanged,
    RequestFinished,
    RequestReceived,
    RunningQuery,
)
from hyperlog.dht.rpc.health import Health
from hyperlog.dht.rpc.identity import CLIENT_SOCKET, SERVER_SOCKET, Identity
from hyperlog.dht.rpc.messages import (
    Request,
    Response,
    decode_untrusted,
    node_id,
)
from hyperlog.dht.rpc.neighbours import PING_EVERY, Neighbours
from hyperlog.dht.rpc.queries import QUERY_RETRIES, Queries
from hyperlog.dht.rpc.query import DEFAULT_CONCURRENCY
from hyperlog.dht.rpc.reachability import Reachability
from hyperlog.dht.rpc.requests import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT,
    PendingRequest,
    Requests,
    Responded,
    Slow,
)
from hyperlog.dht.rpc.responder import Read, Responder
from hyperlog.dht.rpc.table import Node, Table
from hyperlog.dht.rpc.tally import Tallies
from hyperlog.dht.rpc.tickets import Tickets
from hyperlog.dht.rpc.witnesses import Witnesses

__all__ = ["CLIENT_SOCKET", "QUERY_RETRIES", "SERVER_SOCKET", "RPCCore"]

TICK: Final = 5.0  # s; the limits below are ticks, dht-rpc index.js
SLEPT_AFTER: Final = 3 * TICK  # s between two ticks
REFRESH_TICKS: Final = 60
REFRESH_SMALL_EVERY: Final = 64


class RPCCore:
    """One node; `start` it once, then pass it datagrams and time.

    Sockets are named by small ints: 0 is the server socket, 1 the client socket, others are pool
    sockets that only requests with an explicit `socket` use.

    `server_port` is the local port of the server socket. `ephemeral` and `firewalled` state what
    the owner knows; None lets the node find out, with `quick_firewall` at the start already.
    `outside_address` is for a node that nobody else can tell its address, the first of a network:
    it is open and persistent unless the owner says otherwise. `nodes` are known from earlier.
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
        # Nodes that start together must not tick together.
        offset = int.from_bytes(random_bytes(2), "big")
        self.malformed = 0
        """datagrams dropped because they did not parse"""
        self.health = Health()
        self._events: deque[Event] = deque()
        self._tick_at = now + TICK
        self._last_tick_at = now
        self.identity = Identity(
            random_bytes(32),
            server_port,
            firewalled=firewalled is not False,
            events=self._events,
        )
        self.requests = Requests(self.identity, random_bytes, now)
        self._neighbours = Neighbours(
            self.identity, self.requests, random_bytes, tick=50 + offset % 50
        )
        self._responder = Responder(self.identity, self._neighbours, Tickets(random_bytes, now))
        self._queries = Queries(self._neighbours, self.requests, self._events)
        self._queries.idle_ticks = offset % (REFRESH_TICKS // 2)
        self._reachability = Reachability(
            self.identity,
            self._neighbours,
            self.requests,
            firewalled=firewalled,
            ephemeral=ephemeral,
        )
        self._bootstrap = Bootstrap(
            self.identity,
            self._neighbours,
            self._queries,
            self._reachability,
            self._events,
            quick_firewall=quick_firewall,
        )
        for address in nodes:
            self._neighbours.add(Node(address))
        self._suspended = False
        self._witnesses: Witnesses | None = None
        if outside_address is not None:
            self.identity.nat.add(*outside_address)
        else:
            self._witnesses = Witnesses()

    # -- what the owner may ask --------------------------------------------------------------------

    @property
    def id(self) -> bytes | None:
        """Our node id, or None while ephemeral."""
        return None if self.identity.ephemeral else self.identity.own_id

    @property
    def tallies(self) -> Tallies:
        """What became of the requests of others, by command."""
        return self._responder.tallies

    @property
    def table(self) -> Table:
        """The nodes that we know."""
        return self._neighbours.table

    @property
    def bootstrapped(self) -> bool:
        """Whether the first attempt to find nodes is over, successful or not."""
        return self._bootstrap.done

    @property
    def bootstrap_attempts(self) -> int:
        return self._bootstrap.attempts

    @property
    def bootstrap_failing(self) -> bool:
        """Whether nobody answered the latest search for nodes, so that another one is due."""
        return self._bootstrap.failing

    @property
    def online(self) -> bool:
        """Whether the network answers: some of it, or the last time that it was asked."""
        return self.health.online and (len(self.table) > 0 or not self._bootstrap.failing)

    def closest(self, target: bytes, count: int = K) -> list[Address]:
        """Addresses of the nodes in our table nearest to `target`, nearest first."""
        return self._neighbours.closest(target, count)

    def to_start_from(self, target: bytes, count: int) -> list[Address]:
        """Addresses for a search for `target`; the bootstrap nodes too when we know few others."""
        return self._neighbours.to_start_from(target, count)

    def answer_at_once(self, reads: Mapping[int, Read]) -> None:
        """While we show an id, answer these user commands of nodes without one by `reads`.

        They become no event then. Others that carry the same commands do, as before.
        """
        self._responder.reads = reads

    def remember(self, addresses: Iterable[Address]) -> None:
        """Nodes known from earlier, at most 64; the bootstrap nodes have company in them."""
        self._neighbours.remember(addresses)

    # -- the common face ---------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin: a BootstrapDue event follows."""
        self._tick_at = now + TICK
        self._last_tick_at = now
        self._bootstrap.begin()

    def bootstrap(
        self, addresses: Sequence[Address], now: float, *, unresolved: bool = False
    ) -> None:
        """Look for nodes, starting from `addresses`; the answer to a BootstrapDue event.

        `unresolved` says that there would be more nodes if only their names could be resolved.
        """
        if not self._suspended:
            self._bootstrap.run(addresses, now, unresolved=unresolved)

    def receive_datagram(self, data: bytes, address: Address, socket: int, now: float) -> None:
        """Take one datagram from the network; whatever is not dht-rpc is counted and dropped."""
        if self._suspended:
            return
        if not address[1]:
            self.malformed += 1
            return
        if self._responder.answer_bare(data, address, socket, now):
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
                self._note_response(message, address, socket, now)
                self._handle_request_events(now)

    def datagrams_to_send(self, now: float) -> list[tuple[int, Address, bytes]]:
        """What is to leave now, as (socket, address, data); call it after everything else."""
        datagrams = self._responder.datagrams_to_send()
        datagrams += self.requests.datagrams_to_send(now)
        return datagrams

    def get_timer(self) -> float:
        """When handle_timer wants to be called next; infinite while suspended."""
        if self._suspended:
            return math.inf
        timer = self._tick_at
        for part in (self.requests, self._responder, self._bootstrap):
            at = part.get_timer()
            if at is not None and at < timer:
                timer = at
        return timer

    def handle_timer(self, now: float) -> None:
        if self._suspended:
            return
        self.requests.handle_timer(now)
        self._handle_request_events(now)
        self._responder.handle_timer(now)
        self._bootstrap.handle_timer(now)
        if self._tick_at <= now:
            self._on_tick(now)

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # -- requests of others ------------------------------------------------------------------------

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
        self._responder.reply(
            event,
            value,
            error=error,
            token=token,
            closer_nodes=closer_nodes,
            to=to,
            socket=socket,
            now=now,
        )

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
        self._responder.relay(event, value, to, socket=socket)

    def _receive_request(self, request: Request, address: Address, socket: int, now: float) -> None:
        responder = self._responder
        tally = responder.tallies.of(request.command, request.internal)
        tally.received += 1
        event = RequestReceived(request, address, socket, now, tally)
        if request.token is not None and responder.refuse_wrong_ticket(event, now):
            return
        if request.id is not None:
            self._neighbours.note(address, request.id, request.to, socket)
        if request.internal:
            responder.answer(event, now)
        else:
            self._events.append(event)

    # -- our requests and queries ------------------------------------------------------------------

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
        return self.requests.start(
            address,
            command,
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
        """Ask ever closer nodes; QueryReplied events and one QueryFinished event follow.

        Raises:
            LocalProtocolError: a field does not fit.
        """
        return self._queries.start(
            command,
            target,
            value=value,
            internal=internal,
            nodes=nodes,
            retries=retries,
            concurrency=concurrency,
            now=now,
        )

    def cancel_query(self, query: RunningQuery) -> None:
        """Give a query up; no event follows. Nothing happens when it has finished."""
        self._queries.cancel(query)

    def _note_response(self, response: Response, address: Address, socket: int, now: float) -> None:
        home = self.identity.home
        if (
            self._witnesses is not None
            and home is not None
            and socket == self.identity.socket
            and self._witnesses.hear(address, response.to, home, now)
        ):
            self._on_move(now)
        if response.id is not None:
            self._neighbours.note(address, response.id, response.to, socket)
        elif socket == self.identity.socket:
            limit = max(1, len(self._neighbours.bootstrap_nodes))
            self.identity.add_sample_of_stranger(address, response.to, limit)

    def _handle_request_events(self, now: float) -> None:
        while (event := self.requests.next_event()) is not None:
            context = event.request.context
            if isinstance(context, RunningQuery):
                self._queries.handle_event(context, event, now)
            elif isinstance(event, Slow):
                continue
            elif context is not None:
                context(event, now)
            elif isinstance(event, Responded):
                self._events.append(RequestFinished(event.request, event.response, event.rtt))
            else:
                self._events.append(RequestFinished(event.request, None, 0.0))

    # -- ticks -------------------------------------------------------------------------------------

    def _on_tick(self, now: float) -> None:
        slept = now - self._last_tick_at > SLEPT_AFTER
        self._last_tick_at = now
        self._tick_at = now + TICK
        self._neighbours.tick += 1
        if slept:
            self.wake_up()
        self._queries.down_hints_sent = 0
        if not self.bootstrapped:
            return
        self._reachability.on_tick(now, self._on_retest_end)
        tick = self._neighbours.tick
        if tick % PING_EVERY == 0:
            if len(self.table):
                self._neighbours.ping_stalest()
            else:
                self._bootstrap.begin_soon()
        self._queries.idle_ticks += 1
        is_small = tick % REFRESH_SMALL_EVERY == 0 and len(self.table) < self.table.k
        if is_small or self._queries.idle_ticks >= REFRESH_TICKS:
            self._queries.start_background(self._neighbours.random_id(), now)
        if self.health.update(self.requests.responses, self.requests.timeouts):
            self._events.append(NetworkChanged(self.health.online, self.health.degraded))

    def _on_retest_end(self, moved: bool, now: float) -> None:
        if moved:  # let those hear of us who are near to our id
            self._queries.start_background(self.identity.own_id, now)

    # -- changes of place --------------------------------------------------------------------------

    def network_changed(self) -> None:
        """This machine's addresses are others than before: look whether the network sees it, too.

        Nothing of our own is given up yet. Most such changes are of interfaces that no node is
        reached by; otherwise the nodes asked now will tell.
        """
        self._neighbours.let_all_age()
        self._queries.idle_ticks = REFRESH_TICKS
        if not self.health.online or self.health.degraded:
            self._events.append(NetworkChanged(online=True, degraded=False))
        self.health = Health()
        self._bootstrap.begin_again()

    def wake_up(self) -> None:
        """The machine slept: nothing known is sure any more, and it may be anywhere.

        A late tick calls this by itself; owners whose clock stops during sleep call it.
        """
        self._reachability.reset()
        if self._witnesses is not None:
            self._witnesses.forget()
        self.network_changed()

    def suspend(self, now: float) -> None:
        """Give up all that is under way, without an event: the sockets close. Until `resume`
        nothing is sent, and there are no timers."""
        self._suspended = True
        self.requests.cancel_all(now)
        self._queries.cancel_all()
        self._responder.forget_all()
        self._neighbours.forget_checks()
        self._reachability.forget_test()
        self._bootstrap.stop()

    def resume(self, server_port: int, now: float) -> None:
        """The sockets are open again, and the server socket has this local port."""
        self._suspended = False
        self._tick_at = now + TICK
        self._last_tick_at = now
        if server_port != self.identity.server_port:
            self.identity.server_port = server_port
            self._forget_place(now)
        self.wake_up()

    def _on_move(self, now: float) -> None:
        """Others see us at another address."""
        self._forget_place(now)
        self._neighbours.let_all_age()
        self._bootstrap.begin_again()

    def _forget_place(self, now: float) -> None:
        """What others told of our address, and what was concluded from it, is not so any more."""
        self._reachability.reset()
        if not self.identity.firewalled:
            self._reachability.wait_after_move(now)
        self.identity.forget_address(
            firewalled=self.identity.firewalled or self._reachability.may_test
        )
