"""The matrix for readers: a row for each pair of NATs, a column for each choice of languages."""

from __future__ import annotations

from collections.abc import Sequence

from tests.natlab.drivers import JAVASCRIPT, LANGUAGES, PYTHON
from tests.natlab.matrix import ISOLATED, SAME_NAT, Case, Outcome, Results, typical
from tests.natlab.nats import KINDS

SHORT = {JAVASCRIPT: "JS", PYTHON: "Py"}
COLUMNS = [
    (network, server, client)
    for network in reversed(LANGUAGES)
    for server in reversed(LANGUAGES)
    for client in reversed(LANGUAGES)
]
ORDER = [*KINDS, SAME_NAT, ISOLATED]
FAILURES = {
    "HOLEPUNCH_ABORTED": "no",
    "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS": "no",
    "ETIMEDOUT": "no",
    "PEER_CONNECTION_FAILED": "no",
    "TIMEOUT": "no",
}


def cell(outcomes: Sequence[Outcome]) -> str:
    """The typical outcome; one that was not always the same says how often it connected."""
    if not outcomes:
        return ""
    middle = typical(outcomes)
    connected = sum(outcome.connected for outcome in outcomes)
    what = middle.path or FAILURES.get(middle.error or "", middle.error)
    seconds = middle.milliseconds / 1000
    time = f"{seconds:.1f} s" if seconds >= 1 else f"{middle.milliseconds:.0f} ms"
    share = f" ({connected}/{len(outcomes)})" if 0 < connected < len(outcomes) else ""
    return f"{what} {time}{share}"


def markdown(results: Results) -> str:
    """All results without a relay, as a Markdown table."""
    cases = [case for case in results if not case.relay]
    columns = [
        column
        for column in COLUMNS
        if any((c.network, c.server, c.client) == column for c in cases)
    ]
    names = [f"{SHORT[s]} ← {SHORT[c]}, {SHORT[n]} nodes" for n, s, c in columns]
    lines = [f"| server | client | {' | '.join(names)} |", "|---" * (2 + len(columns)) + "|"]
    pairs = {(case.server_nat, case.client_nat) for case in cases}
    for server_nat, client_nat in sorted(pairs, key=lambda pair: tuple(map(ORDER.index, pair))):
        cells = [cell(results.get(Case(server_nat, client_nat, *column), [])) for column in columns]
        lines.append(f"| {server_nat} | {client_nat} | {' | '.join(cells)} |")
    return "\n".join(lines)
