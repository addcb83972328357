"""Service: has the lines of one key written, and tells its connections what is durable.

Connections put in what they have received and read on while it is being written; `wait_for_room`
holds them back when the disk is slower than they are, so that in the end the senders' windows
close. One task for each key with something to write keeps the order. What cannot be written is
tried again, when a quota leaves room or else after FAULT_RETRY, and is given up after
FAULT_PATIENCE: the connections are ended then, and clients keep their records, for nothing of it
was acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import trio

from hyperlog.errors import LogQuotaReached, SinkError
from hyperlog.keylog import KeyLog
from hyperlog.reception import ServerConversation
from hyperlog.resume import Received, ResumeState
from hyperlog.sinks.writer import LogWriter

__all__ = ["Answerer", "Bringer", "KeyWriter"]

MAX_QUEUED: Final = 2 * 1024 * 1024  # bytes of one key that wait to be written
FAULT_RETRY: Final = 0.5  # s between two attempts to write
FAULT_PATIENCE: Final = 30.0  # s of failing attempts until lines are given up


class Answerer:
    """One connection's conversation, and who waits for what it has to say."""

    def __init__(self, conversation: ServerConversation, end: Callable[[], object]) -> None:
        """`end` ends the connection: what it brought is given up."""
        self.conversation = conversation
        self.end = end
        self._waiting = trio.lowlevel.ParkingLot()

    def written(self, received: Received) -> None:
        self.conversation.written(received)
        self.wake()

    def give_up(self, reason: str) -> None:
        """What the connection brought will not be written."""
        self.conversation.violation = reason
        self.end()

    def wake(self) -> None:
        if self._waiting and self.conversation.has_messages:
            self._waiting.unpark_all()

    async def next_messages(self) -> list[bytes]:
        """What is to be sent to the client, at least one message."""
        while not self.conversation.has_messages:
            await self._waiting.park()
        return self.conversation.messages_to_send()


class Bringer(Protocol):
    """What brings lines, such as an Answerer."""

    def written(self, received: Received) -> None: ...

    def give_up(self, reason: str) -> None: ...


class KeyWriter:
    """One key's log, for all its connections."""

    def __init__(
        self,
        key: bytes,
        resume: ResumeState,
        writer: LogWriter,
        nursery: trio.Nursery,
        report_fault: Callable[[SinkError], object],
    ) -> None:
        """`nursery` runs the writing; `report_fault` hears of each attempt that failed."""
        self.resume = resume
        self._key = key
        self._log = KeyLog(resume)
        self._writer = writer
        self._nursery = nursery
        self._report_fault = report_fault
        self._writing = False
        self._room = trio.lowlevel.ParkingLot()
        self._bringers: set[Bringer] = set()

    @property
    def busy(self) -> bool:
        """Whether something waits to be written."""
        return self._writing

    @contextmanager
    def connected(self, bringer: Bringer) -> Iterator[None]:
        """While it brings something: it is told when lines are given up."""
        self._bringers.add(bringer)
        try:
            yield
        finally:
            self._bringers.discard(bringer)

    def add(self, received: Received, bringer: Bringer | None = None) -> None:
        """Have the lines written; the bringer hears when they are durable."""
        self._log.add(received, bringer)
        if self._log and not self._writing:
            self._writing = True
            self._nursery.start_soon(self._write_out)

    async def wait_for_room(self) -> None:
        """Return when more may be brought; to be called before reading on from a client."""
        while self._log.queued_bytes >= MAX_QUEUED:
            await self._room.park()
        await self._writer.wait_for_room(self._key)

    async def _write_out(self) -> None:
        log = self._log
        failing_since: float | None = None
        try:
            while log:
                lines = log.lines_to_write()
                try:
                    if lines:
                        await self._writer.write(self._key, lines)
                except SinkError as error:
                    log.wrote(error.lines_written)
                    self._report_fault(error)
                    now = trio.current_time()
                    if failing_since is None or error.lines_written:
                        failing_since = now
                    if now - failing_since >= FAULT_PATIENCE:
                        self._give_up()
                    elif isinstance(error, LogQuotaReached):
                        with trio.move_on_at(failing_since + FAULT_PATIENCE):
                            await self._writer.wait_for_room(self._key)
                    else:
                        await trio.sleep(FAULT_RETRY)
                else:
                    failing_since = None
                    log.wrote(len(lines))
                self._room.unpark_all()
        finally:
            self._writing = False

    def _give_up(self) -> None:
        self._log.give_up()
        for bringer in list(self._bringers):
            bringer.give_up("what it sent could not be written")
