"""Service: keeps a server's record on the nodes closest to its key.

Announces to the three closest nodes, pings them every 3 s (which keeps the NAT mapping open that
they forward handshakes through), announces afresh every 5 minutes or when too few of them answer,
and takes the record back at the end.
Source: hyperdht lib/announcer.js; docs/protocol/hyperdht.md section 6.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import trio

from hyperlog.dht.commands.messages import Announce, HolepunchRelay, Peer, sign_announce
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import ANNOUNCE, FIND_PEER, UNANNOUNCE
from hyperlog.dht.errors import DHTError
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.node import Reply, RPCNode

__all__ = ["Announcer"]

logger = logging.getLogger("hyperlog.dht.announcer")

ANNOUNCE_TO: Final = 3  # nodes
PING_INTERVAL: Final = 3.0  # s
PING_ROUNDS: Final = 100  # rounds of pings between two announcements, about 5 min
OFFLINE_RETRY: Final = 5.0  # s between attempts while no node could be announced to
WITHDRAW_TIMEOUT: Final = 1.5  # s that closing may take

T = TypeVar("T")


class Announcer:
    """The announcement of one key pair; `run` it in the listener's nursery."""

    def __init__(self, node: RPCNode, key_pair: KeyPair) -> None:
        self.target = generic_hash(key_pair.public_key)
        self.relays: list[HolepunchRelay] = []
        """Nodes that forward to us, each with our address as it sees it; at most three."""
        self.relay_addresses: list[Address] = []
        """Where clients may send handshakes: our open address, then those nodes; at most three."""
        self._node = node
        self._key_pair = key_pair
        self._closest: list[Address] = []
        self._holders: set[Address] = set()  # nodes that may have our record
        # Three rounds: hole punch messages through a recent relay still count as from ours.
        self._rounds: list[set[Address]] = [set(), set(), set()]
        self._refresh = trio.Event()
        self._update_scope = trio.CancelScope()
        self._awake = trio.Event()
        self._awake.set()

    def is_relay(self, address: Address) -> bool:
        """Whether the node at `address` is, or recently was, one we announced to."""
        return any(address in known for known in self._rounds)

    def refresh(self) -> None:
        """Announce afresh soon: something about our address or the network has changed."""
        self._refresh.set()

    def restart(self) -> None:
        """Announce afresh at once: an announcement under way asks through a path that is gone."""
        self._update_scope.cancel()
        self._refresh.set()

    def pause(self) -> None:
        """Announce nothing until `resume`."""
        self._awake = trio.Event()
        self.restart()

    async def suspend(self) -> None:
        """Take the record back, and announce nothing until `resume`; bounded as `withdraw`."""
        self.pause()
        await self.withdraw()

    def resume(self) -> None:
        """Announce again, at once."""
        self._awake.set()

    async def run(self, *, task_status: trio.TaskStatus[int]) -> None:
        """Announce, tell `task_status` to how many nodes, and stay announced until cancelled."""
        await self._announce_anew()
        task_status.started(len(self.relays))
        while True:
            await self._stay_announced()
            await self._announce_anew()

    async def _announce_anew(self) -> None:
        while True:
            await self._awake.wait()
            self._refresh = trio.Event()  # a change during the update calls for another one
            with trio.CancelScope() as self._update_scope:
                await self._update()
                return

    async def _stay_announced(self) -> None:
        if not self._rounds[-1]:
            with trio.move_on_after(OFFLINE_RETRY):
                await self._refresh.wait()
            return
        for _ in range(PING_ROUNDS):
            with trio.move_on_after(PING_INTERVAL):
                await self._refresh.wait()
                return
            current = self._rounds[-1]
            answered = await _all_settled(self._check, self.relays)
            if answered < len(current):
                logger.debug("%d of %d announced nodes answered as before", answered, len(current))
                return

    async def _check(self, relay: HolepunchRelay) -> None:
        """Raise unless a node answers and still sees us where it forwards handshakes to.

        Compat: hyperdht looks only whether it answers. A router that has forgotten us, or has got
        another address, then leaves the server unreachable until the next announcement.
        """
        response = await self._node.ping(relay.relay_address)
        if response.to != relay.peer_address:
            raise DHTError("the node sees us at another address")

    async def _update(self) -> None:
        try:
            result = await self._node.query(FIND_PEER, self.target, nodes=self._closest)
        except DHTError as err:
            logger.debug("announcing failed: %s", err.code)
            return
        announced: list[HolepunchRelay] = []

        async def announce(reply: Reply) -> None:
            await self._announce(reply)
            announced.append(HolepunchRelay(reply.address, reply.to))

        await _all_settled(announce, result.closest_replies[:ANNOUNCE_TO])
        self._closest = list(result.closest_nodes) or self._closest
        self._rounds = [*self._rounds[1:], {relay.relay_address for relay in announced}]
        self.relays = announced
        own = self._node.remote_address()
        addresses = [own] if own is not None else []
        addresses += [relay.relay_address for relay in announced]
        self.relay_addresses = addresses[:ANNOUNCE_TO]
        former = self._holders - self._rounds[-1]
        await _all_settled(self._withdraw_from, former)
        self._holders -= former

    async def _announce(self, reply: Reply) -> None:
        message = self._signed(ANNOUNCE, reply)
        self._holders.add(reply.address)  # if we are closed before the answer, it has the record
        response = await self._node.request(
            ANNOUNCE, target=self.target, value=message, token=reply.token, to=reply.address
        )
        if response.error:
            raise DHTError(f"announcement refused with error {response.error}")

    def _signed(self, command: int, reply: Reply) -> bytes:
        if reply.token is None or reply.id is None:
            raise DHTError("the node sent no token or no id")
        announce = Announce(peer=Peer(self._key_pair.public_key, []))
        sign_announce(
            announce,
            command=command,
            target=self.target,
            token=reply.token,
            node_id=reply.id,
            secret_key=self._key_pair.secret_key,
        )
        return announce.encode()

    async def withdraw(self) -> None:
        """Take the record back from every node that has it; bounded to WITHDRAW_TIMEOUT seconds."""
        with trio.move_on_after(WITHDRAW_TIMEOUT, shield=True):
            await _all_settled(self._withdraw_from, self._holders)
        self._holders.clear()
        self._rounds[-1] = set()
        self.relays = []
        self.relay_addresses = []

    async def _withdraw_from(self, address: Address) -> None:
        response = await self._node.request(FIND_PEER, target=self.target, to=address)
        if response.value is None:
            return
        reply = Reply.from_response(response, address)
        await self._node.request(
            UNANNOUNCE,
            target=self.target,
            value=self._signed(UNANNOUNCE, reply),
            token=reply.token,
            to=address,
        )


async def _all_settled(call: Callable[[T], Awaitable[object]], items: Iterable[T]) -> int:
    """Call for every item at once; the number of calls that did not fail with a DHTError."""
    succeeded = 0

    async def one(item: T) -> None:
        nonlocal succeeded
        try:
            await call(item)
        except DHTError as err:
            logger.debug("request failed: %s", err.code)
        else:
            succeeded += 1

    async with trio.open_nursery() as nursery:
        for item in list(items):
            nursery.start_soon(one, item)
    return succeeded
