"""Connections through blind relays, with JavaScript and Python in every role.

The two ends are kept from each other by refusing every other way; the relay is a JavaScript or a
Python node on the same machine.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial, partialmethod

import pytest
import trio

from hyperlog import server as server_module
from hyperlog.dht import DHT, Address, Connection, open_dht
from hyperlog.dht.errors import RelayRefused, RelayUnreachable
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.paths import StreamPaths
from hyperlog.dht.relaying import connect_through_relay
from hyperlog.dht.relayserver import RelayLimits, RelayServer
from hyperlog.dht.sockets import SERVER
from hyperlog.server import Server
from tests.interop.harness import (
    NO_PATH_CLIENT,
    NO_PATH_NODE,
    NO_PATH_SERVER,
    js_echo,
    js_relay,
    js_testnet,
    js_trace_client,
    log_lines,
)

pytestmark = pytest.mark.interop

SIZE = 400_000
NEITHER_WAY = {"holepunch": lambda *_: False, "local_connection": False, "fast_open": False}


@dataclass
class Net:
    """A test network with a relay."""

    bootstrap: list[Address]
    relay_key: bytes
    relay: RelayServer | None
    """None when it is the JavaScript one"""

    def check_relayed(self, size: int) -> None:
        if self.relay is not None:
            statistics = self.relay.statistics()
            assert statistics.pairs_made == 1
            assert statistics.bytes_relayed > size
            assert statistics.pairs_refused == statistics.malformed == 0


@asynccontextmanager
async def network(relay: str, **limits) -> AsyncIterator[Net]:
    async with js_testnet() as bootstrap, AsyncExitStack() as stack:
        if relay == "js":
            javascript = await stack.enter_async_context(js_relay(bootstrap))
            yield Net(bootstrap, javascript.public_key, None)
        else:
            dht = await stack.enter_async_context(node(bootstrap))
            nursery = await stack.enter_async_context(trio.open_nursery())
            server = RelayServer(dht, limits=RelayLimits(**limits))
            await nursery.start(server.run)
            yield Net(bootstrap, server.public_key, server)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def node(bootstrap: list[Address]) -> AsyncIterator[DHT]:
    async with open_dht(bootstrap=bootstrap, host="127.0.0.1", firewalled=True) as dht:
        yield dht


@asynccontextmanager
async def echo_server(kind: str, net: Net, relay_key: bytes | None) -> AsyncIterator[bytes]:
    """A server to which there is no direct way; gives its public key."""
    if kind == "js":
        options = {"relayThrough": relay_key.hex()} if relay_key is not None else {}
        async with js_echo(
            "echo", net.bootstrap, dht=NO_PATH_NODE, server=NO_PATH_SERVER | options
        ) as javascript:
            yield javascript.public_key
        return
    async with node(net.bootstrap) as dht, trio.open_nursery() as nursery:
        listener = await dht.listen(
            relay_through=relay_key, holepunch=False, share_local_address=False
        )
        await listener.wait_announced()

        async def accept():
            connection = await listener.accept()
            assert connection.path == "relayed"
            async for message in connection:
                await connection.send(message)
            await connection.aclose()

        nursery.start_soon(accept)
        yield listener.public_key
        nursery.cancel_scope.cancel()


async def ask_for_echo(kind: str, net: Net, server_key: bytes, relay_key: bytes | None) -> None:
    """Connect without a direct way, and check that all that is sent comes back."""
    if kind == "js":
        options = {"relayThrough": relay_key.hex()} if relay_key is not None else {}
        async with js_echo(
            "echo",
            net.bootstrap,
            connect_to=server_key,
            size=SIZE,
            dht=NO_PATH_NODE,
            connect=NO_PATH_CLIENT | options,
        ) as javascript:
            sent = await javascript.event("sent")
            received = await javascript.event("received")
            assert (sent["bytes"], sent["sha256"]) == (received["bytes"], received["sha256"])
        return
    async with node(net.bootstrap) as dht, trio.open_nursery() as nursery:
        connection = await dht.connect(server_key, relay_through=relay_key, **NEITHER_WAY)
        assert connection.path == "relayed"
        data = os.urandom(SIZE)
        nursery.start_soon(connection.send, data)
        assert await connection.receive() == data
        await connection.aclose()


@pytest.mark.parametrize(
    ("relay", "client", "server", "named_by"),
    [
        ("python", "js", "js", "client"),
        ("python", "js", "js", "server"),
        ("python", "js", "python", "server"),
        ("python", "python", "js", "client"),
        ("js", "python", "python", "client"),
        ("js", "python", "python", "server"),
        ("js", "python", "js", "server"),
        ("js", "js", "python", "client"),
    ],
)
async def test_two_ends_meet_through_a_relay(relay, client, server, named_by):
    async with network(relay) as net:
        with trio.fail_after(30):
            key = net.relay_key
            async with echo_server(server, net, key if named_by == "server" else None) as to:
                await ask_for_echo(client, net, to, key if named_by == "client" else None)
            net.check_relayed(2 * SIZE)


async def exchange(connection: Connection, count: int) -> None:
    """Send messages over some time and check that each comes back, in order."""
    messages = [os.urandom(5_000) for _ in range(count)]

    async def send_all():
        for message in messages:
            await connection.send(message)
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        for message in messages:
            assert await connection.receive() == message


async def change_over(connection: Connection, port: int, relay: RelayServer) -> None:
    """Let the direct way be found in mid-stream, and see both sides leave the relay.

    A JavaScript peer notices packets on another socket than that of the relay's connection, which
    on one machine is its node's server socket: `port` is that of the client socket.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange, connection, 200)
        await trio.sleep(0.1)
        assert connection.path == "relayed"
        paths = connection.stream.on_packet.__self__
        paths.take(SERVER, ("127.0.0.1", port))
    while relay.statistics().connections:  # the peer makes its own change
        await exchange(connection, 1)
    assert connection.path != "relayed"
    relayed = relay.statistics().bytes_relayed
    await exchange(connection, 20)
    assert relay.statistics().bytes_relayed == relayed
    assert relayed > 0


async def test_a_relayed_connection_to_javascript_changes_over_in_mid_stream():
    async with (
        network("python") as net,
        node(net.bootstrap) as dht,
        js_echo("echo", net.bootstrap, dht=NO_PATH_NODE, server=NO_PATH_SERVER) as server,
    ):
        with trio.fail_after(30):
            connection = await dht.connect(
                server.public_key, relay_through=net.relay_key, **NEITHER_WAY
            )
            await change_over(connection, server.ready["clientPort"], net.relay)
            await connection.aclose()


async def test_a_relayed_connection_from_javascript_changes_over_in_mid_stream():
    async with network("python") as net, node(net.bootstrap) as dht:
        listener = await dht.listen(holepunch=False, share_local_address=False)
        await listener.wait_announced()
        connect = NO_PATH_CLIENT | {"relayThrough": net.relay_key.hex()}
        async with js_echo(
            "answer",
            net.bootstrap,
            connect_to=listener.public_key,
            dht=NO_PATH_NODE,
            connect=connect,
        ) as client:
            with trio.fail_after(30):
                connection = await listener.accept()
                await change_over(connection, client.ready["clientPort"], net.relay)
                await connection.aclose()


@pytest.mark.parametrize(
    ("relay", "leaves"),
    [("js", False), ("python", False), ("python", True)],
    ids=["js", "python", "python, left in mid-stream"],
)
async def test_traces_of_the_stock_client_reach_the_log_server_through_a_relay(
    relay, leaves, tmp_path, monkeypatch
):
    count = 500
    relayed = []
    take_relayed = StreamPaths.take_relayed

    def note_relayed(paths, relay):
        relayed.append(paths)
        take_relayed(paths, relay)

    monkeypatch.setattr(StreamPaths, "take_relayed", note_relayed)
    async with network(relay) as net:
        # From here on, for there is no option for people that makes a server hard to reach.
        monkeypatch.setattr(server_module, "open_dht", partial(open_dht, firewalled=True))
        monkeypatch.setattr(
            DHT, "listen", partialmethod(DHT.listen, holepunch=False, share_local_address=False)
        )
        async with Server(
            tmp_path,
            keys=KeyPair.generate(),
            bootstrap=net.bootstrap,
            host="127.0.0.1",
            relay_through=net.relay_key,
        ) as server:
            await server.wait_announced()
            async with js_trace_client(
                server.public_key,
                net.bootstrap,
                count=count,
                rate=1000,
                dht=NO_PATH_NODE,
                connect=NO_PATH_CLIENT,
            ) as client:
                log = tmp_path / f"{client.public_key.hex()}.log"
                if leaves:
                    assert len(await log_lines(log, 20)) < count
                    [paths] = relayed
                    paths.take(SERVER, ("127.0.0.1", client.ready["clientPort"]))
                lines = await log_lines(log, 1 + count)
                if leaves:
                    assert paths.path != "relayed"
                    with trio.fail_after(20):
                        while net.relay.statistics().connections:
                            await client.command(send=1)
                            count += 1
                            lines = await log_lines(log, 1 + count)
        numbers = [line["traceNumber"] for line in lines if "note" not in line]
        assert numbers == list(range(numbers[0], numbers[0] + count))
        net.check_relayed(100 * 20 if leaves else 100 * count)


async def test_a_javascript_relay_and_our_side_of_blind_relay_agree_on_tokens():
    async with network("js") as net, node(net.bootstrap) as dht:
        with trio.fail_after(30):
            paths = []

            async def ask(is_initiator, stream_id):
                paths.append(
                    await connect_through_relay(
                        dht,
                        net.relay_key,
                        token=b"t" * 32,
                        is_initiator=is_initiator,
                        stream_id=stream_id,
                    )
                )

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, True, 1)
                nursery.start_soon(ask, False, 2)
            assert paths[0].remote_id != paths[1].remote_id
            for path in paths:
                path.close()
                assert path.closed


async def test_a_javascript_server_that_is_no_relay_is_told_from_one():
    async with (
        js_testnet() as bootstrap,
        node(bootstrap) as dht,
        js_echo("sink", bootstrap) as peer,
    ):
        with trio.fail_after(30):
            ask = {"token": b"t" * 32, "is_initiator": True, "stream_id": 1}
            with trio.move_on_after(2) as scope, pytest.raises(RelayRefused):
                await connect_through_relay(dht, peer.public_key, **ask)
            # It has no protomux at all, and so no answer either: that is for the caller's limit.
            assert scope.cancelled_caught
            with pytest.raises(RelayUnreachable):
                await connect_through_relay(dht, KeyPair.generate().public_key, **ask)
