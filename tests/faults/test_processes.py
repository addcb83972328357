"""Real processes, killed and stopped at random: nothing is lost, nothing doubled, and it is quick.

The short runs belong to every test run; HYPERLOG_LONG=1 makes them as long as the issue asks. A
run's seed is in the message of a failure; HYPERLOG_SEED repeats it, as far as real time allows.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
from contextlib import asynccontextmanager

import pytest
import trio

from tests.faults.processes import Scene, count_lines, slowdown
from tests.udp_proxy import open_lossy_proxy

LONG = bool(os.environ.get("HYPERLOG_LONG"))
SEED = int(os.environ.get("HYPERLOG_SEED", random.randrange(10**6)))

pytestmark = pytest.mark.slow


@asynccontextmanager
async def open_scene(folder, **settings):
    async with trio.open_nursery() as nursery:
        scene = Scene(folder, nursery, **settings)
        try:
            yield scene
        finally:
            await scene.close()


async def finish(scene, timeout=30.0):
    """Let another run of the application deliver what is left; then nothing may be.

    Both runs have `timeout` seconds at their end: they take what they need, which is half a second
    as a rule. Where packets get lost, connecting alone may take 5.
    """
    if scene.application is not None:
        await scene.stop_application()
    left = {path.parent for path in scene.spooled()}
    await scene.start_application(count=1, patience=timeout)
    with trio.fail_after(timeout):
        while any(path.exists() for path in left):  # noqa: ASYNC110 - another process removes them
            await trio.sleep(0.05)
    event = await scene.stop_application()
    assert event["delivered"]
    assert not scene.spooled()


async def test_killed_servers_and_applications_lose_and_double_nothing(tmp_path):
    """Both are killed at random times, on their own, and come back after a moment."""
    rng = random.Random(SEED)
    seconds, kills = (60, 20) if LONG else (12, 4)
    recoveries = []

    async def kill_servers(scene):
        for _ in range(kills):
            await trio.sleep(rng.uniform(0.3, 1.4) * seconds / kills / 1.5)
            await scene.server.kill()
            await trio.sleep(rng.choice([0.0, 0.0, 1.0]))
            before = count_lines(scene.log)
            await scene.start_server()
            began_at = trio.current_time()
            # The application may be dead at the moment.
            recoveries.append(await scene.until_logged(before + 1, 15) - began_at)

    async def kill_applications(scene):
        for _ in range(kills):
            await trio.sleep(rng.uniform(0.3, 1.4) * seconds / kills)
            await scene.kill_application()
            await trio.sleep(rng.choice([0.0, 0.2]))
            await scene.start_application()

    async with open_scene(tmp_path) as scene:
        await scene.start_server()
        await scene.start_application()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_servers, scene)
            nursery.start_soon(kill_applications, scene)
        await finish(scene)
        unsaved = scene.assert_nothing_lost_or_doubled()
        traced = len(scene.journal())
    print(f"seed {SEED}: {traced} traced, {unsaved} not saved at the kills, {recoveries}")
    assert traced > 200 * seconds
    assert unsaved <= 50 * (kills + 1)  # what 0.1 s hold at this rate


async def test_a_stopped_server_and_a_stopped_application_go_on_where_they_were(tmp_path):
    pause = 10.0 if LONG else 3.0
    async with open_scene(tmp_path) as scene:
        await scene.start_server()
        await scene.start_application()
        for name in ("server", "application"):
            await scene.until_logged(count_lines(scene.log) + 200, 10)
            process = getattr(scene, name)
            process.send(signal.SIGSTOP)
            await trio.sleep(pause)
            process.send(signal.SIGCONT)
            await scene.until_logged(count_lines(scene.log) + 200, 10)
        await finish(scene)
        assert scene.assert_nothing_lost_or_doubled() == 0


@pytest.mark.parametrize("loss", [0.0, 0.2])
async def test_a_partition_and_a_lossy_path_lose_and_double_nothing(tmp_path, loss):
    partition = 30.0 if LONG else 7.0
    async with open_scene(tmp_path) as scene:
        await scene.start_server()
        address = ("127.0.0.1", scene.port)
        async with open_lossy_proxy(address, loss=loss, seed=SEED) as proxy:
            scene.bootstrap = "{}:{}".format(*proxy.address)
            await scene.start_application(rate=200)
            await scene.until_logged(200, 30)
            proxy.loss = 1.0
            await trio.sleep(partition)
            before = count_lines(scene.log)
            proxy.loss = loss
            began_at = trio.current_time()
            recovered = await scene.until_logged(before + 1, 20) - began_at
            await finish(scene, timeout=60)
        assert scene.assert_nothing_lost_or_doubled() == 0
    print(f"loss {loss}: shipping {recovered:.2f} s after the partition")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_a_long_outage_is_delivered_in_full_with_little_memory(tmp_path):
    count, rate = (200_000, 8_000) if LONG else (20_000, 5_000)
    async with open_scene(tmp_path) as scene:
        started = await scene.start_application(rate=rate, count=count)
        assert (await scene.application.event(timeout=90))["event"] == "traced"
        await scene.start_server()
        began_at = trio.current_time()
        seconds = await scene.until_logged(count, 90) - began_at
        stopped = await scene.stop_application()
        assert stopped["delivered"]
        assert stopped["lost"] == 0
        assert scene.assert_nothing_lost_or_doubled() == 0
    grown = (stopped["peakKiB"] - started["idleKiB"]) / 1024
    print(f"{count} traces of an outage in {seconds:.1f} s, {grown:.1f} MB above idle")
    assert grown <= 64


async def recoveries_of(scene, restarts):
    """Seconds from each start of the server to the next line, for a machine without other work.

    `restarts` are the times that the server is away.
    """
    recoveries = []
    for away in restarts:
        await scene.server.kill()
        await trio.sleep(away)
        before = count_lines(scene.log)
        await scene.start_server()
        began_at = trio.current_time()
        recovered = await scene.until_logged(before + 1, 20) - began_at
        recoveries.append(round(recovered / slowdown(), 2))
    print("shipping again after", recoveries)
    return recoveries


async def test_shipping_goes_on_soon_after_the_server_is_back(tmp_path):
    """At most 1 s when the client knows the address, however long the server was away.

    As the median: a single one may be hit by what else the machine does.
    """
    async with open_scene(tmp_path) as scene:
        await scene.start_server()
        await scene.start_application()
        await scene.until_logged(500, 20)
        recoveries = await recoveries_of(scene, (0.0, 1.0, 7.0, 20.0 if LONG else 3.0, 0.3))
        await finish(scene)
        assert scene.assert_nothing_lost_or_doubled() == 0
    assert statistics.median(recoveries) <= 1.0
    assert max(recoveries) <= 2.0


async def test_a_client_that_never_reached_the_server_ships_soon_after_it_is_there(tmp_path):
    """At most 2 s, although it does not know the server's address: the median again."""
    recoveries = []
    async with open_scene(tmp_path) as scene:
        await scene.start_server()
        for away in (9.0, 14.0, 22.0) if LONG else (2.0, 5.0, 7.0):
            await scene.server.kill()
            await scene.start_application()
            await trio.sleep(0.5)
            recoveries += await recoveries_of(scene, [away])
            await scene.stop_application()
        await finish(scene)
        assert scene.assert_nothing_lost_or_doubled() == 0
    assert statistics.median(recoveries) <= 2.0
    assert max(recoveries) <= 4.0


async def test_an_application_ends_within_a_second_when_its_server_is_gone(tmp_path):
    async with open_scene(tmp_path) as scene:
        await scene.start_server()
        await scene.start_application(patience=1.0)
        await scene.until_logged(200, 20)
        await scene.server.kill()
        await trio.sleep(1)
        event = await scene.stop_application()
        assert not event["delivered"]
        assert event["seconds"] / slowdown() <= 1.1
        assert scene.spooled()  # the rest is for the next run
        await scene.start_server()
        await finish(scene)
        assert scene.assert_nothing_lost_or_doubled() == 0
