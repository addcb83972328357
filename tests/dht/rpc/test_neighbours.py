"""Who gets into the table and who leaves it, in networks of cores in virtual time."""

import pytest

from hyperlog.dht.rpc.core import TICK
from hyperlog.dht.rpc.messages import FIND_NODE, PING, node_id
from hyperlog.dht.rpc.query import Query

PEER = ("10.0.0.2", 2000)


def test_only_an_id_that_belongs_to_the_source_address_counts(core, events, ask):
    liar = ("10.9.9.9", 9)
    ask(core, PING, internal=True, address=liar, id=node_id(PEER))
    assert len(core.table) == 0
    events(core)
    ask(core, 3, address=liar, id=node_id(PEER))
    assert events(core)[0].request.id is None
    ask(core, PING, internal=True, address=PEER, id=node_id(PEER))
    assert [node.address for node in core.table] == [PEER]


@pytest.mark.parametrize("address", [("150.136.142.116", 1), ("35.233.47.252", 9400)])
def test_nodes_of_another_network_are_neither_kept_nor_asked(core, ask, address):
    ask(core, PING, internal=True, address=address, id=node_id(address))
    assert len(core.table) == 0
    query = Query(bytes(32), core.identity.own_id, from_table=lambda count: [address, PEER])
    assert query.next_requests() == [PEER]


def test_dead_nodes_leave_all_tables(simulate):
    simulation = simulate(5)
    nodes = simulation.network(30)
    dead = nodes[5:15]
    for node in dead:
        node.up = False
    simulation.run(1800.0)
    gone = {node.address for node in dead}
    for node in nodes:
        if node.up:
            known = {entry.address for entry in node.core.table}
            assert not known & gone
            assert len(known) == 19


def test_down_hints_make_others_check_the_dead_node(simulate):
    def unaware_after_ten_seconds(lookup):
        simulation = simulate(7)
        nodes = simulation.network(40)
        dead = nodes[9]
        dead.up = False
        if lookup:
            simulation.query(nodes[3], FIND_NODE, node_id(dead.address), internal=True)
        simulation.run(10.0)
        return sum(1 for node in nodes if node.core.table.get(node_id(dead.address)))

    assert unaware_after_ten_seconds(lookup=False) >= 30
    assert unaware_after_ten_seconds(lookup=True) <= 20


def test_a_full_row_lets_a_new_node_in_only_when_its_oldest_is_dead(simulate):
    simulation = simulate(19)
    nodes = simulation.network(70)
    node = nodes[0]
    rows = [node.core.table.row(other.core.table.id) for other in nodes[1:]]
    full = next(row for row in rows if len(row) == 20)
    outside = [
        other
        for other in nodes[1:]
        if node.core.table.row(other.core.table.id) is full
        and node.core.table.get(other.core.id) is None
    ]
    assert outside
    simulation.run(TICK)
    simulation.request(outside[0], node.address, PING, internal=True)
    simulation.run(TICK)
    assert node.core.table.get(outside[0].core.id) is None

    oldest = min(full, key=lambda entry: (entry.pinged, entry.added))
    simulation.sockets[oldest.address][0].up = False
    simulation.request(outside[0], node.address, PING, internal=True)
    simulation.run(TICK)
    assert node.core.table.get(outside[0].core.id) is not None
    assert node.core.table.get(oldest.id) is None
