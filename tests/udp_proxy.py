"""A UDP proxy that loses, repeats and reorders datagrams, for real sockets in one process.

Whoever sends to the proxy's address is forwarded to the target, from a socket of its own for each
client address; what the target answers to that socket goes back to the client from the proxy's
address. Both directions pass the same impairments, drawn from one seeded generator.

    async with open_lossy_proxy(server_address, loss=0.1, seed=7) as proxy:
        ...  # talk to proxy.address instead of server_address

A burst beyond the kernel's receive buffer is lost without a count, as on a real path. Real time
applies (held datagrams wait for real), so the proxy does not go with an autojump clock.
"""

from __future__ import annotations

import heapq
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

Address = tuple[str, int]

MAX_DATAGRAM = 65535
MAX_CLIENTS = 256  # client addresses; datagrams of further ones are dropped
MAX_HELD = 8192  # datagrams waiting for their time; beyond it they go at once
MAX_DRAIN = 256  # datagrams read in one go, so that the other direction gets its turn
SO_RCVBUFFORCE = 33  # Linux; the socket module does not name it
SOCKET_BUFFER = 4 * 1024 * 1024  # bytes asked for; the kernel may grant less


@dataclass(slots=True)
class ProxyStatistics:
    """What happened to the datagrams, both directions together."""

    received: int = 0
    forwarded: int = 0
    """Sent on, copies included."""
    dropped: int = 0
    """Lost on purpose."""
    duplicated: int = 0
    reordered: int = 0
    """Held back, so that later ones may overtake."""
    refused: int = 0
    """Not sent because the kernel had no room or the other side no socket; not on purpose."""


def _open_socket(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    try:  # root may go beyond the system's limit, which holds less than 100 full datagrams
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER)
    except OSError:
        pass
    sock.bind(address)
    return sock


class LossyProxy:
    """One listening address in front of one target; `open_lossy_proxy` makes and runs it.

    `loss`, `duplicate` and `reorder` are the shares (0 … 1) of datagrams that are dropped, sent
    twice, and held back for up to `max_delay` seconds. `delay` (seconds) holds back all of them.
    The four may be changed while the proxy runs.
    """

    def __init__(
        self,
        target: Address,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        max_delay: float = 0.02,
        delay: float = 0.0,
        seed: int = 0,
        bind: Address = ("127.0.0.1", 0),
    ) -> None:
        self.target = target
        self.loss = loss
        self.duplicate = duplicate
        self.reorder = reorder
        self.max_delay = max_delay
        self.delay = delay
        self.statistics = ProxyStatistics()
        self._random = random.Random(seed).random
        self._listening = _open_socket(bind)
        self._upstream: dict[Address, socket.socket] = {}
        self._held: list[tuple[float, int, socket.socket, bytes, Address]] = []
        self._order = 0
        self._earlier = trio.Event()

    @property
    def address(self) -> Address:
        """Where clients send to instead of the target."""
        host, port = self._listening.getsockname()
        return host, port

    async def run(self) -> None:
        """Forward datagrams until cancelled, then close all sockets."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._release_held)
                await self._serve_clients(nursery)
        finally:
            self._listening.close()
            for sock in self._upstream.values():
                sock.close()

    async def _serve_clients(self, nursery: trio.Nursery) -> None:
        receive = self._listening.recvfrom
        while True:
            await trio.lowlevel.wait_readable(self._listening)
            for _ in range(MAX_DRAIN):
                try:
                    data, client = receive(MAX_DATAGRAM)
                except BlockingIOError:
                    break
                except ConnectionError:  # an earlier send met a closed port
                    continue
                upstream = self._upstream.get(client)
                if upstream is None:
                    if len(self._upstream) >= MAX_CLIENTS:
                        self.statistics.refused += 1
                        continue
                    upstream = _open_socket((self.address[0], 0))
                    self._upstream[client] = upstream
                    nursery.start_soon(self._serve_target, upstream, client)
                self._pass_on(upstream, data, self.target)

    async def _serve_target(self, upstream: socket.socket, client: Address) -> None:
        receive = upstream.recvfrom
        while True:
            await trio.lowlevel.wait_readable(upstream)
            for _ in range(MAX_DRAIN):
                try:
                    data, source = receive(MAX_DATAGRAM)
                except BlockingIOError:
                    break
                except ConnectionError:
                    continue
                if source == self.target:
                    self._pass_on(self._listening, data, client)

    def _pass_on(self, sock: socket.socket, data: bytes, destination: Address) -> None:
        statistics, draw = self.statistics, self._random
        statistics.received += 1
        if draw() < self.loss:
            statistics.dropped += 1
            return
        copies = 1
        if draw() < self.duplicate:
            statistics.duplicated += 1
            copies = 2
        for _ in range(copies):
            wait = self.delay
            if draw() < self.reorder:
                statistics.reordered += 1
                wait += draw() * self.max_delay
            if wait and len(self._held) < MAX_HELD:
                self._hold(trio.current_time() + wait, sock, data, destination)
            else:
                self._send(sock, data, destination)

    def _send(self, sock: socket.socket, data: bytes, destination: Address) -> None:
        try:
            sock.sendto(data, destination)
        except OSError:  # no room, or an ICMP error about an earlier datagram
            self.statistics.refused += 1
        else:
            self.statistics.forwarded += 1

    def _hold(self, until: float, sock: socket.socket, data: bytes, destination: Address) -> None:
        if not self._held or until < self._held[0][0]:
            self._earlier.set()
        self._order += 1
        heapq.heappush(self._held, (until, self._order, sock, data, destination))

    async def _release_held(self) -> None:
        while True:
            now = trio.current_time()
            while self._held and self._held[0][0] <= now:
                _, _, sock, data, destination = heapq.heappop(self._held)
                self._send(sock, data, destination)
            self._earlier = trio.Event()
            with trio.move_on_at(self._held[0][0] if self._held else float("inf")):
                await self._earlier.wait()


@asynccontextmanager
async def open_lossy_proxy(target: Address, **settings: float) -> AsyncIterator[LossyProxy]:
    """A running LossyProxy in front of `target`; keyword arguments as in its constructor."""
    proxy = LossyProxy(target, **settings)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()
