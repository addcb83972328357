"""Service: nodes of the network kept on disk, so that a restart does not depend on the bootstrap
nodes.

A small JSON file: `{"nodes": [["203.0.113.7", 49737], …]}`, the node heard of last first. Only
nodes that others may know, those with an id, are in it. Whatever else is in the file is left out,
for it may be damaged; a file that is lost costs no more than a search through the bootstrap nodes.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.node import RPCNode

__all__ = ["NodeCache"]

logger = logging.getLogger("hyperlog.dht.nodecache")

MAX_NODES: Final = 64
MAX_FILE: Final = 16 * 1024  # bytes; 64 nodes have about 2000
FIRST_SAVE: Final = 30.0  # s after the node has joined
SAVE_INTERVAL: Final = 300.0  # s
SAVE_TIMEOUT: Final = 1.0  # s that closing may take


class NodeCache:
    """The file at `path`; its folder is made when there is something to keep."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved: list[Address] = []

    def load(self) -> list[Address]:
        """The nodes in the file, at most 64; none if there is no file, or none that can be used."""
        try:
            with open(self._path, "rb") as file:
                data = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return []
        except OSError as err:
            logger.warning("the nodes known from earlier cannot be read: %s", err)
            return []
        self._saved = _parse(data)
        if not self._saved:
            logger.warning("no usable nodes in %s: it will be replaced", self._path)
        return list(self._saved)

    async def run(self, node: RPCNode) -> None:
        """Keep the file up to date until cancelled, and save it a last time then."""
        try:
            await node.bootstrapped.wait()
            await trio.sleep(FIRST_SAVE)
            while True:
                await self._save(node)
                await trio.sleep(SAVE_INTERVAL)
        finally:
            with trio.move_on_after(SAVE_TIMEOUT, shield=True):
                await self._save(node)

    async def _save(self, node: RPCNode) -> None:
        nodes = node.known_nodes(MAX_NODES)
        if not nodes:
            return  # cut off: what was known before is better than nothing
        node.remember(nodes)
        if set(nodes) == set(self._saved):
            return
        if await trio.to_thread.run_sync(self._write, nodes, abandon_on_cancel=True):
            self._saved = nodes

    def _write(self, nodes: Sequence[Address]) -> bool:
        """Whether the file has these nodes now."""
        data = json.dumps({"nodes": nodes}).encode()
        # A name of its own, since several processes may do this at a time.
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(data)
                os.replace(new, self._path)
            finally:
                new.unlink(missing_ok=True)
        except OSError as err:
            logger.info("the nodes known now cannot be kept for the next start: %s", err)
            return False
        return True


def _parse(data: bytes) -> list[Address]:
    if len(data) > MAX_FILE:
        return []
    try:
        found = json.loads(data)["nodes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    if not isinstance(found, list):
        return []
    nodes = []
    for item in found[:MAX_NODES]:
        if isinstance(item, list) and len(item) == 2 and _is_address(*item):
            nodes.append((item[0], item[1]))
    return list(dict.fromkeys(nodes))


def _is_address(host: object, port: object) -> bool:
    if not isinstance(host, str) or type(port) is not int or not 0 < port < 65536:
        return False
    try:
        return str(ipaddress.IPv4Address(host)) == host
    except ValueError:
        return False
