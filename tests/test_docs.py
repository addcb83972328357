"""The documentation agrees with the program: names, options, commands, links, examples."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import hyperlog
from hyperlog import errors
from hyperlog.cli import build_parser

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *sorted(ROOT.glob("docs/**/*.md")),
        *sorted(ROOT.glob("promtail/*.md")),
    ]
}
ALL = "\n".join(PAGES.values())
COMMAND_LINE = PAGES["docs/cli.md"]
SECTIONS = {
    section.splitlines()[0]: section for section in re.split(r"^## ", COMMAND_LINE, flags=re.M)[1:]
}
SERVED_ELSEWHERE = PAGES["docs/operations.md"]
PLACEHOLDERS = {
    "<public key>": "0" * 64,
    "<host:port>": "127.0.0.1:49737",
    "SERVER": "0" * 64,
    "KEY": "0" * 64,
    "HOST:PORT": "localhost:8787",
    "JTI": "0011223344556677",
}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\[[^][]*\]\(([^)\s]+)\)")


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Sub-commands by their words, `token issue` for one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield name, command
                yield from ((f"{name} {below}", found) for below, found in commands(command))


COMMANDS = dict(commands(build_parser()))


def options(command: argparse.ArgumentParser) -> list[str]:
    return [
        name
        for action in command._actions
        for name in action.option_strings
        if name.startswith("--") and name not in ("--help", "--verbose", "--version")
    ]


def mentions(text: str, name: str) -> bool:
    """Whether the text has this name as code."""
    return re.search(rf"`[^`\n]*(?<![\w-]){re.escape(name)}(?![\w-])[^`\n]*`", text) is not None


# -- what there is, is told of


@pytest.mark.parametrize("name", sorted({name.split()[0] for name in COMMANDS}))
def test_a_command_has_its_section_and_that_all_its_options(name):
    section = SECTIONS[f"hyperlog {name}"]
    for words, command in COMMANDS.items():
        if words.split()[0] == name:
            assert f"`hyperlog {words}" in section or words == name
            missing = [option for option in options(command) if not mentions(section, option)]
            assert not missing or name == "serve"


def test_an_option_of_serve_beside_its_place_has_a_heading_or_a_row():
    missing = [
        option
        for option in options(COMMANDS["serve"])
        if not mentions(SECTIONS["hyperlog serve"], option)
        and f"\n### {option}\n" not in SERVED_ELSEWHERE
        and f"\n| `{option}` |" not in SERVED_ELSEWHERE
        and option != "--allow-any"  # what holds without --allow, and told of beside it
    ]
    assert not missing


@pytest.mark.parametrize("name", hyperlog.__all__)
def test_a_public_name_is_told_of(name):
    pages = {page: text for page, text in PAGES.items() if "/protocol/" not in page}
    assert any(
        mentions(text, name) or re.search(rf"\bimport\b.*\b{name}\b", text)
        for text in pages.values()
    )


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_is_told_of_with_its_code(name):
    code = getattr(errors, name).code
    assert re.search(rf"^\| `{name}` \| `{code}` \|", PAGES["docs/errors.md"], re.MULTILINE)


# -- what is told of, is there


@pytest.mark.parametrize("text", re.findall(r"^#+ (--[\w-]+)$", ALL, re.MULTILINE))
def test_a_heading_of_an_option_has_an_option(text):
    assert text in {option for command in COMMANDS.values() for option in options(command)}


def examples() -> list[tuple[str, str]]:
    """(page, command) of everything that is shown to be typed, and of `hyperlog …` in the text."""
    found = []
    for page, text in PAGES.items():
        if page == "CHANGELOG.md":
            continue
        for kind, block in FENCE.findall(text):
            if kind in ("console", "sh"):
                lines = re.sub(r"\\\n\s*", " ", block).splitlines()
                found += [(page, line) for line in lines if "hyperlog " in line]
        shown = re.findall(r"`((?:bin/)?hyperlog [^`\n]+)`", FENCE.sub("", text))
        found += [(page, line) for line in shown]
    return found


def arguments(line: str) -> list[str] | None:
    """What comes after `hyperlog` in a line; None if it is only a name, or has a gap."""
    for placeholder, value in PLACEHOLDERS.items():
        line = re.sub(rf"(?<![\w-]){re.escape(placeholder)}(?![\w-])", value, line)
    inner = re.search(r"\$\((.*?)\)", line)
    found = re.search(r"(?:^|[\s/$])hyperlog (.*)", line if inner is None else inner[1])
    if found is None or "…" in found[1] or "[" in found[1]:
        return None
    words = shlex.split(found[1], comments=True)
    end = next((n for n, word in enumerate(words) if word in ("|", ">", "&&", "&")), len(words))
    return words[:end]


def needs_more(words: list[str]) -> bool:
    """Whether it is a command alone, named in the text without what it has to be given."""
    return " ".join(words) in COMMANDS


@pytest.mark.parametrize(("page", "line"), sorted(set(examples())))
def test_a_command_that_is_shown_is_understood(page, line, capsys):
    words = arguments(line)
    if words is None or needs_more(words):
        return
    if words[-1] in ("--help", "--version"):
        assert words[:-1] == [] or " ".join(words[:-1]) in COMMANDS
        return
    try:
        build_parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"{page}: {line}: {capsys.readouterr().err}")


def test_there_are_commands_to_be_understood():
    parsed = [words for _, line in examples() if (words := arguments(line)) is not None]
    assert len([words for words in parsed if not needs_more(words)]) > 15


def python_blocks() -> list[tuple[str, str]]:
    return [
        (page, block)
        for page, text in PAGES.items()
        for kind, block in FENCE.findall(text)
        if kind == "python"
    ]


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_python_compiles_and_imports_what_is_there(page, block):
    compile(block, page, "exec")
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hyperlog":
            module = __import__(node.module, fromlist=["*"])
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_examples_of_traces_print_what_was_traced(capsys):
    for page, block in python_blocks():
        if page == "docs/traces.md":
            exec(compile(block, page, "exec"), {"__name__": page})
    assert capsys.readouterr().out == "opened Door open {'by': 'hand'}\n"


def test_there_is_python_to_compile():
    assert len(python_blocks()) > 5


def anchors(text: str) -> set[str]:
    """The fragments by which a page's headings are reached."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.strip().replace(" ", "-") for title in plain}


def links() -> list[tuple[str, str]]:
    return sorted(
        (page, target)
        for page, text in PAGES.items()
        for target in set(LINK.findall(FENCE.sub("", text)))
        if not target.startswith(("http://", "https://", "mailto:"))
    )


@pytest.mark.parametrize(("page", "target"), links())
def test_a_link_leads_somewhere(page, target):
    path, _, fragment = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists()
    if fragment:
        assert fragment in anchors(file.read_text(encoding="utf-8"))


def test_every_page_is_reached_from_the_first():
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page not in PAGES:
            continue
        reached.add(page)
        for target in LINK.findall(PAGES[page]):
            if "://" not in target:
                file = ((ROOT / page).parent / target.partition("#")[0]).resolve()
                if file.is_relative_to(ROOT):
                    waiting.append(str(file.relative_to(ROOT)))
    assert set(PAGES) - reached <= {"CHANGELOG.md"}
