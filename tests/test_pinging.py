from __future__ import annotations

import json
import re
import signal
import statistics

import pytest
import trio

from hyperlog.dht import KeyPair, SimNetwork, open_dht, testnet
from hyperlog.pinging import Pings, measure, round_trip
from hyperlog.server import Server
from tests.commands import option, run, running

LOOPBACK = "127.0.0.1"


def test_figures_are_those_of_the_pings_that_were_not_sent_again():
    pings = Pings()
    times = [0.010, 0.030, 0.020]
    for seconds in times:
        pings.add(seconds, repeated=False)
    pings.add(1.5, repeated=True)
    pings.is_broken = True
    assert (pings.sent, pings.acknowledged, pings.lost) == (5, 4, 2)
    assert (pings.least, pings.most) == (0.010, 0.030)
    assert pings.average == pytest.approx(statistics.fmean(times))
    assert pings.deviation == pytest.approx(statistics.pstdev(times))


def test_without_an_answer_nothing_was_reached():
    pings = Pings()
    assert not pings.reached
    assert pings.deviation == 0.0
    pings.add(0.1, repeated=False)
    assert pings.reached
    pings.is_broken = True
    assert not pings.reached


async def test_a_ping_is_measured_and_the_other_end_receives_nothing():
    async with testnet(3) as network, open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as dht:
        listener = await dht.listen()
        await listener.wait_announced()
        connection = await network.nodes[0].connect(listener.public_key)
        accepted = await listener.accept()
        assert 0 < await round_trip(connection) < 5
        await connection.send(b"something")
        assert await accepted.receive() == b"something"
        assert accepted.statistics().messages_received == 1
        connection.abort()
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await round_trip(connection)


class Silent:
    def connected(self, connection, seconds):
        pass

    def ping(self, number, seconds, *, repeated):
        pass

    def done(self, pings, connection, nats):
        pass


async def test_loss_is_counted_and_kept_out_of_the_times(autojump_clock):
    delay = 0.1  # s one way
    simulated = SimNetwork(seed=7, delay=delay)
    hosts = ["192.0.2.1", "192.0.2.2"]
    factories = [simulated.host(host) for host in hosts]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(simulated.run)
        async with testnet(2, socket_factories=factories, hosts=hosts) as network:
            listener = await network.nodes[0].listen()
            await listener.wait_announced()
            connection = await network.nodes[1].connect(listener.public_key)
            simulated.loss = 0.2
            pings = Pings()
            with trio.fail_after(3600):
                await measure(connection, pings, Silent(), 200, 0.5)
            assert (pings.sent, pings.acknowledged) == (200, 200)
            assert 30 < pings.lost < 120  # 36 % of all round trips lose a packet
            assert pings.least == pytest.approx(2 * delay)
            # The most may be more: a lost acknowledgement comes with the peer's next packet.
            assert pings.average < 3 * delay
            connection.abort()
        nursery.cancel_scope.cancel()


async def test_a_log_server_is_pinged_and_keeps_nothing_of_it(tmp_path):
    async with (
        testnet(4) as network,
        Server(tmp_path, keys=KeyPair.generate(), bootstrap=network.bootstrap) as server,
    ):
        await server.wait_announced()
        target = (server.public_key.hex(), *option(network.bootstrap[0]))
        done = await run("ping", *target, "--count", "3", "--interval", "0.05", "--json")
        assert (done.returncode, done.stderr) == (0, b"")
        connected, *pings, end = map(json.loads, done.stdout.splitlines())
        assert connected["publicKey"] == server.public_key.hex()
        assert [ping["number"] for ping in pings] == [1, 2, 3]
        assert end["sent"] == end["acknowledged"] == 3
        clean = [ping["seconds"] for ping in pings if not ping["sentAgain"]]
        assert end["lost"] == 3 - len(clean)  # a busy machine may acknowledge too late
        if clean:
            assert (end["min"], end["max"]) == (min(clean), max(clean))
            assert end["min"] <= end["avg"] <= end["max"]
        assert (end["paths"], end["nat"]) == ([connected["path"]], "open")
        assert end["peerNat"] == "open"
        async with running("ping", *target, "-i", "0.05") as ping:
            assert "open in" in await ping.line(0)
            await ping.line(2)
            assert await ping.stop(signal.SIGINT) == 0
            text = ping.stdout.decode()
            counts = re.search(r"^(\d+) pings, (\d+) lost", text, re.MULTILINE)
            assert ("round trip min/avg/max/mdev = " in text) == (counts[1] != counts[2])
            assert "NAT: open on this side" in text
            assert b"Traceback" not in ping.stderr
        assert list(tmp_path.glob("*.log")) == []
        assert server.statistics().files.lines == 0


async def test_a_key_that_nobody_announces_is_not_reached():
    async with testnet(2) as network:
        key = KeyPair.generate().public_key.hex()
        done = await run("ping", key, *option(network.bootstrap[0]))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no node has a record of this public key" in done.stderr
    assert b"`hyperlog doctor` tells more" in done.stderr


async def test_without_bootstrap_nodes_nobody_says_that_the_peer_is_missing():
    done = await run("ping", KeyPair.generate().public_key.hex(), *option((LOOPBACK, 9)))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no bootstrap node answers" in done.stderr
    assert b"record" not in done.stderr


async def test_a_server_that_ends_ends_the_pings(tmp_path):
    async with testnet(3) as network, open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as dht:
        listener = await dht.listen()
        await listener.wait_announced()
        target = (listener.public_key.hex(), *option(network.bootstrap[0]))
        async with running("ping", *target, "-i", "0.05") as ping:
            accepted = await listener.accept()
            await ping.line(1)
            accepted.abort()
            with trio.fail_after(10):
                assert await ping.process.wait() == 1
        assert b"the connection is lost" in ping.stderr
        assert b"Traceback" not in ping.stderr
