"""What one language stores the other finds, on networks of either; and many keys on many nodes."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.dht import KeyPair, Peer, SeqReused, SeqTooLow, open_dht, testnet
from hyperlog.dht.keys import generic_hash
from tests.interop.harness import addresses, js_testnet, run_script

pytestmark = pytest.mark.interop

OWNER = KeyPair.from_seed(bytes([1]) * 32)
TOPIC = bytes(range(32))
NODES = 100
KEYS = 200
LIMIT = 60  # s, for what takes a few on an idle machine


@asynccontextmanager
async def network_of(kind):
    if kind == "javascript":
        async with js_testnet(5) as bootstrap:
            yield bootstrap
    else:
        async with testnet(5) as net:
            yield net.bootstrap


def run_storage(bootstrap):
    nodes = [{"host": host, "port": port} for host, port in bootstrap]
    return run_script("storage.js", bootstrap=nodes, seed=(bytes([1]) * 32).hex())


async def ask(javascript, command, **fields):
    """Have JavaScript do something; bytes go there, and come back, in hex."""
    given = {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()}
    await javascript.command(do=command, **given)
    return await javascript.event("done")


@pytest.fixture(params=["javascript", "python"])
def kind(request):
    return request.param


async def test_mutable_values_are_shared_and_updated_by_both(kind):
    async with (
        network_of(kind) as bootstrap,
        open_dht(bootstrap=bootstrap, host="127.0.0.1") as dht,
        run_storage(bootstrap) as javascript,
    ):
        key = OWNER.public_key

        async def both_get(**options):
            ours = await dht.mutable_get(key, **options)
            theirs = (await ask(javascript, "mutableGet", key=key, **options))["found"]
            if ours is None:
                assert theirs is None
                return None
            assert theirs == {
                "seq": ours.seq,
                "value": ours.value.hex(),
                "signature": ours.signature.hex(),
            }
            return ours.seq, ours.value

        with trio.fail_after(LIMIT):
            assert await both_get() is None
            await dht.mutable_put(OWNER, b"ours", 1)
            assert await both_get() == (1, b"ours")
            await ask(javascript, "mutablePut", value=b"theirs", seq=2)
            assert await both_get() == (2, b"theirs")
            assert await both_get(seq=2, latest=False) == (2, b"theirs")
            assert await both_get(seq=3) is None
            with pytest.raises(SeqTooLow):
                await dht.mutable_put(OWNER, b"late", 1)
            with pytest.raises(SeqReused):
                await dht.mutable_put(OWNER, b"other", 2)
            # A JavaScript client does not look at the errors that it gets.
            await ask(javascript, "mutablePut", value=b"late", seq=1)
            await ask(javascript, "mutablePut", value=b"other", seq=2)
            assert await both_get() == (2, b"theirs")
            largest = random.Random(1).randbytes(1000)
            await dht.mutable_put(OWNER, largest, 2**53 - 1)
            assert await both_get() == (2**53 - 1, largest)


async def test_immutable_values_are_shared(kind):
    async with (
        network_of(kind) as bootstrap,
        open_dht(bootstrap=bootstrap, host="127.0.0.1") as dht,
        run_storage(bootstrap) as javascript,
    ):
        with trio.fail_after(LIMIT):
            for value in (b"x", random.Random(1).randbytes(1000)):
                stored = await dht.immutable_put(value)
                found = await ask(javascript, "immutableGet", target=stored.target)
                assert found["found"] == {"value": value.hex()}
                stored = await ask(javascript, "immutablePut", value=value[::-1])
                assert stored["target"] == generic_hash(value[::-1]).hex()
                assert (await dht.immutable_get(bytes.fromhex(stored["target"]))).value == value[
                    ::-1
                ]
            assert (await ask(javascript, "immutableGet", target=bytes(32)))["found"] is None


async def test_topics_are_shared_with_relay_addresses_and_bump(kind):
    async with (
        network_of(kind) as bootstrap,
        open_dht(bootstrap=bootstrap, host="127.0.0.1") as dht,
        run_storage(bootstrap) as javascript,
    ):
        ours, seed = KeyPair.generate(), bytes([7]) * 32
        theirs = KeyPair.from_seed(seed)
        relays = [("10.0.0.1", 1001), ("10.0.0.2", 1002)]

        async def both_look_up():
            found = {peer.public_key: peer.relay_addresses for peer in await dht.lookup(TOPIC)}
            answer = await ask(javascript, "lookup", topic=TOPIC)
            peers = {bytes.fromhex(p["publicKey"]): addresses(p["relays"]) for p in answer["peers"]}
            assert peers == found
            return found, answer["bump"]

        with trio.fail_after(LIMIT):
            await dht.announce(TOPIC, ours, relay_addresses=relays, bump=1000)
            assert await both_look_up() == ({ours.public_key: relays}, 1000)
            nodes = [{"host": host, "port": port} for host, port in relays[:1]]
            await ask(javascript, "announce", topic=TOPIC, seed=seed, relays=nodes, bump=2000)
            assert await both_look_up() == (
                {ours.public_key: relays, theirs.public_key: relays[:1]},
                2000,
            )
            # Either takes back what the other announced, if it has the key.
            await dht.unannounce(TOPIC, theirs)
            assert (await both_look_up())[0] == {ours.public_key: relays}
            await ask(javascript, "announce", topic=TOPIC, seed=seed)
            await ask(javascript, "unannounce", topic=TOPIC, seed=seed)
            await dht.unannounce(TOPIC, ours)
            assert (await both_look_up())[0] == {}


async def test_many_keys_are_found_from_everywhere_and_again_after_half_of_the_nodes_died():
    rng = random.Random(1)
    pairs = [KeyPair.from_seed(rng.randbytes(32)) for _ in range(KEYS)]
    dead = rng.sample(range(1, NODES), NODES // 2)
    survivors = [number for number in range(NODES) if number not in dead]

    async def announce(node, some):
        for pair in some:
            assert await node.announce(topic_of(pair), pair) > 0

    async def announce_all(nodes):
        async with trio.open_nursery() as nursery:
            for number, node in enumerate(nodes):
                nursery.start_soon(announce, node, pairs[number :: len(nodes)])

    async def check(node, some):
        for pair in some:
            assert await node.lookup(topic_of(pair)) == [Peer(pair.public_key)]

    async def check_from(nodes, count):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(check, node, rng.sample(pairs, count))

    with trio.fail_after(3 * LIMIT):
        async with testnet(NODES) as net:
            announcers = [net.nodes[number] for number in survivors]
            await announce_all(announcers)
            await check_from(net.nodes, 4)
            for number in dead:
                for sock in net.nodes[number].sockets._sockets.values():
                    sock.close()  # cut off without a word, as by a power failure
            await announce_all(announcers)
            await check_from(announcers, 2)
            async with run_storage(net.bootstrap) as javascript:
                for pair in rng.sample(pairs, 20):
                    answer = await ask(javascript, "lookup", topic=topic_of(pair))
                    keys = [peer["publicKey"] for peer in answer["peers"]]
                    assert keys == [pair.public_key.hex()]


def topic_of(pair):
    return generic_hash(b"topic of " + pair.public_key)
