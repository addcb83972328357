"""Two network namespaces with a path between them that loses packets: Linux, as root.

Each namespace has a TUN device; what one of them sends this process reads as IP packets, and writes
to the other, or does not. So every packet of every process is met, whatever addresses it tells its
peers, and nothing has to know that there is a path.

    async with open_path() as path:
        path.loss = 0.2
        ...  # run path.near.command([...]) and path.far.command([...])

The addresses look public, since JavaScript peers pass over those that are reserved. They are seen
inside of the two namespaces alone.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MAX_PACKET = 65535


@dataclass(frozen=True)
class Place:
    """One end of the path: a namespace of its own."""

    namespace: str
    address: str

    def command(self, command: Sequence[str | Path]) -> list[str | Path]:
        """The command that runs another one here, under the same process id."""
        return ["ip", "netns", "exec", self.namespace, *command]


class LossyPath:
    """Two places and what is between them. `loss` may be changed at any time."""

    def __init__(self, near: Place, far: Place, *, seed: int) -> None:
        self.near = near
        self.far = far
        self.loss = 0.0
        """share of the packets, 0 to 1, that are dropped in each direction"""
        self._draw = random.Random(seed).random

    async def carry(self, source: int, target: int) -> None:
        """Pass on what one device sends, for ever."""
        while True:
            await trio.lowlevel.wait_readable(source)
            packet = os.read(source, MAX_PACKET)
            if self._draw() >= self.loss:
                try:
                    os.write(target, packet)
                except OSError:  # the other side's device is on its way up or down
                    pass


def why_no_path() -> str | None:
    """The reason why there can be no path here, None if there can."""
    if not TUN.exists():
        return f"there is no {TUN}"
    if os.geteuid() != 0:
        return "network namespaces and TUN devices need root"
    if shutil.which("ip") is None:
        return "the program ip is not installed"
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _open_device(place: Place, peer: str, stack: ExitStack) -> int:
    """A namespace with a device in it; gives the end that this process reads and writes."""
    name = place.namespace
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)
    device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    stack.callback(os.close, device)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    _ip("link", "set", name, "netns", name)
    _ip("-n", name, "addr", "add", place.address, "peer", peer, "dev", name)
    _ip("-n", name, "link", "set", name, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    return device


@asynccontextmanager
async def open_path(seed: int = 1) -> AsyncIterator[LossyPath]:
    """A path that loses nothing at first; `why_no_path` tells whether there can be one."""
    near, far = (
        Place(f"hl{os.getpid()}-{name}", address)
        for name, address in (("n", "25.0.0.1"), ("f", "25.0.0.2"))
    )
    path = LossyPath(near, far, seed=seed)
    with ExitStack() as stack:
        near_device = _open_device(near, far.address, stack)
        far_device = _open_device(far, near.address, stack)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(path.carry, near_device, far_device)
            nursery.start_soon(path.carry, far_device, near_device)
            try:
                yield path
            finally:
                nursery.cancel_scope.cancel()
