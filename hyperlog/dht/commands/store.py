"""Store: what a persistent node remembers for others, and its answers from that.

Peers are announcements.py, data is values.py; here each command finds its way to one of them.

Wire: docs/protocol/hyperdht.md sections 2 and 5; hyperdht index.js `onrequest`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from hyperlog.dht.commands.announcements import Announcements
from hyperlog.dht.commands.router import CommandRequest, Reply, Router
from hyperlog.dht.commands.values import Values
from hyperlog.dht.constants import (
    ANNOUNCE,
    FIND_PEER,
    IMMUTABLE_GET,
    IMMUTABLE_PUT,
    LOOKUP,
    MUTABLE_GET,
    MUTABLE_PUT,
    PLUGIN,
    UNANNOUNCE,
)
from hyperlog.dht.errors import RemoteProtocolError

__all__ = ["SERVED", "Store"]

SERVED: Final = frozenset(range(FIND_PEER, PLUGIN + 1))
"""Commands that `Store.handle` knows; any other is an unknown command of this node."""

Read = Callable[[bytes, bytes | None, float], bytes | None]
"""Value of the answer, from target and value of a request and the time.

Raises:
    RemoteProtocolError: the request's value is not as it should be; it gets no answer.
"""


class Store:
    """The records and values of one persistent node.

    Args:
        router: gets the routes to peers that announce themselves.
        rng: chooses which records of a crowded topic a lookup gets.
    """

    def __init__(self, router: Router, *, rng: random.Random) -> None:
        self.announcements = announcements = Announcements(router, rng=rng)
        self.values = values = Values()
        self.reads: dict[int, Read] = {
            FIND_PEER: lambda target, value, now: announcements.find_peer(target, now),
            LOOKUP: lambda target, value, now: announcements.lookup(target, now),
            MUTABLE_GET: values.get_mutable_untrusted,
            IMMUTABLE_GET: lambda target, value, now: values.get_immutable(target, now),
        }
        """The commands that change nothing; their answers carry a ticket and closer nodes."""

    def handle(
        self, request: CommandRequest, node_id: bytes, *, now: float, unix_time: float
    ) -> Reply | None:
        """The answer to a request of a command in SERVED; None is silence.

        Args:
            request: its token, if it has one, is valid.
            node_id: our own id, which signatures must name.
            unix_time: seconds since 1970, to judge a peer's `bump`.
        """
        command, target = request.command, request.target
        if command in self.reads:
            if target is None:
                return None
            try:
                value = self.reads[command](target, request.value, now)
            except RemoteProtocolError:
                return None
            return Reply(value, closer_nodes=True, token=True)
        if command in (ANNOUNCE, UNANNOUNCE):
            taken = self.announcements.receive_untrusted(
                request, node_id, now=now, unix_time=unix_time
            )
            return Reply(None) if taken else None
        if command == MUTABLE_PUT:
            return self.values.put_mutable_untrusted(request, now)
        if command == IMMUTABLE_PUT:
            return self.values.put_immutable_untrusted(request, now)
        # Compat: of a plugin that it does not have, hyperdht 6.34.0 lib/persistent.js says nothing.
        return None
