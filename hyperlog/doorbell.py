"""Wakes a trio loop from any thread, at next to no cost while the loop is awake.

Theory of operation. Whoever has work for the loop puts it into a deque and rings. Waking a loop
costs 50 to 100 times as much as the append, so it is done only when the loop has said that it
waits:

    loop:    waiting = True; if there is no work: wait for the bell
    caller:  append; if waiting: ring, which sets waiting = False and wakes the loop

The loop looks for work after it has set the flag, the caller at the flag after it has appended: one
of the two sees the other. Two callers may both wake the loop, which is harmless. A caller that is
torn away between its last two steps (an exception out of a signal handler) loses a wake-up, so the
loop waits MAX_WAIT seconds at most.

Before there is a loop, and in a child process after a fork, the first ring starts it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

__all__ = ["Doorbell"]

MAX_WAIT: Final = 5.0  # s


class Doorbell:
    """One loop's bell. `if bell.waiting: bell.ring()` is the whole of it for callers."""

    __slots__ = ("_event", "_wake", "waiting")

    def __init__(self, start: Callable[[], object]) -> None:
        """`start` is called by the first ring, in the thread of the caller."""
        self.waiting = True
        self._wake = start
        self._event = trio.Event()

    def ring(self) -> None:
        """Wake the loop; from any thread."""
        self.waiting = False
        self._wake()

    def attach(self) -> None:
        """In a trio task: from now on this loop is what gets woken."""
        token = trio.lowlevel.current_trio_token()

        def wake() -> None:
            try:
                token.run_sync_soon(self._answer)
            except trio.RunFinishedError:
                pass  # nobody is left to do the work

        self._wake = wake

    def detach(self) -> None:
        """The loop has ended: ringing does nothing from now on."""
        self._wake = lambda: None
        self.waiting = False

    def _answer(self) -> None:
        self._event.set()

    async def wait(self, has_work: Callable[[], bool]) -> None:
        """Return when there is work, after a ring, or after MAX_WAIT seconds."""
        self._event = trio.Event()
        self.waiting = True
        if has_work():
            await trio.lowlevel.checkpoint()
        else:
            with trio.move_on_after(MAX_WAIT):
                await self._event.wait()
        self.waiting = False
