"""The doctor looks at real networks with real faults."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from hyperlog.dht import KeyPair, open_dht, testnet
from hyperlog.doctor import examine_network, examine_peer
from hyperlog.findings import Verdict
from hyperlog.server import Server
from tests.commands import option, report, running

LOOPBACK = "127.0.0.1"
TIMEOUT = 20.0
NETWORK = ["names", "udp", "bootstrap", "network", "nat"]
PEER = ["record", "handshake", "peerNat", "path", "server", "clock"]


@pytest.fixture
def impatient(monkeypatch):
    """What is silent here stays so: waiting for it is cut short. All that answers is near."""
    monkeypatch.setattr("hyperlog.dht.diagnosis.PROBE_INTERVAL", 0.3)
    monkeypatch.setattr("hyperlog.dht.diagnosis.HANDSHAKE_INTERVAL", 0.2)
    monkeypatch.setattr("hyperlog.doctor.GREETING_TIMEOUT", 0.1)
    monkeypatch.setattr("hyperlog.doctor.CLOSE_TIMEOUT", 0.1)


class Notes:
    """Everything that was found, by its step."""

    def __init__(self):
        self.begun = []
        self.found_in_order = []

    def begin(self, step):
        self.begun.append(step)

    def found(self, finding):
        self.found_in_order.append(finding)

    @property
    def steps(self):
        return [finding.step for finding in self.found_in_order]

    def __getitem__(self, step):
        (finding,) = [finding for finding in self.found_in_order if finding.step == step]
        return finding

    @property
    def failed(self):
        return [one.step for one in self.found_in_order if one.verdict is Verdict.FAILED]


async def look(bootstrap, key=None, **options):
    notes = Notes()
    options.setdefault("timeout", TIMEOUT)
    if key is None:
        good = await examine_network(bootstrap, notes, **options)
    else:
        good = await examine_peer(key, bootstrap, notes, **options)
    assert good == (not notes.failed)
    assert set(notes.begun) <= set(notes.steps)
    return notes


@asynccontextmanager
async def black_hole():
    """A port that takes everything and never answers."""
    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.bind((LOOPBACK, 0))
        yield sock.getsockname()


# -- what is well


async def test_a_log_server_is_found_well_at_every_step(tmp_path):
    async with (
        testnet(4) as network,
        Server(tmp_path, keys=KeyPair.generate(), bootstrap=network.bootstrap) as server,
    ):
        await server.wait_announced()
        notes = await look(network.bootstrap, server.public_key)
    assert notes.steps == [*NETWORK, *PEER]
    assert notes.failed == []
    assert len(notes["record"].figures["holders"]) == 3
    assert notes["peerNat"].figures["kind"] == "open"
    assert notes["path"].figures["kind"] in ("direct", "lan")
    assert 0 < notes["path"].figures["roundTrip"] < TIMEOUT
    assert notes["server"].figures["kind"] == "hyperlog"
    assert abs(notes["clock"].figures["skew"]) < 2
    assert list(tmp_path.glob("*.log")) == []  # it left nothing behind


async def test_a_server_that_is_its_own_network_is_found_well(tmp_path):
    async with Server(tmp_path, keys=KeyPair.generate(), host=LOOPBACK, local=True) as server:
        await server.wait_announced()
        notes = await look([server.address], server.public_key)
    assert notes.failed == []
    assert notes["handshake"].figures["direct"]


@pytest.mark.usefixtures("impatient")
async def test_a_peer_that_is_no_log_server_can_be_reached_all_the_same():
    async with testnet(4) as network, open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as dht:
        listener = await dht.listen()
        await listener.wait_announced()
        notes = await look(network.bootstrap, listener.public_key)
    assert notes.failed == []
    assert notes["server"].verdict is Verdict.SKIPPED


@pytest.mark.usefixtures("impatient")
async def test_a_peer_is_reached_by_the_nodes_that_its_address_names():
    async with testnet(4) as network, testnet(1) as elsewhere:
        listener = await elsewhere.nodes[0].listen()
        await listener.wait_announced()
        notes = await look(
            network.bootstrap, listener.public_key, nodes=[elsewhere.nodes[0].address]
        )
    assert notes["record"].verdict is Verdict.WARNING
    assert notes.failed == []


async def test_a_network_alone_is_looked_at():
    async with testnet(3) as network:
        notes = await look(network.bootstrap)
    assert notes.steps == NETWORK
    assert notes.failed == []
    assert notes["network"].figures["nodes"] == 3


# -- what is not


@pytest.mark.usefixtures("impatient")
async def test_bootstrap_nodes_that_are_silent_dead_or_only_some_of_them_are_told_apart():
    found = {}

    async def look_at(name, nodes):
        found[name] = await look(nodes)

    async with black_hole() as hole, testnet(4) as network:
        with trio.fail_after(10):  # what is silent is not waited for once more
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look_at, "silent", [hole])
                mixed = [*network.bootstrap, hole, ("nowhere.invalid", 1)]
                nursery.start_soon(look_at, "mixed", mixed)
    assert found["silent"].failed == ["udp"]
    assert found["mixed"].failed == []
    assert found["mixed"]["names"].verdict is Verdict.WARNING
    assert found["mixed"]["bootstrap"].verdict is Verdict.WARNING
    dead = await look([hole])  # closed meanwhile
    assert dead.failed == ["bootstrap"]
    assert dead["bootstrap"].figures["nodes"][0]["failure"] == "refused"


async def test_a_name_that_does_not_exist_is_no_matter_of_udp():
    notes = await look([("nowhere.invalid", 49737)])
    assert notes.steps == ["names"]
    assert notes.failed == ["names"]


async def test_a_key_that_nobody_announces_is_told_as_such():
    async with testnet(4) as network:
        notes = await look(network.bootstrap, KeyPair.generate().public_key)
    assert notes.failed == ["record"]
    assert notes["record"].figures["answered"] == 4


async def test_what_is_no_point_of_the_curve_fails_without_a_trace_of_the_stack():
    async with testnet(2) as network:
        notes = await look(network.bootstrap, b"\xff" * 32, nodes=network.bootstrap)
    assert notes.failed == ["handshake"]


@pytest.mark.usefixtures("impatient")
async def test_a_peer_that_refuses_and_one_that_was_killed_look_the_same_but_to_a_friend(tmp_path):
    friend = KeyPair.generate()
    found = {}

    async def look_as(name, key, nodes=(), **options):
        found[name] = await look(network.bootstrap, key, nodes=nodes, **options)

    async with testnet(4) as network, open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as dht:
        listener = await dht.listen(firewall=lambda key, *_: key != friend.public_key)
        await listener.wait_announced()
        nodes = option(network.bootstrap[0])
        async with running("serve", *nodes, "--http", "off", cwd=tmp_path) as server:
            killed = bytes.fromhex((await server.line()).split()[-1])
            await server.says("announced to 3 DHT nodes")
            await server.stop(signal.SIGKILL)
        async with black_hole() as hole, trio.open_nursery() as nursery:
            nursery.start_soon(look_as, "stranger", listener.public_key)
            nursery.start_soon(look_as, "killed", killed, [hole])
            nursery.start_soon(partial(look_as, "friend", listener.public_key, key_pair=friend))
    assert found["friend"].failed == []
    assert found["stranger"].failed == found["killed"].failed == ["handshake"]
    assert "the peer has gone, or its firewall refuses" in found["stranger"]["handshake"].text
    reasons = [found[name]["handshake"].figures["stopped"] for name in ("stranger", "killed")]
    assert set(reasons[0].values()) == {"peer silent"}
    assert reasons[1].pop("{}:{}".format(*hole)) == "node silent"
    assert set(reasons[1].values()) == {"peer silent"}


async def test_a_step_that_takes_too_long_has_failed():
    async with testnet(4) as network, open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as dht:
        listener = await dht.listen(firewall=lambda *_: True)
        await listener.wait_announced()
        notes = await look(network.bootstrap, listener.public_key, timeout=0.7)
    assert notes.failed == ["handshake"]
    assert "in 0.7 s" in notes["handshake"].text


async def test_a_peer_that_opens_and_breaks_is_not_reached():
    async with testnet(4) as network, open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as dht:
        listener = await dht.listen()
        await listener.wait_announced()

        async def abort_all():
            while True:
                (await listener.accept()).abort()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(abort_all)
            notes = await look(network.bootstrap, listener.public_key)
            nursery.cancel_scope.cancel()
    assert notes.failed == ["path"]


# -- as a command, in networks of its own


def why_no_namespaces():
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux can make network namespaces"
    if shutil.which("unshare") is None or shutil.which("nft") is None:
        return "unshare or nft is not installed"
    probe = subprocess.run(["unshare", "-n", "nft", "add", "table", "t"], capture_output=True)
    return None if probe.returncode == 0 else f"no namespaces here: {probe.stderr.decode()}"


WITHOUT_NAMESPACES = why_no_namespaces()
needs_namespaces = pytest.mark.skipif(
    WITHOUT_NAMESPACES is not None, reason=WITHOUT_NAMESPACES or ""
)


def namespace(*commands):
    """What runs a command in a network of its own, prepared by these."""
    script = "; ".join(["set -e", "ip link set lo up", *commands, 'exec "$@"'])
    return ("unshare", "-n", "sh", "-c", script, "sh")


def dropping(hook):
    return [
        "nft add table t",
        f"nft 'add chain t c {{ type filter hook {hook} priority 0; policy accept; }}'",
        "nft add rule t c meta l4proto udp drop",
    ]


@needs_namespaces
@pytest.mark.parametrize(
    ("commands", "bootstrap", "text"),
    [
        (dropping("output"), "127.0.0.1:9", "this machine's own firewall"),
        (dropping("input"), "127.0.0.1:9", "UDP is blocked on the way"),
        ([], "203.0.113.1:9", "not connected"),
    ],
    ids=["not let out", "not let in", "offline"],
)
async def test_blocked_udp_is_told_by_where_it_is_blocked(commands, bootstrap, text):
    status, found = await report("--bootstrap", bootstrap, prefix=namespace(*commands))
    assert (status, found["reachable"], found["failed"]) == (1, False, "udp")
    assert text in found["steps"][-1]["text"]
