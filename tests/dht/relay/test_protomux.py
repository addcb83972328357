"""Protomux in pairs, joined by a queue in each direction."""

from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.errors import InvalidValue, LocalProtocolError, RemoteProtocolError
from hyperlog.dht.relay import protomux
from hyperlog.dht.relay.frames import (
    Close,
    Data,
    Open,
    Reject,
    decode_untrusted,
    encode,
    encode_batch,
)
from hyperlog.dht.relay.protomux import (
    ChannelClosed,
    ChannelMessage,
    ChannelOffered,
    ChannelOpened,
    Protomux,
)
from tests.dht.relay.strategies import frames


def events(mux):
    found = []
    while (event := mux.next_event()) is not None:
        found.append(event)
    return found


def deliver(sender, receiver):
    """Hand over what waits to be sent; what comes of it at the receiver."""
    for message in sender.messages_to_send():
        receiver.receive_untrusted(message)
    return events(receiver)


def open_pair(protocol="p", id=b""):
    a, b = Protomux(), Protomux()
    ours, theirs = a.open(protocol, id), b.open(protocol, id)
    deliver(a, b)
    deliver(b, a)
    assert ours.opened
    assert theirs.opened
    return a, b, ours, theirs


def test_both_sides_open_and_talk():
    a, b, ours, theirs = open_pair(id=b"key")
    a.send(ours, 3, b"to b")
    b.send(theirs, 0, b"to a")
    assert deliver(a, b) == [ChannelMessage(theirs, 3, b"to b")]
    assert deliver(b, a) == [ChannelMessage(ours, 0, b"to a")]


def test_an_offer_is_accepted_by_opening_the_same_and_brings_what_was_sent_meanwhile():
    a, b = Protomux(), Protomux()
    ours = a.open("p", b"key", b"hands")
    a.send(ours, 0, b"early")
    assert deliver(a, b) == [ChannelOffered("p", b"key")]
    theirs = b.open("p", b"key")
    assert events(b) == [ChannelOpened(theirs, b"hands"), ChannelMessage(theirs, 0, b"early")]
    assert deliver(b, a) == [ChannelOpened(ours, b"")]


def test_channels_of_one_protocol_are_told_apart_by_their_ids():
    a, b = Protomux(), Protomux()
    ours = [a.open("p", b"1"), a.open("p", b"2"), a.open("q", b"1")]
    theirs = [b.open("q", b"1"), b.open("p", b"2"), b.open("p", b"1")]
    deliver(a, b)
    deliver(b, a)
    for channel in ours:
        a.send(channel, 0, channel.protocol.encode() + channel.id)
    received = {event.channel: event.body for event in deliver(a, b)}
    assert received == {c: c.protocol.encode() + c.id for c in theirs}


def test_a_rejected_offer_ends_the_channel():
    a, b = Protomux(), Protomux()
    ours = a.open("p")
    [offer] = deliver(a, b)
    b.reject(offer.protocol, offer.id)
    assert deliver(b, a) == [ChannelClosed(ours, rejected=True)]
    with pytest.raises(LocalProtocolError):
        a.send(ours, 0, b"")


def test_a_close_reaches_the_other_side_once_and_frees_the_number():
    a, b, ours, theirs = open_pair()
    a.close(ours)
    a.close(ours)
    assert a.messages_to_send() == [encode(Close(1))]
    b.receive_untrusted(encode(Close(1)))
    assert events(b) == [ChannelClosed(theirs, rejected=False)]
    assert b.messages_to_send() == []
    assert a.open("again").local_id == b.open("again").local_id == 1


def test_closes_that_cross_are_no_error():
    a, b, ours, theirs = open_pair()
    a.close(ours)
    b.close(theirs)
    assert deliver(a, b) == deliver(b, a) == []


def test_a_number_is_free_again_only_when_the_peer_has_answered_the_open():
    a, b = Protomux(), Protomux()
    ours = a.open("p")
    a.close(ours)
    assert a.open("q").local_id == 2
    [taken_back, _] = deliver(a, b)
    b.reject(taken_back.protocol)  # it was taken back: no effect
    assert [decode_untrusted(m) for m in b.messages_to_send()] == [[Reject(1)]]
    a.receive_untrusted(encode(Reject(1)))
    assert events(a) == []
    assert a.open("r").local_id == 1


def test_what_was_under_way_to_a_closed_channel_is_ignored():
    a, b, ours, theirs = open_pair()
    b.send(theirs, 0, b"late")
    a.close(ours)
    assert deliver(b, a) == []


def test_an_empty_message_is_a_keep_alive():
    mux = Protomux()
    mux.receive_untrusted(b"")
    assert events(mux) == []


def test_opening_channel_0_is_rejected_as_in_javascript():
    mux = Protomux()
    mux.receive_untrusted(encode(Open(0, "p")))
    assert mux.messages_to_send() == [encode(Reject(0))]


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([Open(2, "p")], id="a number left out"),
        pytest.param([Open(1, "p"), Open(1, "q")], id="a number in use"),
        pytest.param([Reject(1)], id="nothing was offered"),
        pytest.param([Open(n, "p") for n in range(1, 18)], id="too many channels"),
        pytest.param(
            [Open(1, "p")] + [Data(1, 0, b"x")] * 64, id="too much before the channel is open"
        ),
        pytest.param([Data(1, 0, bytes(65_536))], id="a frame too long"),
    ],
)
def test_what_no_honest_peer_sends_is_refused(messages):
    mux = Protomux()

    def receive_all():
        for frame in messages:
            mux.receive_untrusted(encode(frame))

    with pytest.raises(InvalidValue):
        receive_all()


def test_too_many_channels_of_our_own_are_an_error_of_ours():
    mux = Protomux()
    for number in range(protomux.MAX_CHANNELS):
        mux.open(str(number))
    with pytest.raises(LocalProtocolError):
        mux.open("one more")


def test_everything_may_come_in_one_message():
    a, b = Protomux(), Protomux()
    ours = a.open("p")
    theirs = b.open("p")
    a.send(ours, 0, b"1")
    a.send(ours, 1, b"2")
    sent = [frame for message in a.messages_to_send() for frame in decode_untrusted(message)]
    assert a.messages_to_send() == []
    b.receive_untrusted(encode_batch(sent))
    assert events(b) == [
        ChannelOpened(theirs, b""),
        ChannelMessage(theirs, 0, b"1"),
        ChannelMessage(theirs, 1, b"2"),
    ]


@given(st.lists(st.one_of(frames.map(encode), st.binary(max_size=40)), max_size=20))
def test_whatever_a_peer_sends_is_taken_or_raises_the_remote_error(messages):
    mux = Protomux()
    mux.open("blind-relay", b"key")
    try:
        for message in messages:
            mux.receive_untrusted(message)
            for event in events(mux):
                if isinstance(event, ChannelOffered):
                    mux.reject(event.protocol, event.id)
    except RemoteProtocolError:
        pass
    assert len(mux._remote) <= protomux.MAX_CHANNELS


STEPS = st.lists(
    st.tuples(st.sampled_from(("open", "send", "close", "deliver")), st.booleans(), st.integers(0)),
    max_size=60,
)


@settings(max_examples=150)
@given(STEPS)
def test_any_order_of_steps_keeps_both_sides_in_agreement(steps):
    """Honest sides never refuse each other; what is sent on a channel comes in order."""
    muxes = (Protomux(), Protomux())
    wires = (deque(), deque())  # towards each
    channels = ([], [])
    sent = ({}, {})  # by channel: bodies from that side
    received = ({}, {})

    def take(side, message):
        mux = muxes[side]
        mux.receive_untrusted(message)
        for event in events(mux):
            if isinstance(event, ChannelOffered):
                if len(event.protocol) % 2:
                    channels[side].append(mux.open(event.protocol, event.id))
                else:
                    mux.reject(event.protocol, event.id)
            elif isinstance(event, ChannelMessage):
                received[side].setdefault(event.channel.local_id, []).append(event.body)

    for action, side, number in steps:
        mux = muxes[side]
        live = [channel for channel in channels[side] if not channel.closed]
        if action == "open" and len(live) < 4:
            try:
                channels[side].append(mux.open("x" * (number % 3)))
            except LocalProtocolError:
                pass  # the numbers of closed ones have not come back
        elif action == "send" and live:
            channel = live[number % len(live)]
            body = b"%d" % len(sent[side].setdefault(channel, []))
            sent[side][channel].append(body)
            mux.send(channel, 0, body)
        elif action == "close" and live:
            mux.close(live[number % len(live)])
        elif action == "deliver" and wires[side]:
            take(side, wires[side].popleft())
        for at in (0, 1):
            wires[1 - at].extend(muxes[at].messages_to_send())
    while any(wires):
        for side in (0, 1):
            if wires[side]:
                take(side, wires[side].popleft())
            wires[1 - side].extend(muxes[side].messages_to_send())
    for side in (0, 1):
        for channel in channels[side]:
            if channel.opened and not channel.closed:
                other = muxes[1 - side]._local[channel.remote_id - 1]
                assert other is not None
                assert other.remote_id == channel.local_id
        for bodies in received[side].values():
            # A number serves several channels, one after the other; each begins anew.
            for before, after in pairwise(bodies):
                assert int(after) == int(before) + 1 or int(after) == 0
