"""A daemon thread that runs one trio function, and is not there any more after a fork."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import trio

__all__ = ["Worker"]

logger = logging.getLogger("hyperlog.worker")

_abandoned: list[object] = []
"""What belonged to the parent's threads: kept for ever, since taking it apart would run the
clean-up of suspended tasks in the child, on sockets that the parent still uses."""


class Worker:
    """One run of an async function in a thread of its own."""

    def __init__(self, name: str, run: Callable[[], Awaitable[Any]]) -> None:
        self._run = run
        self._token: trio.lowlevel.TrioToken | None = None
        self._root: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()
        self._cancelled = False
        self.has_failed = False
        """whether the last attempt to start the thread failed"""
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> bool:
        """Start the thread; False where the system or the interpreter's end forbids it. May be
        tried again then."""
        try:
            self._thread.start()
        except RuntimeError as err:
            self.has_failed = True
            logger.warning("no thread can be started (%s): records are kept, but not sent", err)
            return False
        self.has_failed = False
        return True

    def cancel(self) -> None:
        """Ask the function to end; from any thread."""
        self._cancelled = True
        if self._token is not None:  # else the thread looks at the flag after it has set the token
            try:
                self._token.run_sync_soon(self._scope.cancel)
            except trio.RunFinishedError:
                pass  # ended already

    def join(self, timeout: float | None) -> bool:
        """Wait for the end; True when the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.get_ident() == self._thread.ident

    def abandon(self) -> None:
        """In a child after a fork: keep what the thread had, untouched."""
        _abandoned.append((self, self._root))

    def _main(self) -> None:
        try:
            trio.run(self._supervise)
        except Exception:
            # The last line of defence: an application's log is a better place than its stderr.
            logger.exception("the client's thread has failed: records are no longer sent")

    async def _supervise(self) -> None:
        self._root = trio.lowlevel.current_root_task()
        self._token = trio.lowlevel.current_trio_token()
        if self._cancelled:
            self._scope.cancel()
        with self._scope:
            await self._run()
