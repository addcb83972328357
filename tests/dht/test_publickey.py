"""Against what the JavaScript packages gave: tests/vectors/dht/public-keys.json."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.publickey import (
    ALPHABET,
    MAX_NODES,
    decode_public_key,
    decode_z32,
    encode_address,
    encode_z32,
)

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors/dht/public-keys.json").read_text(encoding="utf-8")
)
KEY = bytes.fromhex(VECTORS["encoded"][0]["key"])
NODES = [("127.0.0.1", 49737), ("10.1.2.3", 65535)]

keys = st.binary(min_size=32, max_size=32)
node_lists = st.lists(
    st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535)), max_size=MAX_NODES
)


def as_nodes(listed):
    return [(node["host"], node["port"]) for node in listed or ()]


@pytest.mark.parametrize("vector", VECTORS["z32"], ids=lambda v: str(len(v["hex"]) // 2))
def test_z32_is_that_of_the_javascript_package(vector):
    data = bytes.fromhex(vector["hex"])
    assert encode_z32(data) == vector["z32"]
    assert decode_z32(vector["z32"]) == data


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda v: v["text"][:70] or "empty")
def test_text_is_taken_as_hypercore_id_encoding_takes_it(vector):
    if vector["key"] is not None:
        assert decode_public_key(vector["text"]) == (bytes.fromhex(vector["key"]), [])
    elif len(vector["text"]) > 64:  # an address in hex, which is our own
        assert decode_public_key(vector["text"]) == (KEY, [])
    else:
        with pytest.raises(LocalProtocolError):
            decode_public_key(vector["text"])


@pytest.mark.parametrize("vector", VECTORS["encoded"], ids=lambda v: v["hex"][64:] or "none")
def test_addresses_of_the_javascript_package_are_read_as_bytes_and_in_hex(vector):
    expected = (KEY, as_nodes(vector["nodes"]))
    assert decode_public_key(bytes.fromhex(vector["hex"])) == expected
    assert decode_public_key(vector["hex"]) == expected
    if vector["nodes"] != []:  # where it says in two bytes more that there are none
        assert encode_address(*expected).hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS["decoded"], ids=lambda v: v["hex"][64:] or "none")
def test_bytes_are_taken_as_hyperdht_address_takes_them(vector):
    data = bytes.fromhex(vector["hex"])
    if vector["key"] is None:
        with pytest.raises(LocalProtocolError):
            decode_public_key(data)
    else:
        assert decode_public_key(data) == (KEY, as_nodes(vector["nodes"]))


@given(keys, node_lists)
def test_what_is_encoded_is_decoded(key, nodes):
    address = encode_address(key, nodes)
    assert decode_public_key(address) == decode_public_key(address.hex()) == (key, nodes)
    assert decode_public_key(encode_z32(key)) == (key, [])
    for end in range(33, len(address)):
        with pytest.raises(LocalProtocolError):
            decode_public_key(address[:end])


@given(st.binary(max_size=200))
def test_any_bytes_survive_z32(data):
    assert decode_z32(encode_z32(data)) == data


@given(st.binary(max_size=120) | st.text(max_size=140) | st.text(ALPHABET, max_size=140))
def test_anything_gives_a_key_or_that_one_error(value):
    with suppress(LocalProtocolError):
        key, nodes = decode_public_key(value)
        assert len(key) == 32
        assert len(nodes) <= MAX_NODES


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("ab" * 31, "62 characters"),
        ("zz" * 32, "not all of them are hex digits"),
        (" " + "a" * 63, "not all of them are hex digits"),
        ("a" * 65, "hex digits come in pairs"),
        ("0" * 52, "'0' is no character of z-base-32"),
        (b"a" * 31, "32 bytes, got 31"),
        (KEY + b"\x01\x02" + bytes(6), "whole HyperDHT address"),
        (KEY + b"\x01\x41" + bytes(6 * 65), "65 nodes are too many"),
        (7, "not int"),
    ],
)
def test_the_error_says_what_is_wrong(value, said):
    with pytest.raises(LocalProtocolError, match=said):
        decode_public_key(value)


def test_no_address_is_made_of_what_does_not_fit():
    for key, nodes in [(KEY[:31], []), (KEY, [("::1", 1)]), (KEY, NODES * 40)]:
        with pytest.raises(LocalProtocolError):
            encode_address(key, nodes)
