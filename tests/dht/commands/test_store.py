import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperlog.dht.commands.messages import Announce, LookupReply, Peer, sign_announce
from hyperlog.dht.commands.router import Relay, Reply, ReplyTo, Router
from hyperlog.dht.commands.store import SERVED, Store
from hyperlog.dht.constants import (
    ANNOUNCE,
    FIND_PEER,
    LOOKUP,
    MUTABLE_GET,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
    UNANNOUNCE,
)
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.rpc.messages import Request as Packet
from hyperlog.dht.rpc.messages import decode_untrusted

VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
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
        self.store = Store(self.router, rng=random.Random(1), **options)
        self.now = 0.0

    def ask(self, command, target, **fields):
        request = Request(command, target, **fields)
        return self.store.handle(request, NODE_ID, now=self.now, unix_time=UNIX_TIME + self.now)

    def find(self, target):
        reply = self.ask(FIND_PEER, target, token=None)
        assert (reply.token, reply.closer_nodes) == (True, True)
        return reply.value and Peer.decode_untrusted(reply.value)

    def lookup(self, target):
        reply = self.ask(LOOKUP, target, token=None)
        assert (reply.token, reply.closer_nodes) == (True, True)
        return reply.value and LookupReply.decode_untrusted(reply.value)

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
    assert node.announce(OWN_TARGET) == Reply(None)
    assert node.find(OWN_TARGET) == Peer(PEER.public_key, [])
    assert node.lookup(OWN_TARGET) == LookupReply([Peer(PEER.public_key, [])])
    assert node.router.get(OWN_TARGET, 0.0).relay == SENDER
    assert node.announce(OWN_TARGET, command=UNANNOUNCE) == Reply(None)
    assert node.find(OWN_TARGET) is None


def test_peers_under_a_topic_are_looked_up(node):
    announced = peers(3)
    for key_pair in announced:
        assert node.announce(TOPIC, key_pair, relay_addresses=[SENDER]) == Reply(None)
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
    assert node.announce(OWN_TARGET, relay_addresses=relays) == Reply(None)
    assert node.find(OWN_TARGET).relay_addresses == relays[:3]


def test_announcements_signed_for_something_else_get_no_answer(node):
    for command, other in ((ANNOUNCE, UNANNOUNCE), (UNANNOUNCE, ANNOUNCE)):
        for announce in (
            signed(Announce(Peer(PEER.public_key)), TOPIC, command=command),
            signed(Announce(Peer(PEER.public_key)), OWN_TARGET, command=command, token=bytes(32)),
            signed(Announce(Peer(PEER.public_key)), OWN_TARGET, command=command, node_id=bytes(32)),
            signed(Announce(Peer(PEER.public_key)), OWN_TARGET, command=other),
            signed(Announce(Peer(PEER.public_key)), OWN_TARGET, peers(1)[0], command=command),
            Announce(Peer(PEER.public_key)),
        ):
            assert node.ask(command, OWN_TARGET, value=announce.encode()) is None
    assert node.find(OWN_TARGET) is None


def test_incomplete_requests_get_no_answer(node):
    good = signed(Announce(Peer(PEER.public_key)), OWN_TARGET).encode()
    assert node.ask(ANNOUNCE, OWN_TARGET, value=good, token=None) is None
    assert node.ask(ANNOUNCE, OWN_TARGET, value=None) is None
    assert node.ask(ANNOUNCE, OWN_TARGET, value=good[:-1]) is None
    assert node.ask(ANNOUNCE, OWN_TARGET, value=Announce().encode()) is None
    assert node.ask(UNANNOUNCE, OWN_TARGET, value=Announce(refresh=bytes(32)).encode()) is None
    for command in SERVED:
        assert node.ask(command, None, value=good) is None
    assert node.ask(MUTABLE_GET, OWN_TARGET, value=good) is None
    assert MUTABLE_GET not in SERVED


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
    assert node.refresh(bytes(32)) is None
    assert node.refresh(first) is None  # known to everybody who saw the announcement
    assert node.refresh(middle) == Reply(None)
    assert node.refresh(middle) is None
    node.now = 1400.0
    assert node.refresh(last) == Reply(None)
    node.now = 2100.0
    assert (node.find if target == OWN_TARGET else node.lookup)(target) is not None


def test_a_local_servers_record_is_not_replaced(node):
    node.router.add_local(OWN_TARGET, Peer(PEER.public_key).encode())
    assert node.announce(OWN_TARGET, relay_addresses=[SENDER]) == Reply(None)
    assert node.router.get(OWN_TARGET, 0.0).relay is None
    assert node.find(OWN_TARGET).relay_addresses == []


def test_records_are_bounded():
    node = Node(max_entries=10)
    for key_pair in peers(50):
        node.announce(TOPIC, key_pair)
    assert len(node.lookup(TOPIC).peers) <= 10


# Captures


def sent_by(rows, name):
    """(destination, tid) -> value of what a node sent in answer to others."""
    answers = {}
    for row in rows:
        if row["kind"] == "datagram" and row["from"] == name and row["hex"][:2] in ("03", "13"):
            packet = decode_untrusted(bytes.fromhex(row["hex"]))
            host, port = row["dst"].split(":")
            answers[(host, int(port)), packet.tid, isinstance(packet, Packet)] = packet
    return answers


# The other captures begin after the server announced itself.
@pytest.mark.parametrize(
    "scenario",
    ["open-server", "lan-default", "holepunch-two-rounds", "storing", "trace-logger"],
)
def test_nodes_answer_and_forward_as_captured(scenario):
    rows = json.loads((VECTORS / f"capture-{scenario}.json").read_text())["rows"]
    ids = {
        f"{row['name']}/S": bytes.fromhex(row["id"])
        for row in rows
        if row["kind"] == "role" and row.get("id")
    }
    compared = 0
    for name, node_id in ids.items():
        router = Router()
        store = Store(router, rng=random.Random(1))
        answers = sent_by(rows, name)
        for row in rows:
            if row["kind"] != "datagram" or row["to"] != name or row["hex"][:2] != "03":
                continue
            packet = decode_untrusted(bytes.fromhex(row["hex"]))
            if packet.internal:
                continue
            host, port = row["src"].split(":")
            sender = (host, int(port))
            request = Request(packet.command, packet.target, packet.value, packet.token, sender)
            now = row["ms"] / 1000
            if packet.command in (PEER_HANDSHAKE, PEER_HOLEPUNCH):
                action = router.route(request, now)
            elif packet.command in SERVED:
                action = store.handle(request, node_id, now=now, unix_time=UNIX_TIME)
            else:
                continue
            to = action.address if isinstance(action, Relay | ReplyTo) else sender
            answer = answers.get((to, packet.tid, isinstance(action, Relay)))
            if answer is None:
                continue  # sent after the capture ended
            assert answer.value == action.value
            if isinstance(action, Reply):
                assert (answer.token is not None) == action.token
                assert action.closer_nodes or not answer.closer_nodes
            compared += 1
    assert compared > 10
