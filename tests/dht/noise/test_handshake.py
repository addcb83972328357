import json
import os
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.errors import InvalidValue, LocalProtocolError, RemoteProtocolError, Truncated
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.noise import handshake
from hyperlog.dht.noise.handshake import HandshakeState

VECTORS = Path(__file__).parents[2] / "vectors"
NOISE = json.loads((VECTORS / "noise.json").read_text())
SEEDS = {name: bytes.fromhex(key["seed"]) for name, key in NOISE["keys"].items()}
INITIATOR = KeyPair.from_seed(SEEDS["initiatorStatic"])
RESPONDER = KeyPair.from_seed(SEEDS["responderStatic"])
SMALL_ORDER = bytes([1]) + bytes(31)  # the identity


def pair(pattern, prologue=b""):
    initiator = HandshakeState(
        pattern,
        True,
        INITIATOR,
        random_bytes=lambda size: SEEDS["initiatorEphemeral"][:size],
        prologue=prologue,
        remote_public_key=RESPONDER.public_key if pattern == "IK" else None,
    )
    responder = HandshakeState(
        pattern,
        False,
        RESPONDER,
        random_bytes=lambda size: SEEDS["responderEphemeral"][:size],
        prologue=prologue,
    )
    return initiator, responder


@pytest.mark.parametrize("name", ["ik_hyperdht", "ik_empty", "xx_secret_stream"])
def test_handshake_of_the_vectors(name):
    vector = NOISE[name]
    pattern = vector["protocolName"].split("_")[1]
    initiator, responder = pair(pattern, bytes.fromhex(vector["prologue"]))
    assert initiator.handshake_hash.hex() == vector["hashAfterInitialise"]
    for message in vector["messages"]:
        sender, receiver = initiator, responder
        if message["from"] == "responder":
            sender, receiver = responder, initiator
        wire = sender.write_message(bytes.fromhex(message["payload"]))
        assert wire.hex() == message["message"]
        assert receiver.read_message_untrusted(wire).hex() == message["payload"]
        assert sender.handshake_hash.hex() == message["hashAfter"]
        assert receiver.handshake_hash.hex() == message["hashAfter"]
    for side, expected in ((initiator, vector["initiator"]), (responder, vector["responder"])):
        assert side.complete
        result = side.result()
        assert result.tx.hex() == expected["tx"]
        assert result.rx.hex() == expected["rx"]
        assert result.handshake_hash.hex() == expected["hash"]
        assert result.remote_public_key.hex() == expected["rs"]
        assert result.is_initiator is (side is initiator)


def test_keys_do_not_show_in_the_repr():
    initiator, responder = pair("IK")
    responder.read_message_untrusted(initiator.write_message())
    initiator.read_message_untrusted(responder.write_message())
    result = initiator.result()
    assert repr(result.tx) not in repr(result)
    assert repr(result.handshake_hash) not in repr(result)


def test_the_handshake_hash_follows_from_what_travels_in_the_open():
    vector = NOISE["ik_hyperdht"]
    hashed = b"Noise_IK_Ed25519_ChaChaPoly_BLAKE2b".ljust(64, b"\0")
    first, second = (bytes.fromhex(message["message"]) for message in vector["messages"])
    parts = (first[:32], first[32:80], first[80:], second[:32], second[32:])
    for part in (bytes.fromhex(vector["prologue"]), RESPONDER.public_key, *parts):
        hashed = blake2b(hashed + part).digest()
    assert hashed.hex() == vector["initiator"]["hash"]


@pytest.mark.parametrize("pattern", ["IK", "XX"])
def test_messages_out_of_turn_are_our_fault(pattern):
    initiator, responder = pair(pattern)
    with pytest.raises(LocalProtocolError):
        initiator.read_message_untrusted(bytes(200))
    with pytest.raises(LocalProtocolError):
        responder.write_message()
    with pytest.raises(LocalProtocolError):
        initiator.result()
    sides = [initiator, responder]
    while not initiator.complete:
        sides[1].read_message_untrusted(sides[0].write_message(b"payload"))
        sides.reverse()
    for side in sides:
        with pytest.raises(LocalProtocolError):
            side.write_message()
        with pytest.raises(LocalProtocolError):
            side.read_message_untrusted(bytes(200))


@pytest.mark.parametrize("pattern", ["IK", "XX"])
def test_one_flipped_bit_is_refused_and_the_true_message_still_works(pattern):
    initiator, responder = pair(pattern)
    sides = [initiator, responder]
    while not initiator.complete:
        wire = sides[0].write_message(b"payload")
        if sides[1].handshake_hash and len(wire) > 32 + 7:  # XX opens without authentication
            for position in range(0, len(wire), 5):
                forged = bytearray(wire)
                forged[position] ^= 1 << position % 8
                with pytest.raises(RemoteProtocolError):
                    sides[1].read_message_untrusted(bytes(forged))
        assert sides[1].read_message_untrusted(wire) == b"payload"
        sides.reverse()
    assert initiator.result().tx == responder.result().rx


def test_no_diffie_hellman_for_messages_of_an_impossible_size(monkeypatch):
    monkeypatch.setattr(handshake, "_shared_point", lambda *_: pytest.fail("computed"))
    _, responder = pair("IK")
    for size in (0, 1, 31, 32, 95):
        with pytest.raises(Truncated):
            responder.read_message_untrusted(bytes(size))
    with pytest.raises(InvalidValue):
        responder.read_message_untrusted(bytes(65536))


def test_ephemeral_key_of_small_order_is_refused():
    initiator, responder = pair("IK")
    wire = initiator.write_message()
    with pytest.raises(InvalidValue):
        responder.read_message_untrusted(SMALL_ORDER + wire[32:])


def test_unusable_public_key_of_the_responder_is_our_fault():
    initiator = HandshakeState(
        "IK", True, INITIATOR, random_bytes=os.urandom, remote_public_key=SMALL_ORDER
    )
    with pytest.raises(LocalProtocolError):
        initiator.write_message()
    with pytest.raises(LocalProtocolError):
        HandshakeState("IK", True, INITIATOR, random_bytes=os.urandom, remote_public_key=b"short")


@pytest.mark.parametrize(
    ("pattern", "is_initiator", "key"),
    [("IK", True, None), ("IK", False, bytes(32)), ("XX", True, bytes(32))],
)
def test_only_the_initiator_of_ik_names_the_remote_key(pattern, is_initiator, key):
    with pytest.raises(LocalProtocolError):
        HandshakeState(
            pattern, is_initiator, INITIATOR, random_bytes=os.urandom, remote_public_key=key
        )


def test_payload_over_the_noise_limit_is_our_fault():
    initiator, responder = pair("IK")
    with pytest.raises(LocalProtocolError):
        initiator.write_message(bytes(65535 - 95))
    wire = initiator.write_message(bytes(65535 - 96))
    assert len(responder.read_message_untrusted(wire)) == 65535 - 96


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["IK", "XX"]), st.booleans())
def test_any_bytes_parse_or_raise_the_remote_error(data, pattern, second):
    initiator, responder = pair(pattern)
    if second:
        responder.read_message_untrusted(initiator.write_message())
        responder.write_message()
    try:
        (initiator if second else responder).read_message_untrusted(data)
    except RemoteProtocolError:
        pass
