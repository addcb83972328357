"""A real server with HTTP on a port of this machine, and those who talk to it."""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager
from functools import partial

import httpx
import trio
from trio_websocket import open_websocket_url

from hyperlog.dht import KeyPair
from hyperlog.errors import StoreUnavailable
from hyperlog.server import Server
from hyperlog.store.query import Query
from hyperlog.web import create_app, serve_http

LOGS = "/api/v1/logs"


class Site:
    def __init__(self, server, app, address):
        self.server = server
        self.app = app
        self.address = address
        self.folder = server.config.folder
        self.url = f"http://{address[0]}:{address[1]}"

    @property
    def shared(self):
        return self.app.state.shared

    def token(self, application="cerco", **options):
        text, _claims = self.server.tokens.issue(
            application, **{"now": time.time(), "scopes": ("ingest",), **options}
        )
        return text

    def reader(self, application="cerco"):
        return self.token(application, scopes=("read",))

    @asynccontextmanager
    async def client(self, token=None, **headers):
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20) as client:
            yield client

    @asynccontextmanager
    async def websocket(self, path="/api/v1/ingest", token=None, **options):
        headers = [] if token is None else [("Authorization", f"Bearer {token}")]
        url = self.url.replace("http", "ws", 1) + path
        # With few places in its queue trio-websocket would wait for ever for one at its end.
        options = {"message_queue_size": 10_000, "disconnect_timeout": 1, **options}
        async with open_websocket_url(url, extra_headers=headers, **options) as websocket:
            try:
                yield websocket
            finally:
                # trio-websocket leaves it open if the server was the first to close.
                await trio.aclose_forcefully(websocket._stream)

    async def upgrade(self, path="/api/v1/ingest", **headers):
        """The answer to a WebSocket's upgrade that is refused."""
        headers = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **headers,
        }
        async with self.client(**headers) as client:
            return await client.get(path)

    async def stream(self):
        """A bare TCP connection."""
        return await trio.open_tcp_stream(*self.address)

    def lines(self, kind="record"):
        """All lines of all log files but notes, or with `kind` "all" these as well."""
        found = []
        for path in sorted(self.folder.glob("*.log")):
            found += [json.loads(line) for line in path.read_bytes().splitlines()]
        return found if kind == "all" else [line for line in found if "note" not in line]

    def listing(self):
        """Name and size of everything in the log folder, but for the server's own data."""
        return sorted(
            (path.name, path.stat().st_size)
            for path in self.folder.rglob("*")
            if path.is_file() and ".hyperlog" not in path.parts
        )


@asynccontextmanager
async def site(folder, **options):
    options = {"http": "127.0.0.1:0", "local": True, "keys": KeyPair.generate(), **options}
    async with (
        Server(folder / "logs", host="127.0.0.1", **options) as server,
        trio.open_nursery() as nursery,
    ):
        app = create_app(server)  # beside the server's own: what it counts can be looked at here
        address = await nursery.start(partial(serve_http, app, ("127.0.0.1", 0)))
        if server.store is not None:
            await _is_ready(server.store)
        yield Site(server, app, address)
        nursery.cancel_scope.cancel()


async def _is_ready(store):
    # Who asks while its tables are being made has it made twice.
    await until(lambda: store.statistics().bytes > 50_000)
    with trio.fail_after(10):
        while True:
            try:
                await store.count(Query())
                return
            except StoreUnavailable:  # it is being opened
                await trio.sleep(0.01)


async def until(condition, timeout=10.0):
    with trio.fail_after(timeout):
        while not condition():  # noqa: ASYNC110 - counts are looked at, nobody announces them
            await trio.sleep(0.005)


def record(number, session="123456789", **fields):
    """A log message as our clients send it."""
    return json.dumps(
        {
            "traceTimestamp": "2026-01-01T00:00:00.000Z",
            "traceSessionId": session,
            "traceNumber": number,
            "level": "INFO",
            "message": f"message {number}",
            **fields,
        },
        separators=(",", ":"),
    ).encode()


async def open_session(websocket, *, token=None, instance="a2b5", sessions=None, application=None):
    """Say hello; the answer, after the greeting."""
    greeting = json.loads(await websocket.get_message())
    assert greeting["hyperlog"]["version"] == 2
    hello = {
        "version": 2,
        "application": application,
        "instance": instance,
        "token": token,
        "sessions": sessions or {"123456789": -1},
    }
    await websocket.send_message(json.dumps({"hello": hello}))
    return json.loads(await websocket.get_message())
