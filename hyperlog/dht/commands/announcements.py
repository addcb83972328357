"""Announcements: which peers are there, under their own keys and under topics.

A peer announces itself under the hash of its own key (it becomes findable, and we forward to where
the announcement came from), or under any topic (it becomes one of the topic's records). Every
announcement is signed for this node and the token that it gave out; what does not verify gets no
answer.

Wire: docs/protocol/hyperdht.md sections 2 to 5; hyperdht lib/persistent.js.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from hyperlog.dht.commands.ageing import AgeingCache, TopicRecords
from hyperlog.dht.commands.messages import Announce, LookupReply, Peer, verify_announce
from hyperlog.dht.commands.router import CommandRequest, Router
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import ANNOUNCE
from hyperlog.dht.errors import RemoteProtocolError
from hyperlog.dht.keys import generic_hash

__all__ = ["Announcements"]

MAX_ENTRIES: Final = 65536  # of each table, hyperdht index.js `defaultMaxSize`
MAX_AGE: Final = 20 * 60.0  # s, hyperdht index.js `defaultMaxAge`
MAX_RELAY_ADDRESSES: Final = 3  # kept of one announcement
MAX_LOOKUP_RECORDS: Final = 20  # in one reply
MAX_BUMP_DRIFT: Final = 60_000  # ms that a peer's clock may be ahead of ours


@dataclass(slots=True)
class _Refresh:
    """What a peer can renew by showing what the stored hash was made of."""

    target: bytes
    public_key: bytes
    record: bytes
    announces_itself: bool


class Announcements:
    """The peers that one persistent node knows of.

    Args:
        router: gets the routes to peers that announce themselves.
        rng: chooses which records of a crowded topic a lookup gets.
    """

    def __init__(
        self,
        router: Router,
        *,
        rng: random.Random,
        max_entries: int = MAX_ENTRIES,
        max_age: float = MAX_AGE,
    ) -> None:
        self._router = router
        self._records = TopicRecords(max_entries, max_age, rng)
        self._bumps: AgeingCache[bytes, int] = AgeingCache(max_entries, max_age)
        self._refreshes: AgeingCache[bytes, _Refresh] = AgeingCache(max_entries, max_age)

    def receive_untrusted(
        self, request: CommandRequest, node_id: bytes, *, now: float, unix_time: float
    ) -> bool:
        """Take an ANNOUNCE or UNANNOUNCE request; whether it was good, the reply is empty then.

        Args:
            request: its token, if it has one, is valid.
            node_id: our own id, which signatures must name.
            unix_time: seconds since 1970, to judge a peer's `bump`.
        """
        target = request.target
        if target is None or request.token is None or request.value is None:
            return False
        try:
            announce = Announce.decode_untrusted(request.value)
        except RemoteProtocolError:
            return False
        if announce.peer is None and request.command == ANNOUNCE:
            return self._refresh(announce, request.address, now)
        if announce.peer is None or not verify_announce(
            announce, command=request.command, target=target, token=request.token, node_id=node_id
        ):
            return False
        if request.command == ANNOUNCE:
            self._announce(announce, announce.peer, target, request.address, now, unix_time)
        else:
            self.unannounce(target, announce.peer.public_key)
        return True

    def find_peer(self, target: bytes, now: float) -> bytes | None:
        """The encoded Peer that announced itself under the hash of its key."""
        route = self._router.get(target, now)
        return route.record if route is not None else None

    def lookup(self, target: bytes, now: float) -> bytes | None:
        """The encoded LookupReply with up to 20 peers of a topic; None when there are none."""
        records = self._records.sample(target, MAX_LOOKUP_RECORDS, now)
        if len(records) < MAX_LOOKUP_RECORDS:
            route = self._router.get(target, now)
            if route is not None:
                records.append(route.record)
        if not records:
            return None
        return LookupReply.join(records, self._bumps.get(target, now) or 0)

    def unannounce(self, target: bytes, public_key: bytes) -> None:
        """Forget a peer under a target; one that is not there is fine."""
        if generic_hash(public_key) == target:
            self._router.remove(target)
        self._records.remove(target, public_key)

    def _announce(
        self,
        announce: Announce,
        peer: Peer,
        target: bytes,
        sender: Address,
        now: float,
        unix_time: float,
    ) -> None:
        # Only now: the signature covers all of them.
        peer.relay_addresses = peer.relay_addresses[:MAX_RELAY_ADDRESSES]
        announces_itself = generic_hash(peer.public_key) == target
        entry = _Refresh(target, peer.public_key, peer.encode(), announces_itself)
        self._keep(entry, sender, now)
        if not announces_itself:
            latest = self._bumps.get(target, now) or 0
            if latest < announce.bump <= unix_time * 1000 + MAX_BUMP_DRIFT:
                self._bumps.set(target, announce.bump, now)
        if announce.refresh is not None:
            self._refreshes.set(announce.refresh, entry, now)

    def _refresh(self, announce: Announce, sender: Address, now: float) -> bool:
        """Renew without a signature: `refresh` is what the hash that we keep was made of.

        It is the next link of a hash chain, so only the peer that sent the hash knows it, and it
        takes the hash's place.
        """
        if announce.refresh is None:
            return False
        spent = generic_hash(announce.refresh)
        entry = self._refreshes.get(spent, now)
        if entry is None:
            return False
        self._keep(entry, sender, now)
        self._refreshes.remove(spent)
        self._refreshes.set(announce.refresh, entry, now)
        return True

    def _keep(self, entry: _Refresh, sender: Address, now: float) -> None:
        if entry.announces_itself:
            self._router.set(entry.target, sender, entry.record, now)
            self._records.remove(entry.target, entry.public_key)
        else:
            self._records.add(entry.target, entry.public_key, entry.record, now)
