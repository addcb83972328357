"""The laboratory itself: each kind of router does what its name says, and a lab leaves nothing."""

from __future__ import annotations

import subprocess
import time

import pytest
import trio

from tests.natlab.lab import HOPS, ROUTERS, namespaces, open_lab, sweep
from tests.natlab.nats import (
    FORWARDED,
    FULL_CONE,
    KINDS,
    NATS,
    PREDICTABLE,
    RESTRICTED,
    SYMMETRIC,
    WITHOUT_NAT,
)

pytestmark = pytest.mark.natlab

WAIT = 5  # s, for a datagram that must come
REFUSED = 0.15  # s, after which one that must not come has not; it takes 1 ms otherwise


@pytest.fixture(name="lab")
async def fixture_lab():
    async with open_lab() as lab:
        yield lab


class Sockets:
    """A socket behind the left router, and four outside of it: two hosts with two ports each."""

    def __init__(self, lab):
        self.lab = lab
        self.inside = lab.udp_socket("left", ("192.168.1.10", 4000))
        self.outside = {
            (host, port): lab.udp_socket("net", (host, port))
            for host in ("5.9.1.1", "5.9.2.1")
            for port in (5000, 5001)
        }

    def seen_from(self, address):
        """The address that the socket inside has for one outside."""
        self.inside.sendto(b"hello", address)
        sock = self.outside[address]
        sock.settimeout(WAIT)
        return sock.recvfrom(100)[1]

    def passes(self, source, mapped):
        """Whether a datagram from outside to the mapped address comes in."""
        self.outside[source].sendto(str(source).encode(), mapped)
        self.inside.settimeout(REFUSED)
        try:
            data, sender = self.inside.recvfrom(100)
        except TimeoutError:
            return False
        assert (data, sender) == (str(source).encode(), source)
        return True


A, OTHER_PORT, OTHER_HOST = ("5.9.1.1", 5000), ("5.9.1.1", 5001), ("5.9.2.1", 5000)


@pytest.mark.parametrize("kind", NATS)
async def test_a_router_maps_and_filters_as_its_kind_says(lab, kind):
    lab.set_nat("left", kind)
    sockets = Sockets(lab)
    mapped = sockets.seen_from(A)
    assert mapped[0] == ROUTERS["left"]
    assert sockets.passes(A, mapped)
    assert sockets.passes(OTHER_PORT, mapped) == (kind in (FORWARDED, FULL_CONE, RESTRICTED))
    assert sockets.passes(OTHER_HOST, mapped) == (kind in (FORWARDED, FULL_CONE))
    mappings = [mapped, *map(sockets.seen_from, (OTHER_PORT, OTHER_HOST))]
    if kind == SYMMETRIC:
        assert len(set(mappings)) == 3
    elif kind == PREDICTABLE:
        ports = [port for _, port in mappings]
        assert ports == [ports[0], ports[0] + 1, ports[0] + 2]
    else:
        assert set(mappings) == {(ROUTERS["left"], 4000)}
    # The datagrams that were refused have left no trace: the far end may be met now.
    for address in A, OTHER_PORT, OTHER_HOST:
        assert sockets.passes(address, sockets.seen_from(address))


@pytest.mark.parametrize("kind", NATS)
async def test_only_a_forwarded_port_is_open_before_anything_was_sent(lab, kind):
    lab.set_nat("left", kind)
    sockets = Sockets(lab)
    lab.udp_socket("left", ("192.168.1.10", 4001)).sendto(b"another port", A)
    assert sockets.passes(A, (ROUTERS["left"], 4000)) == (kind == FORWARDED)


def test_every_kind_is_a_nat_or_none():
    assert set(KINDS) == {*NATS, *WITHOUT_NAT}


async def test_there_is_no_hairpin(lab):
    lab.set_nat("left", FULL_CONE)
    sockets = Sockets(lab)
    mapped = sockets.seen_from(A)
    neighbour = lab.udp_socket("left2")
    sockets.inside.settimeout(REFUSED)
    neighbour.sendto(b"hello", mapped)
    with pytest.raises(TimeoutError):
        sockets.inside.recvfrom(100)
    neighbour.sendto(b"hello", ("192.168.1.10", 4000))
    assert sockets.inside.recvfrom(100)[0] == b"hello"


async def test_an_isolated_site_keeps_its_hosts_from_each_other_only(lab):
    lab.isolate("left")
    sockets = Sockets(lab)
    neighbour = lab.udp_socket("left2")
    neighbour.sendto(b"hello", ("192.168.1.10", 4000))
    sockets.inside.settimeout(REFUSED)
    with pytest.raises(TimeoutError):
        sockets.inside.recvfrom(100)
    assert sockets.seen_from(A)


@pytest.mark.parametrize("sender", ["left", "public1"])
async def test_a_low_ttl_opens_the_own_router_and_gets_no_further(lab, sender):
    there = lab.udp_socket("public2", ("5.9.92.1", 5000))
    there.settimeout(REFUSED)
    here = lab.udp_socket(sender, ("0.0.0.0", 4000))
    here.setsockopt(0, 2, HOPS)  # IPPROTO_IP, IP_TTL
    here.sendto(b"low", ("5.9.92.1", 5000))
    with pytest.raises(TimeoutError):
        there.recvfrom(100)
    outside = {"left": ROUTERS["left"], "public1": "5.9.91.1"}[sender]
    there.sendto(b"back", (outside, 4000))
    here.settimeout(WAIT)
    assert here.recvfrom(100)[0] == b"back"


async def test_a_restarted_symmetric_router_gives_a_flow_another_port(lab):
    lab.set_nat("left", SYMMETRIC)
    sockets = Sockets(lab)
    before = sockets.seen_from(A)
    assert sockets.seen_from(A) == before
    lab.forget_mappings("left")
    assert sockets.seen_from(A) != before


async def test_a_silent_flow_is_forgotten_when_its_time_is_over(lab):
    lab.set_mapping_timeout("left", 1, 1)
    sockets = Sockets(lab)
    sockets.seen_from(A)
    assert lab.mappings("left") == 1
    deadline = time.monotonic() + WAIT
    while sockets.passes(A, (ROUTERS["left"], 4000)):
        assert time.monotonic() < deadline
        await trio.sleep(1.1)  # the only thing that makes it forget


async def test_probes_are_counted(lab):
    sockets = Sockets(lab)
    for data in b"\0", b"\0", b"no probe":
        sockets.inside.sendto(data, A)
    sockets.seen_from(A)
    assert lab.probes_sent("left") == 2


async def test_a_lab_leaves_no_namespace_behind():
    async with open_lab() as lab:
        assert lab.namespace("left") in namespaces()
    assert not [name for name in namespaces() if name.startswith(f"{lab.name}-")]


def test_what_a_killed_process_left_behind_is_swept_away():
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = f"hlnat{ended.pid}-0-left"
    subprocess.run(["ip", "netns", "add", name], check=True)
    sweep()
    assert name not in namespaces()
