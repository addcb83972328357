import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.commands.handshake import HandshakeInitiator, HandshakeResponder
from hyperlog.dht.commands.messages import NoisePayload, UDXInfo
from hyperlog.dht.errors import BadSignature, LocalProtocolError, RemoteProtocolError
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.noise.secretstream import stream_id

VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
NOISE = json.loads((VECTORS / "handshake.json").read_text())["noise"]
CLIENT = KeyPair.from_seed(bytes.fromhex(NOISE["clientStaticSeed"]))
SERVER = KeyPair.from_seed(bytes.fromhex(NOISE["serverStaticSeed"]))
RELAY = KeyPair.from_seed(bytes([7]) * 32)  # the server key of the blind relay capture


def pair():
    return (
        HandshakeInitiator(CLIENT, SERVER.public_key, os.urandom),
        HandshakeResponder(SERVER, os.urandom),
    )


def test_handshake_of_the_vector():
    initiator = HandshakeInitiator(
        CLIENT, SERVER.public_key, lambda size: bytes.fromhex(NOISE["clientEphemeralSeed"])[:size]
    )
    responder = HandshakeResponder(
        SERVER, lambda size: bytes.fromhex(NOISE["serverEphemeralSeed"])[:size]
    )
    payload1 = NoisePayload.decode_untrusted(bytes.fromhex(NOISE["clientPayload"]["hex"]))
    payload2 = NoisePayload.decode_untrusted(bytes.fromhex(NOISE["serverPayload"]["hex"]))
    assert payload1.udx == UDXInfo(0x12345678)
    assert payload2.holepunch.relays[0].peer_address == ("127.0.0.1", 40002)
    message1 = initiator.send(payload1)
    assert message1.hex() == NOISE["message1"]
    assert responder.receive_untrusted(message1) == payload1
    assert responder.remote_public_key == CLIENT.public_key
    message2 = responder.send(payload2)
    assert message2.hex() == NOISE["message2"]
    assert initiator.receive_untrusted(message2) == payload2
    assert initiator.remote_public_key == SERVER.public_key
    for side in (initiator, responder):
        assert side.complete
        assert side.holepunch_secret.hex() == NOISE["holepunchSecret"]
        result = side.result()
        assert result.handshake_hash.hex() == NOISE["handshakeHash"]
        for role in ("client", "server"):
            expected = NOISE[f"{role}StreamIdHeader"]
            assert stream_id(result.handshake_hash, role == "client").hex() == expected
    assert initiator.result().tx.hex() == responder.result().rx.hex() == NOISE["clientTx"]
    assert initiator.result().rx.hex() == responder.result().tx.hex() == NOISE["clientRx"]


def captured_handshakes():
    for path in sorted(VECTORS.glob("capture-*.json")):
        for row in json.loads(path.read_text())["rows"]:
            if row.get("event") == "noise-send":
                yield path.stem, row


def test_captured_first_messages_open_with_the_servers_key():
    opened = 0
    for name, row in captured_handshakes():
        if not row["isInitiator"]:
            continue
        noise = bytes.fromhex(row["message"]["hex"])
        for server in (SERVER, RELAY):
            responder = HandshakeResponder(server, os.urandom)
            try:
                payload = responder.receive_untrusted(noise)
            except BadSignature:
                assert name == "capture-blind-relay"
                continue
            sent = row["payload"]
            assert payload.udx == UDXInfo(sent["udx"]["id"])
            assert payload.firewall == sent["firewall"]
            hosts = [(a["host"], a["port"]) for a in sent["addresses4"]]
            assert payload.addresses4 == hosts
            assert (payload.relay_through is not None) == (sent["relayThrough"] is not None)
            assert len(noise) == 96 + len(payload.encode())
            opened += 1
            break
    assert opened == sum(row["isInitiator"] for _, row in captured_handshakes())
    assert opened > 8


def test_a_forged_reply_does_not_spoil_the_true_one():
    initiator, responder = pair()
    responder.receive_untrusted(initiator.send(NoisePayload()))
    reply = responder.send(NoisePayload(error=3))
    with pytest.raises(BadSignature):
        initiator.receive_untrusted(reply[:-1] + bytes([reply[-1] ^ 1]))
    assert not initiator.complete
    assert initiator.receive_untrusted(reply).error == 3


def test_a_message_for_another_key_is_refused():
    initiator, _ = pair()
    message = initiator.send(NoisePayload())
    responder = HandshakeResponder(CLIENT, os.urandom)
    with pytest.raises(BadSignature):
        responder.receive_untrusted(message)
    with pytest.raises(LocalProtocolError):
        _ = responder.remote_public_key


def test_results_before_the_end_are_our_fault():
    initiator, responder = pair()
    for side in (initiator, responder):
        with pytest.raises(LocalProtocolError):
            side.result()
        with pytest.raises(LocalProtocolError):
            _ = side.holepunch_secret
    with pytest.raises(LocalProtocolError):
        responder.send(NoisePayload())


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=250))
def test_any_bytes_are_refused_with_the_remote_error(noise):
    initiator, responder = pair()
    initiator.send(NoisePayload())
    for side in (initiator, responder):
        with pytest.raises(RemoteProtocolError):
            side.receive_untrusted(noise)
