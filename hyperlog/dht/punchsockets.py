"""Service: the UDP sockets of one hole punch.

Each attempt has a socket of its own, whose NAT nodes help to judge. While it probes from many, it
has up to 256; a connection keeps the one that got through, all others are closed with the attempt.

Source: hyperdht lib/holepuncher.js, lib/nat.js; docs/protocol/hyperdht.md section 10.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.constants import FIREWALL_CONSISTENT, FIREWALL_OPEN
from hyperlog.dht.errors import CannotHolepunch, DHTError, RemoteNotHolepunchable
from hyperlog.dht.holepunch.nat import Nat
from hyperlog.dht.holepunch.puncher import PROBE, NotPunchable, Puncher
from hyperlog.dht.holepunch.punches import PunchRecord

if TYPE_CHECKING:
    from hyperlog.dht.hyperdht import DHT

__all__ = ["MayPunch", "PunchSockets"]

logger = logging.getLogger("hyperlog.dht.punchsockets")

MayPunch = Callable[[int, int, list[Address], list[Address]], bool]
"""may_punch(remote_firewall, local_firewall, remote_addresses, local_addresses): False gives up."""

SAMPLING_PASSES: Final = 3  # of 1 s at most: the peer waits 4 s for what comes of them
MAX_REOPENS: Final = 3
OPENED_AT_ONCE: Final = 16  # sockets, before other tasks have their turn; 1 ms


class PunchSockets:
    """Made with one socket; `close` gives all of them back.

    Raises:
        OSError: the system has no socket for us.
    """

    def __init__(
        self, dht: DHT, *, is_initiator: bool, remote_firewall: int, record: PunchRecord
    ) -> None:
        self.rng = random.Random(dht.random_bytes(16))
        self.puncher = Puncher(
            is_initiator, Nat(dht.node.firewalled), remote_firewall, rng=self.rng
        )
        self.connected = trio.Event()
        """Set on the initiator, when a probe of the peer has come through."""
        self.closed = False
        self._dht = dht
        self._record = record
        self._started_at = trio.current_time()
        self._sockets = [self._bind(0)]  # by number in the puncher
        self._analyzed = trio.Event()
        self._sampling: trio.CancelScope | None = None
        self._changing = trio.Lock()  # of sockets
        self._reopens = 0
        self._punching = trio.Event()
        self._limited = False  # holds the node's right to a random punch
        record.sockets = 1

    @property
    def first(self) -> int:
        """The socket that payloads leave from."""
        return self._sockets[0]

    def path(self) -> tuple[int, Address] | None:
        """The socket that the first probe came to and where from; None before."""
        if self.puncher.connected is None:
            return None
        number, address = self.puncher.connected
        return self._sockets[number], address

    def owns(self, socket: int) -> bool:
        """Whether a socket of the node is one of these."""
        return socket in self._sockets

    def _bind(self, number: int) -> int:
        return self._dht.sockets.open_pool_socket(partial(self._receive_probe, number))

    # -- our NAT ----------------------------------------------------------------------------------

    async def sample(self) -> None:
        """Ask nodes for our outside address until the NAT is judged or nobody is left to ask."""
        nat, socket, silent = self.puncher.nat, self.first, list[Address]()

        async def ping(address: Address) -> None:
            try:
                response = await self._dht.node.ping(address, socket=socket, retries=0)
            except DHTError:
                silent.append(address)
            else:
                self._add_sample(nat, response.to, address)

        for _ in range(SAMPLING_PASSES):
            if nat.settled or self.closed:
                break
            # A small network has few others to ask when pings get lost.
            nodes = [*silent, *nat.nodes_to_ping(self._dht.node.known_nodes(64))]
            silent.clear()
            async with trio.open_nursery() as nursery:
                self._sampling = nursery.cancel_scope
                for address in nodes:
                    nursery.start_soon(ping, address)
        self._sampling = None
        nat.give_up()
        self._analyzed.set()

    def add_sample(self, outside: Address, reporter: Address) -> None:
        """A node's view of the first socket's address."""
        self._add_sample(self.puncher.nat, outside, reporter)

    def _add_sample(self, nat: Nat, outside: Address, reporter: Address) -> None:
        nat.add(outside, reporter)
        if nat.settled and nat is self.puncher.nat and self._sampling is not None:
            self._sampling.cancel()

    async def analyze(self, *, reopen: bool) -> bool:
        """Wait until our NAT is judged; whether the judgement is one to go on with.

        With `reopen`, try up to three other sockets as long as it is not: mobile networks treat
        sockets differently. Which is the first socket may change by that.

        Raises:
            CannotHolepunch: the system has no socket for us.
        """
        await self._analyzed.wait()
        if not self.puncher.unstable:
            return True
        if not reopen:
            return False
        async with self._changing:
            while self._may_reopen():
                self._reopens += 1
                await self._reopen()
        return self.puncher.nat.firewall in (FIREWALL_OPEN, FIREWALL_CONSISTENT)

    def _may_reopen(self) -> bool:
        puncher = self.puncher
        return (
            puncher.unstable
            and self._reopens < MAX_REOPENS
            and puncher.strategy is None
            and not puncher.over
        )

    async def _reopen(self) -> None:
        try:
            socket = self._bind(0)
        except OSError as err:
            raise _no_sockets(err) from err
        self._dht.sockets.release(self.first)
        self._sockets[0] = socket
        self.puncher.replace_socket(Nat(self._dht.node.firewalled))
        self._record.reopened += 1
        await self.sample()

    # -- probes -----------------------------------------------------------------------------------

    def open_session(self, address: Address) -> None:
        self.puncher.open_session(address)
        self._flush()

    def ping(self, address: Address) -> None:
        self.puncher.ping(address)
        self._flush()

    def reserve(self) -> bool:
        """Claim the node's right to a random punch, if this is one; False when it is taken.

        `close` gives it back.
        """
        if self.puncher.random and not self._limited:
            self._limited = self._dht.punches.limit.take(trio.current_time())
            return self._limited
        return True

    def give_back_reservation(self) -> None:
        """Let others punch for now."""
        if self._limited:
            self._limited = False
            used = self._record.strategy is not None
            self._dht.punches.limit.give_back(trio.current_time(), used=used)

    def permitted(self, may_punch: MayPunch | None) -> bool:
        """Ask the user's callback, which may fail: that forbids it, too."""
        if may_punch is None:
            return True
        puncher = self.puncher
        try:
            return may_punch(
                puncher.remote_firewall,
                puncher.nat.firewall,
                [known.address for known in puncher.remote_addresses],
                list(puncher.nat.addresses or ()),
            )
        except Exception:
            logger.exception("the may_punch callback failed; no hole is punched")
            return False

    async def punch(self) -> None:
        """Start probing; calling again is fine. Other tasks run while many sockets are opened.

        Raises:
            RemoteNotHolepunchable: what is known of both NATs gives no strategy.
            CannotHolepunch: the strategy needs more sockets than the system has for us.
        """
        async with self._changing:
            strategy = self.puncher.punch(trio.current_time())
            if isinstance(strategy, NotPunchable):
                raise RemoteNotHolepunchable(
                    f"no hole can be punched: {strategy.reason}. A relay can help, or an open UDP "
                    "port on one side"
                )
            if self._record.strategy is None:
                self._record.strategy = strategy
                self._dht.punches.started(strategy)
            await self._open_birthday_sockets()
        self._flush()
        self._punching.set()

    async def _open_birthday_sockets(self) -> None:
        while self.puncher.sockets_missing:
            try:
                self._sockets.append(self._bind(len(self._sockets)))
            except OSError as err:
                keep = self.puncher.sockets_exhausted(trio.current_time())
                for surplus in self._sockets[keep:]:
                    self._dht.sockets.release(surplus)
                del self._sockets[keep:]
                if self.puncher.failed:
                    raise _no_sockets(err) from err
            else:
                self.puncher.socket_opened(trio.current_time())
            if len(self._sockets) % OPENED_AT_ONCE == 0:
                self._flush()
                await trio.lowlevel.checkpoint()
        self._record.sockets = len(self._sockets)

    async def send_probes(self) -> None:
        """Probe once `punch` was called; return when all is sent, in vain so far."""
        await self._punching.wait()
        while (timer := self.puncher.get_timer()) is not None:
            await trio.sleep_until(timer)
            self._flush()

    def _flush(self) -> None:
        for number, address, ttl in self.puncher.probes_to_send(trio.current_time()):
            self._dht.sockets.send(self._sockets[number], address, PROBE, ttl)
            self._record.probes_sent += 1

    def _receive_probe(self, number: int, address: Address) -> None:
        self._record.probes_received += 1
        self.puncher.receive_probe(number, address)
        self._flush()
        if self.puncher.connected is not None:
            self.connected.set()

    def close(self) -> None:
        """Give the sockets back; a connection that has taken one keeps it."""
        if self.closed:
            return
        self.closed = True
        record, puncher = self._record, self.puncher
        record.local_firewall = puncher.nat.firewall
        record.remote_firewall = puncher.remote_firewall
        record.duration = trio.current_time() - self._started_at
        puncher.close()
        self._analyzed.set()  # lets those who wait end
        self._punching.set()
        for socket in self._sockets:
            self._dht.sockets.release(socket)
        self.give_back_reservation()
        self._dht.punches.ended(record)


def _no_sockets(err: OSError) -> CannotHolepunch:
    return CannotHolepunch(
        f"the system has too few sockets for a hole punch ({err}): allow the process more open "
        "files, 1024 or more (ulimit -n)"
    )
