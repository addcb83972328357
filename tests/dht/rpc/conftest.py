"""A network of RPCCores in one process: virtual time, seeded loss and delay, optional firewalls."""

from __future__ import annotations

import heapq
import random

import pytest

from hyperlog.dht.rpc.core import CLIENT_SOCKET, SERVER_SOCKET, RPCCore
from hyperlog.dht.rpc.events import (
    BootstrapDue,
    QueryFinished,
    QueryReplied,
    RequestFinished,
    RequestReceived,
)
from hyperlog.dht.rpc.messages import UNKNOWN_COMMAND, Request, decode_untrusted, node_id
from hyperlog.dht.rpc.table import distance

US = ("10.0.0.1", 4000)
PEER = ("10.0.0.2", 2000)


@pytest.fixture
def simulate():
    """The class Simulation: call it with a seed."""
    return Simulation


@pytest.fixture
def make_core():
    """Makes a node at 10.0.0.1:4000 that waits for its bootstrap nodes."""

    def make(**options):
        options = {"outside_address": US} | options
        random_bytes = random.Random(7).randbytes
        core = RPCCore(random_bytes=random_bytes, server_port=4000, now=0.0, **options)
        core.start(0.0)
        assert isinstance(core.next_event(), BootstrapDue)
        return core

    return make


@pytest.fixture
def core(make_core):
    """A persistent node at 10.0.0.1:4000 that knows nobody."""
    core = make_core()
    core.bootstrap([], 0.0)
    return core


@pytest.fixture
def events():
    """All events that a core has to tell."""

    def drain(core):
        found = []
        while (event := core.next_event()) is not None:
            found.append(event)
        return found

    return drain


@pytest.fixture
def ask():
    """Sends a core one request; gives its answers as (socket, address, Response)."""

    def send(core, command, *, now=0.0, socket=SERVER_SOCKET, address=PEER, **fields):
        core.receive_datagram(Request(77, US, command, **fields).encode(), address, socket, now)
        return [
            (socket, to, decode_untrusted(data)) for socket, to, data in core.datagrams_to_send(now)
        ]

    return send


@pytest.fixture
def closest_addresses():
    """The addresses of simulated nodes nearest to a target."""

    def sort(nodes, target, count=20):
        addresses = [node.address for node in nodes]
        return sorted(addresses, key=lambda a: distance(node_id(a), target))[:count]

    return sort


class SimNode:
    """One core, its two addresses, and what it told."""

    def __init__(self, simulation, number, bootstrap, *, firewall=False, **options):
        host = f"10.{number >> 8 & 255}.{number & 255}.1"
        self.simulation = simulation
        self.addresses = {SERVER_SOCKET: (host, 4000), CLIENT_SOCKET: (host, 5000)}
        self.bootstrap = bootstrap
        self.firewall = firewall
        self.contacted = set()  # (our socket, their address) pairs that a firewall lets in again
        self.events = []
        self.finished = {}
        self.received = 0
        self.sent = 0
        self.up = True
        self.core = RPCCore(
            random_bytes=random.Random(number).randbytes,
            server_port=4000,
            now=simulation.now,
            **options,
        )

    @property
    def address(self):
        return self.addresses[SERVER_SOCKET]

    def pump(self):
        now = self.simulation.now
        while (event := self.core.next_event()) is not None:
            if isinstance(event, BootstrapDue):
                self.core.bootstrap(self.bootstrap, now)
            elif isinstance(event, RequestReceived):
                self.on_request(event)
            elif isinstance(event, QueryFinished):
                self.finished[event.query] = True
            elif isinstance(event, RequestFinished):
                self.finished[event.request] = event.response
            elif not isinstance(event, QueryReplied):
                self.events.append(event)
        for socket, address, data in self.core.datagrams_to_send(now):
            self.sent += 1
            self.contacted.add((socket, address))
            self.simulation.transmit(self.addresses[socket], address, data)

    def on_request(self, event):
        self.core.reply(event, None, error=UNKNOWN_COMMAND, token=False, now=self.simulation.now)


class Simulation:
    def __init__(self, seed, *, loss=0.0, delay=(0.005, 0.05)):
        self.rng = random.Random(seed)
        self.loss = loss
        self.delay = delay
        self.now = 1000.0
        self.nodes = []
        self.sockets = {}  # address -> (node, socket)
        self._queue = []
        self._count = 0

    def add(self, *, outside=False, bootstrap=None, **options):
        """Start one more node; the first one of a network says `outside=True`."""
        number = len(self.nodes) + 1
        if bootstrap is None:
            bootstrap = [self.nodes[0].address] if self.nodes else []
        node = SimNode(self, number, bootstrap, **options)
        if outside:
            node = SimNode(self, number, [], outside_address=node.address, **options)
        self.nodes.append(node)
        for socket, address in node.addresses.items():
            self.sockets[address] = node, socket
        node.core.start(self.now)
        node.pump()
        return node

    def network(self, count, **options):
        """A first node and `count` - 1 persistent ones, a few seconds old."""
        self.add(outside=True)
        options = {"ephemeral": False, "firewalled": False} | options
        for _ in range(count - 1):
            self.add(**options)
            self.run(0.3)
        self.run(3.0)
        return list(self.nodes)

    def transmit(self, source, destination, data):
        if self.rng.random() >= self.loss:
            self._count += 1
            at = self.now + self.rng.uniform(*self.delay)
            heapq.heappush(self._queue, (at, self._count, source, destination, data))

    def run(self, seconds=None, until=lambda: False):
        """Let time pass: `seconds`, or as long as it takes until `until()` (at most an hour)."""
        end = self.now + (3600.0 if seconds is None else seconds)
        steps = 0
        while not until():
            nodes = [node for node in self.nodes if node.up]
            timer = min((node.core.get_timer() for node in nodes), default=end)
            at = min(timer, self._queue[0][0] if self._queue else end, end)
            self.now = max(at, self.now)
            if at >= end and timer >= end and (not self._queue or self._queue[0][0] >= end):
                return
            while self._queue and self._queue[0][0] <= self.now:
                self._deliver(*heapq.heappop(self._queue)[2:])
            for node in nodes:
                if node.core.get_timer() <= self.now:
                    node.core.handle_timer(self.now)
                    node.pump()
                    assert node.core.get_timer() > self.now
            steps += 1
            assert steps < 2_000_000, "the simulation does not come to rest"

    def _deliver(self, source, destination, data):
        node, socket = self.sockets.get(destination, (None, 0))
        if node is None or not node.up:
            return
        if node.firewall and (socket, source) not in node.contacted:
            return
        node.received += 1
        node.core.receive_datagram(data, source, socket, self.now)
        node.pump()

    def query(self, node, command, target, **options):
        """Run one query to its end; gives its state."""
        query = node.core.start_query(command, target, now=self.now, **options)
        node.pump()
        self.run(until=lambda: query in node.finished)
        return query.state

    def request(self, node, address, command, **options):
        """Run one request to its end; gives the response or None."""
        request = node.core.request(address, command, **options)
        node.pump()
        self.run(until=lambda: request in node.finished)
        return node.finished[request]
