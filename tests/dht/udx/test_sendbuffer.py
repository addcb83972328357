from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.udx.sendbuffer import SendBuffer


@given(
    st.lists(st.binary(max_size=40), max_size=20),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 25)), max_size=60),
)
def test_payloads_are_the_written_bytes_and_only_the_last_is_short(writes, takes):
    buffer = SendBuffer()
    for write in writes:
        buffer.append(write)
    taken = b""
    total = len(b"".join(writes))
    assert buffer.size == total
    for count, size in [*takes, (10_000, 7)]:
        payloads = buffer.take(count, size)
        assert len(payloads) <= count
        assert all(len(payload) == size for payload in payloads[:-1])
        if payloads and len(payloads[-1]) < size:
            assert buffer.size == 0
        taken += b"".join(payloads)
        assert buffer.size == total - len(taken)
    assert taken == b"".join(writes)


def test_a_payload_within_one_write_is_not_copied():
    buffer = SendBuffer()
    data = bytes(range(250)) * 10
    buffer.append(data)
    payloads = buffer.take(2, 1000)
    assert all(isinstance(p, memoryview) and p.obj is data for p in payloads)


def test_a_mutable_buffer_can_be_changed_after_the_write():
    buffer = SendBuffer()
    data = bytearray(b"before")
    buffer.append(data)
    data[:] = b"after!"
    assert buffer.take(1, 10) == [b"before"]


def test_clear_forgets_everything():
    buffer = SendBuffer()
    buffer.append(b"abcdef")
    buffer.take(1, 4)
    buffer.clear()
    buffer.append(b"xyz")
    assert buffer.take(5, 4) == [b"xyz"]
