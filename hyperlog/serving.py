"""What `hyperlog serve` does: runs a server and tells how it can be reached."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Final

import msgspec
import trio

from hyperlog.config import Address
from hyperlog.server import Server
from hyperlog.usersignal import tell_at_user_signal

__all__ = ["serve"]

ANNOUNCE_PATIENCE: Final = 1.2  # s until the key is printed though it is not announced yet
WATCH_INTERVAL: Final = 1.0  # s between two looks at the announcement


async def serve(server: Server, *, as_json: bool) -> None:
    """Run a server until cancelled. The first line on stdout is `server started on <key>`.

    With `as_json` stdout carries one JSON object a line instead, and at every SIGUSR1 a line with
    statistics in either case.
    """
    config = server.config
    async with server, trio.open_nursery() as nursery:
        await nursery.start(tell_at_user_signal, partial(_tell_statistics, server))
        with trio.move_on_after(ANNOUNCE_PATIENCE):
            await server.wait_announced()
        key = server.public_key.hex()
        if as_json:
            host, port = server.address
            event = {"event": "started", "publicKey": key, "host": host, "port": port}
            if server.http_address is not None:
                event["http"] = _url(server.http_address)
            _write_line(json.dumps(event))
        else:
            _write_line(f"server started on {key}")
        _say(_reachability(server))
        _say(f"log files: {config.folder.resolve()}")
        if server.http_address is not None:
            _say(f"HTTP: {_url(server.http_address)}")
            if server.setup_secret is not None:
                link = f"{_url(server.http_address)}/setup#{server.setup_secret}"
                _say(f"control panel, to be set up within an hour: {link}")
        _say(_lines_to_paste(key, server))
        await _watch_reachability(server)


def _tell_statistics(server: Server) -> None:
    event = {"event": "statistics", "statistics": server.statistics()}
    _write_line(msgspec.json.encode(event).decode())


async def _watch_reachability(server: Server) -> None:
    """Say whenever it changes how clients get here."""
    said = _reachability(server)
    while True:
        await trio.sleep(WATCH_INTERVAL)
        text = _reachability(server)
        if text != said:
            _say(text)
            said = text


def _reachability(server: Server) -> str:
    here = _text(server.local_address)
    if not server.config.bootstrap:
        return f"a private network of its own: clients reach it with bootstrap {here}"
    statistics = server.statistics()
    if statistics.announced_to:
        nodes = "node" if statistics.announced_to == 1 else "nodes"
        return f"announced to {statistics.announced_to} DHT {nodes}: clients reach it by its key"
    failing = (
        "no bootstrap node answered, retrying (`hyperlog doctor` tells why)"
        if statistics.bootstrap_failing
        else "announcing"
    )
    return f"{failing}; clients on this machine or network reach it with bootstrap {here}"


def _lines_to_paste(key: str, server: Server) -> str:
    """What to write into an application, with the bootstrap nodes that it needs."""
    nodes = server.nodes_for_clients()
    python = f", bootstrap={json.dumps(nodes)}" if nodes else ""
    javascript = f"{{ bootstrap: {json.dumps(nodes)} }}" if nodes else ""
    return f"""Python:
    from hyperlog import Client
    Client().start("{key}"{python})
JavaScript:
    const dht = new (require('hyperdht'))({javascript})
    const key = Buffer.from('{key}', 'hex')
    new (require('hypertrace-logger').Client)().start({{ createSocket: () => dht.connect(key) }})"""


def _text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _url(address: Address) -> str:
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write_line(text: str) -> None:
    # In one write also where stdout is unbuffered: whoever reads the pipe gets a whole line.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
