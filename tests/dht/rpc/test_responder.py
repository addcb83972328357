"""Answers of an RPCCore to others, datagram by datagram."""

import struct

import pytest

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
