"""Which instances of which applications are there: over all transports, as they come and go.

An instance is known by its name within an application. It runs as long as one of its connections is
open and not silent, or, if it sends by requests of their own, for PRESENCE after the last of them.
Two connections of one instance are one that runs, and one that comes back goes on counting where it
was: what is remembered of instances is bounded, not what they may do.

Nothing here reads from a connection. Whoever does tells what it sees, at whatever rate.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from hyperlog.records import iso_time

__all__ = ["ConnectionManager", "LiveConnection"]

SILENCE: Final = 60.0  # s without a sign of life until a connection no longer counts
PRESENCE: Final = 300.0  # s for which an instance counts as running after a request of its own
MAX_INSTANCES: Final = 4096  # remembered without an open connection
MAX_ERROR: Final = 200  # characters
HEAD_SIZE: Final = 256  # bytes of a message in which its time is looked for

_TIME = re.compile(rb'"traceTimestamp":"([0-9TZ:.+-]{20,35})"')


@dataclass(slots=True, eq=False)
class LiveConnection:
    """One connection of one instance; whoever serves it keeps the counts up to date."""

    application: str
    instance: str
    transport: str
    socket: str
    """`host:port`"""
    key: str | None
    """public key, hex"""
    path: str | None
    """direct, lan, punched, relayed"""
    connected_at: float
    """s since 1970"""
    seen_at: float
    """by the clock"""
    round_trip_time: float | None = None
    """s"""
    records: int = 0
    size: int = 0
    """bytes of messages"""
    dropped: int = 0
    """records that were told to be lost, or could not be taken"""
    last_message: bytes = b""
    """at least the head of the last record"""
    last_message_at: float = 0.0
    """s since 1970"""

    @property
    def lag(self) -> float | None:
        """s between the last record's own time and its arrival; None if it tells none."""
        match = _TIME.search(self.last_message, 0, HEAD_SIZE)
        try:
            made_at = datetime.fromisoformat(match[1].decode()).timestamp() if match else None
        except (ValueError, OverflowError):
            return None
        return None if made_at is None else round(self.last_message_at - made_at, 3)


@dataclass(slots=True)
class _Instance:
    connections: dict[LiveConnection, None] = field(default_factory=dict)
    """those that are open, the newest last"""
    posted: LiveConnection | None = None
    """stands for requests of their own"""
    records: int = 0
    """of connections that are closed, like the two that follow"""
    size: int = 0
    dropped: int = 0
    last_error: str | None = None

    @property
    def seen_at(self) -> float:
        seen = [connection.seen_at for connection in self.connections]
        return max(seen if self.posted is None else [*seen, self.posted.seen_at], default=0.0)

    def live(self, now: float) -> list[LiveConnection]:
        live = [one for one in self.connections if now - one.seen_at < SILENCE]
        posted = self.posted
        if posted is not None and now - posted.seen_at < PRESENCE:
            live.append(posted)
        return live

    def add_up(self, connection: LiveConnection) -> None:
        self.records += connection.records
        self.size += connection.size
        self.dropped += connection.dropped


class ConnectionManager:
    """For one server and one thread."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` is never set back; `wall_clock` gives seconds since 1970."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._instances: OrderedDict[tuple[str, str], _Instance] = OrderedDict()
        """those without a connection in the order in which they were heard of"""
        self._connected = 0
        """instances with a connection"""

    # -- what is told

    def opened(
        self,
        application: str,
        instance: str,
        *,
        transport: str,
        socket: str,
        key: bytes | None = None,
        path: str | None = None,
    ) -> LiveConnection:
        """An instance has connected; `closed` has to follow."""
        connection = self._connection(application, instance, transport, socket, key, path)
        entry = self._instance(application, instance)
        self._connected += not entry.connections
        entry.connections[connection] = None
        return connection

    def heard(self, connection: LiveConnection, silence: float = 0.0) -> None:
        """The other end gave a sign of life, `silence` s ago."""
        connection.seen_at = max(connection.seen_at, self._clock() - silence)

    def closed(self, connection: LiveConnection, error: str | None = None) -> None:
        """A connection has ended; `error` is why, unless that was its own wish."""
        name = connection.application, connection.instance
        instance = self._instances.get(name)
        if instance is None or connection not in instance.connections:
            return
        del instance.connections[connection]
        instance.add_up(connection)
        if error is not None:
            instance.last_error = error[:MAX_ERROR]
        if not instance.connections:
            self._connected -= 1
            self._instances.move_to_end(name)
            self._forget()

    def posted(
        self,
        application: str,
        instance: str,
        *,
        transport: str,
        socket: str,
        records: int,
        size: int,
        last_message: bytes = b"",
        dropped: int = 0,
        error: str | None = None,
    ) -> None:
        """An instance has sent records by a request of its own, which is no connection."""
        entry = self._instance(application, instance)
        now, posted = self._clock(), entry.posted
        if posted is None or now - posted.seen_at >= PRESENCE:
            if posted is not None:
                entry.add_up(posted)
            posted = self._connection(application, instance, transport, socket, None, None)
            entry.posted = posted
        posted.socket, posted.seen_at = socket, now
        posted.records += records
        posted.size += size
        posted.dropped += dropped
        posted.last_message = last_message[:HEAD_SIZE]
        posted.last_message_at = self._wall_clock()
        if error is not None:
            entry.last_error = error[:MAX_ERROR]
        if not entry.connections:
            self._instances.move_to_end((application, instance))
        self._forget()

    # -- what is known

    @property
    def open_connections(self) -> int:
        return sum(len(instance.connections) for instance in self._instances.values())

    def applications(self) -> dict[str, dict[str, Any]]:
        """The applications of which an instance is running now, as JSON values by name:

            {"cerco": {"running_instances": 1, "instances": {"a2b5": {"socket": "192.0.2.7:49737",
             "connected_at": "2026-11-20T23:41:09.954Z", …}}}}

        An instance's `socket`, `transport`, `path`, `round_trip_time` (s), `key` and `lag` (s) are
        those of its newest connection; `connected_at` is of the oldest. `records`, `bytes` and
        `dropped` count from when it was first heard of. Times are ISO texts.
        """
        now, wall = self._clock(), self._wall_clock()
        found: dict[str, dict[str, Any]] = {}
        for (application, name), instance in sorted(self._instances.items()):
            live = instance.live(now)
            if live:
                entry = found.setdefault(application, {"running_instances": 0, "instances": {}})
                entry["running_instances"] += 1
                entry["instances"][name] = _describe(instance, live, wall - now)
        return found

    # -- inside

    def _connection(
        self,
        application: str,
        instance: str,
        transport: str,
        socket: str,
        key: bytes | None,
        path: str | None,
    ) -> LiveConnection:
        return LiveConnection(
            application,
            instance,
            transport,
            socket,
            None if key is None else key.hex(),
            path,
            self._wall_clock(),
            self._clock(),
        )

    def _instance(self, application: str, instance: str) -> _Instance:
        return self._instances.setdefault((application, instance), _Instance())

    def _forget(self) -> None:
        """Of those without an open connection, drop the ones not heard of for longest."""
        excess = len(self._instances) - self._connected - MAX_INSTANCES
        if excess > 0:
            idle = [name for name, one in self._instances.items() if not one.connections]
            for name in idle[:excess]:
                del self._instances[name]


def _describe(instance: _Instance, live: list[LiveConnection], offset: float) -> dict[str, Any]:
    newest = max(live, key=lambda connection: connection.connected_at)
    every = [*instance.connections]
    if instance.posted is not None:
        every.append(instance.posted)
    return {
        "socket": newest.socket,
        "connected_at": iso_time(min(connection.connected_at for connection in live)),
        "last_seen": iso_time(instance.seen_at + offset),
        "connections": len(live),
        "transport": newest.transport,
        "path": newest.path,
        "round_trip_time": newest.round_trip_time,
        "records": instance.records + sum(connection.records for connection in every),
        "bytes": instance.size + sum(connection.size for connection in every),
        "dropped": instance.dropped + sum(connection.dropped for connection in every),
        "lag": newest.lag,
        "key": newest.key,
        "last_error": instance.last_error,
    }
