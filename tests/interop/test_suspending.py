"""Nodes that are suspended and resumed, beside JavaScript ones."""

from __future__ import annotations

import pytest
import trio

from hyperlog.dht import PeerConnectionFailed, PeerNotFound, open_dht
from tests.interop.harness import js_peer, js_testnet

pytestmark = pytest.mark.interop


async def test_a_javascript_client_sees_our_server_go_and_finds_it_when_it_is_back():
    async with (
        js_testnet() as bootstrap,
        open_dht(bootstrap=bootstrap, host="127.0.0.1") as server,
        js_peer(bootstrap) as client,
    ):
        listener = await server.listen()
        await listener.wait_announced()
        await client.command(connect=listener.public_key.hex(), **{"as": "before"})
        connection = await listener.accept()
        await client.event("open")

        await server.suspend()
        assert (await client.event("close", timeout=2))["name"] == "before"
        with pytest.raises(trio.BrokenResourceError):
            await connection.receive()

        await server.resume()
        with trio.fail_after(10):
            await listener.wait_announced()
            await client.command(connect=listener.public_key.hex(), **{"as": "after"})
            connection = await listener.accept()
        await connection.send(b"back")
        assert (await client.event("data"))["text"] == "back"


async def test_our_client_sees_a_javascript_server_go_and_finds_it_when_it_is_back():
    async with (
        js_testnet() as bootstrap,
        open_dht(bootstrap=bootstrap, host="127.0.0.1") as client,
        js_peer(bootstrap, server={}) as server,
    ):
        connection = await client.connect(server.public_key)
        await server.command(suspend=True)
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            with trio.fail_after(5):
                await connection.receive()
        await server.event("suspended")
        with pytest.raises((PeerConnectionFailed, PeerNotFound)):
            await client.connect(server.public_key)

        await server.command(resume=True)
        await server.event("resumed")
        with trio.fail_after(20):
            while True:  # it announces some time after it says so
                try:
                    connection = await client.connect(server.public_key)
                except (PeerConnectionFailed, PeerNotFound):
                    await trio.sleep(0.2)
                else:
                    break
        await connection.send(b"back")
        assert (await server.event("data"))["text"] == "back"
        await connection.aclose()
