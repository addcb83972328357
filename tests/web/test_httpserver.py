"""Connections that are slow, many, or not what they seem; answers that come early; the end."""

from __future__ import annotations

import gc
import json
import struct
from functools import partial
from socket import SO_LINGER, SO_RCVBUF, SOL_SOCKET

import pytest
import trio
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from hyperlog.web import body, connection, httpserver
from hyperlog.web.body import MAX_BODY
from hyperlog.web.guard import Guard
from hyperlog.web.hosts import HostList
from hyperlog.web.httpserver import HTTPServer
from tests.web.site import LOGS, site, until

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def read_answer(stream):
    """Status, headers and body of one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return None
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(rest) < int(headers.get("content-length", 0)):
        rest += await stream.receive_some()
    return int(lines[0].split()[1]), headers, rest


async def is_ended(stream, within=5.0):
    with trio.move_on_after(within):
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        return True
    return False


async def test_a_connection_answers_one_request_after_the_other(tmp_path):
    async with site(tmp_path) as here, await here.stream() as stream:
        for _ in range(3):
            await stream.send_all(GET)
            status, _, text = await read_answer(stream)
            assert (status, text) == (200, b'{"status":"ok"}')


async def test_headers_that_never_end_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(httpserver, "IDLE_TIMEOUT", 0.2)
    async with site(tmp_path) as here:
        async with await here.stream() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: local")
            assert await is_ended(stream)
        async with await here.stream() as silent:
            assert await is_ended(silent)


async def test_headers_above_the_limit_are_refused(tmp_path):
    async with site(tmp_path) as here, await here.stream() as stream:
        await stream.send_all(GET[:-2] + b"X: " + b"x" * httpserver.MAX_HEADERS)
        data = b""
        try:
            while more := await stream.receive_some():
                data += more
        except trio.BrokenResourceError:
            pass  # the end may come before the answer was read
        assert data[:13] in (b"", b"HTTP/1.1 431 ")


async def test_a_body_that_comes_too_slowly_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(body, "STALL_TIMEOUT", 0.1)
    monkeypatch.setattr("hyperlog.web.guard.LINGER", 0.1)
    async with site(tmp_path) as here:
        async with await here.stream() as stream:
            await stream.send_all(
                f"POST {LOGS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
                f"Authorization: Bearer {here.token()}\r\n\r\n{{".encode()
            )
            status, headers, text = await read_answer(stream)
            assert status == 408
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(text)["limit"] == 0.1
            assert await is_ended(stream)
        assert here.shared.room.left == body.MAX_BODIES
        assert here.listing() == []


async def test_a_body_that_breaks_off_leaves_nothing(tmp_path):
    async with site(tmp_path) as here:
        stream = await here.stream()
        await stream.send_all(
            f"POST {LOGS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            f'Authorization: Bearer {here.token()}\r\n\r\n{{"message":"x"}}\n'.encode()
        )
        await until(lambda: here.shared.room.left < body.MAX_BODIES)
        await stream.aclose()
        await until(lambda: here.shared.room.left == body.MAX_BODIES)
        await until(lambda: not here.shared.server.statistics().connections)
        assert here.listing() == []


async def test_an_answer_that_comes_before_the_body_is_read_reaches_the_sender(tmp_path):
    """Without reading on, the system would reset the connection, and the answer be lost."""
    async with site(tmp_path) as here, here.client(here.token()) as client:
        answer = await client.post(LOGS, content=b"x" * (4 * MAX_BODY))
        assert (answer.status_code, answer.json()["limit"]) == (413, MAX_BODY)
        answer = await client.post("/nowhere", content=b"x" * (4 * MAX_BODY))
        assert answer.status_code == 404


async def test_a_sender_that_goes_on_after_its_answer_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperlog.web.guard.LINGER", 0.2)
    async with site(tmp_path) as here:
        async with await here.stream() as stream:
            await stream.send_all(
                b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            with trio.fail_after(10):
                try:
                    while True:
                        await stream.send_all(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                except trio.BrokenResourceError:
                    pass
        await until(lambda: not here.shared.server.statistics().connections)


async def test_what_all_requests_hold_together_is_bounded(tmp_path, monkeypatch):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        here.shared.room.left = 1000
        answer = await client.post(LOGS, json={"message": "x" * 2000})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert (await client.post(LOGS, json={"message": "x"})).status_code == 200
        assert here.shared.room.left == 1000


async def test_http_2_is_not_spoken(tmp_path):
    async with site(tmp_path) as here:
        async with await here.stream() as stream:
            await stream.send_all(
                GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
            )
            status, _, _ = await read_answer(stream)
            assert status == 200
        async with await here.stream() as stream:
            await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            answer = await read_answer(stream)
            assert answer is None or answer[0] >= 400


async def test_the_number_of_connections_is_bounded(tmp_path):
    async with site(tmp_path) as here:
        here.shared.server._max_connections = 3
        streams = [await here.stream() for _ in range(3)]
        await until(lambda: here.shared.server.statistics().connections == 3)
        async with await here.stream() as stream:
            status, _, _ = await read_answer(stream)
            assert status == 503
        assert here.shared.server.statistics().refused == 1
        for stream in streams:
            await stream.send_all(GET)
            assert (await read_answer(stream))[0] == 200
            await stream.aclose()
        await until(lambda: not here.shared.server.statistics().connections)


@pytest.mark.parametrize("bytes_read", [0, 5000])
async def test_a_peer_that_does_not_read_is_cut_off(monkeypatch, bytes_read):
    monkeypatch.setattr(connection, "SEND_TIMEOUT", 0.3)

    async def large(request):
        return Response(b"x" * 50_000_000)

    app = Starlette(routes=[Route("/large", large)])
    async with trio.open_nursery() as nursery:
        server = HTTPServer(app, 10)
        address = await nursery.start(server.run, ("127.0.0.1", 0))
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            stream.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
            await stream.send_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while bytes_read > 0:
                bytes_read -= len(await stream.receive_some())
            await until(lambda: server.statistics().cut_off == 1)
            assert server.statistics().connections == 0
        nursery.cancel_scope.cancel()


async def test_the_end_does_not_wait_for_a_peer_that_does_not_read():
    async def large(request):
        return Response(b"x" * 50_000_000)

    app = Starlette(routes=[Route("/large", large)])
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            server = HTTPServer(app, 10)
            address = await nursery.start(server.run, ("127.0.0.1", 0))
            stream = await trio.open_tcp_stream(*address)
            await stream.send_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await stream.receive_some()
            nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


async def test_a_reset_in_the_middle_of_anything_leaves_nothing_behind(tmp_path):
    async with site(tmp_path) as here:
        token = here.token().encode()
        requests = [
            b"",
            GET[:10],
            GET,
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            b"Authorization: Bearer %b\r\n\r\n{" % (LOGS.encode(), token),
            b"GET /api/v1/tail HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n"
            % here.reader().encode(),
        ]
        for request in requests:
            stream = await here.stream()
            await stream.send_all(request)
            stream.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
        await until(lambda: here.shared.server.statistics().accepted == len(requests))
        await until(lambda: not here.shared.server.statistics().connections)
        assert here.listing() == []
    gc.collect()


async def test_an_endpoint_that_fails_is_an_answer_with_an_id_and_a_log_entry(caplog):
    async def fail(request):
        raise RuntimeError("secret detail")

    async def fail_late(request):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise RuntimeError

        return app

    app = Starlette(routes=[Route("/fail", fail), Route("/late", fail_late)])
    app.state.shared = type("Shared", (), {"answers": {}, "refusals": {}})
    from collections import Counter

    app.state.shared.answers = Counter()
    guarded = Starlette(routes=app.routes)
    guarded.add_middleware(Guard, hosts=HostList("127.0.0.1"))
    guarded.state.shared = app.state.shared
    async with trio.open_nursery() as nursery:
        server = HTTPServer(guarded, 10)
        address = await nursery.start(partial(server.run, ("127.0.0.1", 0)))
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"GET /fail HTTP/1.1\r\nHost: localhost\r\n\r\n")
            status, headers, text = await read_answer(stream)
            assert status == 500
            assert b"secret" not in text
            assert f"[{headers['x-request-id']}]" in caplog.text
            await stream.send_all(b"GET /late HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await is_ended(stream)
        nursery.cancel_scope.cancel()


async def test_what_is_made_of_a_request_counts_for_what_all_hold_together(tmp_path):
    resource = {"attributes": [{"key": "x", "value": {"stringValue": "x" * 20_000}}]}
    logs = {"resource": resource, "scopeLogs": [{"logRecords": [{}] * 50}]}
    async with site(tmp_path) as here, here.client(here.token()) as client:
        whole, here.shared.room.left = here.shared.room.left, 500_000
        answer = await client.post("/v1/logs", json={"resourceLogs": [logs]})
        assert answer.status_code == 503
        assert here.shared.room.left == 500_000
        here.shared.room.left = whole
        answer = await client.post("/v1/logs", json={"resourceLogs": [logs]})
        assert answer.status_code == 200
        assert here.shared.room.left == whole
