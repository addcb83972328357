"""Service: a blind relay, through which peers reach each other that cannot do so directly.

Theory of operation. Peers connect to the relay as to any server, name a token, and get a stream
when somebody has named the same one. Whatever comes in on that stream goes out on the other one
(streamrelay.py); what it says is encrypted between the two.

    connection ──pair──▶ waiting ──pair of the other──▶ relaying ──one leaves──▶ lingering ──▶ over
                                                        relaying ──a limit────────────────▶ over

A pair lingers because the two ends leave one after the other when they have found a direct path,
and the second may still repeat packets that it sent through us.

Source: blind-relay index.js `BlindRelayServer`; docs/protocol/hyperdht.md section 12.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from hyperlog.dht.connection import Connection
from hyperlog.dht.errors import RemoteProtocolError
from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.listener import Firewall, Listener
from hyperlog.dht.relay.pairing import Match, Pairings, Refusal
from hyperlog.dht.relay.server import (
    PairRequested,
    RelayServerCore,
    SessionClosed,
    UnpairRequested,
)
from hyperlog.dht.streamrelay import Budget, RelayStream, relay_pair

__all__ = ["RelayLimits", "RelayServer", "RelayStatistics"]

logger = logging.getLogger("hyperlog.dht.relayserver")

LINGER: Final = 3.0  # s that a pair goes on after one end has left
CHECK_INTERVAL: Final = 1.0  # s between looks at limits and time-outs
CLOSE_TIMEOUT: Final = 2.0  # s for telling the peers when the relay ends
REQUEST_RATE: Final = 20.0  # messages per second of one connection, in the long run
REQUEST_BURST: Final = 200.0  # messages at once
REQUEST_SIZE: Final = 64  # bytes; a longer message counts for several, which it may join


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay gives away. None stands for no limit."""

    max_pairs: int = 512
    """pairs at a time"""
    max_pairs_per_connection: int = 16
    """halves that wait included"""
    max_connections: int = 2048
    max_waiting: int = 2048
    """halves that wait for the other one, of all connections"""
    max_bytes_per_second: int | None = None
    """of all pairs together; what is above that waits, then gets lost"""
    max_pair_bytes_per_second: int | None = None
    max_pair_bytes: int | None = None
    """in both directions together; the pair ends with them"""
    max_pair_time: float | None = None
    """s"""
    idle_timeout: float = 60.0
    """s without a packet after which a pair ends, or without a pair a connection"""
    wait_timeout: float = 30.0
    """s that a half waits for the other one"""


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """A relay, now, and its counts since it began."""

    announced_to: int
    """nodes that hold the record of its key"""
    connections: int
    waiting: int
    """halves that wait for the other one"""
    pairs: int
    connections_accepted: int
    connections_refused: int
    """because there were too many"""
    pairs_made: int
    pairs_refused: int
    """by the limits"""
    unpaired: int
    """halves that waited in vain"""
    ended_by_peers: int
    """pairs; the following are pairs, too"""
    ended_idle: int
    ended_by_bytes: int
    ended_by_time: int
    packets_relayed: int
    bytes_relayed: int
    """UDX packets with their headers"""
    packets_dropped: int
    """because they came faster than they may go out"""
    malformed: int
    """connections ended because of what they sent"""


@dataclass(slots=True)
class _Counts:
    connections_accepted: int = 0
    connections_refused: int = 0
    pairs_made: int = 0
    pairs_refused: int = 0
    unpaired: int = 0
    ended_by_peers: int = 0
    ended_idle: int = 0
    ended_by_bytes: int = 0
    ended_by_time: int = 0
    packets_relayed: int = 0
    bytes_relayed: int = 0
    packets_dropped: int = 0
    malformed: int = 0


@dataclass(slots=True, eq=False)
class _Session:
    """One peer's connection."""

    connection: Connection
    core: RelayServerCore
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    active_at: float = 0.0
    """when it last had a half"""


@dataclass(slots=True, eq=False)
class _RelayedPair:
    match: Match[_Session]
    streams: tuple[RelayStream, RelayStream]
    since: float
    ends_at: float | None = None
    """once one of the two has left"""

    @property
    def bytes(self) -> int:
        return self.streams[0].bytes + self.streams[1].bytes

    @property
    def heard_at(self) -> float:
        return max(self.since, *(stream.heard_at or 0.0 for stream in self.streams))


class RelayServer:
    """Relays for whoever knows its public key, within limits; `run` does the work."""

    def __init__(
        self,
        dht: DHT,
        *,
        key_pair: KeyPair | None = None,
        limits: RelayLimits | None = None,
        firewall: Firewall | None = None,
    ) -> None:
        """`key_pair` is the node's own by default; `firewall` is that of `DHT.listen`."""
        self.limits = limits or RelayLimits()
        self.public_key = (key_pair or dht.key_pair).public_key
        self._dht = dht
        self._key_pair = key_pair
        self._firewall = firewall
        self._pairings: Pairings[_Session] = Pairings(
            max_pairs=self.limits.max_pairs,
            max_pairs_per_session=self.limits.max_pairs_per_connection,
            max_waiting=self.limits.max_waiting,
            wait_timeout=self.limits.wait_timeout,
        )
        self._pairs: dict[Match[_Session], _RelayedPair] = {}
        self._sessions: set[_Session] = set()
        self._counts = _Counts()
        self._budget: Budget | None = None
        self._listener: Listener | None = None

    async def wait_announced(self) -> int:
        """Return the number of nodes that hold our record, once the first attempt is over; 0 when
        `run` has not begun."""
        return 0 if self._listener is None else await self._listener.wait_announced()

    def statistics(self) -> RelayStatistics:
        counts = self._counts
        streams = [stream for pair in self._pairs.values() for stream in pair.streams]
        return RelayStatistics(
            announced_to=self._listener.statistics().announced_to if self._listener else 0,
            connections=len(self._sessions),
            waiting=self._pairings.waiting,
            pairs=len(self._pairs),
            connections_accepted=counts.connections_accepted,
            connections_refused=counts.connections_refused,
            pairs_made=counts.pairs_made,
            pairs_refused=counts.pairs_refused,
            unpaired=counts.unpaired,
            ended_by_peers=counts.ended_by_peers,
            ended_idle=counts.ended_idle,
            ended_by_bytes=counts.ended_by_bytes,
            ended_by_time=counts.ended_by_time,
            packets_relayed=counts.packets_relayed + sum(s.packets for s in streams),
            bytes_relayed=counts.bytes_relayed + sum(s.bytes for s in streams),
            packets_dropped=counts.packets_dropped + sum(s.dropped for s in streams),
            malformed=counts.malformed,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and relay until cancelled or the node is closed; announcing goes on behind.

        Raises:
            NodeDestroyed, KeyPairInUse: as `DHT.listen`.
        """
        listener = await self._dht.listen(self._key_pair, firewall=self._firewall)
        self._listener = listener
        rate = self.limits.max_bytes_per_second
        if rate is not None:
            self._budget = Budget(rate, trio.current_time())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._check_loop)
                task_status.started()
                while True:
                    try:
                        connection = await listener.accept()
                    except trio.ClosedResourceError:
                        nursery.cancel_scope.cancel()
                        break
                    if len(self._sessions) >= self.limits.max_connections:
                        self._counts.connections_refused += 1
                        connection.abort()
                        continue
                    self._counts.connections_accepted += 1
                    core = RelayServerCore(connection.remote_public_key)
                    session = _Session(connection, core, active_at=trio.current_time())
                    self._sessions.add(session)
                    nursery.start_soon(self._serve, session)
        finally:
            for pair in list(self._pairs.values()):
                self._end(pair)
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await listener.aclose()

    # -- connections ------------------------------------------------------------------------------

    async def _serve(self, session: _Session) -> None:
        connection = session.connection
        credit, credited_at = REQUEST_BURST, trio.current_time()
        try:
            with session.scope:
                await connection.send_many(session.core.messages_to_send())
                while not session.core.closed:
                    for message in await connection.receive_many():
                        session.core.receive_untrusted(message)
                        self._take_events(session)
                        self._flush(session)
                        await connection.wait_writable()
                        now = trio.current_time()
                        credit = min(REQUEST_BURST, credit + (now - credited_at) * REQUEST_RATE)
                        credit -= 1 + len(message) // REQUEST_SIZE
                        credited_at = now
                        if credit < 0:
                            await trio.sleep(-credit / REQUEST_RATE)
        except RemoteProtocolError as err:
            self._counts.malformed += 1
            logger.debug("a peer was cut off: %s", err)
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # how most peers leave
        finally:
            self._sessions.discard(session)
            self._leave(session)
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                session.core.close()
                self._flush(session)
                await connection.aclose()

    def _take_events(self, session: _Session) -> None:
        while (event := session.core.next_event()) is not None:
            if isinstance(event, PairRequested):
                self._on_request(session, event)
            elif isinstance(event, UnpairRequested):
                match = self._pairings.unpair(session, event.token)
                if match is not None:
                    self._linger(match)
            else:
                assert isinstance(event, SessionClosed)

    def _on_request(self, session: _Session, request: PairRequested) -> None:
        now = trio.current_time()
        session.active_at = now
        outcome = self._pairings.request(session, request.pair, now)
        if isinstance(outcome, Refusal):
            self._counts.pairs_refused += 1
            logger.info("a pair was refused: %s", outcome.value)
            session.core.refuse(request.pair.token)
        elif outcome is not None:
            self._begin(outcome, now)

    @staticmethod
    def _flush(session: _Session) -> None:
        messages = session.core.messages_to_send()
        if messages:
            try:
                session.connection.send_soon(messages)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # its own task finds out

    def _leave(self, session: _Session) -> None:
        for match in self._pairings.leave(session):
            if all(half.session not in self._sessions for half in match.halves):
                self._counts.ended_by_peers += 1
                self._end(self._pairs[match])
            else:
                self._linger(match)

    # -- pairs ------------------------------------------------------------------------------------

    def _begin(self, match: Match[_Session], now: float) -> None:
        first, second = match.halves
        streams = relay_pair(
            self._dht.sockets,
            (self._free_id(), self._free_id()),
            (first.stream_id, second.stream_id),
        )
        rate = self.limits.max_pair_bytes_per_second
        own = Budget(rate, now) if rate is not None else None
        for stream in streams:
            stream.budgets = tuple(b for b in (self._budget, own) if b is not None)
        pair = _RelayedPair(match, streams, now)
        if self.limits.max_pair_bytes is not None:
            for stream in streams:
                stream.on_bytes = self._byte_limit(pair, self.limits.max_pair_bytes)
        self._pairs[match] = pair
        self._counts.pairs_made += 1
        for half, stream in zip(match.halves, streams, strict=True):
            half.session.core.paired(
                match.token, is_initiator=half.is_initiator, stream_id=stream.local_id
            )
            self._flush(half.session)

    def _free_id(self) -> int:
        while True:
            number = int.from_bytes(self._dht.random_bytes(4), "little")
            if self._dht.sockets.is_free(number):
                return number

    def _byte_limit(self, pair: _RelayedPair, limit: int) -> Callable[[int], None]:
        def check(_size: int) -> None:
            if pair.bytes >= limit and pair.match in self._pairs:
                self._counts.ended_by_bytes += 1
                self._end(pair)

        return check

    def _linger(self, match: Match[_Session]) -> None:
        pair = self._pairs[match]
        if pair.ends_at is None:
            pair.ends_at = trio.current_time() + LINGER

    def _end(self, pair: _RelayedPair) -> None:
        del self._pairs[pair.match]
        self._pairings.end(pair.match)
        now = trio.current_time()
        for stream in pair.streams:
            stream.destroy()
            self._counts.packets_relayed += stream.packets
            self._counts.bytes_relayed += stream.bytes
            self._counts.packets_dropped += stream.dropped
        for half in pair.match.halves:
            half.session.active_at = now
            half.session.core.refuse(pair.match.token)
            self._flush(half.session)

    # -- limits -----------------------------------------------------------------------------------

    async def _check_loop(self) -> None:
        while True:
            await trio.sleep(CHECK_INTERVAL)
            now = trio.current_time()
            for token, half in self._pairings.expire(now):
                self._counts.unpaired += 1
                half.session.core.refuse(token)
                self._flush(half.session)
            for pair in list(self._pairs.values()):
                self._check_pair(pair, now)
            for session in self._sessions:
                if self._pairings.count_of(session):
                    session.active_at = now
                elif now - session.active_at >= self.limits.idle_timeout:
                    session.scope.cancel()

    def _check_pair(self, pair: _RelayedPair, now: float) -> None:
        destroyed = [s.destroyed_at for s in pair.streams if s.destroyed_at is not None]
        if destroyed and pair.ends_at is None:
            pair.ends_at = min(destroyed) + LINGER
        if pair.ends_at is not None and now >= pair.ends_at:
            self._counts.ended_by_peers += 1
        elif now - pair.heard_at >= self.limits.idle_timeout:
            self._counts.ended_idle += 1
        elif (
            self.limits.max_pair_time is not None and now - pair.since >= self.limits.max_pair_time
        ):
            self._counts.ended_by_time += 1
        else:
            return
        self._end(pair)
