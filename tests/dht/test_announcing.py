"""Announcements outlive the nodes that hold them; on simulated nodes, and beside JavaScript."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from hyperlog.dht import KeyPair, PeerConnectionFailed, TooFewNodes, open_dht, testnet
from hyperlog.dht.announcer import ANNOUNCE_TO
from tests.dht.peers import sim_dht, sim_network
from tests.interop.harness import js_testnet, run_script

SIZE = 20
TOPIC = bytes(range(32))


class Machine:
    """A simulated machine with a cable to pull: what runs on it goes on, cut off from everybody."""

    def __init__(self, network, host):
        self.host = host
        self._factory = network.host(host)
        self._sockets = []

    def bind(self, host, port):
        self._sockets.append(self._factory(host, port))
        return self._sockets[-1]

    def unplug(self):
        for sock in self._sockets:
            sock.close()


@asynccontextmanager
async def machines_with_nodes(size=SIZE, **network_options):
    """A network of `size` persistent nodes, and the machine that each runs on."""
    async with sim_network(**network_options) as network:
        machines = [Machine(network, f"8.8.{number}.1") for number in range(size)]
        async with testnet(
            size,
            hosts=[machine.host for machine in machines],
            socket_factories=[machine.bind for machine in machines],
        ) as net:
            yield network, net.nodes, machines


def open_on(network, host, **options):
    return open_dht(host=host, socket_factory=network.host(host), **options)


async def echo_one(listener):
    connection = await listener.accept()
    await connection.send(await connection.receive())
    await connection.aclose()


async def check_echo(listener, client):
    """Connect to the listener, and send something there and back."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo_one, listener)
        connection = await client.connect(listener.public_key)
        await connection.send(b"there?")
        assert await connection.receive() == b"there?"
        await connection.aclose()


async def test_an_announced_server_is_found_from_every_node_and_not_after_it_closed(autojump_clock):
    async with sim_dht(SIZE) as net:
        server = await net.add()
        listener = await server.listen()
        assert await listener.wait_announced() == ANNOUNCE_TO
        for node in net.nodes:
            found = await node.find_peer(listener.public_key)
            assert {peer.public_key for peer in found} == {listener.public_key}
        await listener.aclose()
        for node in net.nodes:
            assert await node.find_peer(listener.public_key) == []


@pytest.mark.parametrize("seed", range(5))
async def test_a_server_is_announced_again_when_half_of_the_nodes_die(autojump_clock, seed):
    async with machines_with_nodes(seed=seed) as (network, nodes, machines):
        bootstrap = [nodes[0].address]
        async with open_on(network, "9.9.9.9", bootstrap=bootstrap) as server:
            listener = await server.listen()
            assert await listener.wait_announced() == ANNOUNCE_TO
            holders = {relay.relay_address for relay in listener.announcer.relays}
            # The worst half: all that hold the record are among them, and others at random.
            dead = [n for n in range(SIZE) if nodes[n].address in holders]
            others = [n for n in range(1, SIZE) if n not in dead]
            dead += random.Random(seed).sample(others, SIZE // 2 - len(dead))
            alive = [nodes[n] for n in range(SIZE) if n not in dead]
            for number in dead:
                machines[number].unplug()

            await trio.sleep(30)
            assert listener.statistics().announced_to == ANNOUNCE_TO
            assert not holders & {relay.relay_address for relay in listener.announcer.relays}
            for node in alive:
                assert await node.find_peer(listener.public_key)
            async with open_on(network, "9.9.9.10", bootstrap=[alive[0].address]) as client:
                with trio.fail_after(5):
                    await check_echo(listener, client)


@pytest.mark.parametrize("firewalled", [False, True], ids=["open", "firewalled"])
async def test_a_server_that_comes_back_on_another_address_is_reached_again(
    autojump_clock, firewalled
):
    key_pair = KeyPair.generate()
    async with sim_dht(SIZE) as net:
        client, other = await net.add(), await net.add()
        machine = Machine(net.network, "9.9.9.9")
        async with open_dht(
            bootstrap=net.bootstrap,
            host=machine.host,
            socket_factory=machine.bind,
            firewalled=firewalled,
        ) as gone:
            listener = await gone.listen(key_pair)
            await listener.wait_announced()
            await check_echo(listener, client)  # which now remembers the way
            machine.unplug()
            await trio.sleep(1)
            begin = trio.current_time()
            with pytest.raises(PeerConnectionFailed):
                await other.connect(key_pair.public_key)
            assert trio.current_time() - begin < 20

            async with open_on(
                net.network, "9.9.9.10", bootstrap=net.bootstrap, firewalled=firewalled
            ) as server:
                with trio.fail_after(5):
                    listener = await server.listen(key_pair)
                    await check_echo(listener, client)
                    await check_echo(listener, other)


# -- topics ----------------------------------------------------------------------------------------


async def test_peers_of_a_topic_are_found_until_they_unannounce(autojump_clock):
    async with sim_dht(SIZE) as net:
        peers = [await net.add() for _ in range(3)]
        relays = [("1.2.3.4", 5), ("6.7.8.9", 10)]
        for peer in peers:
            assert await peer.announce(TOPIC, relay_addresses=relays) == SIZE
        for node in (*net.nodes, *peers):
            found = {peer.public_key: peer for peer in await node.lookup(TOPIC)}
            assert set(found) == {peer.key_pair.public_key for peer in peers}
            assert all(peer.relay_addresses == relays for peer in found.values())
        assert await net.nodes[7].lookup(bytes(32)) == []

        assert await peers[1].unannounce(TOPIC) == SIZE
        left = {peer.public_key for peer in await net.nodes[3].lookup(TOPIC)}
        assert left == {peers[0].key_pair.public_key, peers[2].key_pair.public_key}


async def test_nobody_can_unannounce_for_another(autojump_clock):
    async with sim_dht(4) as net:
        peer, stranger = await net.add(), await net.add()
        await peer.announce(TOPIC)
        forged = SimpleNamespace(  # KeyPair does not make it
            public_key=peer.key_pair.public_key, secret_key=stranger.key_pair.secret_key
        )
        with pytest.raises(TooFewNodes):
            await stranger.unannounce(TOPIC, forged)
        assert len(await stranger.lookup(TOPIC)) == 1


@asynccontextmanager
async def network_of(kind):
    if kind == "javascript":
        async with js_testnet(4) as bootstrap:
            yield bootstrap
    else:
        async with testnet(4) as net:
            yield net.bootstrap


@pytest.mark.interop
@pytest.mark.parametrize("kind", ["javascript", "python"])
async def test_topics_are_shared_with_javascript_peers(kind):
    options = {"topic": TOPIC.hex()}
    async with (
        network_of(kind) as bootstrap,
        open_dht(bootstrap=bootstrap, host="127.0.0.1") as dht,
        run_script(
            "lookup.js",
            bootstrap=[{"host": host, "port": port} for host, port in bootstrap],
            **options,
        ) as javascript,
    ):
        ours, theirs = dht.key_pair.public_key, javascript.public_key

        async def seen_by_javascript():
            await javascript.command(do="lookup")
            keys = (await javascript.event("found", timeout=10))["publicKeys"]
            return {bytes.fromhex(key) for key in keys}

        async def seen_by_us():
            return {peer.public_key for peer in await dht.lookup(TOPIC)}

        async def do(command):
            await javascript.command(do=command)
            await javascript.event("done", timeout=10)

        # The first node of a JavaScript network keeps no records.
        assert await dht.announce(TOPIC) == (3 if kind == "javascript" else 4)
        assert await seen_by_javascript() == {ours}
        await do("announce")
        assert await seen_by_us() == await seen_by_javascript() == {ours, theirs}
        await dht.unannounce(TOPIC)
        assert await seen_by_us() == await seen_by_javascript() == {theirs}
        await do("unannounce")
        assert await seen_by_us() == await seen_by_javascript() == set()
