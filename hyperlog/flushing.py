"""What `hyperlog flush-spool` does: delivers what applications left behind, without running them.

An application that was killed, or could not reach its server while it ran, leaves records in its
spool. Its next start sends them; this is for the case that there will be none soon. Sessions of
applications that are running are theirs, and not touched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from hyperlog.config import Address, ClientConfig, client_data_path, parse_spool_name
from hyperlog.dht import KeyPair
from hyperlog.diskspool import SpoolFolder
from hyperlog.errors import ConfigError, HyperlogError
from hyperlog.keyfile import load_keys
from hyperlog.shipper import Shipper

__all__ = ["FlushedSpool", "LeftSpool", "find_spools", "flush_spool", "flush_spools"]

PROGRESS_INTERVAL: Final = 0.1  # s between looks at what has been acknowledged
MAX_BUFFER_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LeftSpool:
    """A folder of records, of one application for one server."""

    application: str
    path: Path
    server_key: bytes
    client_key: str
    """first 16 hex digits of the key that the records go out under"""


@dataclass(frozen=True, slots=True)
class FlushedSpool:
    """What became of one folder."""

    spool: LeftSpool
    sessions: int
    """sessions of applications that do not run any more"""
    delivered: int
    """records that the server has acknowledged"""
    left: int
    """records that are still in the folder, those of running applications not counted"""
    sessions_left: int
    error: str | None
    """why something is left"""


def flush_spools(
    server_key: bytes | None,
    *,
    bootstrap: Sequence[Address] | None,
    timeout: float,
    as_json: bool,
    token: str | None = None,
) -> bool:
    """Deliver what dead processes of this user left, for one server or all; True if nothing is
    left.

    Tells what became of it on stderr, with `as_json` the counts on stdout. Gives up with a server
    when nothing is acknowledged for `timeout` seconds. `token` is what the server asks of clients.
    """
    flushed: list[FlushedSpool] = []

    async def run() -> None:
        for spool in find_spools(server_key):
            result = await flush_spool(spool, bootstrap=bootstrap, timeout=timeout, token=token)
            if result.sessions:
                flushed.append(result)
                _say(result)

    trio.run(run)
    delivered, left = sum(f.delivered for f in flushed), sum(f.left for f in flushed)
    complete = not any(result.sessions_left for result in flushed)
    if as_json:
        spools = [
            {
                "application": result.spool.application,
                "server": result.spool.server_key.hex(),
                "sessions": result.sessions,
                "delivered": result.delivered,
                "left": result.left,
                "error": result.error,
            }
            for result in flushed
        ]
        print(json.dumps({"delivered": delivered, "left": left, "spools": spools}), flush=True)
    if not flushed:
        print("nothing is left by applications that have ended", file=sys.stderr)
    return complete


def _say(result: FlushedSpool) -> None:
    text = f"{result.spool.application}: delivered {result.delivered} records"
    if result.sessions_left:
        text += f", {result.left} are left: {result.error}"
    print(text, file=sys.stderr, flush=True)


def find_spools(server_key: bytes | None = None) -> Iterator[LeftSpool]:
    """The folders of this user's applications, in order; with `server_key`, of that server alone.

    Raises:
        ConfigError: there is no home directory.
    """
    try:
        data = client_data_path()
    except RuntimeError as err:
        raise ConfigError(f"where applications keep their records is not known: {err}") from err
    for path in sorted(data.glob("*/spool/*")):
        found = parse_spool_name(path.name)
        if found is None or not path.is_dir():
            continue
        key, client_key = found
        if server_key is None or key == server_key:
            yield LeftSpool(path.parent.parent.name, path, key, client_key)


async def flush_spool(
    spool: LeftSpool,
    *,
    bootstrap: Sequence[Address] | None,
    timeout: float,
    token: str | None = None,
) -> FlushedSpool:
    """Deliver what dead processes left in a folder.

    Gives up when nothing is acknowledged for `timeout` seconds.
    """
    folder = SpoolFolder(spool.path)
    before = folder.count_orphans()
    if not before:
        return FlushedSpool(spool, 0, 0, 0, 0, None)
    error: str | None = None
    try:
        key_pair = _find_keys(spool)
        config = ClientConfig.checked(
            spool.server_key,
            {
                "bootstrap": bootstrap,
                "key_pair": key_pair,
                "spool": spool.path.parent,
                "application": spool.application,
                "token": token,
            },
        )
        error = await _ship(config, folder, list(before), timeout)
    except HyperlogError as err:
        error = str(err)
    after = {id: count for id, count in folder.count_orphans().items() if id in before}
    left = sum(after.values())
    return FlushedSpool(
        spool=spool,
        sessions=len(before),
        delivered=max(sum(before.values()) - left, 0),
        left=left,
        sessions_left=len(after),
        error=error if after else None,
    )


def _find_keys(spool: LeftSpool) -> KeyPair:
    """The key pair of the application that left the records.

    Raises:
        HyperlogError: it is not to be had.
    """
    path = spool.path.parent.parent / "keys.dat"
    key_pair = load_keys(path)
    if key_pair.public_key.hex()[:16] != spool.client_key:
        raise HyperlogError(
            f"the records belong to another key pair than that of {path}: "
            "only the application itself can send them"
        )
    return key_pair


async def _ship(
    config: ClientConfig, folder: SpoolFolder, sessions: Sequence[str], timeout: float
) -> str | None:
    """Send until the sessions are gone; why it ended before that."""
    shipper = Shipper(config, max_buffer_bytes=MAX_BUFFER_BYTES, start=lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shipper.run)
        state, moved_at = None, trio.current_time()
        while True:
            numbers = [folder.acknowledged(session_id) for session_id in sessions]
            if numbers == [None] * len(numbers):
                error = None
                break
            now = trio.current_time()
            if numbers != state:
                state, moved_at = numbers, now
            if now - moved_at >= timeout:
                error = _reason(shipper, timeout)
                break
            await trio.sleep(PROGRESS_INTERVAL)
        nursery.cancel_scope.cancel()
    return error


def _reason(shipper: Shipper, timeout: float) -> str:
    if shipper.connected:
        return f"connected, but nothing was acknowledged for {timeout:g} s"
    if shipper.last_connection_error is not None:
        return str(shipper.last_connection_error)
    return "no connection came about: is the server running, and is --bootstrap the same as its?"
