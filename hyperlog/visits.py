"""Service: connections that bring records, whatever carries them.

    link --messages--> ServerConversation --lines--> KeyWriter --> log file
         <--acknowledgements--'                 '--durable-->'

One task reads from one connection: whatever has arrived is made into lines and handed to the writer
of its source, and while that is being written the next is read. Only what is durable is
acknowledged, and counted as seen. A peer that breaks the rules ends its connection and no other; a
client that is cut off sends again what was not written.

Wire: docs/protocol/session.md; docs/protocol/trace-protocol.md section 2.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
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
from hyperlog.errors import SessionRewound, SinkError
from hyperlog.gate import Gate, Guest
from hyperlog.keywriter import Answerer, KeyWriter
from hyperlog.reception import ReceptionLimits, ServerConversation
from hyperlog.records import instance_source, line_tags
from hyperlog.resume import Received
from hyperlog.senders import Permits, Sender
from hyperlog.sources import Sources

__all__ = ["Link", "Visits"]

logger = logging.getLogger("hyperlog.server")

BATCH: Final = 1024  # messages handled before other connections get their turn, some ms
WATCH_INTERVAL: Final = 0.5  # s between two looks at tokens and connections
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


class Visits:
    """All connections of a server; `watch` runs beside it."""

    def __init__(
        self,
        sources: Sources,
        gate: Gate,
        permits: Permits,
        connections: ConnectionManager,
        report_fault: Callable[[SinkError], object],
        *,
        limits: ReceptionLimits,
        offer: ServerOffer,
    ) -> None:
        """`offer` is what greetings say of this server."""
        self.accepted = 0
        self.refused = 0
        """because too many were open"""
        self._sources = sources
        self._gate = gate
        self._permits = permits
        self._connections = connections
        self._report_fault = report_fault
        self._limits = limits
        self._offer = offer
        self._visits: dict[_Visit, None] = {}
        self._records = self._repeats = self._bad_messages = 0  # of those that are over

    def __len__(self) -> int:
        """How many are open."""
        return len(self._visits)

    @property
    def records(self) -> int:
        """Made into lines, since the start."""
        return self._records + sum(one.records for one in self._conversations())

    @property
    def repeats(self) -> int:
        """Records that had been written before."""
        return self._repeats + sum(one.repeats for one in self._conversations())

    @property
    def bad_messages(self) -> int:
        return self._bad_messages + sum(one.bad_messages for one in self._conversations())

    def _conversations(self) -> Iterator[ServerConversation]:
        for visit in self._visits:
            if visit.conversation is not None and not visit.over:
                yield visit.conversation

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

    # -- one connection ---------------------------------------------------------------------------

    def enter(self, link: Link, sender: Sender) -> Guest | None:
        """See `Intake.enter`."""
        guest = self._gate.enter(sender.source, link, listed=sender.key is not None)
        if guest is None:
            self.refused += 1
        return guest

    def leave(self, guest: Guest) -> None:
        """See `Intake.leave`."""
        self._gate.leave(guest)

    async def converse(self, link: Link, sender: Sender, guest: Guest) -> None:
        """See `Intake.converse`."""
        self.accepted += 1
        visit = _Visit(link, sender, guest, self.accepted)
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
                self._connections.closed(visit.live, error)
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
                limits=self._limits,
                offer=self._offer,
                admit=lambda hello: self._admit(visit, hello),
            )
            return await self._converse(visit, visit.conversation, source.writer, messages)

    async def _meet(self, visit: _Visit) -> list[bytes]:
        """Find out whose connection it is from its first messages; none if it was turned away."""
        link, sender = visit.link, visit.sender
        await link.send_many([encode_greeting(Greeting(hyperlog=self._offer.at(time.time())))])
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
        self._gate.identify(visit.guest, sender.source)
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
                await link.send_many([conversation.greeting(time.time())])
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
            self._records += conversation.records
            self._repeats += conversation.repeats
            self._bad_messages += conversation.bad_messages
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
            self._connections.closed(visit.live)
        visit.live = self._connections.opened(
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
            self._connections.heard(live, trio.current_time() - heard_at)

    def _count(
        self, visit: _Visit, conversation: ServerConversation, batch: Sequence[bytes]
    ) -> None:
        live = visit.live
        if live is None:
            return
        live.records, live.dropped = conversation.records, conversation.dropped
        live.size += sum(map(len, batch))
        last = batch[-1]
        if last:
            start = last.rfind(b"\n") + 1
            live.last_message = last[start : start + HEAD_SIZE]
            live.last_message_at = time.time()
        self._connections.heard(live)


def _socket_error(error: Exception) -> tuple[str, str]:
    cause = error.__cause__
    code: str = getattr(cause, "code", "EPIPE")
    return code, SOCKET_ERRORS.get(code, str(cause or error))
