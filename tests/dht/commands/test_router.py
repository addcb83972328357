from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.commands.messages import Handshake, Holepunch
from hyperlog.dht.commands.router import (
    Deliver,
    Relay,
    Reply,
    ReplyTo,
    Router,
    answer_handshake,
    answer_holepunch,
)
from hyperlog.dht.constants import (
    FIND_PEER,
    FROM_CLIENT,
    FROM_RELAY,
    FROM_SECOND_RELAY,
    FROM_SERVER,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
    REPLY,
)
from hyperlog.dht.errors import LocalProtocolError

TARGET = bytes(range(32))
CLIENT, SERVER, NODE, SECOND = ((f"10.0.0.{i}", 1000 + i) for i in range(1, 5))


@dataclass
class Request:
    command: int
    address: tuple[str, int]
    value: bytes | None
    target: bytes | None = TARGET
    token: bytes | None = None


def routed(router, message, sender, now=0.0):
    command = PEER_HANDSHAKE if isinstance(message, Handshake) else PEER_HOLEPUNCH
    return router.route(Request(command, sender, message.encode()), now)


@pytest.fixture
def node():
    router = Router()
    router.set(TARGET, SERVER, b"record", 0.0)
    return router


@pytest.fixture
def server():
    router = Router()
    router.add_local(TARGET, b"record")
    return router


def test_handshake_through_one_node(node, server):
    there = routed(node, Handshake(FROM_CLIENT, b"m1"), CLIENT)
    assert there == Relay(SERVER, Handshake(FROM_RELAY, b"m1", CLIENT).encode())
    message = Handshake.decode_untrusted(there.value)
    delivered = routed(server, message, NODE)
    assert delivered == Deliver(Handshake(FROM_RELAY, b"m1", CLIENT))
    back = answer_handshake(delivered.message, b"m2", NODE)
    assert back == Relay(NODE, Handshake(FROM_SERVER, b"m2", CLIENT).encode())
    reply = routed(node, Handshake.decode_untrusted(back.value), SERVER)
    assert reply == ReplyTo(CLIENT, Handshake(REPLY, b"m2", SERVER).encode())


def test_handshake_through_two_nodes(node, server):
    first = Router()
    there = routed(first, Handshake(FROM_CLIENT, b"m1", relay_address=SECOND), CLIENT)
    assert there == Relay(SECOND, Handshake(FROM_RELAY, b"m1", CLIENT).encode())
    there = routed(node, Handshake.decode_untrusted(there.value), NODE)
    assert there == Relay(SERVER, Handshake(FROM_SECOND_RELAY, b"m1", CLIENT, NODE).encode())
    delivered = routed(server, Handshake.decode_untrusted(there.value), SECOND)
    back = answer_handshake(delivered.message, b"m2", SECOND)
    assert back == Relay(NODE, Handshake(FROM_SERVER, b"m2", CLIENT).encode())


def test_handshake_with_the_server_itself_is_direct(server):
    delivered = routed(server, Handshake(FROM_CLIENT, b"m1", peer_address=SECOND), CLIENT)
    assert delivered == Deliver(Handshake(FROM_CLIENT, b"m1"))  # the claimed address is dropped
    answer = answer_handshake(delivered.message, b"m2", CLIENT)
    assert answer == Reply(Handshake(REPLY, b"m2").encode())


def test_an_unknown_target_is_answered_with_closer_nodes():
    assert routed(Router(), Handshake(FROM_CLIENT, b"m1"), CLIENT) == Reply(None, True)


def test_hole_punch_goes_to_the_address_that_the_client_names(node, server):
    there = routed(node, Holepunch(FROM_CLIENT, 7, b"p1", SECOND), CLIENT)
    assert there == Relay(SECOND, Holepunch(FROM_RELAY, 7, b"p1", CLIENT).encode())
    assert routed(node, Holepunch(FROM_CLIENT, 7, b"p1"), CLIENT).address == SERVER
    delivered = routed(server, Holepunch.decode_untrusted(there.value), NODE)
    assert delivered == Deliver(Holepunch(FROM_RELAY, 7, b"p1", CLIENT))
    back = answer_holepunch(delivered.message, b"p2", NODE)
    assert back == Relay(NODE, Holepunch(FROM_SERVER, 0, b"p2", CLIENT).encode())
    reply = routed(node, Holepunch.decode_untrusted(back.value), SERVER)
    assert reply == ReplyTo(CLIENT, Holepunch(REPLY, 0, b"p2", SERVER).encode())


@pytest.mark.parametrize(
    "message",
    [
        Handshake(FROM_CLIENT, b""),
        Handshake(FROM_CLIENT, b"m1", relay_address=("1.2.3.4", 0)),
        Handshake(FROM_SERVER, b"m2"),
        Handshake(FROM_SERVER, b"m2", ("1.2.3.4", 0)),
        Handshake(FROM_SECOND_RELAY, b"m1", CLIENT, NODE),
        Handshake(REPLY, b"m2", CLIENT),
        Handshake(99, b"m2", CLIENT),
        Holepunch(FROM_SERVER, 0, b"p"),
        Holepunch(FROM_RELAY, 0, b"p", CLIENT),
        Holepunch(FROM_CLIENT, 0, b"p", ("1.2.3.4", 0)),
        Holepunch(REPLY, 0, b"p", CLIENT),
    ],
    ids=repr,
)
def test_a_node_keeps_silent_about_messages_without_sense(node, message):
    assert routed(node, message, CLIENT) is None


@pytest.mark.parametrize(
    "message",
    [
        Handshake(FROM_RELAY, b"m1"),
        Handshake(FROM_RELAY, b"m1", ("1.2.3.4", 0)),
        Handshake(FROM_SECOND_RELAY, b"m1", CLIENT),
        Handshake(FROM_SECOND_RELAY, b"m1", CLIENT, ("1.2.3.4", 0)),
        Handshake(FROM_SERVER, b"m2", CLIENT),
        Handshake(REPLY, b"m2"),
        Holepunch(FROM_RELAY, 0, b"p"),
        Holepunch(FROM_CLIENT, 0, b"p"),
    ],
    ids=repr,
)
def test_a_server_keeps_silent_about_messages_without_sense(server, message):
    assert routed(server, message, NODE) is None


def test_hole_punch_without_any_route_is_dropped():
    assert routed(Router(), Holepunch(FROM_CLIENT, 0, b"p"), CLIENT) is None


def test_requests_without_value_or_target_are_dropped(node):
    assert node.route(Request(PEER_HANDSHAKE, CLIENT, None), 0.0) is None
    value = Handshake(FROM_CLIENT, b"m1").encode()
    assert node.route(Request(PEER_HANDSHAKE, CLIENT, value, target=None), 0.0) is None


def test_other_commands_are_our_fault(node):
    with pytest.raises(LocalProtocolError):
        node.route(Request(FIND_PEER, CLIENT, b""), 0.0)


def test_routes_age_but_local_targets_do_not(node, server):
    assert node.get(TARGET, 1600.0) is None
    assert server.get(TARGET, 1e9).record == b"record"
    server.set(TARGET, CLIENT, b"other", 1.0)
    server.remove(TARGET)
    assert server.get(TARGET, 1.0).relay is None
    server.remove_local(TARGET)
    server.remove_local(TARGET)
    assert server.get(TARGET, 1.0) is None


def test_becoming_local_replaces_a_route(node):
    node.add_local(TARGET, b"mine")
    node.remove_local(TARGET)
    assert node.get(TARGET, 0.0) is None


def test_routes_are_bounded():
    router = Router(max_routes=10)
    for i in range(100):
        router.set(i.to_bytes(32, "little"), SERVER, b"record", 0.0)
    known = [i for i in range(100) if router.get(i.to_bytes(32, "little"), 0.0)]
    assert len(known) <= 10
    assert 99 in known


@given(st.binary(max_size=80), st.sampled_from([PEER_HANDSHAKE, PEER_HOLEPUNCH]), st.booleans())
def test_any_value_is_routed_or_dropped(value, command, local):
    router = Router()
    if local:
        router.add_local(TARGET, b"record")
    action = router.route(Request(command, CLIENT, value), 0.0)
    if isinstance(action, Relay | ReplyTo):
        assert len(action.value) <= len(value) + 12
