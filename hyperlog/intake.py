"""Where the records of all transports come in: by connections and by requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from hyperlog.connections import ConnectionManager
from hyperlog.control import ServerOffer
from hyperlog.deliveries import Deliveries
from hyperlog.errors import SinkError
from hyperlog.gate import Gate, Guest
from hyperlog.reception import ReceptionLimits
from hyperlog.senders import Permits, Sender
from hyperlog.sinks.writer import LogWriter
from hyperlog.sources import Sources
from hyperlog.visits import Link, Visits

__all__ = ["Intake", "IntakeStatistics", "Link", "Sender"]

logger = logging.getLogger("hyperlog.server")

FAULT_LOG_INTERVAL: Final = 60.0  # s between two log entries about files that cannot be written


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeStatistics:
    """Counts since the start, of connections and requests."""

    connections: int
    """now"""
    accepted: int
    refused: int
    """because too many were open"""
    refusals: dict[str, int]
    """by code, see docs/protocol/session.md section 2"""
    requests: int
    records: int
    repeats: int
    """records that had been written before"""
    bad_messages: int
    write_failures: int


class Intake:
    """For one server; `watch` runs beside it."""

    def __init__(
        self,
        writer: LogWriter,
        nursery: trio.Nursery,
        gate: Gate,
        permits: Permits,
        connections: ConnectionManager,
        *,
        limits: ReceptionLimits,
        offer: ServerOffer,
    ) -> None:
        """`nursery` runs the writing; `offer` is what greetings say of this server."""
        self.connections = connections
        self.limits = limits
        self._permits = permits
        self._write_failures = 0
        self._fault_logged_at = -FAULT_LOG_INTERVAL
        fault = self._report_fault
        self._sources = Sources(writer, nursery, fault)
        self._visits = Visits(
            self._sources, gate, permits, connections, fault, limits=limits, offer=offer
        )
        self._deliveries = Deliveries(
            writer,
            self._sources,
            gate,
            permits,
            connections,
            fault,
            max_record=limits.max_record,
        )

    def statistics(self) -> IntakeStatistics:
        visits, deliveries = self._visits, self._deliveries
        return IntakeStatistics(
            connections=len(visits),
            accepted=visits.accepted,
            refused=visits.refused,
            refusals=dict(self._permits.refusals),
            requests=deliveries.requests,
            records=visits.records + deliveries.records,
            repeats=visits.repeats + deliveries.repeats,
            bad_messages=visits.bad_messages + deliveries.bad_messages,
            write_failures=self._write_failures,
        )

    async def watch(self) -> None:
        """Look after open connections until cancelled: who must go, and what they are like."""
        await self._visits.watch()

    def enter(self, link: Link, sender: Sender) -> Guest | None:
        """A place among the connections, for `converse`; None if there is none for this one."""
        return self._visits.enter(link, sender)

    def leave(self, guest: Guest) -> None:
        """Give a place back that is not to come to `converse`."""
        self._visits.leave(guest)

    async def converse(self, link: Link, sender: Sender, guest: Guest) -> None:
        """Serve one connection to its end, and close it; nothing it does can hurt the others.

        A sender without a key is greeted as if nothing were known of it, for only its hello tells
        which instance it is: then `sender` is corrected. Without a hello `sender` stands.
        """
        await self._visits.converse(link, sender, guest)

    async def take(self, sender: Sender, messages: Sequence[bytes]) -> list[str | None]:
        """Write the records of one request; returns when they are durable.

        For each message, a JSON object as in docs/protocol/trace-protocol.md section 1, comes back
        None or why it was not taken. Those with `traceSessionId` and `traceNumber` are written once
        however often they come, but each session's have to come in order: what is overtaken counts
        as a repeat. Those without get a session and numbers of the server's.

        Raises:
            TokenError: the sender's token, or that it has none, does not allow it.
            BadRecord: its names cannot be used.
            SinkError: nothing, or not all of it, is durable: it may be sent again later. What has
                no numbers may then be written twice.
            LogQuotaReached: nothing was written, for there is no room.
            RateExceeded: nothing was written, for the sender brings too much.
        """
        return await self._deliveries.take(sender, messages)

    def _report_fault(self, error: SinkError) -> None:
        self._write_failures += 1
        now = time.monotonic()
        if now - self._fault_logged_at >= FAULT_LOG_INTERVAL:
            self._fault_logged_at = now
            logger.error("%s. Clients keep what is not written until it is", error)
