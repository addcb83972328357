"""Applications and tokens between a real server and the clients of both languages."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from hyperlog.client import Client
from hyperlog.dht import KeyPair
from hyperlog.errors import ServerRefused
from hyperlog.server import Server
from hyperlog.trace import clear_trace_function, create_tracer
from tests.interop.harness import js_trace_client, log_lines

pytestmark = pytest.mark.interop


@pytest.fixture(autouse=True)
def no_tracing_left():
    yield
    clear_trace_function()


@asynccontextmanager
async def local_server(folder, **settings):
    keys = KeyPair.generate()
    async with Server(folder, keys=keys, host="127.0.0.1", local=True, **settings) as server:
        yield server


async def until(condition, timeout=20.0):
    with trio.fail_after(timeout):
        while not condition():  # noqa: ASYNC110 - what is looked at is announced by nobody
            await trio.sleep(0.01)


class Order:
    def __init__(self) -> None:
        self.tracer = create_tracer(self)

    def place(self, number: int) -> None:
        self.tracer.trace("placed", {"number": number})


@asynccontextmanager
async def python_client(server, **options):
    client = Client()
    nodes = [f"{server.address[0]}:{server.address[1]}"]
    client.start(server.public_key, bootstrap=nodes, keys=None, **options)
    try:
        yield client
    finally:
        await trio.to_thread.run_sync(partial(client.stop, timeout=2))


async def test_clients_of_both_languages_are_counted_as_what_they_are(tmp_path):
    async with (
        local_server(tmp_path) as server,
        js_trace_client(server.public_key, [server.address], count=20) as javascript,
        python_client(server, application="cerco", instance="a2b5") as client,
    ):
        Order().place(1)
        assert await trio.to_thread.run_sync(client.flush, 20)
        lines = await log_lines(tmp_path / f"{javascript.public_key.hex()}.log", 21)
        assert not [line for line in lines if "app" in line or "instance" in line]
        found = server.connections.applications()
        assert {name: list(entry["instances"]) for name, entry in found.items()} == {
            "cerco": ["a2b5"],
            "default": [javascript.public_key.hex()[:8]],
        }
        assert found["default"]["instances"][javascript.public_key.hex()[:8]]["records"] == 20
        lines = await log_lines(tmp_path / f"{client.public_key.hex()}.log", 2)
        assert {(line["app"], line["instance"]) for line in lines} == {("cerco", "a2b5")}


async def test_where_tokens_are_required_javascript_clients_are_refused_and_leave_nothing(tmp_path):
    async with (
        local_server(tmp_path, require_token=True) as server,
        js_trace_client(server.public_key, [server.address], count=20, reconnect=False),
    ):
        await until(lambda: server.statistics().refusals.get("TOKEN_REQUIRED"))
        await until(lambda: not server.statistics().connections)
        token, _ = server.tokens.issue("cerco", instances="a*", now=time.time())
        async with python_client(server, token=token, application="cerco", instance="a1") as client:
            Order().place(1)
            assert await trio.to_thread.run_sync(client.flush, 20)
            key = client.public_key
    assert [path.name for path in tmp_path.glob("*.log")] == [f"{key.hex()}.log"]


async def test_a_python_client_is_told_why_it_is_refused_and_keeps_its_records(tmp_path):
    told: list[Exception] = []
    async with local_server(tmp_path, require_token=True) as server:
        token, claims = server.tokens.issue("cerco", now=time.time())
        async with python_client(
            server, token=token, application="cerco", on_connection_error=told.append
        ) as client:
            Order().place(1)
            assert await trio.to_thread.run_sync(client.flush, 20)
            server.tokens.revoke(claims.jti, time.time())
            await until(lambda: told, 5)
            assert isinstance(told[0], ServerRefused)
            assert told[0].refusal == "TOKEN_REVOKED"
            Order().place(2)
            assert not await trio.to_thread.run_sync(client.flush, 0.5)
            key = client.public_key
        assert server.statistics().records == 1
        assert server.connections.applications() == {}
    lines = await log_lines(tmp_path / f"{key.hex()}.log", 2)
    assert [line["traceNumber"] for line in lines if "note" not in line] == [0]
