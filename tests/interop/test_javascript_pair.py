"""The JavaScript packages with each other: proves the harness and fixes what "compatible" means."""

from __future__ import annotations

import json

import pytest
import trio

from tests.interop.harness import (
    JavaScriptFailed,
    js_echo,
    js_testnet,
    js_trace_client,
    js_trace_server,
    log_lines,
    run_script,
)

pytestmark = pytest.mark.interop

# A server that takes itself for reachable. Otherwise the LAN address and a hole punch are in a
# race, and once, on a busy machine, nothing of such a connection of JavaScript peers got through.
ONE_WAY = {"firewalled": False}

TRACE_FIELDS = [
    "time",
    "userId",
    "traceTimestamp",
    "traceSessionId",
    "traceNumber",
    "id",
    "props",
    "object",
    "caller",
]


async def test_two_hundred_traces_reach_the_log_file_in_order(tmp_path):
    async with (
        js_testnet() as bootstrap,
        js_trace_server(tmp_path, bootstrap) as server,
        js_trace_client(
            server.public_key, bootstrap, count=200, props={"username": "Ann B"}
        ) as client,
    ):
        greeting = await client.event("greeting")
        assert greeting["greeting"] == {"lastSeenTraceSessionId": None, "lastSeenTraceNumber": None}
        await client.event("sent")
        key = client.public_key.hex()
        note, *traces = await log_lines(tmp_path / f"{key}.log", 201)

    session = traces[0]["traceSessionId"]
    assert list(note) == ["time", "note"]
    assert note["note"] == f"New session from {key}. sessionId={session}"
    assert [trace["traceNumber"] for trace in traces] == list(range(200))
    for number, trace in enumerate(traces):
        assert list(trace) == TRACE_FIELDS
        assert trace["userId"] == f"Ann_B___{key[:8]}"
        assert trace["traceSessionId"] == session
        assert trace["id"] == "order-placed"
        assert trace["props"] == {"username": "Ann B"}
        assert trace["object"]["className"] == "Order"
        assert trace["object"]["id"] == 1
        assert trace["caller"]["filename"] == "/srv/shop/lib/orders.js"
        assert trace["caller"]["functionName"] == "place"
        assert trace["caller"]["props"]["n"] == number


async def test_values_are_written_by_the_replacer_rules(tmp_path):
    async with (
        js_testnet() as bootstrap,
        js_trace_server(tmp_path, bootstrap) as server,
        js_trace_client(server.public_key, bootstrap, count=7, shape="values") as client,
    ):
        lines = await log_lines(tmp_path / f"{client.public_key.hex()}.log", 8)
    assert [line["caller"]["props"] for line in lines[1:]] == [
        {"error": {"code": "ESTOCK", "message": "no stock"}},
        {"error": {"message": "no code"}},
        {"buffer": "0102ff"},
        {"array": {"0": 1, "1": 2}},
        {
            "number": None,
            "infinite": None,
            "negative": -0.5,
            "large": 2**53 - 1,
            "exponent": 1e21,
        },
        {
            "date": "1970-01-01T00:00:00.000Z",
            "deep": {"list": [1, None, {"error": {"message": "inside"}}]},
        },
        {"text": 'Jørgen \u2028 \u0007 "quoted" \\ \U0001f600', "truth": True, "nothing": None},
    ]


async def test_a_client_can_be_told_to_send_more_at_a_rate(tmp_path):
    async with (
        js_testnet() as bootstrap,
        js_trace_server(tmp_path, bootstrap) as server,
        js_trace_client(server.public_key, bootstrap, rate=100, shape="bare") as client,
    ):
        await client.event("greeting")
        await client.command(send=20)
        assert (await client.event("sent"))["seconds"] >= 0.19
        lines = await log_lines(tmp_path / f"{client.public_key.hex()}.log", 21)
    assert [line["traceNumber"] for line in lines[1:]] == list(range(20))
    assert all(line["id"] is None and "props" not in line["caller"] for line in lines[1:])


async def test_the_server_keeps_its_key_in_keys_dat(tmp_path):
    async with js_testnet(1) as bootstrap:
        keys = []
        for _ in range(2):
            async with js_trace_server(tmp_path, bootstrap) as server:
                keys.append(server.public_key)
    assert keys[0] == keys[1]
    assert json.loads((tmp_path / "keys.dat").read_text())["publicKey"] == keys[0].hex()


async def test_an_echo_brings_every_byte_back():
    size = 1_000_000
    async with (
        js_testnet() as bootstrap,
        js_echo("echo", bootstrap, dht=ONE_WAY) as server,
        js_echo("echo", bootstrap, connect_to=server.public_key, size=size, chunk=30_000) as client,
    ):
        sent = await client.event("sent")
        received = await client.event("received")
    assert sent["bytes"] == received["bytes"] == size
    assert sent["sha256"] == received["sha256"]
    assert received["messages"] == 34


async def test_a_source_fills_a_sink():
    async with (
        js_testnet() as bootstrap,
        js_echo("source", bootstrap, size=500_000, dht=ONE_WAY) as server,
        js_echo("sink", bootstrap, connect_to=server.public_key) as client,
    ):
        received = await client.event("received")
        assert received["sha256"] == (await server.event("sent"))["sha256"]


async def test_a_script_that_ends_early_fails_with_its_stderr(tmp_path):
    with pytest.raises(JavaScriptFailed, match="TypeError"):
        async with run_script("server.js", folder=str(tmp_path)):  # no bootstrap
            pass


async def test_an_event_that_never_comes_fails_in_time():
    async with js_testnet(1) as bootstrap, js_echo("echo", bootstrap) as server:
        with pytest.raises(JavaScriptFailed, match=r"did not report 'sent' within 0\.05 s"):
            await server.event("sent", timeout=0.05)


async def test_a_killed_process_is_reported_and_leaves_the_context_in_order():
    async with js_testnet(1) as bootstrap, js_echo("echo", bootstrap) as server:
        server.kill()
        with pytest.raises(JavaScriptFailed, match="exit status -9"):
            await server.event("open")


async def test_an_error_in_the_test_comes_out_unwrapped():
    with pytest.raises(KeyError, match="mine"):
        async with js_testnet(1):
            raise KeyError("mine")


async def test_leaving_the_context_waits_for_the_orderly_end():
    async with js_testnet(1) as bootstrap:
        async with js_echo("echo", bootstrap) as server:
            assert server.stopped is None
        assert server.process.returncode == 0
        assert server.stopped is not None
        assert server.stopped["maxRssBytes"] > 1_000_000


async def test_cancelling_the_test_ends_the_processes():
    with trio.CancelScope() as scope:
        async with js_testnet(1) as bootstrap, js_echo("echo", bootstrap) as server:
            process = server.process
            scope.cancel()
            await trio.sleep_forever()
    assert process.returncode is not None
