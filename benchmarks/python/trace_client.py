"""A plain program with hyperlog's client, the counterpart of tests/interop/js/client.js.

Options: key, bootstrap, count (sent at once, without waiting for the server), shape ("typical" or
"stamped"), rate (traces a second, in the place of a tight loop), keys and spool (files; by default
there are none), rule ("javascript": as if the server did not acknowledge).
Command {"send": n} traces n more. Events: ready (publicKey), greeting, sent (seconds in the calling
thread), delivered (seconds until all was acknowledged, and the client's statistics).
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time

from benchmarks.python.driver import bootstrap, commands, options, send
from benchmarks.python.shapes import new_order
from hyperlog import Client, conversation

TICK = 0.005  # s, as in client.js
BUFFER = 256 * 1024 * 1024  # bytes: all of a burst is to arrive, however slow the server is


class Sender:
    def __init__(self, client: Client) -> None:
        self._client = client
        order = new_order()
        self._trace = order.stamp if options.get("shape") == "stamped" else order.place
        self._total = 0

    def send(self, count: int) -> None:
        trace, first = self._trace, self._total
        self._total += count
        rate = options.get("rate")
        begin = time.monotonic()
        if rate is None:
            for number in range(first, first + count):
                trace(number)
        else:
            sent = 0
            while sent < count:
                due = min(int((time.monotonic() - begin) * rate) + 1, count)
                for number in range(first + sent, first + due):
                    trace(number)
                sent = max(sent, due)
                time.sleep(TICK)
        send("sent", count=count, seconds=time.monotonic() - begin)
        if not self._client.flush(60.0):
            send("error", message="not delivered within 60 s")
        statistics = dataclasses.asdict(self._client.statistics())
        send("delivered", seconds=time.monotonic() - begin, **statistics)


def main() -> None:
    client = Client(max_buffer_bytes=BUFFER)
    greeted = threading.Event()
    if options.get("rule") == "javascript":
        conversation.VERSION = sys.maxsize  # no server offers that
    client.start(
        options["key"],
        bootstrap=bootstrap(),
        keys=options.get("keys"),
        spool=options.get("spool"),
        on_open=greeted.set,
    )
    sender = Sender(client)
    key = client.public_key
    assert key is not None
    send("ready", publicKey=key.hex())
    if options.get("count"):
        sender.send(options["count"])
    greeted.wait()
    send("greeting")
    for command in commands():
        sender.send(command["send"])
    client.stop()


if __name__ == "__main__":
    main()
