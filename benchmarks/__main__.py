"""Runs the benchmarks and prints their table: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import trio

from benchmarks.figures import Report, Result, WrongResult
from benchmarks.machine import Observed, describe, say
from benchmarks.table import QUIET, text_of
from tests.interop.harness import why_unavailable

NAMES = (
    "end_to_end",
    "durable",
    "raw_connection",
    "latency",
    "connect",
    "paths",
    "relay",
    "node",
    "find_peer",
    "trace_cost",
    "store",
    "mirror",
    "websocket",
    "panel",
    "handler_cost",
)


def run(name: str, repeats: int) -> Result:
    """Run one benchmark."""
    module = importlib.import_module(f"benchmarks.{name}")
    question = inspect.getdoc(module) or ""
    observed = Observed()
    result = Result(name, question, observed.load, observed.busy_before, 0.0, 0.0)
    if observed.busy_before > QUIET:
        say(f"{name}: BUSY MACHINE, others use {observed.busy_before:.2f} cores")
    try:
        measured = trio.run(module.measure, repeats)
        result.figures, result.costs = measured.figures, measured.costs
    except WrongResult as error:
        result.failure = str(error)
        say(f"{name} failed: {error}")
    result.seconds = round(observed.seconds, 1)
    result.busy_others = observed.busy_others()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", default=NAMES)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    reason = why_unavailable()
    if reason is not None:
        parser.error(f"the JavaScript packages are half of each benchmark: {reason}")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    report = Report(started, options.repeats, describe(), [])
    for name in NAMES:
        if name in options.only:
            report.results.append(run(name, options.repeats))
            if options.json is not None:
                text = msgspec.json.format(msgspec.json.encode(report), indent=1)
                options.json.write_bytes(text + b"\n")
    print(text_of(report))
    return 1 if any(result.failure for result in report.results) else 0


if __name__ == "__main__":
    sys.exit(main())
