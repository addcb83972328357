"""Ten minutes without a network, on a simulated one whose clock does not wait for them."""

from __future__ import annotations

import json
from functools import partial

import trio

from hyperlog import server as server_module
from hyperlog import shipper as shipper_module
from hyperlog.client import Client
from hyperlog.dht import KeyPair, SimNetwork, open_dht
from hyperlog.server import Server
from hyperlog.trace import create_tracer

PARTITION = 600.0  # s
RATE = 20  # traces a second


class Order:
    def __init__(self):
        self.tracer = create_tracer(self)

    def place(self, number):
        self.tracer.trace("placed", {"n": number})


async def test_a_partition_of_ten_minutes_loses_and_doubles_nothing(
    tmp_path, monkeypatch, autojump_clock
):
    autojump_clock.autojump_threshold = 0.002  # the log is written by a thread, in real time
    net = SimNetwork(seed=3, delay=0.02)
    server_dht = partial(open_dht, socket_factory=net.host("10.0.0.1"))
    client_dht = partial(open_dht, socket_factory=net.host("10.0.0.2"), host="10.0.0.2")
    monkeypatch.setattr(server_module, "open_dht", server_dht)
    monkeypatch.setattr(shipper_module, "open_dht", client_dht)
    keys = KeyPair.generate()
    log = tmp_path / "logs" / f"{keys.public_key.hex()}.log"
    count = 0

    def logged():
        lines = [json.loads(line) for line in log.read_bytes().splitlines()]
        return [line["caller"]["props"]["n"] for line in lines if "caller" in line]

    async with trio.open_nursery() as nursery:
        await nursery.start(net.run)
        server = Server(
            tmp_path / "logs", keys=KeyPair.generate(), host="10.0.0.1", port=4000, local=True
        )
        client = Client()
        async with (
            server,
            client.running(
                server.public_key,
                bootstrap=["10.0.0.1:4000"],
                key_pair=keys,
                spool=tmp_path / "spool",
            ),
        ):
            order = Order()
            for seconds, loss in ((10, 0.0), (PARTITION, 1.0), (10, 0.0)):
                net.loss = loss
                for _ in range(int(seconds)):
                    for _ in range(RATE):
                        order.place(count)
                        count += 1
                    await trio.sleep(1)
                if loss:
                    assert not client.is_running
                    assert client.statistics().waiting >= RATE * (PARTITION - 10)
            with trio.fail_after(30):
                assert await client.wait_flushed()
        nursery.cancel_scope.cancel()
    assert logged() == list(range(count))
    assert client.statistics().lost == 0
