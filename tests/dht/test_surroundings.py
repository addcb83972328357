"""What a node notices of its machine: in a network namespace of its own, and by patched clocks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import trio

from hyperlog.dht import surroundings
from hyperlog.dht.interfaces import hosts_at_a_glance, interface_hosts, local_addresses
from hyperlog.dht.opening import open_dht
from hyperlog.dht.surroundings import LOOK_INTERVAL, SLEPT_OVER, Surroundings

IN_A_NAMESPACE = """
import subprocess
from hyperlog.dht.interfaces import local_addresses
from hyperlog.dht.surroundings import Surroundings

def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)

now = 0.0
def look():
    global now
    now += 10.0
    return seen.look(now)

seen = Surroundings(lambda: "0.0.0.0", now)
print(look())                                        # nothing there
ip("link", "add", "d0", "type", "veth", "peer", "name", "d1")
ip("link", "set", "d0", "up")
print(look())                                        # an interface without an address
ip("addr", "add", "10.7.0.1/24", "dev", "d0")
print(look(), local_addresses(("0.0.0.0", 7)))       # the network has come
print(look())
ip("addr", "flush", "dev", "d0")
print(look())                                        # gone: nothing can be done
ip("addr", "add", "10.8.0.1/24", "dev", "d0")
print(look(), local_addresses(("0.0.0.0", 7)))       # another one
"""


def why_no_namespace():
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        return "needs root on Linux, and the program ip"
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True)
    return None if made.returncode == 0 else "no network namespace can be made here"


WHY = why_no_namespace()


@pytest.mark.skipif(WHY is not None, reason=WHY or "")
def test_addresses_that_come_and_go_are_noticed():
    told = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", IN_A_NAMESPACE],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert told.stdout.splitlines() == [
        "False",
        "False",
        "True [('10.7.0.1', 7)]",
        "False",
        "False",
        "True [('10.8.0.1', 7)]",
    ]


@pytest.fixture
def wall(monkeypatch):
    """The time on the wall, to be set by the test."""
    clock = [1e9]
    monkeypatch.setattr(surroundings, "wall_clock", lambda: clock[0])
    return clock


def test_a_wall_clock_that_runs_ahead_means_sleep(wall):
    seen = Surroundings(lambda: "10.0.0.1", 0.0)
    wall[0] += LOOK_INTERVAL
    assert not seen.look(LOOK_INTERVAL)
    wall[0] += SLEPT_OVER + LOOK_INTERVAL + 1
    assert seen.look(2 * LOOK_INTERVAL)
    assert seen.slept
    assert not seen.look(3 * LOOK_INTERVAL)


def test_a_wall_clock_that_is_put_back_means_nothing(wall):
    seen = Surroundings(lambda: "10.0.0.1", 0.0)
    wall[0] -= 1e6
    assert not seen.look(10.0)


def test_looks_are_not_too_frequent(wall, monkeypatch):
    seen = Surroundings(lambda: "10.0.0.1", 0.0)
    wall[0] += 1000
    assert not seen.look(LOOK_INTERVAL / 2)
    assert seen.look(LOOK_INTERVAL)


def test_a_bound_address_that_changes_is_noticed(wall):
    host = "10.0.0.1"
    seen = Surroundings(lambda: host, 0.0)
    host = "10.0.0.2"
    assert seen.look(10.0)
    assert not seen.slept
    host = "10.0.0.3"
    seen.forget(15.0)  # the owner knows
    assert not seen.look(20.0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a glance shows less")
def test_a_glance_shows_all_addresses():
    assert hosts_at_a_glance() == interface_hosts()


@contextmanager
def no_descriptor_left():
    """As in a process that has as many files and sockets open as it may."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_look_without_any_descriptor_left_shows_no_change():
    seen = Surroundings(lambda: "0.0.0.0", 0.0)
    with no_descriptor_left():
        with pytest.raises(OSError, match="open files"):
            hosts_at_a_glance()
        assert local_addresses(("0.0.0.0", 7)) == [("127.0.0.1", 7)]
        assert not seen.look(10.0)
    assert not seen.look(20.0)


async def test_a_node_lives_on_while_no_descriptor_is_left():
    async with (
        open_dht(bootstrap=[]) as node,
        open_dht(bootstrap=[], host="127.0.0.1") as other,
    ):
        address = ("127.0.0.1", node.address[1])
        with no_descriptor_left(), trio.fail_after(5):
            node.node._surroundings._look_at = 0.0  # at the next timer
            node.node._sleep.cancel()
            for _ in range(3):
                assert await other.node.ping(address)
            assert node.node._surroundings._look_at
