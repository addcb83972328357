"""Records as documents, and back.

    _id, server, … kind, message    the record's own; what is None is left out
    sequence    with `time`, the order of records: within a millisecond as they arrived
    received    the time as a date, for people and for indexes that expire
    body        the line as it is
    text        `searched_text`
    json        the line's members as a sub-document
    block       which document of the words collection holds this record's words
    wild        true if MongoDB cannot decide all questions as `evaluate` does

MongoDB's paths and `evaluate`'s agree on most JSON, not on all: on empty names, arrays in arrays,
items with numbers for names, depths that BSON has not. And a document has a size. Such records are
*wild*: they have no `text` and no `json`, and whoever asks decides them by their line. So no member
name and no value can make an answer wrong, or a record unfit to be stored.

In `json`, names with dots have DOT in their place, and a first `$` is DOLLAR: a path never has
these characters for anything else.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

from bson import DatetimeMS, ObjectId
from msgspec import UNSET, UnsetType

from hyperlog.store.evaluate import plain
from hyperlog.store.mongo.access import Document
from hyperlog.store.records import StoredRecord, decode_body
from hyperlog.store.words import SEPARATOR, searched_text

__all__ = [
    "DOLLAR",
    "DOT",
    "RECORD_FIELDS",
    "document_of",
    "real_words",
    "record_of",
]

DOT: Final = "\uff0e"
DOLLAR: Final = "\uff04"
MAX_DEPTH: Final = 64  # of containers in `json`; BSON has 180
MAX_BODY: Final = 1024 * 1024  # bytes of a line that is kept as it is, and with its text and JSON
MAX_TEXT: Final = 4 * 1024 * 1024  # characters
MAX_NAMES: Final = 16384  # that are remembered
MAX_NAME: Final = 64  # characters of those

# What makes a StoredRecord; nothing else is asked for.
RECORD_FIELDS: Final = dict.fromkeys(
    (*(name for name in StoredRecord.__struct_fields__ if name != "id"), "sequence", "packed"), 1
)

_names: dict[str, str | None] = {}


def document_of(record: StoredRecord, sequence: int, block: ObjectId, words: set[str]) -> Document:
    """The document of a record, whose words are added to those of its block."""
    body = record.body
    document: Document = {
        "_id": record.id,
        "server": record.server,
        "source": record.source,
        "bucket": record.bucket,
        "instance": record.instance,
        "time": record.time,
        "level": record.level,
        "kind": record.kind,
        "message": record.message,
        "sequence": sequence,
        "received": DatetimeMS(record.time),
        "block": block,
        "body": body,
    }
    for name in ("key", "session", "number", "client_time"):
        value = getattr(record, name)
        if value is not None:
            document[name] = value
    if len(body) > MAX_BODY:
        document["body"] = zlib.compress(body, 1)
        document["packed"] = document["wild"] = True
        return document
    members = decode_body(body)
    json = _object(members, 0)
    text = "" if json is UNSET else searched_text(record, members)
    if json is UNSET or len(text) > MAX_TEXT:
        document["wild"] = True
    else:
        document["json"] = json
        document["text"] = text
        words.update(text.split(" "))
    return document


def record_of(document: Document) -> StoredRecord:
    """The record that `document_of` made this of."""
    body = document["body"]
    if "packed" in document:
        body = zlib.decompress(body)
    get = document.get
    number, client_time = get("number"), get("client_time")
    return StoredRecord(
        document["_id"],
        document["server"],
        document["source"],
        document["bucket"],
        document["instance"],
        get("key"),
        get("session"),
        None if number is None else int(number),  # bson.Int64 otherwise
        int(document["time"]),
        None if client_time is None else int(client_time),
        document["level"],
        document["kind"],
        document["message"],
        body,
    )


def real_words(words: set[str]) -> list[str]:
    """What of the pieces of texts between blanks are words."""
    return sorted(words - {"", SEPARATOR})


# -- JSON that MongoDB sees as `evaluate` does; UNSET for what it does not


def _object(
    members: dict[str, Any], depth: int, *, is_item: bool = False
) -> dict[str, Any] | UnsetType:
    if depth > MAX_DEPTH:
        return UNSET
    found: dict[str, Any] = {}
    for name, value in members.items():
        safe = _names.get(name, UNSET)
        if safe is UNSET:
            safe = _remembered(name)
        # A path that comes to an array goes on with digits in the item of that index alone; in
        # MongoDB also in items that have such a name.
        if safe is None or (is_item and name[0] in "0123456789"):
            return UNSET
        kind = type(value)
        if kind is dict or kind is list:
            below = _array(value, depth + 1) if kind is list else _object(value, depth + 1)
            if below is UNSET:
                return UNSET
            value = below
        elif kind is int or kind is float:
            value = plain(value)
        found[safe] = value
    return found


def _array(items: list[Any], depth: int) -> list[Any] | UnsetType:
    found: list[Any] = []
    for value in items:
        kind = type(value)
        if kind is list:
            return UNSET
        if kind is dict:
            below = _object(value, depth + 1, is_item=True)
            if below is UNSET:
                return UNSET
            value = below
        elif kind is int or kind is float:
            value = plain(value)
        found.append(value)
    return found


def _remembered(name: str) -> str | None:
    safe = _safe_name(name)
    if len(name) <= MAX_NAME:
        if len(_names) >= MAX_NAMES:
            _names.clear()
        _names[name] = safe
    return safe


def _safe_name(name: str) -> str | None:
    """The name as MongoDB has it in a path; None if it cannot have it."""
    if not all(name.split(".")) or "\0" in name or DOT in name or DOLLAR in name:
        return None
    if "$" in name:
        name = ".".join(
            DOLLAR + part[1:] if part.startswith("$") else part for part in name.split(".")
        )
    return name.replace(".", DOT)
