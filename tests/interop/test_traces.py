"""Traces between every pair of ends, Python and JavaScript, on both kinds of network.

The JavaScript pair on its own network is the reference: what its server writes for its client's
traces is what every other pair has to come to, time stamps, keys and session ids aside.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog.client import Client
from hyperlog.dht import KeyPair, testnet
from hyperlog.server import Server
from hyperlog.trace import clear_trace_function, create_tracer
from tests.interop.harness import js_testnet, js_trace_client, js_trace_server, log_lines

pytestmark = pytest.mark.interop

COUNT = 5000
NETWORKS = ["javascript", "python"]
TIMEOUT = 60.0  # s for the lines of one run

PLACE = "/srv/shop/lib/orders.js"  # where js/shapes.js claims to be


@pytest.fixture(autouse=True)
def no_tracing_left():
    yield
    clear_trace_function()


@asynccontextmanager
async def network(kind):
    if kind == "javascript":
        async with js_testnet() as bootstrap:
            yield bootstrap
    else:
        async with testnet(4) as net:
            yield net.bootstrap


@asynccontextmanager
async def python_server(folder, bootstrap):
    keys = KeyPair.generate()
    async with Server(folder, keys=keys, bootstrap=bootstrap, host="127.0.0.1") as server:
        assert await server.wait_announced() > 0
        yield server


class Order:
    """The class of js/shapes.js in Python, at the place that the script claims."""

    def __init__(self):
        self.tracer = create_tracer(
            self, props={"region": "eu-north-1", "currency": "EUR", "channel": "web"}
        )

    place = None
    show = None


def compiled_under(filename):
    """The methods of Order, with another file name in the traces they make."""
    source = """
def place(self, n):
    self.tracer.trace("order-placed", {"n": n, "amount": 1999, "items": 3,
        "customer": "c-20381", "state": "accepted", "warehouse": "north-east"})

def show(self, value):
    self.tracer.trace("order-value", value)
"""
    names = {}
    exec(compile(source, filename, "exec"), names)
    return names


METHODS = compiled_under(PLACE)
Order.place, Order.show = METHODS["place"], METHODS["show"]


def comparable(lines, key):
    """The lines without what differs between two runs of the same pair."""
    sessions = {line["traceSessionId"] for line in lines if "note" not in line}
    assert len(sessions) == 1
    text = "\n".join(json.dumps(line) for line in lines)
    text = (
        text.replace(key.hex(), "KEY").replace(key.hex()[:8], "KEY").replace(*sessions, "SESSION")
    )
    compared = [json.loads(line) for line in text.splitlines()]
    for line in compared:
        for field in ("time", "traceTimestamp"):
            if field in line:
                assert len(line[field]) == len("2026-01-01T00:00:00.000Z")
                line[field] = "TIME"
    return compared


def without_additions(lines):
    """The lines without what a Python client tells beside the original's."""
    for line in lines:
        for field in ("parentObject", "app", "instance"):
            line.pop(field, None)
        for field in ("line", "column"):
            line.get("caller", {}).pop(field, None)
    return lines


def assert_same(lines, reference):
    """As `lines == reference`, with a message of one line instead of ten thousand."""
    assert len(lines) == len(reference)
    for line, expected in zip(lines, reference, strict=True):
        assert line == expected


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What the JavaScript server writes for the JavaScript client's COUNT traces."""
    folder = tmp_path_factory.mktemp("reference")

    async def run():
        async with (
            js_testnet() as bootstrap,
            js_trace_server(folder, bootstrap) as server,
            js_trace_client(
                server.public_key, bootstrap, count=COUNT, props={"username": "Ann B"}
            ) as client,
        ):
            path = folder / f"{client.public_key.hex()}.log"
            lines = await log_lines(path, COUNT + 1, timeout=TIMEOUT)
            return comparable(lines, client.public_key)

    lines = trio.run(run)
    assert [line["traceNumber"] for line in lines[1:]] == list(range(COUNT))
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
async def test_the_javascript_client_ships_to_the_python_server(kind, tmp_path, reference):
    async with (
        network(kind) as bootstrap,
        python_server(tmp_path, bootstrap) as server,
        js_trace_client(
            server.public_key, bootstrap, count=COUNT, props={"username": "Ann B"}
        ) as client,
    ):
        path = tmp_path / f"{client.public_key.hex()}.log"
        lines = await log_lines(path, COUNT + 1, timeout=TIMEOUT)
    assert_same(comparable(lines, client.public_key), reference)
    assert [list(line) for line in lines[:2]] == [list(line) for line in reference[:2]]


async def ship_from_python(server_key, bootstrap, send):
    """Run a Python client as an application would; its public key."""
    client = Client()
    options = {"bootstrap": bootstrap, "keys": None}
    client.start(server_key, **options, get_initial_props=lambda: {"username": "Ann B"})
    try:
        await trio.to_thread.run_sync(send)
        assert await trio.to_thread.run_sync(client.flush, 30)
        return client
    except BaseException:
        client.stop(timeout=0)
        raise


def send_orders():
    # Object ids count for each class of a process: a new class begins at 1, as the reference did.
    order = type("Order", (Order,), {})()
    for number in range(COUNT):
        order.place(number)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
async def test_the_python_client_ships_to_the_javascript_server(kind, tmp_path, reference):
    async with network(kind) as bootstrap, js_trace_server(tmp_path, bootstrap) as server:
        client = await ship_from_python(server.public_key, bootstrap, send_orders)
        path = tmp_path / f"{client.public_key.hex()}.log"
        lines = await log_lines(path, COUNT + 1, timeout=TIMEOUT)
        await trio.to_thread.run_sync(client.stop)
    assert_same(without_additions(comparable(lines, client.public_key)), reference)
    assert [list(line) for line in lines[:2]] == [list(line) for line in reference[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
async def test_the_python_client_ships_to_the_python_server(kind, tmp_path, reference):
    async with network(kind) as bootstrap, python_server(tmp_path, bootstrap) as server:
        client = await ship_from_python(server.public_key, bootstrap, send_orders)
        path = tmp_path / f"{client.public_key.hex()}.log"
        lines = await log_lines(path, COUNT + 1, timeout=TIMEOUT)
        await trio.to_thread.run_sync(client.stop)
    assert_same(without_additions(comparable(lines, client.public_key)), reference)


async def test_values_come_out_the_same_from_either_server(tmp_path):
    folders = [tmp_path / "javascript", tmp_path / "python"]
    for folder in folders:
        folder.mkdir()
    written = []
    async with (
        testnet(4) as net,
        js_trace_server(folders[0], net.bootstrap) as javascript,
        python_server(folders[1], net.bootstrap) as python,
    ):
        for folder, key in zip(folders, (javascript.public_key, python.public_key), strict=True):
            async with js_trace_client(key, net.bootstrap, count=7, shape="values") as client:
                path = folder / f"{client.public_key.hex()}.log"
                lines = await log_lines(path, 8)
                written.append(comparable(lines, client.public_key))
    assert written[0] == written[1]


async def test_the_javascript_server_understands_a_python_clients_values_and_parents(tmp_path):
    class Shop:
        def __init__(self):
            self.tracer = create_tracer(self, props={"name": "corner"})

    error = OSError(28, "No space left on device")

    def send():
        shop, order = Shop(), Order()
        order.tracer.set_parent(shop.tracer)
        order.show({"error": error, "buffer": b"\x01\x02\xff", "nan": float("nan")})
        order.show({"text": 'Jørgen \u2028 \u0007 "quoted" \\ \U0001f600', "none": None})

    async with testnet(4) as net, js_trace_server(tmp_path, net.bootstrap) as server:
        client = await ship_from_python(server.public_key, net.bootstrap, send)
        path = tmp_path / f"{client.public_key.hex()}.log"
        _, first, second = await log_lines(path, 3)
        await trio.to_thread.run_sync(client.stop)
    props = first["caller"]["props"]
    assert props["error"]["code"] == "ENOSPC"
    assert props["error"]["message"] == str(error)
    assert (props["buffer"], props["nan"]) == ("0102ff", None)
    assert first["parentObject"]["className"] == "Shop"
    assert first["parentObject"]["props"] == {"name": "corner"}
    assert second["caller"]["props"]["text"] == 'Jørgen \u2028 \u0007 "quoted" \\ \U0001f600'


@pytest.mark.parametrize("settings", [{"local": True}, {"bootstrap": ["127.0.0.1:9"]}])
async def test_a_server_without_a_network_is_all_that_a_javascript_client_needs(settings, tmp_path):
    keys = KeyPair.generate()
    async with (
        Server(tmp_path, keys=keys, host="127.0.0.1", **settings) as server,
        js_trace_client(server.public_key, [server.address], count=10) as client,
    ):
        path = tmp_path / f"{client.public_key.hex()}.log"
        lines = await log_lines(path, 11)
    assert [line["traceNumber"] for line in lines[1:]] == list(range(10))


async def test_a_stopped_javascript_client_is_noted_as_the_original_notes_it(tmp_path):
    notes = []
    for kind in ("javascript", "python"):
        folder = tmp_path / kind
        folder.mkdir()
        async with js_testnet() as bootstrap:
            serve = js_trace_server if kind == "javascript" else python_server
            async with serve(folder, bootstrap) as server:
                async with js_trace_client(server.public_key, bootstrap, count=1) as client:
                    path = folder / f"{client.public_key.hex()}.log"
                    await log_lines(path, 2)
                notes.append([line.get("note") for line in await log_lines(path, 3)][2])
    assert notes[0] == notes[1]


async def test_log_messages_stand_in_the_file_of_a_javascript_server(tmp_path):
    async with (
        js_testnet() as bootstrap,
        js_trace_server(tmp_path, bootstrap) as server,
        Client().running(server.public_key, bootstrap=bootstrap, keys=None) as client,
    ):
        client.warning("disk almost full", disk="sda")
        create_tracer(client).trace("between")
        client.info({"event": "order"})
        path = tmp_path / f"{client.public_key.hex()}.log"
        lines = [line for line in await log_lines(path, 4) if "note" not in line]
    assert [line["traceNumber"] for line in lines] == [0, 1, 2]
    assert [line["id"] for line in lines] == ["WARNING", "between", "INFO"]
    assert (lines[0]["message"], lines[0]["attributes"]) == ("disk almost full", {"disk": "sda"})
    assert lines[2]["message"] == {"event": "order"}
    assert lines[0]["caller"]["filename"] == __file__
