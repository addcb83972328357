"""Bytes that were written and never sent, cut into packet payloads without joining the writes."""

from __future__ import annotations

from collections import deque

__all__ = ["SendBuffer"]


class SendBuffer:
    """A queue of written chunks. Payloads are views into them, so that a byte is copied only once,
    into the datagram."""

    __slots__ = ("_chunks", "_position", "size")

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._position = 0  # bytes of the first chunk that were taken
        self.size = 0

    def append(self, data: bytes) -> None:
        """Queue `data`; anything but bytes is copied, since its owner could change it later."""
        chunk = data if isinstance(data, bytes) else bytes(data)
        if chunk:
            self._chunks.append(memoryview(chunk))
            self.size += len(chunk)

    def take(self, count: int, payload_size: int) -> list[memoryview | bytes]:
        """Remove up to `count` payloads of `payload_size` bytes; only the last may be shorter.

        A payload within one write is a view; one that spans writes is joined.
        """
        payloads: list[memoryview | bytes] = []
        chunks = self._chunks
        while len(payloads) < count and chunks:
            chunk = chunks[0]
            start = self._position
            whole = min((len(chunk) - start) // payload_size, count - len(payloads))
            if whole:
                stop = start + whole * payload_size
                payloads += [
                    chunk[at : at + payload_size] for at in range(start, stop, payload_size)
                ]
                self._position = stop
                self.size -= stop - start
                if stop == len(chunk):
                    chunks.popleft()
                    self._position = 0
            else:
                payloads.append(self._take_across(payload_size))
        return payloads

    def _take_across(self, size: int) -> memoryview | bytes:
        pieces: list[memoryview] = []
        chunks = self._chunks
        wanted = size
        while wanted and chunks:
            chunk = chunks[0]
            piece = chunk[self._position : self._position + wanted]
            pieces.append(piece)
            wanted -= len(piece)
            self._position += len(piece)
            if self._position == len(chunk):
                chunks.popleft()
                self._position = 0
        self.size -= size - wanted
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def clear(self) -> None:
        self._chunks.clear()
        self._position = 0
        self.size = 0
