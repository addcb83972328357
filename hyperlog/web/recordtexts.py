"""The JSON of records that many viewers want, and what it looks like."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from hyperlog.store.levels import LEVEL_NAMES
from hyperlog.store.recordjson import encode_record
from hyperlog.store.records import StoredRecord

__all__ = ["RECORD", "RecordTexts"]

REMEMBERED: Final = 2048  # records whose JSON is kept


class RecordTexts:
    """The JSON of the latest records: all viewers get the same."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, bytes] = OrderedDict()

    def text_of(self, record: StoredRecord) -> bytes:
        text = self._texts.get(record.id)
        if text is None:
            text = self._texts[record.id] = encode_record(record)
            if len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)
        return text


_NULLABLE: Final = {"type": ["string", "null"]}
RECORD: Final = {
    "type": "object",
    "required": ["id", "bucket", "instance", "time", "level", "kind", "message", "body"],
    "properties": {
        "id": {"type": "string", "description": "stable"},
        "server": {"type": "string", "description": "public key of the server that wrote it"},
        "source": {"type": "string", "description": "name of its log file, without .log"},
        "bucket": {"type": "string", "description": "application"},
        "instance": {"type": "string"},
        "key": {**_NULLABLE, "description": "public key of a sender over HyperDHT"},
        "session": _NULLABLE,
        "number": {"type": ["integer", "null"]},
        "time": {"type": "string", "format": "date-time", "description": "when it was received"},
        "clientTime": {**_NULLABLE, "description": "when it was made, as its sender says"},
        "level": {"type": "string", "enum": [*LEVEL_NAMES.values()]},
        "kind": {"type": "string", "enum": ["trace", "log", "note", "gap"]},
        "message": {"type": "string"},
        "body": {"type": "object", "description": "the line as it stands in the log file"},
    },
}
"""of what `record_members` gives, as JSON Schema"""
