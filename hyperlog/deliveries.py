"""Service: records that come in requests of their own, over HTTP for one.

request --messages--> Posting --lines--> KeyWriter --> log file
        <--reasons--------------------------'--durable-->'
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from hyperlog.connections import ConnectionManager
from hyperlog.errors import LogQuotaReached, SinkError
from hyperlog.gate import Gate
from hyperlog.keywriter import KeyWriter
from hyperlog.posting import Posting
from hyperlog.records import line_tags
from hyperlog.resume import Received, ResumeState
from hyperlog.senders import Permits, Sender
from hyperlog.sinks.writer import LogWriter
from hyperlog.sources import Sources

__all__ = ["Deliveries"]

BATCH: Final = 1024  # messages handled before others get their turn, some ms
ROOM_PATIENCE: Final = 5.0  # s that a request waits for room before it is told to come again


class _Delivery:
    """A request's lines, until all of them are durable."""

    def __init__(self, resume: ResumeState) -> None:
        self.failure: str | None = None
        self._resume = resume
        self._pending = 0
        self._changed = trio.Event()

    def brought(self, received: Received) -> None:
        if received.lines or received.numbers:
            self._pending += 1

    def written(self, received: Received) -> None:
        self._resume.commit(received.numbers)
        self._pending -= 1
        if not self._pending:
            self._changed.set()

    def give_up(self, reason: str) -> None:
        self.failure = reason
        self._changed.set()

    async def wait_durable(self) -> None:
        """Raises SinkError if some of the lines are given up."""
        while self._pending and self.failure is None:
            self._changed = trio.Event()
            await self._changed.wait()
        if self.failure is not None:
            raise SinkError("the server cannot write at present: send it again later")


class Deliveries:
    """All requests of a server."""

    def __init__(
        self,
        writer: LogWriter,
        sources: Sources,
        gate: Gate,
        permits: Permits,
        connections: ConnectionManager,
        report_fault: Callable[[SinkError], object],
        *,
        max_record: int,
    ) -> None:
        """`max_record` in bytes."""
        self.requests = 0
        self.records = 0
        """made into lines"""
        self.repeats = 0
        self.bad_messages = 0
        self._writer = writer
        self._sources = sources
        self._gate = gate
        self._permits = permits
        self._connections = connections
        self._report_fault = report_fault
        self._max_record = max_record

    async def take(self, sender: Sender, messages: Sequence[bytes]) -> list[str | None]:
        """See `Intake.take`."""
        self._permits.permit(sender)
        self.requests += 1
        size = sum(map(len, messages))
        if sender.transport != "internal":  # what the server logs itself is not to be refused
            await self._gate.pace_requests(sender.source, len(messages), size)
        async with self._sources.visit(sender.source) as source:
            posting = Posting(
                sender.source,
                source.writer.resume,
                source.numbering,
                user=sender.told_instance,
                tags=line_tags(sender.told_application, sender.told_instance),
                max_record=self._max_record,
            )
            try:
                await self._post(posting, source.writer, messages)
            except SinkError as err:
                self._post_counts(sender, posting, messages, size, str(err))
                raise
            self._post_counts(sender, posting, messages, size, None)
        return posting.reasons

    async def _post(self, posting: Posting, writer: KeyWriter, messages: Sequence[bytes]) -> None:
        delivery = _Delivery(writer.resume)
        with writer.connected(delivery):
            for start in range(0, len(messages), BATCH):
                await self._wait_for_room(posting.source, writer)
                if delivery.failure is not None:
                    break
                received = posting.take(messages[start : start + BATCH], time.time())
                delivery.brought(received)
                writer.add(received, delivery)
            await delivery.wait_durable()

    async def _wait_for_room(self, source: bytes, writer: KeyWriter) -> None:
        try:
            self._writer.check_quota(source)
        except LogQuotaReached as err:
            self._report_fault(err)
            # Where the files are and what to do about it is for the operator alone.
            raise LogQuotaReached("the server has no room for more records at present") from None
        with trio.move_on_after(ROOM_PATIENCE) as scope:
            await writer.wait_for_room()
        if scope.cancelled_caught:
            raise SinkError("the server cannot write at present: send it again later")

    def _post_counts(
        self,
        sender: Sender,
        posting: Posting,
        messages: Sequence[bytes],
        size: int,
        error: str | None,
    ) -> None:
        self.records += posting.records
        self.repeats += posting.repeats
        self.bad_messages += sum(reason is not None for reason in posting.reasons)
        self._connections.posted(
            sender.told_application,
            sender.told_instance,
            transport=sender.transport,
            socket=sender.socket,
            records=posting.records,
            size=size,
            last_message=messages[-1] if messages else b"",
            dropped=posting.dropped,
            error=error,
        )
