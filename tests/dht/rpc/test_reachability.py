import pytest

from hyperlog.dht.rpc.core import CLIENT_SOCKET
from hyperlog.dht.rpc.events import AddressChanged, PersistenceChanged
from hyperlog.dht.rpc.messages import PING, node_id
from hyperlog.dht.rpc.reachability import FirewallTest

US = ("1.1.1.1", 4000)


def verdict(asked, answers, host="1.1.1.1", port=4000):
    test = FirewallTest(asked, host, port)
    for to, on_server_socket in answers:
        test.receive_answer(to, on_server_socket)
    for _ in range(asked - len(answers)):
        assert not test.finished
        test.receive_timeout()
    assert test.finished
    return test.open


@pytest.mark.parametrize(
    ("asked", "answered", "is_open"), [(5, 3, True), (5, 2, False), (4, 1, True), (4, 0, False)]
)
def test_three_of_five_or_one_of_fewer_must_get_through(asked, answered, is_open):
    assert verdict(asked, [(US, True)] * answered) is is_open


def test_answers_on_the_client_socket_prove_nothing():
    assert not verdict(5, [(US, False)] * 5)


def test_another_outside_host_than_that_of_the_client_socket_counts_as_closed():
    assert not verdict(3, [(US, True)] * 3, host="2.2.2.2")


def test_a_remapped_port_counts_as_closed():
    assert not verdict(3, [(("1.1.1.1", 777), True)] * 3)
    assert not verdict(3, [(("1.1.1.1", port), True) for port in (1, 2, 3)])


def test_nobody_to_ask_means_closed():
    assert not verdict(0, [])


def test_a_default_node_finds_out_that_it_is_open(simulate):
    simulation = simulate(10)
    simulation.network(8)
    node = simulation.add()
    simulation.run(10.0)
    assert not node.core.identity.firewalled
    assert node.core.identity.ephemeral
    assert node.core.identity.remote_address() == node.address
    assert AddressChanged(node.address[0], 4000) in node.events


def test_a_default_node_behind_a_firewall_stays_so_and_asks_from_its_client_socket(
    simulate,
):
    simulation = simulate(11)
    simulation.network(8)
    node = simulation.add(firewall=True)
    simulation.run(3600.0 * 3)
    assert node.core.identity.firewalled
    assert node.core.identity.ephemeral
    assert node.core.identity.remote_address() is None
    assert len(node.core.table) == 8
    assert {socket for socket, _ in node.contacted} == {CLIENT_SOCKET}


def test_a_node_said_to_be_firewalled_never_tests(simulate):
    simulation = simulate(12)
    simulation.network(8)
    node = simulation.add(firewalled=True)
    simulation.run(7200.0)
    assert node.core.identity.firewalled


def test_an_open_adaptive_node_becomes_persistent_after_twenty_minutes(simulate):
    simulation = simulate(13)
    nodes = simulation.network(8)
    node = simulation.add()
    simulation.run(1100.0)
    assert node.core.identity.ephemeral
    assert not any(other.core.table.get(node_id(node.address)) for other in nodes)
    simulation.run(300.0)
    assert node.core.id == node_id(node.address)
    assert PersistenceChanged(ephemeral=False) in node.events
    simulation.run(600.0)
    assert all(other.core.table.get(node_id(node.address)) for other in nodes)


def test_a_node_forced_to_be_persistent_tests_itself_at_the_start(simulate):
    simulation = simulate(14)
    simulation.network(8)
    node = simulation.add(ephemeral=False)
    simulation.run(10.0)
    assert node.core.id == node_id(node.address)
    hidden = simulation.add(ephemeral=False, firewall=True)
    simulation.run(10.0)
    assert hidden.core.identity.ephemeral
    hidden.firewall = False  # the operator opens the port
    simulation.run(400.0)
    assert hidden.core.id == node_id(hidden.address)


def test_a_test_that_ends_after_a_move_tells_nothing_of_where_the_node_is_now(simulate):
    simulation = simulate(16)
    network = simulation.network(8)
    node = simulation.add(quick_firewall=False)
    simulation.run(5.0)
    asked = node.core._neighbours.latest(5)
    for other in network:
        other.up = other.address not in asked[:2]  # without whom the test lasts for 4 s
    node.core._reachability.update(simulation.now, only_firewall=True)
    node.pump()
    simulation.run(0.5)
    node.firewall = True
    for socket, (_, port) in list(node.addresses.items()):
        node.addresses[socket] = ("9.9.9.9", port)
        simulation.sockets["9.9.9.9", port] = node, socket
    for address in asked[2:]:
        simulation.request(node, address, PING, internal=True)
    assert AddressChanged("9.9.9.9", 5000) in node.events
    simulation.run(60.0)
    assert node.core.identity.firewalled
