"""UDPSocket: batches in and out, with and without the kernel's help."""

from __future__ import annotations

import errno
import socket as stdlib_socket
import sys

import pytest
import trio
import trio.testing

from hyperlog.dht import udp
from hyperlog.dht.udp import UDPSocket

linux = pytest.mark.skipif(sys.platform != "linux", reason="UDP_SEGMENT and UDP_GRO are Linux's")


class Pair:
    def __init__(self):
        self.left = UDPSocket("127.0.0.1", 0)
        self.right = UDPSocket("127.0.0.1", 0)

    async def receive(self, count):
        received = []
        with trio.fail_after(5):
            while len(received) < count:
                await self.right.wait_readable()
                batch = self.right.receive_batch()
                assert len(batch) <= udp.MAX_BATCH + udp.MAX_SEGMENTS
                assert all(address == self.left.local_address for _, address in batch)
                received += [bytes(data) for data, _ in batch]
        return received


@pytest.fixture
async def pair():
    pair = Pair()
    yield pair
    pair.left.close()
    pair.right.close()


BATCHES = {
    "one": [b"x" * 100],
    "equal": [bytes([n]) * 1200 for n in range(100)],
    "shorter-last": [bytes([n]) * 1200 for n in range(10)] + [b"end"],
    "growing": [b"x" * size for size in range(1, 200, 7)],
    "shrinking": [b"x" * size for size in range(200, 1, -7)],
    "mixed": [bytes([n]) * (1472 if n % 5 == 0 else 20) for n in range(120)],
    "tiny": [bytes([n % 251]) for n in range(200)],
    "large": [bytes([n]) * 9000 for n in range(30)],
    "largest": [b"x" * 60_000, b"y" * 60_000],
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("gro", [True, False], ids=["gro", "plain-in"])
@pytest.mark.parametrize("gso", [True, False], ids=["gso", "plain-out"])
async def test_datagrams_keep_their_boundaries_and_order(pair, batch, gso, gro):
    pair.left._gso = pair.left._gso and gso
    if not gro and pair.right._gro:
        pair.right._socket.setsockopt(udp.SOL_UDP, udp.UDP_GRO, 0)
        pair.right._gro = False
    assert pair.left.send_batch(batch, pair.right.local_address) == len(batch)
    assert await pair.receive(len(batch)) == batch


async def test_an_empty_datagram_arrives(pair):
    assert pair.left.send(b"", pair.right.local_address)
    assert await pair.receive(1) == [b""]


async def test_reading_stops_between_batches_so_that_others_get_their_turn(pair):
    for _ in range(10):
        pair.left.send_batch([b"x" * 50] * 64, pair.right.local_address)
    await pair.right.wait_readable()
    assert len(pair.right.receive_batch()) < 640


async def test_nothing_to_read_is_an_empty_batch(pair):
    assert pair.right.receive_batch() == []


async def test_datagrams_that_cannot_be_sent_are_lost_and_do_not_raise(pair):
    for address in [("127.0.0.1", 0), ("255.255.255.255", 9), ("240.0.0.1", 9)]:
        assert pair.left.send(b"x", address)
        assert pair.left.send_batch([b"x" * 50, b"y" * 50], address) == 2
    assert pair.left.send(b"x" * 65_530, pair.right.local_address)  # larger than UDP
    pair.left.send(b"after", pair.right.local_address)
    assert await pair.receive(1) == [b"after"]


async def test_a_closed_port_does_no_harm(pair):
    gone = UDPSocket("127.0.0.1", 0)
    gone.close()
    for _ in range(3):
        pair.left.send(b"x", gone.local_address)
    assert pair.left.receive_batch() == []


async def test_the_ttl_is_that_of_the_datagram(pair):
    get = pair.left._socket.getsockopt
    pair.left.send(b"1", pair.right.local_address, ttl=5)
    assert get(stdlib_socket.IPPROTO_IP, stdlib_socket.IP_TTL) == 5
    pair.left.send(b"2", pair.right.local_address)
    assert get(stdlib_socket.IPPROTO_IP, stdlib_socket.IP_TTL) == udp.DEFAULT_TTL
    pair.left.send(b"3", pair.right.local_address, ttl=5)
    pair.left.send_batch([b"4", b"5"], pair.right.local_address)
    assert get(stdlib_socket.IPPROTO_IP, stdlib_socket.IP_TTL) == udp.DEFAULT_TTL
    assert await pair.receive(5) == [b"1", b"2", b"3", b"4", b"5"]


class Obstinate:
    """The system's socket, but for a sendmsg that fails as on some devices."""

    def __init__(self, sock, *errors):
        self._sock = sock
        self._errors = list(errors)
        self.calls = 0

    def sendmsg(self, *args):
        self.calls += 1
        if self._errors:
            raise OSError(self._errors.pop(0), "refused")
        return self._sock.sendmsg(*args)

    def __getattr__(self, name):
        return getattr(self._sock, name)


@linux
@pytest.mark.parametrize("error", [errno.EIO, errno.EOPNOTSUPP])
async def test_a_device_without_segmentation_gets_single_datagrams_from_then_on(pair, error):
    batch = [bytes([n]) * 1000 for n in range(20)]
    pair.left._socket = obstinate = Obstinate(pair.left._socket, error)
    for _ in range(2):
        assert pair.left.send_batch(batch, pair.right.local_address) == 20
        assert await pair.receive(20) == batch
    assert obstinate.calls == 1


@linux
@pytest.mark.parametrize("error", [errno.EINVAL, errno.EMSGSIZE])
async def test_a_probe_larger_than_the_link_takes_no_others_with_it(pair, error):
    """As kernels tell it when the segments do not fit the link: 1 probe, 1 shorter packet."""
    pair.left._socket = obstinate = Obstinate(pair.left._socket, error)
    probe_and_tail = [b"p" * 1472, b"t" * 900]
    assert pair.left.send_batch(probe_and_tail, pair.right.local_address) == 2
    assert await pair.receive(2) == probe_and_tail  # this link is wide enough for both
    batch = [bytes([n]) * 1000 for n in range(20)]
    assert pair.left.send_batch(batch, pair.right.local_address) == 20
    assert await pair.receive(20) == batch
    assert obstinate.calls == 2  # the kernel still cuts


@linux
async def test_what_the_kernel_has_no_room_for_is_told(pair):
    class Full(Obstinate):
        def sendmsg(self, *args):
            self.calls += 1
            if self.calls > 2:
                raise BlockingIOError
            return self._sock.sendmsg(*args)

    pair.left._socket = Full(pair.left._socket)
    batch = [bytes([n]) * 1200 for n in range(200)]
    taken = pair.left.send_batch(batch, pair.right.local_address)
    assert 0 < taken < 200
    assert await pair.receive(taken) == batch[:taken]


async def test_waiting_ends_when_the_socket_closes():
    sock = UDPSocket("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:

        async def wait():
            with pytest.raises(trio.ClosedResourceError):
                await sock.wait_readable()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        sock.close()
