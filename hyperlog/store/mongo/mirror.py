"""Copies records into MongoDB: what a follower feeds, and what it goes on from.

Records of a bucket are written in blocks. For each block a document of the words in it comes first,
then the records, and how far the log files are held last of all; each counts once most members of
the replica set have it on disk. So whatever breaks in between, the follower brings records again
that are there already: MongoDB knows them by their ids and keeps the first.

An index over the words of every record would take two thirds of the time of an insert. One over
those of a block has an entry for each word once, and leads to few records all the same.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import bson
from bson import DatetimeMS, ObjectId
from bson.errors import BSONError
from pymongo import IndexModel, ReplaceOne
from pymongo.errors import BulkWriteError

from hyperlog.store.follow import Position
from hyperlog.store.mongo.access import DUPLICATE_KEY, Access, Document
from hyperlog.store.mongo.documents import document_of, real_words
from hyperlog.store.mongo.names import RECORDS, WORDS, positions_name, records_name, words_name
from hyperlog.store.records import StoredRecord

__all__ = ["Mirror"]

_Numbered: TypeAlias = tuple[int, StoredRecord]
"""with its sequence"""

BLOCK: Final = 500  # records
BLOCK_SIZE: Final = 1024 * 1024  # bytes of lines
WRITERS: Final = 2  # blocks on their way; MongoDB writes each on one core
SLICE: Final = 32  # records made into documents before others get the interpreter, a ms or two
WRITE_TIMEOUT: Final = 10.0  # s for a block; twice what the election of a primary takes
OPEN_TIMEOUT: Final = 30.0
INDEX_TIMEOUT: Final = 600.0  # s; on a bucket that has records already
COUNT_INTERVAL: Final = 60.0  # s between two looks at how much there is
TTL_INDEX: Final = "received"
OURS: Final = {"$regex": f"^({re.escape(RECORDS)}|{re.escape(WORDS)})"}

MAX_DOCUMENT: Final = 16 * 1024 * 1024  # bytes
UNFIT: Final = (BSONError, OverflowError, UnicodeError)

SERVER_BITS: Final = 12  # of a sequence, so that two servers hardly ever have the same
SEQUENCES_PER_SECOND: Final = 100_000  # more than MongoDB takes; 64 bits last for centuries

TIME: Final = (("time", 1), ("sequence", 1))
RECORD_INDEXES: Final = (
    IndexModel([*TIME], name="time"),
    IndexModel([("level", 1), *TIME], name="level"),
    IndexModel([("instance", 1), *TIME], name="instance"),
    IndexModel([("key", 1), *TIME], name="key"),
    IndexModel([("block", 1)], name="block"),
    IndexModel([("wild", 1), *TIME], name="wild", partialFilterExpression={"wild": True}),
)
WORD_INDEXES: Final = (IndexModel([("words", 1), ("last", -1)], name="words"),)


logger = logging.getLogger("hyperlog.store.mongo")


class Mirror:
    """A Destination; see there. Its public values may be read in any thread."""

    def __init__(
        self,
        access: Access,
        server: str,
        *,
        ttl: float | None = None,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        """`server` is the public key of the server whose log files are followed, hex. Records are
        removed `ttl` s after they were received, never if it is None. `breathe` is called between
        slices of work that keep the interpreter busy."""
        self.breathe = breathe
        self.records = 0
        """of all servers, as last counted"""
        self.bytes = 0
        self.is_open = False
        self.tried = threading.Event()
        """set once it is known whether MongoDB is there"""
        self._access = access
        self._positions = positions_name(server)
        self._ttl = None if ttl is None else round(ttl)
        self._ready: set[str] = set()
        self._server_bits = int(server[:16], 16) % (1 << SERVER_BITS)
        self._sequence = 0
        self._count_at = 0.0

    # -- life

    def open(self) -> list[Position]:
        """
        Raises:
            StoreUnavailable: MongoDB cannot be reached or refuses.
        """
        try:
            positions = self._open()
            self.is_open = True
        finally:
            self.tried.set()
        return positions

    def _open(self) -> list[Position]:
        self.close()
        with self._access.limited(OPEN_TIMEOUT, to_write=True):
            found = list(self._access.to_write(self._positions).find())
            self._count()
            names = self._access.database().list_collection_names(filter={"name": OURS})
        for name in names:
            self._index(name, ())  # to expire, or not, as is wanted now
        held = max((one["sequence"] for one in found), default=0)
        # What was written, but not held, before a crash has lower numbers, too.
        self._sequence = max(held, round(time.time() * SEQUENCES_PER_SECOND))
        return [
            Position(bytes.fromhex(one["source"]), one["file"], one["offset"], one["check"])
            for one in found
        ]

    def close(self) -> None:
        self.is_open = False
        self._ready.clear()

    # -- records

    def insert(self, records: Sequence[StoredRecord], positions: Sequence[Position]) -> int:
        """
        Raises:
            StoreUnavailable: not all of it is held; it may be brought again.
        """
        new = 0
        writing: deque[_Writing] = deque()
        try:
            numbered = [(self._next_sequence(), record) for record in records]
            for bucket, block in _blocks(numbered):
                self._make_ready(bucket)
                words, documents = self._made(block)
                if len(writing) >= WRITERS:
                    new += writing.popleft().result()
                writing.append(_Writing(partial(self._write, bucket, words, documents)))
            while writing:
                new += writing.popleft().result()
        finally:
            for one in writing:  # nothing goes on behind the caller's back
                one.join()
        self._hold(positions)
        self.records += new
        if not self.bytes:
            self.tidy()
        return new

    def _made(self, block: Sequence[_Numbered]) -> tuple[Document, list[Document]]:
        """The document of a block's words and those of its records."""
        name = ObjectId()
        words: set[str] = set()
        documents = []
        for start in range(0, len(block), SLICE):
            documents += [
                document_of(record, sequence, name, words)
                for sequence, record in block[start : start + SLICE]
            ]
            self.breathe()
        times = [record.time for _, record in block]
        return {
            "_id": name,
            "first": min(times),
            "last": max(times),
            "records": len(documents),
            "received": DatetimeMS(max(times)),
            "words": real_words(words),
        }, documents

    def _next_sequence(self) -> int:
        """Greater than all before. Those of different servers differ, else pages could not tell
        which of two records they ended with."""
        self._sequence += 1
        return self._sequence << SERVER_BITS | self._server_bits

    def _write(self, bucket: str, words: Document, documents: list[Document]) -> int:
        """In a thread of its own; how many of the records are new."""
        with self._access.limited(WRITE_TIMEOUT, to_write=True):
            blocks = self._access.to_write(words_name(bucket))
            blocks.insert_one(words)
            records = self._access.to_write(records_name(bucket))
            known = 0
            try:
                try:
                    records.insert_many(documents, ordered=False)
                except UNFIT:
                    documents = _fit(documents)
                    if documents:
                        records.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                details: Any = error.details or {}
                failures = details.get("writeErrors", [])
                known = sum(one["code"] == DUPLICATE_KEY for one in failures)
                if known < len(failures) or details.get("writeConcernErrors"):
                    raise
            if known == len(documents):
                blocks.delete_one({"_id": words["_id"]})
            return len(documents) - known

    # -- positions

    def _hold(self, positions: Sequence[Position]) -> None:
        if not positions:
            return
        changes = [
            ReplaceOne(
                {"_id": _position_id(one)},
                {
                    "source": one.source.hex(),
                    "file": one.file,
                    "offset": one.offset,
                    "check": one.check,
                    "sequence": self._sequence,
                },
                upsert=True,
            )
            for one in positions
        ]
        with self._access.limited(WRITE_TIMEOUT, to_write=True):
            self._access.to_write(self._positions).bulk_write(changes, ordered=False)

    def forget(self, positions: Sequence[Position]) -> None:
        names = [_position_id(one) for one in positions]
        with self._access.limited(WRITE_TIMEOUT, to_write=True):
            self._access.to_write(self._positions).delete_many({"_id": {"$in": names}})

    # -- collections

    def _make_ready(self, bucket: str) -> None:
        """Make what a bucket needs, once."""
        if bucket not in self._ready:
            self._index(records_name(bucket), RECORD_INDEXES)
            self._index(words_name(bucket), WORD_INDEXES)
            self._ready.add(bucket)

    def _index(self, name: str, indexes: Sequence[IndexModel]) -> None:
        with self._access.limited(INDEX_TIMEOUT, to_write=True):
            collection = self._access.to_write(name)
            present = collection.index_information()
            missing = [one for one in indexes if one.document["name"] not in present]
            # An index has its time to live for good: collMod would need rights beyond readWrite.
            ttl = present.get(TTL_INDEX, {}).get("expireAfterSeconds")
            if ttl is not None and ttl != self._ttl:
                collection.drop_index(TTL_INDEX)
                ttl = None
            if ttl is None and self._ttl is not None:
                missing.append(
                    IndexModel([("received", 1)], name=TTL_INDEX, expireAfterSeconds=self._ttl)
                )
            if missing:
                collection.create_indexes(missing)

    def tidy(self) -> bool:
        """Count what there is."""
        if not self.bytes or time.monotonic() >= self._count_at:
            with self._access.limited(OPEN_TIMEOUT, to_write=True):
                self._count()
        return False

    def _count(self) -> None:
        database = self._access.database()
        names = database.list_collection_names(filter={"name": {"$regex": f"^{RECORDS}"}})
        self.records = sum(database[name].estimated_document_count() for name in names)
        self.bytes = round(database.command("dbStats")["totalSize"])
        self._count_at = time.monotonic() + COUNT_INTERVAL


class _Writing(threading.Thread):
    """A block that is being written while the next one is made. Does not outlive the process."""

    def __init__(self, write: Callable[[], int]) -> None:
        super().__init__(name="hyperlog mongo writer", daemon=True)
        self._write = write
        self._new = 0
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._new = self._write()
        except Exception as error:  # of whoever waits for it
            self._error = error

    def result(self) -> int:
        self.join()
        if self._error is not None:
            raise self._error
        return self._new


def _blocks(numbered: Sequence[_Numbered]) -> Iterator[tuple[str, list[_Numbered]]]:
    by_bucket: dict[str, list[_Numbered]] = {}
    for one in numbered:
        by_bucket.setdefault(one[1].bucket, []).append(one)
    for bucket, group in by_bucket.items():
        block: list[_Numbered] = []
        size = 0
        for one in group:
            length = len(one[1].body)
            if block and (len(block) >= BLOCK or size + length > BLOCK_SIZE):
                yield bucket, block
                block, size = [], 0
            block.append(one)
            size += length
        yield bucket, block


def _fit(documents: Sequence[Document]) -> list[Document]:
    """Those that BSON can hold. None should be unfit, but if one were it would be in the way of all
    that come after it, for ever."""
    fit = []
    for document in documents:
        try:
            if len(bson.encode(document)) <= MAX_DOCUMENT:
                fit.append(document)
        except UNFIT:
            pass
    logger.error("records that MongoDB cannot hold: %d", len(documents) - len(fit))
    return fit


def _position_id(position: Position) -> str:
    return f"{position.source.hex()}:{position.file}"
