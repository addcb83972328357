"""The two sides of blind-relay against each other, and against what JavaScript peers said."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.errors import LocalProtocolError, RemoteProtocolError
from hyperlog.dht.relay.client import Paired, Refused, RelayClientCore, RelayGone, Unpaired
from hyperlog.dht.relay.frames import Open, encode
from hyperlog.dht.relay.messages import Pair
from hyperlog.dht.relay.server import (
    PairRequested,
    RelayServerCore,
    SessionClosed,
    UnpairRequested,
)

CAPTURE = Path(__file__).parents[2] / "vectors" / "dht" / "capture-blind-relay.json"
KEY = b"k" * 32
TOKEN = b"t" * 32


def deliver(sender, receiver):
    for message in sender.messages_to_send():
        receiver.receive_untrusted(message)
    events = []
    while (event := receiver.next_event()) is not None:
        events.append(event)
    return events


@pytest.fixture
def link():
    client, server = RelayClientCore(KEY), RelayServerCore(KEY)
    deliver(server, client)
    deliver(client, server)
    return client, server


def test_a_request_and_its_answer(link):
    client, server = link
    client.pair(TOKEN, is_initiator=True, stream_id=7)
    assert deliver(client, server) == [PairRequested(Pair(True, TOKEN, 7))]
    server.paired(TOKEN, is_initiator=True, stream_id=9)
    assert deliver(server, client) == [Paired(TOKEN, 9)]


def test_an_answer_in_the_other_role_or_to_nothing_is_ignored(link):
    client, server = link
    client.pair(TOKEN, is_initiator=True, stream_id=7)
    server.paired(TOKEN, is_initiator=False, stream_id=9)
    server.paired(b"x" * 32, is_initiator=True, stream_id=9)
    assert deliver(server, client) == []


def test_a_refusal_ends_the_request_and_an_end_the_path(link):
    client, server = link
    client.pair(TOKEN, is_initiator=False, stream_id=7)
    server.refuse(TOKEN)
    assert deliver(server, client) == [Refused(TOKEN)]
    client.pair(TOKEN, is_initiator=False, stream_id=7)
    server.paired(TOKEN, is_initiator=False, stream_id=9)
    server.refuse(TOKEN)
    server.refuse(TOKEN)
    assert deliver(server, client) == [Paired(TOKEN, 9), Unpaired(TOKEN)]


def test_unpair_and_close_reach_the_relay(link):
    client, server = link
    client.pair(TOKEN, is_initiator=True, stream_id=7)
    client.unpair(TOKEN)
    client.close()
    client.unpair(TOKEN)
    # The close came with them, and with it all that was asked for is over.
    assert deliver(client, server)[-1] == SessionClosed()
    assert server.closed
    server.paired(TOKEN, is_initiator=True, stream_id=9)
    server.refuse(TOKEN)
    assert server.messages_to_send() == []


def test_unpair_alone_is_told(link):
    client, server = link
    client.unpair(TOKEN)
    assert deliver(client, server) == [UnpairRequested(TOKEN)]


def test_a_peer_that_is_no_relay_says_so():
    client = RelayClientCore(KEY)
    client.receive_untrusted(b"\0\x02\x01")
    assert client.next_event() == RelayGone(rejected=True)


def test_a_relay_that_shuts_down_ends_everything(link):
    client, server = link
    client.pair(TOKEN, is_initiator=True, stream_id=7)
    server.close()
    assert deliver(server, client) == [RelayGone(rejected=False)]
    with pytest.raises(LocalProtocolError):
        client.pair(b"u" * 32, is_initiator=True, stream_id=7)


def test_one_token_is_asked_for_once(link):
    client, _ = link
    client.pair(TOKEN, is_initiator=True, stream_id=7)
    with pytest.raises(LocalProtocolError):
        client.pair(TOKEN, is_initiator=False, stream_id=8)


def test_other_protocols_on_the_connection_are_rejected(link):
    for core in link:
        core.messages_to_send()
        core.receive_untrusted(encode(Open(2, "something else")))
        assert core.messages_to_send() == [b"\0\x02\x02"]


def captured_sides():
    rows = [r for r in json.loads(CAPTURE.read_text())["rows"] if r.get("event") == "ss-write"]
    relay = rows[0]["remote"]
    for peer in dict.fromkeys(row["local"] for row in rows if row["remote"] == relay):
        talk = [
            (row["local"] == peer, bytes.fromhex(row["plain"]["hex"]))
            for row in rows
            if {row["local"], row["remote"]} == {peer, relay}
        ]
        yield pytest.param(talk, id=peer)


@pytest.mark.parametrize("talk", list(captured_sides()))
def test_what_javascript_peers_said_comes_out_of_our_cores_byte_for_byte(talk):
    from_peer = [message for is_peer, message in talk if is_peer]
    from_relay = [message for is_peer, message in talk if not is_peer]
    key = from_peer[0][-32:]
    asked = Pair.decode_untrusted(from_peer[1][2:])
    answered = Pair.decode_untrusted(from_relay[1][2:])

    client = RelayClientCore(key)
    client.pair(asked.token, is_initiator=asked.is_initiator, stream_id=asked.id)
    assert client.messages_to_send() == from_peer
    for message in from_relay:
        client.receive_untrusted(message)
    assert client.next_event() == Paired(asked.token, answered.id)

    server = RelayServerCore(key)
    for message in from_peer:
        server.receive_untrusted(message)
    assert server.next_event() == PairRequested(asked)
    server.paired(asked.token, is_initiator=asked.is_initiator, stream_id=answered.id)
    assert server.messages_to_send() == from_relay


@given(st.lists(st.binary(max_size=80), max_size=8))
@pytest.mark.parametrize("core", [RelayClientCore, RelayServerCore])
@pytest.mark.parametrize("opened", [True, False], ids=["open", "new"])
def test_whatever_the_peer_sends_is_taken_or_raises_the_remote_error(core, opened, messages):
    side = core(KEY)
    if opened:
        side.receive_untrusted(encode(Open(1, "blind-relay", KEY)))
        messages = [b"\x01" + message for message in messages]
    try:
        for message in messages:
            side.receive_untrusted(message)
    except RemoteProtocolError:
        pass
