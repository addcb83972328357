"""Service: takes the records of all transports in, by connections and by requests.

    link --converse--> ServerConversation --lines--> KeyWriter --> log file
    request --take--> Posting ----------------lines--^   '--durable--> acknowledgement, answer

One task reads from one connection: whatever has arrived is made into lines and handed to the writer
of its source, and while that is being written the next is read. Only what is durable is
acknowledged, and counted as seen. A peer that breaks the rules ends its connection and no other; a
client that is cut off sends again what was not written.

Wire: docs/protocol/session.md; docs/protocol/trace-protocol.md section 2.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from hyperlog.config import Address
from hyperlog.connections import ConnectionManager, LiveConnection
from hyperlog.control import (
    Greeting,
    Hello,
    Refusal,
    ServerOffer,
    encode_greeting,
    encode_refusal,
    hello_of_untrusted,
    is_hello_untrusted,
)
from hyperlog.errors import (
    LogQuotaReached,
    SessionRewound,
    SinkError,
)
from hyperlog.gate import Gate, Guest
from hyperlog.keywriter import Answerer, KeyWriter
from hyperlog.posting import Posting
from hyperlog.reception import ReceptionLimits, ServerConversation
from hyperlog.records import instance_source, line_tags
from hyperlog.resume import Received, ResumeState
from hyperlog.senders import Permits, Sender
from hyperlog.sinks.writer import LogWriter
from hyperlog.sources import Sources

__all__ = ["Intake", "IntakeStatistics", "Link", "Sender"]

logger = logging.getLogger("hyperlog.server")

BATCH: Final = 1024  # messages handled before other connections get their turn, some ms
WATCH_INTERVAL: Final = 0.5  # s between two looks at tokens and connections
ROOM_PATIENCE: Final = 5.0  # s that a request waits for room before it is told to come again
FAULT_LOG_INTERVAL: Final = 60.0  # s between two log entries about files that cannot be written
CLOSE_TIMEOUT: Final = 0.5  # s that open connections have to end when the server stops
HEAD_SIZE: Final = 256  # bytes kept of the last record of a connection
SOCKET_ERRORS: Final = {
    "ECONNRESET": "connection reset by peer",
    "ETIMEDOUT": "connection timed out",
}
"""What the JavaScript server notes for these codes: the texts of libuv."""


class Link(Protocol):
    """A connection that carries whole messages in order; `hyperlog.dht.Connection` is one.

    It may also have `round_trip_time` (s or None) and `heard_at` (when the other end last gave a
    sign of life, in trio's time).
    """

    @property
    def authenticated(self) -> bool:
        """Whether the other end has proved who it is."""
        ...

    @property
    def remote_address(self) -> Address | None: ...

    @property
    def path(self) -> str: ...

    async def send_many(self, values: Sequence[bytes], /) -> None: ...

    async def receive_many(self) -> list[bytes]:
        """What has arrived, at least one message. trio.EndOfChannel at an orderly end, and
        trio.BrokenResourceError, whose cause may have a `code`, at another."""
        ...

    async def aclose(self) -> None: ...

    def abort(self) -> None: ...


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


@dataclass(slots=True)
class _Counts:
    accepted: int = 0
    refused: int = 0
    requests: int = 0
    records: int = 0
    repeats: int = 0
    bad_messages: int = 0
    write_failures: int = 0


@dataclass(slots=True, eq=False)
class _Visit:
    """One connection, from its greeting to its end."""

    link: Link
    sender: Sender
    guest: Guest
    number: int
    conversation: ServerConversation | None = None
    live: LiveConnection | None = None
    """once it is known whose connection it is"""
    scope: trio.CancelScope | None = None
    """of the tasks that read and answer"""
    over: bool = False
    """what it brought is counted"""

    def turn_away(self, refusal: Refusal) -> None:
        if self.conversation is None or self.scope is None:
            self.link.abort()
        else:
            self.conversation.refuse(refusal)
            self.scope.cancel()


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
        self._gate = gate
        self._permits = permits
        self._offer = offer
        self._writer = writer
        self._sources = Sources(writer, nursery, self._report_fault)
        self._visits: dict[_Visit, None] = {}
        self._counts = _Counts()
        self._fault_logged_at = -FAULT_LOG_INTERVAL

    def statistics(self) -> IntakeStatistics:
        counts = self._counts
        open_now = [
            visit.conversation
            for visit in self._visits
            if visit.conversation is not None and not visit.over
        ]
        return IntakeStatistics(
            connections=len(self._visits),
            accepted=counts.accepted,
            refused=counts.refused,
            refusals=dict(self._permits.refusals),
            requests=counts.requests,
            records=counts.records + sum(one.records for one in open_now),
            repeats=counts.repeats + sum(one.repeats for one in open_now),
            bad_messages=counts.bad_messages + sum(one.bad_messages for one in open_now),
            write_failures=counts.write_failures,
        )

    async def watch(self) -> None:
        """Look after open connections until cancelled: who must go, and what they are like."""
        while True:
            await trio.sleep(WATCH_INTERVAL)
            self._permits.reload()
            for visit in list(self._visits):
                refusal = self._permits.check(visit.sender)
                if refusal is not None:
                    visit.turn_away(refusal)
                self._look(visit)

    # -- connections ------------------------------------------------------------------------------

    def enter(self, link: Link, sender: Sender) -> Guest | None:
        """A place among the connections, for `converse`; None if there is none for this one."""
        guest = self._gate.enter(sender.source, link, listed=sender.key is not None)
        if guest is None:
            self._counts.refused += 1
        return guest

    async def converse(self, link: Link, sender: Sender, guest: Guest) -> None:
        """Serve one connection to its end, and close it; nothing it does can hurt the others.

        A sender without a key is greeted as if nothing were known of it, for only its hello tells
        which instance it is: then `sender` is corrected. Without a hello `sender` stands.
        """
        self._counts.accepted += 1
        visit = _Visit(link, sender, guest, self._counts.accepted)
        self._visits[visit] = None
        logger.info("[%s] connected (%s)", sender.name, link.path)
        in_order, error = True, None
        try:
            error = await self._serve(visit)
            conversation = visit.conversation
            if conversation is not None and conversation.violation is not None:
                error = conversation.violation
                in_order = conversation.refusal is not None
                if conversation.refusal is not None:
                    self._permits.refused(sender, conversation.refusal)
                else:
                    logger.warning("[%s] cut off: %s", sender.name, error)
        except SinkError as err:
            in_order, error = False, "what it sent could not be written"
            self._report_fault(err)
        except Exception:  # isolates one peer from the rest
            in_order, error = False, "serving it failed"
            logger.exception("[%s] serving a connection failed", sender.name)
        finally:
            del self._visits[visit]
            self._gate.leave(guest)
            if visit.live is not None:
                self.connections.closed(visit.live, error)
            if in_order:
                with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await link.aclose()
            link.abort()
            logger.info("[%s] disconnected", sender.name)

    async def _serve(self, visit: _Visit) -> str | None:
        """Returns the text of the error that ended it, if one did."""
        messages: list[bytes] = []
        if visit.sender.key is None:
            try:
                messages = await self._meet(visit)
            except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            if not messages:
                return None
        async with self._sources.visit(visit.sender.source) as source:
            visit.conversation = ServerConversation(
                visit.sender.source,
                source.writer.resume,
                visit.number,
                limits=self.limits,
                offer=self._offer,
                admit=lambda hello: self._admit(visit, hello),
            )
            return await self._converse(visit, visit.conversation, source.writer, messages)

    async def _meet(self, visit: _Visit) -> list[bytes]:
        """Find out whose connection it is from its first messages; none if it was turned away."""
        link, sender = visit.link, visit.sender
        await link.send_many([encode_greeting(Greeting(hyperlog=self._offer))])
        messages: list[bytes] = []
        while not messages:
            messages = [message for message in await link.receive_many() if message]
        hello = hello_of_untrusted(messages[0])
        refusal = self._permits.admit(sender, hello)
        if refusal is not None:
            self._permits.refused(sender, refusal)
            if is_hello_untrusted(messages[0]):
                await self._say_last(link, [encode_refusal(refusal)])
            return []
        sender.source = instance_source(sender.told_application, sender.told_instance)
        return messages

    async def _converse(
        self,
        visit: _Visit,
        conversation: ServerConversation,
        writer: KeyWriter,
        messages: list[bytes],
    ) -> str | None:
        """`messages` are those that have been received already, behind a greeting."""
        link, error = visit.link, None
        try:
            if not messages:
                await link.send_many([conversation.greeting()])
            async with trio.open_nursery() as nursery:
                visit.scope = nursery.cancel_scope
                answerer = Answerer(conversation, nursery.cancel_scope.cancel)
                with writer.connected(answerer):
                    nursery.start_soon(self._answer, link, answerer)
                    error = await self._receive(visit, writer, answerer, messages)
                    nursery.cancel_scope.cancel()
            await self._say_last(link, conversation.closing_messages())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            error = _socket_error(err)
        finally:
            visit.over = True
            self._counts.records += conversation.records
            self._counts.repeats += conversation.repeats
            self._counts.bad_messages += conversation.bad_messages
        writer.add(Received(conversation.closing_lines(time.time(), error)))
        return None if error is None else error[1]

    async def _receive(
        self, visit: _Visit, writer: KeyWriter, answerer: Answerer, messages: list[bytes]
    ) -> tuple[str, str] | None:
        """Read to the end of the connection; the code and text of the error that ended it."""
        conversation, link = answerer.conversation, visit.link
        try:
            while conversation.violation is None:
                await writer.wait_for_room()
                messages = messages or await link.receive_many()
                count, size = len(messages), sum(map(len, messages))
                while messages:
                    batch, messages = messages[:BATCH], messages[BATCH:]
                    writer.add(conversation.receive_messages(batch, time.time()), answerer)
                    self._count(visit, conversation, batch)
                    del batch  # up to 16 MiB, while this may wait for as long as the client likes
                    answerer.wake()
                    if messages:
                        await writer.wait_for_room()
                await self._gate.pace(visit.guest, count, size)
        except trio.EndOfChannel:
            pass
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            return _socket_error(err)
        except SessionRewound as err:
            conversation.violation = str(err)
        return None

    async def _answer(self, link: Link, answerer: Answerer) -> None:
        try:
            while True:
                await link.send_many(await answerer.next_messages())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the task that reads gets the reason

    async def _say_last(self, link: Link, messages: list[bytes]) -> None:
        if messages:
            with trio.move_on_after(CLOSE_TIMEOUT):
                await link.send_many(messages)

    def _admit(self, visit: _Visit, hello: Hello | None) -> Refusal | None:
        sender, conversation = visit.sender, visit.conversation
        refusal = self._permits.admit(sender, hello)
        if refusal is None:
            if sender.application is not None and conversation is not None:
                conversation.tag(line_tags(sender.application, sender.told_instance))
            self._appear(visit)
        return refusal

    # -- who is there -----------------------------------------------------------------------------

    def _appear(self, visit: _Visit) -> None:
        """It is known whose connection it is."""
        sender = visit.sender
        if visit.live is not None:
            self.connections.closed(visit.live)
        visit.live = self.connections.opened(
            sender.told_application,
            sender.told_instance,
            transport=sender.transport,
            socket=sender.socket,
            key=sender.key,
            path=visit.link.path,
        )
        self._look(visit)

    def _look(self, visit: _Visit) -> None:
        live, link = visit.live, visit.link
        if live is None:
            # A JavaScript client that has sent nothing yet has no other way to tell that it is one.
            if visit.sender.key is not None and link.authenticated and not self._permits.required:
                self._appear(visit)
            return
        live.path = link.path
        live.round_trip_time = getattr(link, "round_trip_time", None)
        heard_at: float | None = getattr(link, "heard_at", None)
        if heard_at is not None:
            self.connections.heard(live, trio.current_time() - heard_at)

    def _count(
        self, visit: _Visit, conversation: ServerConversation, batch: Sequence[bytes]
    ) -> None:
        live = visit.live
        if live is None:
            return
        live.records, live.dropped = conversation.records, conversation.dropped
        live.bytes += sum(map(len, batch))
        last = batch[-1]
        if last:
            start = last.rfind(b"\n") + 1
            live.last_message = last[start : start + HEAD_SIZE]
            live.last_message_at = time.time()
        self.connections.heard(live)

    # -- requests ---------------------------------------------------------------------------------

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
        """
        self._permits.permit(sender)
        self._counts.requests += 1
        size = sum(map(len, messages))
        await self._gate.pace_requests(sender.source, len(messages), size)
        async with self._sources.visit(sender.source) as source:
            posting = Posting(
                sender.source,
                source.writer.resume,
                source.numbering,
                user=sender.told_instance,
                tags=line_tags(sender.told_application, sender.told_instance),
                max_record=self.limits.max_record,
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
        self._counts.records += posting.records
        self._counts.repeats += posting.repeats
        self._counts.bad_messages += sum(reason is not None for reason in posting.reasons)
        self.connections.posted(
            sender.told_application,
            sender.told_instance,
            transport=sender.transport,
            socket=sender.socket,
            records=posting.records,
            size=size,
            last_message=messages[-1][:HEAD_SIZE] if messages else b"",
            dropped=posting.dropped,
            error=error,
        )

    # -- faults -----------------------------------------------------------------------------------

    def _report_fault(self, error: SinkError) -> None:
        self._counts.write_failures += 1
        now = time.monotonic()
        if now - self._fault_logged_at >= FAULT_LOG_INTERVAL:
            self._fault_logged_at = now
            logger.error("%s. Clients keep what is not written until it is", error)


def _socket_error(error: Exception) -> tuple[str, str]:
    cause = error.__cause__
    code: str = getattr(cause, "code", "EPIPE")
    return code, SOCKET_ERRORS.get(code, str(cause or error))
