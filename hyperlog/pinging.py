"""What `hyperlog ping` does: opens a connection to a peer and measures it.

A ping is an empty message. Both ends of a connection send such themselves to keep it alive, and
neither hands them on, so that whatever listens there takes no harm. What is measured is the time to
its acknowledgement by the peer's transport. A ping whose packet had to be sent again counts as
lost, and its time is left out: nobody can tell which of the packets was acknowledged.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import trio

from hyperlog.addresses import parse_peer
from hyperlog.arguments import checked, parse_seconds
from hyperlog.dht import (
    BOOTSTRAP_NODES,
    Connection,
    DHTError,
    Diagnosis,
    firewall_kind,
    open_dht,
)
from hyperlog.errors import ConfigError
from hyperlog.findings import address_text, counted, milliseconds, path_text
from hyperlog.peeroptions import add_peer_options, own_key_pair

__all__ = ["PingPrinter", "Pings", "add_ping_options", "measure", "ping_peer", "round_trip"]

MAX_COUNT: Final = 1_000_000_000
NAT_TIMEOUT: Final = 2.0  # s
CLOSE_TIMEOUT: Final = 1.0  # s; a stock hypertrace-logger server never ends its direction
LOST_TIMEOUT: Final = 15.0  # s without an acknowledgement; the transport gives up at about then

_encode = msgspec.json.Encoder().encode


def add_ping_options(parser: argparse.ArgumentParser) -> None:
    """The options of `hyperlog ping`."""
    parser.add_argument(
        "peer", type=checked(parse_peer), metavar="KEY", help="public key or HyperDHT address"
    )
    parser.add_argument(
        "-c",
        "--count",
        type=checked(_number),
        metavar="N",
        help="end after so many pings (default: at SIGINT)",
    )
    parser.add_argument(
        "-i",
        "--interval",
        type=checked(parse_seconds),
        default=1.0,
        metavar="SECONDS",
        help="from one ping to the next (default: 1)",
    )
    add_peer_options(parser, timeout="give up when there is no connection after so long")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each ping")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_COUNT:
        raise ConfigError(f"{text!r} is no number of pings above 0")
    return int(text)


async def round_trip(connection: Connection) -> float:
    """Send one ping; the seconds until it was acknowledged.

    Raises:
        trio.BrokenResourceError, trio.ClosedResourceError: the connection has ended.
    """
    sent_at = trio.current_time()
    await connection.send(b"")
    await connection.wait_acknowledged()
    return trio.current_time() - sent_at


@dataclass(slots=True)
class Pings:
    """What a row of pings comes to."""

    acknowledged: int = 0
    repeated: int = 0
    """of those: how many had to be sent again"""
    is_broken: bool = False
    """whether the connection ended under one more, which was not acknowledged"""
    least: float = math.inf
    """s, as are the following"""
    most: float = 0.0
    _mean: float = field(default=0.0, repr=False)
    _squares: float = field(default=0.0, repr=False)

    def add(self, seconds: float, *, repeated: bool) -> None:
        """One was acknowledged after so long."""
        self.acknowledged += 1
        if repeated:
            self.repeated += 1
            return
        # Welford: no number of pings makes the sums too large for their differences.
        self.least, self.most = min(self.least, seconds), max(self.most, seconds)
        before = seconds - self._mean
        self._mean += before / self.timed
        self._squares += before * (seconds - self._mean)

    @property
    def sent(self) -> int:
        return self.acknowledged + self.is_broken

    @property
    def lost(self) -> int:
        """Packets that did not get through at once, or never."""
        return self.sent - self.timed

    @property
    def reached(self) -> bool:
        """Whether the peer was there, to the end."""
        return self.acknowledged > 0 and not self.is_broken

    @property
    def timed(self) -> int:
        """How many of them have told a time."""
        return self.acknowledged - self.repeated

    @property
    def average(self) -> float:
        return self._mean

    @property
    def deviation(self) -> float:
        """From the average, root mean square: `mdev` of ping(8)."""
        return math.sqrt(self._squares / self.timed) if self.timed else 0.0


async def ping_peer(options: argparse.Namespace, pings: Pings) -> None:
    """Ping the holder of a key until cancelled or done, and count in `pings`.

    Raises:
        KeyFileError: the key pair cannot be used.
    """
    public_key, nodes = options.peer
    printer: PingPrinter = _JsonPrinter() if options.json else _TextPrinter()
    async with open_dht(
        bootstrap=BOOTSTRAP_NODES if options.bootstrap is None else options.bootstrap,
        key_pair=own_key_pair(options),
        ephemeral=True,
    ) as dht:
        began_at = trio.current_time()
        if sys.stderr.isatty():
            print(f"connecting to {public_key.hex()[:16]}…", file=sys.stderr, flush=True)
        try:
            with trio.fail_after(options.timeout):
                connection = await dht.connect(
                    public_key, relay_addresses=nodes, relay_through=options.relay
                )
        except (DHTError, trio.TooSlowError) as err:
            reason = f"no connection in {options.timeout:g} s"
            if not dht.statistics().rpc.nodes:
                reason = "no bootstrap node answers, so that the peer cannot be looked for"
            elif isinstance(err, DHTError):
                reason = str(err)
            print(f"{reason}\n`hyperlog doctor` tells more", file=sys.stderr)
            return
        printer.connected(connection, trio.current_time() - began_at)
        try:
            await measure(connection, pings, printer, options.count, options.interval)
        finally:
            printer.done(pings, connection, await _nats(Diagnosis(dht), connection))
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await connection.aclose()


async def _nats(diagnosis: Diagnosis, connection: Connection) -> tuple[str, str]:
    """The kinds of NAT on this side and on the peer's."""
    kinds = ["unknown", firewall_kind(connection.statistics().opening.remote_firewall)]
    public_key = connection.remote_public_key

    async def judge_ours() -> None:
        kinds[0] = (await diagnosis.judge_nat()).kind

    async def judge_theirs() -> None:
        # A hole that is punched at the first try is open before the peer has told.
        try:
            holders = (await diagnosis.find_holders(public_key)).holders
            answer = (await diagnosis.probe_peer(public_key, holders)).answer
        except DHTError:
            return
        if answer is not None:
            kinds[1] = answer.kind

    with trio.move_on_after(NAT_TIMEOUT, shield=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(judge_ours)
            if kinds[1] == "unknown":
                nursery.start_soon(judge_theirs)
    return kinds[0], kinds[1]


async def measure(
    connection: Connection,
    pings: Pings,
    printer: PingPrinter,
    count: int | None,
    interval: float,
) -> None:
    """Send pings, `count` of them or until cancelled, and count them in `pings`.

    Returns early when the connection ends under them.
    """
    due_at = trio.current_time()
    while count is None or pings.sent < count:
        await trio.sleep_until(due_at)
        before = connection.statistics().stream.retransmits
        try:
            with trio.fail_after(LOST_TIMEOUT):
                seconds = await round_trip(connection)
        except (trio.TooSlowError, trio.BrokenResourceError) as err:
            reason = f": {err.__cause__}" if err.__cause__ is not None else ""
            print(f"the connection is lost{reason}", file=sys.stderr)
            pings.is_broken = True
            return
        repeated = connection.statistics().stream.retransmits > before
        pings.add(seconds, repeated=repeated)
        printer.ping(pings.sent, seconds, repeated=repeated)
        due_at = max(due_at + interval, trio.current_time())


class PingPrinter(Protocol):
    """Who is told of a connection and its pings."""

    def connected(self, connection: Connection, seconds: float) -> None: ...
    def ping(self, number: int, seconds: float, *, repeated: bool) -> None: ...
    def done(self, pings: Pings, connection: Connection, nats: tuple[str, str]) -> None: ...


class _TextPrinter:
    def connected(self, connection: Connection, seconds: float) -> None:
        statistics = connection.statistics()
        way = path_text(statistics.path, statistics.remote_address)
        key = connection.remote_public_key.hex()
        _say(f"{key[:16]}… {way}, open in {milliseconds(seconds)}")

    def ping(self, number: int, seconds: float, *, repeated: bool) -> None:
        _say(f"{number:4}  {milliseconds(seconds)}" + ("  (sent again)" if repeated else ""))

    def done(self, pings: Pings, connection: Connection, nats: tuple[str, str]) -> None:
        share = pings.lost / pings.sent if pings.sent else 0.0
        _say(f"{counted(pings.sent, 'ping')}, {pings.lost} lost ({share:.0%})")
        if pings.timed:
            figures = (pings.least, pings.average, pings.most, pings.deviation)
            times = "/".join(f"{1000 * seconds:.3f}" for seconds in figures)
            _say(f"round trip min/avg/max/mdev = {times} ms")
        statistics = connection.statistics()
        if len(statistics.paths) > 1:
            _say(f"paths: {', then '.join(statistics.paths)}")
        _say(f"NAT: {nats[0]} on this side, {nats[1]} on the peer's")


class _JsonPrinter:
    def connected(self, connection: Connection, seconds: float) -> None:
        address = connection.remote_address
        _write_line(
            {
                "event": "connected",
                "publicKey": connection.remote_public_key.hex(),
                "path": connection.path,
                "address": None if address is None else address_text(address),
                "seconds": round(seconds, 6),
            }
        )

    def ping(self, number: int, seconds: float, *, repeated: bool) -> None:
        event = {"event": "ping", "number": number, "seconds": round(seconds, 6)}
        _write_line({**event, "sentAgain": repeated})

    def done(self, pings: Pings, connection: Connection, nats: tuple[str, str]) -> None:
        statistics = connection.statistics()
        summary = {
            "event": "done",
            "sent": pings.sent,
            "acknowledged": pings.acknowledged,
            "lost": pings.lost,
            "min": None,
            "avg": None,
            "max": None,
            "mdev": None,
            "paths": statistics.paths,
            "nat": nats[0],
            "peerNat": nats[1],
        }
        if pings.timed:
            summary["min"] = round(pings.least, 6)
            summary["avg"] = round(pings.average, 6)
            summary["max"] = round(pings.most, 6)
            summary["mdev"] = round(pings.deviation, 6)
        _write_line(summary)


def _say(text: str) -> None:
    print(text, flush=True)


def _write_line(value: dict[str, Any]) -> None:
    sys.stdout.buffer.write(_encode(value) + b"\n")
    sys.stdout.buffer.flush()
