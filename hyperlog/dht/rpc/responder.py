"""Answers to others: the internal commands, and the replies and relays that users ask for.

Spec: docs/protocol/dht-rpc.md section 4; dht-rpc index.js `_onrequest`, lib/io.js.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import RemoteProtocolError
from hyperlog.dht.rpc.events import RequestReceived
from hyperlog.dht.rpc.identity import Identity
from hyperlog.dht.rpc.messages import (
    DELAYED_PING,
    DOWN_HINT,
    FIND_NODE,
    INVALID_TOKEN,
    PING,
    PING_NAT,
    UNKNOWN_COMMAND,
    Request,
    encode_response,
    is_bare_ping,
    read_bare_query,
    unpack_address,
)
from hyperlog.dht.rpc.neighbours import Neighbours
from hyperlog.dht.rpc.tally import Tallies
from hyperlog.dht.rpc.tickets import Tickets

__all__ = ["DELAY_MS", "MAX_PING_DELAY", "PORT", "Read", "Responder"]

MAX_PING_DELAY: Final = 10.0  # s
MAX_DELAYED_PINGS: Final = 256

PORT: Final = struct.Struct("<H")
DELAY_MS: Final = struct.Struct("<I")

Read = Callable[[bytes, bytes | None, float], bytes | None]
"""Value of the answer to a user command, from target and value of the request and the time.

Raises:
    RemoteProtocolError: the request's value is not as it should be; it gets no answer.
"""


class Responder:
    """Keeps the answers that wait to be sent."""

    def __init__(self, identity: Identity, neighbours: Neighbours, tickets: Tickets) -> None:
        self._identity = identity
        self._neighbours = neighbours
        self._tickets = tickets
        self._outbox: list[tuple[int, Address, bytes]] = []
        self._delayed: list[tuple[float, int, RequestReceived]] = []
        self._delayed_count = 0
        self.tallies = Tallies()
        self.reads: Mapping[int, Read] = {}

    def datagrams_to_send(self) -> list[tuple[int, Address, bytes]]:
        datagrams, self._outbox = self._outbox, []
        return datagrams

    def get_timer(self) -> float | None:
        return self._delayed[0][0] if self._delayed else None

    def handle_timer(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            self._pong(heappop(self._delayed)[2])

    def forget_all(self) -> None:
        """Answer nobody who has asked so far."""
        self._outbox.clear()
        self._delayed.clear()

    def refuse_wrong_ticket(self, event: RequestReceived, now: float) -> bool:
        """Whether the request carried a ticket that is not ours; it has its answer then."""
        token = event.request.token
        if token is None or self._tickets.accepts(token, event.address[0], now):
            return False
        self.reply(event, None, error=INVALID_TOKEN, now=now)
        return True

    def answer_bare(self, data: bytes, address: Address, socket: int, now: float) -> bool:
        """Answer a datagram if it is a ping or a query of a node that shows no id.

        They are most of what comes in, and can be answered without being decoded as a whole. False
        leaves the datagram to be treated like any other.
        """
        ticket = value = None
        closer_nodes = b""
        if is_bare_ping(data):
            tally = self.tallies.internal[PING]
        else:
            query = read_bare_query(data)
            if query is None:
                return False
            command, internal, target, value = query
            if internal:
                if command != FIND_NODE:
                    return False
                tally = self.tallies.internal[FIND_NODE]
                value = None
            else:
                if command not in self.reads or self._identity.ephemeral:
                    return False
                tally = self.tallies.of(command, internal=False)
                try:
                    value = self.reads[command](target, value, now)
                except RemoteProtocolError:
                    tally.received += 1
                    return True
                ticket = self._tickets.issue(address[0], now)
            closer_nodes = self._neighbours.table.closest_packed(target)
        tid = data[2] | data[3] << 8
        id = self._identity.id_on(socket)
        datagram = encode_response(tid, address, id, ticket, closer_nodes, 0, value)
        self._outbox.append((socket, address, datagram))
        tally.received += 1
        tally.answered += 1
        return True

    def answer(self, event: RequestReceived, now: float) -> None:
        """Answer an internal command; one that lacks what it needs gets no answer."""
        command = event.request.command
        if command == PING:
            self._pong(event)
        elif command == FIND_NODE:
            if event.request.target is not None:
                self.reply(event, None, token=False, now=now)
        elif command == PING_NAT:
            self._answer_ping_nat(event)
        elif command == DOWN_HINT:
            value = event.request.value
            if value is not None and len(value) >= 6:
                self._neighbours.follow_hint(unpack_address(value[:6]))
                self._pong(event)
        elif command == DELAYED_PING:
            self._answer_later(event, now)
        else:
            self.reply(event, None, error=UNKNOWN_COMMAND, token=False, now=now)

    def _pong(self, event: RequestReceived, to: Address | None = None) -> None:
        to, socket = event.address if to is None else to, event.socket
        id = self._identity.id_on(socket)
        datagram = encode_response(event.request.tid, to, id, None, b"", 0, None)
        self._outbox.append((socket, to, datagram))
        event.tally.answered += 1

    def _answer_ping_nat(self, event: RequestReceived) -> None:
        value = event.request.value
        if value is not None and len(value) >= PORT.size:
            (port,) = PORT.unpack_from(value)
            if port:
                self._pong(event, to=(event.address[0], port))

    def _answer_later(self, event: RequestReceived, now: float) -> None:
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
        """See RPCCore.reply."""
        request = event.request
        to = event.address if to is None else to
        socket = event.socket if socket is None else socket
        target = request.target
        datagram = encode_response(
            request.tid,
            to,
            self._identity.id_on(socket),
            self._tickets.issue(to[0], now) if token else None,
            self._neighbours.table.closest_packed(target) if closer_nodes and target else b"",
            error,
            value,
        )
        self._outbox.append((socket, to, datagram))
        if error:
            event.tally.refused += 1
        else:
            event.tally.answered += 1

    def relay(
        self,
        event: RequestReceived,
        value: bytes | None,
        to: Address,
        *,
        socket: int | None = None,
    ) -> None:
        """See RPCCore.relay."""
        request = event.request
        socket = event.socket if socket is None else socket
        message = Request(
            request.tid,
            to,
            request.command,
            request.internal,
            id=self._identity.id_on(socket),
            target=request.target,
            value=value,
        )
        self._outbox.append((socket, to, message.encode()))
        event.tally.answered += 1
