"""What a call of logger.info() costs its caller, by the handler that the logger has.

Options: handler (one of HANDLERS), file, key, bootstrap. Events: ready (publicKey, null without a
client), measured (microseconds: of a call in bursts, and in a tight loop; logged: how many).
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.python.driver import bootstrap, commands, options, send
from hyperlog import Client, Handler

BURSTS = 20
BURST = 1_000
LOOP = 20_000
REST = 0.05  # s between bursts


class _Nowhere:
    """An exporter for OpenTelemetry that exports nothing."""

    def export(self, batch: Sequence[Any]) -> Any:
        from opentelemetry.sdk._logs.export import LogRecordExportResult

        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is kept."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


def _opentelemetry() -> logging.Handler:
    from opentelemetry.instrumentation.logging.handler import LoggingHandler
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(_Nowhere()))  # type: ignore[arg-type]
    handler: logging.Handler = LoggingHandler(logger_provider=provider)
    return handler


def _per_call(call: Callable[[int], object], numbers: range) -> float:
    begin = time.perf_counter()
    for number in numbers:
        call(number)
    return (time.perf_counter() - begin) / len(numbers) * 1e6


def main() -> None:
    kind = options["handler"]
    client: Client | None = None
    if kind in ("hyperlog", "client.info"):
        client = Client()
        client.start(options["key"], bootstrap=bootstrap(), keys=None)
        client.info("first", n=-1)
        client.flush()
    logger = logging.Logger("shop.orders", logging.INFO)
    if kind == "none":
        logger.addHandler(logging.NullHandler())
    elif kind == "file":
        handler = logging.FileHandler(options["file"])
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    elif kind == "hyperlog":
        logger.addHandler(Handler(client))
    elif kind == "opentelemetry":
        logger.addHandler(_opentelemetry())

    def log(number: int) -> None:
        logger.info("order %d of %s placed", number, "c-20381")

    def info(number: int) -> None:
        assert client is not None
        client.info("order placed", n=number, customer="c-20381")

    call = info if kind == "client.info" else log
    key = None if client is None else client.public_key
    send("ready", publicKey=None if key is None else key.hex())
    numbers = itertools.count(0, BURST)
    first = next(numbers)
    _per_call(call, range(first, first + BURST))
    times = []
    for start in itertools.islice(numbers, BURSTS):
        if client is not None:
            client.flush()
        time.sleep(REST)
        times.append(_per_call(call, range(start, start + BURST)))
    start = next(numbers)
    loop = _per_call(call, range(start, start + LOOP))
    if client is not None:
        client.flush(60)
    send(
        "measured",
        microseconds=[statistics.median(times), loop],
        logged=start + LOOP,
    )
    for _ in commands():
        pass
    if client is not None:
        client.stop()


if __name__ == "__main__":
    main()
