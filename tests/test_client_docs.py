"""docs/client.md: its examples run, and say what arrives."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import trio

from hyperlog.config import ClientOptions
from tests.web.site import site

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ARRIVES = [
    ["order placed"],
    ["disk almost full", {"event": "order", "items": [1, 2]}, "lookup failed", "by name"],
    ["3 items left"],
    [{"event": "started"}],
]


@pytest.mark.parametrize(("example", "arrives"), list(zip(EXAMPLES, ARRIVES, strict=True)))
async def test_an_example_ships_what_it_logs(tmp_path, monkeypatch, example, arrives):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    async with site(tmp_path) as there:
        program = example.replace("<server>", there.url).replace("<token>", there.token("cerco"))
        await trio.Path(tmp_path / "shop.py").write_text(program)
        command = [sys.executable, "-W", "ignore", "shop.py"]
        done = await trio.run_process(command, cwd=tmp_path, check=False, capture_stderr=True)
        assert (done.returncode, done.stderr) == (0, b"")
        lines = there.lines()
    assert [line["message"] for line in lines] == arrives
    assert {line["app"] for line in lines} == {"cerco"}


def test_the_line_that_is_shown_has_the_keys_of_a_real_one():
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert list(json.loads(shown))[-4:] == ["level", "message", "attributes", "caller"]


def test_the_options_that_the_page_names_exist():
    table = PAGE[PAGE.index("| option of") : PAGE.index("A server that refuses")]
    named = {
        name
        for row in table.splitlines()[2:]
        for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    assert named
    assert named <= set(ClientOptions.__annotations__)
