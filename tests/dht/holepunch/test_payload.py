import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from hyperlog.dht.commands.messages import Holepunch
from hyperlog.dht.errors import BadSignature, LocalProtocolError, RemoteProtocolError, Truncated
from hyperlog.dht.holepunch.payload import HolepunchPayload, SecurePayload
from hyperlog.dht.rpc.messages import decode_untrusted

VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
SECURE = json.loads((VECTORS / "handshake.json").read_text())["securePayload"]
MESSAGES = [
    vector
    for vector in json.loads((VECTORS / "messages.json").read_text())["hyperdht"]
    if vector["message"] == "holepunchPayload"
]


def from_js(value):
    if isinstance(value, list):
        return [from_js(item) for item in value]
    if isinstance(value, dict) and "hex" in value:
        return bytes.fromhex(value["hex"])
    if isinstance(value, dict):
        return value["host"], value["port"]
    return value


def payload_from_js(value):
    return HolepunchPayload(
        **{
            re.sub("([A-Z])", lambda match: "_" + match[1].lower(), key): from_js(item)
            for key, item in value.items()
        }
    )


@pytest.mark.parametrize("vector", MESSAGES, ids=lambda v: v["note"].replace(" ", "-"))
def test_payload_of_the_vectors(vector):
    expected, wire = payload_from_js(vector["decoded"]), bytes.fromhex(vector["hex"])
    assert HolepunchPayload.decode_untrusted(wire) == expected
    assert expected.encode() == wire


def test_encryption_of_the_vector():
    answers = [bytes.fromhex(SECURE["localSecret"]), bytes.fromhex(SECURE["nonce"])]
    secure = SecurePayload(bytes.fromhex(SECURE["secret"]), lambda size: answers.pop(0))
    payload = payload_from_js(SECURE["value"])
    assert payload.encode().hex() == SECURE["plain"]
    wire = secure.encrypt(payload)
    assert wire.hex() == SECURE["wire"]
    assert secure.decrypt_untrusted(wire) == payload
    assert secure.token((SECURE["tokenFor"], 5555)).hex() == SECURE["token"]


def captured_secrets_and_payloads():
    for path in sorted(VECTORS.glob("capture-*.json")):
        rows = json.loads(path.read_text())["rows"]
        secrets = [
            bytes.fromhex(row["holepunchSecret"]["hex"])
            for row in rows
            if row.get("event") == "noise-final"
        ]
        said = [
            payload_from_js(
                {
                    key: [{"host": a["host"], "port": a["port"]} for a in item]
                    if key == "addresses" and item
                    else item
                    for key, item in row["payload"].items()
                }
            )
            for row in rows
            if row.get("event") == "holepunch-payload-encrypt"
        ]
        requests = [
            decode_untrusted(bytes.fromhex(row["hex"]))
            for row in rows
            if row["kind"] == "datagram" and row.get("what") == "REQ PEER_HOLEPUNCH"
        ]
        wires = [Holepunch.decode_untrusted(request.value).payload for request in requests]
        yield secrets, said, wires


def test_captured_payloads_decrypt_to_what_was_said():
    count = 0
    for secrets, said, wires in captured_secrets_and_payloads():
        for sealed in wires:
            opened = []
            for secret in secrets:
                try:
                    opened.append(SecurePayload(secret, os.urandom).decrypt_untrusted(sealed))
                except BadSignature:
                    continue
            assert opened
            assert opened[0] in said
            count += 1
    assert count == 27


def test_what_was_changed_or_is_under_another_key_is_refused():
    secure = SecurePayload(bytes(32), os.urandom)
    wire = secure.encrypt(HolepunchPayload(round=1))
    with pytest.raises(BadSignature):
        SecurePayload(bytes([1]) * 32, os.urandom).decrypt_untrusted(wire)
    for position in (0, 30, len(wire) - 1):
        forged = bytearray(wire)
        forged[position] ^= 1
        with pytest.raises(BadSignature):
            secure.decrypt_untrusted(bytes(forged))
    with pytest.raises(Truncated):
        secure.decrypt_untrusted(wire[:40])


def test_tokens_are_bound_to_the_host_and_the_session():
    secure = SecurePayload(bytes(32), os.urandom)
    token = secure.token(("1.2.3.4", 1))
    assert len(token) == 32
    assert secure.token(("1.2.3.4", 2)) == token
    assert secure.token(("1.2.3.5", 1)) != token
    assert SecurePayload(bytes(32), os.urandom).token(("1.2.3.4", 1)) != token


def test_a_secret_of_another_size_is_our_fault():
    with pytest.raises(LocalProtocolError):
        SecurePayload(b"short", os.urandom)


def test_tokens_do_not_show_in_the_repr():
    assert "9" * 8 not in repr(HolepunchPayload(token=b"9" * 32, remote_token=b"9" * 32))


uints = st.integers(0, 2**64 - 1)
addresses = st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535))
keys = st.none() | st.binary(min_size=32, max_size=32)
payloads = st.builds(
    HolepunchPayload,
    uints,
    uints,
    uints,
    st.booleans(),
    st.booleans(),
    st.none() | st.lists(addresses, max_size=4),
    st.none() | addresses,
    keys,
    keys,
)


@given(payloads, st.data())
def test_payloads_survive_the_wire_and_their_beginnings_do_not_crash(payload, data):
    wire = payload.encode()
    assert HolepunchPayload.decode_untrusted(wire) == payload
    try:
        HolepunchPayload.decode_untrusted(wire[: data.draw(st.integers(0, len(wire) - 1))])
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_any_bytes_decode_or_raise_the_remote_error(plain, sealed):
    try:
        HolepunchPayload.decode_untrusted(plain)
    except RemoteProtocolError:
        pass
    secure = SecurePayload(bytes(32), os.urandom)
    with pytest.raises(RemoteProtocolError):
        secure.decrypt_untrusted(sealed)
    nonce = bytes(24)
    try:
        secure.decrypt_untrusted(nonce + bindings.crypto_secretbox(plain, nonce, bytes(32)))
    except RemoteProtocolError:
        pass
