"""What `hyperlog send` does: ships lines of text as records and waits until they are delivered."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from hyperlog.client import Client
from hyperlog.config import Address, client_keys_path
from hyperlog.trace import CallSite, Trace, TracedObject

__all__ = ["send_records"]

FLUSH_EVERY: Final = 4 * 1024 * 1024  # bytes of text sent before waiting for their delivery
PROGRESS_INTERVAL: Final = 0.2  # s between looks at what has been delivered
MAX_LINE: Final = 256 * 1024  # characters of one record; the rest goes into the next

_SOURCE = TracedObject("hyperlog", 1)
_SITE = CallSite("send", "hyperlog")


def send_records(
    server_key: bytes,
    messages: Sequence[str] | None,
    *,
    bootstrap: Sequence[Address] | None,
    keys: Path | None,
    timeout: float,
    as_json: bool,
) -> bool:
    """Ship `messages`, or the lines of stdin; True when all of them were delivered.

    Gives up when nothing is delivered for `timeout` seconds. Tells the progress and the counts on
    stderr, with `as_json` the counts on stdout.
    """
    talk = _Talk()
    if keys is None:
        keys = client_keys_path("hyperlog")
        keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    client = Client()
    client.start(server_key, bootstrap=bootstrap, keys=keys)
    began_at = time.monotonic()
    sent = waiting_bytes = 0
    delivered = True
    try:
        for text in _stdin_lines() if messages is None else messages:
            client.add_trace(Trace(None, _SOURCE, None, None, _SITE, {"message": text}))
            sent += 1
            waiting_bytes += len(text) + 512
            if waiting_bytes >= FLUSH_EVERY:
                waiting_bytes = 0
                delivered = _wait(client, sent, timeout, talk)
                if not delivered:
                    break
        delivered = delivered and _wait(client, sent, timeout, talk)
    finally:
        waiting = client.statistics().waiting
        error = client.last_connection_error
        key = client.public_key
        client.stop(timeout=1.0)
    seconds = time.monotonic() - began_at
    arrived = sent if delivered else max(sent - waiting, 0)
    talk.clear()
    assert key is not None
    if as_json:
        counts = {
            "sent": sent,
            "delivered": arrived,
            "seconds": round(seconds, 3),
            "publicKey": key.hex(),
        }
        print(json.dumps(counts), flush=True)
    if delivered:
        talk.say(f"delivered {_count(sent)} in {seconds:.1f} s; log file {key.hex()}.log")
    else:
        talk.say(f"delivered {arrived} of {_count(sent)}, then nothing for {timeout:g} s")
        talk.say(
            f"last error: {error}" if error is not None else "no connection came about",
            "is the server running, and is --bootstrap the same as the server's?",
        )
    return delivered


def _count(number: int) -> str:
    return f"{number} record{'' if number == 1 else 's'}"


def _stdin_lines() -> Iterable[str]:
    stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - not ours
    while line := stdin.readline(MAX_LINE):
        text = line.rstrip("\r\n")
        if text:
            yield text


def _wait(client: Client, sent: int, timeout: float, talk: _Talk) -> bool:
    """Wait for delivery of all that was sent, as long as there is progress."""
    least, progress_at = client.statistics().waiting, time.monotonic()
    while not client.flush(PROGRESS_INTERVAL):
        waiting = client.statistics().waiting
        now = time.monotonic()
        if waiting < least:
            least, progress_at = waiting, now
        if now - progress_at >= timeout:
            return False
        state = f"{max(sent - waiting, 0)} of {sent} delivered"
        talk.show(state if client.is_running else f"connecting, {state}")
    return True


class _Talk:
    """Lines on stderr, and one that is overwritten while it is a terminal."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = 0

    def show(self, text: str) -> None:
        if self._live:
            print(f"\r{text:<{self._shown}}", end="", file=sys.stderr, flush=True)
            self._shown = len(text)

    def clear(self) -> None:
        if self._live and self._shown:
            print(f"\r{'':<{self._shown}}\r", end="", file=sys.stderr, flush=True)
            self._shown = 0

    def say(self, *lines: str) -> None:
        self.clear()
        for line in lines:
            print(line, file=sys.stderr, flush=True)
