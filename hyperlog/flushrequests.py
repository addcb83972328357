"""Who waits until everything that was put so far is delivered, or can never be.

A request may come from any thread, behind the traces that it means. First it waits until these have
numbers, then until a server holds what is below the next one. Whoever traces without a pause is not
waited for: what comes behind a request is none of its concern.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from hyperlog.session import ClientSession, TraceQueue

__all__ = ["FlushRequests", "Resolve"]

MAX_NUMBERED: Final = 1024  # waiting at a time, those that nobody waits for any more included

Resolve: TypeAlias = Callable[[bool], object]
"""Told, in the loop's thread, whether everything that was asked for was delivered."""


class FlushRequests:
    """Those of one session. `add` and `resolve_all` are for any thread, the rest for the loop's."""

    def __init__(self, session: ClientSession, queue: TraceQueue) -> None:
        """`queue` is where the session's traces wait for their numbers."""
        self._session = session
        self._queue = queue
        self._taken = 0
        """traces that were taken out of the queue"""
        self._new: deque[Resolve] = deque()
        self._unnumbered: deque[tuple[int, Resolve]] = deque()
        """requests, and how many traces are to be taken until theirs have numbers"""
        self._numbered: deque[tuple[int, Resolve]] = deque()

    def add(self, resolve: Resolve) -> None:
        """Have `resolve` called once it is decided."""
        self._new.append(resolve)

    @property
    def has_new(self) -> bool:
        """Whether some came that `begin_round` has not seen."""
        return bool(self._new)

    @property
    def is_urgent(self) -> bool:
        """Whether somebody waits for traces to get their numbers."""
        return bool(self._new or self._unnumbered)

    def begin_round(self) -> None:
        """Traces are about to be taken out of the queue."""
        for _ in range(len(self._new)):
            resolve = self._new.popleft()
            self._unnumbered.append((self._taken + self._queue.pending, resolve))

    def end_round(self, taken: int, *, emptied: bool) -> None:
        """So many traces were taken, and have numbers; `emptied` says that these were all."""
        self._taken += taken
        while self._unnumbered and (emptied or self._unnumbered[0][0] <= self._taken):
            resolve = self._unnumbered.popleft()[1]
            self._numbered.append((self._session.spool.next_number, resolve))
        self.resolve_delivered()
        while len(self._numbered) > MAX_NUMBERED:
            self._numbered.popleft()[1](False)

    def resolve_delivered(self) -> None:
        """A server may hold more than before, or something had to give way."""
        while self._numbered and self._numbered[0][0] <= self._session.first_unconfirmed:
            number, resolve = self._numbered.popleft()
            resolve(self._session.is_delivered(number))  # not if they had to give way

    def resolve_all(self) -> None:
        """The loop has ended. A thread that adds one may come here at the same time."""
        delivered = self._session.all_delivered
        while True:
            try:
                for requests in (self._numbered, self._unnumbered):
                    while requests:
                        self._new.append(requests.popleft()[1])
                resolve = self._new.popleft()
            except IndexError:
                return
            resolve(delivered)
