"""The traces of tests/interop/js/shapes.js in Python: "typical", and "stamped" with the time.

The traced code is compiled under a fixed file name, because the name goes into each record.
"""

from __future__ import annotations

from typing import Any

FILENAME = "/srv/shop/lib/orders.py"

SOURCE = """
import time
from hyperlog import create_tracer


class Order:
    def __init__(self):
        props = {"region": "eu-north-1", "currency": "EUR", "channel": "web"}
        self.tracer = create_tracer(self, props=props)

    def place(self, n):
        self.tracer.trace("order-placed", {
            "n": n, "amount": 1999, "items": 3, "customer": "c-20381", "state": "accepted",
            "warehouse": "north-east",
        })

    def stamp(self, n):
        self.tracer.trace("order-stamped", {"n": n, "sentAt": time.monotonic_ns()})
"""


def new_order() -> Any:
    names: dict[str, Any] = {"__name__": "orders"}
    exec(compile(SOURCE, FILENAME, "exec"), names)
    return names["Order"]()
