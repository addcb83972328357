"""What UDXStreamCore.next_event() gives."""

from __future__ import annotations

from dataclasses import dataclass

from hyperlog.dht.errors import StreamReset, StreamTimeout

__all__ = ["EndReceived", "Event", "MessageReceived", "RemoteChanged", "StreamClosed"]


@dataclass(slots=True)
class EndReceived:
    """The peer has ended its direction; all its bytes are readable or read."""


@dataclass(slots=True)
class MessageReceived:
    data: bytes
    "Payload of one unordered MESSAGE, never empty."


@dataclass(slots=True)
class RemoteChanged:
    """All that was sent before change_remote() is acknowledged: nothing needs the old path now."""


@dataclass(slots=True)
class StreamClosed:
    """The last event of a stream; bytes that arrived before it can still be read."""

    error: StreamReset | StreamTimeout | None
    "None after an end in both directions and after our own destroy()."


Event = EndReceived | MessageReceived | RemoteChanged | StreamClosed
