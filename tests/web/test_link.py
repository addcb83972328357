"""The session protocol over WebSockets, to a real server."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from socket import SHUT_RDWR

import pytest
import trio
from trio_websocket import ConnectionClosed

from hyperlog.control import encode_batch
from hyperlog.limits import ServerLimits
from hyperlog.web import connection, httpserver
from tests.web.site import open_session, record, site, until

SESSION = "123456789"


def batch(first, count, session=SESSION):
    return encode_batch(session, first, [record(first + n, session) for n in range(count)])


async def acknowledged(websocket, number, session=SESSION):
    """Wait for the acknowledgement of a number."""
    with trio.fail_after(10):
        while True:
            ack = json.loads(await websocket.get_message()).get("ack", {})
            if ack.get("sessions", {}).get(session, -1) >= number:
                return


def numbers(here):
    return [line["traceNumber"] for line in here.lines()]


@pytest.mark.parametrize("text", [True, False], ids=["text", "binary"])
async def test_batches_are_acknowledged_when_they_are_durable(tmp_path, text):
    async with site(tmp_path) as here, here.websocket(token=here.token()) as websocket:
        assert await open_session(websocket) == {"welcome": {"sessions": {SESSION: -1}}}
        for first in range(0, 30, 10):
            data = batch(first, 10)
            await websocket.send_message(data.decode() if text else data)
            await acknowledged(websocket, first + 9)
            assert numbers(here) == list(range(first + 10))
        entry = here.server.connections.applications()["cerco"]["instances"]["a2b5"]
        assert (entry["transport"], entry["records"]) == ("websocket", 30)
        assert entry["round_trip_time"] > 0


async def test_a_client_that_comes_back_goes_on_where_the_server_is(tmp_path):
    async with site(tmp_path) as here:
        token = here.token()
        async with here.websocket(token=token) as websocket:
            await open_session(websocket)
            await websocket.send_message(batch(0, 10))
            await acknowledged(websocket, 9)
        async with here.websocket(token=token) as websocket:
            assert await open_session(websocket) == {"welcome": {"sessions": {SESSION: 9}}}
            await websocket.send_message(batch(5, 10))
            await acknowledged(websocket, 14)
        assert numbers(here) == list(range(15))


async def test_each_record_is_written_once_however_often_the_connection_breaks(tmp_path):
    """A client that is cut off at any moment and sends again what was not acknowledged."""
    total, held = 2000, -1
    async with site(tmp_path) as here:
        token = here.token()
        for attempt in range(100):
            if held == total - 1:
                break
            async with here.websocket(token=token, disconnect_timeout=0.01) as websocket:
                welcome = await open_session(websocket)
                held = welcome["welcome"]["sessions"][SESSION]
                for start in range(held + 1, min(held + 400, total), 40):
                    await websocket.send_message(batch(start, min(40, total - start)))
                if attempt % 3 == 0 and held < total - 1:
                    await acknowledged(websocket, held + 1)
                # Not closed in order: gone, as if somebody had pulled the plug.
                websocket._stream.socket.shutdown(SHUT_RDWR)
        await until(lambda: not here.server.connections.open_connections)
        assert numbers(here) == list(range(total))


async def test_two_connections_of_one_session_do_not_double_it(tmp_path):
    async with site(tmp_path) as here:
        token = here.token()

        async def send():
            async with here.websocket(token=token) as websocket:
                await open_session(websocket)
                for first in range(0, 500, 50):
                    await websocket.send_message(batch(first, 50))
                await acknowledged(websocket, 499)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(send)
        assert numbers(here) == list(range(500))


async def test_a_restarted_server_remembers_what_it_has(tmp_path):
    for start in (0, 10):
        async with site(tmp_path) as here, here.websocket(token=here.token()) as websocket:
            welcome = await open_session(websocket)
            assert welcome["welcome"]["sessions"][SESSION] == start - 1
            await websocket.send_message(batch(0, start + 10))
            await acknowledged(websocket, start + 9)
    assert numbers(here) == list(range(20))


async def test_a_message_above_the_limit_ends_the_connection(tmp_path):
    async with site(tmp_path) as here, here.websocket(token=here.token()) as websocket:
        await open_session(websocket)
        await websocket.send_message(b"x" * (httpserver.MAX_WEBSOCKET_MESSAGE + 1))
        with pytest.raises(ConnectionClosed) as caught, trio.fail_after(10):
            await websocket.get_message()
        assert caught.value.reason.code == 1009
        await until(lambda: not here.server.connections.open_connections)


async def test_who_breaks_the_rules_is_cut_off_and_harms_nobody(tmp_path):
    async with site(tmp_path) as here:
        token = here.token()
        async with here.websocket(token=token) as good, here.websocket(token=token) as bad:
            await open_session(good, instance="good")
            await open_session(bad, instance="bad")
            await bad.send_message('{"batch":{"session":"1","from":0,"count":3}}\n{}')
            with pytest.raises(ConnectionClosed), trio.fail_after(10):
                await bad.get_message()
            await good.send_message(batch(0, 1))
            await acknowledged(good, 0)
        assert here.shared.server.statistics().cut_off == 1


async def test_who_is_gone_is_noticed(tmp_path):
    async with site(tmp_path) as here:
        async with here.websocket(token=here.token()) as websocket:
            await open_session(websocket)
            assert here.server.connections.open_connections == 1
        await until(lambda: not here.server.connections.open_connections)
        await until(lambda: not here.shared.server.statistics().connections)


async def test_the_number_of_connections_of_an_instance_is_bounded(tmp_path):
    limits = ServerLimits(connections_per_key=2)
    async with site(tmp_path, limits=limits) as here, trio.open_nursery() as nursery:
        token, refused = here.token(), trio.Event()

        async def connect():
            try:
                async with here.websocket(token=token) as websocket:
                    await open_session(websocket)
                    await websocket.send_message(batch(0, 1))
                    await websocket.get_message()
                    await websocket.get_message()
            except ConnectionClosed:
                refused.set()

        for _ in range(3):
            nursery.start_soon(connect)
        with trio.fail_after(10):
            await refused.wait()
        nursery.cancel_scope.cancel()


async def test_without_an_upgrade_the_path_says_what_it_is_for(tmp_path):
    async with site(tmp_path) as here, here.client() as client:
        answer = await client.get("/api/v1/ingest")
        assert answer.status_code == 426
        assert answer.headers["upgrade"] == "websocket"


async def test_messages_are_not_compressed_for_they_could_be_of_any_size(tmp_path):
    async with site(tmp_path) as here:
        stream = await here.stream()
        async with stream:
            await stream.send_all(
                b"GET /api/v1/ingest HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
                + f"Authorization: Bearer {here.token()}\r\n\r\n".encode()
            )
            answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"extensions" not in answer.lower()


async def test_a_stranger_s_empty_messages_hold_no_place(tmp_path):
    limits = ServerLimits(proof_time=0.5)
    async with site(tmp_path, limits=limits) as here, here.websocket() as websocket:
        await websocket.get_message()  # the greeting
        await websocket.send_message(b"")
        with pytest.raises(ConnectionClosed), trio.fail_after(10):
            await websocket.get_message()


async def test_a_connection_that_ends_as_it_is_being_accepted_gives_its_place_back(
    tmp_path, monkeypatch
):
    send, stalled = connection.HTTPConnection.protocol_send, trio.Event()

    async def protocol_send(self, event):
        if getattr(event, "data", b"").startswith(b"HTTP/1.1 101") and not stalled.is_set():
            stalled.set()
            await trio.sleep_forever()  # a peer that has asked for much before, and reads nothing
        await send(self, event)

    monkeypatch.setattr(connection.HTTPConnection, "protocol_send", protocol_send)
    limits = ServerLimits(connections=1, proof_time=0.2)
    async with site(tmp_path, limits=limits) as here:
        headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
        headers |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        async with await here.stream() as stream:
            head = f"GET /api/v1/ingest HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n"
            await stream.send_all(head.encode())
            with trio.fail_after(10):
                await stalled.wait()
                assert not await stream.receive_some()
        await until(lambda: not here.shared.server.statistics().connections)
        async with here.websocket(token=here.token()) as websocket:
            await open_session(websocket)


async def end_of_session(websocket, **options):
    await open_session(websocket, **options)
    while True:
        await websocket.get_message()


async def test_instances_behind_one_address_do_not_count_for_each_other(tmp_path):
    limits = ServerLimits(connections_per_key=1)
    async with site(tmp_path, limits=limits) as here, AsyncExitStack() as stack:
        token = here.token()
        for number, instance in enumerate(("a", "b", "c")):
            # Shown with the upgrade, or with the hello.
            websocket = await stack.enter_async_context(
                here.websocket(token=None if number == 1 else token)
            )
            await open_session(websocket, token=token, instance=instance)
            await websocket.send_message(batch(0, 1))
            await acknowledged(websocket, 0)
            await websocket.send_message(batch(1, 1))
            await acknowledged(websocket, 1)
        one_more = await stack.enter_async_context(here.websocket(token=token))
        with pytest.raises(ConnectionClosed), trio.fail_after(10):
            await end_of_session(one_more, instance="a")
