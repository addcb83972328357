"""Memory of closed streams: answers peers that did not hear how a stream ended.

libudx forgets a stream with its last acknowledgement. If that one is lost, the peer repeats its
END to nobody and fails with a timeout 13 s later, after an orderly shutdown. Here the id is
remembered for a while and whatever the peer repeats is answered with the final STATE. In the same
way a peer that missed our DESTROY gets it again as soon as it sends something.

Spec: docs/protocol/udx.md section 11.
"""

from __future__ import annotations

from typing import Final

from hyperlog.dht.compact import Address
from hyperlog.dht.udx.packet import DATA, END, HEARTBEAT, stream_id_untrusted
from hyperlog.dht.udx.stream import UDXStreamCore

__all__ = ["ClosedStreams"]

LIFETIME: Final = 15.0  # s, more than the 13 s after which a libudx peer gives up
MAX_STREAMS: Final = 4096


class ClosedStreams:
    """A bounded table of closed ids; the oldest makes room for the newest.

    A new stream should not take an id that is still `in` the table.
    """

    __slots__ = ("_lifetime", "_max_streams", "_streams")

    def __init__(self, *, lifetime: float = LIFETIME, max_streams: int = MAX_STREAMS) -> None:
        self._lifetime = lifetime
        self._max_streams = max_streams
        # In the order of expiry, since all live equally long.
        self._streams: dict[int, tuple[float, Address, bytes]] = {}

    def __contains__(self, local_id: int) -> bool:
        return local_id in self._streams

    def __len__(self) -> int:
        return len(self._streams)

    def remember(self, core: UDXStreamCore, now: float) -> None:
        """Add a closed stream, unless its peer is known to have closed it too."""
        self.forget_expired(now)
        reply = core.closing_reply
        if reply is None or core.remote_address is None:
            return
        self._streams.pop(core.local_id, None)
        self._streams[core.local_id] = (now + self._lifetime, core.remote_address, reply)
        if len(self._streams) > self._max_streams:
            del self._streams[next(iter(self._streams))]

    def receive_datagram(
        self, data: bytes | memoryview, now: float
    ) -> tuple[Address, bytes] | None:
        """Return the answer to a UDX datagram and where to send it, None when there is none.

        The answer goes to the stream's peer, wherever the datagram came from, and is no larger.
        """
        local_id = stream_id_untrusted(data)
        if local_id is None or local_id not in self._streams:
            return None
        expires_at, address, reply = self._streams[local_id]
        if expires_at <= now or not data[2] & (DATA | END | HEARTBEAT):
            return None
        return address, reply

    def forget_expired(self, now: float) -> None:
        while self._streams:
            oldest = next(iter(self._streams))
            if self._streams[oldest][0] > now:
                return
            del self._streams[oldest]
