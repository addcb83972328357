"""What a command that runs for long tells at every SIGUSR1; Windows has no such signal."""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

__all__ = ["tell_at_user_signal"]


async def tell_at_user_signal(
    tell: Callable[[], object], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Call `tell` at every SIGUSR1 until cancelled; without the signal, return."""
    if not hasattr(signal, "SIGUSR1"):
        task_status.started()
        return
    with trio.open_signal_receiver(signal.SIGUSR1) as received:
        task_status.started()
        async for _ in received:
            tell()
