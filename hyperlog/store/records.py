"""A record as the stores hold it, made from one line of a log file.

Every line becomes one record, but for those that only help the server to read its files. What is
not in the line follows from the file: its name is the sender's public key, or, for a sender without
one, stands for its application and instance.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from msgspec import Struct

__all__ = ["DEFAULT_BUCKET", "LEVELS", "LEVEL_NAMES", "Kind", "StoredRecord"]

DEFAULT_BUCKET: Final = "default"
"""of senders that name no application"""

LEVELS: Final = {"TRACE": 5, "DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
"""numbers as in the logging module; traces of tracers are TRACE, notes INFO, gaps WARNING"""
LEVEL_NAMES: Final = {number: name for name, number in LEVELS.items()}

Kind: TypeAlias = Literal["trace", "log", "note", "gap"]


class StoredRecord(Struct, gc=False, frozen=True):
    """One record. Times are milliseconds since 1970."""

    id: str
    """stable: `<source>-<session>-<number>`; a note's is `<source>-note-<16 hex of its hash>`"""
    server: str
    """public key of the server that wrote it, hex"""
    source: str
    """64 hex digits, the name of its log file"""
    bucket: str
    """application"""
    instance: str
    """what the sender tells, or else the first 8 digits of `source`"""
    key: str | None
    """the sender's public key, hex; None if it came by other ways than the DHT"""
    session: str | None
    number: int | None
    """in the session; None for a note, the last of the numbers for a gap"""
    time: int
    """when the server received it"""
    client_time: int | None
    """when the sender made it, as it says"""
    level: int
    """one of LEVELS"""
    kind: Kind
    message: str
    """one line that tells what it is"""
    body: bytes
    """the line: a JSON object, without its newline"""
