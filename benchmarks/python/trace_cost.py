"""What a call of trace() costs its caller; the counterpart of benchmarks/js/trace_cost.js.

Options: key, bootstrap. Events: ready (publicKey of the connected client), measured (microseconds
by name, as benchmarks/trace_cost.py lists them; traced: how many by the connected client).
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.python.driver import bootstrap, commands, options, send
from hyperlog import Client, clear_trace_function, create_tracer, set_trace_function

OFF_CALLS = 200_000
ALONE_CALLS = 50_000
BURSTS = 20
BURST = 1_000
LOOP = 20_000
SINGLE = 400
PAUSE = 0.005  # s between single calls
REST = 0.05  # s for a client that cannot be waited for
WARM_UP = 2_000
NOWHERE = "127.0.0.1:9"

Props = dict[str, Any]


class Order:
    def __init__(self) -> None:
        props = {"region": "eu-north-1", "currency": "EUR", "channel": "web"}
        self.tracer = create_tracer(self, props=props)
        self._numbers = itertools.count()

    def make_props(self, count: int) -> list[Props]:
        """The argument of each call; the number is what the log file is checked by."""
        return [
            {
                "n": number,
                "amount": 1999,
                "items": 3,
                "customer": "c-20381",
                "state": "accepted",
                "warehouse": "north-east",
                "vip": False,
            }
            for number in itertools.islice(self._numbers, count)
        ]

    def time_calls(self, all_props: list[Props]) -> float:
        """Microseconds a call."""
        trace = self.tracer.trace
        begin = time.perf_counter()
        for props in all_props:
            trace("order-placed", props)
        return (time.perf_counter() - begin) / len(all_props) * 1e6

    def time_calls_without_id(self, all_props: list[Props]) -> float:
        trace = self.tracer.trace
        begin = time.perf_counter()
        for props in all_props:
            trace(props)
        return (time.perf_counter() - begin) / len(all_props) * 1e6

    def time_single_call(self, props: Props) -> float:
        begin = time.perf_counter_ns()
        self.tracer.trace("order-placed", props)
        return (time.perf_counter_ns() - begin) / 1000


def bursts(order: Order, rest: Callable[[], object]) -> float:
    """Median over the bursts."""
    times = []
    for _ in range(BURSTS):
        props = order.make_props(BURST)
        rest()
        times.append(order.time_calls(props))
    rest()
    return statistics.median(times)


def main() -> None:
    results: dict[str, float] = {}
    order = Order()
    props = order.make_props(1) * OFF_CALLS
    order.time_calls(props)
    results["switched off"] = order.time_calls(props)

    set_trace_function(lambda trace: None)
    props = props[:ALONE_CALLS]
    order.time_calls(props)
    results["tracer alone, with id"] = order.time_calls(props)
    results["tracer alone, without id"] = order.time_calls_without_id(props)
    clear_trace_function()

    client = Client()
    client.start(options["key"], bootstrap=[NOWHERE], keys=None)
    order.time_calls(order.make_props(WARM_UP))
    results["queued, unconnected, bursts of 1,000"] = bursts(order, lambda: time.sleep(REST))
    results["queued, unconnected, tight loop of 20,000"] = order.time_calls(order.make_props(LOOP))
    client.stop(timeout=0.1)

    order = Order()
    client = Client()
    greeted = threading.Event()
    client.start(options["key"], bootstrap=bootstrap(), keys=None, on_open=greeted.set)
    key = client.public_key
    assert key is not None
    send("ready", publicKey=key.hex())
    greeted.wait()

    def flush() -> None:
        if not client.flush(60.0):
            send("error", message="not delivered within 60 s")

    order.time_calls(order.make_props(WARM_UP))
    results["queued, connected, bursts of 1,000"] = bursts(order, flush)
    props = order.make_props(LOOP)
    flush()
    results["queued, connected, tight loop of 20,000"] = order.time_calls(props)
    flush()
    single = []
    for props_of_one in order.make_props(SINGLE):
        time.sleep(PAUSE)
        single.append(order.time_single_call(props_of_one))
    single.sort()
    results["single calls, connected, p50"] = single[SINGLE // 2]
    results["single calls, connected, p99"] = single[SINGLE * 99 // 100]
    flush()
    send("measured", microseconds=results, traced=WARM_UP + BURSTS * BURST + LOOP + SINGLE)
    for _ in commands():
        pass
    client.stop()


if __name__ == "__main__":
    main()
