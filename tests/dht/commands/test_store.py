import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperlog.dht.commands.messages import PluginRequest
from hyperlog.dht.commands.router import Relay, Reply, ReplyTo, Router
from hyperlog.dht.commands.store import SERVED, Store
from hyperlog.dht.constants import (
    FIND_PEER,
    IMMUTABLE_GET,
    IMMUTABLE_PUT,
    LOOKUP,
    MUTABLE_GET,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
    PLUGIN,
)
from hyperlog.dht.keys import generic_hash
from hyperlog.dht.rpc.messages import Request as Packet
from hyperlog.dht.rpc.messages import decode_untrusted

VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
TARGET = generic_hash(b"value")
NODE_ID = bytes([9]) * 32
UNIX_TIME = 1_800_000_000.0


@dataclass
class Request:
    command: int
    target: bytes | None
    value: bytes | None = None
    token: bytes | None = bytes(32)
    address: tuple[str, int] = ("10.0.0.1", 1001)


def ask(store, command, target=TARGET, value=None):
    request = Request(command, target, value)
    return store.handle(request, NODE_ID, now=0.0, unix_time=UNIX_TIME)


@pytest.fixture
def store():
    return Store(Router(), rng=random.Random(1))


@pytest.mark.parametrize(
    ("command", "value"),
    [(FIND_PEER, None), (LOOKUP, None), (MUTABLE_GET, b"\0"), (IMMUTABLE_GET, None)],
)
def test_what_is_not_there_is_answered_with_closer_nodes_and_a_token(store, command, value):
    nothing = Reply(None, closer_nodes=True, token=True)
    assert ask(store, command, value=value) == nothing
    assert ask(store, command, None, value) is None


@pytest.mark.parametrize("value", [None, b"", b"\xfd\1"])
def test_a_get_without_a_sequence_number_gets_no_answer(store, value):
    assert ask(store, MUTABLE_GET, value=value) is None


def test_commands_work_on_one_store(store):
    ask(store, IMMUTABLE_PUT, value=b"value")
    assert ask(store, IMMUTABLE_GET).value == b"value"
    assert ask(store, MUTABLE_GET, value=b"\0").value is None


def test_plugins_that_are_not_there_are_met_with_silence(store):
    request = PluginRequest("nobody-has-it", 1, 0, b"value")
    assert ask(store, PLUGIN, value=request.encode()) is None
    assert ask(store, PLUGIN, None, None) is None


@pytest.mark.parametrize("command", sorted(SERVED))
def test_requests_without_what_they_need_get_no_answer(store, command):
    assert ask(store, command, None, b"\xff" * 100) is None


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
            assert getattr(answer, "error", 0) == getattr(action, "error", 0)
            if isinstance(action, Reply):
                assert (answer.token is not None) == action.token
                assert action.closer_nodes or not answer.closer_nodes
            compared += 1
    assert compared > 10
