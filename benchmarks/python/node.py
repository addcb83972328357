"""One persistent node of a private network, the counterpart of benchmarks/js/node.js.

Options: bootstrap. Ready event: host, port, nodes (in its routing table).
"""

from __future__ import annotations

import trio

from benchmarks.python.driver import bootstrap, send, wait_stdin_closed
from hyperlog.dht import open_dht


async def main() -> None:
    async with open_dht(
        bootstrap=bootstrap(), host="127.0.0.1", ephemeral=False, firewalled=False
    ) as dht:
        await dht.bootstrapped()
        host, port = dht.address
        send("ready", host=host, port=port, nodes=dht.statistics().rpc.nodes)
        await wait_stdin_closed()


if __name__ == "__main__":
    trio.run(main)
