"""What these processes share: options in, JSON events out, commands in; as in tests/interop/js."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import trio

options: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}


def send(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def bootstrap() -> list[tuple[str, int]]:
    return [(node["host"], node["port"]) for node in options["bootstrap"]]


def commands() -> Iterator[dict[str, Any]]:
    """What comes on stdin, until it is closed."""
    for line in sys.stdin:
        yield json.loads(line)


async def wait_stdin_closed() -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        async for _ in stdin:
            pass
