"""The examples of docs/http.md do what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from hyperlog.web.app import ENDPOINTS
from tests.web.site import site, until
from tests.web.test_metrics import scrape

PAGE = Path(__file__).parents[2] / "docs" / "http.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def examples():
    """(command, expected output) of all examples with curl."""
    found = []
    for block in BLOCK.findall(TEXT):
        commands = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        for command in commands:
            lines = command.splitlines()
            count = 1 + next(
                (n for n, line in enumerate(lines[1:]) if not line.startswith(" ")), len(lines) - 1
            )
            text = "\n".join(lines[:count])
            if lines[count - 1 :] and lines[count:] and lines[count] == "  done":
                count += 1
            if "curl" in text:
                found.append((text, "\n".join(lines[count:])))
    return found


def pattern(expected):
    """An output in which … stands for anything."""
    return re.compile(".*?".join(map(re.escape, expected.strip().split("…"))), re.DOTALL)


def run(command, folder, token, read_token):
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "TOKEN": token, "READ_TOKEN": read_token},
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are for curl")
async def test_the_examples_do_what_they_say(tmp_path):
    assert len(examples()) >= 10
    async with site(tmp_path, store="sqlite") as here:
        tokens = here.token(), here.reader()
        for command, expected in examples():
            await until(lambda: not here.server.store.statistics().behind)
            command = command.replace("http://127.0.0.1:8787", here.url)
            done = await trio.to_thread.run_sync(run, command, tmp_path, *tokens)
            assert done.returncode == 0, (command, done.stderr)
            assert pattern(expected).match(done.stdout.strip()), (command, done.stdout)
        assert [line["message"] for line in here.lines()].count("once") == 1


def test_every_path_is_told_of():
    missing = [one.path for one in ENDPOINTS if f"{one.path}`" not in TEXT and one.path not in TEXT]
    assert not missing


async def test_every_metric_is_told_of(tmp_path):
    async with site(tmp_path, store="sqlite") as here, here.client() as client:
        names = {name.partition("{")[0] for name in await scrape(client)}
    told = set(re.findall(r"hyperlog_[a-z_]+", TEXT))
    # The page names the ones to look at; what it names has to be there.
    labelled = {"hyperlog_lost_records_total", "hyperlog_http_requests_total"}
    assert told - labelled <= names | {"hyperlog_"}
