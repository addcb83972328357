import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.compact import Reader, Writer
from hyperlog.dht.errors import (
    InvalidValue,
    LocalProtocolError,
    RemoteProtocolError,
    Truncated,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "dht"
PRIMITIVES = json.loads((VECTORS / "primitives.json").read_text())["vectors"]
METHODS = {
    "uint": "uint",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "int": "signed",
    "string": "string",
    "buffer": "buffer",
    "optionalBuffer": "buffer",
    "bool": "boolean",
    "ipv4Address": "ipv4_address",
    "ipv6Address": "ipv6_address",
    "fixed32": "fixed",
    "fixed64": "fixed",
}


def from_js(value):
    if isinstance(value, list):
        return [from_js(item) for item in value]
    if isinstance(value, dict) and "hex" in value:
        return bytes.fromhex(value["hex"])
    if isinstance(value, dict):
        return value["host"], value["port"]
    return b"" if value is None else value


def read_whole(method, data, *arguments):
    reader = Reader(data)
    value = getattr(reader, method)(*arguments)
    assert reader.remaining == 0
    return value


@pytest.mark.parametrize(
    "vector", PRIMITIVES, ids=[f"{i}-{v['codec']}" for i, v in enumerate(PRIMITIVES)]
)
def test_primitive_of_the_vectors(vector):
    codec, wire, value = vector["codec"], bytes.fromhex(vector["hex"]), from_js(vector["value"])
    if codec == "array(ipv4Address)":
        writer, reader = Writer(), Reader(wire)
        assert writer.array(value, writer.ipv4_address).finish() == wire
        assert reader.array(reader.ipv4_address, 6) == value
        return
    method = METHODS[codec]
    assert getattr(Writer(), method)(value).finish() == wire
    arguments = (len(wire),) if method == "fixed" else ()
    assert read_whole(method, wire, *arguments) == value
    for end in range(len(wire)):
        with pytest.raises(Truncated):
            read_whole(method, wire[:end], *arguments)


uints = st.integers(0, 2**64 - 1)
ports = st.integers(0, 65535)
FIELDS = {
    "uint": uints,
    "uint8": st.integers(0, 255),
    "uint16": ports,
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": uints,
    "signed": st.integers(-(2**63), 2**63 - 1),
    "boolean": st.booleans(),
    "buffer": st.binary(max_size=300),
    "string": st.text(max_size=100),
    "ipv4_address": st.tuples(st.ip_addresses(v=4).map(str), ports),
    "ipv6_address": st.tuples(st.ip_addresses(v=6).map(str), ports),
}
field_values = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda name: FIELDS[name].map(lambda value: (name, value))
)


@given(st.lists(field_values, max_size=8))
def test_fields_are_read_as_they_were_written(fields):
    writer = Writer()
    for name, value in fields:
        assert getattr(writer, name)(value) is writer
    reader = Reader(memoryview(writer.finish()))
    assert [(name, getattr(reader, name)()) for name, _ in fields] == fields
    assert reader.remaining == 0


@given(st.sampled_from([*sorted(FIELDS), "array"]), st.binary(max_size=40))
def test_any_bytes_are_read_or_raise_the_remote_error(name, data):
    reader = Reader(data)
    try:
        if name == "array":
            reader.array(reader.ipv4_address, 6)
        else:
            getattr(reader, name)()
    except RemoteProtocolError:
        pass
    else:
        assert 0 <= reader.remaining <= len(data)


def test_reading_stops_at_the_end_given():
    reader = Reader(b"abcdef", 1, 4)
    assert reader.remaining == 3
    assert reader.fixed(3) == b"bcd"
    with pytest.raises(Truncated):
        reader.uint8()


def test_over_long_integers_are_accepted():
    assert Reader(b"\xfd\x01\x00").uint() == 1
    assert Reader(b"\xff" + b"\x01" + bytes(7)).uint() == 1


def test_a_length_beyond_the_end_is_truncated_whatever_its_size():
    with pytest.raises(Truncated):
        Reader(b"\xff" + b"\xff" * 8).buffer()
    with pytest.raises(InvalidValue):
        Reader(b"\xfe" + b"\xff" * 4).array(lambda: None)
    with pytest.raises(Truncated):
        Reader(b"\x03" + bytes(17)).array(lambda: None, 6)


def test_text_that_is_not_utf8_is_invalid():
    with pytest.raises(InvalidValue):
        Reader(b"\x02\xc3\x28").string()


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("uint", -1),
        ("uint", 2**64),
        ("uint8", 256),
        ("uint16", -1),
        ("uint32", 2**32),
        ("uint64", 2**64),
        ("signed", 2**63),
        ("ipv4_address", ("::1", 1)),
        ("ipv4_address", ("host.example", 1)),
        ("ipv4_address", ("1.2.3.4", 65536)),
        ("ipv6_address", ("1.2.3.4", 1)),
    ],
)
def test_values_that_do_not_fit_are_our_fault(method, value):
    with pytest.raises(LocalProtocolError):
        getattr(Writer(), method)(value)


def test_fixed_fields_insist_on_their_size():
    assert Writer().fixed(b"abc", 3).finish() == b"abc"
    with pytest.raises(LocalProtocolError):
        Writer().fixed(b"abc", 4)
