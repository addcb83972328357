"""The connection pool: one connection to each peer, also when both sides begin one."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hyperlog.dht.errors import (
    DuplicateConnection,
    LocalProtocolError,
    NodeDestroyed,
    PeerNotFound,
)
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.opening import open_dht
from tests.dht.peers import sim_dht


async def pooled(net, key_pair, **options):
    """A node that listens, with a pool that has what its listener accepts."""
    dht = await net.add(firewalled=False, key_pair=key_pair, **options)
    listener = await dht.listen()
    pool = dht.pool()
    pool.attach(listener)
    await listener.wait_announced()
    return dht, pool


def two_key_pairs():
    """The smaller public key's first."""
    return sorted((KeyPair.generate(), KeyPair.generate()), key=lambda pair: pair.public_key)


async def test_whoever_asks_for_a_peer_gets_the_same_connection(autojump_clock):
    async with sim_dht(4) as net:
        server, _ = await pooled(net, KeyPair.generate())
        client = await net.add()
        pool = client.pool()
        got = []

        async def ask():
            got.append(await pool.connect(server.key_pair.public_key))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.connecting == 1
            assert pool.get(server.key_pair.public_key) is None
        await ask()
        assert len(set(got)) == 1
        assert pool.connections == got[:1]
        assert pool.get(server.key_pair.public_key.hex()) is got[0]
        assert await pool.accept() is got[0]
        got[0].abort()
        assert pool.connections == []
        await ask()
        assert got[-1] is not got[0]


async def test_both_sides_may_call_at_once_and_share_one_connection(autojump_clock):
    for _ in range(8):
        async with sim_dht(4, jitter=0.02) as net:
            smaller, larger = two_key_pairs()
            _, first = await pooled(net, smaller)
            _, second = await pooled(net, larger)
            got = {}

            async def call(pool, key, got=got):
                got[pool] = await pool.connect(key)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, first, larger.public_key)
                nursery.start_soon(call, second, smaller.public_key)
            await trio.sleep(3)
            (one,), (other,) = first.connections, second.connections
            assert one.handshake_hash == other.handshake_hash
            assert one.is_initiator  # the smaller key's side began it
            await one.send(b"one of two")
            assert await other.receive() == b"one of two"


async def test_an_open_connection_is_used_by_the_side_that_did_not_begin_it(autojump_clock):
    async with sim_dht(4) as net:
        for ours, theirs in (two_key_pairs(), reversed(two_key_pairs())):
            _, pool = await pooled(net, ours)
            _, other = await pooled(net, theirs)
            connection = await pool.connect(theirs.public_key)
            accepted = await other.accept()
            assert await other.connect(ours.public_key) is accepted
            assert accepted.handshake_hash == connection.handshake_hash


async def test_a_peer_that_connects_again_replaces_its_former_connection(autojump_clock):
    async with sim_dht(4) as net:
        server, pool = await pooled(net, KeyPair.generate())
        client = await net.add()
        first = await client.connect(server.key_pair.public_key)
        accepted = await pool.accept()
        second = await client.connect(server.key_pair.public_key)
        again = await pool.accept()
        assert pool.connections == [again]
        with pytest.raises(trio.BrokenResourceError) as caught:
            await accepted.receive()
        assert isinstance(caught.value.__cause__, DuplicateConnection)
        assert caught.value.__cause__.code == "DUPLICATE_CONNECTION"
        with pytest.raises(trio.BrokenResourceError):
            await first.receive()
        await second.send(b"the newer one")
        assert await again.receive() == b"the newer one"


async def test_a_task_that_receives_hears_that_another_connection_is_kept(autojump_clock):
    async with sim_dht(4) as net:
        server, pool = await pooled(net, KeyPair.generate())
        client = await net.add()
        await client.connect(server.key_pair.public_key)
        accepted = await pool.accept()
        async with trio.open_nursery() as nursery:

            async def receive():
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await accepted.receive()
                assert "keeps another" in str(caught.value.__cause__)

            nursery.start_soon(receive)
            await client.connect(server.key_pair.public_key)


async def test_an_attempt_that_fails_fails_for_all_and_can_be_repeated(autojump_clock):
    async with sim_dht(4) as net:
        pool = (await net.add()).pool()
        key = KeyPair.generate().public_key

        async def ask():
            with pytest.raises(PeerNotFound):
                await pool.connect(key)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(ask)
            assert pool.connecting == 0


async def test_an_attempt_ends_with_the_last_who_waits_for_it(autojump_clock):
    async with sim_dht(4, delay=0.1) as net:
        server, _ = await pooled(net, KeyPair.generate())
        client = await net.add()
        pool = client.pool()

        async def ask(patience):
            with trio.move_on_after(patience):
                await pool.connect(server.key_pair.public_key)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 0.05)
            nursery.start_soon(ask, 0.15)
            await trio.sleep(0.1)
            assert pool.connecting == 1
        await trio.sleep(1)
        assert pool.connecting == 0
        assert pool.connections == []
        assert client.statistics().sockets.streams == 0
        connection = await pool.connect(server.key_pair.public_key)
        assert not connection.closed


async def test_whoever_waits_hears_that_the_node_was_closed(autojump_clock):
    async with sim_dht(4) as net:
        server = await net.add(firewalled=False)
        listener = await server.listen()
        await listener.wait_announced()
        host = net.network.host("9.1.1.1")

        async def ask(pool):
            with pytest.raises(NodeDestroyed):
                await pool.connect(listener.public_key)

        async def accept(pool):
            with pytest.raises(trio.ClosedResourceError):
                await pool.accept()

        async with trio.open_nursery() as nursery:  # which outlives the node
            async with open_dht(
                host="9.1.1.1", socket_factory=host, bootstrap=net.bootstrap
            ) as dht:
                await dht.bootstrapped()
                net.network.loss = 1.0
                pool = dht.pool()
                nursery.start_soon(ask, pool)
                nursery.start_soon(ask, pool)
                nursery.start_soon(accept, pool)
                await trio.sleep(0.1)
                assert pool.connecting == 1
                nursery.cancel_scope.deadline = trio.current_time() + 10
            with trio.fail_after(5):
                for _ in range(2):
                    await ask(pool)
            assert pool.connecting == 0
        assert not nursery.cancel_scope.cancelled_caught


async def test_wrong_options_are_told_to_who_gave_them_and_end_nothing_else(autojump_clock):
    async with sim_dht(4) as net:
        server, _ = await pooled(net, KeyPair.generate())
        pool = (await net.add()).pool()
        with pytest.raises(TypeError, match="patience"):
            await pool.connect(server.key_pair.public_key, patience=5)
        assert not (await pool.connect(server.key_pair.public_key)).closed


async def test_a_callback_that_fails_is_logged_and_ends_nothing(autojump_clock, caplog):
    def fail(_connection):
        raise ValueError("for a test")

    async with sim_dht(4) as net:
        server, accepting = await pooled(net, KeyPair.generate())
        connecting = (await net.add()).pool()
        accepting.on_connection = connecting.on_connection = fail
        connection = await connecting.connect(server.key_pair.public_key)
        accepted = await accepting.accept()
        await connection.send(b"x")
        assert await accepted.receive() == b"x"
        assert caplog.text.count("ValueError: for a test") == 2


async def test_a_pool_is_bounded(autojump_clock):
    async with sim_dht(4) as net:
        server = await net.add(firewalled=False)
        pool = server.pool(max_connections=2)
        pool.attach(await server.listen())
        told = []
        pool.on_connection = told.append
        for _ in range(3):
            client = await net.add()
            last = await client.connect(
                server.key_pair.public_key, relay_addresses=[server.address]
            )
        with pytest.raises(trio.BrokenResourceError):
            await last.receive()
        assert len(pool.connections) == 2
        assert pool.connections == told
        with pytest.raises(LocalProtocolError, match="2 connections"):
            await pool.connect(KeyPair.generate().public_key)
