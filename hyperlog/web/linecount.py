"""Counts what is written: lost records by reason, and traces by where they were made.

The second is hypertrace-prometheus's `trace_counter`, for all applications at once. It costs some
microseconds a trace, so it counts from the first time that it is asked for, and no longer than it
is asked for again and again. Called in the thread that writes.

Source: hypertrace-prometheus 1.0.0, index.js.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from hyperlog.records import DEFAULT_APPLICATION

__all__ = ["TRACE_LABELS", "LineCounter"]

IDLE_TIME: Final = 600.0  # s without a question until traces are no longer counted
MAX_WITH_OBJECTS: Final = 1000  # series, then objects are not told apart any more
MAX_SERIES: Final = 2000  # series, then new ones are counted together
MAX_LABEL: Final = 128  # characters
MAX_REASONS: Final = 32
TRACE_LABELS: Final = (
    "app",
    "id",
    "object_classname",
    "object_id",
    "parent_object_classname",
    "parent_object_id",
    "caller_functionname",
    "caller_filename",
)
"""those of the original, and the application"""

_GAP = re.compile(rb'"gap":\{[^{}]*?"count":(\d{1,16})[^{}]*?"reason":"([a-z0-9-]{1,64})"')


class _Object(Struct, rename={"class_name": "className"}, gc=False):
    class_name: str = ""
    id: int | None = None


class _Caller(Struct, rename={"function_name": "functionName"}, gc=False):
    function_name: str = ""
    filename: str = ""


class _Trace(Struct, rename={"parent": "parentObject"}, gc=False):
    app: str = DEFAULT_APPLICATION
    id: str | None = None
    object: _Object | None = None
    parent: _Object | None = None
    caller: _Caller | None = None


_decode = msgspec.json.Decoder(_Trace).decode
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class LineCounter:
    """`lines_written` is for one thread, the rest for another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost: Counter[str] = Counter()
        """records told to be lost, by reason"""
        self.left_out = 0
        """traces beyond MAX_SERIES"""
        self._clock = clock
        self._counts: dict[tuple[str, ...], int] = {}
        self._wanted_until = 0.0

    def traces(self) -> list[tuple[tuple[str, ...], int]]:
        """Counts by the values of TRACE_LABELS; have them counted for some more time."""
        self._wanted_until = self._clock() + IDLE_TIME
        return list(self._counts.copy().items())

    def lines_written(self, source: bytes, lines: Sequence[bytes]) -> None:
        """Lines were appended to the log of `source`."""
        count_traces = self._wanted_until and self._clock() < self._wanted_until
        for line in lines:
            if b'"gap":{' in line:
                self._count_gap(line)
            elif count_traces and b'"object":' in line:
                self._count_trace(line)

    def _count_gap(self, line: bytes) -> None:
        if b'"userId"' in line[:64]:
            return  # a sender's record, in which the search could take seconds
        match = _GAP.search(line)
        if match is not None:
            reason = match[2].decode()
            if reason not in self.lost and len(self.lost) >= MAX_REASONS:
                reason = "other"
            self.lost[reason] += int(match[1])

    def _count_trace(self, line: bytes) -> None:
        try:
            trace = _decode(line)
        except _UNDECODABLE:
            return
        source, caller, parent = trace.object, trace.caller, trace.parent or _Object()
        if source is None or caller is None:
            return
        labels = (
            trace.app,
            trace.id or "",
            source.class_name,
            _number(source.id),
            parent.class_name,
            _number(parent.id),
            caller.function_name,
            caller.filename,
        )
        if labels not in self._counts and len(self._counts) >= MAX_WITH_OBJECTS:
            labels = (*labels[:3], "", labels[4], "", *labels[6:])
        if labels in self._counts:
            self._counts[labels] += 1
        elif len(self._counts) < MAX_SERIES and max(map(len, labels)) <= MAX_LABEL:
            self._counts[labels] = 1
        else:
            self.left_out += 1


def _number(id: int | None) -> str:
    return "" if id is None else str(id)
