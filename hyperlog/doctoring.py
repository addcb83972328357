"""What `hyperlog doctor` does: prints what is found, step by step or as one object."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import ssl
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import trio

from hyperlog.addresses import parse_peer
from hyperlog.arguments import checked
from hyperlog.config import Address
from hyperlog.dht import BOOTSTRAP_NODES, KeyPair
from hyperlog.doctor import examine_network, examine_peer
from hyperlog.doctorweb import examine_web
from hyperlog.errors import ConfigError
from hyperlog.findings import TITLES, Finding, Verdict
from hyperlog.peeroptions import add_peer_options, own_key_pair
from hyperlog.webaddress import WebAddress, is_web_address, parse_web_address

__all__ = ["JsonReport", "TextReport", "add_doctor_options", "see_doctor"]

MIN_WIDTH: Final = 60  # columns
MAX_WIDTH: Final = 100
INDENT: Final = " " * 28  # in front of what was found
COLOURS: Final = {
    Verdict.OK: "32",
    Verdict.WARNING: "33",
    Verdict.FAILED: "1;31",
    Verdict.SKIPPED: "2",
}

_Target: TypeAlias = tuple[bytes, Sequence[Address]] | WebAddress | None

_encode = msgspec.json.Encoder().encode


def add_doctor_options(parser: argparse.ArgumentParser) -> None:
    """The options of `hyperlog doctor`."""
    parser.add_argument(
        "target",
        nargs="?",
        type=checked(_parse_target),
        metavar="KEY",
        help="public key of a server, its HyperDHT address, or https://HOST:PORT (default: look "
        "at the network alone)",
    )
    add_peer_options(parser, timeout="give up at a step after so long")
    parser.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="certificates to know an https server by (default: those of the system)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def _parse_target(text: str) -> _Target:
    if is_web_address(text):
        return parse_web_address(text, allow_plain=True)
    try:
        return parse_peer(text)
    except ConfigError as err:
        raise ConfigError(f"{err}; or an address, https://HOST:PORT") from None


async def see_doctor(options: argparse.Namespace) -> bool:
    """Look at the way to the target, or at the network alone; whether it is passable.

    Raises:
        ConfigError: the certificates cannot be read.
        KeyFileError: the key pair cannot be used.
    """
    target: _Target = options.target
    report = JsonReport(target) if options.json else TextReport(target)
    key_pair: KeyPair = own_key_pair(options)
    nodes = BOOTSTRAP_NODES if options.bootstrap is None else options.bootstrap
    timeout: float = options.timeout
    try:
        if isinstance(target, WebAddress):
            tls = _tls(options.ca_file) if target.is_secure else None
            good = await examine_web(target, report, tls=tls, timeout=timeout)
        elif target is not None:
            good = await examine_peer(
                target[0],
                nodes,
                report,
                nodes=target[1],
                key_pair=key_pair,
                relays=options.relay or (),
                timeout=timeout,
            )
        else:
            good = await examine_network(nodes, report, timeout=timeout)
    except trio.Cancelled:
        report.abandon()
        raise
    report.end(good=good)
    return good


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as err:
        raise ConfigError(f"the certificates in {ca_file} cannot be read: {err}") from err


class TextReport:
    """Each step as soon as it is over; on a terminal also the one that goes on."""

    def __init__(self, target: _Target) -> None:
        self._is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._is_coloured = self._is_live and not os.environ.get("NO_COLOR")
        columns = shutil.get_terminal_size((MAX_WIDTH, 0)).columns
        self._width = max(MIN_WIDTH, min(columns, MAX_WIDTH))
        self._has_target = target is not None
        self._warnings = 0
        self._last: Finding | None = None

    def begin(self, step: str) -> None:
        if self._is_live:
            print(f"\r         {TITLES[step]} …\x1b[K", end="", flush=True)

    def found(self, finding: Finding) -> None:
        verdict = f"{finding.verdict:7}"
        if self._is_coloured:
            verdict = f"\x1b[{COLOURS[finding.verdict]}m{verdict}\x1b[m"
        lines = self._wrapped(finding.text, INDENT)
        first = f"{TITLES[finding.step]:18} {lines[0].lstrip()}"
        lines = [f"{verdict}  {first}", *lines[1:]]
        if finding.verdict is not Verdict.OK or len(finding.details) > 1:
            lines += [f"{INDENT}  {detail}" for detail in finding.details]
        if finding.advice is not None:
            lines += self._wrapped(finding.advice, f"{INDENT}→ ")
        if self._is_live:
            print("\r\x1b[K", end="")
        print("\n".join(lines), flush=True)
        self._warnings += finding.verdict is Verdict.WARNING
        self._last = finding

    def _wrapped(self, text: str, begin: str) -> list[str]:
        # What a number counts stays in its line: a space that does not break is no space to wrap.
        text = re.sub(r"(?<=\d) (?=\w)", "\N{NO-BREAK SPACE}", text)
        lines = textwrap.wrap(
            text, self._width, initial_indent=begin, subsequent_indent=" " * len(begin)
        )
        return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]

    def abandon(self) -> None:
        """Nobody waits for the rest."""
        if self._is_live:
            print("\r\x1b[K", end="", flush=True)

    def end(self, *, good: bool) -> None:
        subject = "The server" if self._has_target else "The network"
        verb = "reached" if self._has_target else "used"
        if not good:
            step = "" if self._last is None else f" It fails at: {TITLES[self._last.step]}."
            text = f"{subject} cannot be {verb}.{step}"
        elif self._warnings:
            text = f"{subject} can be {verb}; see the warning{'s' * (self._warnings > 1)}."
        else:
            text = f"{subject} can be {verb}."
        print(f"\n{text}", flush=True)


class JsonReport:
    """All steps in one object at the end."""

    def __init__(self, target: _Target) -> None:
        self._target = target
        self._steps: list[dict[str, Any]] = []

    def begin(self, step: str) -> None:
        pass

    def found(self, finding: Finding) -> None:
        self._steps.append(
            {
                "step": finding.step,
                "verdict": finding.verdict,
                "text": finding.text,
                "advice": finding.advice,
                "figures": finding.figures,
            }
        )

    def abandon(self) -> None:
        pass

    def end(self, *, good: bool) -> None:
        target = self._target
        if isinstance(target, WebAddress):
            told: str | None = str(target)
        else:
            told = None if target is None else target[0].hex()
        last = self._steps[-1]["step"] if self._steps and not good else None
        report = {"target": told, "reachable": good, "failed": last, "steps": self._steps}
        sys.stdout.buffer.write(_encode(report) + b"\n")
        sys.stdout.buffer.flush()
