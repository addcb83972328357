"""Service: the way of a client to its server; finds out early that it is blocked, and free again.

A server that was killed says nothing, and one that came back knows nothing of the connection: to
the client both look like silence. So when sent bytes stay without any answer for a moment, another
connection is tried beside the one that is silent, and whichever lives is used. While there is none,
the address at which the server was last seen is pinged, one small packet at a time, since the next
proper attempt, with its search through the DHT, may be many seconds away.

Both are about time only: a connection that is given up too early costs a greeting and no record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hyperlog.config import Address, Channel
from hyperlog.dht import DHT, Connection, DHTError

__all__ = ["Route"]

CONNECT_TIMEOUT: Final = 30.0  # s for one attempt
SUSPICION: Final = 0.6  # s of silence with bytes under way, or SUSPICION_TRIPS round trips
SUSPICION_TRIPS: Final = 6
LOOK_INTERVAL: Final = 0.15  # s between looks for silence
ATTEMPT_PAUSE: Final = 0.25  # s between attempts beside a silent connection
PING_INTERVAL: Final = 0.5  # s
PING_PATIENCE: Final = 120.0  # s, then PATIENT_PING_INTERVAL
PATIENT_PING_INTERVAL: Final = 5.0  # s


class Route:
    """Connects again and again; for one task at a time, and one more that watches."""

    def __init__(self, connect: Callable[[], Awaitable[Channel]], dht: DHT | None = None) -> None:
        """With `dht`, the node that `connect` uses, the server's address can be pinged."""
        self._connect = connect
        self._dht = dht
        self._address: Address | None = None
        self._spare: Channel | None = None
        self._lost_at: float | None = None

    async def connect(self) -> Channel:
        """A new connection, at once if there is a spare one. Raises what `connect` raises, and
        trio.TooSlowError."""
        channel, self._spare = self._spare, None
        if channel is None:
            with trio.fail_after(CONNECT_TIMEOUT):
                channel = await self._connect()
        if isinstance(channel, Connection):
            self._address = channel.remote_address
        self._lost_at = None
        return channel

    @property
    def has_spare(self) -> bool:
        """Whether `watch` has found a connection that is better than the present one."""
        return self._spare is not None

    async def aclose(self) -> None:
        """Give up a spare connection that nobody has taken."""
        channel, self._spare = self._spare, None
        if channel is not None:
            await trio.aclose_forcefully(channel)

    async def watch(self, connection: Connection) -> None:
        """Return when there is a spare connection, because this one is silent."""
        while True:
            await trio.sleep(LOOK_INTERVAL)
            if not self._is_silent(connection):
                continue
            try:
                with trio.fail_after(CONNECT_TIMEOUT):
                    channel = await self._connect()
            except Exception:  # `connect` may be the application's: the loop that uses it tells
                await trio.sleep(ATTEMPT_PAUSE)
            else:
                if self._is_silent(connection):
                    self._spare = channel
                    return
                await trio.aclose_forcefully(channel)

    @staticmethod
    def _is_silent(connection: Connection) -> bool:
        if connection.bytes_acknowledged >= connection.bytes_written:
            return False
        limit = max(SUSPICION, SUSPICION_TRIPS * (connection.round_trip_time or 0.0))
        return trio.current_time() - connection.heard_at >= limit

    async def wait_for_sign(self, limit: float) -> None:
        """Return after `limit` seconds, or earlier when the server's last address answers."""
        with trio.move_on_after(limit):
            dht, address = self._dht, self._address
            if dht is None or address is None:
                await trio.sleep_forever()
                return
            now = trio.current_time()
            if self._lost_at is None:
                self._lost_at = now
            # The first look after a pause: the server may refuse, and must not be asked in a loop.
            while True:
                patient = trio.current_time() - self._lost_at > PING_PATIENCE
                await trio.sleep(PATIENT_PING_INTERVAL if patient else PING_INTERVAL)
                try:
                    await dht.node.ping(address, retries=0)
                except DHTError:
                    continue
                return
