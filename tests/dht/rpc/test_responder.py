"""Answers of an RPCCore to others, datagram by datagram."""

import struct
from dataclasses import replace

import pytest

from hyperlog.dht.errors import InvalidValue
from hyperlog.dht.rpc.core import CLIENT_SOCKET, SERVER_SOCKET, TICK
from hyperlog.dht.rpc.events import RequestReceived
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
from hyperlog.dht.rpc.responder import MAX_DELAYED_PINGS
from hyperlog.dht.rpc.table import distance

US = ("10.0.0.1", 4000)
PEER = ("10.0.0.2", 2000)
TARGET = bytes(range(32))


def test_ping_is_answered_with_our_id_and_the_requesters_address(core, ask):
    assert ask(core, PING, internal=True) == [
        (SERVER_SOCKET, PEER, Response(77, PEER, id=node_id(US)))
    ]


def test_the_client_socket_never_shows_the_id(core, ask):
    [(socket, _, response)] = ask(core, PING, internal=True, socket=CLIENT_SOCKET)
    assert socket == CLIENT_SOCKET
    assert response.id is None


def test_ping_nat_is_answered_to_the_port_it_names(core, ask):
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
def test_internal_commands_without_what_they_need_are_ignored(core, command, value, ask):
    assert ask(core, command, internal=True, value=value) == []
    assert core.get_timer() == TICK


def test_find_node_gives_the_closest_nodes_without_a_ticket(core, ask):
    nodes = [("10.1.0.1", port) for port in range(1, 40)]
    for node in nodes:
        ask(core, PING, internal=True, address=node, id=node_id(node))
    [(_, _, response)] = ask(core, FIND_NODE, internal=True, target=TARGET)
    assert response.token is None
    assert response.closer_nodes == core.closest(TARGET)
    known = [node for node in nodes if core.table.get(node_id(node))]
    assert response.closer_nodes == sorted(known, key=lambda a: distance(node_id(a), TARGET))[:20]


def test_delayed_ping_is_answered_after_the_delay(core, ask):
    assert ask(core, DELAYED_PING, internal=True, value=struct.pack("<I", 1500)) == []
    assert core.get_timer() == 1.5
    core.handle_timer(1.4)
    assert core.datagrams_to_send(1.4) == []
    core.handle_timer(1.5)
    [(_, to, data)] = core.datagrams_to_send(1.5)
    assert to == PEER
    assert decode_untrusted(data) == Response(77, PEER, id=node_id(US))
    assert core.get_timer() == TICK


def test_delayed_pings_are_bounded(core, ask):
    for _ in range(MAX_DELAYED_PINGS + 50):
        ask(core, DELAYED_PING, internal=True, value=struct.pack("<I", 1000))
    core.handle_timer(1.0)
    assert len(core.datagrams_to_send(1.0)) == MAX_DELAYED_PINGS


def test_unknown_internal_commands_get_error_1_with_closer_nodes(core, ask):
    node = ("10.1.0.1", 1)
    ask(core, PING, internal=True, address=node, id=node_id(node))
    [(_, _, response)] = ask(core, 99, internal=True, target=TARGET)
    assert (response.error, response.token) == (UNKNOWN_COMMAND, None)
    assert response.closer_nodes == [node]


def test_a_wrong_ticket_gets_error_2_and_a_good_one(core, events, ask):
    events(core)
    [(_, _, response)] = ask(core, 6, target=TARGET, token=bytes(32))
    assert response.error == INVALID_TOKEN
    assert events(core) == []
    assert ask(core, 6, target=TARGET, token=response.token) == []
    [event] = events(core)
    assert isinstance(event, RequestReceived)


def test_user_commands_become_events_and_are_answered_by_reply(core, events, ask):
    events(core)
    assert ask(core, 3, target=TARGET, value=b"v", socket=5) == []
    [event] = events(core)
    assert event == RequestReceived(Request(77, US, 3, target=TARGET, value=b"v"), PEER, 5)
    core.reply(event, b"answer", now=1.0)
    [(socket, to, data)] = core.datagrams_to_send(1.0)
    response = decode_untrusted(data)
    assert (socket, to, response.to, response.value) == (5, PEER, PEER, b"answer")
    assert ask(core, 3, token=response.token) == []  # the ticket in it is good


def read(target, value, now):
    """Stands for a store."""
    if value == b"bad":
        raise InvalidValue("a value that the command does not take")
    return None if value == b"none" else target[:4] + (value or b"") + b" at %d" % now


@pytest.mark.parametrize("value", [None, b"", b"v", bytes(300), b"none", b"bad"])
@pytest.mark.parametrize("socket", [SERVER_SOCKET, CLIENT_SOCKET])
def test_what_is_answered_at_once_is_answered_as_by_an_event(core, events, ask, value, socket):
    for number in range(30):
        address = ("10.0.1.1", 1 + number)
        ask(core, PING, internal=True, address=address, id=node_id(address))
    events(core)
    fields = {"target": TARGET, "value": value, "now": 2.0, "socket": socket}
    assert ask(core, 3, **fields) == []
    [event] = events(core)
    by_event = []
    if value != b"bad":
        core.reply(event, read(TARGET, value, 2.0), now=2.0)
        [(_, to, data)] = core.datagrams_to_send(2.0)
        by_event = [(socket, to, decode_untrusted(data))]
        assert len(by_event[0][2].closer_nodes) == 20

    core.answer_at_once({3: read})
    before = replace(core.tallies.user[3])
    at_once = ask(core, 3, **fields)
    if value == bytes(300):  # longer than what is looked at before it is decoded
        assert at_once == []
        assert len(events(core)) == 1
        return
    assert at_once == by_event
    assert events(core) == []
    after = core.tallies.user[3]
    assert after.received == before.received + 1
    assert after.answered == before.answered + (value != b"bad")


def test_only_bare_requests_to_a_node_with_an_id_are_answered_at_once(make_core, events, ask):
    core = make_core()
    core.bootstrap([], 0.0)
    core.answer_at_once({3: read})
    [(_, _, response)] = ask(core, 3, target=TARGET)
    events(core)
    for fields in (
        {"command": 4, "target": TARGET},
        {"command": 3},
        {"command": 3, "target": TARGET, "token": response.token},
        {"command": 3, "target": TARGET, "id": node_id(PEER)},
    ):
        assert ask(core, **fields) == []
        assert [type(event) for event in events(core)] == [RequestReceived]

    ephemeral = make_core(outside_address=None)
    ephemeral.answer_at_once({3: read})
    assert ask(ephemeral, 3, target=TARGET) == []
    assert RequestReceived in [type(event) for event in events(ephemeral)]


def test_a_reply_can_go_elsewhere_from_another_socket(core, events, ask):
    events(core)
    ask(core, 0, target=TARGET)
    [event] = events(core)
    other = ("10.0.0.3", 3)
    core.reply(event, None, token=False, closer_nodes=False, to=other, socket=9, now=0.0)
    [(socket, to, data)] = core.datagrams_to_send(0.0)
    assert (socket, to, decode_untrusted(data)) == (9, other, Response(77, other))


def test_a_relayed_request_keeps_tid_command_and_target(core, events, ask):
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
