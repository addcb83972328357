"""`hyperlog token`: issue, list, revoke, and rotate the secret that signs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from hyperlog.arguments import checked
from hyperlog.config import parse_public_key
from hyperlog.quantities import parse_duration
from hyperlog.records import iso_time
from hyperlog.tokens import DEFAULT_LIFETIME, SCOPES, IssuedToken, Scope, TokenAuthority

__all__ = ["add_token_commands", "run_token_command"]

NEVER: Final = "never"


def add_token_commands(parser: argparse.ArgumentParser, parents: Sequence[Any]) -> None:
    """Add the sub-commands of `hyperlog token`; each sets `token_command`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        told = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, parents=parents, help=text, description=told)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(token_command=run)
        return command

    issue = add("issue", _issue, "print a new token; it is shown this once and kept nowhere")
    issue.add_argument(
        "application", metavar="APP", help="the application; '*' for all, to read only"
    )
    issue.add_argument(
        "--instances",
        default="*",
        metavar="PATTERN",
        help="instances that may use it, with * and ? (default: any)",
    )
    issue.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help="what it allows; repeatable (default: ingest)",
    )
    issue.add_argument(
        "--key",
        type=checked(parse_public_key),
        metavar="KEY",
        help="only the client with this public key may use it, 64 hex digits",
    )
    issue.add_argument(
        "--expires",
        type=checked(_lifetime),
        default=DEFAULT_LIFETIME,
        metavar="TIME",
        help="from now, like 12h or 90d; or never (default: 365d)",
    )
    add("list", _list, "list the tokens that were issued, and what became of them")
    revoke = add("revoke", _revoke, "make tokens useless; open connections end within a second")
    revoke.add_argument("jti", nargs="+", metavar="JTI", help="as `list` shows it")
    add("rotate", _rotate, "sign new tokens with a new secret; earlier tokens stay valid")


def run_token_command(options: argparse.Namespace, folder: Path) -> int:
    """Run what was asked for on the registry in `folder`; the exit status."""
    authority = TokenAuthority(folder, create=options.token_command is _issue)
    try:
        status: int = options.token_command(authority, options)
    finally:
        authority.close()
    return status


def _issue(authority: TokenAuthority, options: argparse.Namespace) -> int:
    now = time.time()
    scopes: Sequence[Scope] = options.scope or ("ingest",)
    token, claims = authority.issue(
        options.application,
        now=now,
        instances=options.instances,
        scopes=scopes,
        key=options.key,
        lifetime=options.expires,
    )
    issued = IssuedToken(claims, None)
    if options.json:
        print(json.dumps({"token": token, **_described(issued, now)}))
        return 0
    print(token)
    until = "never" if claims.expires_at is None else iso_time(claims.expires_at)
    print(
        f"token {claims.jti} for {claims.application}, {' and '.join(sorted(claims.scopes))}, "
        f"expires: {until}. Take it back with: hyperlog token revoke {claims.jti}",
        file=sys.stderr,
    )
    return 0


def _list(authority: TokenAuthority, options: argparse.Namespace) -> int:
    now = time.time()
    tokens = [_described(token, now) for token in authority.list()]
    if options.json:
        print(json.dumps(tokens))
        return 0
    if not tokens:
        print("no tokens: issue one with `hyperlog token issue APP`", file=sys.stderr)
        return 0
    names = ("jti", "state", "application", "instances", "scopes", "issued", "expires", "key")
    rows = [names, *(tuple(_shown(token[name]) for name in names) for token in tokens)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def _revoke(authority: TokenAuthority, options: argparse.Namespace) -> int:
    now = time.time()
    results = {jti: authority.revoke(jti, now) for jti in options.jti}
    if options.json:
        print(json.dumps({"revoked": [jti for jti, done in results.items() if done]}))
    for jti, done in results.items():
        if not done:
            print(f"hyperlog: there is no token {jti} to revoke", file=sys.stderr)
        elif not options.json:
            print(f"revoked {jti}")
    return 0 if all(results.values()) else 1


def _rotate(authority: TokenAuthority, options: argparse.Namespace) -> int:
    kid = authority.rotate(time.time())
    print(json.dumps({"kid": kid}) if options.json else f"new tokens are signed with {kid}")
    return 0


def _described(token: IssuedToken, now: float) -> dict[str, Any]:
    claims = token.claims
    return {
        "jti": claims.jti,
        "state": token.state(now),
        "application": claims.application,
        "instances": claims.instances,
        "scopes": sorted(claims.scopes),
        "key": None if claims.key is None else claims.key.hex(),
        "issued": iso_time(claims.issued_at),
        "expires": None if claims.expires_at is None else iso_time(claims.expires_at),
        "revoked": None if token.revoked_at is None else iso_time(token.revoked_at),
        "kid": claims.kid,
    }


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _lifetime(text: str) -> float | None:
    return None if text == NEVER else parse_duration(text)
