"""What `hyperlog query` does: asks a server's store, and prints a table or JSON.

The store is read where it lies, while a server runs or not: the embedded one in the data folder, or
a MongoDB.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import trio

from hyperlog.arguments import checked
from hyperlog.config import parse_mongo
from hyperlog.errors import ConfigError, QueryError, StoreUnavailable
from hyperlog.printers import JsonPrinter, Printer, TablePrinter
from hyperlog.quantities import parse_count, parse_duration
from hyperlog.store.answers import Store, Top
from hyperlog.store.language import parse
from hyperlog.store.levels import LEVELS, level_of_name
from hyperlog.store.mongo import open_mongo
from hyperlog.store.query import And, Compare, Expression, Query
from hyperlog.store.sqlite import DATABASE, EmbeddedStore
from hyperlog.store.times import parse_time

__all__ = ["add_query_options", "run_query"]

DEFAULT_LIMIT: Final = 100
PAGE: Final = 1000  # records asked for at a time
MAX_VALUES: Final = 1000  # of --top
MIN_STEP: Final = 1000  # ms
MONGO_VARIABLE: Final = "HYPERLOG_MONGO"
NOBODY: Final = "0" * 64  # in the place of a server's key, which only matters for what is written
EXIT_USAGE: Final = 2

DESCRIPTION: Final = """\
Searches the records of a server: words, "phrases", prefix*, field:value,
field>=n, field:* (has the field), level>=warning, -not, OR, parentheses.
Without TEXT all records match. A dash at the very beginning needs a -- before
it, or NOT in its place.
"""
EXAMPLES: Final = """\
examples:
  hyperlog query 'timeout level>=error' --since 2h
  hyperlog query 'caller.functionName:charge caller.props.ms>500' --limit 20
  hyperlog query --bucket cerco --histogram 1m --since 1h
  hyperlog query 'attributes.http.status>=500' --top attributes.user --json
  hyperlog query --all --oldest-first --since 2026-11-20 --json > records.ndjson
  hyperlog query -- '-kind:trace'

The language is described in docs/query.md. With MongoDB, give its address in
the variable HYPERLOG_MONGO: other users of the machine can read command lines.
"""


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
    printer: Printer = JsonPrinter() if as_json else TablePrinter()

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
    store: Store, query: Query, options: argparse.Namespace, printer: Printer
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
    store: Store, query: Query, options: argparse.Namespace, printer: Printer
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
