import pytest

from hyperlog.dht.errors import BadSignature, InvalidValue, LocalProtocolError
from hyperlog.dht.noise import aead

KEY, HEADER = bytes(range(32)), bytes(range(24))
MESSAGES = [b"", b"a", b"hello" * 80, bytes(200_000), b"end"]
LIMIT = 1 << 20
KINDS = {
    "cffi": (aead.FrameSealer, aead.FrameOpener),
    "public": (aead.PublicFrameSealer, aead.PublicFrameOpener),
}


@pytest.fixture(params=KINDS)
def kinds(request):
    return KINDS[request.param]


def test_both_kinds_make_the_same_bytes():
    fast, public = (sealer(KEY, HEADER) for sealer, _ in KINDS.values())
    assert aead.FrameSealer is not aead.PublicFrameSealer
    for batch in (MESSAGES, MESSAGES[:1], [], MESSAGES[2:]):
        assert fast.seal(batch, LIMIT) == public.seal(batch, LIMIT)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview], ids=["bytes", "array", "view"])
def test_frames_open_to_the_messages(kinds, wrap):
    sealer, opener = kinds
    data = sealer(KEY, HEADER).seal(MESSAGES, LIMIT)
    assert len(data) == sum(map(len, MESSAGES)) + 20 * len(MESSAGES)
    out: list[bytes] = []
    assert opener(KEY, HEADER).open(wrap(b"xx" + data + data[:2]), 2, LIMIT, out) == len(data) + 2
    assert out == MESSAGES
    assert all(type(message) is bytes for message in out)


def test_an_incomplete_frame_is_left_alone(kinds):
    sealer, opener = kinds
    data = sealer(KEY, HEADER).seal([b"one", b"two"], LIMIT)
    receiver, out = opener(KEY, HEADER), []
    assert receiver.open(data[:-1], 0, LIMIT, out) == 23
    assert receiver.open(data, 23, LIMIT, out) == len(data)
    assert receiver.open(b"", 0, LIMIT, out) == 0
    assert out == [b"one", b"two"]


def test_messages_before_a_forged_frame_are_kept(kinds):
    sealer, opener = kinds
    data = bytearray(sealer(KEY, HEADER).seal([b"one", b"two"], LIMIT))
    data[-1] ^= 1
    out: list[bytes] = []
    with pytest.raises(BadSignature):
        opener(KEY, HEADER).open(data, 0, LIMIT, out)
    assert out == [b"one"]


def test_lengths_out_of_range_are_seen_from_three_bytes(kinds):
    _, opener = kinds
    for length in (0, 16, 118):
        with pytest.raises(InvalidValue):
            opener(KEY, HEADER).open(length.to_bytes(3, "little"), 0, 100, [])
    assert opener(KEY, HEADER).open((117).to_bytes(3, "little"), 0, 100, []) == 0


def test_a_long_message_stops_the_batch_before_any_is_sealed(kinds):
    sealer, opener = kinds
    sender = sealer(KEY, HEADER)
    with pytest.raises(LocalProtocolError):
        sender.seal([b"fits", bytes(11)], 10)
    out: list[bytes] = []
    opener(KEY, HEADER).open(sender.seal([bytes(10)], 10), 0, 10, out)
    assert out == [bytes(10)]


@pytest.mark.parametrize(
    "wrong", [bytearray(b"x"), memoryview(b"x"), "x"], ids=["bytearray", "memoryview", "str"]
)
def test_a_message_that_is_not_bytes_stops_the_batch_before_any_is_sealed(kinds, wrong):
    sealer, opener = kinds
    sender = sealer(KEY, HEADER)
    with pytest.raises(TypeError):
        sender.seal([b"fits", wrong], 10)
    out: list[bytes] = []
    opener(KEY, HEADER).open(sender.seal([b"next"], 10), 0, 10, out)
    assert out == [b"next"]
