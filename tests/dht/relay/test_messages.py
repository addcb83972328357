import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.errors import RemoteProtocolError
from hyperlog.dht.relay.messages import Pair, Unpair

VECTORS = Path(__file__).parents[2] / "vectors" / "dht" / "messages.json"
MESSAGES = json.loads(VECTORS.read_text())["blindRelay"]


def built(vector):
    value = vector["value"]
    token = bytes.fromhex(value["token"])
    if vector["message"] == "unpair":
        return Unpair(token)
    return Pair(value["isInitiator"], token, value["id"], value["seq"])


@pytest.mark.parametrize("vector", MESSAGES, ids=lambda v: v["message"])
def test_messages_are_those_of_the_vectors(vector):
    message = built(vector)
    assert message.encode().hex() == vector["hex"]
    assert type(message).decode_untrusted(bytes.fromhex(vector["hex"])) == message


def test_there_are_vectors_of_both_messages():
    assert {vector["message"] for vector in MESSAGES} == {"pair", "unpair"}


@given(st.booleans(), st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 1))
def test_pair_survives_the_wire_and_its_beginnings_do_not_crash(is_initiator, token, stream_id):
    pair = Pair(is_initiator, token, stream_id)
    data = pair.encode()
    assert Pair.decode_untrusted(data) == pair
    for size in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            Pair.decode_untrusted(data[:size])


@given(st.binary(max_size=64))
def test_any_bytes_parse_or_raise_the_remote_error(data):
    for message in (Pair, Unpair):
        try:
            message.decode_untrusted(data)
        except RemoteProtocolError:
            pass
