"""Looks up what is asked, in all collections that can hold some of it. For threads.

A question becomes *branches*: for each bucket that can match one of tame records, which MongoDB
decides, and, if it is about more than columns, one of wild records, which are decided here.

Words are looked up first. They lead to the blocks that may have what is wanted, the newest first,
and blocks are read until no other can hold anything newer: few, whether a word is rare or common.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from hyperlog.errors import QueryError, StoreUnavailable
from hyperlog.store.answers import Bin, Top
from hyperlog.store.evaluate import Predicate, Reading, field_values, plain, predicate, value_order
from hyperlog.store.levels import LEVEL_NAMES
from hyperlog.store.mongo.access import Access, Document, Documents
from hyperlog.store.mongo.documents import RECORD_FIELDS, record_of
from hyperlog.store.mongo.filters import (
    EVERYTHING,
    NOTHING,
    Paths,
    Terms,
    column_of,
    filter_of,
    paths_of,
    word_filter,
)
from hyperlog.store.mongo.names import RECORDS, bucket_of, records_name, words_name
from hyperlog.store.query import And, Has, Query, Scalar
from hyperlog.store.records import StoredRecord

__all__ = ["Order", "Place", "Question", "Reader"]

SEARCH_TIMEOUT: Final = 20.0  # s
COUNT_TIMEOUT: Final = 60.0  # s
BATCH: Final = 1000  # documents that MongoDB sends at a time
FIRST_BLOCKS: Final = 1000  # records in the blocks that are looked into first, then ever more
BLOCKS_FACTOR: Final = 4
MAX_BLOCKS: Final = 5000  # more than that are not listed in a question: it reads everything
MAX_BUCKETS: Final = 500  # that are looked into
MAX_UNITED: Final = 50  # of them in one question to MongoDB
MAX_BINS: Final = 10_000
MAX_VALUES: Final = 1_000_000  # different ones that are counted here
MAX_INT, MIN_INT = 2**63 - 1, -(2**63)
ALWAYS_THERE: Final = ("_id", "server", "source", "instance", "time", "level", "kind", "message")
INDEXED: Final[dict[str, Terms]] = {
    "level": {"$in": list(LEVEL_NAMES)},
    "instance": {"$gte": ""},
    "key": {"$gte": ""},
}
"""columns that have an index, and what is true of all their values"""
BACKWARDS: Final = {"newest": -1, "oldest": 1}

Order: TypeAlias = Literal["newest", "oldest"]
Place: TypeAlias = tuple[int, int]
"""of a record in the order of all: time and sequence"""

_Stage: TypeAlias = dict[str, Any]

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
        for number, document in enumerate(documents):
            if not number % 256:
                self.check()
            yield document


@dataclass(frozen=True, slots=True)
class _Branch:
    """Some records of one bucket."""

    bucket: str
    terms: Terms
    decide: Predicate | None
    """about each record that the terms find; None if all of them match"""
    words: Terms | None
    """blocks that can hold a match; None for all"""
    hint: str | None

    def narrowed(self, terms: Terms) -> _Branch:
        return replace(self, terms=_both(self.terms, terms))


class Reader:
    """The questions that a store is asked. All of them raise StoreUnavailable."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._buckets: dict[str, str] = {}
        """by the names of collections that do not tell them"""

    # -- records

    def search(
        self, question: Question, query: Query, limit: int, after: Place | None, order: Order
    ) -> tuple[list[StoredRecord], Place | None]:
        """At most `limit` records behind a place, and the last one's place if there are more."""
        count = limit + 1
        found: list[Document] = []

        def bounded(branch: _Branch) -> _Branch:
            if after is not None:
                branch = branch.narrowed(_behind(after, order))
            if len(found) == count:
                branch = branch.narrowed(_not_behind(_place(found[-1]), order))
            return branch

        with self._access.limited(SEARCH_TIMEOUT):
            simple, in_words, undecided = self._sorted_out(query)
            found = self._first(map(bounded, simple), count, order)
            found = self._first_in_words(question, map(bounded, in_words), found, count, order)
            for branch in map(bounded, undecided):
                found = _merged(found, self._first_decided(question, branch, count, order), order)
                del found[count:]
        records = [record_of(document) for document in found[:limit]]
        return records, _place(found[limit - 1]) if len(found) == count else None

    def get(self, id: str) -> StoredRecord | None:
        """The record of this id."""
        with self._access.limited(SEARCH_TIMEOUT):
            for name, _ in self._collections():
                document = self._access.to_read(name).find_one({"_id": id}, RECORD_FIELDS)
                if document is not None:
                    return record_of(document)
        return None

    def _first(self, branches: Iterable[_Branch], count: int, order: Order) -> list[Document]:
        """The first documents of some branches that MongoDB decides."""
        ordered: list[_Stage] = [{"$sort": _sort(order)}, {"$limit": count}]
        fields = {"$project": RECORD_FIELDS}
        found: list[Document] = []
        for part in _parts(branches):
            pipelines = [[{"$match": one.terms}, *ordered, fields] for one in part]
            found = _merged(found, self._united(part, pipelines, ordered), order)
        return found[:count]

    def _first_in_words(
        self,
        question: Question,
        branches: Iterable[_Branch],
        found: list[Document],
        count: int,
        order: Order,
    ) -> list[Document]:
        """The first of what has been found and of branches with words."""
        by_bucket = {branch.bucket: branch for branch in branches}
        edge, direction = ("last", -1) if order == "newest" else ("first", 1)
        blocks: dict[str, list[Any]] = {}
        records, wanted = 0, FIRST_BLOCKS

        def read() -> list[Document]:
            documents = found
            for bucket, names in blocks.items():
                branch = by_bucket[bucket].narrowed({"block": {"$in": names}})
                part = self._ordered(replace(branch, hint="block"), order, count)
                documents = _merged(documents, part, order)[:count]
            return documents

        for block in question.watched(self._blocks(list(by_bucket.values()), edge, direction)):
            if records >= wanted:
                found = read()
                blocks, records, wanted = {}, 0, wanted * BLOCKS_FACTOR
                if len(found) == count and (found[-1]["time"] - block[edge]) * direction < 0:
                    return found
            blocks.setdefault(block["bucket"], []).append(block["_id"])
            records += block["records"]
        return read()

    def _blocks(self, branches: Sequence[_Branch], edge: str, direction: int) -> Iterator[Document]:
        """The blocks that can hold a match, by their edges."""
        streams = []
        for part in _parts(branches):
            pipelines: list[list[_Stage]] = [
                [
                    {"$match": one.words},
                    {"$project": {edge: 1, "records": 1, "bucket": {"$literal": one.bucket}}},
                ]
                for one in part
            ]
            names = [words_name(one.bucket) for one in part]
            sort = {"$sort": {edge: direction}}
            streams.append(self._united(part, pipelines, [sort], names))
        return heapq.merge(*streams, key=lambda block: block[edge] * direction)

    def _first_decided(
        self, question: Question, branch: _Branch, count: int, order: Order
    ) -> list[Document]:
        assert branch.decide is not None
        found = []
        for document in question.watched(self._ordered(branch, order)):
            if branch.decide(Reading(record_of(document))):
                found.append(document)
                if len(found) == count:
                    break
        return found

    def _ordered(self, branch: _Branch, order: Order, count: int = 0) -> Iterator[Document]:
        cursor = self._records(branch).find(
            branch.terms,
            RECORD_FIELDS,
            sort=_sort(order),
            limit=count,
            batch_size=BATCH,
            hint=branch.hint,
            allow_disk_use=True,
        )
        with cursor:
            yield from cursor

    # -- counts

    def count(self, question: Question, query: Query) -> int:
        """How many match."""
        with self._access.limited(COUNT_TIMEOUT):
            return sum(self._counts(question, query).values())

    def _counts(self, question: Question, query: Query) -> Counter[str]:
        """By bucket."""
        counts: Counter[str] = Counter()
        simple, in_words, undecided = self._sorted_out(query)
        for branch in undecided:
            for _ in self._decided(question, branch):
                counts[branch.bucket] += 1
        for part in _parts([*simple, *self._in_blocks(question, in_words)]):
            pipelines: list[list[_Stage]] = [
                [
                    {"$match": one.terms},
                    {"$group": {"_id": {"$literal": one.bucket}, "count": {"$sum": 1}}},
                ]
                for one in part
            ]
            for found in self._united(part, pipelines):
                counts[found["_id"]] += found["count"]
        return counts

    def histogram(self, question: Question, query: Query, step: int) -> list[Bin]:
        """Counts by time and level.

        Raises:
            QueryError: too many bins.
        """
        bins: dict[int, Counter[int]] = {}
        with self._access.limited(COUNT_TIMEOUT):
            for start, level, count in self._bins(question, query, step):
                bins.setdefault(start, Counter())[level] += count
                if len(bins) > MAX_BINS:
                    raise QueryError(
                        f"more than {MAX_BINS} bins: ask for longer ones, or a shorter time"
                    )
        return [Bin(start, dict(counts)) for start, counts in sorted(bins.items())]

    def _bins(self, question: Question, query: Query, step: int) -> Iterator[tuple[int, int, int]]:
        simple, in_words, undecided = self._sorted_out(query)
        for branch in undecided:
            for record in self._decided(question, branch):
                yield record.time - record.time % step, record.level, 1
        # All that some questions are about is in the index by level and time.
        levels = {"level": INDEXED["level"]}
        simple = [
            one.narrowed(levels) if _columns(one.terms) <= {"level", "time"} else one
            for one in simple
        ]
        start = {"$subtract": ["$time", {"$mod": ["$time", step]}]}
        group = {"_id": {"start": start, "level": "$level"}, "count": {"$sum": 1}}
        for part in _parts([*simple, *self._in_blocks(question, in_words)]):
            pipelines = [[{"$match": one.terms}, {"$group": group}] for one in part]
            for found in question.watched(self._united(part, pipelines)):
                yield int(found["_id"]["start"]), found["_id"]["level"], found["count"]

    # -- values

    def top(self, question: Question, query: Query, field: str, limit: int) -> Top:
        """The most frequent values of a field.

        Raises:
            QueryError: it has too many different ones among wild records.
        """
        with self._access.limited(COUNT_TIMEOUT):
            if field == "bucket":
                counts = self._counts(question, query)
                ranked = sorted(counts.items(), key=lambda item: value_order(*item))
                return Top([*ranked[:limit]], len(counts), counts.total())
            column = column_of(field)
            paths = Paths([column], True, False) if column else paths_of(field)
            if column not in ALWAYS_THERE:
                having = Has(field)
                where = having if query.where is None else And((query.where, having))
                query = replace(query, where=where)
            simple, in_words, read = self._sorted_out(query)
            if column in INDEXED:
                # Says nothing new, but lets MongoDB read the index alone.
                values_in_index = {column: INDEXED[column]}
                simple = [
                    one.narrowed(values_in_index)
                    if _columns(one.terms) <= {column, "time"}
                    else one
                    for one in simple
                ]
            asked = [*simple, *self._in_blocks(question, in_words)]
            if not paths.exact or paths.has_index:
                read, asked = [*read, *asked], []
            values, records = self._counted(question, read, field)
            distinct = 0

            def counted() -> Iterator[tuple[Scalar, int]]:
                nonlocal distinct, records
                for value, count in self._grouped(question, asked, paths):
                    distinct += 1
                    records += count if column else 0
                    yield value, count + values.pop((type(value), value), 0)
                for (_, value), count in values.items():
                    distinct += 1
                    yield value, count

            top = heapq.nsmallest(limit, counted(), key=lambda item: value_order(*item))
            if column is None:  # what is an array has many values, and an object none
                for part in _parts(asked):
                    pipelines: list[list[_Stage]] = [
                        [{"$match": one.terms}, {"$count": "count"}] for one in part
                    ]
                    records += sum(one["count"] for one in self._united(part, pipelines))
            return Top(top, distinct, records)

    def _counted(
        self, question: Question, branches: Sequence[_Branch], field: str
    ) -> tuple[Counter[tuple[type, Scalar]], int]:
        """By type and value, and how many records; what MongoDB cannot count."""
        values: Counter[tuple[type, Scalar]] = Counter()
        records = 0
        for branch in branches:
            for record in self._decided(question, branch):
                records += 1
                values.update((type(value), value) for value in field_values(record, field))
                if len(values) > MAX_VALUES:
                    raise QueryError(f"{field} has more than {MAX_VALUES} different values")
        return values, records

    def _grouped(
        self, question: Question, branches: Sequence[_Branch], paths: Paths
    ) -> Iterator[tuple[Scalar, int]]:
        if not branches or not paths.paths:
            return
        pipelines = [[{"$match": one.terms}, *_values_of(paths)] for one in branches]
        group: _Stage = {"_id": "$value", "count": {"$sum": 1}}
        if not _is_column(paths):
            # Doubles and integers that are equal are one value for MongoDB.
            is_double = {"$eq": [{"$type": "$value"}, "double"]}
            group["_id"] = {"value": "$value", "double": is_double}
        for found in question.watched(self._united(branches, pipelines, [{"$group": group}])):
            value = found["_id"] if _is_column(paths) else found["_id"]["value"]
            yield _own(value), found["count"]

    # -- what to look into

    def _sorted_out(self, query: Query) -> tuple[list[_Branch], list[_Branch], list[_Branch]]:
        """Branches that MongoDB decides, those of them that are about words, and others."""
        times = _times(query)
        words = word_filter(query.where)
        in_words = None if words is None else _both(words, _block_times(query))
        decide = None if query.where is None else predicate(query.where)
        tame: list[_Branch] = []
        wild: list[_Branch] = []
        for _, bucket in self._collections():
            found = filter_of(query.where, bucket)
            if found.columns == NOTHING:
                continue
            if not found.reads_line:
                tame.append(_Branch(bucket, _both(found.terms, times), None, None, None))
                continue
            if found.terms != NOTHING:
                terms = _both(found.terms, times, _TAME)
                tame.append(_Branch(bucket, terms, None if found.exact else decide, in_words, None))
            wild.append(_Branch(bucket, _both(_WILD, found.columns, times), decide, None, "wild"))
        return (
            [one for one in tame if one.decide is None and one.words is None],
            [one for one in tame if one.decide is None and one.words is not None],
            [one for one in tame if one.decide is not None] + self._not_empty(wild),
        )

    def _not_empty(self, branches: Sequence[_Branch]) -> list[_Branch]:
        found: set[str] = set()
        for part in _parts(branches):
            pipelines: list[list[_Stage]] = [
                [
                    {"$match": one.terms},
                    {"$limit": 1},
                    {"$project": {"_id": 0, "bucket": {"$literal": one.bucket}}},
                ]
                for one in part
            ]
            found |= {one["bucket"] for one in self._united(part, pipelines)}
        return [one for one in branches if one.bucket in found]

    def _collections(self) -> Iterator[tuple[str, str]]:
        """The names of all collections of records, and their buckets."""
        database = self._access.database()
        names = sorted(database.list_collection_names(filter={"name": {"$regex": f"^{RECORDS}"}}))
        if len(names) > MAX_BUCKETS:
            raise QueryError(f"more than {MAX_BUCKETS} buckets: MongoDB cannot be asked about all")
        for name in names:
            bucket = bucket_of(name) or self._buckets.get(name)
            if bucket is None:
                document = self._access.to_read(name).find_one({}, {"bucket": 1})
                if document is None:
                    continue
                bucket = self._buckets[name] = document["bucket"]
            yield name, bucket

    def _in_blocks(self, question: Question, branches: Sequence[_Branch]) -> list[_Branch]:
        """The same branches, looking into their blocks alone unless these are too many."""
        names: dict[str, list[Any]] = {branch.bucket: [] for branch in branches}
        for block in question.watched(self._blocks(branches, "last", 1)):
            names[block["bucket"]].append(block["_id"])
        return [
            one.narrowed({"block": {"$in": names[one.bucket]}})
            if len(names[one.bucket]) <= MAX_BLOCKS
            else one
            for one in branches
            if names[one.bucket]
        ]

    def _decided(self, question: Question, branch: _Branch) -> Iterator[StoredRecord]:
        cursor = self._records(branch).find(
            branch.terms, RECORD_FIELDS, batch_size=BATCH, hint=branch.hint
        )
        with cursor:
            for document in question.watched(cursor):
                record = record_of(document)
                if branch.decide is None or branch.decide(Reading(record)):
                    yield record

    def _united(
        self,
        branches: Sequence[_Branch],
        pipelines: Sequence[Sequence[_Stage]],
        tail: Sequence[_Stage] = (),
        names: Sequence[str] = (),
    ) -> Iterator[Document]:
        """What the pipelines of the branches give together, by way of `tail`, in one question."""
        if not branches:
            return
        names = names or [records_name(one.bucket) for one in branches]
        united: list[_Stage] = list(pipelines[0])
        for name, pipeline in zip(names[1:], pipelines[1:], strict=True):
            united.append({"$unionWith": {"coll": name, "pipeline": pipeline}})
        collection = self._access.to_read(names[0])
        with collection.aggregate([*united, *tail], allowDiskUse=True, batchSize=BATCH) as cursor:
            yield from cursor

    def _records(self, branch: _Branch) -> Documents:
        return self._access.to_read(records_name(branch.bucket))


# -- terms


def _place(document: Document) -> Place:
    return int(document["time"]), int(document["sequence"])


def _sort(order: Order) -> dict[str, int]:
    return {"time": BACKWARDS[order], "sequence": BACKWARDS[order]}


def _merged(found: list[Document], more: Iterable[Document], order: Order) -> list[Document]:
    return sorted([*found, *more], key=_place, reverse=order == "newest")


def _parts(branches: Iterable[_Branch]) -> Iterator[list[_Branch]]:
    """As many as go into one question."""
    left = list(branches)
    for start in range(0, len(left), MAX_UNITED):
        yield left[start : start + MAX_UNITED]


def _both(*terms: Terms) -> Terms:
    given = [one for one in terms if one != EVERYTHING]
    return EVERYTHING if not given else given[0] if len(given) == 1 else {"$and": given}


def _columns(terms: Terms) -> set[str]:
    """The fields that terms are about."""
    found: set[str] = set()
    for name, value in terms.items():
        if name.startswith("$"):
            for one in value:
                found |= _columns(one)
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


def _behind(place: Place, order: Order) -> Terms:
    """What comes after a place in the order."""
    time, sequence = place
    beyond, bound = ("$gte", "$lte") if order == "newest" else ("$lte", "$gte")
    return {"time": {bound: time}, "$nor": [{"time": time, "sequence": {beyond: sequence}}]}


def _not_behind(place: Place, order: Order) -> Terms:
    return {"time": {"$gte" if order == "newest" else "$lte": place[0]}}


def _own(value: Any) -> Scalar:  # noqa: ANN401 - a value of BSON
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return plain(int(value) if isinstance(value, int) else value)  # not bson.Int64


def _is_column(paths: Paths) -> bool:
    return not paths.paths[0].startswith("json.")


def _values_of(paths: Paths) -> list[_Stage]:
    """Stages that make of each record a document for each `value` at the paths."""
    if _is_column(paths):
        return [{"$project": {"_id": 0, "value": f"${paths.paths[0]}"}}]
    values = [f"${path}" for path in paths.paths]
    value: Any = values[0]
    if len(values) > 1:
        value = {"$concatArrays": [_as_array(one) for one in values]}
    stages: list[_Stage] = [{"$project": {"_id": 0, "value": value}}]
    # An array of arrays comes of each array on the way, and of several ways.
    unwind = {"$unwind": {"path": "$value", "preserveNullAndEmptyArrays": True}}
    stages += [unwind] * (paths.paths[0].count(".") + (len(values) > 1))
    stages.append({"$match": {"value": {"$exists": True, "$not": {"$type": "object"}}}})
    return stages


def _as_array(value: str) -> Any:  # noqa: ANN401 - an expression
    missing = {"$eq": [{"$type": value}, "missing"]}
    several = {"$cond": [missing, [], [value]]}
    return {"$cond": [{"$isArray": value}, value, several]}
