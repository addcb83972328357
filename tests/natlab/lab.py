"""A small internet of network namespaces: 8 nodes, two sites behind routers, public hosts.

             net: 5.9.1.1 … 5.9.8.1, the nodes          relay 5.9.90.1
     ──────────┬─────────────────────┬─────────────────┬────────┬──────────── 5.9.0.0/16
        5.9.101.1                 5.9.102.1         5.9.91.1  5.9.92.1
        router left               router right      public1   public2
      ──┬───────────┬──           ──┬──
     192.168.1.10 .11             192.168.1.20
        left   left2                right

The addresses look public, since peers pass over those that are reserved; nothing of all this is
seen outside of the namespaces. Both sites use the same private network, as homes do. As on the
internet, a packet with a TTL of 5 leaves the sender's router and arrives nowhere. A lab may be
built with the router of a provider before that of a site (`carriers`).

    async with open_lab() as lab:
        lab.set_nat("left", SYMMETRIC)
        subprocess.run([*lab.inside("left"), "ping", ...])

Needs root, and the programs ip, nft and conntrack. A lab's namespaces carry its process's id in
their names; they go with the context, and those that a killed process left behind go when the next
lab is opened.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tests.natlab.nats import PORT_RESTRICTED, rules

NODE_HOSTS = [f"5.9.{n}.1" for n in range(1, 9)]
RELAY_HOST = "5.9.90.1"
PUBLIC_HOSTS = {"public1": "5.9.91.1", "public2": "5.9.92.1"}
ROUTERS = {"left": "5.9.101.1", "right": "5.9.102.1"}
INSIDE = {"left": "192.168.1.10", "left2": "192.168.1.11", "right": "192.168.1.20"}
INSIDE6 = {"left": "fd00:9::10", "left2": "fd00:9::11", "right": "fd00:9::20"}
SITE_OF = {"left": "left", "left2": "left", "right": "right"}
HOSTS = (*INSIDE, *PUBLIC_HOSTS, "relay")
CARRIER, CUSTOMER = "100.64.0.1", "100.64.0.2"
"""A provider's router on its inside, and the outside of a site's router behind it (RFC 6598)."""

PREFIX = "hlnat"
HOPS = 5  # a packet needs a larger TTL to get anywhere, counted before the router takes one

TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
MAX_FRAME = 65535
CLONE_NEWNET = 0x40000000  # linux/sched.h
ETHERTYPE_IP = b"\x08\x00"

Address = tuple[str, int]

_numbers = itertools.count()


def why_no_lab() -> str | None:
    """The reason why there can be no lab here, None if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in ("ip", "iproute2"), ("nft", "nftables"), ("conntrack", "conntrack"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed (bin/test installs {package})"
    if not TUN.exists():
        return f"there is no {TUN}"
    return _why_not_allowed()


def _why_not_allowed() -> str | None:
    """A container may have root and yet no right to make a namespace or to set its rules."""
    name = f"{PREFIX}{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"namespaces are not allowed here: {made.stderr.strip()}"
    try:
        text = rules(PORT_RESTRICTED, outside="5.9.1.1", inside="5.9.1.2")
        bridge = "table bridge lab { chain c { type filter hook forward priority 0; }\n}"
        tried = subprocess.run(
            ["ip", "netns", "exec", name, "nft", "-f", "-"],
            input=text + bridge,
            capture_output=True,
            text=True,
        )
        return f"nftables rules are refused: {tried.stderr.strip()}" if tried.returncode else None
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def namespaces() -> list[str]:
    """The names of all that there are now."""
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines()]


def sweep() -> None:
    """Delete the namespaces that killed processes have left behind."""
    for name in namespaces():
        pid = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@dataclass
class Uplink:
    """What happens to the IP packets between one router and the internet, in both directions.

    Only a lab with `bad_uplinks` has these. All may be changed at any time; nothing happens at
    first.
    """

    loss: float = 0.0
    """share of the packets, 0 to 1, that are dropped"""
    delay: float = 0.0
    """seconds one way"""
    jitter: float = 0.0
    """up to so many seconds more, drawn for each packet, so that packets overtake each other"""
    lost: int = 0
    carried: int = 0
    reordered: int = 0
    """sent on after a packet that had come later"""


@dataclass
class Lab:
    """A running lab. `host` arguments are among HOSTS, `site` arguments among ROUTERS."""

    name: str
    uplinks: dict[str, Uplink] = field(default_factory=dict)
    """by site; empty unless the lab has `bad_uplinks`"""
    kinds: dict[str, str] = field(default_factory=dict)
    """by site: the NAT that its router does"""
    carriers: Collection[str] = ()
    """the sites whose routers are behind another one, their provider's"""
    _sockets: list[socket.socket] = field(default_factory=list)

    def namespace(self, place: str) -> str:
        return f"{self.name}-{place}"

    def inside(self, place: str) -> list[str]:
        """The start of a command line that runs a program at a place: a host, net, or a router.

        The program gets the process id of the whole command.
        """
        return ["ip", "netns", "exec", self.namespace(place)]

    def udp_socket(self, place: str, address: Address = ("0.0.0.0", 0)) -> socket.socket:
        """A socket of this process at a place; it closes with the lab."""
        with open("/proc/thread-self/ns/net") as home:
            with open(f"/run/netns/{self.namespace(place)}") as there:
                _enter(there.fileno())
            try:
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._sockets.append(sock)
                sock.bind(address)
            finally:
                _enter(home.fileno())
        return sock

    def _nft(self, place: str, text: str) -> None:
        _run(*self.inside(place), "nft", "-f", "-", text=text)

    def set_nat(self, site: str, kind: str, *, inside: str | None = None) -> None:
        """Make the router of a site a NAT of another kind that has not seen anything yet.

        `inside` is the host that is passed on to what comes in new, where something is; by default
        the site's first.
        """
        self.kinds[site] = kind
        host = INSIDE[inside or site]
        outside = CUSTOMER if site in self.carriers else ROUTERS[site]
        self._nft(f"router-{site}", rules(kind, outside=outside, inside=host))
        self.forget_mappings(site)

    def set_carrier_nat(self, site: str, kind: str) -> None:
        """The same for the router of the provider of a site, of whose `carriers` it is one."""
        carrier = f"carrier-{site}"
        self._nft(carrier, rules(kind, outside=ROUTERS[site], inside=CUSTOMER))
        _run(*self.inside(carrier), "conntrack", "-F")

    def forget_mappings(self, site: str) -> None:
        """What a router does that restarts, or gets another address for its customers' packets."""
        _run(*self.inside(f"router-{site}"), "conntrack", "-F")

    def change_address(self, site: str, address: str) -> None:
        """Give a router another address outside, as providers do to homes; its NAT begins anew."""
        router = self.namespace(f"router-{site}")
        _batch(router, "addr flush dev wan", f"addr add {address}/16 dev wan")
        self.forget_mappings(site)

    def mappings(self, site: str) -> int:
        """How many flows the router remembers."""
        return int(_run(*self.inside(f"router-{site}"), "conntrack", "-C"))

    def set_mapping_timeout(self, site: str, seconds: int, stream_seconds: int) -> None:
        """How long the router remembers a UDP flow that is silent, and one of both directions."""
        for name, value in ("", seconds), ("_stream", stream_seconds):
            setting = f"net.netfilter.nf_conntrack_udp_timeout{name}={value}"
            _run(*self.inside(f"router-{site}"), "sysctl", "-qw", setting)

    def probes_sent(self, site: str) -> int:
        """Datagrams of one byte, as hole punching sends them, since the NAT was set."""
        command = [*self.inside(f"router-{site}"), "nft", "-j", "list", "counter", "ip", "lab"]
        listed = json.loads(_run(*command, "probes"))["nftables"]
        return next(item["counter"]["packets"] for item in listed if "counter" in item)

    def isolate(self, site: str, *, ipv4_only: bool = False) -> None:
        """Keep the hosts of a site from each other, as the wireless network of a hotel does."""
        kind = "meta protocol ip " if ipv4_only else ""
        self._nft(
            f"router-{site}",
            "table bridge isolation {\n  chain forward {\n"
            "    type filter hook forward priority 0; policy accept;\n"
            f'    iifname "h*" oifname "h*" {kind}drop\n  }}\n}}\n',
        )

    def add_ipv6(self, site: str) -> None:
        """Give the hosts of a site addresses of one IPv6 network, which leads nowhere else."""
        for host, address in INSIDE6.items():
            if SITE_OF[host] == site:
                _batch(self.namespace(host), f"addr add {address}/64 dev eth nodad")


def _enter(namespace: int) -> None:
    """Take this thread into a network namespace, given as an open file."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns failed")


def _batch(namespace: str, *lines: str) -> None:
    _run("ip", "-n", namespace, "-batch", "-", text="\n".join(lines) + "\n")


def _build(lab: Lab, stack: ExitStack, *, bad_uplinks: bool) -> dict[str, tuple[int, int]]:
    """Make everything; gives by site the two devices of a bad uplink."""
    routers = [f"router-{site}" for site in ROUTERS]
    carriers = [f"carrier-{site}" for site in lab.carriers]
    for place in ("net", *routers, *carriers, *HOSTS):
        _run("ip", "netns", "add", lab.namespace(place))
        stack.callback(_run, "ip", "netns", "del", lab.namespace(place))
    devices: dict[str, tuple[int, int]] = {}
    net = lab.namespace("net")
    lines = ["link set lo up", "link add name br0 type bridge", "link set br0 up"]
    lines += [f"addr add {host}/16 dev br0" for host in NODE_HOSTS]
    for site in ROUTERS:
        outermost = f"carrier-{site}" if site in lab.carriers else f"router-{site}"
        if bad_uplinks:
            router = lab.namespace(outermost)
            devices[site] = (_tap(router, "wan", stack), _tap(net, f"u{site}", stack))
        else:
            lines.append(_veth(lab, f"u{site}", outermost, "wan"))
        lines += [f"link set u{site} master br0", f"link set u{site} up"]
    for host in (*PUBLIC_HOSTS, "relay"):
        lines.append(_veth(lab, f"u{host}", host, "eth"))
        lines += [f"link set u{host} master br0", f"link set u{host} up"]
    _batch(net, *lines)
    # Packets between two hosts pass the bridge, those to and from the nodes end there.
    lab._nft(
        "net",
        "table bridge internet {\n  chain forward {\n"
        "    type filter hook forward priority 0; policy accept;\n"
        f"    ip ttl <= {HOPS} drop\n  }}\n}}\n",
    )
    for host, address in (*PUBLIC_HOSTS.items(), ("relay", RELAY_HOST)):
        _batch(lab.namespace(host), *_up("eth", f"{address}/16"))
    for site, outside in ROUTERS.items():
        router = lab.namespace(f"router-{site}")
        inside = [host for host in INSIDE if SITE_OF[host] == site]
        lines = _up("wan", f"{outside}/16")
        if site in lab.carriers:
            _build_carrier(lab, site)
            lines = [*_up("wan", f"{CUSTOMER}/24"), f"route add default via {CARRIER}"]
        lines.append("link add name lan type bridge")
        lines += ["addr add 192.168.1.1/24 dev lan", "link set lan up"]
        for host in inside:
            lines += [_veth(lab, f"h{host}", host, "eth")]
            lines += [f"link set h{host} master lan", f"link set h{host} up"]
        _batch(router, *lines)
        _run(*lab.inside(f"router-{site}"), "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for host in inside:
            _batch(
                lab.namespace(host),
                *_up("eth", f"{INSIDE[host]}/24"),
                "route add default via 192.168.1.1",
            )
        lab.set_nat(site, PORT_RESTRICTED)
    return devices


def _build_carrier(lab: Lab, site: str) -> None:
    """The router of a provider, between the internet and the router of a site."""
    carrier = f"carrier-{site}"
    _batch(
        lab.namespace(carrier),
        *_up("wan", f"{ROUTERS[site]}/16"),
        _veth(lab, "lan", f"router-{site}", "wan"),
        f"addr add {CARRIER}/24 dev lan",
        "link set lan up",
    )
    _run(*lab.inside(carrier), "sysctl", "-qw", "net.ipv4.ip_forward=1")
    lab.set_carrier_nat(site, PORT_RESTRICTED)


def _veth(lab: Lab, name: str, place: str, peer: str) -> str:
    return f"link add name {name} type veth peer name {peer} netns {lab.namespace(place)}"


def _up(device: str, address: str) -> list[str]:
    return ["link set lo up", f"addr add {address} dev {device}", f"link set {device} up"]


def _tap(namespace: str, name: str, stack: ExitStack) -> int:
    """An Ethernet device in a namespace; gives the end that this process reads and writes."""
    import fcntl  # not there on every system on which this module is looked at

    first_name = f"{PREFIX[:2]}{os.getpid()}t{next(_numbers)}"
    device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    stack.callback(os.close, device)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", first_name.encode(), IFF_TAP | IFF_NO_PI))
    _run("ip", "link", "set", first_name, "netns", namespace, "name", name)
    return device


async def _carry(uplink: Uplink, source: int, target: int, rng: random.Random) -> None:
    """Pass on what one end of an uplink sends, for ever."""
    held: list[tuple[float, int, bytes]] = []
    count = itertools.count()
    last_sent = -1
    while True:
        with trio.CancelScope(deadline=held[0][0] if held else float("inf")):
            await trio.lowlevel.wait_readable(source)
            frame = os.read(source, MAX_FRAME)
            now = trio.current_time()
            if frame[12:14] != ETHERTYPE_IP:  # that addresses get resolved is not in question here
                heapq.heappush(held, (now, next(count), frame))
            elif rng.random() < uplink.loss:
                uplink.lost += 1
            else:
                due = now + uplink.delay + rng.random() * uplink.jitter
                heapq.heappush(held, (due, next(count), frame))
        while held and held[0][0] <= trio.current_time():
            _, number, frame = heapq.heappop(held)
            uplink.carried += 1
            uplink.reordered += number < last_sent
            last_sent = max(last_sent, number)
            try:
                os.write(target, frame)
            except OSError:  # the other side's device is on its way up or down
                pass


@asynccontextmanager
async def open_lab(
    *, bad_uplinks: bool = False, carriers: Collection[str] = (), seed: int = 1
) -> AsyncIterator[Lab]:
    """Build a lab; `why_no_lab` tells whether that is possible here.

    With `bad_uplinks`, packets between the routers and the internet pass this process, which loses
    and delays them as `Lab.uplinks` says. The sites in `carriers` are behind two routers.
    """
    sweep()
    lab = Lab(f"{PREFIX}{os.getpid()}-{next(_numbers)}", carriers=carriers)
    with ExitStack() as stack:
        devices = _build(lab, stack, bad_uplinks=bad_uplinks)
        async with trio.open_nursery() as nursery:
            for number, (site, (near, far)) in enumerate(devices.items()):
                uplink = lab.uplinks[site] = Uplink()
                rng = random.Random(seed * 1000 + number)
                nursery.start_soon(_carry, uplink, near, far, rng)
                nursery.start_soon(_carry, uplink, far, near, rng)
            try:
                yield lab
            finally:
                nursery.cancel_scope.cancel()
                for sock in lab._sockets:
                    sock.close()
