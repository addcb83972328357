"""Records as JSON, for HTTP and the command line: what the server knows of one, and under `body`
the line as it was written."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from hyperlog.store.levels import LEVEL_NAMES
from hyperlog.store.records import StoredRecord
from hyperlog.store.times import ms_iso

__all__ = ["encode_record", "record_members"]

_encode = msgspec.json.Encoder().encode


def encode_record(record: StoredRecord) -> bytes:
    """One record."""
    return _encode(record_members(record))


def record_members(record: StoredRecord) -> dict[str, Any]:
    """To be encoded by msgspec."""
    return {
        "id": record.id,
        "server": record.server,
        "source": record.source,
        "bucket": record.bucket,
        "instance": record.instance,
        "key": record.key,
        "session": record.session,
        "number": record.number,
        "time": ms_iso(record.time),
        "clientTime": None if record.client_time is None else ms_iso(record.client_time),
        "level": LEVEL_NAMES[record.level],
        "kind": record.kind,
        "message": record.message,
        "body": Raw(_utf8(record.body)),
    }


def _utf8(line: bytes) -> bytes:
    """The line, with U+FFFD for what is no UTF-8: a file of other origin may lie among the logs."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return line.decode(errors="replace").encode()
    return line
