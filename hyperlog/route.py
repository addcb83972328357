"""Service: the way of a client to its server; finds out early that it is blocked, and free again.

A server that was killed says nothing, and one that came back knows nothing of the connection: to
the client both look like silence. So when sent bytes stay without any answer for a moment, another
connection is tried beside the one that is silent, and whichever lives is used. While there is none,
cheap signs are looked for, one or two small packets at a time, since the next proper attempt, with
its search through the DHT, may be many seconds away: the address at which the server was last seen
answers a ping; or a server that nobody knew is announced. A server that is announced and does not
answer has no cheaper sign than an attempt, so the pauses between those stay short for some time.

All of it is about time only: a connection that is given up too early costs a greeting and no
record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hyperlog.config import Address, Channel
from hyperlog.dht import DHT, Connection, DHTError, PeerConnectionFailed, PeerNotFound

__all__ = ["Route"]

CONNECT_TIMEOUT: Final = 30.0  # s for one attempt
SUSPICION: Final = 0.6  # s of silence with bytes under way, or SUSPICION_TRIPS round trips
SUSPICION_TRIPS: Final = 6
LOOK_INTERVAL: Final = 0.15  # s between looks for silence
ATTEMPT_PAUSE: Final = 0.25  # s between attempts beside a silent connection
SIGN_INTERVAL: Final = 0.5  # s between looks for a sign, of each kind
EAGER_RETRY: Final = 1.0  # s between attempts with a server that is announced, at most
EAGER_TIME: Final = 120.0  # s without a server that we are eager; then only PATIENT_INTERVAL counts
PATIENT_INTERVAL: Final = 5.0  # s


class Route:
    """Connects again and again; for one task at a time, and one more that watches."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Channel]],
        dht: DHT | None = None,
        server_key: bytes | None = None,
    ) -> None:
        """With the node that `connect` uses, and the key it connects to, signs can be seen."""
        self._connect = connect
        self._dht = dht
        self._server_key = server_key
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

    async def wait_for_sign(self, limit: float, error: Exception | None = None) -> None:
        """Return after `limit` seconds, or earlier when there is a sign of the server.

        `error` is why there is no connection.
        """
        if self._lost_at is None:
            self._lost_at = trio.current_time()
        if self._eager and isinstance(error, PeerConnectionFailed):
            limit = min(limit, EAGER_RETRY)
        with trio.move_on_after(limit):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look, self._answers_ping, nursery.cancel_scope)
                if isinstance(error, PeerNotFound):
                    nursery.start_soon(self._look, self._is_announced, nursery.cancel_scope)
                await trio.sleep_forever()

    @property
    def _eager(self) -> bool:
        return self._lost_at is None or trio.current_time() - self._lost_at <= EAGER_TIME

    async def _look(self, look: Callable[[], Awaitable[bool]], scope: trio.CancelScope) -> None:
        while True:
            # The first look after a pause: the server may refuse, and must not be asked in a loop.
            await trio.sleep(SIGN_INTERVAL if self._eager else PATIENT_INTERVAL)
            if await look():
                scope.cancel()

    async def _answers_ping(self) -> bool:
        if self._dht is None or self._address is None:
            return False
        try:
            await self._dht.node.ping(self._address, retries=0)
        except DHTError:
            return False
        return True

    async def _is_announced(self) -> bool:
        if self._dht is None or self._server_key is None:
            return False
        try:
            return await self._dht.is_announced(self._server_key)
        except DHTError:
            return False
