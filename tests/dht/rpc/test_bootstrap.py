"""Joining a network that is not there yet, or not any more."""

import pytest

from hyperlog.dht.rpc.core import SERVER_SOCKET
from hyperlog.dht.rpc.events import Bootstrapped


def test_without_an_answer_bootstrap_is_tried_again_after_1_2_4_up_to_30_s(simulate):
    simulation = simulate(15)
    node = simulation.add(bootstrap=[("10.99.0.1", 1)])
    simulation.run(6.5)
    assert node.core.bootstrapped  # the first attempt is over
    assert node.events[-1] == Bootstrapped()
    assert node.core.bootstrap_failing
    simulation.run(300.0)
    # Six tries of 1 s each and the pauses 1, 2, 4, 8, 16, 30, 30 …
    assert node.core.bootstrap_attempts == 12

    rescue = simulation.add(outside=True)
    node.bootstrap = [rescue.address]
    simulation.run(40.0)
    assert not node.core.bootstrap_failing
    assert [entry.address for entry in node.core.table] == [rescue.address]


def test_a_node_whose_neighbours_all_vanish_comes_back_by_its_bootstrap_node(simulate):
    simulation = simulate(16)
    nodes = simulation.network(10)
    lonely = nodes[4]
    for node in nodes:
        node.up = node is lonely
    simulation.run(900.0)
    assert len(lonely.core.table) == 0
    for node in nodes:
        node.up = True
        node.core.wake_up()
    simulation.run(120.0)
    assert len(lonely.core.table) >= 5


@pytest.mark.parametrize("port", [4000, 4001])
def test_a_resumed_node_joins_once_on_whatever_port(simulate, port):
    simulation = simulate(17)
    simulation.network(6)
    node = simulation.add()
    simulation.run(10.0)
    attempts = node.core.bootstrap_attempts
    node.core.suspend(simulation.now)
    simulation.run(60.0)
    node.addresses[SERVER_SOCKET] = (node.address[0], port)
    simulation.sockets[node.address] = node, SERVER_SOCKET
    node.core.resume(port, simulation.now)
    node.pump()
    simulation.run(10.0)
    assert node.core.bootstrap_attempts == attempts + 1
    assert len(node.core.table) == 6
