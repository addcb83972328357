"""Client.info and its like: what is logged stands in the file, and never harms who logs."""

from __future__ import annotations

import inspect
import json
import sys
import threading
import time
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from hyperlog.client import Client, running_client
from hyperlog.dht import KeyPair
from hyperlog.records import MAX_RECORD_SIZE
from hyperlog.server import Server
from hyperlog.trace import clear_trace_function, create_tracer

NOBODY = "5a" * 32
NOWHERE = {"bootstrap": ["127.0.0.1:9"], "keys": None}


@pytest.fixture(autouse=True)
def no_tracing_left():
    yield
    clear_trace_function()


@pytest.fixture
def client():
    client = Client()
    yield client
    client.stop(timeout=0.2)


@asynccontextmanager
async def connected(folder, client, **options):
    """A server, and the client started for it."""
    server = Server(folder, host="127.0.0.1", local=True, keys=KeyPair.generate())
    async with server:
        host, port = server.address
        options = {"keys": None, "application": "shop", **options}
        client.start(server.public_key.hex(), bootstrap=[f"{host}:{port}"], **options)
        yield


async def in_thread(function, *arguments, **named):
    return await trio.to_thread.run_sync(partial(function, *arguments, **named))


async def lines_of(client, folder):
    """The records in the file, once all are there."""
    assert await in_thread(client.flush)
    path = folder / f"{client.public_key.hex()}.log"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [line for line in lines if "note" not in line]


def here() -> int:
    """The line of the caller."""
    return sys._getframe(1).f_lineno


# -- what stands in the file


async def test_each_call_stands_in_the_file_as_it_was_made(tmp_path, client):
    async with connected(tmp_path, client):
        before = time.time()
        client.debug("starting")
        client.info("order placed", order=17, paid=True)
        client.warning({"disk": "sda", "free": 0.02})
        client.error("no answer", host="db", tried=[1, 2])
        client.critical("out of memory")
        line = here() - 1
        client.log("warn", "by name")
        client.log(35, "by number")
        lines = await lines_of(client, tmp_path)
    assert [(line["level"], line["message"], line.get("attributes")) for line in lines] == [
        ("DEBUG", "starting", None),
        ("INFO", "order placed", {"order": 17, "paid": True}),
        ("WARNING", {"disk": "sda", "free": 0.02}, None),
        ("ERROR", "no answer", {"host": "db", "tried": [1, 2]}),
        ("CRITICAL", "out of memory", None),
        ("WARNING", "by name", None),
        ("WARNING", "by number", None),
    ]
    assert list(lines[1]) == [
        *("time", "userId", "app", "instance", "traceTimestamp", "traceSessionId", "traceNumber"),
        *("level", "message", "attributes", "caller"),
    ]
    name = "test_each_call_stands_in_the_file_as_it_was_made"
    assert lines[4]["caller"] == {"filename": __file__, "functionName": name, "line": line}
    assert [line["traceNumber"] for line in lines] == list(range(7))
    assert lines[0]["traceTimestamp"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before))


async def test_an_exception_is_told_with_its_stack(tmp_path, client):
    def fail():
        raise KeyError("missing")

    async with connected(tmp_path, client):
        try:
            fail()
        except KeyError as error:
            client.error("by value", exception=error)
            client.error("the present one", exception=True)
            client.error(error)
        client.error("none is handled", exception=True)
        client.error("nothing", exception=None)
        lines = await lines_of(client, tmp_path)
    assert [line["message"] for line in lines[:3]] == ["by value", "the present one", "'missing'"]
    for line in lines[:3]:
        assert (line["exception"]["type"], line["exception"]["message"]) == (
            "KeyError",
            "'missing'",
        )
        assert 'raise KeyError("missing")' in line["exception"]["stack"]
    assert not any("exception" in line for line in lines[3:])


async def test_the_time_is_that_of_the_call(tmp_path, client):
    async with connected(tmp_path, client, get_initial_props=partial(trio.sleep, 0.3)):
        client.info("first")
        lines = await lines_of(client, tmp_path)
    assert lines[0]["traceTimestamp"] < lines[0]["time"]


async def test_props_of_the_client_go_along(tmp_path, client):
    async with connected(tmp_path, client):
        client.add_props({"username": "Kim"})
        client.info("x")
        (line,) = await lines_of(client, tmp_path)
    assert line["props"] == {"username": "Kim"}
    assert line["userId"].startswith("Kim___")


async def test_traces_and_messages_of_many_threads_keep_each_threads_order(tmp_path, client):
    tracer = create_tracer(client)

    def work(name):
        for number in range(200):
            client.info("x", thread=name, n=number)
            tracer.trace({"thread": name, "n": number})

    async with connected(tmp_path, client):
        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await in_thread(thread.join)
        lines = await lines_of(client, tmp_path)
    assert len(lines) == 8 * 400
    for name in range(8):
        for props in (
            [line["attributes"] for line in lines if "level" in line],
            [line["caller"]["props"] for line in lines if "object" in line],
        ):
            assert [p["n"] for p in props if p["thread"] == name] == list(range(200))


async def test_a_dictionary_is_taken_as_it_is_at_the_call(tmp_path, client):
    async with connected(tmp_path, client):
        message = {"n": 0}
        for number in range(50):
            message["n"] = number
            client.info(message)
        lines = await lines_of(client, tmp_path)
    assert [line["message"]["n"] for line in lines] == list(range(50))


# -- what must not happen


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __str__ = __repr__


class Echo:
    """Logs itself whenever somebody asks for its text."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __repr__(self) -> str:
        self.client.info("echo", me=self)
        self.client.info(self)
        return "an echo"


class EchoError(Exception):
    client: Client

    def __str__(self) -> str:
        self.client.error("in str", exception=self)
        return "an echo"


class Liar(dict):
    def copy(self):
        raise RuntimeError("no copy")

    def keys(self):
        raise RuntimeError("no keys")


@pytest.mark.parametrize(
    "message",
    [
        None,
        7,
        b"bytes",
        Hostile(),
        Liar(a=1),
        {"a": Hostile(), 3: {1, 2}, "b": Liar()},
        {(1, 2): "x"},
        "\ud800",
        "x" * 2_000_000,
        ["a"],
        RecursionError(),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_whatever_is_logged_nothing_raises_and_something_arrives(tmp_path, client, message):
    async with connected(tmp_path, client):
        for log in (client.info, partial(client.log, Hostile())):
            log(message, value=message, exception=message)
        lines = await lines_of(client, tmp_path)
    assert [line["level"] for line in lines] == ["INFO", "INFO"]
    assert all(isinstance(line["message"], str | dict) for line in lines)
    assert all(len(json.dumps(line)) < MAX_RECORD_SIZE for line in lines)


async def test_an_object_that_logs_itself_ends(tmp_path, client):
    """Its text is made while a record is encoded, which must not lead to ever more records."""
    EchoError.client = client
    async with connected(tmp_path, client):
        client.info("start", echo=Echo(client))
        client.error("start", exception=EchoError())
        client.info(Echo(client))
        create_tracer(client).trace({"echo": Echo(client)})
        for _ in range(20):
            lines = await lines_of(client, tmp_path)
    assert 4 < len(lines) < 40
    assert sum(line.get("message") == "start" for line in lines) == 2


async def test_logging_inside_callbacks_is_shipped_and_ends(tmp_path, client):
    async with connected(
        tmp_path,
        client,
        on_open=lambda: client.info("open"),
        get_initial_props=lambda: client.info("props"),
    ):
        client.info("own")
        await in_thread(client.flush)
        lines = await lines_of(client, tmp_path)
    assert {line["message"] for line in lines} >= {"own", "open"}
    assert len(lines) <= 3


def test_logging_of_a_failed_connection_does_not_feed_itself(client):
    client.start(
        NOBODY, **NOWHERE, on_connection_error=lambda error: client.error("lost", exception=error)
    )
    deadline = time.monotonic() + 10
    while client.last_connection_error is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert client.statistics().waiting < 10


def test_before_the_start_and_after_the_stop_messages_go_nowhere(client):
    client.info("before")
    client.start(NOBODY, **NOWHERE)
    client.stop(0.1)
    client.info("after", exception=ValueError())
    client.log("x", Hostile())
    assert client.statistics().waiting == 0


def test_memory_is_bounded_by_what_messages_hold():
    client = Client(max_buffer_bytes=4 * 1024 * 1024)
    try:
        client.start(NOBODY, **NOWHERE)
        for number in range(400):
            client.info("x" * 100_000, n=number)
            client.info({"text": "x" * 100_000})
            client.info("x", data="x" * 100_000)
        deadline = time.monotonic() + 10
        while not client.statistics().lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.statistics().buffered_bytes <= 5 * 1024 * 1024
    finally:
        client.stop(0.1)


def test_too_deep_a_recursion_is_counted_and_not_raised(client):
    client.start(NOBODY, **NOWHERE)

    def recurse(depth):
        client.info("x", depth=depth, exception=ValueError(depth))
        recurse(depth + 1)

    with pytest.raises(RecursionError):
        recurse(0)
    assert client.statistics().failed >= 0
    client.info("alive")


def test_a_call_costs_a_few_microseconds(client):
    """The best of many, since the machine has other work; docs/benchmarks.md has the figures."""
    client.start(NOBODY, **NOWHERE)

    def cost():
        began_at = time.perf_counter()
        for number in range(200):
            client.info("hello", n=number)
        return (time.perf_counter() - began_at) / 200

    assert min(cost() for _ in range(50)) < 6e-6


def test_the_client_that_was_started_last_is_the_running_one():
    first, second = Client(), Client()
    assert running_client() is None
    first.start(NOBODY, **NOWHERE)
    second.start(NOBODY, **NOWHERE)
    assert running_client() is second
    second.stop(0.1)
    assert running_client() is first
    first.stop(0.1)
    assert running_client() is None


@pytest.mark.parametrize("name", ["debug", "info", "warning", "error", "critical", "log"])
def test_all_names_but_one_are_free_for_attributes(name):
    parameters = inspect.signature(getattr(Client, name)).parameters.values()
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == ["exception"]
