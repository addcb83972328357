"""Prints the matrix of NATs below the results of the tests."""

from __future__ import annotations

import pytest

from tests.natlab.matrix import Results
from tests.natlab.table import markdown

RESULTS = pytest.StashKey[Results]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    results = terminalreporter.config.stash.get(RESULTS, None)
    if results:
        terminalreporter.section("which peers met through which NATs", sep="-")
        terminalreporter.write_line(markdown(results))
