"""Queries in networks of cores in virtual time."""

import random

import pytest

from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.rpc.messages import DOWN_HINT, FIND_NODE, PING, Request, decode_untrusted
from hyperlog.dht.rpc.queries import MAX_DOWN_HINTS

PEER = ("10.0.0.2", 2000)
TARGET = bytes(range(32))


def test_nodes_bootstrap_and_find_the_closest_to_any_target(simulate, closest_addresses):
    simulation = simulate(1)
    nodes = simulation.network(60)
    assert all(node.core.bootstrapped and node.core.id for node in nodes)
    rng = random.Random(2)
    counts = []
    for _ in range(15):
        target, asker = rng.randbytes(32), rng.choice(nodes)
        state = simulation.query(asker, FIND_NODE, target, internal=True)
        others = [node for node in nodes if node is not asker]
        assert state.closest_nodes == closest_addresses(others, target)
        counts.append(state.requests)
    assert max(counts) < 50
    assert sum(counts) / len(counts) < 35


def test_lookups_survive_a_tenth_of_all_datagrams_lost(simulate, closest_addresses):
    simulation = simulate(3, loss=0.1)
    nodes = simulation.network(30)
    rng = random.Random(4)
    for _ in range(5):
        target, asker = rng.randbytes(32), rng.choice(nodes)
        state = simulation.query(asker, FIND_NODE, target, internal=True)
        others = [node for node in nodes if node is not asker]
        assert len(set(state.closest_nodes) & set(closest_addresses(others, target))) >= 15


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_query_that_cannot_be_sent_leaves_nothing_behind(simulate, size):
    node = simulate(5).network(4)[0]
    with pytest.raises(LocalProtocolError):
        node.core.start_query(3, bytes(size), now=node.simulation.now)
    assert not node.core._queries._running
    assert not len(node.core.requests)


def test_down_hints_are_limited_per_tick(simulate):
    simulation = simulate(8)
    nodes = simulation.network(40)
    asker = nodes[0]
    for node in nodes[10:]:
        node.up = False
    sent = []
    transmit = simulation.transmit

    def spy(source, destination, data):
        message = decode_untrusted(data)
        if isinstance(message, Request) and message.internal and message.command == DOWN_HINT:
            sent.append((simulation.now, source))
        transmit(source, destination, data)

    simulation.transmit = spy
    simulation.query(asker, FIND_NODE, TARGET, internal=True)
    tries = 4
    assert 0 < len(sent) <= MAX_DOWN_HINTS * tries * 3


def test_cancelled_requests_and_queries_tell_nothing(simulate):
    simulation = simulate(20)
    nodes = simulation.network(5)
    core = nodes[1].core
    query = core.start_query(FIND_NODE, TARGET, internal=True, now=simulation.now)
    request = core.request(nodes[2].address, PING, internal=True)
    nodes[1].pump()
    core.cancel_query(query)
    core.cancel_request(request)
    core.cancel_query(query)
    simulation.run(20.0)
    assert nodes[1].finished == {}
    assert len(core.requests) == 0


def test_a_query_when_too_many_requests_are_under_way_ends_all_the_same(events, make_core):
    core = make_core()
    core.bootstrap([PEER], 0.0)
    while core.requests.room:
        core.request(PEER, 50)
    events(core)
    query = core.start_query(50, TARGET, now=0.0)
    assert query.state.finished
    assert [type(event).__name__ for event in events(core)] == ["QueryFinished"]
