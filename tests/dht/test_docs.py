"""docs/dht.md names everything that hyperlog.dht offers, and its program runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hyperlog.dht
from hyperlog.dht import errors

PAGE = (Path(__file__).parent.parent.parent / "docs" / "dht.md").read_text(encoding="utf-8")
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(name):
    return re.search(rf"`[^`\n]*(?<!\w){name}(?!\w)[^`\n]*`", PAGE) is not None


@pytest.mark.parametrize("name", hyperlog.dht.__all__)
def test_a_public_name_is_told_of(name):
    assert named(name)


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_is_told_of_with_its_code(name):
    assert named(name)
    kind = getattr(errors, name)
    if name not in ("DHTError", "ProtocolError") and not kind.__subclasses__():
        above = kind.__mro__[1].code
        assert named(kind.code) or (named(above) and above != "DHT_ERROR")


def test_the_program_runs_as_it_stands():
    (program,) = PROGRAM.findall(PAGE)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "b'HELLO'"
    assert second.split()[0] in ("lan", "direct", "punched")
