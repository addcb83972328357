"""Records a second over one WebSocket, loopback, 100,000 records of about 418 bytes of JSON, in
batches of 256 KiB; the clock runs from the first batch to the acknowledgement of the last record,
which comes when it is in the log file. The server is `hyperlog serve`, with files alone and with
the embedded store beside them. The client has all its frames ready: it is not what is measured.
Then records a second by requests of their own, POST with 500 records each, one after the other.
"""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import trio

from benchmarks.figures import Measured, Run, Target, WrongResult, alternate
from benchmarks.logfile import READ
from benchmarks.peers import LOCALHOST, Peer, run_peer
from hyperlog.control import encode_batch
from hyperlog.records import instance_source
from hyperlog.tokens import TokenAuthority

COUNT = 100_000
WARM_UP = 2_000
BATCH = 256 * 1024  # bytes, as our client sends
POSTED = 500  # records of one request
SESSION = "1786000000000000001"
INSTANCE = "benchmark"

FILES = "files alone"
STORE = "with the embedded store"
RATE = "records acknowledged over a WebSocket"
POST_RATE = "records taken by POST"
SIZE = "bytes of a record"
UNITS = {RATE: "records/s", POST_RATE: "records/s", SIZE: "bytes"}
TARGETS = {(RATE, FILES): Target(20_000.0)}


def record(number: int) -> bytes:
    """Shaped and sized like the traces of the other benchmarks."""
    return json.dumps(
        {
            "traceTimestamp": "2026-11-21T05:00:00.000Z",
            "traceSessionId": SESSION,
            "traceNumber": number,
            "level": "INFO",
            "logger": "shop.orders",
            "message": f"order {number} placed by customer c-20381, 3 items from north-east",
            "attributes": {
                "region": "eu-north-1",
                "currency": "EUR",
                "channel": "web",
                "amount": 1999,
                "items": 3,
                "customer": "c-20381",
                "state": "accepted",
                "warehouse": "north-east",
                "carrier": "north-parcel",
            },
        },
        separators=(",", ":"),
    ).encode()


def batches(first: int, count: int) -> list[bytes]:
    """Frames with all records."""
    frames: list[bytes] = []
    start, lines, size = first, [], 0
    for number in range(first, first + count):
        line = record(number)
        lines.append(line)
        size += len(line) + 1
        if size >= BATCH or number == first + count - 1:
            frames.append(frame(encode_batch(SESSION, start, lines)))
            start, lines, size = number + 1, [], 0
    return frames


def frame(data: bytes, opcode: int = 2) -> bytes:
    """A client's frame; with a mask of zeros, which takes a server as long as any."""
    size = len(data)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + bytes(4) + data


class WebSocket:
    """As little of one as is needed."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = b""

    async def upgrade(self, host: str, token: str) -> None:
        await self._stream.send_all(
            f"GET /api/v1/ingest HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {secrets.token_urlsafe(16)}==\r\n"
            f"Authorization: Bearer {token}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._data:
            await self._receive()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise WrongResult(f"no WebSocket: {head[:200]!r}")

    async def send(self, frames: list[bytes]) -> None:
        for one in frames:
            await self._stream.send_all(one)

    async def message(self) -> dict[str, dict[str, dict[str, int]]]:
        while True:
            while len(self._data) < 4 or len(self._data) < self._end():
                await self._receive()
            end = self._end()
            opcode, payload = self._data[0] & 15, self._data[end - self._size() : end]
            self._data = self._data[end:]
            if opcode in (1, 2):
                return json.loads(payload)

    async def acknowledged(self, number: int) -> None:
        while True:
            message = await self.message()
            if message.get("ack", {}).get("sessions", {}).get(SESSION, -1) >= number:
                return

    def _size(self) -> int:
        size = self._data[1] & 127
        return size if size < 126 else int.from_bytes(self._data[2:4], "big")

    def _end(self) -> int:
        return self._size() + (2 if self._data[1] & 127 < 126 else 4)

    async def _receive(self) -> None:
        data = await self._stream.receive_some(READ)
        if not data:
            raise WrongResult("the server ended the connection")
        self._data += data


@dataclass
class Served:
    peer: Peer
    folder: Path
    address: tuple[str, int]
    token: str

    @property
    def log(self) -> Path:
        return self.folder / f"{instance_source('shop', INSTANCE).hex()}.log"


@asynccontextmanager
async def served(store: str) -> AsyncIterator[Served]:
    """`hyperlog serve` with HTTP, and a token for it."""
    with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
        folder = Path(name)
        tokens = TokenAuthority(folder / ".hyperlog")
        token, _ = tokens.issue("shop", now=time.time())
        tokens.close()
        command = [
            *(sys.executable, "-m", "hyperlog", "serve", "--json", "--local"),
            *("--host", LOCALHOST, "--http", f"{LOCALHOST}:0", "--store", store),
            *("--folder", folder, "--keys", folder / "keys.dat"),
        ]
        async with run_peer(command, ready="started") as peer:
            url = urlsplit(str(peer.ready["http"]))
            assert url.hostname is not None
            assert url.port is not None
            yield Served(peer, folder, (url.hostname, url.port), token)


def check(log: Path, count: int) -> None:
    """Raises:
    WrongResult: the file has not exactly these records in their order.
    """
    lines = [line for line in log.read_bytes().splitlines() if b'"note"' not in line[:200]]
    numbers = [json.loads(line)["traceNumber"] for line in lines]
    if numbers != list(range(count)):
        raise WrongResult(f"{len(numbers)} records in the file instead of {count}, or not in order")


async def _run(store: str) -> Run:
    async with served(store) as server:
        async with await trio.open_tcp_stream(*server.address) as stream:
            websocket = WebSocket(stream)
            await websocket.upgrade(f"{server.address[0]}:{server.address[1]}", server.token)
            await websocket.message()
            hello = {"version": 2, "instance": INSTANCE, "sessions": {SESSION: -1}}
            await websocket.send([frame(json.dumps({"hello": hello}).encode(), 1)])
            await websocket.message()
            await websocket.send(batches(0, WARM_UP))
            await websocket.acknowledged(WARM_UP - 1)

            frames = batches(WARM_UP, COUNT)
            before = server.peer.cost()
            begin = time.monotonic()
            with trio.fail_after(120):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(websocket.send, frames)
                    await websocket.acknowledged(WARM_UP + COUNT - 1)
            seconds = time.monotonic() - begin
            costs = {"server": server.peer.cost().since(before)}
        check(server.log, WARM_UP + COUNT)
        return Run(
            {
                RATE: COUNT / seconds,
                POST_RATE: await _post(server, COUNT // 5),
                SIZE: sum(map(len, frames)) / COUNT,
            },
            costs,
        )


async def _post(server: Served, count: int) -> float:
    """Records a second by requests, each answered when its records are durable."""
    bodies = [
        b"[" + b",".join(b'{"message":"m",%b' % record(n)[1:] for n in range(s, s + POSTED)) + b"]"
        for s in range(0, count, POSTED)
    ]
    requests = [
        f"POST /api/v1/logs HTTP/1.1\r\nHost: {LOCALHOST}\r\nContent-Length: {len(body)}\r\n"
        f"X-Hyperlog-Instance: posted\r\nAuthorization: Bearer {server.token}\r\n\r\n".encode()
        + body
        for body in bodies
    ]
    async with await trio.open_tcp_stream(*server.address) as stream:
        begin = time.monotonic()
        for request in requests:
            await stream.send_all(request)
            answer = b""
            while b'"accepted":' not in answer:
                more = await stream.receive_some()
                if not more:
                    raise WrongResult(f"the server ended the connection after {answer[:200]!r}")
                answer += more
            if f'"accepted":{POSTED}'.encode() not in answer:
                raise WrongResult(f"not all records were taken: {answer[-200:]!r}")
        return count / (time.monotonic() - begin)


async def measure(repeats: int) -> Measured:
    measured = Measured()
    pairs = {FILES: partial(_run, "off"), STORE: partial(_run, "sqlite")}
    runs = await alternate("websocket", repeats, pairs)
    for peers in pairs:
        measured.add(peers, runs[peers], UNITS, TARGETS)
    return measured
