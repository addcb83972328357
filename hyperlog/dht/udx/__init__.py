"""UDX: reliable streams over UDP, wire-compatible with libudx. No IO in here."""

from __future__ import annotations

from hyperlog.dht.udx.closed import ClosedStreams
from hyperlog.dht.udx.events import (
    EndReceived,
    Event,
    MessageReceived,
    RemoteChanged,
    StreamClosed,
)
from hyperlog.dht.udx.packet import stream_id_untrusted
from hyperlog.dht.udx.statistics import UDXStreamStatistics
from hyperlog.dht.udx.stream import UDXStreamCore

__all__ = [
    "ClosedStreams",
    "EndReceived",
    "Event",
    "MessageReceived",
    "RemoteChanged",
    "StreamClosed",
    "UDXStreamCore",
    "UDXStreamStatistics",
    "stream_id_untrusted",
]
