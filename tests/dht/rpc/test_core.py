"""RPCCore as a whole: health, sleep, timers, and anything that may arrive."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.rpc.core import TICK, RPCCore
from hyperlog.dht.rpc.events import Bootstrapped, NetworkChanged, PersistenceChanged
from hyperlog.dht.rpc.messages import FIND_NODE, PING, Request, node_id

US = ("10.0.0.1", 4000)
PEER = ("10.0.0.2", 2000)


def test_the_first_node_of_a_network_is_persistent_at_once(core, events):
    assert core.id == node_id(US)
    assert not core.identity.ephemeral
    assert not core.identity.firewalled
    assert core.identity.remote_address() == US
    assert events(core) == [PersistenceChanged(ephemeral=False), Bootstrapped()]


@given(st.binary(max_size=120), st.sampled_from([0, 1, 2]), st.integers(0, 65535))
@settings(max_examples=200)
def test_no_datagram_raises(data, socket, port):
    core = RPCCore(random_bytes=bytes, server_port=4000, now=0.0, outside_address=US)
    core.start(0.0)
    core.bootstrap([], 0.0)
    for prefix in (b"", b"\x03", b"\x13", b"\x03\x1c", b"\x13\x1f"):
        core.receive_datagram(prefix + data, ("10.0.0.2", port), socket, 0.0)
    core.datagrams_to_send(0.0)


def test_junk_and_port_zero_are_counted(core):
    core.receive_datagram(b"\x03junk", PEER, 0, 0.0)
    core.receive_datagram(Request(1, US, PING, internal=True).encode(), ("10.0.0.2", 0), 0, 0.0)
    assert core.malformed == 2
    assert core.datagrams_to_send(0.0) == []


def test_a_quiet_network_stays_quiet(simulate):
    simulation = simulate(6)
    nodes = simulation.network(20)
    simulation.run(60.0)
    before = sum(node.sent for node in nodes)
    simulation.run(600.0)
    sent = (sum(node.sent for node in nodes) - before) / len(nodes) / 600.0
    assert 0.0 < sent < 1.0  # datagrams a second and node, answers included


def test_losing_the_network_is_reported_and_so_is_its_return(simulate):
    simulation = simulate(17)
    nodes = simulation.network(10)
    node = nodes[3]
    simulation.run(60.0)
    simulation.loss = 1.0
    for _ in range(6):
        for other in nodes[4:9]:
            node.core.request(other.address, PING, internal=True, retries=0)
        node.pump()
        simulation.run(TICK)
    assert NetworkChanged(online=False, degraded=False) in node.events
    simulation.loss = 0.0
    node.core.request(nodes[5].address, PING, internal=True)
    node.pump()
    simulation.run(2 * TICK)
    assert node.events[-1] == NetworkChanged(online=True, degraded=False)


def test_after_sleep_an_adaptive_node_is_ephemeral_again_and_checks_its_table(simulate):
    simulation = simulate(18)
    simulation.network(8)
    node = simulation.add()
    simulation.run(1500.0)
    assert not node.core.identity.ephemeral
    node.up = False
    simulation.run(600.0)
    node.up = True
    before = node.sent
    simulation.run(TICK)
    assert node.core.identity.ephemeral
    assert PersistenceChanged(ephemeral=True) in node.events
    simulation.run(3 * TICK)
    assert node.sent - before > 5


def test_the_timer_is_never_in_the_past_and_never_far(simulate):
    simulation = simulate(21, loss=0.3)
    simulation.network(12)
    for _ in range(100):
        simulation.run(1.0)
        for node in simulation.nodes:
            assert simulation.now <= node.core.get_timer() <= simulation.now + TICK


@pytest.mark.skipif("HYPERLOG_LONG" not in os.environ, reason="set HYPERLOG_LONG=1 for long runs")
def test_a_hundred_nodes_hold_together_while_they_come_and_go(simulate, closest_addresses):
    simulation = simulate(22, loss=0.02)
    nodes = simulation.network(100)
    rng = random.Random(23)
    for _ in range(30):
        for node in rng.sample(nodes[1:], 10):
            node.up = not node.up
            if node.up:
                node.core.wake_up()
        simulation.run(120.0)
        up = [node for node in nodes if node.up]
        target, asker = rng.randbytes(32), rng.choice(up)
        state = simulation.query(asker, FIND_NODE, target, internal=True)
        others = [node for node in up if node is not asker]
        assert len(set(state.closest_nodes) & set(closest_addresses(others, target))) >= 18
