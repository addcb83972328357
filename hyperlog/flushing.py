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

from hyperlog.clientfolders import client_data_path, parse_spool_name
from hyperlog.config import ClientConfig, ClientOptions
from hyperlog.destination import Destination
from hyperlog.dht import KeyPair
from hyperlog.diskspool import SpoolFolder
from hyperlog.errors import ConfigError, HyperlogError, ServerRefused
from hyperlog.keyfile import load_keys
from hyperlog.shipper import Shipper

__all__ = ["FlushedSpool", "LeftSpool", "count_left", "find_spools", "flush_spool", "flush_spools"]

PROGRESS_INTERVAL: Final = 0.1  # s between looks at what has been acknowledged
MAX_BUFFER_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LeftSpool:
    """A folder of records, of one application for one server."""

    application: str
    path: Path
    server: str
    """public key in hex, or address"""
    client_key: str | None
    """first 16 hex digits of the key that the records go out under; None over HTTP"""
    destination: Destination | None


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
    server: bytes | str | None,
    options: ClientOptions,
    *,
    timeout: float,
    as_json: bool,
) -> bool:
    """Deliver what dead processes of this user left, for one server or all; True if nothing is
    left.

    `server` is a public key or an address; `options` tell how servers are reached and shown a
    token, which is kept nowhere with the records.

    Tells what became of it on stderr, with `as_json` the counts on stdout. Gives up with a server
    when nothing is acknowledged for `timeout` seconds.
    """
    flushed: list[FlushedSpool] = []

    async def run() -> None:
        for spool in find_spools(server):
            result = await flush_spool(spool, options, timeout=timeout)
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
                "server": result.spool.server,
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
    text = f"{result.spool.application}: delivered {_count(result.delivered)}"
    if result.sessions_left:
        text += f", {result.left} {'is' if result.left == 1 else 'are'} left: {result.error}"
    print(text, file=sys.stderr, flush=True)


def _count(number: int) -> str:
    return f"{number} record{'' if number == 1 else 's'}"


def find_spools(server: bytes | str | None = None) -> Iterator[LeftSpool]:
    """The folders of this user's applications, in order; with `server`, of that one alone.

    Raises:
        ConfigError: there is no home directory.
    """
    try:
        data = client_data_path()
    except RuntimeError as err:
        raise ConfigError(f"where applications keep their records is not known: {err}") from err
    wanted = server[:32].hex() if isinstance(server, bytes) else server  # the key of an address
    for path in sorted(data.glob("*/spool/*")):
        if not path.is_dir():
            continue
        destination = Destination.read(path)
        found = parse_spool_name(path.name)
        client_key = None
        if found is not None:
            key, client_key = found
            address = key.hex()
        elif destination is not None:
            address = destination.server
        else:
            continue
        if wanted is None or address == wanted:
            application = path.parent.parent.name
            yield LeftSpool(application, path, address, client_key, destination)


def count_left(server: bytes | str) -> int:
    """How many records for a server wait on this user's disk for somebody to deliver them."""
    try:
        spools = list(find_spools(server))
    except ConfigError:  # no home, so that nothing was kept
        return 0
    return sum(sum(SpoolFolder(spool.path).count_orphans().values()) for spool in spools)


async def flush_spool(spool: LeftSpool, options: ClientOptions, *, timeout: float) -> FlushedSpool:
    """Deliver what dead processes left in a folder; `options` as for `flush_spools`.

    Gives up when nothing is acknowledged for `timeout` seconds.
    """
    folder = SpoolFolder(spool.path)
    before = folder.count_orphans()
    if not before:
        return FlushedSpool(spool, 0, 0, 0, 0, None)
    if sys.stderr.isatty():
        where = spool.server if spool.client_key is None else f"{spool.server[:16]}…"
        text = f"{spool.application}: {_count(sum(before.values()))} for {where}"
        print(text, file=sys.stderr, flush=True)
    error: str | None = None
    try:
        error = await _ship(_config(spool, options), folder, list(before), timeout)
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


def _config(spool: LeftSpool, options: ClientOptions) -> ClientConfig:
    """The settings of the application that left the records.

    Raises:
        HyperlogError: its key pair is not to be had, or a token is needed.
    """
    options = {**options, "spool": spool.path.parent, "key_pair": _find_keys(spool)}
    options["application"] = spool.application
    destination = spool.destination
    if destination is not None:
        options["application"] = destination.application
        options["instance"] = destination.instance
        if destination.ca_file is not None and "ca_file" not in options:
            options["ca_file"] = destination.ca_file
        options["allow_plain"] = options.get("allow_plain", False) or destination.allow_plain
    config = ClientConfig.checked(spool.server, options)
    # Its token told what the application is; the records are not to go under another name.
    if destination is not None and destination.application is None and config.token is None:
        raise HyperlogError(
            "the records need an application token: give it by --token-file, or in the variable "
            "HYPERLOG_TOKEN"
        )
    if config.spool != spool.path:
        raise HyperlogError(f"{spool.path} has not the name of what lies in it")
    return config


def _find_keys(spool: LeftSpool) -> KeyPair:
    """The key pair of the application that left the records; over HTTP any will do.

    Raises:
        HyperlogError: it is not to be had.
    """
    if spool.client_key is None:
        return KeyPair.generate()
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
            refusal = shipper.last_connection_error
            is_final = isinstance(refusal, ServerRefused) and refusal.refusal != "LIMIT"
            if is_final or now - moved_at >= timeout:
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
