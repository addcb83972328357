"""What a question comes down to: branches, each about some records of one bucket. For threads.

For each bucket that can match there is one branch of tame records, which MongoDB decides, and, if
the question is about more than columns, one of wild records, which are decided here. What MongoDB
decides is asked of many buckets at once.

Words are looked up in blocks of records, which are few, whether a word is rare or common.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from hyperlog.errors import QueryError, StoreUnavailable
from hyperlog.store.evaluate import Predicate, Reading, predicate
from hyperlog.store.mongo.access import Access, Document, Documents
from hyperlog.store.mongo.documents import RECORD_FIELDS, record_of
from hyperlog.store.mongo.filters import EVERYTHING, NOTHING, Terms, filter_of, word_filter
from hyperlog.store.mongo.names import RECORDS, bucket_of, records_name, words_name
from hyperlog.store.query import Query
from hyperlog.store.records import StoredRecord

__all__ = [
    "BATCH",
    "Branch",
    "Branches",
    "Question",
    "SortedOut",
    "Stage",
    "columns_of",
    "in_parts",
]

BATCH: Final = 1000  # documents that MongoDB sends at a time
MAX_BLOCKS: Final = 5000  # more than that are not listed in a question: it reads everything
MAX_BUCKETS: Final = 500  # that one question is about
FEW: Final = 8  # of them are asked for their blocks one by one
BLOCKS: Final = 50  # that come at a time then
MAX_UNITED: Final = 50  # of them in one question to MongoDB
MAX_INT, MIN_INT = 2**63 - 1, -(2**63)

Stage: TypeAlias = dict[str, Any]
"""of an aggregation"""

_TAME: Final[Terms] = {"wild": {"$exists": False}}
_WILD: Final[Terms] = {"wild": True}


class Question:
    """One that is being answered."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Let it end soon. May be called in any thread."""
        self._cancelled.set()

    def check(self) -> None:
        """To be called from time to time in long work.

        Raises:
            StoreUnavailable: nobody waits for the answer any more.
        """
        if self._cancelled.is_set():
            raise StoreUnavailable("the question was withdrawn")

    def watched(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents, as long as somebody waits for the answer."""
        for number, document in enumerate(documents):
            if not number % 256:
                self.check()
            yield document


@dataclass(frozen=True, slots=True)
class Branch:
    """Some records of one bucket."""

    bucket: str
    terms: Terms
    decide: Predicate | None
    """about each record that the terms find; None if all of them match"""
    words: Terms | None
    """blocks that can hold a match; None for all"""
    hint: str | None

    def narrowed(self, terms: Terms) -> Branch:
        return replace(self, terms=_both(self.terms, terms))


@dataclass(frozen=True, slots=True)
class SortedOut:
    """The branches of a question, by what has to be done with them."""

    simple: list[Branch]
    """MongoDB decides them"""
    in_words: list[Branch]
    """so it does with these, in the blocks where words are"""
    undecided: list[Branch]


class Branches:
    """Makes branches of queries, and puts them to MongoDB. All raise what the driver raises."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._buckets: dict[str, str] = {}
        """by the names of collections that do not tell them"""

    def sorted_out(self, query: Query, *, bounded: bool = True) -> SortedOut:
        """The branches of a query, which has been checked.

        Raises:
            QueryError: `bounded`, and about too many buckets.
        """
        times = _times(query)
        words = word_filter(query.where)
        in_words = None if words is None else _both(words, _block_times(query))
        decide = None if query.where is None else predicate(query.where)
        tame: list[Branch] = []
        wild: list[Branch] = []
        buckets = 0
        for _, bucket in self.collections():
            found = filter_of(query.where, bucket)
            if found.columns == NOTHING:
                continue
            buckets += 1
            if bounded and buckets > MAX_BUCKETS:
                raise QueryError(
                    f"about more than {MAX_BUCKETS} buckets: name some, like bucket:cerco"
                )
            if not found.reads_line:
                tame.append(Branch(bucket, _both(found.terms, times), None, None, None))
                continue
            if found.terms != NOTHING:
                terms = _both(found.terms, times, _TAME)
                tame.append(Branch(bucket, terms, None if found.exact else decide, in_words, None))
            wild.append(Branch(bucket, _both(_WILD, found.columns, times), decide, None, None))
        return SortedOut(
            [one for one in tame if one.decide is None and one.words is None],
            [one for one in tame if one.decide is None and one.words is not None],
            [one for one in tame if one.decide is not None]
            + [replace(one, hint="wild") for one in self._not_empty(wild)],
        )

    def _not_empty(self, branches: Sequence[Branch]) -> list[Branch]:
        found: set[str] = set()
        for part in in_parts(branches):
            pipelines: list[list[Stage]] = [
                [
                    {"$match": one.terms},
                    {"$limit": 1},
                    {"$project": {"_id": 0, "bucket": {"$literal": one.bucket}}},
                ]
                for one in part
            ]
            found |= {one["bucket"] for one in self.united(part, pipelines)}
        return [one for one in branches if one.bucket in found]

    def collections(self) -> Iterator[tuple[str, str]]:
        """The names of all collections of records, and their buckets."""
        database = self.access.database()
        names = sorted(database.list_collection_names(filter={"name": {"$regex": f"^{RECORDS}"}}))
        for name in names:
            bucket = bucket_of(name) or self._buckets.get(name)
            if bucket is None:
                document = self.access.to_read(name).find_one({}, {"bucket": 1})
                if document is None:
                    continue
                bucket = self._buckets[name] = document["bucket"]
            yield name, bucket

    def in_blocks(self, question: Question, branches: Sequence[Branch]) -> list[Branch]:
        """The same branches, looking into their blocks alone unless these are too many."""
        names: dict[str, list[Any]] = {branch.bucket: [] for branch in branches}
        for block in question.watched(self.blocks(branches, "last", 1)):
            names[block["bucket"]].append(block["_id"])
        return [
            replace(one.narrowed({"block": {"$in": names[one.bucket]}}), hint="block")
            if len(names[one.bucket]) <= MAX_BLOCKS
            else one
            for one in branches
            if names[one.bucket]
        ]

    def decided(self, question: Question, branch: Branch) -> Iterator[StoredRecord]:
        cursor = self.records(branch).find(
            branch.terms, RECORD_FIELDS, batch_size=BATCH, hint=branch.hint
        )
        with cursor:
            for document in question.watched(cursor):
                record = record_of(document)
                if branch.decide is None or branch.decide(Reading(record)):
                    yield record

    def united(
        self,
        branches: Sequence[Branch],
        pipelines: Sequence[Sequence[Stage]],
        tail: Sequence[Stage] = (),
        names: Sequence[str] = (),
        *,
        batch: int = BATCH,
    ) -> Iterator[Document]:
        """What the pipelines of the branches give together, by way of `tail`, in one question."""
        if not branches:
            return
        names = names or [records_name(one.bucket) for one in branches]
        united: list[Stage] = list(pipelines[0])
        for name, pipeline in zip(names[1:], pipelines[1:], strict=True):
            united.append({"$unionWith": {"coll": name, "pipeline": pipeline}})
        options: dict[str, Any] = {}
        if len(branches) == 1 and branches[0].hint is not None:
            options["hint"] = branches[0].hint
        with self.access.to_read(names[0]).aggregate(
            [*united, *tail], allowDiskUse=True, batchSize=batch, **options
        ) as cursor:
            yield from cursor

    def records(self, branch: Branch) -> Documents:
        return self.access.to_read(records_name(branch.bucket))

    def blocks(self, branches: Sequence[Branch], edge: str, direction: int) -> Iterator[Document]:
        """The blocks that can hold a match, by their edges.

        They are read as far as they are taken, where that is known to be by an index.
        """
        streams = []
        few = len(branches) <= FEW
        for part in ([one] for one in branches) if few else in_parts(branches):
            pipelines: list[list[Stage]] = [
                [
                    {"$match": one.words},
                    {"$project": {edge: 1, "records": 1, "bucket": {"$literal": one.bucket}}},
                ]
                for one in part
            ]
            names = [words_name(one.bucket) for one in part]
            sort = {"$sort": {edge: direction}}
            batch = BLOCKS if few else BATCH
            streams.append(self.united(part, pipelines, [sort], names, batch=batch))
        return heapq.merge(*streams, key=lambda block: block[edge] * direction)


# -- terms


def in_parts(branches: Iterable[Branch]) -> Iterator[list[Branch]]:
    """As many as go into one question; those with a hint are alone, since it is for one of them."""
    all_of = list(branches)
    yield from ([one] for one in all_of if one.hint is not None)
    left = [one for one in all_of if one.hint is None]
    for start in range(0, len(left), MAX_UNITED):
        yield left[start : start + MAX_UNITED]


def _both(*terms: Terms) -> Terms:
    given = [one for one in terms if one != EVERYTHING]
    return EVERYTHING if not given else given[0] if len(given) == 1 else {"$and": given}


def columns_of(terms: Terms) -> set[str]:
    """The fields that terms are about."""
    found: set[str] = set()
    for name, value in terms.items():
        if name.startswith("$"):
            for one in value:
                found |= columns_of(one)
        else:
            found.add(name)
    return found


def _clamped(time: int) -> int:
    return min(max(time, MIN_INT), MAX_INT)


def _times(query: Query) -> Terms:
    bounds = {}
    if query.since is not None:
        bounds["$gte"] = _clamped(query.since)
    if query.until is not None:
        bounds["$lt"] = _clamped(query.until)
    return {"time": bounds} if bounds else EVERYTHING


def _block_times(query: Query) -> Terms:
    terms: Terms = {}
    if query.since is not None:
        terms["last"] = {"$gte": _clamped(query.since)}
    if query.until is not None:
        terms["first"] = {"$lt": _clamped(query.until)}
    return terms
