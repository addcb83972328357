"""What `hyperlog query` does: asks a server's store, and prints a table or JSON.

The store is read where it lies, while a server runs or not: the embedded one in the data folder, or
a MongoDB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec
import trio

from hyperlog.arguments import checked
from hyperlog.config import parse_mongo
from hyperlog.errors import ConfigError, QueryError, StoreUnavailable
from hyperlog.quantities import parse_count, parse_duration
from hyperlog.store.answers import Bin, Store, Top
from hyperlog.store.language import parse
from hyperlog.store.levels import LEVEL_NAMES, LEVELS, level_of_name
from hyperlog.store.mongo import open_mongo
from hyperlog.store.query import And, Compare, Expression, Query
from hyperlog.store.records import StoredRecord, decode_body
from hyperlog.store.sqlite import DATABASE, EmbeddedStore
from hyperlog.store.times import ms_iso, parse_time
from hyperlog.store.words import scalar_text

__all__ = ["add_query_options", "run_query"]

DEFAULT_LIMIT: Final = 100
PAGE: Final = 1000  # records asked for at a time
MAX_VALUES: Final = 1000  # of --top
MIN_STEP: Final = 1000  # ms
BAR: Final = 40  # characters of the longest bar
MAX_NAME: Final = 24  # characters of a bucket or instance in a table
DEFAULT_WIDTH: Final = 160  # of a table that goes into a file
MONGO_VARIABLE: Final = "HYPERLOG_MONGO"
NOBODY: Final = "0" * 64  # in the place of a server's key, which only matters for what is written
EXIT_USAGE: Final = 2

DESCRIPTION: Final = """\
Searches the records of a server: words, "phrases", prefix*, field:value, field>=n, field:* (has
the field), level>=warning, -not, OR, parentheses. Without TEXT all records match. A dash at the
very beginning needs a -- before it, or NOT in its place.
"""
EXAMPLES: Final = """\
examples:
  hyperlog query 'timeout level>=error' --since 2h
  hyperlog query 'caller.functionName:charge caller.props.ms>500' --limit 20
  hyperlog query --bucket cerco --histogram 1m --since 1h
  hyperlog query 'attributes.http.status>=500' --top attributes.user --json
  hyperlog query --all --oldest-first --since 2026-11-20 --json > records.ndjson
  hyperlog query -- '-kind:trace'

The language is described in docs/query.md. With MongoDB, give its address in the variable
HYPERLOG_MONGO: other users of the machine can read command lines.
"""

_COLOURS: Final = {"WARNING": "33", "ERROR": "31", "CRITICAL": "1;31", "DEBUG": "2", "TRACE": "2"}

_encode = msgspec.json.Encoder().encode


# -- the command line


def add_query_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `hyperlog query`, but for those that name the server's folders."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "text", nargs="*", metavar="TEXT", help="the query; several are joined (AND)"
    )
    parser.add_argument(
        "--mongo",
        type=checked(parse_mongo),
        metavar="URI",
        help=f"ask this MongoDB (default: the one that {MONGO_VARIABLE} names, else the "
        "embedded store)",
    )
    which = parser.add_argument_group("which records")
    which.add_argument(
        "--since",
        type=checked(_time),
        metavar="TIME",
        help="received then or later: 15m, 2h, 7d (ago), or 2026-11-20T14:05Z",
    )
    which.add_argument(
        "--until", type=checked(_time), metavar="TIME", help="received before, likewise"
    )
    which.add_argument("--bucket", metavar="NAME", help="of this application")
    which.add_argument("--instance", metavar="NAME", help="of this instance")
    which.add_argument(
        "--level", type=checked(_level), metavar="LEVEL", help="at this level or above"
    )
    how = parser.add_argument_group("what is printed")
    how.add_argument(
        "--limit",
        type=checked(parse_count),
        default=None,
        metavar="N",
        help=f"at most so many records (default: {DEFAULT_LIMIT}), or values of --top "
        "(default: 10)",
    )
    how.add_argument("--all", action="store_true", help="all records that match")
    how.add_argument(
        "--oldest-first", action="store_true", help="begin with the oldest (default: the newest)"
    )
    answers = how.add_mutually_exclusive_group()
    answers.add_argument("--count", action="store_true", help="only how many there are")
    answers.add_argument(
        "--histogram",
        type=checked(_step),
        metavar="STEP",
        help="how many of each level in every 1m, 10s, 1h, …",
    )
    answers.add_argument("--top", metavar="FIELD", help="the most frequent values of a field")
    how.add_argument(
        "--json",
        action="store_true",
        help="print JSON, a line for each record or bin (default unless stdout is a terminal)",
    )


def _time(text: str) -> int:
    try:
        return parse_time(text, int(time.time() * 1000))
    except QueryError as err:
        raise ConfigError(str(err)) from None


def _level(text: str) -> int:
    level = level_of_name(text)
    if level is None:
        raise ConfigError(f"{text!r} is no level; there are {', '.join(LEVELS)}")
    return level


def _step(text: str) -> int:
    step = int(parse_duration(text) * 1000)
    if step < MIN_STEP:
        raise ConfigError("a step has at least 1s")
    return step


def run_query(options: argparse.Namespace, folder: Path, data: Path) -> int:
    """Answer what was asked for, of the log files in `folder` and the server's data in `data`; the
    exit status.

    Raises:
        StoreUnavailable: there is no store, or it cannot answer.
    """
    text = " ".join(options.text)
    try:
        query = _query(options, text)
    except QueryError as err:
        return _say_where(err, text)
    as_json = options.json or not sys.stdout.isatty()
    printer: _Printer = _JsonPrinter() if as_json else _TablePrinter()

    async def ask() -> None:
        async with _store(options, folder, data) as store:
            await _answer(store, query, options, printer)

    try:
        trio.run(ask)
        sys.stdout.flush()
    except QueryError as err:
        return _say_where(err, text)
    except BaseExceptionGroup as group:
        if group.split(BrokenPipeError)[1] is not None:
            raise
        _let_go_of_stdout()
    except BrokenPipeError:
        _let_go_of_stdout()
    return 0


def _query(options: argparse.Namespace, text: str) -> Query:
    terms: list[Expression] = []
    for field in ("bucket", "instance"):
        if getattr(options, field) is not None:
            terms.append(Compare(field, "=", getattr(options, field)))
    if options.level is not None:
        terms.append(Compare("level", ">=", options.level))
    asked = parse(text)
    if asked is not None:
        terms.append(asked)
    where = And(tuple(terms)) if len(terms) > 1 else terms[0] if terms else None
    return Query(where, options.since, options.until)


def _say_where(error: QueryError, text: str) -> int:
    lines = [f"hyperlog: error: {error}"]
    if error.position is not None and text.isprintable():
        first = max(0, error.position - 60)
        lines += [f"  {text[first : first + 100]}", f"  {' ' * (error.position - first)}^"]
    print("\n".join(lines), file=sys.stderr)
    return EXIT_USAGE


def _let_go_of_stdout() -> None:
    # Whoever read it has had enough; the interpreter must not try to flush it at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# -- asking


@asynccontextmanager
async def _store(options: argparse.Namespace, folder: Path, data: Path) -> AsyncIterator[Store]:
    """The store; not entered, it follows no files but only answers."""
    store: EmbeddedStore | Any
    mongo = options.mongo or os.environ.get(MONGO_VARIABLE)
    if mongo:
        store = open_mongo(parse_mongo(mongo), folder, server=NOBODY)
    else:
        path = data / DATABASE
        if not path.exists():
            raise StoreUnavailable(
                f"there is no store at {path}: name the server's folder by --folder or --data, "
                "or make the store of its log files by hyperlog reindex"
            )
        store = EmbeddedStore(path, folder, server=NOBODY)
    try:
        yield store
    finally:
        await store.aclose()


async def _answer(
    store: Store, query: Query, options: argparse.Namespace, printer: _Printer
) -> None:
    if options.count:
        printer.count(await store.count(query))
    elif options.histogram is not None:
        printer.histogram(await store.histogram(query, step=options.histogram))
    elif options.top is not None:
        limit = min(MAX_VALUES, options.limit or 10)
        top = await store.top(query, options.top, limit=limit, report=_tell_progress)
        _clear_progress()
        printer.top(options.top, top)
    else:
        await _print_records(store, query, options, printer)


async def _print_records(
    store: Store, query: Query, options: argparse.Namespace, printer: _Printer
) -> None:
    order: Literal["newest", "oldest"] = "oldest" if options.oldest_first else "newest"
    left = options.limit or DEFAULT_LIMIT
    cursor = None
    while True:
        limit = PAGE if options.all else min(PAGE, left)
        page = await store.search(query, limit=limit, cursor=cursor, order=order)
        printer.records(page.records)
        cursor = page.cursor
        left -= len(page.records)
        if cursor is None or (left <= 0 and not options.all):
            printer.end(more=cursor is not None)
            return


def _tell_progress(top: Top) -> None:
    if sys.stderr.isatty():
        print(f"\r{top.fraction:4.0%} looked through ", end="", file=sys.stderr, flush=True)


def _clear_progress() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# -- printing


class _Printer(Protocol):
    def records(self, records: Sequence[StoredRecord]) -> None: ...
    def end(self, *, more: bool) -> None: ...
    def count(self, count: int) -> None: ...
    def histogram(self, bins: Sequence[Bin]) -> None: ...
    def top(self, field: str, top: Top) -> None: ...


class _JsonPrinter:
    def records(self, records: Sequence[StoredRecord]) -> None:
        self._write(_record_members(record) for record in records)

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


def _record_members(record: StoredRecord) -> dict[str, Any]:
    """As `GET /api/v1/records` answers."""
    body = record.body.decode(errors="replace").encode()
    return {
        "id": record.id,
        "server": record.server,
        "source": record.source,
        "bucket": record.bucket,
        "instance": record.instance,
        "key": record.key,
        "session": record.session,
        "number": record.number,
        "time": ms_iso(record.time),
        "clientTime": None if record.client_time is None else ms_iso(record.client_time),
        "level": LEVEL_NAMES[record.level],
        "kind": record.kind,
        "message": record.message,
        "body": msgspec.Raw(body),
    }


def _named(counts: dict[int, int]) -> dict[str, int]:
    return {LEVEL_NAMES[level]: count for level, count in sorted(counts.items())}


class _TablePrinter:
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
            colour = _COLOURS.get(level) if self._is_coloured else None
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
