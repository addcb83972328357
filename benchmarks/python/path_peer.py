"""One end of connections over one path, the counterpart of benchmarks/js/paths.js.

Options: role (server, client or relay), path (direct, lan, punched or relayed), bootstrap, key of
the server (client), relay (its key, on both ends of a relayed path), count. A server echoes. The
client opens connections one after the other, sends a message there and back through each, pauses
(milliseconds), and reports how long each connect took. Events: ready (publicKey), connected
(milliseconds, paths, and failures: the reasons of those that did not come about).
"""

from __future__ import annotations

import time

import trio

from benchmarks.python.driver import bootstrap, options, send, wait_stdin_closed
from hyperlog.dht import DHT, Connection, DHTError, Listener, open_dht
from hyperlog.dht.relayserver import RelayServer

MESSAGE = b"through"
LIMIT = 10.0  # s
ROLE, PATH = options["role"], options["path"]
RELAY = options.get("relay")
LOCAL = PATH == "lan"


def refuse(*_nats: object) -> bool:
    return False


async def echo(connection: Connection) -> None:
    try:
        async with connection:
            async for message in connection:
                await connection.send(message)
    except trio.BrokenResourceError:
        pass


async def accept(listener: Listener) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(echo, await listener.accept())


async def connect(dht: DHT) -> None:
    milliseconds: list[float] = []
    paths: list[str] = []
    failures: list[str] = []
    for _ in range(options["count"]):
        begin = time.monotonic()
        try:
            with trio.fail_after(LIMIT):
                connection = await dht.connect(
                    options["key"],
                    local_connection=LOCAL,
                    fast_open=PATH != "relayed",
                    holepunch=refuse if PATH == "relayed" else None,
                )
                opened = (time.monotonic() - begin) * 1000
                paths.append(connection.path)
                await connection.send(MESSAGE)
                if await connection.receive() != MESSAGE:
                    failures.append("the echo is not what was sent")
                await connection.aclose()
                milliseconds.append(opened)
        except (DHTError, trio.BrokenResourceError, trio.EndOfChannel, trio.TooSlowError) as error:
            failures.append(str(error) or type(error).__name__)
        await trio.sleep(options["pause"] / 1000)
    send("connected", milliseconds=milliseconds, paths=paths, failures=failures)


async def main() -> None:
    is_open = ROLE != "client" and PATH == "direct"
    async with (
        open_dht(bootstrap=bootstrap(), host="127.0.0.1", firewalled=not is_open) as dht,
        trio.open_nursery() as nursery,
    ):
        await dht.bootstrapped()
        key = None
        if ROLE == "server":
            listener = await dht.listen(
                share_local_address=LOCAL,
                relay_through=RELAY and bytes.fromhex(RELAY),
                holepunch=PATH != "relayed",
            )
            await listener.wait_announced()
            nursery.start_soon(accept, listener)
            key = listener.public_key.hex()
        elif ROLE == "relay":
            relay = RelayServer(dht)
            await nursery.start(relay.run)
            key = relay.public_key.hex()
        send("ready", publicKey=key)
        if ROLE == "client":
            await connect(dht)
        await wait_stdin_closed()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
