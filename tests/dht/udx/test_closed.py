import pytest

from hyperlog.dht.udx import ClosedStreams, UDXStreamCore
from hyperlog.dht.udx.packet import (
    DATA,
    DESTROY,
    END,
    HEARTBEAT,
    MESSAGE,
    SACK,
    STATE,
    Packet,
    decode_untrusted,
    encode,
)

PEER = ("127.0.0.1", 4000)


def finished_core(local_id: int = 5) -> UDXStreamCore:
    core = UDXStreamCore(local_id)
    core.connect(6, PEER, 0.0)
    core.write(b"bye", 0.0)
    core.write_end(0.0)
    core.datagrams_to_send(0.0)
    core.receive_datagram(encode(Packet(END, local_id, 4096, 0, 1)), PEER, 0.1)
    core.datagrams_to_send(0.1)
    assert core.closed
    return core


@pytest.mark.parametrize("flags", [DATA, END, DATA | END, HEARTBEAT])
def test_a_repeated_packet_is_answered_with_the_final_state(flags):
    closed = ClosedStreams()
    closed.remember(finished_core(), 1.0)
    assert 5 in closed
    address, reply = closed.receive_datagram(encode(Packet(flags, 5, 0, 0, 1)), 15.9)
    assert address == PEER
    answer = decode_untrusted(reply)
    assert (answer.flags, answer.stream_id, answer.seq, answer.ack) == (STATE, 6, 1, 1)


@pytest.mark.parametrize("flags", [STATE, SACK, MESSAGE, DESTROY])
def test_what_needs_no_answer_gets_none(flags):
    closed = ClosedStreams()
    closed.remember(finished_core(), 1.0)
    assert closed.receive_datagram(encode(Packet(flags, 5, 0, 0, 1)), 2.0) is None


def test_a_stream_is_forgotten_after_15_seconds():
    closed = ClosedStreams()
    closed.remember(finished_core(), 1.0)
    assert closed.receive_datagram(encode(Packet(END, 5, 0, 0, 1)), 16.0) is None
    closed.forget_expired(16.0)
    assert 5 not in closed


def test_the_oldest_makes_room():
    closed = ClosedStreams(max_streams=3)
    for local_id in (1, 2, 3, 4):
        closed.remember(finished_core(local_id), 1.0)
    assert [n in closed for n in (1, 2, 3, 4)] == [False, True, True, True]
    assert len(closed) == 3


def test_a_peer_that_missed_our_destroy_gets_it_again():
    core = UDXStreamCore(5)
    core.connect(6, PEER, 0.0)
    core.destroy(1.0)
    [(*_, [sent])] = core.datagrams_to_send(1.0)
    closed = ClosedStreams()
    closed.remember(core, 1.0)
    assert closed.receive_datagram(encode(Packet(DATA, 5, 0, 0, 0)), 2.0) == (PEER, sent)
    assert decode_untrusted(sent).flags == DESTROY


def test_a_stream_that_the_peer_destroyed_is_not_remembered():
    core = UDXStreamCore(5)
    core.connect(6, PEER, 0.0)
    core.receive_datagram(encode(Packet(DESTROY, 5, 0, 0, 0)), PEER, 1.0)
    closed = ClosedStreams()
    closed.remember(core, 1.0)
    assert 5 not in closed


def test_a_stream_that_never_connected_is_not_remembered():
    core = UDXStreamCore(5)
    core.destroy(1.0)
    closed = ClosedStreams()
    closed.remember(core, 1.0)
    assert 5 not in closed


@pytest.mark.parametrize("data", [b"", b"\xff\x01", bytes(20), b"\xff\x01" + bytes(18)])
def test_other_datagrams_get_no_answer(data):
    closed = ClosedStreams()
    closed.remember(finished_core(), 1.0)
    assert closed.receive_datagram(data, 2.0) is None
