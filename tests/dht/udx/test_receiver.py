from collections import deque

from hyperlog.dht.udx import EndReceived, MessageReceived
from hyperlog.dht.udx.packet import DATA, END, MESSAGE
from hyperlog.dht.udx.receiver import Receiver


def test_the_end_waits_for_the_packets_before_it():
    events = deque()
    receiver = Receiver(1 << 20, 0, events)
    receiver.take(b"last", DATA | END, 1)
    assert (receiver.end_seq, receiver.end_received) == (1, False)
    receiver.take(b"first", DATA, 0)
    assert receiver.end_received
    assert list(events) == [EndReceived()]
    assert receiver.read(None) == [b"first", b"last"]


def test_an_end_alone_takes_a_sequence_number():
    events = deque()
    receiver = Receiver(1 << 20, 0, events)
    receiver.take(b"ignored without the DATA flag", END, 0)
    assert receiver.buffer.next_seq == 1
    assert receiver.read(None) == []
    assert list(events) == [EndReceived()]


def test_an_end_that_is_next_is_taken_as_long_as_data_would_be():
    receiver = Receiver(100_000, 0, deque())
    for seq in range(180):  # beyond what is taken behind a gap, below the limit of what fills one
        receiver.take(bytes(1000), DATA, seq)
    receiver.take(b"", END, 180)
    assert receiver.overflows == 0
    assert receiver.end_received


def test_data_after_the_end_is_not_taken():
    receiver = Receiver(1 << 20, 0, deque())
    receiver.take(b"bye", DATA | END, 0)
    receiver.take(b"more", DATA, 1)
    assert receiver.buffer.readable_bytes == 3
    assert receiver.buffer.next_seq == 1


def test_a_payload_can_be_data_and_message_at_once():
    events = deque()
    receiver = Receiver(1 << 20, 0, events)
    receiver.take(b"both", DATA | MESSAGE, 0)
    assert list(events) == [MessageReceived(b"both")]
    assert receiver.read(None) == [b"both"]


def test_old_and_held_packets_count_as_duplicates():
    receiver = Receiver(1 << 20, 5, deque())
    for seq in (5, 5, 7, 7, 4):
        receiver.take(b"x", DATA, seq)
    assert receiver.duplicates == 3
    assert receiver.sack_area() == (7).to_bytes(4, "little") + (8).to_bytes(4, "little")
