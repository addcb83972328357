"""Runs the unmodified JavaScript packages beside a trio test.

Each `js_*` function is an async context manager around one Node process that runs a script of
`tests/interop/js`. Entering waits for the script's "ready" event (at most START_TIMEOUT seconds);
leaving closes the script's stdin, which asks it to end in order, and kills it STOP_TIMEOUT seconds
later. A process that ends early, or a test that waits for an event in vain, fails with the
process's last standard error in the message.

The packages are looked for in the folder that HYPERLOG_NODE_MODULES names, else in
`tests/interop/node_modules` (made by `npm ci`, which bin/test runs).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

HERE = Path(__file__).parent
SCRIPTS = HERE / "js"

START_TIMEOUT = 20.0  # s; a cold Node on a busy machine needs 1 to 3
STOP_TIMEOUT = 4.0  # s; the scripts give up closing after 2
EVENT_TIMEOUT = 30.0  # s, for one event unless the test says otherwise
MAX_STDERR = 16 * 1024  # bytes kept for the failure message
POLL_INTERVAL = 0.02  # s, between looks at a log file that another process writes

# What keeps JavaScript peers of one machine from each other, so that they need a relay: a node that
# does not take itself for reachable after three answers, and no LAN address, no punch, no probe.
NO_PATH_NODE = {"quickFirewall": False}
NO_PATH_SERVER = {"refusePunch": True, "shareLocalAddress": False}
NO_PATH_CLIENT = {"refusePunch": True, "fastOpen": False, "localConnection": False}

Address = tuple[str, int]
Event = dict[str, Any]


class JavaScriptFailed(AssertionError):
    """A script ended early or did not report what was waited for."""


def node_modules() -> Path:
    """The folder that holds the JavaScript packages; it may not exist."""
    return Path(os.environ.get("HYPERLOG_NODE_MODULES") or HERE / "node_modules").absolute()


def why_unavailable() -> str | None:
    """The reason why no script can run here, None if scripts can run."""
    if shutil.which("node") is None:
        return "the program node is not installed"
    if not (node_modules() / "hypertrace-logger" / "package.json").is_file():
        return f"{node_modules()} does not hold the packages (bin/test installs them)"
    return None


@dataclass
class JavaScript:
    """One running script."""

    process: trio.Process
    script: str
    ready: Event = field(default_factory=dict)
    """The script's first event."""
    stopped: Event | None = None
    """The script's last event, with cpuSeconds and maxRssBytes; set once the context is left."""
    events: list[Event] = field(default_factory=list)
    """Everything reported so far, in order; for looking back."""
    _stderr: bytes = b""
    _taken: set[int] = field(default_factory=set)
    _ended: bool = False
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def public_key(self) -> bytes:
        """The 32-byte key that the script's node listens or connects with."""
        return bytes.fromhex(self.ready["publicKey"])

    async def event(self, name: str, *, timeout: float = EVENT_TIMEOUT) -> Event:
        """The next event called `name` that was not returned before, earlier ones included.

        Raises:
            JavaScriptFailed: the process ended without it, or `timeout` seconds went by.
        """
        with trio.move_on_after(timeout):
            while True:
                for index, event in enumerate(self.events):
                    if event["event"] == name and index not in self._taken:
                        self._taken.add(index)
                        return event
                if self._ended:
                    raise JavaScriptFailed(self._describe(f"ended before it reported {name!r}"))
                await self._changed.wait()
        raise JavaScriptFailed(self._describe(f"did not report {name!r} within {timeout} s"))

    async def command(self, **fields: Any) -> None:
        """Send one command; which ones there are stands at the top of the script."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(fields).encode() + b"\n")

    def kill(self) -> None:
        """End the process at once, without any closing message to its peers."""
        self.process.kill()

    def _describe(self, what: str) -> str:
        told = ("code", "remotePort", "punches", "relaying")
        seen = [
            " ".join([event["event"], *(str(event[key]) for key in told if key in event)])
            for event in self.events
        ]
        stderr = self._stderr.decode(errors="replace").strip() or "(empty)"
        status = self.process.returncode
        return f"{self.script} {what}; exit status {status}, events {seen}, stderr:\n{stderr}"

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _read_events(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                event = json.loads(line)
                self.events.append(event)
                if event["event"] == "stopped":
                    self.stopped = event
            self._wake()
        await self.process.wait()
        self._ended = True
        self._wake()

    async def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        async for data in self.process.stderr:
            self._stderr = (self._stderr + data)[-MAX_STDERR:]

    async def _stop(self) -> None:
        assert self.process.stdin is not None
        with trio.move_on_after(STOP_TIMEOUT, shield=True):
            await self.process.stdin.aclose()
            await self.process.wait()
        if self.process.returncode is None:
            self.process.kill()
            with trio.CancelScope(shield=True):
                await self.process.wait()


@asynccontextmanager
async def run_script(script: str, **options: Any) -> AsyncIterator[JavaScript]:
    """Run `tests/interop/js/<script>` with the options that are not None."""
    given = {name: value for name, value in options.items() if value is not None}
    process = await trio.lowlevel.open_process(
        ["node", str(SCRIPTS / script), json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(node_modules())},
    )
    javascript = JavaScript(process, script)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(javascript._read_events)
        nursery.start_soon(javascript._read_stderr)
        try:
            javascript.ready = await javascript.event("ready", timeout=START_TIMEOUT)
            yield javascript
        except Exception as error:  # raised again below: a nursery would wrap it in a group
            failure = error
        finally:
            await javascript._stop()  # the readers end with the process's pipes
    if failure is not None:
        raise failure


def _bootstrap_option(bootstrap: Iterable[Address]) -> list[dict[str, Any]]:
    return [{"host": host, "port": port} for host, port in bootstrap]


def addresses(nodes: Iterable[dict[str, Any]]) -> list[Address]:
    """The `[{"host", "port"}, …]` of an event as a list of address tuples."""
    return [(node["host"], node["port"]) for node in nodes]


@asynccontextmanager
async def js_testnet(size: int = 4) -> AsyncIterator[list[Address]]:
    """A private DHT of `size` JavaScript nodes on 127.0.0.1; gives its bootstrap addresses.

    All nodes are persistent: each has an id, stores announcements and relays handshakes.
    """
    async with run_script("testnet.js", size=size) as javascript:
        yield addresses(javascript.ready["bootstrap"])


@asynccontextmanager
async def js_trace_server(folder: Path, bootstrap: Iterable[Address]) -> AsyncIterator[JavaScript]:
    """The stock trace server, with its log files and its keys.dat (made if missing) in `folder`.

    Stock clients reach it through a testnet of 4 nodes or more. With fewer, too few NAT samples
    come together: the handshake succeeds, but the connection mostly stays dead.
    """
    options = {"folder": str(folder), "bootstrap": _bootstrap_option(bootstrap)}
    async with run_script("server.js", **options) as javascript:
        yield javascript


@asynccontextmanager
async def js_trace_client(
    server_key: bytes,
    bootstrap: Iterable[Address],
    *,
    count: int = 0,
    rate: float | None = None,
    shape: str = "typical",
    pad: int = 0,
    props: dict[str, Any] | None = None,
    seed: bytes | None = None,
    reconnect: bool = True,
    dht: dict[str, Any] | None = None,
    connect: dict[str, Any] | None = None,
) -> AsyncIterator[JavaScript]:
    """The stock trace client: sends `count` traces once the server has greeted it, then stays.

    Without `rate` (traces a second) it sends as fast as it can. The event "sent" tells that all
    were written to the connection, `command(send=n)` sends more. Shapes are in js/shapes.js;
    `seed` (32 bytes) fixes the client's key; `dht` and `connect` are further options of the
    JavaScript API.
    """
    async with run_script(
        "client.js",
        key=server_key.hex(),
        bootstrap=_bootstrap_option(bootstrap),
        count=count,
        mode="burst" if rate is None else "rate",
        rate=rate,
        shape=shape,
        pad=pad,
        props=props,
        seed=seed.hex() if seed is not None else None,
        reconnect=reconnect,
        dht=dht,
        connect=connect,
    ) as javascript:
        yield javascript


@asynccontextmanager
async def js_echo(
    mode: str,
    bootstrap: Iterable[Address],
    *,
    connect_to: bytes | None = None,
    size: int | None = None,
    chunk: int | None = None,
    checksum: bool = True,
    seed: bytes | None = None,
    dht: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    connect: dict[str, Any] | None = None,
) -> AsyncIterator[JavaScript]:
    """A plain HyperDHT peer: a server, or with `connect_to` (32-byte key) a client.

    `mode` is "echo", "sink" (it reads) or "source" (it writes `size` bytes, `chunk` in a message).
    Events "sent" and "received" carry bytes, messages, sha256 (of all bytes) and seconds.
    `dht`, `server`, `connect` are further options of the JavaScript API, such as
    dht={"firewalled": False}.
    """
    async with run_script(
        "echo.js",
        role="server" if connect_to is None else "client",
        mode=mode,
        bootstrap=_bootstrap_option(bootstrap),
        key=connect_to.hex() if connect_to is not None else None,
        bytes=size,
        chunk=chunk,
        checksum=checksum,
        seed=seed.hex() if seed is not None else None,
        dht=dht,
        server=server,
        connect=connect,
    ) as javascript:
        yield javascript


@asynccontextmanager
async def js_peer(
    bootstrap: Iterable[Address],
    *,
    server: dict[str, Any] | None = None,
    refuse: bool = False,
    echo: bool = False,
    seed: bytes | None = None,
    dht: dict[str, Any] | None = None,
) -> AsyncIterator[JavaScript]:
    """A HyperDHT peer that connects, sends and closes on command; the script tells how.

    With `server` (options of createServer, perhaps none) it listens: it may `refuse` everybody by
    its firewall, or `echo`.
    """
    async with run_script(
        "peer.js",
        bootstrap=_bootstrap_option(bootstrap),
        server=server,
        refuse=refuse,
        echo=echo,
        seed=seed.hex() if seed is not None else None,
        dht=dht,
    ) as javascript:
        yield javascript


@asynccontextmanager
async def js_relay(
    bootstrap: Iterable[Address],
    *,
    seed: bytes | None = None,
    dht: dict[str, Any] | None = None,
) -> AsyncIterator[JavaScript]:
    """A stock blind relay; `dht` are further options of its node.

    Peers use it by server={"relayThrough": hex} or connect={…} of `js_echo` and `js_trace_client`.
    With dht=NO_PATH_NODE and NO_PATH_SERVER or NO_PATH_CLIENT nothing else is left to them.
    """
    async with run_script(
        "relay.js",
        bootstrap=_bootstrap_option(bootstrap),
        seed=seed.hex() if seed is not None else None,
        dht=dht,
    ) as javascript:
        yield javascript


async def log_lines(path: Path, count: int, *, timeout: float = EVENT_TIMEOUT) -> list[Event]:
    """The parsed lines of a log file, as soon as it holds at least `count` complete ones.

    Raises:
        JavaScriptFailed: there are fewer after `timeout` seconds.
    """
    complete = 0
    with trio.move_on_after(timeout):
        while True:
            text = await trio.Path(path).read_bytes() if await trio.Path(path).exists() else b""
            complete = text.count(b"\n")
            if complete >= count:
                return [json.loads(line) for line in text.split(b"\n")[:complete]]
            await trio.sleep(POLL_INTERVAL)  # the writer is another process: nothing to wait on
    raise JavaScriptFailed(f"{path.name} has {complete} of {count} lines after {timeout} s")
