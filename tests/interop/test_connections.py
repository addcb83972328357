"""Connections between hyperlog.dht and the unmodified hyperdht, on both kinds of network."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.dht import Address, open_dht, testnet
from tests.interop.harness import js_echo, js_testnet

pytestmark = pytest.mark.interop

NETWORKS = ["javascript", "python"]


@asynccontextmanager
async def network(kind: str, size: int = 4) -> AsyncIterator[list[Address]]:
    if kind == "javascript":
        async with js_testnet(size) as bootstrap:
            yield bootstrap
    else:
        async with testnet(size) as net:
            yield net.bootstrap


@pytest.mark.parametrize("firewalled", [None, True, False], ids=["asks", "firewalled", "open"])
@pytest.mark.parametrize("kind", NETWORKS)
async def test_python_client_reaches_javascript_server(kind, firewalled):
    async with (
        network(kind) as bootstrap,
        js_echo("echo", bootstrap) as server,
        open_dht(bootstrap=bootstrap, host="127.0.0.1", firewalled=firewalled) as dht,
    ):
        with trio.fail_after(15):
            connection = await dht.connect(server.public_key)
            for message in (b"one", b"two" * 1000, b"\0"):
                await connection.send(message)
                assert await connection.receive() == message
            await connection.send_eof()
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()
            await connection.aclose()
        assert connection.remote_public_key == server.public_key


@pytest.mark.parametrize("client", [{}, {"firewalled": False}], ids=["default", "open"])
@pytest.mark.parametrize("firewalled", [None, True, False], ids=["asks", "firewalled", "open"])
@pytest.mark.parametrize("kind", NETWORKS)
async def test_javascript_client_reaches_python_server(kind, firewalled, client):
    async with (
        network(kind) as bootstrap,
        open_dht(bootstrap=bootstrap, host="127.0.0.1", firewalled=firewalled) as dht,
    ):
        listener = await dht.listen()
        with trio.fail_after(15):
            assert await listener.wait_announced() == 3
            async with js_echo(
                "source",
                bootstrap,
                connect_to=listener.public_key,
                size=300_000,
                chunk=1000,
                dht=client,
            ) as source:
                connection = await listener.accept()
                digest = hashlib.sha256()
                sizes = set()
                async for message in connection:
                    digest.update(message)
                    sizes.add(len(message))
                await connection.aclose()
                sent = await source.event("sent")
        assert digest.hexdigest() == sent["sha256"]
        assert sizes == {1000}
        assert connection.remote_public_key == source.public_key


# Neither side tells its local addresses, and both say that they are behind a NAT.
PUNCHED = [
    pytest.param({}, id="fast"),
    pytest.param({"fastOpen": False}, id="two-rounds"),
]


@pytest.mark.parametrize("connect", PUNCHED)
@pytest.mark.parametrize("kind", NETWORKS)
async def test_javascript_client_punches_through_to_python_server(kind, connect):
    async with (
        network(kind, 8) as bootstrap,
        open_dht(bootstrap=bootstrap, host="127.0.0.1", firewalled=True) as dht,
    ):
        listener = await dht.listen(share_local_address=False)
        with trio.fail_after(15):
            await listener.wait_announced()
            async with js_echo(
                "echo",
                bootstrap,
                connect_to=listener.public_key,
                size=5000,
                dht={"quickFirewall": False},
                connect={"localConnection": False, **connect},
            ) as client:
                connection = await listener.accept()
                async for message in connection:
                    await connection.send(message)
                await connection.aclose()
                assert (await client.event("received"))["bytes"] == 5000
        assert connection.path == "punched"


@pytest.mark.parametrize("kind", NETWORKS)
async def test_python_client_punches_through_to_javascript_server(kind):
    async with (
        network(kind, 8) as bootstrap,
        js_echo(
            "echo",
            bootstrap,
            dht={"quickFirewall": False},
            server={"shareLocalAddress": False},
        ) as server,
        open_dht(bootstrap=bootstrap, host="127.0.0.1", firewalled=True) as dht,
    ):
        with trio.fail_after(15):
            connection = await dht.connect(server.public_key, local_connection=False)
            await connection.send(b"through")
            assert await connection.receive() == b"through"
            await connection.aclose()
        assert connection.path == "punched"


async def test_python_peers_punch_through():
    async with (
        network("python", 8) as bootstrap,
        open_dht(bootstrap=bootstrap, host="127.0.0.1", firewalled=True) as server,
        open_dht(bootstrap=bootstrap, host="127.0.0.1", firewalled=True) as client,
    ):
        listener = await server.listen(share_local_address=False)
        await listener.wait_announced()
        with trio.fail_after(15):
            connection = await client.connect(listener.public_key, local_connection=False)
            accepted = await listener.accept()
            await connection.send(b"through")
            assert await accepted.receive() == b"through"
            await connection.aclose()
        assert connection.path == accepted.path == "punched"
