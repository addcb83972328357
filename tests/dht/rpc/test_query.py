import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.rpc.messages import Response, node_id
from hyperlog.dht.rpc.query import MAX_SEEN, Query
from hyperlog.dht.rpc.table import distance

US = ("10.0.0.9", 9)
OWN_ID = node_id(US)


class Network:
    """Nodes that each know some others, with a scripted fate for each request."""

    def __init__(self, seed, size=100, known=30):
        self.rng = random.Random(seed)
        self.nodes = [("10.1.0.1", port) for port in range(1, size + 1)]
        self.known = {}
        for node in self.nodes:
            near = sorted(self.nodes, key=lambda other: distance(node_id(other), node_id(node)))
            self.known[node] = set(near[1:11]) | set(self.rng.sample(self.nodes, min(known, size)))
        self.dead = set()
        self.ephemeral = set()

    def closest(self, target, nodes, count=20):
        return sorted(nodes, key=lambda node: distance(node_id(node), target))[:count]

    def answer(self, node, target):
        return Response(
            1,
            US,
            id=None if node in self.ephemeral else node_id(node),
            token=b"t" * 32,
            closer_nodes=self.closest(target, self.known[node] - {node}),
        )

    def run(self, query):
        """Answer in random order until the query ends; gives the addresses asked, in order."""
        asked, flying = [], []
        while True:
            new = query.next_requests()
            asked += new
            flying += new
            if query.finished or not flying:
                return asked
            address = flying.pop(self.rng.randrange(len(flying)))
            if address in self.dead:
                query.receive_timeout(address)
            else:
                query.receive_reply(address, self.answer(address, query.target), 0.01)


def start(network, target, **options):
    first = network.rng.sample(network.nodes, 3)
    return Query(target, OWN_ID, from_table=lambda count: first[:count], **options)


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_query_finds_the_closest_nodes_and_asks_nobody_twice(seed):
    network = Network(seed)
    target = network.rng.randbytes(32)
    query = start(network, target)
    asked = network.run(query)
    assert query.finished
    assert query.closest_nodes == network.closest(target, network.nodes)
    assert len(asked) == len(set(asked)) == query.requests == query.successes


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_dead_nodes_are_left_out_and_reported_to_those_that_named_them(seed):
    network = Network(seed)
    target = network.rng.randbytes(32)
    network.dead = set(network.rng.sample(network.nodes, 25))
    alive = [node for node in network.nodes if node not in network.dead]
    query = Query(target, OWN_ID, from_table=lambda count: alive[:5])
    asked = network.run(query)
    assert query.closest_nodes == network.closest(target, alive)
    hints = query.take_hints()
    assert {down for _, down in hints} == set(asked) & network.dead
    assert all(down in network.known[referrer] for referrer, down in hints)
    assert len(hints) == len(set(hints))
    assert query.take_hints() == []


def test_nodes_without_an_id_never_become_closest_but_their_closer_nodes_count():
    network = Network(1)
    network.ephemeral = set(network.nodes[::2])
    target = bytes(32)
    query = start(network, target)
    network.run(query)
    assert set(query.closest_nodes) & network.ephemeral == set()
    assert query.closest_nodes == network.closest(
        target, [node for node in network.nodes if node not in network.ephemeral]
    )


def test_nobody_to_ask_ends_at_once():
    query = Query(bytes(32), OWN_ID, from_table=lambda count: [])
    assert query.next_requests() == []
    assert query.finished
    assert query.closest_replies == []


def test_we_do_not_ask_ourselves_nor_port_zero():
    query = Query(bytes(32), OWN_ID, from_table=lambda count: [US, ("10.0.0.1", 0)])
    assert query.next_requests() == []
    assert query.finished


def test_at_most_concurrency_nodes_are_asked_at_once_and_slow_ones_do_not_count():
    nodes = [("10.0.0.1", port) for port in range(1, 31)]
    query = Query(bytes(32), OWN_ID, from_table=lambda count: nodes, concurrency=4)
    first = query.next_requests()
    assert len(first) == 4
    assert query.next_requests() == []
    query.mark_slow(first[0])
    query.mark_slow(first[0])
    assert len(query.next_requests()) == 1
    query.receive_timeout(first[0])
    assert query.next_requests() == []


def test_the_nearest_known_address_is_asked_first():
    nodes = [("10.0.0.1", port) for port in range(1, 31)]
    target = bytes(32)
    query = Query(target, OWN_ID, from_table=lambda count: nodes, concurrency=30)
    assert query.next_requests() == sorted(nodes, key=lambda a: distance(node_id(a), target))


def test_a_full_result_does_not_wait_for_slow_nodes():
    nodes = [("10.0.0.1", port) for port in range(1, 22)]
    query = Query(bytes(32), OWN_ID, from_table=lambda count: nodes, concurrency=30)
    asked = query.next_requests()
    query.mark_slow(asked[0])
    for address in asked[1:]:
        assert not query.finished
        query.receive_reply(address, Response(1, US, id=node_id(address)), 0.1)
        query.next_requests()
    assert query.finished
    assert len(query.closest_replies) == 20


def test_a_short_result_does_wait_for_slow_nodes():
    nodes = [("10.0.0.1", port) for port in range(1, 4)]
    query = Query(bytes(32), OWN_ID, from_table=lambda count: nodes)
    asked = query.next_requests()
    query.mark_slow(asked[0])
    for address in asked[1:]:
        query.receive_reply(address, Response(1, US, id=node_id(address)), 0.1)
    query.next_requests()
    assert not query.finished
    query.receive_timeout(asked[0])
    query.next_requests()
    assert query.finished


def test_given_nodes_are_asked_gently_after_the_first_burst():
    network = Network(2)
    target = bytes(32)
    cached = network.closest(target, network.nodes, 20)
    query = Query(target, OWN_ID, from_table=lambda count: [], nodes=cached)
    first = query.next_requests()
    assert first == cached[:10]
    for address in first[:7]:
        query.receive_reply(address, network.answer(address, target), 0.1)
        assert query.next_requests() == []
    query.receive_reply(first[7], network.answer(first[7], target), 0.1)
    assert len(query.next_requests()) == 1  # three at a time now
    network.rng.shuffle(cached)


def test_when_given_nodes_are_gone_the_table_is_asked():
    network = Network(3)
    target = bytes(32)
    stale = [("10.7.7.7", port) for port in range(1, 21)]
    network.dead = set(stale)
    query = Query(target, OWN_ID, from_table=lambda count: network.nodes[:3], nodes=stale)
    network.run(query)
    assert query.closest_nodes == network.closest(target, network.nodes)


def test_answers_with_an_error_teach_closer_nodes_but_are_no_result():
    other = ("10.0.0.2", 2)
    query = Query(bytes(32), OWN_ID, from_table=lambda count: [("10.0.0.1", 1)])
    [address] = query.next_requests()
    response = Response(1, US, id=node_id(address), closer_nodes=[other], error=1)
    assert query.receive_reply(address, response, 0.1) is None
    assert query.next_requests() == [other]
    assert (query.successes, query.errors, query.closest_replies) == (0, 1, [])


def test_answers_of_strangers_are_ignored():
    query = Query(bytes(32), OWN_ID, from_table=lambda count: [("10.0.0.1", 1)])
    query.next_requests()
    assert query.receive_reply(("10.0.0.2", 2), Response(1, US), 0.1) is None
    query.receive_timeout(("10.0.0.2", 2))
    assert (query.successes, query.errors) == (0, 0)


def test_invented_ever_closer_nodes_cannot_keep_a_query_going():
    rng = random.Random(5)
    query = Query(bytes(32), OWN_ID, from_table=lambda count: [("10.0.0.1", 1)])
    flying, asked = query.next_requests(), 0
    while not query.finished:
        address = flying.pop()
        asked += 1
        closer = [(f"10.{rng.randrange(256)}.{rng.randrange(256)}.1", 1) for _ in range(64)]
        # Without an id the liar's answers never fill the result, so everything counts as closer.
        query.receive_reply(address, Response(1, US, closer_nodes=closer), 0.1)
        flying += query.next_requests()
    assert asked <= MAX_SEEN


@pytest.mark.parametrize("k", [1, 5])
def test_k_limits_the_result(k):
    network = Network(6)
    target = bytes(32)
    query = start(network, target, k=k)
    network.run(query)
    assert query.closest_nodes == network.closest(target, network.nodes, k)
