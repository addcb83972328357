"""Service: what all connections and requests of one source share: its log, and what that holds.

A source is what a log file is of: a public key, or the names of an instance that has none. What its
file holds is read back once, when somebody comes with records for it, and forgotten when nobody has
been there for long: it stands in the file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import trio

from hyperlog.errors import SinkError
from hyperlog.keywriter import KeyWriter
from hyperlog.posting import Numbering
from hyperlog.resume import ResumeState
from hyperlog.sinks.writer import LogWriter

__all__ = ["Source", "Sources"]

MAX_SOURCES: Final = 4096  # whose last seen numbers are kept in memory
MAX_SCANS: Final = 2  # log files read back at a time; each may take some 10 MB


@dataclass(slots=True)
class Source:
    """One of them; `writer` is there while it is visited."""

    numbering: Numbering = field(default_factory=Numbering)
    """of records that bring no number"""
    _writer: KeyWriter | None = None
    """None until the log file was read back"""
    _visitors: int = 0
    _loading: trio.Lock = field(default_factory=trio.Lock)

    @property
    def writer(self) -> KeyWriter:
        assert self._writer is not None, "a source has a writer while it is visited"
        return self._writer

    @property
    def is_idle(self) -> bool:
        return not self._visitors and (self._writer is None or not self._writer.busy)


class Sources:
    """All of a server's."""

    def __init__(
        self,
        writer: LogWriter,
        nursery: trio.Nursery,
        report_fault: Callable[[SinkError], object],
    ) -> None:
        """`nursery` runs the writing; `report_fault` hears of each attempt that failed."""
        self._writer = writer
        self._nursery = nursery
        self._report_fault = report_fault
        self._sources: dict[bytes, Source] = {}
        self._scan_limiter = trio.CapacityLimiter(MAX_SCANS)

    def __len__(self) -> int:
        """How many are in memory."""
        return len(self._sources)

    @asynccontextmanager
    async def visit(self, key: bytes) -> AsyncIterator[Source]:
        """The source of this name, to bring lines for.

        Raises:
            SinkError: its log file cannot be read back.
        """
        source = self._sources.pop(key, None) or Source()
        self._sources[key] = source  # the one that was visited last is the last
        source._visitors += 1
        try:
            await self._load(key, source)
            yield source
        finally:
            source._visitors -= 1
            self._forget_idle()

    async def _load(self, key: bytes, source: Source) -> None:
        """Read back, once for each source, which records its log file has."""
        if source._writer is not None:
            return
        async with source._loading:
            if source._writer is None:
                sessions = await trio.to_thread.run_sync(
                    self._writer.resume, key, limiter=self._scan_limiter, abandon_on_cancel=True
                )
                source._writer = KeyWriter(
                    key, ResumeState(sessions), self._writer, self._nursery, self._report_fault
                )

    def _forget_idle(self) -> None:
        """Keep the memory bounded: what is forgotten here stands in the log files."""
        if len(self._sources) > MAX_SOURCES:
            idle = (key for key, source in self._sources.items() if source.is_idle)
            for key in list(islice(idle, len(self._sources) - MAX_SOURCES)):
                del self._sources[key]
