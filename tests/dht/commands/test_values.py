from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.commands.messages import MutableGet, MutablePut, sign_mutable
from hyperlog.dht.commands.router import Reply
from hyperlog.dht.commands.values import MAX_AGE, MAX_STORED_SIZE, Values
from hyperlog.dht.compact import Writer
from hyperlog.dht.constants import (
    IMMUTABLE_PUT,
    MUTABLE_PUT,
    SEQ_REUSED,
    SEQ_TOO_LOW,
)
from hyperlog.dht.errors import RemoteProtocolError
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.rpc.messages import Response

OWNER = KeyPair.from_seed(bytes([1]) * 32)
TARGET = generic_hash(OWNER.public_key)
TOKEN = bytes([8]) * 32
STORED = Reply(None, closer_nodes=True, token=True)


@dataclass
class Request:
    command: int
    target: bytes | None
    value: bytes | None = None
    token: bytes | None = TOKEN
    address: tuple[str, int] = ("10.0.0.1", 1001)


class Node:
    def __init__(self, **options):
        self.values = Values(**options)
        self.now = 0.0

    def put_raw(self, value, target=TARGET, token=TOKEN):
        request = Request(MUTABLE_PUT, target, value, token)
        return self.values.put_mutable_untrusted(request, self.now)

    def put(self, value, seq=0, owner=OWNER):
        signature = sign_mutable(seq, value, owner.secret_key)
        put = MutablePut(owner.public_key, seq, value, signature)
        return self.put_raw(put.encode(), generic_hash(owner.public_key))

    def get(self, seq=0, target=TARGET):
        lowest = Writer().uint(seq).finish()
        value = self.values.get_mutable_untrusted(target, lowest, self.now)
        return value and MutableGet.decode_untrusted(value)

    def put_immutable(self, value, target=None, token=TOKEN):
        target = generic_hash(value) if target is None else target
        request = Request(IMMUTABLE_PUT, target, value, token)
        return self.values.put_immutable_untrusted(request, self.now)

    def get_immutable(self, target):
        return self.values.get_immutable(target, self.now)


@pytest.fixture
def node():
    return Node()


def test_a_mutable_value_comes_back_with_its_number_and_signature(node):
    assert node.get() is None
    assert node.put(b"value", seq=3) == STORED
    assert node.get() == MutableGet(3, b"value", sign_mutable(3, b"value", OWNER.secret_key))


def test_a_get_names_the_lowest_number_that_it_wants(node):
    node.put(b"value", seq=300)
    assert node.get(seq=300).value == b"value"
    assert node.get(seq=301) is None


def test_a_higher_number_replaces_a_lower_one_and_never_the_other_way_round(node):
    node.put(b"old", seq=1)
    assert node.put(b"new", seq=2) == STORED
    assert node.put(b"old", seq=1) == Reply(None, closer_nodes=True, error=SEQ_TOO_LOW)
    assert node.get().value == b"new"


def test_a_number_is_used_for_one_value_only(node):
    node.put(b"value", seq=1)
    assert node.put(b"other", seq=1) == Reply(None, closer_nodes=True, error=SEQ_REUSED)
    assert node.put(b"value", seq=1) == STORED  # which renews it
    assert node.get().value == b"value"


def test_what_the_owner_did_not_sign_is_not_stored(node):
    good = MutablePut(OWNER.public_key, 1, b"value", sign_mutable(1, b"value", OWNER.secret_key))
    other = KeyPair.from_seed(bytes([2]) * 32)
    for change in (
        {"seq": 2},
        {"value": b"other"},
        {"signature": bytes(64)},
        {"signature": sign_mutable(1, b"value", other.secret_key)},
        {"public_key": other.public_key},
    ):
        fields = {"public_key": good.public_key, "seq": 1, "value": b"value"}
        put = MutablePut(**({**fields, "signature": good.signature} | change))
        assert node.put_raw(put.encode()) is None
    assert node.put_raw(good.encode(), target=bytes(32)) is None
    assert len(node.values) == 0
    assert node.put_raw(good.encode()) == STORED


def test_incomplete_requests_get_no_answer(node):
    signature = sign_mutable(1, b"value", OWNER.secret_key)
    good = MutablePut(OWNER.public_key, 1, b"value", signature).encode()
    assert node.put_raw(good, token=None) is None
    assert node.put_raw(None) is None
    assert node.put_raw(good, target=None) is None
    for size in range(len(good)):
        assert node.put_raw(good[:size]) is None
    assert node.put(b"") is None
    for value in (None, b"", b"\xfd\1"):
        with pytest.raises(RemoteProtocolError):
            node.values.get_mutable_untrusted(TARGET, value, 0.0)
    assert node.put_immutable(b"value", token=None) is None
    assert node.put_immutable(b"value", target=bytes(32)) is None
    assert node.values.put_immutable_untrusted(Request(IMMUTABLE_PUT, TARGET), 0.0) is None
    assert len(node.values) == 0


def test_an_immutable_value_is_kept_under_its_hash(node):
    for value in (b"value", b"", bytes(MAX_STORED_SIZE)):
        assert node.get_immutable(generic_hash(value)) is None
        assert node.put_immutable(value) == STORED
        assert node.get_immutable(generic_hash(value)) == value


def test_a_value_fits_into_the_largest_reply(node):
    largest = MAX_STORED_SIZE - 68  # number, length, signature
    assert node.put(bytes(largest + 1)) is None
    assert node.put(bytes(largest)) == STORED
    assert node.put_immutable(bytes(MAX_STORED_SIZE + 1)) is None
    address = ("10.0.0.1", 1)
    stored = node.get().encode()
    assert len(stored) == MAX_STORED_SIZE
    reply = Response(1, address, bytes(32), TOKEN, [address] * 20, 0, stored)
    assert len(reply.encode()) == 1472


def test_values_are_kept_for_about_two_days(node):
    node.put(b"value")
    node.put_immutable(b"value")
    node.now = MAX_AGE * 0.6
    assert node.get().value == b"value"
    assert node.get_immutable(generic_hash(b"value")) == b"value"
    node.now = MAX_AGE * 1.4
    assert node.get() is None
    assert node.get_immutable(generic_hash(b"value")) is None
    assert len(node.values) == node.values.bytes_kept == 0


@pytest.mark.parametrize("limits", [{"max_entries": 100}, {"max_bytes": 50_000}], ids=str)
def test_values_are_bounded_by_number_and_by_bytes(limits):
    node = Node(**limits)
    for number in range(1000):
        value = number.to_bytes(4, "big") * 125
        assert node.put_immutable(value) == STORED
        assert node.get_immutable(generic_hash(value)) == value
        assert len(node.values) <= limits.get("max_entries", 1000)
        assert node.values.bytes_kept <= limits.get("max_bytes", 100 * 532) + 2 * 532
    assert len(node.values) > 40


@given(st.binary(max_size=200))
def test_bytes_of_a_stranger_are_never_stored(value):
    node = Node()
    assert node.put_raw(value) is None
    assert node.put_immutable(value, target=TARGET) is None
    try:
        assert node.values.get_mutable_untrusted(TARGET, value, 0.0) is None
    except RemoteProtocolError:
        pass
    assert len(node.values) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.binary(min_size=1, max_size=3)), max_size=20))
def test_the_number_of_a_value_never_falls(puts):
    node = Node()
    latest = None
    for seq, value in puts:
        reply = node.put(value, seq)
        if latest is None or seq > latest[0] or (seq, value) == latest:
            assert reply == STORED
            latest = seq, value
        else:
            assert reply.error == (SEQ_REUSED if seq == latest[0] else SEQ_TOO_LOW)
        found = node.get()
        assert (found.seq, found.value) == latest
