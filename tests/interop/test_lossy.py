"""20 MB each way through one connection over a path that loses, doubles and reorders packets.

All packets of a connection go through a proxy of the tests' own: the client is told that the peer's
node is at the proxy's address, so that the handshake and then the stream run through it.
"""

from __future__ import annotations

import hashlib
import random
import socket
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.dht import open_dht, testnet
from tests.interop.harness import js_echo
from tests.udp_proxy import open_lossy_proxy

SIZE = 20_000_000  # bytes each way
CHUNK = 50_000
LIMIT = 60  # s; the transfer itself takes a few
LOSSES = {"loss": 0.1, "duplicate": 0.02, "reorder": 0.1, "max_delay": 0.005}


def chunks():
    rng = random.Random(20)
    for _ in range(SIZE // CHUNK):
        yield rng.randbytes(CHUNK)


def digest_of(parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


async def send_all(connection):
    for chunk in chunks():
        await connection.send(chunk)
    await connection.send_eof()


async def receive_all(connection):
    digest = hashlib.sha256()
    size = 0
    async for message in connection:
        digest.update(message)
        size += len(message)
    return size, digest.hexdigest()


async def echo(connection):
    async for message in connection:
        await connection.send(message)
    await connection.send_eof()
    await connection.aclose()


async def exchange(connection):
    """Send everything, get everything back."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, connection)
        with trio.fail_after(LIMIT):
            result = await receive_all(connection)
    await connection.aclose()
    return result


@asynccontextmanager
async def bad_path(target):
    async with open_lossy_proxy(target, seed=5, **LOSSES) as proxy:
        yield proxy
        statistics = proxy.statistics
        assert statistics.dropped > statistics.received * 0.05, statistics


async def test_python_to_python():
    async with (
        open_dht(bootstrap=[], host="127.0.0.1") as server,
        open_dht(bootstrap=[], host="127.0.0.1") as client,
        bad_path(server.address) as proxy,
        trio.open_nursery() as nursery,
    ):
        listener = await server.listen()

        async def serve():
            await echo(await listener.accept())

        nursery.start_soon(serve)
        with trio.fail_after(20):
            connection = await client.connect(listener.public_key, relay_addresses=[proxy.address])
        assert connection.remote_address == proxy.address
        size, digest = await exchange(connection)
        assert size == SIZE
        assert digest == digest_of(chunks())


@pytest.mark.interop
async def test_python_client_to_javascript_server():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with (
        testnet(4) as net,
        js_echo("echo", net.bootstrap, dht={"port": port}) as server,
        open_dht(bootstrap=[], host="127.0.0.1") as client,
        bad_path(("127.0.0.1", port)) as proxy,
    ):
        with trio.fail_after(20):
            connection = await client.connect(server.public_key, relay_addresses=[proxy.address])
        assert connection.remote_address == proxy.address
        size, digest = await exchange(connection)
        assert size == SIZE
        assert digest == digest_of(chunks())


@pytest.mark.interop
async def test_javascript_client_to_python_server():
    async with (
        testnet(4) as net,
        open_dht(bootstrap=[], host="127.0.0.1") as server,
        bad_path(server.address) as proxy,
    ):
        listener = await server.listen()
        host, port = proxy.address
        async with js_echo(
            "echo",
            net.bootstrap,
            connect_to=listener.public_key,
            size=SIZE,
            chunk=CHUNK,
            connect={"relayAddresses": [{"host": host, "port": port}]},
        ) as client:
            with trio.fail_after(LIMIT):
                connection = await listener.accept()
                await echo(connection)
                sent = await client.event("sent")
                received = await client.event("received")
        assert sent["bytes"] == received["bytes"] == SIZE
        assert sent["sha256"] == received["sha256"]
