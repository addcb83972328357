"""Leaves out tests whose foreign programs are missing, and says so; CI=true makes it an error."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

from tests.interop.harness import why_unavailable as why_no_javascript
from tests.mongod import mongod, own_mongod, three_mongods, why_no_mongod
from tests.natlab.lab import why_no_lab
from tests.web.panel.browser import why_no_browser

__all__ = ["mongod", "own_mongod", "three_mongods"]  # fixtures for all tests

ROOT = Path(__file__).parent.parent
LEFT_OUT = pytest.StashKey[list[str]]()

# A shared machine can stop a process for longer than hypothesis allows an example; a run must not
# fail for that, and has to repeat exactly in continuous integration.
settings.register_profile("hyperlog", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("hyperlog")


def rsyslogd_command() -> list[str] | None:
    """The start of a command line that runs rsyslogd, installed or unpacked by bin/test."""
    installed = shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin")
    if installed is not None:
        return [installed]
    unpacked = ROOT / ".venv" / "rsyslog" / "usr"
    modules = next(unpacked.glob("lib/*/rsyslog"), None)
    if modules is None:
        return None
    program = str(unpacked / "sbin" / "rsyslogd")
    return ["env", f"LD_LIBRARY_PATH={modules.parent}", program, "-M", str(modules)]


def why_no_rsyslogd() -> str | None:
    """The reason why rsyslogd cannot run here, None if it can."""
    if rsyslogd_command() is None:
        return "the program rsyslogd is not installed (bin/test fetches it on Debian)"
    return None


REQUIREMENTS = {
    "browser": why_no_browser,
    "interop": why_no_javascript,
    "mongod": why_no_mongod,
    "natlab": why_no_lab,
    "tailer": why_no_rsyslogd,
}


@pytest.fixture
def rsyslogd() -> list[str]:
    """The start of a command line that runs rsyslogd."""
    command = rsyslogd_command()
    assert command is not None
    return command


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that cannot run here; refuse to with CI=true."""
    wanted = {mark.name for item in items for mark in item.iter_markers()}
    reasons = {marker: why() for marker, why in REQUIREMENTS.items() if marker in wanted}
    missing: Counter[str] = Counter()
    kept, left_out = [], []
    for item in items:
        marker = next((m for m in reasons if reasons[m] and item.get_closest_marker(m)), None)
        if marker is None:
            kept.append(item)
        else:
            left_out.append(item)
            missing[marker] += 1
    lines = [f"left out {count} {m} tests: {reasons[m]}" for m, count in missing.items()]
    if lines and os.environ.get("CI") == "true":
        raise pytest.UsageError(f"CI=true allows no gaps, but: {'; '.join(lines)}")
    config.stash[LEFT_OUT] = lines
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for each kind of test that was left out."""
    for line in terminalreporter.config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(line, yellow=True)
