"""How many requests a search takes: as the logarithm of the network's size, not as the size."""

import random
from math import log2

import pytest

from hyperlog.dht.constants import K
from hyperlog.dht.rpc.messages import FIND_NODE
from hyperlog.dht.rpc.table import Node

SEARCHES = 8


def fill_tables(nodes, seed):
    """What each node would know after hours: k nodes, any, of each row of its table."""
    known = [Node(node.address) for node in nodes]
    rng = random.Random(seed)
    for node in nodes:
        number = int.from_bytes(node.core.identity.own_id, "big")
        room = {}
        for other in rng.sample(known, len(known)):
            row = (other.number ^ number).bit_length()
            if row and room.get(row, 0) < K:
                room[row] = room.get(row, 0) + 1
                node.core._neighbours.add(Node(other.address))


def search_cost(simulate, closest_addresses, size):
    """Requests and seconds of one search, the mean of several from different nodes."""
    simulation = simulate(size)
    for _ in range(size):
        simulation.add(outside=True)
    fill_tables(simulation.nodes, size)
    rng = random.Random(size)
    requests, times = [], []
    for _ in range(SEARCHES):
        node, target = rng.choice(simulation.nodes), rng.randbytes(32)
        began_at = simulation.now
        query = simulation.query(node, FIND_NODE, target, internal=True)
        others = [other for other in simulation.nodes if other is not node]
        assert query.closest_nodes == closest_addresses(others, target)
        requests.append(query.requests)
        times.append(simulation.now - began_at)
    return sum(requests) / SEARCHES, sum(times) / SEARCHES


@pytest.mark.parametrize("size", [20, 200, 1000])
def test_a_search_asks_the_k_closest_and_a_few_more_for_each_doubling(
    simulate, closest_addresses, size
):
    requests, seconds = search_cost(simulate, closest_addresses, size)
    doublings = log2(size / K)
    assert requests <= K + 3.5 * doublings
    # A round trip takes 0.055 s on average here; ten nodes are asked at a time.
    assert seconds <= 0.055 * (3 + 0.4 * doublings)
