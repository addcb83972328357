"""Service: one UDP socket, drained and filled in batches.

Linux hands over several datagrams per system call: UDP_SEGMENT cuts one buffer into equal datagrams
on the way out, UDP_GRO joins those of one sender on the way in. Where the system has neither,
datagrams go one by one; callers see no difference.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from hyperlog.dht.compact import Address

__all__ = ["DatagramSocket", "SocketFactory", "UDPSocket"]

Datagram = tuple[bytes | memoryview, Address]

# linux/udp.h, linux/in.h, asm-generic/socket.h; Python 3.11 exports none of them.
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_MTU_DISCOVER: Final = 10
IP_PMTUDISC_PROBE: Final = 3
SO_RCVBUFFORCE: Final = 33
SO_SNDBUFFORCE: Final = 32

MAX_SEGMENTS: Final = 64  # datagrams a UDP_SEGMENT call may carry, linux/udp.h UDP_MAX_SEGMENTS
MAX_BURST: Final = 65_000  # bytes in one UDP_SEGMENT call; the kernel refuses 65536 with headers
RECEIVE_SIZE: Final = 65_536  # bytes: the largest joined datagram
SOCKET_BUFFER: Final = 4 * 1024 * 1024  # bytes asked of the kernel, which may give less
MAX_BATCH: Final = 256  # datagrams before they are handed on and other tasks run
DEFAULT_TTL: Final = 64

SEGMENT_SIZE = struct.Struct("=H")
GRO_SIZE = struct.Struct("=i")
GRO_SPACE: Final = socket.CMSG_SPACE(GRO_SIZE.size) if hasattr(socket, "CMSG_SPACE") else 0


class DatagramSocket(Protocol):
    """What the node needs of a UDP socket; SimNetwork offers it without a kernel."""

    @property
    def local_address(self) -> Address: ...

    async def wait_readable(self) -> None: ...

    async def wait_writable(self) -> None: ...

    def receive_batch(self) -> list[Datagram]:
        """Datagrams that have arrived, oldest first; empty when none is left."""

    def send(self, data: bytes, address: Address, ttl: int = DEFAULT_TTL) -> bool:
        """Send one datagram; False when the system had no room for it."""

    def send_batch(self, datagrams: Sequence[bytes], address: Address) -> int:
        """Send datagrams to one address; the number that the system took or will never take."""

    def close(self) -> None: ...


SocketFactory = Callable[[str, int], DatagramSocket]
"""Binds a datagram socket to host and port (0 for any); raises OSError when it cannot."""


class UDPSocket:
    """A non-blocking IPv4 UDP socket of the system."""

    def __init__(self, host: str, port: int) -> None:
        """Bind to `host` (dotted IPv4) and `port` (0 for any).

        Raises:
            OSError: the address is in use or not one of this machine.
        """
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind((host, port))
            self._set_buffers()
            self._set_dont_fragment()
        except OSError:
            self._socket.close()
            raise
        name = self._socket.getsockname()
        self.local_address: Address = (name[0], name[1])
        self._gro = self._enable_gro()
        self._gso = self._has_gso()
        self._ttl = DEFAULT_TTL

    def _set_buffers(self) -> None:
        for forced, plain in (
            (SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            if sys.platform == "linux":
                try:  # allowed to root only: goes past net.core.rmem_max
                    self._socket.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
                    continue
                except OSError:
                    pass
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)
            except OSError:  # macOS refuses sizes over kern.ipc.maxsockbuf: its default then stays
                pass

    def _set_dont_fragment(self) -> None:
        # A fragmented MTU probe would arrive and prove nothing (udx.md section 10).
        if sys.platform == "linux":
            self._socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)

    def _enable_gro(self) -> bool:
        if sys.platform != "linux":
            return False
        try:
            self._socket.setsockopt(SOL_UDP, UDP_GRO, 1)
        except OSError:  # kernel before 5.0
            return False
        return True

    def _has_gso(self) -> bool:
        if sys.platform != "linux":
            return False
        try:
            self._socket.setsockopt(SOL_UDP, UDP_SEGMENT, 0)
        except OSError:  # kernel before 4.18, which would send the batch as one datagram
            return False
        return True

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)

    def receive_batch(self) -> list[Datagram]:
        batch: list[Datagram] = []
        try:
            if self._gro:
                self._receive_joined(batch)
            else:
                receive = self._socket.recvfrom
                while len(batch) < MAX_BATCH:
                    batch.append(receive(RECEIVE_SIZE))
        except (BlockingIOError, ConnectionResetError):
            # Windows reports an ICMP "port unreachable" of an earlier send as a reset: ignored.
            pass
        return batch

    def _receive_joined(self, batch: list[Datagram]) -> None:
        receive = self._socket.recvmsg
        while len(batch) < MAX_BATCH:
            data, ancillary, _flags, address = receive(RECEIVE_SIZE, GRO_SPACE)
            if ancillary:
                (size,) = GRO_SIZE.unpack_from(ancillary[0][2])
                if size < len(data):
                    view = memoryview(data)
                    batch += [
                        (view[start : start + size], address) for start in range(0, len(data), size)
                    ]
                    continue
            batch.append((data, address))

    def send(self, data: bytes, address: Address, ttl: int = DEFAULT_TTL) -> bool:
        if ttl != self._ttl:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            self._ttl = ttl
        try:
            self._socket.sendto(data, address)
        except BlockingIOError:
            return False
        except OSError:
            # No route, no permission, larger than the link: to a datagram protocol that is a loss.
            pass
        return True

    def send_batch(self, datagrams: Sequence[bytes], address: Address) -> int:
        if not self._gso or len(datagrams) == 1:
            for index, data in enumerate(datagrams):
                if not self.send(data, address):
                    return index
            return len(datagrams)
        if self._ttl != DEFAULT_TTL:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, DEFAULT_TTL)
            self._ttl = DEFAULT_TTL
        start = 0
        total = len(datagrams)
        while start < total:
            stop = self._run_of_equal_size(datagrams, start)
            try:
                if stop - start == 1:
                    self._socket.sendto(datagrams[start], address)
                else:
                    size = SEGMENT_SIZE.pack(len(datagrams[start]))
                    self._socket.sendmsg(
                        datagrams[start:stop], [(SOL_UDP, UDP_SEGMENT, size)], 0, address
                    )
            except BlockingIOError:
                return start
            except OSError as err:
                if stop - start > 1:
                    # No checksum offload on this device: never again. Anything else may be about
                    # one of them, such as an MTU probe larger than the link, and not the others.
                    if err.errno in (errno.EIO, errno.EOPNOTSUPP):
                        self._gso = False
                    for index in range(start, stop):
                        if not self.send(datagrams[index], address):
                            return index
            start = stop
        return total

    @staticmethod
    def _run_of_equal_size(datagrams: Sequence[bytes], start: int) -> int:
        """End of the longest run for one UDP_SEGMENT call: only its last may be shorter."""
        size = len(datagrams[start])
        stop = start + 1
        limit = min(len(datagrams), start + min(MAX_SEGMENTS, MAX_BURST // size))
        while stop < limit:
            length = len(datagrams[stop])
            if length > size:
                break
            stop += 1
            if length < size:
                break
        return stop

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
