"""Reads what a request carries, as far as its limits go.

What is held of all requests together is bounded, too: whoever finds no room is told to come again.
"""

from __future__ import annotations

import zlib
from types import TracebackType
from typing import Final

import trio
from starlette.requests import Request

from hyperlog.web.problems import Problem

__all__ = ["Body", "BodyRoom"]

MAX_BODY: Final = 8 * 1024 * 1024  # bytes, and as many after decompression
MAX_BODIES: Final = 64 * 1024 * 1024  # bytes of all requests
BODY_TIMEOUT: Final = 30.0  # s for a body as a whole
STALL_TIMEOUT: Final = 10.0  # s without a byte
MAX_MEMBERS: Final = 64  # of gzip in one body
GZIP: Final = 16 + zlib.MAX_WBITS  # a gzip header is asked for


class BodyRoom:
    """What all requests of an application hold."""

    def __init__(self, size: int = MAX_BODIES) -> None:
        self.left = size

    def take(self, size: int) -> None:
        if size > self.left:
            raise Problem(503, "the server is busy with other requests", retry_after=1)
        self.left -= size


class Body:
    """The body of a request, while it is being worked on."""

    def __init__(self, request: Request, room: BodyRoom, max_size: int = MAX_BODY) -> None:
        self._request = request
        self._room = room
        self._max_size = max_size
        self._held = 0

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._room.left += self._held
        self._held = 0

    def hold(self, size: int) -> None:
        """Count what was made of it as well.

        Raises:
            Problem: there is no room for so much.
        """
        self._room.take(size)
        self._held += size

    async def read(self) -> bytes:
        """All of it, decompressed.

        Raises:
            Problem: it is too large, came too slowly or is not what its headers say.
        """
        headers = self._request.headers
        encodings = [one.strip().lower() for one in headers.get("content-encoding", "").split(",")]
        encodings = [one for one in encodings if one not in ("", "identity")]
        if encodings not in ([], ["gzip"]):
            raise Problem(
                415,
                "a body is sent as it is, or with gzip once",
                field="Content-Encoding",
                headers={"Accept-Encoding": "gzip"},
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_size:
            raise self._too_large()
        with trio.move_on_after(BODY_TIMEOUT):
            data = await self._received()
            return self._unzipped(data) if encodings else data
        raise Problem(408, f"a body has to arrive within {BODY_TIMEOUT:.0f} s", limit=BODY_TIMEOUT)

    async def _received(self) -> bytes:
        chunks = []
        while True:
            with trio.move_on_after(STALL_TIMEOUT):
                message = await self._request.receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "the body ends too early", field="body")
                chunk = message.get("body", b"")
                self._hold(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
                continue
            raise Problem(
                408, f"nothing came for {STALL_TIMEOUT:.0f} s", limit=STALL_TIMEOUT, field="body"
            )

    def _hold(self, size: int) -> None:
        if self._held + size > self._max_size:
            raise self._too_large()
        self.hold(size)

    def _unzipped(self, data: bytes) -> bytes:
        """Members that follow each other are one body, as with files."""
        room = self._max_size
        parts: list[bytes] = []
        while data:
            if len(parts) == MAX_MEMBERS:  # each costs a copy of all that follow
                raise Problem(400, f"more than {MAX_MEMBERS} gzip members", limit=MAX_MEMBERS)
            unzip = zlib.decompressobj(GZIP)
            try:
                # One byte more than there is room for tells whether it is too much.
                part = unzip.decompress(data, room + 1)
            except zlib.error:
                raise Problem(400, "the body is not gzip", field="Content-Encoding") from None
            room -= len(part)
            if room < 0:
                raise self._too_large()
            if not unzip.eof:
                raise Problem(400, "the gzip ends too early", field="body")
            self.hold(len(part))
            parts.append(part)
            data = unzip.unused_data
        return b"".join(parts)

    def _too_large(self) -> Problem:
        return Problem(
            413,
            f"a body has at most {self._max_size} bytes, decompressed as well",
            field="body",
            limit=self._max_size,
        )
