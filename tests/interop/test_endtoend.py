"""What a JavaScript peer does to a connection, and what it makes of what we do, step by step."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.dht import DHT, Address, Connection, PeerConnectionFailed, open_dht, testnet
from hyperlog.dht.relayserver import RelayServer
from hyperlog.dht.udp import DEFAULT_TTL, UDPSocket
from tests.interop.harness import JavaScript, js_echo, js_peer

pytestmark = pytest.mark.interop

LIMIT = 30  # s; a busy machine is slow


@asynccontextmanager
async def network(size: int = 4) -> AsyncIterator[tuple[list[Address], DHT]]:
    """A test network, and a node that is not part of it."""
    async with (
        testnet(size) as net,
        open_dht(bootstrap=net.bootstrap, host="127.0.0.1") as dht,
    ):
        with trio.fail_after(LIMIT):
            yield net.bootstrap, dht


async def until(condition) -> None:
    """Wait for what nobody tells of."""
    while True:
        if condition():
            return
        await trio.sleep(0.01)


@asynccontextmanager
async def connected(
    client: str, bootstrap, dht: DHT, **javascript_dht
) -> AsyncIterator[tuple[Connection, JavaScript, str]]:
    """A connection that `client` (python or javascript) began; and its name over there."""
    if client == "python":
        async with js_peer(bootstrap, server={}, dht=javascript_dht) as peer:
            connection = await dht.connect(peer.public_key)
            await peer.event("open")
            yield connection, peer, "in0"
    else:
        listener = await dht.listen()
        await listener.wait_announced()
        async with js_peer(bootstrap, dht=javascript_dht) as peer:
            await peer.command(connect=listener.public_key.hex(), **{"as": "out"})
            connection = await listener.accept()
            await peer.event("open")
            yield connection, peer, "out"


EITHER = pytest.mark.parametrize("client", ["python", "javascript"])


@EITHER
async def test_each_direction_ends_by_itself(client):
    async with (
        network() as (bootstrap, dht),
        connected(client, bootstrap, dht) as (connection, peer, name),
    ):
        await connection.send(b"our last")
        await connection.send_eof()
        assert (await peer.event("data"))["text"] == "our last"
        await peer.event("end")
        for text in ("still", "talking"):
            await peer.command(send=text, on=name)
            assert await connection.receive() == text.encode()
        await peer.command(end=name)
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
        await peer.event("close")
        assert not [event for event in peer.events if event["event"] == "error"]


@EITHER
async def test_we_go_on_talking_after_the_peer_has_ended(client):
    async with (
        network() as (bootstrap, dht),
        connected(client, bootstrap, dht) as (connection, peer, name),
    ):
        await peer.command(end=name)
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()
        for text in ("still", "talking"):
            await connection.send(text.encode())
            assert (await peer.event("data"))["text"] == text
        await connection.aclose()
        await peer.event("close")
        assert not [event for event in peer.events if event["event"] == "error"]


@EITHER
async def test_a_peer_that_destroys_the_connection_breaks_it(client):
    async with (
        network() as (bootstrap, dht),
        connected(client, bootstrap, dht) as (connection, peer, name),
    ):
        await peer.command(destroy=name)
        with pytest.raises(trio.BrokenResourceError):
            await connection.receive()
        with pytest.raises(trio.BrokenResourceError):
            await connection.send(b"into the void")
        assert dht.statistics().sockets.streams == 0


@EITHER
async def test_an_abort_on_our_side_is_a_reset_over_there(client):
    async with (
        network() as (bootstrap, dht),
        connected(client, bootstrap, dht) as (connection, peer, name),
    ):
        connection.abort()
        error = await peer.event("error")
        assert (error["name"], error["code"]) == (name, "ECONNRESET")
        await peer.event("close")


async def test_a_client_that_gives_up_during_the_handshake_leaves_the_peer_in_order():
    async with network() as (bootstrap, dht), js_peer(bootstrap, server={}) as peer:
        for hundredths in range(0, 10):
            with trio.move_on_after(hundredths / 100):
                (await dht.connect(peer.public_key)).abort()
        assert dht.statistics().sockets.streams == 0
        connection = await dht.connect(peer.public_key)
        opened = [event for event in peer.events if event["event"] == "open"]
        await connection.send(b"in earnest")
        while (data := await peer.event("data"))["text"] != "in earnest":
            pass
        assert data["name"] >= f"in{len(opened)}"


async def test_a_javascript_client_that_gives_up_during_the_handshake_leaves_us_in_order():
    async with network() as (bootstrap, dht):
        listener = await dht.listen()
        await listener.wait_announced()
        accepted = []

        async def accept():
            while True:
                accepted.append(await listener.accept())

        async with js_peer(bootstrap) as peer, trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            key = listener.public_key.hex()
            for number, pause in enumerate((0, 0.005, 0.01, 0.02, 0.04)):
                await peer.command(connect=key, **{"as": f"brief{number}"})
                await trio.sleep(pause)
                await peer.command(destroy=f"brief{number}")
                await peer.event("close")
            await peer.command(connect=key, **{"as": "last"})
            while (await peer.event("open"))["name"] != "last":
                pass
            await peer.command(send="in earnest", on="last")
            await until(lambda: [c for c in accepted if not c.closed])
            (connection,) = [c for c in accepted if not c.closed]
            assert await connection.receive() == b"in earnest"
            nursery.cancel_scope.cancel()


async def test_either_firewall_refuses_in_silence():
    asked = []

    def refuse(key, payload, address):
        asked.append(key)
        return True

    # Of one node, since a refused client waits for as long as it takes for each that it asks.
    async with network(1) as (bootstrap, dht):
        listener = await dht.listen(firewall=refuse)
        await listener.wait_announced()
        async with js_peer(bootstrap, server={}, refuse=True) as peer:
            await peer.command(connect=listener.public_key.hex(), **{"as": "out"})
            with pytest.raises(PeerConnectionFailed, match="its firewall refuses our key"):
                await dht.connect(peer.public_key)
            await peer.event("asked")
            assert (await peer.event("error"))["code"] == "PEER_CONNECTION_FAILED"
            assert not [event for event in peer.events if event["event"] == "open"]
            assert set(asked) == {peer.public_key}
        assert listener.statistics().accepted == 0
        assert dht.statistics().connects.failed == {"PEER_CONNECTION_FAILED": 1}


@EITHER
async def test_keep_alives_are_heard_and_are_no_messages(client):
    async with (
        network() as (bootstrap, dht),
        connected(client, bootstrap, dht, connectionKeepAlive=150) as (connection, peer, name),
    ):
        received = []

        async def receive():
            received.append(await connection.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            heard = set()
            while len(heard) < 4:  # nothing else is sent
                heard.add(connection.heard_at)
                await trio.sleep(0.02)
            assert connection.authenticated
            await peer.command(send="a message", on=name)
        assert received == [b"a message"]
        assert connection.statistics().messages_received == 1


async def test_a_connection_survives_that_the_javascript_server_closes():
    async with (
        network() as (bootstrap, dht),
        connected("python", bootstrap, dht) as (connection, peer, name),
    ):
        await peer.command(close=True)
        await peer.event("closed")
        await connection.send(b"still there?")
        assert (await peer.event("data"))["text"] == "still there?"
        await peer.command(send="yes", on=name)
        assert await connection.receive() == b"yes"


async def test_a_javascript_client_survives_that_our_listener_closes():
    async with network() as (bootstrap, dht):
        listener = await dht.listen()
        await listener.wait_announced()
        async with js_peer(bootstrap) as peer:
            await peer.command(connect=listener.public_key.hex(), **{"as": "out"})
            connection = await listener.accept()
            await peer.event("open")
            await listener.aclose()
            await connection.send(b"still there?")
            assert (await peer.event("data"))["text"] == "still there?"
            await peer.command(send="yes", on="out")
            assert await connection.receive() == b"yes"
            await peer.command(connect=listener.public_key.hex(), **{"as": "late"})
            error = await peer.event("error")
            assert error["name"] == "late"
            assert error["code"] in ("PEER_NOT_FOUND", "PEER_CONNECTION_FAILED")


# -- many at once ----------------------------------------------------------------------------------


async def test_two_hundred_connections_to_a_javascript_server_open_at_once():
    count = 200
    async with network(10) as (bootstrap, dht), js_echo("sink", bootstrap) as server:
        connections = []

        async def connect():
            connections.append(await dht.connect(server.public_key))

        begin = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(connect)
        print(
            f"\n{count} connections to a JavaScript server in {time.perf_counter() - begin:.2f} s"
        )
        assert len({connection.handshake_hash for connection in connections}) == count
        assert dht.statistics().connects.failed == {}


async def test_many_javascript_connections_open_at_once():
    count = 40
    async with network(10) as (bootstrap, dht):
        listener = await dht.listen()
        await listener.wait_announced()
        async with js_peer(bootstrap) as peer:
            for number in range(count):
                await peer.command(connect=listener.public_key.hex(), **{"as": f"{number}"})
            connections = [await listener.accept() for _ in range(count)]
            seconds = [(await peer.event("open"))["seconds"] for _ in range(count)]
            print(f"\n{count} connections from JavaScript in {max(seconds):.2f} s")
            for connection in connections:
                await connection.send(b"each")
            names = {(await peer.event("data"))["name"] for _ in range(count)}
            assert len(names) == count


# -- relayed, then punched -------------------------------------------------------------------------


class DeafSocket(UDPSocket):
    """Sends no hole punch probes until it is told to: a NAT that takes its time."""

    deaf = True

    def send(self, data, address, ttl=DEFAULT_TTL):
        if len(data) == 1 and self.deaf:
            return True
        return super().send(data, address, ttl)

    def receive_batch(self):
        batch = super().receive_batch()
        return [one for one in batch if len(one[0]) > 1] if self.deaf else batch


@asynccontextmanager
async def relayed_network():
    """A test network with a relay, and a node through whose NAT no probe comes yet."""
    async with (
        testnet(6) as net,
        open_dht(bootstrap=net.bootstrap, host="127.0.0.1") as middle,
        open_dht(
            bootstrap=net.bootstrap,
            host="127.0.0.1",
            firewalled=True,
            socket_factory=type("Socket", (DeafSocket,), {}),
        ) as dht,
        trio.open_nursery() as nursery,
    ):
        relay = RelayServer(middle)
        await nursery.start(relay.run)
        with trio.fail_after(LIMIT):
            yield net.bootstrap, relay, dht
        nursery.cancel_scope.cancel()


async def change_over(connection: Connection, dht: DHT, relay: RelayServer) -> None:
    """Let the probes through in the middle of an echo, in which nothing may be missing."""
    sent, received = 0, 0

    async def send() -> None:
        nonlocal sent
        while not done:
            await connection.send(b"%d" % sent + b"." * 4000)
            sent += 1
            await trio.sleep(0.005)
        await connection.send_eof()

    async def receive() -> None:
        nonlocal received
        async for message in connection:
            assert message == b"%d" % received + b"." * 4000
            received += 1

    done = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)
        await trio.sleep(0.2)
        assert connection.path == "relayed"
        dht.sockets._factory.deaf = False
        assert await connection.path_changed() == "punched"
        await until(lambda: not relay.statistics().connections)  # both sides leave it
        relayed = relay.statistics().bytes_relayed
        before = received
        await until(lambda: received >= before + 20)
        assert relay.statistics().bytes_relayed == relayed
        done = True
    assert received == sent > 50
    assert connection.statistics().paths == ("relayed", "punched")


async def test_our_relayed_connection_is_punched_through_to_a_javascript_server():
    async with (
        relayed_network() as (bootstrap, relay, dht),
        js_peer(
            bootstrap,
            echo=True,
            server={"shareLocalAddress": False, "relayThrough": relay.public_key.hex()},
            dht={"quickFirewall": False},
        ) as peer,
    ):
        connection = await dht.connect(peer.public_key, local_connection=False)
        await change_over(connection, dht, relay)
        await peer.event("close")


async def test_a_relayed_javascript_connection_is_punched_through_to_us():
    async with relayed_network() as (bootstrap, relay, dht):
        listener = await dht.listen(share_local_address=False)
        await listener.wait_announced()
        async with js_echo(
            "answer",
            bootstrap,
            connect_to=listener.public_key,
            dht={"quickFirewall": False},
            connect={"localConnection": False, "relayThrough": relay.public_key.hex()},
        ):
            connection = await listener.accept()
            await change_over(connection, dht, relay)
