"""What `hyperlog reindex` does: makes the embedded store again from the log files.

The new database is made beside the old one and takes its place when it is complete: a reindex that
is interrupted has changed nothing. It does not run while a server uses the store.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hyperlog.errors import ConfigError
from hyperlog.keyfile import load_keys
from hyperlog.store.sqlite.rebuilding import Progress, rebuild
from hyperlog.store.sqlite.store import DATABASE

__all__ = ["reindex"]

MEGABYTE = 1e6


def reindex(folder: Path, data: Path, keys: Path, *, as_json: bool) -> None:
    """Make the store in `data` again from the log files in `folder`.

    Tells of the progress on stderr, with `as_json` on stdout, a JSON object a line.

    Raises:
        ConfigError: the folder is not there.
        KeyFileError: the server's key, which the records are told to be of, cannot be read.
        StoreUnavailable: a server uses the store, or it cannot be written.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: name the server's by --folder")
    server = load_keys(keys).public_key.hex()
    teller = _tell_json if as_json else _Teller().tell
    teller(rebuild(data / DATABASE, folder, server, teller))
    if not as_json:
        print(f"\nthe store is {data / DATABASE}", file=sys.stderr)


def _tell_json(progress: Progress) -> None:
    remaining = progress.remaining
    event = {
        "event": "complete" if progress.complete else "progress",
        "records": progress.records,
        "bytes": progress.bytes,
        "total": progress.total,
        "seconds": round(progress.seconds, 1),
        "rate": round(progress.rate),
        "remaining": None if remaining is None else round(remaining, 1),
    }
    print(json.dumps(event), flush=True)


class _Teller:
    """One line on stderr, written over where that is a terminal."""

    def __init__(self) -> None:
        self._width = 0

    def tell(self, progress: Progress) -> None:
        if not progress.complete and not sys.stderr.isatty():
            return
        text = (
            f"{progress.records:,} records, {progress.bytes / MEGABYTE:,.0f} of "
            f"{progress.total / MEGABYTE:,.0f} MB, {progress.rate:,.0f} records/s"
        )
        if progress.remaining is not None and not progress.complete:
            text += f", {progress.remaining:,.0f} s to go"
        print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(text)
