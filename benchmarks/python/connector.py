"""Opens connections to an echo server, the counterpart of benchmarks/js/connect.js.

Options: key, bootstrap, sequential, parallel. Each connection carries one message there and back,
outside of the time in the sequential ones. Events: ready, sequential (milliseconds of each connect,
one more than asked for: the first one is apart), parallel (milliseconds until all are through, and
lost: how many failed or were cut off before their echo, with the first reason).
"""

from __future__ import annotations

import time

import trio

from benchmarks.python.driver import bootstrap, options, send, wait_stdin_closed
from hyperlog.dht import DHT, Connection, DHTError, open_dht

MESSAGE = b"through"
KEY = bytes.fromhex(options["key"])


async def _echo(connection: Connection) -> None:
    await connection.send(MESSAGE)
    if await connection.receive() != MESSAGE:
        send("error", message="the echo is not what was sent")


async def _sequential(dht: DHT) -> list[float]:
    milliseconds = []
    for _ in range(options["sequential"] + 1):
        begin = time.monotonic()
        connection = await dht.connect(KEY)
        milliseconds.append((time.monotonic() - begin) * 1000)
        await _echo(connection)
        await connection.aclose()
    return milliseconds


async def _parallel(dht: DHT) -> None:
    connections: list[Connection] = []
    reasons: list[str] = []

    async def connect() -> None:
        try:
            connection = await dht.connect(KEY)
            connections.append(connection)
            await _echo(connection)
        except (DHTError, trio.BrokenResourceError, trio.EndOfChannel) as error:
            reasons.append(str(error.__cause__ or error))

    begin = time.monotonic()
    async with trio.open_nursery() as nursery:
        for _ in range(options["parallel"]):
            nursery.start_soon(connect)
    milliseconds = (time.monotonic() - begin) * 1000
    for connection in connections:
        connection.abort()
    send("parallel", milliseconds=milliseconds, lost=len(reasons), reason="".join(reasons[:1]))


async def main() -> None:
    async with open_dht(bootstrap=bootstrap(), host="127.0.0.1") as dht:
        await dht.bootstrapped()
        send("ready")
        send("sequential", milliseconds=await _sequential(dht))
        await _parallel(dht)
        await wait_stdin_closed()


if __name__ == "__main__":
    trio.run(main)
