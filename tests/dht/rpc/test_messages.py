"""dht-rpc packets against the JavaScript encoder, recorded traffic, and any bytes at all."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.errors import InvalidValue, LocalProtocolError, RemoteProtocolError, Truncated
from hyperlog.dht.rpc.messages import (
    FIND_NODE,
    MAX_CLOSER_NODES,
    PING,
    Request,
    Response,
    decode_untrusted,
    is_bare_ping,
    node_id,
    pack_address,
    read_bare_query,
    unpack_address,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
DATAGRAMS = json.loads((VECTORS / "rpc-datagrams.json").read_text())["vectors"]
CAPTURES = sorted(VECTORS.glob("capture-*.json"))


def unhex(text):
    return None if text is None else bytes.fromhex(text)


def address(field):
    return field["host"], field["port"]


def captured_rpc_datagrams(path):
    for row in json.loads(path.read_text())["rows"]:
        if row["kind"] == "datagram":
            data = bytes.fromhex(row["hex"])
            if len(data) > 1 and data[0] in (0x03, 0x13):
                yield row, data


@pytest.mark.parametrize("vector", DATAGRAMS, ids=lambda vector: vector["name"])
def test_the_javascript_datagram_decodes_to_its_fields_and_encodes_back(vector):
    data = bytes.fromhex(vector["hex"])
    fields = vector["fields"]
    message = decode_untrusted(data)

    assert type(message) is (Request if vector["kind"] == "request" else Response)
    assert message.tid == fields["tid"]
    assert message.to == address(fields["to"])
    assert message.id == unhex(fields["id"])
    for name in ("token", "target", "value"):
        if name in fields:
            assert getattr(message, name) == unhex(fields[name])
    for name in ("internal", "command", "error"):
        if name in fields:
            assert getattr(message, name) == fields[name]
    if "closerNodes" in fields:
        assert message.closer_nodes == [address(node) for node in fields["closerNodes"] or []]
    assert message.encode() == data


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_every_captured_rpc_datagram_encodes_back_byte_for_byte(path):
    rows = list(captured_rpc_datagrams(path))
    assert rows
    for row, data in rows:
        message = decode_untrusted(data)
        assert message.encode() == data
        host, port = row["src"].split(":")
        if message.id is not None:
            assert message.id == node_id((host, int(port)))


def test_the_captures_hold_all_668_rpc_datagrams():
    assert sum(1 for path in CAPTURES for _ in captured_rpc_datagrams(path)) == 668


def test_node_ids_are_those_of_the_javascript_node():
    for case in json.loads((VECTORS / "ids-keys-namespaces.json").read_text())["nodeIds"]:
        assert pack_address(address(case)) == bytes.fromhex(case["addrHex"])
        assert unpack_address(bytes.fromhex(case["addrHex"])) == address(case)
        assert node_id(address(case)) == bytes.fromhex(case["idHex"])


addresses = st.tuples(
    st.ip_addresses(v=4).map(str),
    st.integers(0, 0xFFFF),
)
hashes = st.binary(min_size=32, max_size=32)
uints = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
values = st.none() | st.binary(max_size=400)
requests = st.builds(
    Request,
    tid=st.integers(0, 0xFFFF),
    to=addresses,
    command=uints,
    internal=st.booleans(),
    id=st.none() | hashes,
    token=st.none() | hashes,
    target=st.none() | hashes,
    value=values,
)
responses = st.builds(
    Response,
    tid=st.integers(0, 0xFFFF),
    to=addresses,
    id=st.none() | hashes,
    token=st.none() | hashes,
    closer_nodes=st.lists(addresses, max_size=MAX_CLOSER_NODES),
    error=uints,
    value=values,
)
messages = requests | responses


@given(messages)
def test_decoding_gives_back_what_was_encoded(message):
    assert decode_untrusted(message.encode()) == message


@given(messages, st.binary(max_size=20))
def test_bytes_behind_the_last_field_are_ignored(message, rest):
    assert decode_untrusted(message.encode() + rest) == message


@given(messages)
def test_every_cut_of_a_message_is_refused(message):
    data = message.encode()
    for size in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            decode_untrusted(data[:size])


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"\x13\x1f" + tail))
def test_any_bytes_parse_or_raise_a_remote_protocol_error(data):
    try:
        message = decode_untrusted(data)
    except RemoteProtocolError:
        return
    assert decode_untrusted(message.encode()) == message


@given(st.integers(0, 255), st.sampled_from([0x03, 0x13]), st.binary(min_size=8, max_size=300))
def test_any_flags_parse_or_raise_a_remote_protocol_error(flags, kind, tail):
    try:
        decode_untrusted(bytes((kind, flags)) + tail)
    except RemoteProtocolError:
        pass


def test_flags_and_numbers_may_use_a_longer_form_than_needed():
    data = bytes.fromhex("03 fd1000 0700 7f00000101c2 fd0400 fe02000000 aabb")
    assert decode_untrusted(data) == Request(7, ("127.0.0.1", 0xC201), 4, value=b"\xaa\xbb")


def test_no_value_and_an_empty_value_stay_apart():
    without = Request(1, ("10.0.0.1", 2), 3)
    empty = Request(1, ("10.0.0.1", 2), 3, value=b"")
    assert decode_untrusted(without.encode()).value is None
    assert decode_untrusted(empty.encode()).value == b""


def test_a_promise_of_a_huge_value_is_refused_without_reading_it():
    data = Response(1, ("10.0.0.1", 2)).encode()[:1] + b"\x10" + bytes(8) + b"\xff" + b"\xff" * 8
    with pytest.raises(Truncated):
        decode_untrusted(data)


def test_more_closer_nodes_than_honest_nodes_send_are_refused():
    count = MAX_CLOSER_NODES + 1
    data = b"\x13\x04" + bytes(8) + bytes((count,)) + bytes(6 * count)
    with pytest.raises(InvalidValue):
        decode_untrusted(data)
    with pytest.raises(LocalProtocolError):
        Response(1, ("10.0.0.1", 2), closer_nodes=[("10.0.0.1", 2)] * count).encode()


@pytest.mark.parametrize("kind", [0x00, 0x02, 0x04, 0x12, 0x14, 0x23, 0xFF])
def test_other_kinds_and_versions_are_refused(kind):
    with pytest.raises(InvalidValue):
        decode_untrusted(bytes((kind,)) + bytes(20))


@pytest.mark.parametrize(
    "message",
    [
        Request(0x10000, ("10.0.0.1", 2), 0),
        Request(-1, ("10.0.0.1", 2), 0),
        Request(1, ("example", 2), 0),
        Request(1, ("10.0.0.1", 0x10000), 0),
        Request(1, ("10.0.0.1", 2), -1),
        Request(1, ("10.0.0.1", 2), 0, token=bytes(31)),
        Request(1, ("10.0.0.1", 2), 0, target=bytes(33)),
        Response(0x10000, ("10.0.0.1", 2)),
        Response(1, ("::1", 2)),
    ],
)
def test_fields_that_do_not_fit_raise_a_local_protocol_error(message):
    with pytest.raises(LocalProtocolError):
        message.encode()


@given(st.binary(max_size=14) | st.binary(min_size=8, max_size=9).map(lambda b: b"\x03\x04" + b))
def test_a_bare_ping_is_one_by_the_whole_decoder_too(data):
    if is_bare_ping(data):
        packet = decode_untrusted(data)
        assert packet == Request(packet.tid, packet.to, PING, internal=True)


@given(
    st.binary(max_size=60)
    | st.tuples(
        st.sampled_from([8, 12, 24, 28, 9, 10, 40]),
        st.binary(min_size=8, max_size=8),
        st.integers(0, 255),
        st.binary(max_size=40),
        st.binary(max_size=300),
    ).map(lambda t: bytes((3, t[0])) + t[1] + bytes((t[2],)) + t[3] + t[4])
)
def test_a_bare_query_is_one_by_the_whole_decoder_too(data):
    query = read_bare_query(data)
    if query is not None:
        packet = decode_untrusted(data)
        command, internal, target, value = query
        assert packet == Request(
            packet.tid, packet.to, command, internal, target=target, value=value
        )


def test_what_nodes_without_an_id_search_by_is_a_bare_query():
    address, target = ("10.0.0.1", 65535), bytes(range(32))
    for command, internal, value in (
        (FIND_NODE, True, None),
        (3, False, None),
        (0xFC, False, b""),
        (7, False, b"v" * 0xFC),
    ):
        request = Request(0xFFFF, address, command, internal, target=target, value=value)
        assert read_bare_query(request.encode()) == (command, internal, target, value)
        assert read_bare_query(request.encode()[:-1]) is None
    for other in (
        Request(1, address, 3, id=bytes(32), target=target),
        Request(1, address, 3, token=bytes(32), target=target),
        Request(1, address, 3, value=bytes(40)),
        Request(1, address, 0xFD, target=target),
        Request(1, address, 3, target=target, value=bytes(0xFD)),
        Response(1, address, value=bytes(40)),
    ):
        assert read_bare_query(other.encode()) is None


def test_what_nodes_without_an_id_send_is_a_bare_ping():
    address = ("10.0.0.1", 65535)
    assert is_bare_ping(Request(0xFFFF, address, PING, internal=True).encode())
    for other in (
        Request(1, address, PING, internal=True, id=bytes(32)),
        Request(1, address, PING, internal=True, value=b""),
        Request(1, address, FIND_NODE, internal=True),
        Request(1, address, PING),
        Response(1, address),
    ):
        assert not is_bare_ping(other.encode())
