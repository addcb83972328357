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
from collections.abc import Iterator, Sequence
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
FIRST_BLOCKS: Final = 4000  # records in the blocks that are looked into first, then ever more
BLOCKS_FACTOR: Final = 4
MAX_BLOCKS: Final = 5000  # more than that are not listed in a question: it reads everything
MAX_BUCKETS: Final = 500  # in one question
MAX_BINS: Final = 10_000
MAX_VALUES: Final = 1_000_000  # different ones that are counted here
MAX_INT, MIN_INT = 2**63 - 1, -(2**63)
BACKWARDS: Final = {"newest": -1, "oldest": 1}

Order: TypeAlias = Literal["newest", "oldest"]
Place: TypeAlias = tuple[int, int]
"""of a record in the order of all: time and sequence"""

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
        backwards = order == "newest"
        found: list[Document] = []
        with self._access.limited(SEARCH_TIMEOUT):
            for branch in self._branches(query):
                if after is not None:
                    branch = branch.narrowed(_behind(after, order))
                if len(found) > limit:
                    branch = branch.narrowed(_not_behind(_place(found[-1]), order))
                found += self._first(question, branch, limit + 1, order)
                found.sort(key=_place, reverse=backwards)
                del found[limit + 1 :]
        records = [record_of(document) for document in found[:limit]]
        return records, _place(found[limit - 1]) if len(found) > limit else None

    def get(self, id: str) -> StoredRecord | None:
        """The record of this id."""
        with self._access.limited(SEARCH_TIMEOUT):
            for name, _ in self._collections():
                document = self._access.to_read(name).find_one({"_id": id}, RECORD_FIELDS)
                if document is not None:
                    return record_of(document)
        return None

    def _first(
        self, question: Question, branch: _Branch, count: int, order: Order
    ) -> list[Document]:
        """The first documents of a branch."""
        if branch.decide is None and branch.words is not None:
            return self._first_of_blocks(question, branch, count, order)
        found = []
        for document in question.watched(self._ordered(branch, order, count)):
            if branch.decide is None or branch.decide(Reading(record_of(document))):
                found.append(document)
                if len(found) == count:
                    break
        return found

    def _ordered(self, branch: _Branch, order: Order, count: int = 0) -> Iterator[Document]:
        direction = BACKWARDS[order]
        cursor = self._records(branch).find(
            branch.terms,
            RECORD_FIELDS,
            sort=[("time", direction), ("sequence", direction)],
            limit=count if branch.decide is None else 0,
            batch_size=min(count, BATCH),
            allow_disk_use=True,
        )
        with cursor:
            yield from cursor if branch.hint is None else cursor.hint(branch.hint)

    def _first_of_blocks(
        self, question: Question, branch: _Branch, count: int, order: Order
    ) -> list[Document]:
        found: list[Document] = []
        edge, direction = ("last", -1) if order == "newest" else ("first", 1)
        blocks = self._access.to_read(words_name(branch.bucket)).find(
            branch.words, {edge: 1, "records": 1}, sort=[(edge, direction)], allow_disk_use=True
        )
        names: list[Any] = []
        records, wanted = 0, FIRST_BLOCKS
        with blocks:
            for block in question.watched(blocks):
                if records >= wanted:
                    found = self._with_blocks(branch, names, found, count, order)
                    names, records, wanted = [], 0, wanted * BLOCKS_FACTOR
                    if len(found) == count and (found[-1]["time"] - block[edge]) * direction < 0:
                        return found
                names.append(block["_id"])
                records += block["records"]
        return self._with_blocks(branch, names, found, count, order)

    def _with_blocks(
        self, branch: _Branch, names: list[Any], found: list[Document], count: int, order: Order
    ) -> list[Document]:
        if not names:
            return found
        only = replace(branch.narrowed({"block": {"$in": names}}), hint="block")
        found += self._ordered(only, order, count)
        found.sort(key=_place, reverse=order == "newest")
        return found[:count]

    # -- counts

    def count(self, question: Question, query: Query) -> int:
        """How many match."""
        with self._access.limited(COUNT_TIMEOUT):
            return sum(self._count(question, branch) for branch in self._branches(query))

    def _count(self, question: Question, branch: _Branch) -> int:
        if branch.decide is not None:
            return sum(1 for _ in self._decided(question, branch))
        branch = self._in_blocks(question, branch)
        return self._records(branch).count_documents(branch.terms)

    def histogram(self, question: Question, query: Query, step: int) -> list[Bin]:
        """Counts by time and level.

        Raises:
            QueryError: too many bins.
        """
        bins: dict[int, Counter[int]] = {}
        with self._access.limited(COUNT_TIMEOUT):
            for branch in self._branches(query):
                for start, level, count in self._bins(question, branch, step):
                    bins.setdefault(start, Counter())[level] += count
                    if len(bins) > MAX_BINS:
                        raise QueryError(
                            f"more than {MAX_BINS} bins: ask for longer ones, or a shorter time"
                        )
        return [Bin(start, dict(counts)) for start, counts in sorted(bins.items())]

    def _bins(
        self, question: Question, branch: _Branch, step: int
    ) -> Iterator[tuple[int, int, int]]:
        if branch.decide is not None:
            for record in self._decided(question, branch):
                yield record.time - record.time % step, record.level, 1
            return
        branch = self._in_blocks(question, branch)
        if _columns(branch.terms) <= {"level", "time"}:
            # All of it is in this index, and all levels make one range of times each.
            branch = replace(branch.narrowed({"level": {"$in": list(LEVEL_NAMES)}}), hint="level")
        start = {"$subtract": ["$time", {"$mod": ["$time", step]}]}
        group = {"_id": {"start": start, "level": "$level"}, "count": {"$sum": 1}}
        for found in self._aggregated(branch, [{"$match": branch.terms}, {"$group": group}]):
            yield int(found["_id"]["start"]), found["_id"]["level"], found["count"]

    # -- values

    def top(self, question: Question, query: Query, field: str, limit: int) -> Top:
        """The most frequent values of a field.

        Raises:
            QueryError: it has too many different ones among wild records.
        """
        with self._access.limited(COUNT_TIMEOUT):
            if field == "bucket":
                return self._top_buckets(question, query, limit)
            having = Has(field)
            where = having if query.where is None else And((query.where, having))
            branches = list(self._branches(replace(query, where=where)))
            column = column_of(field)
            paths = Paths([column], True, False) if column else paths_of(field)
            can_ask = paths.exact and not paths.has_index
            asked = [one for one in branches if can_ask and one.decide is None]
            read = [one for one in branches if not can_ask or one.decide is not None]
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
                records += sum(self._count(question, branch) for branch in asked)
            return Top(top, distinct, records)

    def _top_buckets(self, question: Question, query: Query, limit: int) -> Top:
        counts: Counter[str] = Counter()
        for branch in self._branches(query):
            counts[branch.bucket] += self._count(question, branch)
        found: list[tuple[Scalar, int]] = [(one, count) for one, count in counts.items() if count]
        found.sort(key=lambda item: value_order(*item))
        return Top(found[:limit], len(found), counts.total())

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
        pipelines = []
        for branch in branches:
            branch = self._in_blocks(question, branch)
            pipelines.append([{"$match": branch.terms}, *_values_of(paths)])
        first, *others = pipelines
        for branch, pipeline in zip(branches[1:], others, strict=True):
            name = records_name(branch.bucket)
            first.append({"$unionWith": {"coll": name, "pipeline": pipeline}})
        group: dict[str, Any] = {"_id": "$value", "count": {"$sum": 1}}
        if not _is_column(paths):
            # Doubles and integers that are equal are one value for MongoDB.
            is_double = {"$eq": [{"$type": "$value"}, "double"]}
            group["_id"] = {"value": "$value", "double": is_double}
        first.append({"$group": group})
        for found in question.watched(self._aggregated(branches[0], first)):
            value = found["_id"] if _is_column(paths) else found["_id"]["value"]
            yield _own(value), found["count"]

    # -- what to look into

    def _branches(self, query: Query) -> Iterator[_Branch]:
        times = _times(query)
        words = word_filter(query.where)
        in_words = None if words is None else _both(words, _block_times(query))
        decide = None if query.where is None else predicate(query.where)
        for _, bucket in self._collections():
            found = filter_of(query.where, bucket)
            if found.columns == NOTHING:
                continue
            if not found.reads_line:
                yield _Branch(bucket, _both(found.terms, times), None, None, None)
                continue
            if found.terms != NOTHING:
                terms = _both(found.terms, times, _TAME)
                undecided = None if found.exact else decide
                yield _Branch(bucket, terms, undecided, in_words, None)
            yield _Branch(bucket, _both(found.columns, times, _WILD), decide, None, "wild")

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

    def _in_blocks(self, question: Question, branch: _Branch) -> _Branch:
        """The same branch, looking into its blocks alone if they are not too many."""
        if branch.words is None:
            return branch
        found = self._access.to_read(words_name(branch.bucket)).find(
            branch.words, {"_id": 1}, limit=MAX_BLOCKS + 1
        )
        with found:
            names = [block["_id"] for block in question.watched(found)]
        if len(names) > MAX_BLOCKS:
            return branch
        return replace(branch.narrowed({"block": {"$in": names}}), hint="block")

    def _decided(self, question: Question, branch: _Branch) -> Iterator[StoredRecord]:
        cursor = self._records(branch).find(branch.terms, RECORD_FIELDS, batch_size=BATCH)
        with cursor:
            documents = cursor if branch.hint is None else cursor.hint(branch.hint)
            for document in question.watched(documents):
                record = record_of(document)
                if branch.decide is None or branch.decide(Reading(record)):
                    yield record

    def _aggregated(
        self, branch: _Branch, pipeline: Sequence[dict[str, Any]]
    ) -> Iterator[Document]:
        options: dict[str, Any] = {} if branch.hint is None else {"hint": branch.hint}
        with self._records(branch).aggregate(
            list(pipeline), allowDiskUse=True, batchSize=BATCH, **options
        ) as cursor:
            yield from cursor

    def _records(self, branch: _Branch) -> Documents:
        return self._access.to_read(records_name(branch.bucket))


# -- terms


def _place(document: Document) -> Place:
    return int(document["time"]), int(document["sequence"])


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


def _values_of(paths: Paths) -> list[dict[str, Any]]:
    """Stages that make of each record a document for each `value` at the paths."""
    if _is_column(paths):
        return [{"$project": {"_id": 0, "value": f"${paths.paths[0]}"}}]
    values = [f"${path}" for path in paths.paths]
    value: Any = values[0]
    if len(values) > 1:
        value = {"$concatArrays": [_as_array(one) for one in values]}
    stages: list[dict[str, Any]] = [{"$project": {"_id": 0, "value": value}}]
    # An array of arrays comes of each array on the way, and of several ways.
    unwind = {"$unwind": {"path": "$value", "preserveNullAndEmptyArrays": True}}
    stages += [unwind] * (paths.paths[0].count(".") + (len(values) > 1))
    stages.append({"$match": {"value": {"$exists": True, "$not": {"$type": "object"}}}})
    return stages


def _as_array(value: str) -> Any:  # noqa: ANN401 - an expression
    missing = {"$eq": [{"$type": value}, "missing"]}
    several = {"$cond": [missing, [], [value]]}
    return {"$cond": [{"$isArray": value}, value, several]}
