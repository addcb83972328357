import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.errors import InvalidValue, LocalProtocolError, RemoteProtocolError, Truncated
from hyperlog.dht.udx.packet import (
    DATA,
    END,
    MESSAGE,
    SACK,
    Flags,
    Packet,
    decode_untrusted,
    encode,
    sack_blocks_untrusted,
    stream_id_untrusted,
)

VECTORS = Path(__file__).parents[2] / "vectors"
RECORDED = [
    pytest.param(packet, id=f"{name}-{number}")
    for file in ("udx-raw.json", "udx-streams.json")
    for name, scenario in json.loads((VECTORS / file).read_text())["scenarios"].items()
    for number, packet in enumerate(scenario["packets"])
    if "hex" in packet
]

u32 = st.integers(0, 2**32 - 1)
plain = st.builds(
    Packet,
    flags=st.integers(0, 255).filter(lambda flags: not flags & SACK),
    stream_id=u32,
    rwnd=u32,
    seq=u32,
    ack=u32,
    data_offset=st.integers(0, 255),
    payload=st.binary(max_size=1500),
)


@st.composite
def with_sacks(draw):
    sacks = draw(st.lists(st.tuples(u32, u32), max_size=31))
    payload = draw(st.binary(min_size=1, max_size=100)) if sacks and draw(st.booleans()) else b""
    flags = SACK | (DATA if payload else 0)
    offset = 8 * len(sacks) if payload else 0
    return Packet(flags, *(draw(u32) for _ in range(4)), offset, sacks, payload)


@pytest.mark.parametrize("recorded", RECORDED)
def test_a_recorded_packet_decodes_to_its_fields_and_encodes_to_its_bytes(recorded):
    data = bytes.fromhex(recorded["hex"])
    expected = recorded["decoded"]
    if expected.get("notUdx"):
        with pytest.raises(RemoteProtocolError):
            decode_untrusted(data)
        return
    packet = decode_untrusted(data)
    assert packet.flags == expected["flagsByte"]
    assert packet.data_offset == expected["dataOffset"]
    assert packet.stream_id == expected["id"] == stream_id_untrusted(data)
    assert (packet.rwnd, packet.seq, packet.ack) == (
        expected["rwnd"],
        expected["seq"],
        expected["ack"],
    )
    assert packet.sacks == [tuple(block) for block in expected.get("sacks", [])]
    assert len(packet.payload) == expected["payloadLength"]
    assert encode(packet) == data


@given(plain)
def test_decode_gives_back_what_encode_took(packet):
    assert decode_untrusted(encode(packet)) == packet


@given(with_sacks())
def test_decode_gives_back_sack_blocks_with_and_without_payload(packet):
    assert decode_untrusted(encode(packet)) == packet


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_a_remote_protocol_error(data):
    for candidate in (data, b"\xff\x01" + data, memoryview(b"\xff\x01\x05" + data)):
        try:
            packet = decode_untrusted(candidate)
        except RemoteProtocolError:
            continue
        assert packet.stream_id == stream_id_untrusted(candidate)


@given(plain)
def test_every_cut_of_a_packet_decodes_or_raises_a_remote_protocol_error(packet):
    data = encode(packet)
    for size in range(20):
        with pytest.raises(Truncated):
            decode_untrusted(data[:size])
    for size in range(20, min(20 + packet.data_offset, len(data))):
        with pytest.raises(Truncated):
            decode_untrusted(data[:size])


def test_sack_blocks_end_at_the_data_offset_only_when_a_payload_follows():
    area = b"".join(n.to_bytes(4, "little") for n in (1, 2, 3, 4))
    header = encode(Packet(SACK, 1, 2, 3, 4))
    assert sack_blocks_untrusted(header + area, 0) == [(1, 2), (3, 4)]
    assert sack_blocks_untrusted(header + area, 8) == [(1, 2)]
    assert sack_blocks_untrusted(header + area, 16) == [(1, 2), (3, 4)]
    assert sack_blocks_untrusted(header + area + b"abc", 0) == [(1, 2), (3, 4)]


def test_a_huge_sack_area_is_read_only_in_part():
    header = encode(Packet(SACK, 1, 2, 3, 4))
    assert len(sack_blocks_untrusted(header + bytes(60_000), 0)) == 256


def test_other_magic_and_version_are_no_udx():
    for start in (b"\xfe\x01", b"\xff\x02", b"\x03\x01"):
        with pytest.raises(InvalidValue):
            decode_untrusted(start + bytes(18))
        assert stream_id_untrusted(start + bytes(18)) is None


@pytest.mark.parametrize(
    "packet",
    [
        Packet(DATA, 1, 0, 0, 0, sacks=[(1, 2)]),
        Packet(SACK, 1, 0, 0, 0, data_offset=9, sacks=[(1, 2)]),
        Packet(SACK | DATA, 1, 0, 0, 0, data_offset=0, sacks=[(1, 2)], payload=b"x"),
    ],
)
def test_encode_refuses_what_would_be_read_differently(packet):
    with pytest.raises(LocalProtocolError):
        encode(packet)


def test_flags_have_names():
    assert Flags(DATA | END) == Flags.DATA | Flags.END
    assert Flags(MESSAGE).name == "MESSAGE"
