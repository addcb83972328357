import json
import os
import random
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl import bindings

from hyperlog.dht.errors import (
    BadSignature,
    InvalidValue,
    LocalProtocolError,
    RemoteProtocolError,
    Truncated,
)
from hyperlog.dht.keys import KeyPair, namespace
from hyperlog.dht.noise.handshake import HandshakeResult, HandshakeState
from hyperlog.dht.noise.secretstream import MAX_MESSAGE, SecretStreamCore, stream_id

VECTORS = Path(__file__).parents[2] / "vectors"
NOISE = json.loads((VECTORS / "noise.json").read_text())
STREAM = json.loads((VECTORS / "secret-stream.json").read_text())


def vector_results(name):
    """The handshake results of both sides as recorded in noise.json."""
    return {
        role: HandshakeResult(
            *(bytes.fromhex(NOISE[name][role][key]) for key in ("tx", "rx", "hash", "rs")),
            role == "initiator",
        )
        for role in ("initiator", "responder")
    }


RESULTS = vector_results("ik_hyperdht")


def pair(**options):
    return tuple(
        SecretStreamCore(RESULTS[role], random_bytes=os.urandom, **options)
        for role in ("initiator", "responder")
    )


def open_pair(**options):
    """Two cores that have read each other's hello."""
    a, b = pair(**options)
    assert b.receive([a.hello()]) == []
    assert a.receive([b.hello()]) == []
    return a, b


def scripted(*answers):
    queue = list(answers)

    def random_bytes(size):
        answer = queue.pop(0)
        assert len(answer) == size
        return answer

    return random_bytes


# Vectors


def test_stream_of_the_preset_vector():
    vector = STREAM["preset_handshake"]
    cores = {
        role: SecretStreamCore(
            RESULTS[role],
            random_bytes=scripted(
                bytes.fromhex(vector["headers"][role]),
                bytes.fromhex(vector["unorderedInitial"][role]),
            ),
        )
        for role in RESULTS
    }
    other = {"initiator": "responder", "responder": "initiator"}
    writes = [write for write in vector["rawWrites"] if "bytes" in write]
    for write in writes[:2]:
        hello = cores[write["from"]].hello()
        assert hello.hex() == write["bytes"]
        assert cores[other[write["from"]]].receive([hello]) == []
    for write, plain in zip(writes[2:], vector["plaintextsInOrder"], strict=True):
        assert write["from"] == plain["from"]
        message = bytes.fromhex(plain["plaintext"])
        frame = cores[plain["from"]].seal(message)
        assert frame.hex() == write["bytes"]
        received = cores[other[plain["from"]]].receive([frame])
        assert received == ([message] if message else [])
    unordered = [write for write in vector["rawWrites"] if "unordered" in write]
    texts = [b"unordered-1", b"unordered-2", b"from responder"]
    for write, text in zip(unordered, texts, strict=True):
        sealed = cores[write["from"]].seal_unordered(text)
        assert sealed.hex() == write["unordered"]
        assert cores[other[write["from"]]].open_unordered(sealed) == text
        assert cores[write["from"]].open_unordered(sealed) is None


def test_stream_of_the_unpatched_vector():
    a, b = pair()
    data = {"initiator": [], "responder": []}
    for write in STREAM["unpatched_random"]["rawWrites"]:
        data[write["from"]].append(bytes.fromhex(write["bytes"]))
    assert b.receive(data["initiator"]) == [b"random header run"]
    assert a.receive(data["responder"]) == [b"reply"]


def test_stream_of_the_in_band_vector():
    results = vector_results("xx_secret_stream")
    data = {"initiator": b"", "responder": b""}
    for write in STREAM["inband_xx"]["rawWrites"]:
        data[write["from"]] += bytes.fromhex(write["bytes"])
    # the handshake messages come as frames of 32, 96 and 64 bytes
    after = {"initiator": data["initiator"][35 + 67 :], "responder": data["responder"][99:]}
    b = SecretStreamCore(results["responder"], random_bytes=os.urandom)
    a = SecretStreamCore(results["initiator"], random_bytes=os.urandom)
    assert b.receive([after["initiator"]]) == [b"xx-hello"]
    assert a.receive([after["responder"]]) == [b"xx-reply"]


@pytest.mark.parametrize("name", ["hyperdht-session", "hyperdht-direct-session"])
def test_whole_hyperdht_connection_of_the_vectors(name):
    session = json.loads((VECTORS / f"{name}.json").read_text())
    noise = session["noise"]
    prologue = namespace("hyperswarm/dht", 0)
    client_keys, server_keys = (
        KeyPair.from_seed(bytes([1]) * 32),
        KeyPair.from_seed(bytes([2]) * 32),
    )
    client = HandshakeState(
        "IK",
        True,
        client_keys,
        random_bytes=lambda size: bytes([3]) * size,
        prologue=prologue,
        remote_public_key=server_keys.public_key,
    )
    server = HandshakeState(
        "IK", False, server_keys, random_bytes=lambda size: bytes([4]) * size, prologue=prologue
    )
    for sender, receiver, number in ((client, server, 1), (server, client, 2)):
        wire = sender.write_message(bytes.fromhex(noise[f"payload{number}"]))
        assert wire.hex() == noise[f"message{number}"]
        assert receiver.read_message_untrusted(wire).hex() == noise[f"payload{number}"]
        assert any(wire.hex() in packet["hex"] for packet in session["packets"])
    cores = {
        "client": SecretStreamCore(server.result(), random_bytes=os.urandom),
        "server": SecretStreamCore(client.result(), random_bytes=os.urandom),
    }
    messages = {"client": [], "server": []}
    unordered = {"client": [], "server": []}
    for packet in session["packets"]:
        if "udx" not in packet:
            continue
        raw, sender = bytes.fromhex(packet["hex"]), packet["from"].split(".")[0]
        body = memoryview(raw)[20 + raw[3] :]
        if raw[2] & 1:
            messages[sender] += cores[sender].receive([body])
        if raw[2] & 8 and body:
            unordered[sender].append(cores[sender].open_unordered(bytes(body)))
    assert messages == {"client": [b"hi there"], "server": [b"echo:hi there"]}
    assert unordered == {"client": [b"unordered"], "server": []}
    for core in cores.values():
        core.eof()


def test_stream_ids_of_the_vectors():
    ids = NOISE["ik_hyperdht"]["streamIds"]
    for role, result in RESULTS.items():
        assert stream_id(result.handshake_hash, role == "initiator").hex() == ids[role]


# Behaviour


def test_hello_comes_first_and_once():
    a, _ = pair()
    with pytest.raises(LocalProtocolError):
        a.seal(b"early")
    assert len(a.hello()) == 59
    with pytest.raises(LocalProtocolError):
        a.hello()


def test_only_a_frame_proves_that_the_peer_holds_its_key():
    for message in (b"", b"message"):
        a, b = pair()
        assert (b.opened, b.authenticated) == (False, False)
        b.receive([a.hello()])
        assert (b.opened, b.authenticated) == (True, False)
        b.receive([a.seal(message)])
        assert b.authenticated
    a, b = open_pair()
    with pytest.raises(BadSignature):
        b.receive([b"\x11\0\0" + bytes(17)])
    assert not b.authenticated


def test_many_messages_keep_their_order_and_boundaries():
    a, b = open_pair()
    messages = [bytes([i % 256]) * (i % 700 + 1) for i in range(2000)]
    data = memoryview(a.seal_many(messages))
    received = b.receive([data[i : i + 1432] for i in range(0, len(data), 1432)])
    assert received == messages
    b.eof()


def test_hello_and_messages_may_share_or_straddle_chunks():
    a, b = pair()
    data = a.hello() + a.seal_many([b"one", b"two"])
    assert [m for byte in data for m in b.receive([bytes([byte])])] == [b"one", b"two"]
    assert pair()[1].receive([data]) == [b"one", b"two"]


def test_a_large_frame_in_small_chunks():
    a, b = open_pair()
    message = random.Random(1).randbytes(3 << 20)
    data = a.seal(message) + a.seal(b"after")
    received = [m for i in range(0, len(data), 1400) for m in b.receive([data[i : i + 1400]])]
    assert received == [message, b"after"]


def test_what_an_incomplete_frame_holds_is_told_and_can_be_forgotten():
    a, b = open_pair()
    frame = a.seal(bytes(1_000_000))
    for start in range(0, 900_000, 1000):
        assert b.receive([frame[start : start + 1000]]) == []
    assert b.held_bytes == 900_000
    assert max(map(len, b._partial)) < 300_000  # in pieces, or the heap would get holes
    assert b.receive([frame[900_000:], a.seal(b"next")]) == [bytes(1_000_000), b"next"]
    assert b.held_bytes == 0
    assert b.receive([a.seal(b"cut")[:-1]]) == []
    b.discard()
    assert b.held_bytes == 0


def test_the_largest_message_of_the_wire_format():
    a, b = open_pair()
    message = bytes(MAX_MESSAGE)
    assert b.receive([a.seal(message)]) == [message]
    with pytest.raises(LocalProtocolError):
        a.seal(message + b"x")
    with pytest.raises(LocalProtocolError):
        SecretStreamCore(RESULTS["initiator"], random_bytes=os.urandom, max_message=MAX_MESSAGE + 1)


def test_empty_messages_are_swallowed():
    a, b = open_pair(keep_alive=None)
    assert b.receive([a.seal_many([b"", b"x", b"", b"y", b""])]) == [b"x", b"y"]
    assert b.receive([a.seal(b"")]) == []


def test_messages_before_a_fault_are_delivered_and_the_fault_stays():
    a, b = open_pair()
    good, bad = a.seal_many([b"one", b"two"]), bytearray(a.seal(b"three"))
    bad[5] ^= 1
    assert b.receive([good, bytes(bad)]) == [b"one", b"two"]
    assert isinstance(b.error, BadSignature)
    for _ in range(2):
        with pytest.raises(BadSignature):
            b.receive([a.seal(b"four")])
        with pytest.raises(BadSignature):
            b.eof()
    with pytest.raises(LocalProtocolError):
        b.seal(b"answer")
    assert b.get_timer() is None


def test_a_fault_behind_keep_alives_alone_is_raised_at_once():
    a, b = open_pair()
    with pytest.raises(InvalidValue):
        b.receive([a.seal(b"") + bytes(3)])


def test_a_replayed_frame_is_a_fault():
    a, b = open_pair()
    frame = a.seal(b"one")
    assert b.receive([frame]) == [b"one"]
    with pytest.raises(BadSignature):
        b.receive([frame])


def test_a_missing_frame_is_a_fault():
    a, b = open_pair()
    a.seal(b"lost")
    with pytest.raises(BadSignature):
        b.receive([a.seal(b"two")])


@pytest.mark.parametrize("length", [0, 16, 18 + 100])
def test_frame_lengths_out_of_range_fail_before_anything_is_buffered(length):
    _, b = open_pair(max_message=100)
    with pytest.raises(InvalidValue):
        b.receive([length.to_bytes(3, "little")])


def test_hello_of_our_own_role_or_another_connection_is_refused():
    a, b = pair()
    mine = a.hello()
    for hello in (mine, b"\x38\0\0" + bytes(56), b"\x37\0\0", b"\x39\0\0"):
        a, _ = pair()
        with pytest.raises(InvalidValue):
            a.receive([hello])
    assert b.receive([mine]) == []


def test_end_inside_a_frame_or_before_the_hello_is_truncated():
    a, b = open_pair()
    frame = a.seal(b"message")
    b.eof()
    for cut in (1, 3, len(frame) - 1):
        a, b = open_pair()
        b.receive([a.seal(b"message")[:cut]])
        with pytest.raises(Truncated):
            b.eof()
    with pytest.raises(Truncated):
        pair()[0].eof()


def test_keep_alive_is_due_when_nothing_was_written_for_its_time():
    a, b = open_pair(keep_alive=5.0)
    assert a.get_timer() is None
    a.wrote(100.0)
    assert a.get_timer() == 105.0
    a.wrote(103.0)
    assert a.handle_timer(105.0) is None
    frame = a.handle_timer(108.0)
    assert frame is not None
    assert len(frame) == 20
    assert b.receive([frame]) == []
    assert a.get_timer() == 113.0


def test_without_keep_alive_there_is_no_timer():
    a, _ = open_pair(keep_alive=None)
    a.wrote(100.0)
    assert a.get_timer() is None
    assert a.handle_timer(1000.0) is None


def test_who_relays_the_handshake_can_read_unordered_messages_and_no_others():
    server = KeyPair.generate()
    initiator = HandshakeState(
        "IK",
        True,
        KeyPair.generate(),
        random_bytes=os.urandom,
        remote_public_key=server.public_key,
    )
    responder = HandshakeState("IK", False, server, random_bytes=os.urandom)
    first = initiator.write_message(b"client's payload")
    responder.read_message_untrusted(first)
    second = responder.write_message(b"server's payload")
    initiator.read_message_untrusted(second)

    seen = b"Noise_IK_Ed25519_ChaChaPoly_BLAKE2b".ljust(64, b"\0")
    public = (
        b"",
        server.public_key,
        first[:32],
        first[32:80],
        first[80:],
        second[:32],
        second[32:],
    )
    for part in public:
        seen = blake2b(seen + part).digest()
    relay = SecretStreamCore(
        HandshakeResult(bytes(32), bytes(32), seen, server.public_key, True),
        random_bytes=os.urandom,
    )
    server_side = SecretStreamCore(responder.result(), random_bytes=os.urandom)
    assert relay.open_unordered(server_side.seal_unordered(b"for the client")) == b"for the client"
    assert relay.receive([server_side.hello()]) == []
    with pytest.raises(BadSignature):
        relay.receive([server_side.seal(b"for the client")])


def test_unordered_counter_wraps():
    a = SecretStreamCore(RESULTS["initiator"], random_bytes=scripted(b"\xff" * 8))
    sealed = a.seal_unordered(b"x")
    assert sealed[:8] == bytes(8)
    assert pair()[1].open_unordered(sealed) == b"x"


@given(st.binary(max_size=100))
def test_unordered_garbage_is_ignored(data):
    assert pair()[0].open_unordered(data) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(0, 2**32))
def test_any_cut_of_the_stream_gives_the_same_messages(messages, seed):
    rng = random.Random(seed)
    a, b = pair()
    data = a.hello() + a.seal_many(messages)
    received = []
    while data:
        chunks = []
        for _ in range(rng.randint(1, 4)):
            size = rng.choice([0, 1, 2, 3, 20, 57, 400])
            chunks.append(data[:size])
            data = data[size:]
        received += b.receive(chunks)
    assert received == [message for message in messages if message]
    b.eof()


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_any_bytes_are_read_or_raise_the_remote_error(data, after_hello, one_by_one):
    a, b = pair(max_message=1000)
    if after_hello:
        b.receive([a.hello()])
    chunks = [data[i : i + 1] for i in range(len(data))] if one_by_one else [data]
    try:
        for chunk in chunks:
            assert b.receive([chunk]) == []
        b.eof()
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            b.receive([])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**24 - 1), st.data())
def test_a_flipped_bit_never_changes_a_message(position, data):
    a, b = open_pair()
    messages = [b"first message", b"second message", bytes(500)]
    wire = bytearray(a.seal_many(messages))
    wire[position % len(wire)] ^= 1 << data.draw(st.integers(0, 7))
    received = []
    try:
        received = b.receive([bytes(wire)])
    except RemoteProtocolError:
        pass
    assert received == messages[: len(received)]
    with pytest.raises(RemoteProtocolError):
        b.eof()


def test_the_stream_reads_frames_with_other_tags():
    key, header = RESULTS["initiator"].tx, bytes(24)
    _, b = pair()
    state = bindings.crypto_secretstream_xchacha20poly1305_state()
    bindings.crypto_secretstream_xchacha20poly1305_init_pull(state, header, key)
    body = bindings.crypto_secretstream_xchacha20poly1305_push(state, b"pushed", None, 1)
    hello = b"\x38\0\0" + stream_id(RESULTS["initiator"].handshake_hash, True) + header
    assert b.receive([hello, len(body).to_bytes(3, "little"), body]) == [b"pushed"]
