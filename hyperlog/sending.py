"""What `hyperlog send` does: ships lines of text as log messages, until they are delivered."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from hyperlog.client import Client
from hyperlog.clientfolders import client_keys_path
from hyperlog.config import ClientOptions
from hyperlog.errors import KeyFileError, ServerRefused
from hyperlog.flushing import count_left
from hyperlog.logs import LogEntry

__all__ = ["send_records"]

FLUSH_EVERY: Final = 4 * 1024 * 1024  # bytes of text sent before waiting for their delivery
PROGRESS_INTERVAL: Final = 0.2  # s between looks at what has been delivered
MAX_LINE: Final = 256 * 1024  # characters of one record; the rest goes into the next


def send_records(
    server: bytes | str,
    messages: Sequence[str] | None,
    options: ClientOptions,
    *,
    level: str,
    application: str | None,
    instance: str | None,
    keys: Path | None,
    timeout: float,
    as_json: bool,
) -> bool:
    """Ship `messages`, or the lines of stdin; True when all of them were delivered.

    `server` is a public key or an address, `options` tell how it is reached and shown a token.
    Gives up when nothing is delivered for `timeout` seconds. Tells the progress and the counts on
    stderr, with `as_json` the counts on stdout.
    """
    talk = _Talk()
    if keys is None:
        keys = client_keys_path("hyperlog")
        try:
            keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise KeyFileError(
                f"cannot make the folder {keys.parent}: {err.strerror}; name a key pair to send "
                "with by --keys FILE"
            ) from err
    options = {**options, "keys": keys}
    if application is not None:
        options["application"] = application
    if instance is not None:
        options["instance"] = instance
    client = Client()
    client.start(server, **options)
    if messages is None and sys.stdin.isatty():
        talk.say("each line is a message; Ctrl-D ends")
    began_at = time.monotonic()
    sent = waiting_bytes = 0
    delivered = True
    try:
        for text in _stdin_lines() if messages is None else messages:
            client.put_log(LogEntry(level, text), time.time())
            sent += 1
            waiting_bytes += len(text) + 512
            if waiting_bytes >= FLUSH_EVERY:
                waiting_bytes = 0
                delivered = _wait(client, sent, timeout, talk)
                if not delivered:
                    break
        delivered = delivered and _wait(client, sent, timeout, talk)
    finally:
        statistics = client.statistics()
        waiting = statistics.waiting
        error = client.last_connection_error
        key = client.public_key if isinstance(server, bytes) else None
        client.stop(timeout=1.0)
    seconds = time.monotonic() - began_at
    arrived = sent if delivered else max(sent - waiting, 0)
    talk.clear()
    if as_json:
        counts = {
            "sent": sent,
            "delivered": arrived,
            "seconds": round(seconds, 3),
            "publicKey": None if key is None else key.hex(),
        }
        print(json.dumps(counts), flush=True)
    if delivered:
        file = "" if key is None else f"; log file {key.hex()}.log"
        talk.say(f"delivered {_count(sent)} in {seconds:.1f} s{file}")
    else:
        if _is_final(error):
            talk.say(f"delivered {arrived} of {_count(sent)}: {error}")
            return False
        talk.say(f"delivered {arrived} of {_count(sent)}, then nothing for {timeout:g} s")
        if statistics.connected:
            talk.say("the server is there and takes no more: its log tells why")
        else:
            talk.say(
                f"last error: {error}" if error is not None else "no connection came about",
                "is the server running, and is --bootstrap the same as the server's?"
                if isinstance(server, bytes)
                else f"is the server running, and serving HTTP at {server}?",
            )
        left = count_left(server)
        if left:
            talk.say(f"kept on disk: {_count(left)}, for the next run or `hyperlog flush-spool`")
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
        if now - progress_at >= timeout or _is_final(client.last_connection_error):
            return False
        state = f"{max(sent - waiting, 0)} of {sent} delivered"
        talk.show(state if client.is_running else f"connecting, {state}")
    return True


def _is_final(error: Exception | None) -> bool:
    """Whether somebody has to do something before there will be a connection."""
    return isinstance(error, ServerRefused) and error.refusal != "LIMIT"


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
