"""A connection of hyperlog.dht that carries bytes, the counterpart of tests/interop/js/echo.js.

Options and events as there: role, mode ("source" writes, "sink" reads, "echo" sends back), key,
bootstrap, bytes, chunk, checksum. Small messages are handed over in batches, as hyperlog's client
does.
"""

from __future__ import annotations

import hashlib
import time

import trio

from benchmarks.python.driver import bootstrap, options, send, wait_stdin_closed
from hyperlog.dht import Connection, open_dht

CHUNK: int = options.get("chunk", 65536)
BATCH = 65536  # bytes handed to the connection at a time

# Bytes that differ from chunk to chunk, the same as JavaScript's.
NOISE = hashlib.shake_256(b"hyperlog").digest(CHUNK)


class Tally:
    def __init__(self) -> None:
        self.bytes = 0
        self.messages = 0
        self._hash = hashlib.sha256() if options.get("checksum", True) else None
        self._begin = time.monotonic()

    def add(self, messages: list[bytes]) -> None:
        self.bytes += sum(map(len, messages))
        self.messages += len(messages)
        if self._hash is not None:
            for message in messages:
                self._hash.update(message)

    def report(self, event: str) -> None:
        send(
            event,
            bytes=self.bytes,
            messages=self.messages,
            sha256=None if self._hash is None else self._hash.hexdigest(),
            seconds=time.monotonic() - self._begin,
        )


def _chunks(total: int) -> list[tuple[int, int]]:
    """(index, length) of the messages that make `total` bytes."""
    return [(index, min(CHUNK, total - at)) for index, at in enumerate(range(0, total, CHUNK))]


async def _write(connection: Connection, total: int) -> None:
    tally = Tally()
    chunks = _chunks(total)
    step = max(BATCH // CHUNK, 1)
    for start in range(0, len(chunks), step):
        messages = [
            index.to_bytes(4, "little") + NOISE[4:length] if length >= 4 else NOISE[:length]
            for index, length in chunks[start : start + step]
        ]
        tally.add(messages)
        await connection.send_many(messages)
    await connection.send_eof()
    tally.report("sent")


async def _read(connection: Connection, *, echo: bool) -> None:
    tally = Tally()
    try:
        while True:
            messages = await connection.receive_many()
            tally.add(messages)
            if echo:
                await connection.send_many(messages)
    except trio.EndOfChannel:
        tally.report("received")


async def _use(connection: Connection) -> None:
    send("open")
    try:
        if options["mode"] == "source":
            await _write(connection, options["bytes"])
            await _drain(connection)
        else:
            await _read(connection, echo=options["mode"] == "echo")
        await connection.aclose()
    except trio.BrokenResourceError as error:
        send("error", message=str(error))


async def _drain(connection: Connection) -> None:
    """Wait for the reader's end: it has everything then."""
    try:
        while True:
            await connection.receive_many()
    except trio.EndOfChannel:
        pass


async def main() -> None:
    async with (
        open_dht(bootstrap=bootstrap(), host="127.0.0.1") as dht,
        trio.open_nursery() as nursery,
    ):

        async def serve() -> None:
            while True:
                nursery.start_soon(_use, await listener.accept())

        if options["role"] == "server":
            listener = await dht.listen()
            await listener.wait_announced()
            nursery.start_soon(serve)
            send("ready", publicKey=listener.public_key.hex())
        else:
            await dht.bootstrapped()
            send("ready", publicKey=dht.key_pair.public_key.hex())
            nursery.start_soon(_use, await dht.connect(bytes.fromhex(options["key"])))
        await wait_stdin_closed()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
