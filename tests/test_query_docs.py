"""docs/query.md holds: its examples are understood, and find what it says that they find."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hyperlog.cli import build_parser
from hyperlog.store.evaluate import matches
from hyperlog.store.language import MAX_QUERY, parse
from hyperlog.store.query import FIELDS, MAX_DEPTH, MAX_FIELD, MAX_TERMS, MAX_VALUE, MAX_WORDS
from hyperlog.store.records import record_of
from hyperlog.store.words import MAX_WORD

PAGE = (Path(__file__).parent.parent / "docs" / "query.md").read_text(encoding="utf-8")
LINE = PAGE.split("```json\n")[1].split("\n```")[0].encode()
TABLES = [
    table for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE) if "| query |" in table
]
EXAMPLES = [row for table in TABLES for row in re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)]
COMMANDS = re.findall(r"^hyperlog query .*$", PAGE, re.MULTILINE)


def test_there_are_examples():
    assert len(EXAMPLES) > 30
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("query", EXAMPLES)
def test_an_example_finds_the_record(query):
    record = record_of(LINE, bytes(32), "00" * 32)
    expression = parse(query)
    assert record is not None
    assert expression is not None
    assert matches(expression, record)


def test_a_part_of_a_word_is_not_found():
    record = record_of(LINE, bytes(32), "00" * 32)
    expression = parse("efuse")
    assert record is not None
    assert expression is not None
    assert not matches(expression, record)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command):
    options = build_parser().parse_args(shlex.split(command)[1:])
    parse(" ".join(options.text))


def test_the_examples_of_the_help_are_understood(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["query", "--help"])
    commands = re.findall(r"^  (hyperlog query [^>\n]*?.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) > 4
    for command in commands:
        words = shlex.split(command.split(" > ")[0])[1:]
        parse(" ".join(build_parser().parse_args(words).text))


def test_all_fields_and_limits_are_told():
    told = re.findall(
        r"^\| (`.*?`) \| [^|]*\|$", PAGE.split("The server's own fields:")[1], re.MULTILINE
    )
    assert {name for names in told for name in re.findall(r"`([a-z_]+)`", names)} >= set(FIELDS)
    for limit in (MAX_QUERY, MAX_TERMS, MAX_DEPTH, MAX_FIELD, MAX_VALUE, MAX_WORDS, MAX_WORD):
        assert f"{limit:,}" in PAGE
