from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from hyperlog import trace as trace_module
from hyperlog.client import EXIT_TIMEOUT, Client
from hyperlog.dht import KeyPair, SimNetwork, open_dht
from hyperlog.diskspool import SpoolFolder
from hyperlog.errors import ConfigError
from hyperlog.logs import LogEntry
from hyperlog.server import Server
from hyperlog.shipper import BATCH, BURST_BATCH
from hyperlog.trace import (
    CallSite,
    Trace,
    TracedObject,
    clear_trace_function,
    create_tracer,
    set_trace_function,
)

ROOT = Path(__file__).parent.parent
NOBODY = "5a" * 32  # a key that nobody listens on
NOWHERE = ["127.0.0.1:9"]  # no DHT node
GREETING = b'{"lastSeenTraceSessionId":null,"lastSeenTraceNumber":null}'


class Order:
    def __init__(self, **props):
        self.tracer = create_tracer(self, props=props or None)

    def place(self, number):
        self.tracer.trace("order-placed", {"n": number})


class Noise(Order):
    pass


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
async def local_server(folder, **settings):
    settings.setdefault("keys", KeyPair.generate())
    async with Server(folder, host="127.0.0.1", local=True, **settings) as server:
        yield server


def options_for(server):
    host, port = server.address
    return {"bootstrap": [f"{host}:{port}"], "keys": None}


def records(folder, key):
    lines = (folder / f"{key.hex()}.log").read_bytes().splitlines()
    return [line for line in map(json.loads, lines) if "note" not in line]


def notes(folder, key):
    lines = (folder / f"{key.hex()}.log").read_bytes().splitlines()
    return [line["note"] for line in map(json.loads, lines) if "note" in line]


async def in_thread(function, *arguments, **named):
    return await trio.to_thread.run_sync(partial(function, *arguments, **named))


async def until(condition, timeout=10.0):
    """The other side is a thread that tells nobody: look until it is so."""
    with trio.fail_after(timeout):
        while not condition():  # noqa: ASYNC110 - a thread has no trio event to set
            await trio.sleep(0.005)


# -- any program


async def test_traces_arrive_in_order_with_all_their_fields(tmp_path, client):
    async with local_server(tmp_path) as server:
        client.start(server.public_key.hex(), **options_for(server))
        order = Order(region="north")
        for number in range(1000):
            order.place(number)
        assert await in_thread(client.flush)
        await until(lambda: server.statistics().records == 1000)
    lines = records(tmp_path, client.public_key)
    assert [line["caller"]["props"]["n"] for line in lines] == list(range(1000))
    assert [line["traceNumber"] for line in lines] == list(range(1000))
    assert list(lines[0]) == [
        "time",
        "userId",
        "app",
        "instance",
        "traceTimestamp",
        "traceSessionId",
        "traceNumber",
        "id",
        "props",
        "object",
        "caller",
    ]
    assert lines[0]["id"] == "order-placed"
    assert lines[0]["object"]["className"] == "Order"
    assert lines[0]["object"]["props"] == {"region": "north"}
    assert lines[0]["caller"]["functionName"] == "place"
    assert lines[0]["caller"]["filename"] == __file__
    assert {line["traceSessionId"] for line in lines} == {lines[0]["traceSessionId"]}
    assert lines[0]["traceSessionId"].isdigit()


def test_start_returns_at_once_and_has_hooked_the_tracers(client):
    began_at = time.monotonic()
    client.start(NOBODY, bootstrap=NOWHERE, keys=None)
    assert time.monotonic() - began_at < 0.5
    order = Order()
    assert order.tracer.enabled
    order.place(1)
    assert not client.is_running
    assert client.statistics().waiting == 1


def test_a_malformed_key_is_told_at_once_and_hooks_nothing(client):
    with pytest.raises(ConfigError, match="64 hex digits"):
        client.start("not a key")
    assert not Order().tracer.enabled
    client.start(NOBODY, bootstrap=NOWHERE, keys=None)  # the mistake can be mended


def test_a_client_starts_once(client):
    client.start(NOBODY, bootstrap=NOWHERE, keys=None)
    with pytest.raises(RuntimeError, match="started already"):
        client.start(NOBODY, bootstrap=NOWHERE, keys=None)
    client.stop(timeout=0.1)
    with pytest.raises(RuntimeError, match="stopped already"):
        client.start(NOBODY, bootstrap=NOWHERE, keys=None)


def test_flush_says_when_nothing_could_be_delivered(client):
    client.start(NOBODY, bootstrap=NOWHERE, keys=None)
    assert client.flush(timeout=5)  # there is nothing to deliver
    Order().place(1)
    began_at = time.monotonic()
    assert not client.flush(timeout=0.1)
    assert 0.1 <= time.monotonic() - began_at < 2.0


def test_stop_is_bounded_and_ends_the_thread_and_the_tracing(client):
    before = threading.active_count()
    client.start(NOBODY, bootstrap=NOWHERE, keys=None)
    order = Order()
    order.place(1)
    began_at = time.monotonic()
    assert not client.stop(timeout=0.5)
    assert time.monotonic() - began_at < 1.5
    assert not order.tracer.enabled
    assert threading.active_count() == before
    assert not client.stop(timeout=0.5)  # again: still not delivered


async def test_stop_delivers_what_was_traced_before_it(tmp_path, client):
    async with local_server(tmp_path) as server:
        client.start(server.public_key, **options_for(server))
        Order().place(7)
        assert await in_thread(client.stop, timeout=5)
        assert await in_thread(client.stop)  # again: it is still so
        assert await in_thread(client.flush)
        await until(lambda: server.statistics().records == 1)
        await until(lambda: server.statistics().connections == 0)
    assert notes(tmp_path, client.public_key)[1:] == []  # it ended in order, without an error


def test_stopping_leaves_a_later_trace_function_alone(client):
    seen = []
    client.start(NOBODY, bootstrap=NOWHERE, keys=None)
    set_trace_function(seen.append)
    client.stop(timeout=0.1)
    Order().place(1)
    assert len(seen) == 1


async def test_it_serves_an_asyncio_program(tmp_path, client):
    async with local_server(tmp_path) as server:
        options = options_for(server)

        async def application():
            client.start(server.public_key, **options)
            order = Order()
            for number in range(50):
                order.place(number)
                await asyncio.sleep(0)
            return await asyncio.to_thread(client.flush)

        assert await in_thread(asyncio.run, application())
        await until(lambda: server.statistics().records == 50)


async def test_threads_trace_at_the_same_time_and_nothing_is_lost(tmp_path, client):
    def work():
        order = Order()
        for number in range(500):
            order.place(number)

    async with local_server(tmp_path) as server:
        client.start(server.public_key, **options_for(server))
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(in_thread, work)
        assert await in_thread(client.flush)
        await until(lambda: server.statistics().records == 2000)
    by_object = {}
    for line in records(tmp_path, client.public_key):
        by_object.setdefault(line["object"]["id"], []).append(line["caller"]["props"]["n"])
    assert list(map(sorted, by_object.values())) == [list(range(500))] * 4
    assert all(numbers == sorted(numbers) for numbers in by_object.values())


async def test_a_tight_loop_of_many_traces_loses_nothing(tmp_path, client):
    def burst():
        order = Order()
        for number in range(100_000):
            order.place(number)

    async with local_server(tmp_path) as server:
        client.start(server.public_key, **options_for(server))
        await in_thread(burst)
        assert await in_thread(client.flush, timeout=60)
        await until(lambda: server.statistics().records == 100_000)
    assert client.statistics().lost == 0


async def test_a_burst_is_left_alone_at_first_and_a_lone_trace_is_not(autojump_clock):
    sockets = Sockets()
    client = Client()
    async with client.running(create_socket=sockets):
        await trio.testing.wait_all_tasks_blocked()
        server, began_at = sockets.servers[0], trio.current_time()

        async def numbers(count):
            return [json.loads(await server.receive())["traceNumber"] for _ in range(count)]

        Order().place(0)
        assert await numbers(1) == [0]
        assert trio.current_time() == began_at
        for n in range(1, 5001):
            Order().place(n)
        assert await numbers(5000) == list(range(1, 5001))
        assert 0.03 <= trio.current_time() - began_at <= 0.3
        assert await client.wait_flushed()


async def test_a_client_that_is_not_to_connect_again_takes_no_traces_any_more(tmp_path, client):
    async def refuse():
        for number in range(3):
            Order().place(number)
        raise OSError("nobody there")

    client.start(create_socket=refuse, can_socket_reconnect=lambda: False, spool=tmp_path)
    await until(lambda: trace_module._trace_function is None)
    Order().place(3)
    client.info("too late")
    assert client.stop() is False
    assert client.statistics().waiting == 3
    assert sum(SpoolFolder(tmp_path).count_orphans().values()) == 3


@pytest.mark.parametrize("batches", [0, 1, 3])
async def test_a_burst_that_ends_with_a_full_batch_is_sent_like_any_other(batches, autojump_clock):
    sockets = Sockets()
    client = Client()
    async with client.running(create_socket=sockets):
        await trio.testing.wait_all_tasks_blocked()
        count = BATCH + batches * BURST_BATCH
        for n in range(count):
            Order().place(n)
        with trio.fail_after(1.0):
            for n in range(count):
                assert json.loads(await sockets.servers[0].receive())["traceNumber"] == n


async def test_a_disk_that_works_again_is_used_though_nothing_is_traced(
    tmp_path, client, monkeypatch, caplog
):
    monkeypatch.setattr("hyperlog.doorbell.MAX_WAIT", 0.05)
    monkeypatch.setattr("hyperlog.diskspool.session.RETRY", 0.1)
    spool = tmp_path / "spool"
    spool.write_text("no folder")
    client.start(NOBODY, bootstrap=NOWHERE, key_pair=KeyPair.generate(), spool=spool)
    Order().place(0)
    await until(lambda: "the spool cannot be written" in caplog.text)
    spool.unlink()
    await until(lambda: b"order-placed" in b"".join(f.read_bytes() for f in spool.rglob("*.seg")))


async def test_what_the_buffer_cannot_hold_is_told_in_the_log(tmp_path):
    client = Client(max_buffer_bytes=256 * 1024)
    async with local_server(tmp_path) as server:
        greeted = trio.Event()

        async def late():
            await greeted.wait()
            return await dht.connect(server.public_key)

        async with open_dht(bootstrap=[server.address], host="127.0.0.1") as dht:
            async with client.running(create_socket=late):
                order = Order()
                for number in range(5000):
                    order.place(number)
                await until(lambda: client.statistics().waiting < 1000)
                greeted.set()
                assert await client.wait_flushed()
                await until(lambda: client.statistics().waiting == 0)
            await until(lambda: server.statistics().connections == 0)
            lost = client.statistics().lost
            key = dht.key_pair.public_key
    numbers = [line["caller"]["props"]["n"] for line in records(tmp_path, key)]
    assert numbers == list(range(5000 - len(numbers), 5000))
    assert lost == 5000 - len(numbers) > 0
    gaps = [note for note in notes(tmp_path, key) if note.startswith("Lost ")]
    assert sum(int(note.split()[1]) for note in gaps) == lost


class Word(str):
    __slots__ = ()


class Quits:
    def __repr__(self):
        raise SystemExit(1)


class Described:
    def __repr__(self):
        return Word("described")


class Interrupts:
    def __repr__(self):
        signal.raise_signal(signal.SIGINT)
        return "interrupts"


async def test_nothing_that_is_traced_or_logged_keeps_the_rest_from_arriving(autojump_clock):
    named = type(Word("Named"), (), {})()
    sockets, client = Sockets(), Client()
    async with client.running(create_socket=sockets):
        tracer = create_tracer(named)
        tracer.trace(Word("id"), {"value": Described()})
        tracer.trace("quits", {"value": Quits(), "n": 1})
        client.add_trace(Trace(None, TracedObject(object(), 1), None, None, CallSite("f", "f"), {}))
        client.put_log(LogEntry("INFO", "no time"), math.nan)
        client.info("odd place")
        Order().place(1)
        assert await client.wait_flushed()
        first, quits, made, timeless, said, last = [
            json.loads(await sockets.servers[0].receive()) for _ in range(6)
        ]
    assert (first["id"], first["object"]["className"]) == ("id", "Named")
    assert first["caller"]["props"] == {"value": "described"}
    assert quits["caller"]["props"] == {"value": "[unserialisable Quits]", "n": 1}
    for number, gap in (2, made["gap"]), (3, timeless["gap"]):
        assert (gap["from"], gap["to"], gap["count"]) == (number, number, 1)
        assert gap["reason"] == "unserialisable"
    assert (said["message"], last["traceNumber"]) == ("odd place", 5)
    assert client.statistics().lost == 2


def test_a_mapping_that_raises_is_counted_and_no_error(client):
    class Refuses(dict):
        def get(self, name):
            raise KeyError(name)

    client.start(NOBODY, bootstrap=NOWHERE, keys=None)
    client.add_trace(Refuses(id="x"))
    assert client.statistics().failed == 1


def test_an_interrupt_in_the_middle_of_a_batch_costs_none_of_its_records(tmp_path):
    client = Client()

    async def program():
        async with client.running(create_socket=trio.sleep_forever, spool=tmp_path):
            for value in (0, Interrupts(), 2):
                Order().place(value)
            await trio.sleep_forever()

    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)):
        trio.run(program)
    folder = SpoolFolder(tmp_path)
    (session_id,) = folder.orphans()
    session = folder.adopt(session_id)
    messages = [json.loads(message) for message in session.read(0, 10_000)[1]]
    assert [line["caller"]["props"]["n"] for line in messages] == [0, "interrupts", 2]
    session.close()


async def test_flush_does_not_wait_for_a_loop_that_traces_without_a_pause(monkeypatch):
    async def send_many(link, messages):
        await trio.lowlevel.checkpoint()  # at once, as one message over a real connection

    monkeypatch.setattr("hyperlog.shipper._Link.send_many", send_many)
    sockets, client = Sockets(), Client()
    flushed = trio.Event()

    async def flush():
        assert await client.wait_flushed()
        flushed.set()

    async with client.running(create_socket=sockets, timeout=0), trio.open_nursery() as nursery:
        order = Order()
        order.place(0)
        nursery.start_soon(flush)
        with trio.fail_after(5.0):
            while not flushed.is_set():
                for number in range(BURST_BATCH + 100):
                    order.place(number)
                await trio.lowlevel.checkpoint()
    assert client.statistics().lost == 0


async def test_flush_does_not_take_records_that_gave_way_for_delivered(autojump_clock):
    client, flushed = Client(max_buffer_bytes=64 * 1024), []

    async def flush():
        flushed.append(await client.wait_flushed())

    async with client.running(create_socket=trio.sleep_forever, timeout=0):
        order = Order()
        order.place(0)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flush)
                for _ in range(20):
                    await trio.testing.wait_all_tasks_blocked()
                    for number in range(20):
                        order.place(number)
    assert flushed == [False]


# -- props, ignored classes, traces without a tracer


async def test_props_go_along_with_every_later_trace(tmp_path, client):
    async with local_server(tmp_path) as server:
        options = options_for(server)
        client.start(server.public_key, **options, get_initial_props=lambda: {"username": "Ann B"})
        order = Order()
        order.place(0)
        client.add_props({"version": 3})
        order.place(1)
        assert await in_thread(client.flush)
        await until(lambda: server.statistics().records == 2)
    first, second = records(tmp_path, client.public_key)
    assert first["props"] == {"username": "Ann B"}
    assert second["props"] == {"username": "Ann B", "version": 3}
    assert first["userId"] == f"Ann_B___{client.public_key.hex()[:8]}"


async def test_initial_props_may_come_from_an_async_function(tmp_path, client):
    async def get_initial_props():
        await trio.lowlevel.checkpoint()
        return {"username": "ann"}

    opened = threading.Event()
    async with local_server(tmp_path) as server:
        client.start(
            server.public_key,
            **options_for(server),
            get_initial_props=get_initial_props,
            on_open=opened.set,
        )
        assert await in_thread(opened.wait, 10)  # props are awaited before the connection is made
        Order().place(0)
        assert await in_thread(client.flush)
        await until(lambda: server.statistics().records == 1)
    assert records(tmp_path, client.public_key)[0]["props"] == {"username": "ann"}


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_initial_props_that_fail_cost_the_props_only(kind, tmp_path, client, caplog):
    def plain():
        raise LookupError("nobody is logged in")

    async def later():
        raise LookupError("nobody is logged in")

    async with local_server(tmp_path) as server:
        with caplog.at_level(logging.ERROR, "hyperlog"):
            client.start(
                server.public_key,
                **options_for(server),
                get_initial_props=plain if kind == "plain" else later,
            )
            Order().place(0)
            assert await in_thread(client.flush)
        await until(lambda: server.statistics().records == 1)
    assert "get_initial_props failed" in caplog.text
    assert records(tmp_path, client.public_key)[0]["props"] is None


async def test_ignored_classes_and_their_children_use_up_no_number(tmp_path, client):
    async with local_server(tmp_path) as server:
        client.start(server.public_key, **options_for(server), ignore_class_names=["Noise"])
        noise, child, order = Noise(), Order(), Order()
        child.tracer.set_parent(noise.tracer)
        noise.place(0)
        child.place(1)
        order.place(2)
        assert await in_thread(client.flush)
        await until(lambda: server.statistics().records == 1)
    (line,) = records(tmp_path, client.public_key)
    assert (line["traceNumber"], line["caller"]["props"]) == (0, {"n": 2})


async def test_add_trace_takes_what_a_trace_function_gets_and_mappings(tmp_path, client):
    traces: list[Trace] = []
    set_trace_function(traces.append)
    Order().place(1)
    async with local_server(tmp_path) as server:
        client.add_trace(traces[0])  # before the start: nobody is there
        client.start(server.public_key, **options_for(server))
        client.add_trace(traces[0])
        client.add_trace(
            {
                "id": "hand-made",
                "object": {"class_name": "Cart", "id": 5, "props": {"a": 1}},
                "parent_object": {"className": "Shop", "id": 2},
                "caller": {"functionName": "fill", "filename": "cart.py", "props": {"b": 2}},
            }
        )
        client.add_trace({"object": 7, "caller": {"line": "x", "props": 9}, "id": 3})
        assert await in_thread(client.flush)
        await until(lambda: server.statistics().records == 3)
    first, second, third = records(tmp_path, client.public_key)
    assert first["caller"]["functionName"] == "place"
    assert second["id"] == "hand-made"
    assert second["object"] == {"id": 5, "className": "Cart", "props": {"a": 1}}
    assert second["parentObject"] == {"id": 2, "className": "Shop", "props": None}
    assert second["caller"] == {"filename": "cart.py", "functionName": "fill", "props": {"b": 2}}
    assert third["id"] is None
    assert third["object"] == {"id": 0, "className": "object", "props": None}


# -- connections


class Pipe(trio.abc.Channel[bytes]):
    """One end of a connection in memory."""

    def __init__(self, sender, receiver):
        self.sender, self.receiver = sender, receiver

    async def send(self, value):
        await self.sender.send(value)

    async def receive(self):
        return await self.receiver.receive()

    async def aclose(self):
        await self.sender.aclose()
        await self.receiver.aclose()


def pipe():
    """The two ends of a connection in memory."""
    to_server, from_client = trio.open_memory_channel[bytes](100_000)
    to_client, from_server = trio.open_memory_channel[bytes](100_000)
    return Pipe(to_server, from_server), Pipe(to_client, from_client)


class Sockets:
    """A `create_socket` that fails as often as told, and then gives connections in memory."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.attempts_at = []
        self.servers = []
        self.greeting = GREETING

    async def __call__(self):
        self.attempts_at.append(trio.current_time())
        if self.errors:
            error = self.errors.pop(0)
            if error is not None:
                raise error
        ours, theirs = pipe()
        self.servers.append(theirs)
        theirs.sender.send_nowait(self.greeting)
        return ours


async def test_any_channel_will_do_for_a_connection(autojump_clock):
    sockets = Sockets()
    client = Client()
    async with client.running(create_socket=sockets):
        Order().place(1)
        assert await client.wait_flushed()
        assert json.loads(await sockets.servers[0].receive())["caller"]["props"] == {"n": 1}


async def test_the_server_is_told_who_the_client_is(autojump_clock):
    sockets = Sockets()
    sockets.greeting = b'{"hyperlog":{"version":2}}'
    client = Client()
    async with client.running(
        create_socket=sockets, application="shop", instance="till 3", token="s3cret", timeout=0
    ):
        await trio.testing.wait_all_tasks_blocked()
        hello = json.loads(await sockets.servers[0].receive())["hello"]
        hello.pop("sessions")
        assert hello == {
            "version": 2,
            "application": "shop",
            "instance": "till 3",
            "token": "s3cret",
        }


async def test_callbacks_tell_the_life_of_connections(autojump_clock):
    calls = []
    sockets = Sockets(OSError("no network"))
    client = Client()
    reconnect = True
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                client.run,
                create_socket=sockets,
                can_socket_reconnect=lambda: reconnect,
                on_open=lambda: calls.append(("open", client.is_running)),
                on_close=lambda: calls.append(("close", client.is_running)),
                on_reconnect=lambda: calls.append(("reconnect", client.is_running)),
                on_connection_error=lambda error: calls.append(("error", str(error))),
            )
        )
        await until(lambda: client.is_running)
        assert isinstance(client.last_connection_error, OSError)
        reconnect = False
        await sockets.servers[0].aclose()
    assert calls == [
        ("error", "no network"),
        ("reconnect", False),
        ("open", True),
        ("close", False),
    ]
    assert not Order().tracer.enabled
    assert not client.is_running


async def test_callbacks_that_fail_are_logged_and_harm_nothing(autojump_clock, caplog):
    def fail(*arguments):
        raise ZeroDivisionError("in a callback")

    sockets = Sockets(OSError("no network"))
    client = Client()
    with caplog.at_level(logging.ERROR, "hyperlog"):
        async with client.running(
            create_socket=sockets,
            can_socket_reconnect=fail,
            on_open=fail,
            on_close=fail,
            on_reconnect=fail,
            on_connection_error=fail,
        ):
            await until(lambda: client.is_running)
            Order().place(1)
            assert await client.wait_flushed()
    assert caplog.text.count("a callback of the application failed") == 3
    assert "can_socket_reconnect failed" in caplog.text


async def test_retries_begin_within_half_a_second_and_back_off_to_fifteen(autojump_clock):
    sockets = Sockets(*[OSError("no network")] * 12)
    client = Client()
    async with client.running(create_socket=sockets):
        await until(lambda: client.is_running, timeout=300)
    times = sockets.attempts_at
    waits = [after - before for before, after in pairwise(times)]
    assert len(waits) == 12
    assert 0.25 <= waits[0] <= 0.5
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, _limits(), strict=False))
    assert len(set(waits)) == len(waits)  # jitter


def _limits():
    return [min(0.5 * 2**n, 15.0) for n in range(12)]


async def test_a_connection_that_lived_resets_the_backoff_and_one_that_did_not_does_not(
    autojump_clock,
):
    sockets = Sockets(*[OSError("no network")] * 5)
    client = Client()
    async with client.running(create_socket=sockets):
        await until(lambda: client.is_running, timeout=60)
        await sockets.servers[0].aclose()
        await until(lambda: len(sockets.servers) == 2, timeout=60)
        assert sockets.attempts_at[-1] - sockets.attempts_at[-2] > 7
        await trio.sleep(10)
        closed_at = trio.current_time()
        await sockets.servers[1].aclose()
        await until(lambda: len(sockets.servers) == 3, timeout=60)
        assert sockets.attempts_at[-1] - closed_at <= 0.6


async def test_a_new_connection_gets_what_the_greeting_does_not_know(autojump_clock):
    sockets = Sockets()
    client = Client()
    async with client.running(create_socket=sockets):
        order = Order()
        for number in range(5):
            order.place(number)
        assert await client.wait_flushed()
        first = [json.loads(await sockets.servers[0].receive()) for _ in range(5)]
        session = first[0]["traceSessionId"]
        seen = {"lastSeenTraceSessionId": session, "lastSeenTraceNumber": 2}
        sockets.greeting = json.dumps(seen).encode()
        await sockets.servers[0].aclose()
        await until(lambda: len(sockets.servers) == 2, timeout=60)
        assert await client.wait_flushed()
        assert [json.loads(await sockets.servers[1].receive()) for _ in range(2)] == first[3:]


async def test_a_greeting_that_is_none_counts_as_a_failed_attempt(autojump_clock):
    errors = []
    greetings = [b"[]", b"{", None]

    async def create_socket():
        ours, theirs = pipe()
        greeting = greetings.pop(0) if greetings else GREETING
        if greeting is not None:
            theirs.sender.send_nowait(greeting)
        kept.append(theirs)
        return ours

    kept = []
    client = Client()
    async with client.running(create_socket=create_socket, on_connection_error=errors.append):
        await until(lambda: client.is_running, timeout=60)
    assert [type(error).__name__ for error in errors] == [
        "BadGreeting",
        "BadGreeting",
        "ConnectionError",
    ]
    assert "no greeting within 10 s" in str(errors[2])


async def test_a_peer_that_falls_silent_is_noticed_within_six_seconds(autojump_clock):
    errors = []
    net = SimNetwork(seed=1, delay=0.02)
    async with trio.open_nursery() as nursery:
        await nursery.start(net.run)
        async with (
            open_dht(
                bootstrap=[], socket_factory=net.host("10.0.0.1"), host="10.0.0.1", port=4000
            ) as one,
            open_dht(
                bootstrap=[one.address], socket_factory=net.host("10.0.0.2"), host="10.0.0.2"
            ) as two,
        ):
            listener = await one.listen()
            connections = []

            async def serve(*, task_status):
                with trio.CancelScope() as scope:
                    task_status.started(scope)
                    await greet()

            async def greet():
                while True:
                    connection = await listener.accept()
                    await connection.send(GREETING)
                    connections.append(connection)

            serving = await nursery.start(serve)
            client = Client()
            async with client.running(
                create_socket=lambda: two.connect(one.key_pair.public_key),
                on_connection_error=errors.append,
                timeout=0.1,
            ):
                await until(lambda: client.is_running)
                await trio.sleep(60)
                assert client.is_running  # an idle connection lives
                assert errors == []
                net.loss = 1.0
                silent_at = trio.current_time()
                await until(lambda: not client.is_running, timeout=60)
                assert trio.current_time() - silent_at <= 6.0
                assert errors[0].code == "ETIMEDOUT"
                net.loss = 0.0
                await until(lambda: client.is_running, timeout=60)
            serving.cancel()
        nursery.cancel_scope.cancel()


async def test_a_server_that_comes_back_gets_everything_once(tmp_path, client):
    keys = KeyPair.generate()
    order = Order()
    async with local_server(tmp_path, keys=keys) as server:
        port = server.address[1]
        client.start(server.public_key, **options_for(server))
        for number in range(100):
            order.place(number)
        assert await in_thread(client.flush)
        await until(lambda: server.statistics().records == 100)
    for number in range(100, 200):
        order.place(number)
    began_at = time.monotonic()
    async with local_server(tmp_path, keys=keys, port=port) as server:
        for number in range(200, 300):
            order.place(number)
        assert await in_thread(client.flush, timeout=20)
        await until(lambda: server.statistics().records == 200)
    assert time.monotonic() - began_at < 10
    lines = records(tmp_path, client.public_key)
    assert [line["caller"]["props"]["n"] for line in lines] == list(range(300))
    assert not [note for note in notes(tmp_path, client.public_key) if "Skipped" in note]


# -- in a trio program


async def test_a_trio_program_runs_it_in_its_own_nursery(tmp_path):
    client = Client()
    async with local_server(tmp_path) as server, trio.open_nursery() as nursery:
        await nursery.start(partial(client.run, server.public_key, **options_for(server)))
        Order().place(1)
        with trio.fail_after(10):
            assert await client.wait_flushed()
        with pytest.raises(RuntimeError, match="wait_flushed"):
            client.flush()
        client.stop()  # ends `run`, and with it the nursery
    assert len(records(tmp_path, client.public_key)) == 1


async def test_the_end_of_running_delivers_what_is_left(tmp_path):
    client = Client()
    async with local_server(tmp_path) as server:
        async with client.running(server.public_key, **options_for(server)):
            await until(lambda: client.is_running)
            Order().place(1)
        await until(lambda: server.statistics().records == 1)


async def test_the_end_of_running_does_not_wait_for_threads_that_trace_on(tmp_path):
    ended = threading.Event()

    def trace_on():
        order, at = Order(), time.monotonic()
        while not ended.is_set() and time.monotonic() - at < 8.0:
            order.place(0)

    thread = threading.Thread(target=trace_on)
    client = Client()
    try:
        with trio.fail_after(5.0):
            async with client.running(create_socket=trio.sleep_forever, spool=tmp_path, timeout=0):
                thread.start()
                await until(lambda: client.statistics().waiting > 1000)
        assert thread.is_alive()
        assert trace_module._trace_function is None
    finally:
        ended.set()
        await in_thread(thread.join)


async def test_running_raises_what_its_block_raises_and_what_start_raises():
    with pytest.raises(ConfigError):
        async with Client().running("nonsense"):
            pass
    with pytest.raises(KeyError):
        async with Client().running(NOBODY, bootstrap=NOWHERE, keys=None):
            raise KeyError("mine")


# -- the process


def run_script(text, *arguments, timeout=30, **environment):
    """Run Python code in a process of its own."""
    began_at = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, time.monotonic() - began_at


PROGRAM = """
    import sys, os, time
    from hyperlog import Client, create_tracer

    class Order:
        def __init__(self):
            self.tracer = create_tracer(self)
        def place(self, n):
            self.tracer.trace({"n": n})

    client = Client()
    client.start(sys.argv[1], bootstrap=[sys.argv[2]], keys=sys.argv[3])
"""


async def run_program(text, server, tmp_path, **environment):
    host, port = server.address
    script = textwrap.dedent(PROGRAM) + textwrap.dedent(text)
    run = partial(run_script, script, server.public_key.hex(), f"{host}:{port}", **environment)
    return await in_thread(run, tmp_path / "client.dat")


async def test_a_program_that_just_ends_delivers_its_last_records(tmp_path):
    async with local_server(tmp_path) as server:
        await run_program("for n in range(100): Order().place(n)", server, tmp_path)
        await until(lambda: server.statistics().records == 100)


def test_a_program_that_cannot_deliver_ends_after_one_second_all_the_same(tmp_path):
    script = textwrap.dedent(PROGRAM) + "Order().place(1); print(time.monotonic())"
    out, err, _ = run_script(script, NOBODY, NOWHERE[0], tmp_path / "client.dat")
    assert time.monotonic() - float(out) < EXIT_TIMEOUT + 1.0
    assert err == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
async def test_a_child_after_a_fork_ships_its_own_records_and_the_parent_goes_on(tmp_path):
    async with local_server(tmp_path) as server:
        out, err, _ = await run_program(
            """
            import gc
            order = Order()
            client.add_props({"username": "ann"})
            for n in range(10):
                order.place(n)
            client.flush()
            child = os.fork()
            if child == 0:
                assert not client.is_running
                gc.collect()
                for n in range(100, 110):
                    order.place(n)
                assert client.flush(10)
                os._exit(0)
            for n in range(10, 20):
                order.place(n)
            assert os.waitpid(child, 0)[1] == 0
            quiet = os.fork()
            if quiet == 0:
                gc.collect()
                os._exit(0)  # a child that traces nothing starts nothing
            os.waitpid(quiet, 0)
            for n in range(20, 30):
                order.place(n)
            assert client.flush(10)
            print(client.statistics().connections)
            """,
            server,
            tmp_path,
        )
        await until(lambda: server.statistics().records == 40)
    assert out == "1\n", err  # the parent's connection lived on
    (log,) = tmp_path.glob("*.log")
    sessions = {}
    for line in records(tmp_path, bytes.fromhex(log.stem)):
        assert line["props"] == {"username": "ann"}
        numbers = sessions.setdefault(line["traceSessionId"], [])
        assert line["traceNumber"] == len(numbers)
        numbers.append(line["caller"]["props"]["n"])
    assert sorted(sessions.values()) == [list(range(30)), list(range(100, 110))]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_keeps_its_records_where_its_parent_does_wherever_they_are_by_then(tmp_path):
    run_script(
        """
        import os, sys, trio
        from hyperlog import Client

        os.chdir(sys.argv[1])
        client = Client()
        client.start(create_socket=trio.sleep_forever, spool="spool")
        os.chdir(sys.argv[2])
        child = os.fork()
        if not child:
            client.info("from the child")
            client.stop()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        tmp_path,
        tmp_path.parent,
    )
    assert list(SpoolFolder(tmp_path / "spool").count_orphans().values()) == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
async def test_a_child_of_multiprocessing_delivers_its_last_records(tmp_path):
    async with local_server(tmp_path) as server:
        await run_program(
            """
            import multiprocessing
            child = multiprocessing.get_context("fork").Process(target=Order().place, args=[7])
            child.start()
            child.join()
            Order().place(8)
            """,
            server,
            tmp_path,
        )
        await until(lambda: server.statistics().records == 2)


def test_where_no_thread_can_be_started_records_are_kept(client, monkeypatch, caplog):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "hyperlog"):
        patch.setattr(threading.Thread, "start", refuse)
        client.start(NOBODY, bootstrap=NOWHERE, keys=None)
        for number in range(10):
            Order().place(number)
    assert caplog.text.count("no thread can be started") == 1
    assert client.statistics().waiting == 10
    assert not client.flush(timeout=0.05)


def test_where_no_thread_was_ever_started_the_end_leaves_the_records_in_the_spool(
    tmp_path, client, monkeypatch
):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    client.start(create_socket=trio.sleep_forever, spool=tmp_path)
    for number in range(10):
        Order().place(number)
    assert client.stop() is False
    assert client.stop() is False
    assert list(SpoolFolder(tmp_path).count_orphans().values()) == [10]


@pytest.mark.parametrize("where", ["start", "Shipper", "set_trace_function"])
def test_a_signal_handler_may_stop_a_client_that_is_just_starting(where):
    # Where the handler runs is told here by what it interrupts: a thread that starts, and the rest.
    run_script(
        """
        import signal, sys, threading
        import trio
        import hyperlog.client, hyperlog.trace
        from hyperlog import Client

        def interrupted(function):
            def call(*arguments, **named):
                signal.raise_signal(signal.SIGTERM)
                return function(*arguments, **named)
            return call

        name = sys.argv[1]
        owner = threading.Thread if name == "start" else hyperlog.client
        setattr(owner, name, interrupted(getattr(owner, name)))
        client = Client()
        signal.signal(signal.SIGTERM, lambda *_: client.stop(0.1))
        try:
            client.start(create_socket=trio.sleep_forever, spool=None)
        except RuntimeError as error:
            assert "stopped" in str(error)
        assert client._put is None
        assert hyperlog.trace._trace_function is None
        """,
        where,
        timeout=10,
    )


def test_a_program_that_only_traces_does_not_load_the_network():
    out, _, _ = run_script(
        """
        import sys
        import hyperlog
        hyperlog.create_tracer(object())
        dear = {"trio", "nacl", "logging", "hyperlog.client"}
        print(sorted(dear & set(sys.modules)))
        """
    )
    assert out == "[]\n"


def test_every_public_name_is_there():
    import hyperlog

    assert sorted(hyperlog.__all__) == hyperlog.__all__
    for name in hyperlog.__all__:
        assert getattr(hyperlog, name).__name__ == name
    assert set(hyperlog.__all__) <= set(dir(hyperlog))
    assert hyperlog.create_tracer is trace_module.create_tracer
    with pytest.raises(AttributeError, match="nonsense"):
        hyperlog.nonsense  # noqa: B018
