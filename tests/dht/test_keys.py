import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht import constants
from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.keys import KeyPair, generic_hash, namespace, sign, verify

VECTORS = Path(__file__).parent.parent / "vectors"
IDS = json.loads((VECTORS / "dht" / "ids-keys-namespaces.json").read_text())
NOISE = json.loads((VECTORS / "noise.json").read_text())
SIGNATURES = json.loads((VECTORS / "dht" / "signatures.json").read_text())


@pytest.mark.parametrize("vector", IDS["keyPairs"], ids=lambda v: v["seed"][:4])
def test_key_pair_of_the_vectors(vector):
    pair = KeyPair.from_seed(bytes.fromhex(vector["seed"]))
    assert pair.public_key.hex() == vector["publicKey"]
    assert pair.secret_key.hex() == vector["secretKey"]
    assert generic_hash(pair.public_key).hex() == vector["targetHash"]
    assert generic_hash(b"hypercore", key=pair.public_key).hex() == vector["discoveryKey"]


@pytest.mark.parametrize("vector", IDS["namespace"]["entries"], ids=lambda v: v["name"])
def test_namespace_of_the_vectors(vector):
    assert namespace(IDS["namespace"]["name"], vector["commandByte"]).hex() == vector["hex"]
    assert getattr(constants, vector["name"]) == vector["commandByte"]


def test_secret_stream_namespaces_of_the_vectors():
    vector = IDS["secretStreamNamespace"]
    for number, name in enumerate(("initiator", "responder", "send")):
        assert namespace(vector["name"], number).hex() == vector["ids"][name]


def test_keyed_and_plain_hash_of_the_vectors():
    primitives = NOISE["primitives"]
    assert generic_hash(b"abc").hex() == primitives["blake2b_256_abc"]
    assert generic_hash(b"abc", key=bytes([9]) * 64).hex() == primitives["blake2b_256_abc_key64x09"]
    for case in IDS["token"]["cases"]:
        secret = bytes.fromhex(IDS["token"]["secret"])
        assert generic_hash(case["host"].encode(), key=secret).hex() == case["token"]
    for case in SIGNATURES["immutable"]:
        assert generic_hash(bytes.fromhex(case["value"])).hex() == case["target"]


def test_constants_of_the_vectors():
    vector = IDS["constants"]
    for name, number in vector["COMMANDS"].items():
        assert getattr(constants, name) == number
    for name, number in vector["FIREWALL"].items():
        assert getattr(constants, f"FIREWALL_{name}") == number
    for name in ("NONE", "ABORTED", "VERSION_MISMATCH", "TRY_LATER"):
        assert getattr(constants, f"ERROR_{name}") == vector["ERROR"][name]
    hosts = constants.BOOTSTRAP_SUGGESTED_HOSTS
    nodes = [f"{hosts[name]}@{name}:{port}" for name, port in constants.BOOTSTRAP_NODES]
    assert nodes == vector["BOOTSTRAP"]


@pytest.mark.parametrize("vector", SIGNATURES["announce"], ids=lambda v: v["kind"])
def test_signature_of_the_vectors(vector):
    pair = KeyPair.from_seed(bytes.fromhex(vector["seed"]))
    message, signature = bytes.fromhex(vector["signable"]), bytes.fromhex(vector["signature"])
    assert sign(message, pair.secret_key) == signature
    assert verify(signature, message, pair.public_key)
    assert not verify(signature, message + b"x", pair.public_key)
    assert not verify(signature, message, KeyPair.generate().public_key)


@given(st.binary(max_size=80), st.binary(max_size=40), st.binary(max_size=40))
def test_any_bytes_as_a_signature_are_false(signature, message, public_key):
    assert verify(signature, message, public_key) is False
    padded = signature.ljust(64, b"\0")[:64], message, public_key.ljust(32, b"\0")[:32]
    assert verify(*padded) is False  # the all-zero key, which has small order, included


def test_key_pairs_must_belong_together():
    pair = KeyPair.generate()
    assert pair == KeyPair(pair.public_key, pair.secret_key)
    for public_key, secret_key in (
        (pair.public_key[:-1], pair.secret_key),
        (pair.public_key, pair.secret_key[:32]),
        (KeyPair.generate().public_key, pair.secret_key),
    ):
        with pytest.raises(LocalProtocolError):
            KeyPair(public_key, secret_key)
    with pytest.raises(LocalProtocolError):
        KeyPair.from_seed(b"short")


def test_the_secret_key_does_not_show_in_the_repr():
    pair = KeyPair.from_seed(b"A" * 32)
    assert "AAAA" not in repr(pair)
    assert "secret" not in repr(pair)


def test_key_pair_survives_json():
    pair = KeyPair.generate()
    assert KeyPair.from_json(pair.to_json()) == pair
    assert pair.secret_key.hex() not in repr(pair)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"publicKey":"00","secretKey":"00"}', '{"publicKey":1,"secretKey":null}'],
)
def test_malformed_key_json_is_refused(text):
    with pytest.raises(LocalProtocolError):
        KeyPair.from_json(text)
