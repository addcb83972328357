"""How `hyperlog query` prints answers: as lines of JSON, or as tables for people."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from io import TextIOWrapper
from typing import Any, Final, Protocol

import msgspec

from hyperlog.store.answers import Bin, Top
from hyperlog.store.levels import LEVEL_NAMES
from hyperlog.store.recordjson import record_members
from hyperlog.store.records import StoredRecord, decode_body
from hyperlog.store.times import ms_iso
from hyperlog.store.words import scalar_text

__all__ = ["JsonPrinter", "Printer", "TablePrinter"]

BAR: Final = 40  # characters of the longest bar
MAX_NAME: Final = 24  # characters of a bucket or instance in a table
DEFAULT_WIDTH: Final = 160  # of a table that goes into a file
COLOURS: Final = {"WARNING": "33", "ERROR": "31", "CRITICAL": "1;31", "DEBUG": "2", "TRACE": "2"}

_encode = msgspec.json.Encoder().encode


class Printer(Protocol):
    def records(self, records: Sequence[StoredRecord]) -> None: ...
    def end(self, *, more: bool) -> None: ...
    def count(self, count: int) -> None: ...
    def histogram(self, bins: Sequence[Bin]) -> None: ...
    def top(self, field: str, top: Top) -> None: ...


class JsonPrinter:
    def records(self, records: Sequence[StoredRecord]) -> None:
        self._write(record_members(record) for record in records)

    def end(self, *, more: bool) -> None:
        pass

    def count(self, count: int) -> None:
        self._write([{"count": count}])

    def histogram(self, bins: Sequence[Bin]) -> None:
        self._write({"start": ms_iso(bin.start), "counts": _named(bin.counts)} for bin in bins)

    def top(self, field: str, top: Top) -> None:
        values = [{"value": value, "count": count} for value, count in top.values]
        self._write(
            [{"field": field, "values": values, "distinct": top.distinct, "records": top.records}]
        )

    def _write(self, entries: Iterable[dict[str, Any]]) -> None:
        # JSON is UTF-8 whatever the terminal's encoding is.
        sys.stdout.buffer.write(b"".join(_encode(entry) + b"\n" for entry in entries))


def _named(counts: dict[int, int]) -> dict[str, int]:
    return {LEVEL_NAMES[level]: count for level, count in sorted(counts.items())}


class TablePrinter:
    """One line for each, as wide as the terminal; nothing that a sender wrote moves the cursor."""

    def __init__(self) -> None:
        self._width = shutil.get_terminal_size((DEFAULT_WIDTH, 0)).columns
        self._is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._printed = 0
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")

    def records(self, records: Sequence[StoredRecord]) -> None:
        if not records:
            return
        bucket_width = max(min(len(record.bucket), MAX_NAME) for record in records)
        instance_width = max(min(len(record.instance), MAX_NAME) for record in records)
        for record in records:
            level = LEVEL_NAMES[record.level]
            time = ms_iso(record.time).replace("T", " ").removesuffix("Z")
            bucket = f"{_cut(record.bucket, MAX_NAME):{bucket_width}}"
            instance = f"{_cut(record.instance, MAX_NAME):{instance_width}}"
            begin = f"{time} {level:8} {bucket} {instance} "
            rest = _cut(_told(record), max(20, self._width - len(begin)))
            colour = COLOURS.get(level) if self._is_coloured else None
            if colour is not None:
                begin = f"{time} \x1b[{colour}m{level:8}\x1b[m {bucket} {instance} "
            print(begin + rest)
        self._printed += len(records)

    def end(self, *, more: bool) -> None:
        if not self._printed:
            print("no records match", file=sys.stderr)
        elif more:
            print(f"{self._printed} shown; there are more: --limit, --all", file=sys.stderr)

    def count(self, count: int) -> None:
        print(count)

    def histogram(self, bins: Sequence[Bin]) -> None:
        totals = [sum(bin.counts.values()) for bin in bins]
        most, width = max(totals, default=1), len(str(max(totals, default=0)))
        for bin, total in zip(bins, totals, strict=True):
            bar = "█" * max(1, total * BAR // most)
            levels = " ".join(f"{name} {count}" for name, count in _named(bin.counts).items())
            time = ms_iso(bin.start).replace("T", " ").removesuffix(".000Z")
            print(f"{time} {total:{width}} {bar:{BAR}} {levels}")

    def top(self, field: str, top: Top) -> None:
        width = max((len(str(count)) for _, count in top.values), default=1)
        for value, count in top.values:
            share = count / max(top.records, 1)
            text = _printable(scalar_text(value))
            print(f"{count:{width}} {share:6.1%} {_cut(text, max(20, self._width - width - 8))}")
        shown = f"{len(top.values)} of {top.distinct} values of {_printable(field)}"
        print(f"{shown}; {top.records} records have it", file=sys.stderr)


def _told(record: StoredRecord) -> str:
    """The message, and for a trace the props of the call."""
    text = record.message
    if record.kind == "trace":
        caller = decode_body(record.body).get("caller")
        props = caller.get("props") if isinstance(caller, dict) else None
        if props:
            text = f"{text} {json.dumps(props, ensure_ascii=False)}"
    return _printable(text)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
