"""RPCCore: single exchanges, and whole networks of cores in virtual time."""

import os
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.rpc.core import CLIENT_SOCKET, SERVER_SOCKET, TICK, RPCCore
from hyperlog.dht.rpc.events import (
    AddressChanged,
    BootstrapDue,
    Bootstrapped,
    NetworkChanged,
    PersistenceChanged,
    RequestReceived,
)
from hyperlog.dht.rpc.messages import (
    DELAYED_PING,
    DOWN_HINT,
    FIND_NODE,
    INVALID_TOKEN,
    PING,
    PING_NAT,
    UNKNOWN_COMMAND,
    Request,
    Response,
    decode_untrusted,
    node_id,
)
from hyperlog.dht.rpc.queries import MAX_DOWN_HINTS
from hyperlog.dht.rpc.responder import MAX_DELAYED_PINGS
from hyperlog.dht.rpc.table import distance

US = ("10.0.0.1", 4000)
PEER = ("10.0.0.2", 2000)
TARGET = bytes(range(32))


def make_core(**options):
    options = {"outside_address": US} | options
    core = RPCCore(random_bytes=random.Random(7).randbytes, server_port=4000, now=0.0, **options)
    core.start(0.0)
    assert isinstance(core.next_event(), BootstrapDue)
    return core


@pytest.fixture
def core():
    """A persistent node at US that knows nobody."""
    core = make_core()
    core.bootstrap([], 0.0)
    return core


def events(core):
    found = []
    while (event := core.next_event()) is not None:
        found.append(event)
    return found


def ask(core, command, *, now=0.0, socket=SERVER_SOCKET, address=PEER, **fields):
    """One request's answers, as (socket, address, Response)."""
    core.receive_datagram(Request(77, US, command, **fields).encode(), address, socket, now)
    return [
        (socket, to, decode_untrusted(data)) for socket, to, data in core.datagrams_to_send(now)
    ]


def closest_addresses(nodes, target, count=20):
    addresses = [node.address for node in nodes]
    return sorted(addresses, key=lambda a: distance(node_id(a), target))[:count]


# -- answers ---------------------------------------------------------------------------------------


def test_the_first_node_of_a_network_is_persistent_at_once(core):
    assert core.id == node_id(US)
    assert not core.identity.ephemeral
    assert not core.identity.firewalled
    assert core.identity.remote_address() == US
    assert events(core) == [PersistenceChanged(ephemeral=False), Bootstrapped()]


def test_ping_is_answered_with_our_id_and_the_requesters_address(core):
    assert ask(core, PING, internal=True) == [
        (SERVER_SOCKET, PEER, Response(77, PEER, id=node_id(US)))
    ]


def test_the_client_socket_never_shows_the_id(core):
    [(socket, _, response)] = ask(core, PING, internal=True, socket=CLIENT_SOCKET)
    assert socket == CLIENT_SOCKET
    assert response.id is None


def test_ping_nat_is_answered_to_the_port_it_names(core):
    value = struct.pack("<H", 4321)
    other = (PEER[0], 4321)
    assert ask(core, PING_NAT, internal=True, value=value) == [
        (SERVER_SOCKET, other, Response(77, other, id=node_id(US)))
    ]


@pytest.mark.parametrize(
    ("command", "value"),
    [
        (PING_NAT, None),
        (PING_NAT, b"\x01"),
        (PING_NAT, bytes(2)),
        (FIND_NODE, None),
        (DOWN_HINT, None),
        (DOWN_HINT, bytes(5)),
        (DELAYED_PING, None),
        (DELAYED_PING, bytes(3)),
        (DELAYED_PING, struct.pack("<I", 10_001)),
    ],
)
def test_internal_commands_without_what_they_need_are_ignored(core, command, value):
    assert ask(core, command, internal=True, value=value) == []
    assert core.get_timer() == TICK


def test_find_node_gives_the_closest_nodes_without_a_ticket(core):
    nodes = [("10.1.0.1", port) for port in range(1, 40)]
    for node in nodes:
        ask(core, PING, internal=True, address=node, id=node_id(node))
    [(_, _, response)] = ask(core, FIND_NODE, internal=True, target=TARGET)
    assert response.token is None
    assert response.closer_nodes == core.closest(TARGET)
    known = [node for node in nodes if core.table.get(node_id(node))]
    assert response.closer_nodes == sorted(known, key=lambda a: distance(node_id(a), TARGET))[:20]


def test_delayed_ping_is_answered_after_the_delay(core):
    assert ask(core, DELAYED_PING, internal=True, value=struct.pack("<I", 1500)) == []
    assert core.get_timer() == 1.5
    core.handle_timer(1.4)
    assert core.datagrams_to_send(1.4) == []
    core.handle_timer(1.5)
    [(_, to, data)] = core.datagrams_to_send(1.5)
    assert to == PEER
    assert decode_untrusted(data) == Response(77, PEER, id=node_id(US))
    assert core.get_timer() == TICK


def test_delayed_pings_are_bounded(core):
    for _ in range(MAX_DELAYED_PINGS + 50):
        ask(core, DELAYED_PING, internal=True, value=struct.pack("<I", 1000))
    core.handle_timer(1.0)
    assert len(core.datagrams_to_send(1.0)) == MAX_DELAYED_PINGS


def test_unknown_internal_commands_get_error_1_with_closer_nodes(core):
    node = ("10.1.0.1", 1)
    ask(core, PING, internal=True, address=node, id=node_id(node))
    [(_, _, response)] = ask(core, 99, internal=True, target=TARGET)
    assert (response.error, response.token) == (UNKNOWN_COMMAND, None)
    assert response.closer_nodes == [node]


def test_a_wrong_ticket_gets_error_2_and_a_good_one(core):
    events(core)
    [(_, _, response)] = ask(core, 6, target=TARGET, token=bytes(32))
    assert response.error == INVALID_TOKEN
    assert events(core) == []
    assert ask(core, 6, target=TARGET, token=response.token) == []
    [event] = events(core)
    assert isinstance(event, RequestReceived)


def test_user_commands_become_events_and_are_answered_by_reply(core):
    events(core)
    assert ask(core, 3, target=TARGET, value=b"v", socket=5) == []
    [event] = events(core)
    assert event == RequestReceived(Request(77, US, 3, target=TARGET, value=b"v"), PEER, 5)
    core.reply(event, b"answer", now=1.0)
    [(socket, to, data)] = core.datagrams_to_send(1.0)
    response = decode_untrusted(data)
    assert (socket, to, response.to, response.value) == (5, PEER, PEER, b"answer")
    assert ask(core, 3, token=response.token) == []  # the ticket in it is good


def test_a_reply_can_go_elsewhere_from_another_socket(core):
    events(core)
    ask(core, 0, target=TARGET)
    [event] = events(core)
    other = ("10.0.0.3", 3)
    core.reply(event, None, token=False, closer_nodes=False, to=other, socket=9, now=0.0)
    [(socket, to, data)] = core.datagrams_to_send(0.0)
    assert (socket, to, decode_untrusted(data)) == (9, other, Response(77, other))


def test_a_relayed_request_keeps_tid_command_and_target(core):
    events(core)
    ask(core, 1, target=TARGET, value=b"in")
    [event] = events(core)
    other = ("10.0.0.3", 3)
    core.relay(event, b"out", other)
    [(socket, to, data)] = core.datagrams_to_send(0.0)
    assert (socket, to) == (SERVER_SOCKET, other)
    assert decode_untrusted(data) == Request(
        77, other, 1, id=node_id(US), target=TARGET, value=b"out"
    )


def test_only_an_id_that_belongs_to_the_source_address_counts(core):
    liar = ("10.9.9.9", 9)
    ask(core, PING, internal=True, address=liar, id=node_id(PEER))
    assert len(core.table) == 0
    events(core)
    ask(core, 3, address=liar, id=node_id(PEER))
    assert events(core)[0].request.id is None
    ask(core, PING, internal=True, address=PEER, id=node_id(PEER))
    assert [node.address for node in core.table] == [PEER]


@given(st.binary(max_size=120), st.sampled_from([0, 1, 2]), st.integers(0, 65535))
@settings(max_examples=200)
def test_no_datagram_raises(data, socket, port):
    core = make_core()
    core.bootstrap([], 0.0)
    for prefix in (b"", b"\x03", b"\x13", b"\x03\x1c", b"\x13\x1f"):
        core.receive_datagram(prefix + data, ("10.0.0.2", port), socket, 0.0)
    core.datagrams_to_send(0.0)


def test_junk_and_port_zero_are_counted(core):
    core.receive_datagram(b"\x03junk", PEER, 0, 0.0)
    core.receive_datagram(Request(1, US, PING, internal=True).encode(), ("10.0.0.2", 0), 0, 0.0)
    assert core.malformed == 2
    assert core.datagrams_to_send(0.0) == []


# -- a node and its network ------------------------------------------------------------------------


def test_nodes_bootstrap_and_find_the_closest_to_any_target(simulate):
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


def test_lookups_survive_a_tenth_of_all_datagrams_lost(simulate):
    simulation = simulate(3, loss=0.1)
    nodes = simulation.network(30)
    rng = random.Random(4)
    for _ in range(5):
        target, asker = rng.randbytes(32), rng.choice(nodes)
        state = simulation.query(asker, FIND_NODE, target, internal=True)
        others = [node for node in nodes if node is not asker]
        assert len(set(state.closest_nodes) & set(closest_addresses(others, target))) >= 15


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


def test_a_quiet_network_stays_quiet(simulate):
    simulation = simulate(6)
    nodes = simulation.network(20)
    simulation.run(60.0)
    before = sum(node.sent for node in nodes)
    simulation.run(600.0)
    sent = (sum(node.sent for node in nodes) - before) / len(nodes) / 600.0
    assert 0.0 < sent < 1.0  # datagrams a second and node, answers included


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


def test_a_bootstrap_node_without_an_id_teaches_our_address_all_the_same(simulate):
    simulation = simulate(9)
    first = simulation.add(ephemeral=True, firewalled=False)
    node = simulation.add(ephemeral=False, firewalled=False)
    simulation.run(5.0)
    assert first.core.id is None
    assert node.core.id == node_id(node.address)
    assert node.core.identity.remote_address() == node.address


def test_strangers_without_an_id_give_only_a_few_nat_samples(simulate):
    core = make_core(outside_address=None)
    core.bootstrap([PEER, ("10.0.0.3", 3)], 0.0)
    for i in range(6):
        core.request(("10.5.0.1", 1 + i), 50)
    answered = 0
    for socket, address, data in core.datagrams_to_send(0.0):
        lie = ("6.6.6.6", answered + 1)
        tid = decode_untrusted(data).tid
        core.receive_datagram(Response(tid, lie).encode(), address, socket, 0.1)
        answered += 1
    assert answered > 6
    assert core.identity.nat.size == 2


def test_a_default_node_finds_out_that_it_is_open(simulate):
    simulation = simulate(10)
    simulation.network(8)
    node = simulation.add()
    simulation.run(10.0)
    assert not node.core.identity.firewalled
    assert node.core.identity.ephemeral
    assert node.core.identity.remote_address() == node.address
    assert AddressChanged(node.address[0], 4000) in node.events


def test_a_default_node_behind_a_firewall_stays_firewalled_and_asks_from_its_client_socket(
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


def test_a_query_when_too_many_requests_are_under_way_ends_all_the_same():
    core = make_core()
    core.bootstrap([PEER], 0.0)
    while core.requests.room:
        core.request(PEER, 50)
    events(core)
    query = core.start_query(50, TARGET, now=0.0)
    assert query.state.finished
    assert [type(event).__name__ for event in events(core)] == ["QueryFinished"]


def test_the_timer_is_never_in_the_past_and_never_far(simulate):
    simulation = simulate(21, loss=0.3)
    simulation.network(12)
    for _ in range(100):
        simulation.run(1.0)
        for node in simulation.nodes:
            assert simulation.now <= node.core.get_timer() <= simulation.now + TICK


@pytest.mark.skipif("HYPERLOG_LONG" not in os.environ, reason="set HYPERLOG_LONG=1 for long runs")
def test_a_hundred_nodes_hold_together_while_they_come_and_go(simulate):
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
