import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.commands import messages
from hyperlog.dht.commands.messages import (
    Announce,
    Handshake,
    Holepunch,
    HolepunchInfo,
    HolepunchRelay,
    LookupReply,
    MutableGet,
    MutablePut,
    MutableSignable,
    NoisePayload,
    Peer,
    PluginRequest,
    RelayThrough,
    UDXInfo,
    announce_signable,
    mutable_signable,
    sign_announce,
    sign_mutable,
    verify_announce,
    verify_mutable,
)
from hyperlog.dht.constants import (
    ANNOUNCE,
    FIND_PEER,
    LOOKUP,
    MUTABLE_GET,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
    UNANNOUNCE,
)
from hyperlog.dht.constants import MUTABLE_PUT as MUTABLE_PUT_COMMAND
from hyperlog.dht.errors import LocalProtocolError, RemoteProtocolError
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.rpc.messages import Request, decode_untrusted, node_id

VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
SIGNATURES = json.loads((VECTORS / "signatures.json").read_text())
# capture-errors is left out: its requests are wrong on purpose
CAPTURES = sorted(set(VECTORS.glob("capture-*.json")) - {VECTORS / "capture-errors.json"})

STRUCTS = {
    "handshake": Handshake,
    "noisePayload": NoisePayload,
    "holepunch": Holepunch,
    "peer": Peer,
    "lookupRawReply": LookupReply,
    "announce": Announce,
    "mutableSignable": MutableSignable,
    "mutablePutRequest": MutablePut,
    "mutableGetResponse": MutableGet,
    "pluginRequest": PluginRequest,
}
NESTED = {
    "holepunch": HolepunchInfo,
    "udx": UDXInfo,
    "relayThrough": RelayThrough,
    "peer": Peer,
}


def from_js(value, name=None):
    """The Python value of what a JavaScript decoder returned."""
    if isinstance(value, list):
        return [from_js(item, name) for item in value]
    if not isinstance(value, dict):
        return value
    if "hex" in value:
        return bytes.fromhex(value["hex"])
    if "host" in value:
        address = value["host"], value["port"]
        if ":" in address[0]:
            address = re.sub("(:0)+:", "::", address[0]), address[1]
        return address
    if name == "secretStream":
        return True
    if name == "relays":
        return HolepunchRelay(from_js(value["relayAddress"]), from_js(value["peerAddress"]))
    if name == "peers":
        return struct_from_js(Peer, value)
    return struct_from_js(NESTED[name], value)


def struct_from_js(struct, value):
    fields = {}
    for key, item in value.items():
        if key == "version" and struct in (UDXInfo, RelayThrough):
            continue
        snake = re.sub("([A-Z])", lambda match: "_" + match[1].lower(), key)
        fields[snake] = from_js(item, key)
    for name in ("addresses4", "addresses6"):
        if name in fields and fields[name] is None:
            fields[name] = []
    if "secret_stream" in fields:
        fields["secret_stream"] = fields["secret_stream"] is True
    return struct(**fields)


def vectors():
    for index, vector in enumerate(json.loads((VECTORS / "messages.json").read_text())["hyperdht"]):
        if vector["message"] in STRUCTS:
            note = vector.get("note", "").replace(" ", "-")
            yield pytest.param(vector, id=f"{index}-{vector['message']}-{note}")


@pytest.mark.parametrize("vector", list(vectors()))
def test_message_of_the_vectors(vector):
    struct, wire = STRUCTS[vector["message"]], bytes.fromhex(vector["hex"])
    expected = struct_from_js(struct, vector["decoded"])
    assert struct.decode_untrusted(wire) == expected
    assert expected.encode() == wire


# Captures


def captured_requests_and_replies():
    """(command, is_request, message, destination) of every user command in the captures."""
    for path in CAPTURES:
        commands = {}
        for row in json.loads(path.read_text())["rows"]:
            if row["kind"] != "datagram" or not row.get("what", "").startswith(("REQ ", "RES ")):
                continue
            message = decode_untrusted(bytes.fromhex(row["hex"]))
            if isinstance(message, Request):
                if message.internal:
                    commands.pop((row["src"], message.tid), None)
                    continue
                commands[row["src"], message.tid] = message.command
                yield message.command, True, message, row["dst"]
            elif (row["dst"], message.tid) in commands:
                yield commands[row["dst"], message.tid], False, message, row["dst"]


CAPTURED = list(captured_requests_and_replies())
CAPTURED_STRUCTS = {
    (PEER_HANDSHAKE, True): Handshake,
    (PEER_HANDSHAKE, False): Handshake,
    (PEER_HOLEPUNCH, True): Holepunch,
    (PEER_HOLEPUNCH, False): Holepunch,
    (FIND_PEER, False): Peer,
    (LOOKUP, False): LookupReply,
    (ANNOUNCE, True): Announce,
    (UNANNOUNCE, True): Announce,
    (MUTABLE_PUT_COMMAND, True): MutablePut,
    (MUTABLE_GET, False): MutableGet,
}


@pytest.mark.parametrize(("command", "is_request"), list(CAPTURED_STRUCTS))
def test_captured_values_encode_to_the_same_bytes(command, is_request):
    struct = CAPTURED_STRUCTS[command, is_request]
    values = [
        message.value
        for number, request, message, _ in CAPTURED
        if (number, request) == (command, is_request) and message.value
    ]
    assert values
    for value in values:
        assert struct.decode_untrusted(value).encode() == value


def test_captured_announcements_verify():
    count = 0
    for command, is_request, message, destination in CAPTURED:
        if command not in (ANNOUNCE, UNANNOUNCE) or not is_request:
            continue
        announce = Announce.decode_untrusted(message.value)
        host, port = destination.split(":")
        facts = {
            "target": message.target,
            "token": message.token,
            "node_id": node_id((host, int(port))),
        }
        assert verify_announce(announce, command=command, **facts)
        other = UNANNOUNCE if command == ANNOUNCE else ANNOUNCE
        assert not verify_announce(announce, command=other, **facts)
        assert not verify_announce(announce, command=command, **facts | {"node_id": bytes(32)})
        count += 1
    assert count == 37


def test_captured_mutable_values_verify():
    puts = [
        MutablePut.decode_untrusted(message.value)
        for command, is_request, message, _ in CAPTURED
        if command == MUTABLE_PUT_COMMAND and is_request
    ]
    assert puts
    for put in puts:
        assert verify_mutable(put.signature, put.seq, put.value, put.public_key)
        assert not verify_mutable(put.signature, put.seq + 1, put.value, put.public_key)


# Signatures


@pytest.mark.parametrize("vector", SIGNATURES["announce"], ids=lambda v: v["kind"])
def test_announce_signature_of_the_vectors(vector):
    command = ANNOUNCE if vector["kind"] == "announce" else UNANNOUNCE
    key_pair = KeyPair.from_seed(bytes.fromhex(vector["seed"]))
    facts = {
        "command": command,
        "target": bytes.fromhex(vector["target"]),
        "token": bytes.fromhex(vector["token"]),
        "node_id": bytes.fromhex(vector["nodeId"]),
    }
    announce = Announce.decode_untrusted(bytes.fromhex(vector["value"]))
    assert announce.peer.encode().hex() == vector["peerEncoded"]
    assert announce_signable(announce, **facts).hex() == vector["signable"]
    assert verify_announce(announce, **facts)
    announce.signature = None
    assert not verify_announce(announce, **facts)
    sign_announce(announce, secret_key=key_pair.secret_key, **facts)
    assert announce.signature.hex() == vector["signature"]
    assert announce.encode().hex() == vector["value"]


@pytest.mark.parametrize("vector", SIGNATURES["mutable"], ids=lambda v: f"seq-{v['seq']}")
def test_mutable_signature_of_the_vectors(vector):
    key_pair = KeyPair.from_seed(bytes.fromhex(vector["seed"]))
    value = bytes.fromhex(vector["value"])
    assert MutableSignable(vector["seq"], value).encode().hex() == vector["signableEncoded"]
    signature = sign_mutable(vector["seq"], value, key_pair.secret_key)
    assert signature.hex() == vector["signature"]
    assert verify_mutable(signature, vector["seq"], value, key_pair.public_key)
    assert not verify_mutable(signature, vector["seq"], value + b"x", key_pair.public_key)
    put = MutablePut(key_pair.public_key, vector["seq"], value, signature)
    assert put.encode().hex() == vector["putRequest"]
    assert len(mutable_signable(vector["seq"], value)) == 64


def test_an_announcement_without_a_peer_cannot_be_signed():
    facts = {"command": ANNOUNCE, "target": b"", "token": b"", "node_id": b""}
    with pytest.raises(LocalProtocolError):
        sign_announce(Announce(refresh=bytes(32)), secret_key=bytes(64), **facts)
    assert not verify_announce(Announce(signature=bytes(64)), **facts)


# Rules


def test_another_payload_version_is_reported_and_nothing_more_is_read():
    assert NoisePayload.decode_untrusted(b"\x02\xff\xff") == NoisePayload(version=2)
    with pytest.raises(LocalProtocolError):
        NoisePayload(version=2).encode()


def test_a_lookup_reply_of_an_older_node_has_no_bump():
    assert LookupReply.decode_untrusted(b"\x00") == LookupReply([], 0)


def test_secrets_do_not_show_in_the_repr():
    assert "9" * 8 not in repr(RelayThrough(bytes(32), b"9" * 32))


@pytest.mark.parametrize(
    "message",
    [
        Peer(b"short"),
        Announce(refresh=b"short"),
        MutableGet(1, b"", b"short"),
        Handshake(0, b"", ("::1", 1)),
        Holepunch(-1, 0, b""),
    ],
    ids=lambda message: type(message).__name__,
)
def test_values_that_do_not_fit_are_our_fault(message):
    with pytest.raises(LocalProtocolError):
        message.encode()


# Properties

uints = st.integers(0, 2**64 - 1)
keys = st.binary(min_size=32, max_size=32)
signatures = st.binary(min_size=64, max_size=64)
ports = st.integers(0, 65535)
addresses = st.tuples(st.ip_addresses(v=4).map(str), ports)
addresses6 = st.tuples(st.ip_addresses(v=6).map(str), ports)
optional = st.none() | addresses
peers = st.builds(Peer, keys, st.lists(addresses, max_size=4))
buffers = st.binary(max_size=300)
SAMPLES = {
    Handshake: st.builds(Handshake, uints, buffers, optional, optional),
    Holepunch: st.builds(Holepunch, uints, uints, buffers, optional),
    NoisePayload: st.builds(
        NoisePayload,
        version=st.just(1),
        error=uints,
        firewall=uints,
        holepunch=st.none()
        | st.builds(
            HolepunchInfo,
            uints,
            st.lists(st.builds(HolepunchRelay, addresses, addresses), max_size=3),
        ),
        addresses4=st.lists(addresses, max_size=3),
        addresses6=st.lists(addresses6, max_size=3),
        udx=st.none() | st.builds(UDXInfo, st.integers(0, 2**32 - 1), uints, st.booleans()),
        secret_stream=st.booleans(),
        relay_through=st.none() | st.builds(RelayThrough, keys, keys),
        relay_addresses=st.none() | st.lists(addresses, max_size=3),
    ),
    Peer: peers,
    LookupReply: st.builds(LookupReply, st.lists(peers, max_size=3), uints),
    Announce: st.builds(
        Announce, st.none() | peers, st.none() | keys, st.none() | signatures, uints
    ),
    MutableSignable: st.builds(MutableSignable, uints, buffers),
    MutablePut: st.builds(MutablePut, keys, uints, buffers, signatures),
    MutableGet: st.builds(MutableGet, uints, buffers, signatures),
    PluginRequest: st.builds(
        PluginRequest, st.text(max_size=10), uints, uints, st.none() | buffers
    ),
}


def test_every_struct_has_a_property_test():
    with_decoder = {item for item in vars(messages).values() if hasattr(item, "decode_untrusted")}
    assert with_decoder == set(SAMPLES) == set(STRUCTS.values())


@given(st.one_of(SAMPLES.values()), st.data())
def test_messages_survive_the_wire_and_their_beginnings_do_not_crash(message, data):
    struct, wire = type(message), message.encode()
    assert struct.decode_untrusted(wire) == message
    assert struct.decode_untrusted(wire + b"later field") == message or struct is LookupReply
    cut = wire[: data.draw(st.integers(0, len(wire) - 1))]
    try:
        struct.decode_untrusted(cut)
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize("number", [2**32, 2**64 - 1])
def test_a_stream_id_that_no_packet_can_carry_is_refused(number):
    wire = NoisePayload(udx=UDXInfo(id=number)).encode()
    with pytest.raises(RemoteProtocolError, match="no UDX stream id"):
        NoisePayload.decode_untrusted(wire)


@given(st.sampled_from(list(SAMPLES)), st.binary(max_size=200))
def test_any_bytes_decode_or_raise_the_remote_error(struct, data):
    try:
        struct.decode_untrusted(data)
    except RemoteProtocolError:
        pass
