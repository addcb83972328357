"""One host of the laboratory: a hyperlog.dht peer, a relay, or the nodes of a network.

    python -m tests.natlab.pyhost

Reads commands, one JSON object a line: {id, command, ...options}; answers each with {id, ...} or
{id, error, message}, in the order in which they are done. Ends when stdin does.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

import trio

from hyperlog.dht import DHTError, RelayServer, open_dht, testnet

CHUNK = 65536  # bytes
PORT = 49737
EXCHANGE_TIMEOUT = 10.0  # s that the first byte gets at least

Answer = dict[str, Any]


class Failed(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Peer:
    """A connection and how it ended."""

    def __init__(self, connection) -> None:
        self.connection = connection
        self.ended: str | None = None

    def describe(self) -> Answer:
        return {"path": self.connection.path, "remote": list(self.connection.remote_address)}


def why(error: BaseException) -> str:
    """The code that the JavaScript packages have for an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DHTError):
            return cause.code
        cause = cause.__cause__
    return type(error).__name__


class Host:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._dht = None
        self._scope = trio.CancelScope()
        self._closed = trio.Event()
        self._accepted: list[Peer] = []
        self._connections: list[Peer] = []

    async def network(self, hosts: list[str]) -> Answer:
        """Run one persistent node on each of this host's addresses until the end."""

        async def run(*, task_status) -> None:
            async with testnet(len(hosts), hosts=hosts, port=PORT) as net:
                task_status.started(net.bootstrap)
                await trio.sleep_forever()

        return {"bootstrap": await self._nursery.start(run)}

    async def open(
        self,
        bootstrap: list[list],
        firewalled: bool | None = None,
        ephemeral: bool | None = None,
        port: int = 0,
        random_punch_interval: float | None = None,
    ) -> Answer:
        """Start a peer that joins the network; `close` ends it."""
        options = {}
        if random_punch_interval is not None:
            options["random_punch_interval"] = random_punch_interval

        async def run(*, task_status) -> None:
            with trio.CancelScope() as self._scope:
                async with (
                    open_dht(
                        bootstrap=[(host, port) for host, port in bootstrap],
                        port=port,
                        firewalled=firewalled,
                        ephemeral=ephemeral,
                        **options,
                    ) as dht,
                    trio.open_nursery() as self._tasks,
                ):
                    await dht.bootstrapped()
                    task_status.started(dht)
                    await trio.sleep_forever()
            self._closed.set()

        self._closed = trio.Event()
        self._dht = await self._nursery.start(run)
        return {"port": self._dht.address[1]}

    async def listen(
        self, relay: str | None = None, share_local_address: bool | None = None
    ) -> Answer:
        """Accept connections and send back what they bring; returns when that is announced."""
        options: dict[str, Any] = {}
        if share_local_address is not None:
            options["share_local_address"] = share_local_address
        if relay is not None:
            options["relay_through"] = bytes.fromhex(relay)
        listener = await self._dht.listen(**options)
        self._tasks.start_soon(self._accept, listener)
        await listener.wait_announced()
        return {"key": listener.public_key.hex()}

    async def _accept(self, listener) -> None:
        try:
            while True:
                self._tasks.start_soon(self._echo, await listener.accept())
        except trio.ClosedResourceError:
            pass  # the peer is closed

    async def _echo(self, connection) -> None:
        peer = Peer(connection)
        self._accepted.append(peer)
        try:
            async for message in connection:
                await connection.send(message)
            await connection.send_eof()
            peer.ended = "closed"
        except (DHTError, trio.BrokenResourceError) as error:
            peer.ended = why(error)
        finally:
            await connection.aclose()

    async def relay(self) -> Answer:
        """Accept connections and relay what comes by them."""
        relay = RelayServer(self._dht)
        await self._tasks.start(relay.run)
        await relay.wait_announced()
        return {"key": relay.public_key.hex()}

    async def connect(
        self,
        key: str,
        timeout: float,
        relay: str | None = None,
        local_connection: bool | None = None,
    ) -> Answer:
        """Connect, and let one byte go there and back, since "open" means this or that.

        Gives the number of the connection, the path at its beginning, and milliseconds.
        """
        options: dict[str, Any] = {}
        if local_connection is not None:
            options["local_connection"] = local_connection
        if relay is not None:
            options["relay_through"] = bytes.fromhex(relay)
        begin = time.monotonic()
        with trio.move_on_after(timeout) as limit:
            connection = await self._dht.connect(bytes.fromhex(key), **options)
        if limit.cancelled_caught:
            raise Failed("TIMEOUT", "it took too long")
        opened = time.monotonic() - begin
        peer = Peer(connection)
        described = peer.describe()
        self._connections.append(peer)
        number = len(self._connections) - 1
        await self.exchange(number, 1, max(timeout - opened, EXCHANGE_TIMEOUT))
        return {
            "connection": number,
            "opened": opened * 1000,
            "milliseconds": (time.monotonic() - begin) * 1000,
            **described,
        }

    async def exchange(self, connection: int, size: int, timeout: float) -> Answer:
        """Send so many bytes and wait until they are back; gives milliseconds."""
        peer = self._connections[connection]
        stream = peer.connection
        begin = time.monotonic()
        received = 0

        async def send() -> None:
            for start in range(0, size, CHUNK):
                await stream.send(bytes([size % 251]) * min(CHUNK, size - start))

        with trio.move_on_after(timeout):
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    while received < size:
                        message = await stream.receive()
                        if message.strip(bytes([size % 251])):
                            raise Failed("GARBLED", "other bytes came back")
                        received += len(message)
            except* (DHTError, trio.BrokenResourceError, trio.EndOfChannel) as group:
                code = why(group.exceptions[0])
                raise Failed(code, f"{received} of {size} bytes came back") from None
            return {"milliseconds": (time.monotonic() - begin) * 1000}
        raise Failed("TIMEOUT", f"{received} of {size} bytes came back")

    async def path(self, connection: int) -> Answer:
        """How a connection runs now."""
        return self._connections[connection].describe()

    async def accepted(self) -> Answer:
        """What came to the listener so far, and how it ended if it did."""
        entries = []
        for peer in self._accepted:
            described = {} if peer.ended else peer.describe()
            entries.append({"ended": peer.ended, **described})
        return {"connections": entries}

    async def disconnect(self, connection: int) -> Answer:
        await self._connections[connection].connection.aclose()
        return {}

    async def close(self, force: bool = False) -> Answer:
        """End the peer; with `force` without a word to anybody."""
        if self._dht is not None:
            if not force:
                await self._dht.shut_down()
            self._scope.cancel()
            await self._closed.wait()
        self._dht = None
        self._accepted.clear()
        self._connections.clear()
        return {}


async def main() -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)

        async def run(id: int, command: str, options: dict[str, Any]) -> None:
            begin = time.monotonic()
            try:
                answer = await getattr(host, command)(**options)
            except Exception as error:
                code = error.code if isinstance(error, Failed) else why(error)
                answer = {
                    "error": code,
                    "message": "".join(traceback.format_exception(error)),
                    "milliseconds": (time.monotonic() - begin) * 1000,
                }
            sys.stdout.write(json.dumps({"id": id, **answer}) + "\n")
            sys.stdout.flush()

        rest = b""
        async for data in trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                options = json.loads(line)
                nursery.start_soon(run, options.pop("id"), options.pop("command"), options)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
