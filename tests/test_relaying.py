"""`hyperlog relay`, and records that reach the log server through one."""

from __future__ import annotations

import json
import signal
import stat
import threading
import time
from contextlib import asynccontextmanager
from functools import partial, partialmethod

import pytest
import trio

from hyperlog import cli, shipper
from hyperlog import server as server_module
from hyperlog.cli import build_parser, main
from hyperlog.client import Client
from hyperlog.clientoptions import client_options
from hyperlog.config import ClientConfig, ServerConfig
from hyperlog.dht import DHT, KeyPair, RelayServer, encode_z32, open_dht, testnet
from hyperlog.dht.paths import StreamPaths
from hyperlog.dht.sockets import SERVER
from hyperlog.errors import ConfigError
from hyperlog.server import Server
from hyperlog.trace import clear_trace_function, create_tracer
from tests.commands import option, running

LOOPBACK = "127.0.0.1"
KEY = KeyPair.generate().public_key
COUNT = 2000


@pytest.fixture(autouse=True)
def no_tracing_left():
    yield
    clear_trace_function()


# -- the command


async def pair_through(relay_key, bootstrap):
    """Whether two peers that have no other way meet through a relay."""
    node = {"bootstrap": [bootstrap], "host": LOOPBACK, "firewalled": True}
    async with open_dht(**node) as server, open_dht(**node) as client:
        listener = await server.listen(holepunch=False, share_local_address=False)
        await listener.wait_announced()
        with trio.fail_after(20):
            connection = await client.connect(listener.public_key, relay_through=relay_key)
            assert connection.path == "relayed"
            await connection.send(b"through")
            assert await (await listener.accept()).receive() == b"through"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_relay_prints_its_key_relays_and_ends_in_order(number, tmp_path):
    async with testnet(4) as network:
        bootstrap = network.bootstrap[0]
        arguments = ("--host", LOOPBACK, *option(bootstrap), "--json", "--max-pairs", "7")
        async with running("relay", *arguments, cwd=tmp_path) as relay:
            ready = json.loads(await relay.line())
            assert (ready["event"], ready["host"]) == ("ready", LOOPBACK)
            await pair_through(ready["publicKey"], bootstrap)
            assert await relay.stop(number) == 0
        last = json.loads(relay.stdout.splitlines()[-1])
        assert last["event"] == "stopped"
        assert last["statistics"]["pairs_made"] == 1
        assert last["statistics"]["bytes_relayed"] > 0
        assert b"Traceback" not in relay.stderr
    keys = tmp_path / "relay-keys.dat"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert json.loads(keys.read_text())["publicKey"] == ready["publicKey"]


async def test_without_json_it_tells_people_what_to_do_and_what_it_has_done(tmp_path):
    keys = tmp_path / "keys.dat"
    async with (
        testnet(4) as network,
        running(
            "relay", "--keys", keys, "--host", LOOPBACK, *option(network.bootstrap[0])
        ) as relay,
    ):
        line = await relay.line()
        key = line.removeprefix("relay started on ")
        assert key == json.loads(keys.read_text())["publicKey"]
        await relay.says("announced to 3 DHT nodes")
        await relay.says(f"hyperlog serve --relay {key}")
        assert await relay.stop() == 0
        await relay.says("relayed 0 bytes for 0 pairs")


async def test_a_relay_that_is_not_announced_says_so_and_when_it_is(tmp_path):
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((LOOPBACK, 0))
        node = sock.getsockname()
    async with running("relay", "--host", LOOPBACK, *option(node), cwd=tmp_path) as relay:
        await relay.says("not announced yet, retrying")
        await relay.says(f" --bootstrap {node[0]}:{node[1]}\n")
        async with testnet(2, port=node[1]):
            await relay.says("announced to 2 DHT nodes", timeout=60)
            assert await relay.stop() == 0


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1")
async def test_its_counts_are_printed_when_asked_for(tmp_path):
    async with testnet(2) as network:
        arguments = ("--host", LOOPBACK, *option(network.bootstrap[0]), "--json")
        async with running("relay", *arguments, cwd=tmp_path) as relay:
            await relay.line()
            relay.process.send_signal(signal.SIGUSR1)
            event = json.loads(await relay.line(1))
            assert event["event"] == "statistics"
            assert event["statistics"]["pairs"] == 0
            assert await relay.stop() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["relay", "--max-pairs", "0"],
        ["relay", "--max-pair-bytes", "much"],
        ["relay", "--max-pair-time", "1"],
        ["relay", "--port", "70000"],
        ["relay", "--host", "relay.example"],
        ["serve", "--relay", "5a"],
        ["send", "0" * 64, "text", "--relay", "no key"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_used_is_told_before_anything_runs(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: hyperlog" in capsys.readouterr().err


# -- the settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ()),
        (KEY, (KEY,)),
        (KEY.hex(), (KEY,)),
        (encode_z32(KEY), (KEY,)),
        ([KEY.hex(), KEY], (KEY, KEY)),
        ([], ()),
    ],
    ids=["none", "bytes", "hex", "z-base-32", "several", "no one"],
)
def test_relays_are_named_in_every_form_of_a_key(given, expected, tmp_path):
    assert ServerConfig.checked(relay_through=given).relay_through == expected
    client = ClientConfig.checked(KEY, {"relay_through": given, "keys": None})
    assert client.relay_through == expected


@pytest.mark.parametrize("given", ["5a", "l" * 52, b"short", [KEY, "?"], [KEY] * 65])
def test_what_is_no_relay_is_told_from_one(given):
    with pytest.raises(ConfigError, match="relay"):
        ServerConfig.checked(relay_through=given)
    with pytest.raises(ConfigError, match="relay"):
        ClientConfig.checked(KEY, {"relay_through": given, "keys": None})


def test_the_option_reaches_the_client():
    options = build_parser().parse_args(
        ["send", KEY.hex(), "text", "--relay", KEY.hex(), "--relay", encode_z32(KEY)]
    )
    assert client_options(options)["relay_through"] == [KEY, KEY]


def test_the_option_reaches_the_server(tmp_path, monkeypatch):
    configured = []

    async def serve(server, *, as_json):
        configured.append(server.config)

    monkeypatch.setattr(cli, "serve", serve)
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--relay", encode_z32(KEY)]) == 0
    assert [config.relay_through for config in configured] == [(KEY,)]


# -- end to end


class Shop:
    def __init__(self):
        self.tracer = create_tracer(self)

    def place(self, number):
        self.tracer.trace("order-placed", {"n": number})


@asynccontextmanager
async def relayed_server(folder, monkeypatch, *, named_by_server):
    """A log server to which a relay is the only way; gives it, the relay, and client options."""
    monkeypatch.setattr(server_module, "open_dht", partial(open_dht, firewalled=True))
    monkeypatch.setattr(shipper, "open_dht", partial(open_dht, host=LOOPBACK, firewalled=True))
    async with (
        testnet(4) as network,
        open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as dht,
        trio.open_nursery() as nursery,
    ):
        relay = RelayServer(dht)
        await nursery.start(relay.run)
        await relay.wait_announced()
        key = relay.public_key
        async with Server(
            folder,
            keys=KeyPair.generate(),
            bootstrap=network.bootstrap,
            host=LOOPBACK,
            relay_through=key if named_by_server else None,
        ) as server:
            assert await server.wait_announced() > 0
            options = {
                "bootstrap": network.bootstrap,
                "keys": None,
                "relay_through": None if named_by_server else key,
            }
            yield server, relay, options
        nursery.cancel_scope.cancel()


def only_relays(monkeypatch):
    """Keep both ends from every direct way."""
    monkeypatch.setattr(
        DHT, "listen", partialmethod(DHT.listen, holepunch=False, share_local_address=False)
    )


async def records(folder, count):
    """The traced numbers in the only log file, once there are so many."""
    with trio.fail_after(30):
        while True:
            for path in folder.glob("*.log"):
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                numbers = [line["caller"]["props"]["n"] for line in lines if "note" not in line]
                if len(numbers) >= count:
                    return numbers
            await trio.sleep(0.02)  # the file says nothing


@pytest.mark.parametrize("named_by_server", [True, False], ids=["by server", "by client"])
async def test_traces_reach_the_server_through_a_relay(tmp_path, monkeypatch, named_by_server):
    only_relays(monkeypatch)
    async with relayed_server(tmp_path, monkeypatch, named_by_server=named_by_server) as (
        server,
        relay,
        options,
    ):
        client = Client()
        client.start(server.public_key, **options)
        try:
            shop = Shop()
            for number in range(COUNT):
                shop.place(number)
            assert await trio.to_thread.run_sync(client.flush, 20)
            assert await records(tmp_path, COUNT) == list(range(COUNT))
            assert relay.statistics().pairs == 1
            assert relay.statistics().bytes_relayed > 100 * COUNT
        finally:
            await trio.to_thread.run_sync(client.stop)


async def test_no_trace_is_lost_or_doubled_when_the_connection_leaves_the_relay(
    tmp_path, monkeypatch
):
    only_relays(monkeypatch)
    relayed = {}
    take_relayed = StreamPaths.take_relayed

    def note_relayed(paths, relay):
        relayed[threading.get_ident()] = paths
        take_relayed(paths, relay)

    monkeypatch.setattr(StreamPaths, "take_relayed", note_relayed)
    async with relayed_server(tmp_path, monkeypatch, named_by_server=True) as (
        server,
        relay,
        options,
    ):
        client = Client()
        client.start(server.public_key, **options)
        try:
            shop = Shop()

            def trace_all():
                for number in range(COUNT):
                    shop.place(number)
                    if number % 20 == 0:
                        time.sleep(0.005)  # so that it takes longer than the change

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, trace_all)
                assert len(await records(tmp_path, COUNT // 10)) < COUNT
                assert relay.statistics().pairs == 1
                # As a hole punch that succeeds late: the client notices by the packets.
                here = relayed.pop(threading.get_ident())
                (there,) = relayed.values()
                here.take(SERVER, there.stream._sockets.local_address(SERVER))
            assert await records(tmp_path, COUNT) == list(range(COUNT))
            count = COUNT
            with trio.fail_after(20):
                while relay.statistics().connections:  # both sides leave it when they like
                    shop.place(count)
                    count += 1
                    await trio.sleep(0.05)
            through_relay = relay.statistics().bytes_relayed
            for number in range(count, count + 100):
                shop.place(number)
            assert await records(tmp_path, count + 100) == list(range(count + 100))
            assert relay.statistics().bytes_relayed == through_relay > 0
        finally:
            await trio.to_thread.run_sync(client.stop)
