"""Service: looks for the step at which the way to a peer fails.

The steps are those that `DHT.connect` takes, in their order and each of them alone. The first one
that fails ends it: what comes later cannot be known. What a step shows is judged in
`judgements` and `peerjudgements`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn, TypeVar

import trio

from hyperlog.config import Address
from hyperlog.control import Greeting, ServerOffer, parse_greeting_untrusted
from hyperlog.dht import (
    DHT,
    Connection,
    DHTError,
    Diagnosis,
    KeyPair,
    NameLookup,
    NATJudgement,
    NodeProbe,
    look_up,
    open_dht,
    probe_node,
)
from hyperlog.errors import BadGreeting
from hyperlog.findings import Finding, Progress, Verdict
from hyperlog.judgements import (
    judge_bootstrap,
    judge_joining,
    judge_names,
    judge_nat,
    judge_udp,
)
from hyperlog.peerjudgements import (
    judge_clock,
    judge_handshake,
    judge_no_path,
    judge_path,
    judge_peer_nat,
    judge_record,
    judge_server,
)
from hyperlog.pinging import round_trip

__all__ = ["examine_network", "examine_peer"]

T = TypeVar("T")

GREETING_TIMEOUT: Final = 1.0  # s; it was due before the round trips that were measured first
PINGS: Final = 3
CLOSE_TIMEOUT: Final = 1.0  # s; a stock hypertrace-logger server never ends its direction
NO_TIME: Final = "this server does not tell the time"


class _Stop(Exception):
    """A step failed."""


async def examine_network(
    bootstrap: Sequence[Address], progress: Progress, *, timeout: float
) -> bool:
    """Whether the network can be used from here; `timeout` in s is for each step."""
    return await _Examination(bootstrap, progress, timeout, KeyPair.generate()).run(None, ())


async def examine_peer(
    public_key: bytes,
    bootstrap: Sequence[Address],
    progress: Progress,
    *,
    nodes: Sequence[Address] = (),
    key_pair: KeyPair | None = None,
    relays: Sequence[bytes] = (),
    timeout: float,
) -> bool:
    """Whether a peer can be reached from here.

    `nodes` are known to reach it, beside those that are found. `key_pair` is who we are to the
    peer, by default somebody new. `relays` are keys of relays of which one may be gone through.
    """
    own = key_pair or KeyPair.generate()
    return await _Examination(bootstrap, progress, timeout, own, relays).run(public_key, nodes)


class _Examination:
    def __init__(
        self,
        bootstrap: Sequence[Address],
        progress: Progress,
        timeout: float,
        key_pair: KeyPair,
        relays: Sequence[bytes] = (),
    ) -> None:
        self._bootstrap = bootstrap
        self._relays = relays
        self._progress = progress
        self._timeout = timeout
        self._key_pair = key_pair

    async def run(self, public_key: bytes | None, nodes: Sequence[Address]) -> bool:
        try:
            addresses = await self._look_at_bootstrap_nodes()
            # Those that do not answer are told of already; waiting for them helps nobody.
            async with open_dht(
                bootstrap=addresses, ephemeral=True, key_pair=self._key_pair
            ) as dht:
                await self._join(dht)
                nat = await self._look_at_nat(dht, addresses)
                if public_key is not None:
                    holders = await self._look_for_record(dht, public_key, nodes)
                    await self._shake_hands(dht, public_key, holders, nat)
                    await self._connect(dht, public_key, holders)
        except _Stop:
            return False
        return True

    def _tell(self, finding: Finding) -> None:
        self._progress.found(finding)
        if finding.verdict is Verdict.FAILED:
            raise _Stop

    def _fail(self, finding: Finding) -> NoReturn:
        self._progress.found(finding)
        raise _Stop

    async def _within_time(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        """What a step gives; a step that takes too long, or ends in an error, has failed."""
        self._progress.begin(step)
        try:
            with trio.fail_after(self._timeout):
                return await call()
        except trio.TooSlowError:
            text = f"nothing came of it in {self._timeout:g} s"
            advice = "Allow it more time (--timeout)."
            self._fail(Finding(step, Verdict.FAILED, text, advice))
        except DHTError as err:
            self._fail(Finding(step, Verdict.FAILED, str(err), figures={"code": err.code}))

    # -- this side --------------------------------------------------------------------------------

    async def _look_at_bootstrap_nodes(self) -> list[Address]:
        self._progress.begin("names")
        lookups: list[NameLookup] = await _gather(look_up, self._bootstrap)
        self._tell(judge_names(lookups))
        self._progress.begin("udp")
        addresses = [lookup.address for lookup in lookups if lookup.address is not None]
        probes: list[NodeProbe] = await _gather(probe_node, list(dict.fromkeys(addresses)))
        self._tell(judge_udp(probes, lookups))
        self._tell(judge_bootstrap(probes))
        return [probe.address for probe in probes if probe.failure is None]

    async def _join(self, dht: DHT) -> None:
        began_at = trio.current_time()
        await self._within_time("network", dht.bootstrapped)
        self._tell(judge_joining(dht.statistics().rpc.nodes, trio.current_time() - began_at))

    async def _look_at_nat(self, dht: DHT, addresses: Sequence[Address]) -> NATJudgement:
        nat = await self._within_time("nat", lambda: Diagnosis(dht).judge_nat(addresses))
        self._tell(judge_nat(nat))
        return nat

    # -- the peer ---------------------------------------------------------------------------------

    async def _look_for_record(
        self, dht: DHT, public_key: bytes, nodes: Sequence[Address]
    ) -> list[Address]:
        announcement = await self._within_time(
            "record", lambda: Diagnosis(dht).find_holders(public_key)
        )
        self._tell(judge_record(announcement, len(nodes)))
        return list(dict.fromkeys([*announcement.holders, *nodes]))

    async def _shake_hands(
        self, dht: DHT, public_key: bytes, holders: Sequence[Address], nat: NATJudgement
    ) -> None:
        probe = await self._within_time(
            "handshake", lambda: Diagnosis(dht).probe_peer(public_key, holders)
        )
        self._tell(judge_handshake(probe, self._key_pair.public_key))
        assert probe.answer is not None
        self._tell(judge_peer_nat(probe.answer, nat))

    async def _connect(self, dht: DHT, public_key: bytes, holders: Sequence[Address]) -> None:
        self._progress.begin("path")
        began_at = trio.current_time()
        try:
            with trio.fail_after(self._timeout):
                connection = await dht.connect(
                    public_key, relay_addresses=holders, relay_through=self._relays or None
                )
        except trio.TooSlowError:
            self._fail(judge_no_path("TIMEOUT", f"no connection in {self._timeout:g} s"))
        except DHTError as err:
            self._fail(judge_no_path(err.code, str(err)))
        opened_at, seconds = time.time(), trio.current_time() - began_at
        try:
            await self._look_at_connection(connection, seconds, opened_at)
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await connection.aclose()

    async def _look_at_connection(
        self, connection: Connection, seconds: float, opened_at: float
    ) -> None:
        try:
            with trio.fail_after(self._timeout):
                times = [await round_trip(connection) for _ in range(PINGS)]
        except (trio.TooSlowError, trio.BrokenResourceError):
            self._fail(judge_no_path("ETIMEDOUT", "the connection opened, and broke at once"))
        self._tell(judge_path(connection.statistics(), seconds, min(times)))
        self._progress.begin("server")
        greeting = await _greeting(connection)
        self._tell(judge_server(greeting))
        offer = greeting.hyperlog if greeting is not None else None
        told = offer.time if isinstance(offer, ServerOffer) else None
        # A server greets as soon as the connection is open.
        skew = None if told is None else told / 1000 - opened_at
        self._tell(judge_clock(skew, NO_TIME))


async def _greeting(connection: Connection) -> Greeting | None:
    """The first message, if it is one of a log server."""
    with trio.move_on_after(GREETING_TIMEOUT):
        try:
            return parse_greeting_untrusted(await connection.receive())
        except (BadGreeting, trio.EndOfChannel, trio.BrokenResourceError):
            pass
    return None


async def _gather(call: Callable[[Address], Awaitable[T]], items: Sequence[Address]) -> list[T]:
    """What `call` gives for each item, in their order; all at once."""
    results: dict[Address, T] = {}

    async def one(item: Address) -> None:
        results[item] = await call(item)

    async with trio.open_nursery() as nursery:
        for item in dict.fromkeys(items):
            nursery.start_soon(one, item)
    return [results[item] for item in dict.fromkeys(items)]
