"""The frames of protomux: what one message of an encrypted connection says about channels.

A frame begins with a channel id of its sender, 0 for the multiplexer's own: batch, open, reject and
close. `decode_untrusted` gives a batch as the frames that it joins.

Wire: docs/protocol/hyperdht.md section 12; protomux index.js.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from hyperlog.dht.compact import Reader, Writer
from hyperlog.dht.errors import InvalidValue, LocalProtocolError

__all__ = ["Close", "Data", "Frame", "Open", "Reject", "decode_untrusted", "encode", "encode_batch"]

BATCH: Final = 0
OPEN: Final = 1
REJECT: Final = 2
CLOSE: Final = 3


@dataclass(slots=True)
class Open:
    """Opens a channel, or answers with the other half of one."""

    channel_id: int
    """of the sender; 1 or more"""
    protocol: str
    id: bytes = b""
    """tells channels of one protocol apart; empty for none"""
    handshake: bytes = b""
    """whatever the protocol puts behind it"""


@dataclass(slots=True)
class Reject:
    """Answers an Open for which there is no other half."""

    channel_id: int
    """the one of the Open, so of the receiver"""


@dataclass(slots=True)
class Close:
    channel_id: int
    """of the sender"""


@dataclass(slots=True)
class Data:
    """One message on a channel."""

    channel_id: int
    """of the sender; 1 or more"""
    type: int
    """number of the message in its protocol"""
    body: bytes = field(repr=False)


Frame = Open | Reject | Close | Data


def encode(frame: Frame) -> bytes:
    """Raises LocalProtocolError for numbers that do not fit, and for data on channel 0."""
    writer = Writer()
    _write_channel(writer, frame)
    writer.fixed(_encode_behind_channel(frame))
    return writer.finish()


def encode_batch(frames: Sequence[Frame]) -> bytes:
    """Join frames into one message; raises as `encode` does, and for none at all."""
    if not frames:
        raise LocalProtocolError("a batch has one frame at least")
    writer = Writer().uint(0).uint(BATCH)
    current: int | None = None
    for frame in frames:
        channel_id = frame.channel_id if isinstance(frame, Data) else 0
        if channel_id != current:
            if current is not None:
                writer.uint(0)
            _write_channel(writer, frame)
            current = channel_id
        writer.buffer(_encode_behind_channel(frame))
    return writer.finish()


def _write_channel(writer: Writer, frame: Frame) -> None:
    if not isinstance(frame, Data):
        writer.uint(0)
    elif frame.channel_id < 1:
        raise LocalProtocolError("channel 0 is the multiplexer's own")
    else:
        writer.uint(frame.channel_id)


def _encode_behind_channel(frame: Frame) -> bytes:
    if isinstance(frame, Data):
        return Writer().uint(frame.type).fixed(frame.body).finish()
    if isinstance(frame, Open):
        writer = Writer().uint(OPEN).uint(frame.channel_id).string(frame.protocol)
        return writer.buffer(frame.id).fixed(frame.handshake).finish()
    kind = REJECT if isinstance(frame, Reject) else CLOSE
    return Writer().uint(kind).uint(frame.channel_id).finish()


def decode_untrusted(message: bytes) -> list[Frame]:
    """The frames of one message, in order; control frames of an unknown kind are left out.

    Compat: protomux ignores those as well, and takes batches within batches, which it never sends:
    these are refused.

    Raises:
        RemoteProtocolError: cut short, or not of this form.
    """
    reader = Reader(message)
    channel_id = reader.uint()
    kind = reader.uint()
    if channel_id == 0 and kind == BATCH:
        return list(_decode_batch(reader))
    frame = _decode_frame(channel_id, kind, reader)
    return [frame] if frame is not None else []


def _decode_batch(reader: Reader) -> Iterator[Frame]:
    channel_id = reader.uint()
    while reader.remaining:
        part = Reader(reader.buffer())
        if not part.remaining:
            channel_id = reader.uint()
            continue
        kind = part.uint()
        if channel_id == 0 and kind == BATCH:
            raise InvalidValue("a batch within a batch")
        frame = _decode_frame(channel_id, kind, part)
        if frame is not None:
            yield frame


def _decode_frame(channel_id: int, kind: int, reader: Reader) -> Frame | None:
    if channel_id:
        return Data(channel_id, kind, reader.fixed(reader.remaining))
    if kind == OPEN:
        opened = reader.uint()
        return Open(opened, reader.string(), reader.buffer(), reader.fixed(reader.remaining))
    if kind == REJECT:
        return Reject(reader.uint())
    if kind == CLOSE:
        return Close(reader.uint())
    return None
