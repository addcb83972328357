"""The live tail, from a request that brings a record to a viewer that sees it."""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager
from socket import SO_RCVBUF, SOL_SOCKET

import pytest
import trio
from trio_websocket import ConnectionClosed

from hyperlog import tail as tail_module
from hyperlog.web import connection
from tests.web.site import LOGS, site, until


class Events:
    """The tail as a bare client reads it: each of its chunks holds whole events."""

    def __init__(self, stream):
        self._stream = stream
        self._text = b""

    async def head(self):
        while b"\r\n\r\n" not in self._text:
            self._text += await self._stream.receive_some()
        head, _, self._text = self._text.partition(b"\r\n\r\n")
        return head

    async def line(self):
        while b"\n" not in self._text:
            more = await self._stream.receive_some()
            if not more:
                raise EOFError
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        return line

    async def next(self):
        """Name and data."""
        name = None
        while True:
            line = await self.line()
            if line.startswith(b"event: "):
                name = line.removeprefix(b"event: ").decode()
            elif line.startswith(b"data: "):
                return name, json.loads(line.removeprefix(b"data: "))
            elif line == b"0\r":
                raise EOFError


@asynccontextmanager
async def events(here, token, query=""):
    async with await here.stream() as stream:
        await stream.send_all(
            f"GET /api/v1/tail{query} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {token}\r\n\r\n".encode()
        )
        seen = Events(stream)
        head = await seen.head()
        assert head.startswith(b"HTTP/1.1 200")
        assert b"text/event-stream" in head
        yield seen


async def test_a_viewer_sees_what_it_asked_for_as_it_comes(tmp_path):
    async with site(tmp_path) as here:
        async with (
            here.client(here.token()) as sender,
            events(here, here.reader(), "?q=disk&level=error") as stream,
        ):
            records = [
                {"message": "disk full", "level": "error"},
                {"message": "disk fine"},
                {"message": "cpu hot", "level": "error"},
                {"message": {"disk": "a disk is full"}, "level": "critical"},
            ]
            await sender.post(LOGS, json=records)
            found = []
            with trio.fail_after(10):
                while len(found) < 2:
                    name, data = await stream.next()
                    assert name == "records"
                    found += data
            assert [one["level"] for one in found] == ["ERROR", "CRITICAL"]
            assert found[0]["body"]["message"] == "disk full"
        await until(lambda: not here.server.tail.statistics().viewers)


async def test_a_token_shows_its_own_application_alone(tmp_path):
    async with (
        site(tmp_path) as here,
        here.client(here.token()) as cerco,
        here.client(here.token("midas")) as midas,
        events(here, here.reader(), "?q=bucket:midas%20OR%20x") as stream,
    ):
        await midas.post(LOGS, json={"message": "x midas"})
        await cerco.post(LOGS, json={"message": "x cerco"})
        with trio.fail_after(10):
            _, [record] = await stream.next()
        assert record["message"] == "x cerco"


async def test_a_viewer_ends_with_its_token(tmp_path):
    async with site(tmp_path) as here:
        tokens = here.server.tokens
        token, claims = tokens.issue("cerco", now=time.time(), scopes=("read",))
        async with events(here, token) as stream:
            tokens.revoke(claims.jti, time.time())
            with trio.fail_after(2), pytest.raises(EOFError):
                await stream.next()


async def test_what_a_viewer_misses_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(tail_module, "MAX_WAITING", 10)
    async with (
        site(tmp_path) as here,
        here.client(here.token()) as sender,
        events(here, here.reader()) as stream,
    ):
        await sender.post(LOGS, json=[{"message": f"{n}"} for n in range(500)])
        shown = dropped = 0
        with trio.fail_after(10):
            while shown + dropped < 501:  # and the note of the new session
                name, data = await stream.next()
                if name == "records":
                    shown += len(data)
                else:
                    dropped += data["count"]
        assert dropped > 0


async def test_the_number_of_viewers_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tail_module, "MAX_VIEWERS", 1)
    async with (
        site(tmp_path) as here,
        events(here, here.reader()),
        here.client(here.reader()) as client,
    ):
        answer = await client.get("/api/v1/tail")
        assert (answer.status_code, answer.json()["code"]) == (503, "LIMIT")


async def test_a_viewer_that_stops_reading_is_cut_off_and_slows_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "SEND_TIMEOUT", 0.3)
    async with site(tmp_path) as here, here.client(here.token()) as sender:
        stream = await here.stream()
        async with stream:
            stream.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
            await stream.send_all(
                b"GET /api/v1/tail HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
                + here.reader().encode()
                + b"\r\n\r\n"
            )
            await until(lambda: here.server.tail.statistics().viewers)
            records = [{"message": "x" * 20_000} for _ in range(50)]
            with trio.fail_after(20):
                while here.shared.server.statistics().cut_off == 0:
                    assert (await sender.post(LOGS, json=records)).status_code == 200
            assert not here.server.tail.statistics().viewers


async def test_the_tail_is_also_a_websocket(tmp_path):
    async with site(tmp_path) as here, here.client(here.token()) as sender:
        tokens = here.server.tokens
        token, claims = tokens.issue("cerco", now=time.time(), scopes=("read",))
        async with here.websocket("/api/v1/tail?level=error", token=token) as websocket:
            await until(lambda: here.server.tail.statistics().viewers)
            await sender.post(LOGS, json={"message": "x", "level": "error"})
            with trio.fail_after(10):
                message = json.loads(await websocket.get_message())
            assert [one["message"] for one in message["records"]] == ["x"]
            assert message["dropped"] == 0
            tokens.revoke(claims.jti, time.time())
            with trio.fail_after(2), pytest.raises(ConnectionClosed) as caught:
                await websocket.get_message()
            assert caught.value.reason.code == 1008
        await until(lambda: not here.server.tail.statistics().viewers)


async def test_a_websocket_viewer_that_is_gone_is_noticed(tmp_path):
    async with site(tmp_path) as here:
        async with here.websocket("/api/v1/tail", token=here.reader()):
            await until(lambda: here.server.tail.statistics().viewers)
        await until(lambda: not here.server.tail.statistics().viewers)


async def test_a_head_of_the_tail_ends(tmp_path):
    async with site(tmp_path) as here, here.client(here.reader()) as client:
        assert (await client.head("/api/v1/tail")).status_code == 200


UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(("headers", "accepted"), [("", 200), (UPGRADE, 101)])
async def test_viewers_that_come_together_are_no_more_than_there_may_be(
    tmp_path, monkeypatch, headers, accepted
):
    monkeypatch.setattr(tail_module, "MAX_VIEWERS", 2)
    statuses = []
    async with site(tmp_path) as here, trio.open_nursery() as nursery:
        request = (
            f"GET /api/v1/tail HTTP/1.1\r\nHost: localhost\r\n{headers}"
            f"Authorization: Bearer {here.reader()}\r\n\r\n"
        ).encode()

        async def watch():
            async with await here.stream() as stream:
                await stream.send_all(request)
                statuses.append(int((await stream.receive_some()).split()[1]))
                await until(lambda: len(statuses) == 8)

        for _ in range(8):
            nursery.start_soon(watch)
    assert sorted(statuses) == [accepted, accepted, *[503] * 6]
