import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.commands.announcements import Announcements
from hyperlog.dht.commands.messages import Announce, LookupReply, Peer, sign_announce
from hyperlog.dht.commands.router import Router
from hyperlog.dht.constants import ANNOUNCE, UNANNOUNCE
from hyperlog.dht.keys import KeyPair, generic_hash

PEER = KeyPair.from_seed(bytes([1]) * 32)
OWN_TARGET = generic_hash(PEER.public_key)
TOPIC = bytes([7]) * 32
TOKEN = bytes([8]) * 32
NODE_ID = bytes([9]) * 32
SENDER = ("10.0.0.1", 1001)
UNIX_TIME = 1_800_000_000.0


@dataclass
class Request:
    command: int
    target: bytes | None
    value: bytes | None = None
    token: bytes | None = TOKEN
    address: tuple[str, int] = SENDER


class Node:
    def __init__(self, **options):
        self.router = Router()
        self.announcements = Announcements(self.router, rng=random.Random(1), **options)
        self.now = 0.0

    def ask(self, command, target, **fields):
        return self.announcements.receive_untrusted(
            Request(command, target, **fields),
            NODE_ID,
            now=self.now,
            unix_time=UNIX_TIME + self.now,
        )

    def find(self, target):
        record = self.announcements.find_peer(target, self.now)
        return record and Peer.decode_untrusted(record)

    def lookup(self, target):
        records = self.announcements.lookup(target, self.now)
        return records and LookupReply.decode_untrusted(records)

    def announce(self, target, key_pair=PEER, command=ANNOUNCE, **fields):
        announce = Announce(Peer(key_pair.public_key, fields.pop("relay_addresses", [])), **fields)
        signed(announce, target, key_pair, command)
        return self.ask(command, target, value=announce.encode())

    def refresh(self, link):
        return self.ask(ANNOUNCE, TOPIC, value=Announce(refresh=link).encode())


def signed(announce, target, key_pair=PEER, command=ANNOUNCE, **facts):
    facts = {"token": TOKEN, "node_id": NODE_ID} | facts
    sign_announce(announce, command=command, target=target, secret_key=key_pair.secret_key, **facts)
    return announce


def peers(count):
    return [KeyPair.from_seed(i.to_bytes(32, "little")) for i in range(count)]


@pytest.fixture
def node():
    return Node()


def test_nothing_is_known_at_first(node):
    assert node.find(OWN_TARGET) is None
    assert node.lookup(TOPIC) is None


def test_a_peer_under_its_own_key_is_found_and_routed_to(node):
    assert node.announce(OWN_TARGET)
    assert node.find(OWN_TARGET) == Peer(PEER.public_key, [])
    assert node.lookup(OWN_TARGET) == LookupReply([Peer(PEER.public_key, [])])
    assert node.router.get(OWN_TARGET, 0.0).relay == SENDER
    assert node.announce(OWN_TARGET, command=UNANNOUNCE)
    assert node.find(OWN_TARGET) is None


def test_peers_under_a_topic_are_looked_up(node):
    announced = peers(3)
    for key_pair in announced:
        assert node.announce(TOPIC, key_pair, relay_addresses=[SENDER])
    found = node.lookup(TOPIC).peers
    assert {peer.public_key for peer in found} == {pair.public_key for pair in announced}
    assert found[0].relay_addresses == [SENDER]
    assert node.find(TOPIC) is None
    node.announce(TOPIC, announced[0], command=UNANNOUNCE)
    assert len(node.lookup(TOPIC).peers) == 2


def test_a_lookup_gets_at_most_twenty_peers(node):
    for key_pair in peers(30):
        node.announce(TOPIC, key_pair)
    assert len({peer.public_key for peer in node.lookup(TOPIC).peers}) == 20


def test_relay_addresses_are_cut_to_three_after_the_signature_is_checked(node):
    relays = [("10.0.0.9", port) for port in range(1, 7)]
    assert node.announce(OWN_TARGET, relay_addresses=relays)
    assert node.find(OWN_TARGET).relay_addresses == relays[:3]


def test_announcements_signed_for_something_else_are_not_taken(node):
    for command, other in ((ANNOUNCE, UNANNOUNCE), (UNANNOUNCE, ANNOUNCE)):
        for announce in (
            signed(Announce(Peer(PEER.public_key)), TOPIC, command=command),
            signed(Announce(Peer(PEER.public_key)), OWN_TARGET, command=command, token=bytes(32)),
            signed(Announce(Peer(PEER.public_key)), OWN_TARGET, command=command, node_id=bytes(32)),
            signed(Announce(Peer(PEER.public_key)), OWN_TARGET, command=other),
            signed(Announce(Peer(PEER.public_key)), OWN_TARGET, peers(1)[0], command=command),
            Announce(Peer(PEER.public_key)),
        ):
            assert not node.ask(command, OWN_TARGET, value=announce.encode())
    assert node.find(OWN_TARGET) is None


def test_incomplete_requests_are_not_taken(node):
    good = signed(Announce(Peer(PEER.public_key)), OWN_TARGET).encode()
    assert not node.ask(ANNOUNCE, OWN_TARGET, value=good, token=None)
    assert not node.ask(ANNOUNCE, OWN_TARGET, value=None)
    assert not node.ask(ANNOUNCE, None, value=good)
    for size in range(len(good)):
        assert not node.ask(ANNOUNCE, OWN_TARGET, value=good[:size])
    assert not node.ask(ANNOUNCE, OWN_TARGET, value=Announce().encode())
    assert not node.ask(UNANNOUNCE, OWN_TARGET, value=Announce(refresh=bytes(32)).encode())
    assert node.find(OWN_TARGET) is None


@given(st.sampled_from([ANNOUNCE, UNANNOUNCE]), st.binary(max_size=200))
def test_bytes_of_a_stranger_are_never_taken(command, value):
    node = Node()
    assert not node.ask(command, OWN_TARGET, value=value)
    assert node.lookup(OWN_TARGET) is None


def test_records_are_forgotten_unless_announced_again(node):
    node.announce(OWN_TARGET)
    node.announce(TOPIC)
    for node.now in (700.0, 1400.0, 2100.0):
        node.announce(OWN_TARGET)
    assert node.lookup(TOPIC) is None
    assert node.find(OWN_TARGET) is not None
    node.now += 1600.0
    assert node.find(OWN_TARGET) is None


def test_the_largest_bump_that_is_not_in_the_future_counts(node):
    now_ms = int(UNIX_TIME * 1000)
    for bump, expected in (
        (0, 0),
        (now_ms - 5, now_ms - 5),
        (now_ms - 9, now_ms - 5),
        (now_ms + 60_001, now_ms - 5),
        (now_ms + 60_000, now_ms + 60_000),
    ):
        node.announce(TOPIC, bump=bump)
        assert node.lookup(TOPIC).bump == expected


@pytest.mark.parametrize("target", [OWN_TARGET, TOPIC], ids=["own key", "topic"])
def test_a_hash_chain_renews_without_signatures(node, target):
    last = bytes([5]) * 32
    middle = generic_hash(last)
    first = generic_hash(middle)
    node.announce(target, refresh=first)
    node.now = 700.0
    assert not node.refresh(bytes(32))
    assert not node.refresh(first)  # known to everybody who saw the announcement
    assert node.refresh(middle)
    assert not node.refresh(middle)
    node.now = 1400.0
    assert node.refresh(last)
    node.now = 2100.0
    assert (node.find if target == OWN_TARGET else node.lookup)(target) is not None


def test_a_local_servers_record_is_not_replaced(node):
    node.router.add_local(OWN_TARGET, Peer(PEER.public_key).encode())
    assert node.announce(OWN_TARGET, relay_addresses=[SENDER])
    assert node.router.get(OWN_TARGET, 0.0).relay is None
    assert node.find(OWN_TARGET).relay_addresses == []


def test_records_are_bounded():
    node = Node(max_entries=10)
    for key_pair in peers(50):
        node.announce(TOPIC, key_pair)
    assert len(node.lookup(TOPIC).peers) <= 10
