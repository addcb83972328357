"""The tables of docs/benchmarks.md: `python -m benchmarks.table FILE`, a file that --json wrote.

With --docs they take the place of the tables in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import msgspec

from benchmarks.figures import JS, Figure, Report, Result, Target
from benchmarks.machine import ROOT

DOCS = ROOT / "docs" / "benchmarks.md"
MARKER = "<!-- Written by python -m benchmarks.table --docs; do not edit below this line. -->"
QUIET = 0.1  # cores that others may use in a run that counts


def busy_note(result: Result) -> str:
    """What to know about a run beside other work; "" if the machine was quiet."""
    if max(result.busy_before, result.busy_others) <= QUIET:
        return ""
    return (
        f"BUSY MACHINE: others used {result.busy_before:.2f} cores before the run and "
        f"{result.busy_others:.2f} during it; repeat it when it is quiet"
    )


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rows(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    rule = ["---" if number < 2 else "---:" for number in range(len(head))]
    return [_cells(row) for row in (head, rule, *body)]


def limit(target: Target, js: Figure | None) -> float | None:
    """What the figure is held against; None if the JavaScript pair was not measured."""
    if not target.times_js:
        return target.bound
    return None if js is None else target.bound * js.median


def verdict(figure: Figure, js: Figure | None) -> tuple[str, str]:
    """The target, and whether it is met or by how much it is missed."""
    target = figure.target
    if target is None:
        return "", ""
    bound = limit(target, js)
    sign = "≤" if target.at_most else "≥"
    text = f"{sign} {target.bound:g}" + (" × JS" if target.times_js else "")
    if bound is None:
        return text, ""
    if target.times_js:
        text += f" = {_number(bound)}"
    value = figure.median
    if target.every:
        value = max(figure.values) if target.at_most else min(figure.values)
    if value <= bound if target.at_most else value >= bound:
        return text, "met"
    missed = abs(value - bound)
    return text, f"**missed by {missed / bound:.0%}**" if bound else f"**missed by {missed:g}**"


def _figures(result: Result) -> list[str]:
    js = {figure.what: figure for figure in result.figures if figure.peers == JS}
    rows = [
        ["what", "peers", "median", "min", "max", "unit", "JS pair", "ratio", "target", "verdict"]
    ]
    order = list(dict.fromkeys(figure.what for figure in result.figures))
    for figure in sorted(result.figures, key=lambda figure: order.index(figure.what)):
        pair = js.get(figure.what)
        target, met = verdict(figure, pair)
        other = "" if pair is None or pair is figure else _number(pair.median)
        ratio = f"{figure.median / pair.median:.2f}" if other and pair and pair.median else ""
        spread = [_number(x) for x in (figure.median, min(figure.values), max(figure.values))]
        rows.append([figure.what, figure.peers, *spread, figure.unit, other, ratio, target, met])
    return _rows(rows)


def _costs(result: Result) -> list[str]:
    rows = [["peers", "process", "CPU s", "min", "max", "peak MB"]]
    for peers, processes in result.costs.items():
        for process, costs in processes.items():
            cpu = [cost.cpu_seconds for cost in costs]
            peak = max(cost.peak_bytes for cost in costs) / 1e6
            spread = [f"{x:.2f}" for x in (statistics.median(cpu), min(cpu), max(cpu))]
            rows.append([peers, process, *spread, f"{peak:.0f}"])
    return _rows(rows) if len(rows) > 1 else []


def text_of(report: Report) -> str:
    """The report as Markdown."""
    versions = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    lines = [f"Run of {report.started}, {report.repeats} repeats. {versions}.", ""]
    for result in report.results:
        question = " ".join(result.question.split("\n\n")[0].split())
        load = " ".join(f"{load:.2f}" for load in result.load)
        lines += [
            f"### {result.name}",
            "",
            question,
            f"Load average before: {load}; it took {result.seconds:.0f} s.",
            "",
        ]
        note = busy_note(result)
        if note:
            lines += [f"**{note}**", ""]
        if result.failure is not None:
            lines += [f"**FAILED**: {result.failure}", ""]
            continue
        lines += [*_figures(result), ""]
        costs = _costs(result)
        if costs:
            lines += [*costs, ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--docs", action="store_true", help="write them into docs/benchmarks.md")
    options = parser.parse_args()
    text = text_of(msgspec.json.decode(options.file.read_bytes(), type=Report))
    if options.docs:
        head, marker, _ = DOCS.read_text().partition(MARKER)
        DOCS.write_text(f"{head}{marker}\n\n{text}")
    else:
        print(text)


if __name__ == "__main__":
    main()
