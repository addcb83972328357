"""Nodes of ours are the network of JavaScript peers; our commands look at JavaScript peers."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from tests.commands import option, report, run, running
from tests.interop.harness import (
    js_echo,
    js_testnet,
    js_trace_client,
    js_trace_server,
    log_lines,
)

pytestmark = pytest.mark.interop


async def free_ports(count):
    """UDP ports that are free on loopback, each for a node of its own."""
    sockets = [trio.socket.socket(type=trio.socket.SOCK_DGRAM) for _ in range(count)]
    for socket in sockets:
        await socket.bind(("127.0.0.1", 0))
    ports = [socket.getsockname()[1] for socket in sockets]
    for socket in sockets:
        socket.close()
    return ports


@asynccontextmanager
async def three_nodes():
    """Processes of `hyperlog node`, each given all of them as bootstrap nodes."""
    nodes = [("127.0.0.1", port) for port in await free_ports(3)]
    known = [text for node in nodes for text in option(node)]
    async with AsyncExitStack() as stack:
        commands = [
            await stack.enter_async_context(running("node", "--host", host, "--port", port, *known))
            for host, port in nodes
        ]
        for command, (host, port) in zip(commands, nodes, strict=True):
            ready = json.loads(await command.line())
            assert ready == {"bootstrap": [{"host": host, "port": port}]}
            await command.says("a persistent node")
        yield nodes
        for command in commands:
            assert await command.stop() == 0
            assert b"Traceback" not in command.stderr


async def test_javascript_peers_and_the_stock_logger_work_over_nodes_of_ours(tmp_path):
    async with three_nodes() as nodes:
        async with (
            js_echo("echo", nodes) as server,
            js_echo("echo", nodes, connect_to=server.public_key, size=300_000) as client,
        ):
            received = await client.event("received")
            assert received["bytes"] == 300_000
            assert received["sha256"] == (await client.event("sent"))["sha256"]
        async with (
            js_trace_server(tmp_path, nodes) as server,
            js_trace_client(server.public_key, nodes, count=20) as client,
        ):
            await client.event("sent")
            lines = await log_lines(tmp_path / f"{client.public_key.hex()}.log", 21)
            numbers = [line["traceNumber"] for line in lines if "note" not in line]
            assert numbers == list(range(20))


async def test_the_doctor_and_pings_leave_no_record_on_a_stock_logger(tmp_path):
    async with js_testnet(4) as bootstrap, js_trace_server(tmp_path, bootstrap) as server:
        key = server.public_key.hex()
        status, found = await report(key, *option(bootstrap[0]))
        assert (status, found["reachable"]) == (0, True)
        steps = {step["step"]: step for step in found["steps"]}
        assert steps["handshake"]["verdict"] == "ok"
        assert steps["server"]["figures"] == {"kind": "hypertrace-logger"}
        assert steps["path"]["figures"]["kind"] in ("direct", "lan", "punched")
        done = await run("ping", key, *option(bootstrap[0]), "-c", "3", "-i", "0.05", "--json")
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert [event["event"] for event in events] == ["connected", *["ping"] * 3, "done"]
        assert events[-1]["acknowledged"] == 3
        async with js_trace_client(server.public_key, bootstrap, count=1) as client:
            await log_lines(tmp_path / f"{client.public_key.hex()}.log", 2)
        # The server notes of every client that its connection has ended.
        others = [path for path in tmp_path.glob("*.log") if path.stem != client.public_key.hex()]
        written = [json.loads(line) for path in others for line in path.read_text().splitlines()]
        assert all("Socket error" in line["note"] for line in written)
