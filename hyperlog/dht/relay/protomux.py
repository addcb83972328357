"""Several channels on one encrypted connection, each for a protocol and an id of its own.

Theory of operation. Both sides open a channel of the same protocol and id; which of them is first
does not matter. Each numbers its half, and the sender's number is what its frames carry.

    open() ──the peer's Open──▶ open ──close(), Close──▶ closed
    open() ──Reject──▶ closed
    the peer's Open ──ChannelOffered──▶ waiting ──open()──▶ open
                                                ──reject()──▶ gone

A channel may be used before its other half has come: what arrives for a channel that was only
offered is kept, within limits, until it is opened or rejected. Numbers are used again only when the
peer cannot mean the old channel any more.

Wire: docs/protocol/hyperdht.md section 12; protomux index.js.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeVar

from hyperlog.dht.errors import InvalidValue, LocalProtocolError
from hyperlog.dht.relay.frames import (
    Close,
    Data,
    Frame,
    Open,
    Reject,
    decode_untrusted,
    encode,
)

__all__ = [
    "Channel",
    "ChannelClosed",
    "ChannelMessage",
    "ChannelOffered",
    "ChannelOpened",
    "Event",
    "Protomux",
]

MAX_FRAME: Final = 65_536  # bytes of one message; those of blind-relay have less than 100
MAX_CHANNELS: Final = 16  # of each side at a time
MAX_WAITING: Final = 32_768  # bytes kept for channels that were only offered, protomux MAX_BUFFERED
WAITING_COST: Final = 512  # bytes that a kept message counts for beside its own, as there

T = TypeVar("T")


class Channel:
    """One side's view of a channel; made by `Protomux.open`."""

    __slots__ = ("closed", "id", "local_id", "opened", "protocol", "remote_id")

    def __init__(self, local_id: int, protocol: str, id: bytes) -> None:
        self.local_id = local_id
        self.remote_id = 0
        """0 until the peer has opened its half"""
        self.protocol = protocol
        self.id = id
        self.opened = False
        """by both sides"""
        self.closed = False


@dataclass(slots=True)
class ChannelOffered:
    """The peer opened a channel that we have not: answer by `open` or `reject`."""

    protocol: str
    id: bytes


@dataclass(slots=True)
class ChannelOpened:
    channel: Channel
    handshake: bytes
    """what the peer's protocol put behind its Open"""


@dataclass(slots=True)
class ChannelMessage:
    channel: Channel
    type: int
    body: bytes = field(repr=False)


@dataclass(slots=True)
class ChannelClosed:
    channel: Channel
    rejected: bool
    """the peer has no such protocol or id"""


Event = ChannelOffered | ChannelOpened | ChannelMessage | ChannelClosed


@dataclass(slots=True)
class _Offer:
    remote_id: int
    handshake: bytes
    waiting: list[Data] = field(default_factory=list)


class Protomux:
    """The channels of one connection. Feed it every message that the connection brings."""

    def __init__(self, *, max_channels: int = MAX_CHANNELS) -> None:
        self._max_channels = max_channels
        self._local: list[Channel | None] = []
        self._free: list[int] = []
        self._remote: list[Channel | _Offer | None] = []
        # Halves that wait for the other one, ours and theirs, by protocol and id.
        self._unanswered: dict[tuple[str, bytes], deque[Channel]] = {}
        self._offers: dict[tuple[str, bytes], deque[_Offer]] = {}
        self._waiting = 0
        self._events: deque[Event] = deque()
        self._out: list[Frame] = []

    def open(self, protocol: str, id: bytes = b"", handshake: bytes = b"") -> Channel:
        """Open our half of a channel; sending on it may begin at once.

        Raises:
            LocalProtocolError: too many channels.
        """
        if self._free:
            local_id = self._free.pop()
        elif len(self._local) < self._max_channels:
            self._local.append(None)
            local_id = len(self._local)
        else:
            raise LocalProtocolError(f"more than {self._max_channels} channels")
        channel = Channel(local_id, protocol, id)
        self._local[local_id - 1] = channel
        self._out.append(Open(local_id, protocol, id, handshake))
        key = (protocol, id)
        offer = _take(self._offers, key)
        if offer is None:
            self._unanswered.setdefault(key, deque()).append(channel)
        else:
            self._join(channel, offer.remote_id, offer.handshake)
            for data in offer.waiting:
                self._waiting -= WAITING_COST + len(data.body)
                self._events.append(ChannelMessage(channel, data.type, data.body))
        return channel

    def reject(self, protocol: str, id: bytes = b"") -> None:
        """Turn the oldest offer of this protocol and id down, if it has not been taken back."""
        offer = _take(self._offers, (protocol, id))
        if offer is not None:
            self._drop_offer(offer)

    def _drop_offer(self, offer: _Offer) -> None:
        self._waiting -= sum(WAITING_COST + len(data.body) for data in offer.waiting)
        self._remote[offer.remote_id - 1] = None
        # Also when the peer has closed it: only this tells that it may use the number again.
        self._out.append(Reject(offer.remote_id))

    def send(self, channel: Channel, type: int, body: bytes) -> None:
        """Queue one message on a channel.

        Raises:
            LocalProtocolError: the channel is closed.
        """
        if channel.closed:
            raise LocalProtocolError("the channel is closed")
        self._out.append(Data(channel.local_id, type, body))

    def close(self, channel: Channel) -> None:
        """Close a channel; doing so again has no effect. No event follows."""
        if not channel.closed:
            self._out.append(Close(channel.local_id))
            self._forget(channel)

    def messages_to_send(self) -> list[bytes]:
        """What is to be sent on the connection, each a message of its own, in order."""
        out, self._out = self._out, []
        return [encode(frame) for frame in out]

    def next_event(self) -> Event | None:
        """Remove and return the oldest event, None when there is none."""
        return self._events.popleft() if self._events else None

    def receive_untrusted(self, message: bytes) -> None:
        """Take one message of the connection.

        Raises:
            RemoteProtocolError: no honest peer sends it; the connection should be ended.
        """
        if not message:
            return
        if len(message) > MAX_FRAME:
            raise InvalidValue(f"a frame of {len(message)} bytes, at most {MAX_FRAME} allowed")
        for frame in decode_untrusted(message):
            if isinstance(frame, Data):
                self._on_data(frame)
            elif isinstance(frame, Open):
                self._on_open(frame)
            elif isinstance(frame, Reject):
                self._on_reject(frame)
            else:
                self._on_close(frame)

    def _on_data(self, data: Data) -> None:
        half = self._half(data.channel_id)
        if isinstance(half, Channel):
            self._events.append(ChannelMessage(half, data.type, data.body))
        elif half is not None:
            self._waiting += WAITING_COST + len(data.body)
            if self._waiting > MAX_WAITING:
                raise InvalidValue("too much was sent on channels that nobody has opened")
            half.waiting.append(data)
        # For any other channel it was under way when we closed that.

    def _half(self, remote_id: int) -> Channel | _Offer | None:
        return self._remote[remote_id - 1] if 0 < remote_id <= len(self._remote) else None

    def _on_open(self, frame: Open) -> None:
        remote_id = frame.channel_id
        if remote_id == 0:
            self._out.append(Reject(0))  # Compat: as protomux does, for a use in the future
            return
        if remote_id == len(self._remote) + 1 and remote_id <= self._max_channels:
            self._remote.append(None)
        if remote_id > len(self._remote) or self._remote[remote_id - 1] is not None:
            raise InvalidValue(f"channel {remote_id} cannot be opened")
        key = (frame.protocol, frame.id)
        channel = _take(self._unanswered, key)
        if channel is None:
            offer = _Offer(remote_id, frame.handshake)
            self._remote[remote_id - 1] = offer
            self._offers.setdefault(key, deque()).append(offer)
            self._events.append(ChannelOffered(*key))
        elif channel.closed:
            self._free.append(channel.local_id)  # our Close is on its way to them
        else:
            self._join(channel, remote_id, frame.handshake)

    def _join(self, channel: Channel, remote_id: int, handshake: bytes) -> None:
        channel.remote_id = remote_id
        channel.opened = True
        self._remote[remote_id - 1] = channel
        self._events.append(ChannelOpened(channel, handshake))

    def _on_reject(self, frame: Reject) -> None:
        for key, channels in self._unanswered.items():
            for channel in channels:
                if channel.local_id == frame.channel_id:
                    channels.remove(channel)
                    if not channels:
                        del self._unanswered[key]
                    self._free.append(channel.local_id)
                    if not channel.closed:
                        channel.closed = True
                        self._local[channel.local_id - 1] = None
                        self._events.append(ChannelClosed(channel, rejected=True))
                    return
        raise InvalidValue(f"channel {frame.channel_id} is rejected, but was not offered")

    def _on_close(self, frame: Close) -> None:
        half = self._half(frame.channel_id)
        if isinstance(half, Channel):
            self._forget(half)
            self._events.append(ChannelClosed(half, rejected=False))
        elif half is not None:
            key = next(key for key, offers in self._offers.items() if half in offers)
            self._offers[key].remove(half)
            if not self._offers[key]:
                del self._offers[key]
            self._drop_offer(half)

    def _forget(self, channel: Channel) -> None:
        channel.closed = True
        self._local[channel.local_id - 1] = None
        if channel.remote_id:
            self._remote[channel.remote_id - 1] = None
            # Without the peer's half, its answer to our Open is still to come, and frees the id.
            self._free.append(channel.local_id)


def _take(table: dict[tuple[str, bytes], deque[T]], key: tuple[str, bytes]) -> T | None:
    waiting = table.get(key)
    if waiting is None:
        return None
    first = waiting.popleft()
    if not waiting:
        del table[key]
    return first
