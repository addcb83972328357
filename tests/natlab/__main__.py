"""Runs the matrix by hand: python -m tests.natlab --help."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

import trio

from tests.natlab.drivers import LANGUAGES
from tests.natlab.lab import why_no_lab
from tests.natlab.matrix import Case, Outcome, all_cases, run_cases
from tests.natlab.table import markdown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.natlab")
    parser.add_argument("--network", choices=LANGUAGES)
    parser.add_argument("--server", choices=LANGUAGES)
    parser.add_argument("--client", choices=LANGUAGES)
    parser.add_argument("--server-nat")
    parser.add_argument("--client-nat")
    parser.add_argument("--quick", action="store_true", help="leave out what waits for seconds")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--labs", type=int, default=3, help="at a time, for each network")
    parser.add_argument("--json", action="store_true", help="all outcomes instead of a table")
    parser.add_argument("--verbose", action="store_true", help="say why something failed")
    options = parser.parse_args()
    reason = why_no_lab()
    if reason:
        print(f"no laboratory: {reason}", file=sys.stderr)
        return 1

    def wanted(case: Case) -> bool:
        names = ("network", "server", "client", "server_nat", "client_nat")
        chosen = all(getattr(options, n) in (None, getattr(case, n)) for n in names)
        return chosen and not (options.quick and case.waits)

    def report(case: Case, outcome: Outcome) -> None:
        print(f"{case}: {outcome}, probes {outcome.probes}", file=sys.stderr)
        if options.verbose and outcome.message:
            print(outcome.message, file=sys.stderr)

    cases = [case for case in all_cases() if wanted(case)]
    begin = time.monotonic()
    results = trio.run(
        lambda: run_cases(cases, repeats=options.repeats, labs=options.labs, report=report)
    )
    print(f"{len(cases)} cases in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    if options.json:
        rows = [
            {**asdict(case), "outcomes": [asdict(outcome) for outcome in outcomes]}
            for case, outcomes in sorted(results.items(), key=lambda item: str(item[0]))
        ]
        json.dump(rows, sys.stdout, indent=1)
    else:
        in_order = {case: results[case] for case in cases}
        print(markdown(in_order))
    return 0


if __name__ == "__main__":
    sys.exit(main())
