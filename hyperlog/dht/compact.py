"""compact-encoding: the field encoding of every HyperDHT message.

Integers are little-endian; a `uint` takes 1, 3, 5 or 9 bytes.
Spec: docs/protocol/dht-rpc.md section 1; compact-encoding index.js, compact-encoding-net.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from hyperlog.dht.errors import InvalidValue, LocalProtocolError, Truncated

__all__ = ["Address", "Reader", "Writer"]

Address = tuple[str, int]
"""Host as text (dotted IPv4, or IPv6) and port."""

T = TypeVar("T")

MAX_ARRAY: Final = 0x100000  # items, compact-encoding index.js `array`


class Reader:
    """A cursor over received bytes; every read is checked against `end` first.

    Raises nothing but Truncated and InvalidValue (both RemoteProtocolError); after either, the read
    position is undefined and the message must be dropped.
    """

    __slots__ = ("_data", "_end", "_position")

    def __init__(self, data: bytes | memoryview, start: int = 0, end: int | None = None) -> None:
        self._data = bytes(data)
        self._position = start
        self._end = len(self._data) if end is None else end

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return self._end - self._position

    def fixed(self, size: int) -> bytes:
        """Read exactly `size` bytes, without a length in front."""
        start = self._position
        stop = start + size
        if stop > self._end:
            raise Truncated(f"{size} bytes promised, {self._end - start} there")
        self._position = stop
        return self._data[start:stop]

    def uint8(self) -> int:
        return self.fixed(1)[0]

    def uint16(self) -> int:
        return int.from_bytes(self.fixed(2), "little")

    def uint32(self) -> int:
        return int.from_bytes(self.fixed(4), "little")

    def uint64(self) -> int:
        return int.from_bytes(self.fixed(8), "little")

    def uint(self) -> int:
        """Read one unsigned integer, 0 … 2**64 - 1 (JS peers send at most 2**53 - 1).

        One byte up to 0xFC; above that a marker byte 0xFD, 0xFE or 0xFF and 2, 4 or 8 little-endian
        bytes. Over-long forms are accepted, as the JavaScript decoder accepts them.

        Wire: docs/protocol/dht-rpc.md section 1; compact-encoding index.js `uint`.
        """
        first = self.fixed(1)[0]
        if first <= 0xFC:
            return first
        return int.from_bytes(self.fixed(1 << (first - 0xFC)), "little")

    def signed(self) -> int:
        """Read one zigzag-encoded signed integer."""
        n = self.uint()
        return -((n + 1) >> 1) if n & 1 else n >> 1

    def boolean(self) -> bool:
        return self.fixed(1)[0] == 1

    def buffer(self) -> bytes:
        """Read a byte string with its length in front; the empty one also stands for JS `null`."""
        return self.fixed(self.uint())

    def string(self) -> str:
        """Read UTF-8 text with its length in bytes in front."""
        try:
            return self.buffer().decode("utf-8")
        except UnicodeDecodeError as err:
            raise InvalidValue("string is not UTF-8") from err

    def ipv4_address(self) -> Address:
        """Read 4 address bytes and a little-endian port."""
        raw = self.fixed(6)
        return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}", raw[4] | raw[5] << 8

    def ipv6_address(self) -> Address:
        """Read 16 address bytes in network order and a little-endian port."""
        raw = self.fixed(18)
        return str(ipaddress.IPv6Address(raw[:16])), raw[16] | raw[17] << 8

    def array(self, item: Callable[[], T], item_size: int = 1) -> list[T]:
        """Read a count and that many items, each of at least `item_size` bytes."""
        count = self.uint()
        if count > MAX_ARRAY:
            raise InvalidValue(f"array of {count} items, at most {MAX_ARRAY} allowed")
        if count * item_size > self.remaining:
            raise Truncated(f"{count} items promised, {self.remaining} bytes there")
        return [item() for _ in range(count)]


class Writer:
    """Collects encoded fields; `finish()` gives the bytes. Each method returns the writer itself.

    Raises:
        LocalProtocolError: a value does not fit its field.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def finish(self) -> bytes:
        return bytes(self._buffer)

    def fixed(self, data: bytes, size: int | None = None) -> Writer:
        """Append raw bytes; with `size`, insist on that length."""
        if size is not None and len(data) != size:
            raise LocalProtocolError(f"field takes {size} bytes, got {len(data)}")
        self._buffer += data
        return self

    def _integer(self, value: int, size: int) -> Writer:
        try:
            self._buffer += value.to_bytes(size, "little")
        except OverflowError as err:
            raise LocalProtocolError(f"{value} does not fit {size} unsigned bytes") from err
        return self

    def uint8(self, value: int) -> Writer:
        return self._integer(value, 1)

    def uint16(self, value: int) -> Writer:
        return self._integer(value, 2)

    def uint32(self, value: int) -> Writer:
        return self._integer(value, 4)

    def uint64(self, value: int) -> Writer:
        return self._integer(value, 8)

    def uint(self, value: int) -> Writer:
        """Append 0 … 2**64 - 1 in its shortest form."""
        if 0 <= value <= 0xFC:
            self._buffer.append(value)
            return self
        for marker, size in ((0xFD, 2), (0xFE, 4), (0xFF, 8)):
            if 0 <= value < 1 << (8 * size):
                self._buffer.append(marker)
                return self._integer(value, size)
        raise LocalProtocolError(f"{value} is not an unsigned 64-bit integer")

    def signed(self, value: int) -> Writer:
        return self.uint(2 * value if value >= 0 else -2 * value - 1)

    def boolean(self, value: bool) -> Writer:
        self._buffer.append(1 if value else 0)
        return self

    def buffer(self, data: bytes) -> Writer:
        self.uint(len(data))
        self._buffer += data
        return self

    def string(self, text: str) -> Writer:
        return self.buffer(text.encode("utf-8"))

    def ipv4_address(self, address: Address) -> Writer:
        host, port = address
        try:
            self._buffer += ipaddress.IPv4Address(host).packed
        except ipaddress.AddressValueError as err:
            raise LocalProtocolError(f"{host!r} is not a dotted IPv4 address") from err
        return self.uint16(port)

    def ipv6_address(self, address: Address) -> Writer:
        host, port = address
        try:
            self._buffer += ipaddress.IPv6Address(host).packed
        except ipaddress.AddressValueError as err:
            raise LocalProtocolError(f"{host!r} is not an IPv6 address") from err
        return self.uint16(port)

    def array(self, items: Iterable[T], item: Callable[[T], Writer]) -> Writer:
        """Append a count and each of `items` by the writer method `item`."""
        items = list(items)
        self.uint(len(items))
        for value in items:
            item(value)
        return self
