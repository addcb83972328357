import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.errors import LocalProtocolError, RemoteProtocolError
from hyperlog.dht.relay.frames import (
    Close,
    Data,
    Open,
    decode_untrusted,
    encode,
    encode_batch,
)
from hyperlog.dht.relay.messages import PAIR, PROTOCOL, Pair
from tests.dht.relay.strategies import frames

CAPTURE = Path(__file__).parents[2] / "vectors" / "dht" / "capture-blind-relay.json"


def captured():
    """What the peers and the relay said to each other, by the keys' first digits."""
    rows = json.loads(CAPTURE.read_text())["rows"]
    relay = next(row["remote"] for row in rows if row.get("event") == "ss-write")
    return [
        (row["local"], row["remote"], bytes.fromhex(row["plain"]["hex"]))
        for row in rows
        if row.get("event") == "ss-write" and relay in (row["local"], row["remote"])
    ]


@pytest.mark.parametrize("message", [message for *_, message in captured()], ids=bytes.hex)
def test_captured_frames_encode_to_the_same_bytes(message):
    [frame] = decode_untrusted(message)
    assert encode(frame) == message
    if isinstance(frame, Open):
        assert (frame.channel_id, frame.protocol, frame.handshake) == (1, PROTOCOL, b"")
        assert len(frame.id) == 32
    else:
        assert (frame.channel_id, frame.type) == (1, PAIR)
        assert Pair.decode_untrusted(frame.body).encode() == frame.body


def test_the_capture_has_both_peers_and_the_relay():
    messages = captured()
    assert len(messages) == 8
    assert len({local for local, *_ in messages}) == 3


@given(frames)
def test_a_frame_survives_the_wire_and_its_beginnings_do_not_crash(frame):
    message = encode(frame)
    assert decode_untrusted(message) == [frame]
    for size in range(len(message)):
        try:
            cut = decode_untrusted(message[:size])
        except RemoteProtocolError:
            continue
        # Only what has no length of its own can be cut without anybody noticing.
        assert isinstance(frame, Open | Data)
        assert cut != [frame]


@given(st.lists(frames, min_size=1, max_size=8))
def test_a_batch_is_the_frames_that_it_joins(batch):
    message = encode_batch(batch)
    assert decode_untrusted(message) == batch
    for size in range(len(message)):
        try:
            decoded = decode_untrusted(message[:size])
        except RemoteProtocolError:
            continue
        assert decoded == batch[: len(decoded)]


@given(st.binary(max_size=64))
@pytest.mark.parametrize("start", [b"", b"\0", b"\0\0", b"\0\0\1", b"\0\1"], ids=bytes.hex)
def test_any_bytes_parse_or_raise_the_remote_error(start, data):
    try:
        decode_untrusted(start + data)
    except RemoteProtocolError:
        pass


def test_a_batch_as_protomux_writes_it():
    # Made by protomux 3.12.1: two messages on channel 1, one on channel 2, cork() and uncork().
    message = bytes.fromhex("00000103006162" + "03016364" + "000203006566")
    assert decode_untrusted(message) == [
        Data(1, 0, b"ab"),
        Data(1, 1, b"cd"),
        Data(2, 0, b"ef"),
    ]
    assert encode_batch(decode_untrusted(message)) == message


def test_control_frames_may_stand_in_a_batch():
    # Made by protomux 3.12.1 likewise: a channel opened, used, and another one closed.
    message = bytes.fromhex("00000007010301630269640003020078" + "0000020301")
    assert decode_untrusted(message) == [Open(3, "c", b"id"), Data(3, 0, b"x"), Close(1)]
    assert encode_batch(decode_untrusted(message)) == message


def test_a_batch_within_a_batch_is_refused():
    inner = encode_batch([Data(1, 0, b"x")])[1:]
    with pytest.raises(RemoteProtocolError):
        decode_untrusted(bytes([0, 0, 0, len(inner)]) + inner)


def test_control_frames_of_an_unknown_kind_are_left_out():
    assert decode_untrusted(b"\0\x09abc") == []


def test_frames_that_nobody_could_read_are_not_made():
    with pytest.raises(LocalProtocolError):
        encode(Data(0, 0, b""))
    with pytest.raises(LocalProtocolError):
        encode_batch([])
