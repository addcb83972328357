"""A server that is killed in the middle of the work, and comes back with the same keys."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hyperlog.client import Client
from hyperlog.dht import testnet
from hyperlog.trace import clear_trace_function, create_tracer
from tests.interop.harness import js_trace_client

ROOT = Path(__file__).parent.parent
RATE = 200  # traces a second
START_TIMEOUT = 15.0  # s


@pytest.fixture(autouse=True)
def no_tracing_left():
    yield
    clear_trace_function()


@asynccontextmanager
async def server_process(folder, bootstrap):
    """`hyperlog serve` with keys and logs in `folder`; gives the process and the key."""
    nodes = [f"--bootstrap={host}:{port}" for host, port in bootstrap]
    command = [sys.executable, "-m", "hyperlog", "serve", "--host", "127.0.0.1", *nodes]
    command += ["--http", "off", "--store", "off"]
    command += ["--keys", str(folder / "keys.dat"), "--folder", str(folder)]
    # Standard error goes to a file: nobody would empty a pipe.
    with (folder / "stderr").open("ab") as stderr:
        process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT
        )
    try:
        with trio.fail_after(START_TIMEOUT):
            line = b""
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some() or b"\n"
        match = re.fullmatch(rb"server started on ([0-9a-f]{64})\n", line)
        assert match, (folder / "stderr").read_text()
        yield process, bytes.fromhex(match[1].decode())
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stdout.aclose()


async def kill(process):
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    await process.wait()


def log_of(folder, key):
    """Numbers and notes of a log file, in order; torn lines fail."""
    path = folder / f"{key.hex()}.log"
    data = path.read_bytes() if path.exists() else b""
    # What a killed server leaves unfinished, the next one ends with a newline of its own.
    lines = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines() if line]
    numbers = [line["traceNumber"] for line in lines if "note" not in line]
    return numbers, [line["note"] for line in lines if "note" in line]


async def until_logged(folder, key, count, timeout):
    with trio.fail_after(timeout):
        while len(log_of(folder, key)[0]) < count:  # noqa: ASYNC110 - another process writes
            await trio.sleep(0.05)


def assert_every_number_once(folder, key, count):
    numbers, notes = log_of(folder, key)
    assert numbers == list(range(count))
    assert not [note for note in notes if note.startswith(("Skipped", "Lost"))]


@pytest.mark.slow
async def test_a_killed_server_comes_back_and_the_python_client_loses_and_doubles_nothing(tmp_path):
    class Order:
        def __init__(self):
            self.tracer = create_tracer(self)

        def place(self, number):
            self.tracer.trace("placed", {"n": number})

    count = 0
    stopping = False
    client = Client()

    async def trace_at_a_rate():
        nonlocal count
        order = Order()
        began_at = trio.current_time()
        while not stopping:
            while count < RATE * (trio.current_time() - began_at):
                order.place(count)
                count += 1
            await trio.sleep(0.005)

    async with testnet(4) as network, trio.open_nursery() as nursery:
        for life in range(3):
            before = count
            async with server_process(tmp_path, network.bootstrap) as (process, key):
                if life == 0:
                    client.start(key, bootstrap=network.bootstrap, keys=None)
                    nursery.start_soon(trace_at_a_rate)
                await until_logged(tmp_path, client.public_key, before + RATE, 30)
                if life == 2:
                    stopping = True
                    assert await trio.to_thread.run_sync(client.stop, 20)
                    await until_logged(tmp_path, client.public_key, count, 30)
                await kill(process)
    assert client.statistics().connections == 3
    assert client.statistics().lost == 0
    assert count > 3 * RATE
    assert_every_number_once(tmp_path, client.public_key, count)


@pytest.mark.slow
@pytest.mark.interop
async def test_a_killed_server_comes_back_and_the_javascript_client_loses_and_doubles_nothing(
    tmp_path,
):
    # Its ring holds 1025 to 2049 traces, its first retry comes after 10 to 15 s, and a connection
    # to a vanished server ends for it some seconds after the kill.
    count = 6 * RATE
    async with (
        testnet(4) as network,
        server_process(tmp_path, network.bootstrap) as (process, key),
        js_trace_client(key, network.bootstrap, rate=RATE) as client,
    ):
        await client.event("greeting")
        await client.command(send=count)
        await until_logged(tmp_path, client.public_key, RATE, 30)
        await kill(process)
        async with server_process(tmp_path, network.bootstrap) as (_, same_key):
            assert same_key == key
            await client.event("reconnect", timeout=40)
            await client.event("greeting", timeout=40)
            await until_logged(tmp_path, client.public_key, count, 20)
            await client.command(send=10)
            await until_logged(tmp_path, client.public_key, count + 10, 20)
    assert_every_number_once(tmp_path, client.public_key, count + 10)
