"""Server and client while their network changes: nothing is lost, and it goes on within seconds."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio

from hyperlog.client import Client
from hyperlog.dht import KeyPair, open_dht, testnet
from hyperlog.server import Server
from tests.dht.peers import sim_dht

RATE = 50  # messages a second


def messages_in(folder, key):
    """The messages of a client's log file, in order."""
    path = folder / f"{key.hex()}.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line["message"] for line in map(json.loads, lines) if "message" in line]


async def until_logged(folder, client, count):
    while len(messages_in(folder, client.public_key)) < count:  # noqa: ASYNC110 - files are polled
        await trio.sleep(0.1)


class Talker:
    """Logs numbers at a rate until it is stopped."""

    def __init__(self, client):
        self.client = client
        self.count = 0
        self.stopped = False

    async def run(self):
        began_at = trio.current_time()
        while not self.stopped:
            while self.count < RATE * (trio.current_time() - began_at):
                self.client.log("info", str(self.count))
                self.count += 1
            await trio.sleep(0.1)


async def check_it_goes_on(folder, talker, within):
    """What is logged from now on arrives within so many seconds."""
    await trio.sleep(0.1)
    with trio.fail_after(within):
        await until_logged(folder, talker.client, talker.count)


async def check_nothing_is_lost(folder, talker):
    talker.stopped = True
    with trio.fail_after(20):
        await until_logged(folder, talker.client, talker.count)
    messages = messages_in(folder, talker.client.public_key)
    assert messages == [str(number) for number in range(talker.count)]
    assert talker.client.statistics().lost == 0


async def test_a_suspended_server_goes_on_where_it_was_when_it_is_resumed(tmp_path):
    client = Client()
    async with (
        testnet(4) as net,
        Server(tmp_path, keys=KeyPair.generate(), host="127.0.0.1", bootstrap=net.bootstrap) as s,
        client.running(s.public_key, bootstrap=net.bootstrap, keys=None),
        trio.open_nursery() as nursery,
    ):
        talker = Talker(client)
        nursery.start_soon(talker.run)
        await check_it_goes_on(tmp_path, talker, within=15)
        for _ in range(2):
            await s._dht.suspend()
            await trio.sleep(1)
            await s._dht.resume()
            await check_it_goes_on(tmp_path, talker, within=15)
        await check_nothing_is_lost(tmp_path, talker)
    assert client.statistics().connections >= 3


@pytest.mark.parametrize("who", ["server", "client"])
async def test_who_gets_another_address_goes_on_within_seconds(
    tmp_path, who, mock_clock, monkeypatch
):
    mock_clock.autojump_threshold = 0.02  # so that threads that write files keep up
    client = Client()
    async with sim_dht(4) as net:
        homes = {"server": net.network.host("77.0.0.1"), "client": net.network.host("77.0.0.2")}
        for module, home in (("server", homes["server"]), ("shipper", homes["client"])):
            monkeypatch.setattr(
                f"hyperlog.{module}.open_dht", partial(open_dht, socket_factory=home)
            )
        async with (
            Server(tmp_path, keys=KeyPair.generate(), bootstrap=net.bootstrap) as server,
            client.running(server.public_key, bootstrap=net.bootstrap, keys=None),
            trio.open_nursery() as nursery,
        ):
            talker = Talker(client)
            nursery.start_soon(talker.run)
            await check_it_goes_on(tmp_path, talker, within=15)
            for number in range(2):
                homes[who].move(f"77.1.0.{number + 1}")
                await check_it_goes_on(tmp_path, talker, within=15)
            await check_nothing_is_lost(tmp_path, talker)


async def test_server_and_client_start_again_without_any_bootstrap_node(tmp_path):
    keys, spool = KeyPair.generate(), tmp_path / "spool"
    server_keys = KeyPair.generate()

    async def run_both(net):
        client = Client()
        async with (
            Server(tmp_path, keys=server_keys, host="127.0.0.1", bootstrap=net.bootstrap) as server,
            client.running(server.public_key, bootstrap=net.bootstrap, key_pair=keys, spool=spool),
        ):
            client.log("info", "hello")
            with trio.fail_after(30):
                await client.wait_flushed()

    async with testnet(6) as net:
        await run_both(net)
        assert len(list(spool.glob("nodes-*.json"))) == 1
        await net.nodes[0].suspend()  # as good as dead
        await run_both(net)
    assert messages_in(tmp_path, keys.public_key) == ["hello", "hello"]
