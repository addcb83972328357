"""Viewers that leave, or stop reading, cost nothing any more."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from socket import SO_RCVBUF, SOL_SOCKET
from sqlite3 import connect
from urllib.parse import urlencode

import httpx
import pytest
import trio

from hyperlog import tail as tail_module
from hyperlog.registry import REGISTRY_NAME, Registry
from hyperlog.store import evaluate
from hyperlog.store.records import decode_body
from hyperlog.store.sqlite import EmbeddedStore
from hyperlog.users import Logins, Users, hash_password
from hyperlog.web import connection
from hyperlog.web.panel import livepage, peerspage
from tests.web.panel.browser import PASSWORD
from tests.web.site import LOGS, site, until


@asynccontextmanager
async def panel(folder):
    """A site with a store and a user, the address of its panel, and a cookie."""
    async with site(folder, store="sqlite") as here:
        registry = Registry(here.server.config.data)
        Users(registry).add("ada", "admin", hash_password(PASSWORD), time.time())
        registry.close()
        host, port = here.server.http_address
        url = f"http://{host}:{port}"
        headers = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
            answer = await client.post("/login", data={"name": "ada", "password": PASSWORD})
            assert answer.status_code == 303
            yield here, client


@asynccontextmanager
async def get(client, path):
    """A connection that has asked for something, and reads as the test does."""
    url = client.base_url
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    async with await trio.open_tcp_stream(url.host, url.port) as stream:
        stream.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        await stream.send_all(
            f"GET {path} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nCookie: {cookie}\r\n"
            "Sec-Fetch-Site: same-origin\r\n\r\n".encode()
        )
        yield stream


async def test_a_viewer_that_stops_reading_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "SEND_TIMEOUT", 0.3)
    async with (
        panel(tmp_path) as (here, client),
        here.client(here.token()) as sender,
        get(client, "/live/events") as stream,
    ):
        await until(lambda: here.server.tail.statistics().viewers)
        records = [{"message": "x" * 20_000} for _ in range(50)]
        with trio.fail_after(30):
            while here.server.tail.statistics().viewers:
                assert (await sender.post(LOGS, json=records)).status_code == 200
        # The answer breaks off: the browser connects again, and the page says so.
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass


async def test_a_viewer_stays_while_its_login_cannot_be_looked_up(tmp_path, monkeypatch):
    looks = []

    def look(logins, *arguments):
        looks.append(arguments)
        return find(logins, *arguments)

    find = Logins.find
    monkeypatch.setattr(Logins, "find", look)
    monkeypatch.setattr(livepage, "LOGIN_CHECK", 0.05)
    async with panel(tmp_path) as (here, client), get(client, "/live/events") as stream:
        await until(lambda: here.server.tail.statistics().viewers)
        registry = connect(here.server.config.data / REGISTRY_NAME, isolation_level=None)
        registry.execute("BEGIN EXCLUSIVE")
        seen = len(looks)
        await until(lambda: len(looks) >= seen + 2)
        registry.execute("DELETE FROM login")
        registry.execute("COMMIT")
        registry.close()
        text = b""
        with trio.fail_after(10):
            while b"event: over" not in text:
                text += await stream.receive_some()


@pytest.mark.parametrize("path", ["/explore", "/explore/histogram", "/explore/facet?field=level"])
async def test_what_nobody_waits_for_is_not_looked_for_any_more(tmp_path, monkeypatch, path):
    events = []

    async def forever(*_arguments, **_options):
        events.append("asked")
        try:
            await trio.sleep_forever()
        finally:
            events.append("ended")

    async with panel(tmp_path) as (_here, client):
        for name in ("search", "histogram", "top"):
            monkeypatch.setattr(EmbeddedStore, name, forever)
        async with get(client, path):
            await until(lambda: events == ["asked"])
        await until(lambda: events == ["asked", "ended"])


async def test_large_traces_of_a_page_are_bounded_by_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(peerspage, "PAGE", 10)
    monkeypatch.setattr(peerspage, "MAX_SIZE", 45_000, raising=False)
    caller, source = {"functionName": "f", "filename": "x"}, {"id": 1, "className": "A"}
    trace = {"object": source, "caller": {**caller, "props": {"x": "x" * 1000}}}
    async with panel(tmp_path) as (here, client), here.client(here.token()) as sender:
        assert (await sender.post(LOGS, json=[trace] * 100)).json()["accepted"] == 100
        await until(lambda: here.server.store.statistics().records >= 100)
        answer = (await client.get("/peers/calls")).json()
        assert answer["records"] == 40
        assert answer["more"]


@pytest.mark.parametrize("path", ["/explore", "/explore/rows", "/export?format=csv"])
async def test_a_record_is_decoded_once_for_all_columns(tmp_path, monkeypatch, path):
    decoded = Counter()

    def decode(body):
        decoded[body] += 1
        return decode_body(body)

    async with panel(tmp_path) as (here, client), here.client(here.token()) as sender:
        records = [{"message": f"m{number}", "attributes": {"a": 1}} for number in range(3)]
        assert (await sender.post(LOGS, json=records)).status_code == 200
        await until(lambda: here.server.store.statistics().records >= 3)
        monkeypatch.setattr(evaluate, "decode_body", decode)
        columns = {"columns": ",".join(f"attributes.{name}" for name in "abcdef"), "since": "all"}
        answer = await client.get(path + ("&" if "?" in path else "?") + urlencode(columns))
    assert answer.status_code == 200
    assert all(f"m{number}" in answer.text for number in range(3))
    assert len(decoded) >= 3
    assert set(decoded.values()) == {1}


async def test_viewers_that_come_together_are_no_more_than_there_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(tail_module, "MAX_VIEWERS", 2)
    statuses = []
    async with panel(tmp_path) as (_here, client), trio.open_nursery() as nursery:

        async def watch():
            async with get(client, "/live/events") as stream:
                statuses.append(int((await stream.receive_some()).split()[1]))
                await until(lambda: len(statuses) == 8)

        for _ in range(8):
            nursery.start_soon(watch)
    assert sorted(statuses) == [200, 200, *[503] * 6]
