"""Names of the collections: one of records and one of words for each bucket, and the positions.

An application may be called anything. In the name of its collections letters, digits, `_` and `-`
stand for themselves and all else is percent-encoded, so that neither `$`, NUL and `.` nor the
prefix `system.` can come about. Where that gets too long for MongoDB it is a hash; the records
themselves tell the bucket then.
"""

from __future__ import annotations

import hashlib
from typing import Final
from urllib.parse import unquote

__all__ = ["RECORDS", "WORDS", "bucket_of", "positions_name", "records_name", "words_name"]

RECORDS: Final = "records."
WORDS: Final = "words."
POSITIONS: Final = "positions."
HASHED: Final = "~"  # before a hash; encoded where it stands in a bucket's name
MAX_ENCODED: Final = 120  # bytes; MongoDB: 255 with the database's name


def records_name(bucket: str) -> str:
    """The collection of a bucket's records."""
    return RECORDS + _encoded(bucket)


def words_name(bucket: str) -> str:
    """The collection that tells which blocks of a bucket's records hold which words."""
    return WORDS + _encoded(bucket)


def positions_name(server: str) -> str:
    """The collection of how far a server's log files are held; `server` is its public key, hex."""
    return POSITIONS + server[:32]


def bucket_of(name: str) -> str | None:
    """The bucket of a collection of records; None if the name does not tell."""
    encoded = name.removeprefix(RECORDS)
    return None if encoded.startswith(HASHED) else unquote(encoded)


def _encoded(bucket: str) -> str:
    encoded = "".join(
        char
        if char.isalnum() or char in "_-"
        else "".join(f"%{byte:02X}" for byte in char.encode())
        for char in bucket
    )
    if len(encoded.encode()) <= MAX_ENCODED:
        return encoded
    return HASHED + hashlib.blake2b(bucket.encode(), digest_size=20).hexdigest()
