"""Searches for keys one after the other, the counterpart of benchmarks/js/find_peer.js.

Options: bootstrap, key (announced, hex), keys (of nobody, hex). Events: ready when the node has
joined, then `found`: records (of the announced key), requests and milliseconds of each search for
the others.
"""

from __future__ import annotations

import time

import trio

from benchmarks.python.driver import bootstrap, options, send, wait_stdin_closed
from hyperlog.dht import DHT, open_dht


async def search(dht: DHT, key: str) -> tuple[int, int, float]:
    """Records found, requests made, and milliseconds."""
    before = dht.statistics().rpc.requests_sent
    started_at = time.perf_counter()
    found = await dht.find_peer(bytes.fromhex(key))
    milliseconds = 1000 * (time.perf_counter() - started_at)
    return len(found), dht.statistics().rpc.requests_sent - before, milliseconds


async def main() -> None:
    async with open_dht(bootstrap=bootstrap(), host="127.0.0.1") as dht:
        await dht.bootstrapped()
        send("ready")
        records, _, _ = await search(dht, options["key"])
        searches = [await search(dht, key) for key in options["keys"]]
        send(
            "found",
            records=records,
            requests=[requests for _, requests, _ in searches],
            milliseconds=[milliseconds for _, _, milliseconds in searches],
        )
        await wait_stdin_closed()


if __name__ == "__main__":
    trio.run(main)
