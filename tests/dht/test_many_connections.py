"""Many connections at once over real sockets."""

from __future__ import annotations

import time

import trio

from hyperlog.dht import open_dht

COUNT = 200
LIMIT = 20  # s; it takes one or two


async def echo(connection):
    async for message in connection:
        await connection.send(message)
    await connection.aclose()


async def test_two_hundred_connects_at_once_all_open_and_none_is_dropped():
    async with (
        open_dht(bootstrap=[], host="127.0.0.1") as server,
        open_dht(bootstrap=[], host="127.0.0.1") as client,
        trio.open_nursery() as nursery,
    ):
        listener = await server.listen()
        connections = {}

        async def serve():
            while True:
                nursery.start_soon(echo, await listener.accept())

        async def connect(number):
            connections[number] = await client.connect(
                listener.public_key, relay_addresses=[server.address]
            )

        nursery.start_soon(serve)
        begin = time.perf_counter()
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as attempts:
                for number in range(COUNT):
                    attempts.start_soon(connect, number)
        opened_in = time.perf_counter() - begin
        print(f"\n{COUNT} connections in {opened_in:.2f} s")

        for number, connection in connections.items():
            await connection.send(b"%d" % number)
        with trio.fail_after(LIMIT):
            for number, connection in connections.items():
                assert await connection.receive() == b"%d" % number
        statistics = listener.statistics()
        assert statistics.accepted == statistics.handshakes == COUNT
        assert statistics.dropped == statistics.failed == 0
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as closing:
                for connection in connections.values():
                    closing.start_soon(connection.aclose)
        nursery.cancel_scope.cancel()
