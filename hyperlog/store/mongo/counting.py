"""Counts records, by time and level or by the values of a field. For threads."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from hyperlog.errors import QueryError
from hyperlog.store.answers import Bin, BucketUse, Top
from hyperlog.store.evaluate import field_values, plain, value_order
from hyperlog.store.levels import LEVEL_NAMES
from hyperlog.store.mongo.branches import Branch, Branches, Question, Stage, columns_of, in_parts
from hyperlog.store.mongo.filters import Paths, Terms, column_of, paths_of
from hyperlog.store.query import And, Has, Query, Scalar

__all__ = ["Counting"]

COUNT_TIMEOUT: Final = 60.0  # s
MAX_BINS: Final = 10_000
MAX_VALUES: Final = 1_000_000  # different ones that are counted here
ALWAYS_THERE: Final = ("_id", "server", "source", "instance", "time", "level", "kind", "message")
INDEXED: Final[dict[str, Terms]] = {
    "level": {"$in": list(LEVEL_NAMES)},
    "instance": {"$gte": ""},
    "key": {"$gte": ""},
}
"""columns that have an index, and what is true of all their values"""


class Counting:
    """Raises StoreUnavailable."""

    def __init__(self, branches: Branches) -> None:
        self._branches = branches

    def buckets(self, question: Question) -> list[BucketUse]:
        """See Store.buckets; what MongoDB keeps count of itself, so that nothing is read."""
        found = []
        with self._branches.access.limited(COUNT_TIMEOUT):
            for name, bucket in self._branches.collections():
                question.check()
                collection = self._branches.access.to_read(name)
                with collection.aggregate([{"$collStats": {"storageStats": {}}}]) as shards:
                    sizes = [shard["storageStats"] for shard in shards]
                records = sum(int(one["count"]) for one in sizes)
                if records:
                    used = sum(int(one["size"]) for one in sizes)
                    found.append(BucketUse(bucket, records, used))
        return sorted(found, key=lambda one: (-one.bytes, one.bucket))

    def count(self, question: Question, query: Query) -> int:
        """How many match."""
        with self._branches.access.limited(COUNT_TIMEOUT):
            return sum(self._counts(question, query).values())

    def _counts(self, question: Question, query: Query) -> Counter[str]:
        """By bucket."""
        counts: Counter[str] = Counter()
        branches = self._branches.sorted_out(query)
        for branch in branches.undecided:
            for _ in self._branches.decided(question, branch):
                counts[branch.bucket] += 1
        for part in in_parts(
            [*branches.simple, *self._branches.in_blocks(question, branches.in_words)]
        ):
            pipelines: list[list[Stage]] = [
                [
                    {"$match": one.terms},
                    {"$group": {"_id": {"$literal": one.bucket}, "count": {"$sum": 1}}},
                ]
                for one in part
            ]
            for found in self._branches.united(part, pipelines):
                counts[found["_id"]] += found["count"]
        return counts

    def histogram(self, question: Question, query: Query, step: int) -> list[Bin]:
        """Counts by time and level.

        Raises:
            QueryError: too many bins.
        """
        bins: dict[int, Counter[int]] = {}
        with self._branches.access.limited(COUNT_TIMEOUT):
            for start, level, count in self._bins(question, query, step):
                bins.setdefault(start, Counter())[level] += count
                if len(bins) > MAX_BINS:
                    raise QueryError(
                        f"more than {MAX_BINS} bins: ask for longer ones, or a shorter time"
                    )
        return [Bin(start, dict(counts)) for start, counts in sorted(bins.items())]

    def _bins(self, question: Question, query: Query, step: int) -> Iterator[tuple[int, int, int]]:
        branches = self._branches.sorted_out(query)
        for branch in branches.undecided:
            for record in self._branches.decided(question, branch):
                yield record.time - record.time % step, record.level, 1
        start = {"$subtract": ["$time", {"$mod": ["$time", step]}]}
        group = {"_id": {"start": start, "level": "$level"}, "count": {"$sum": 1}}
        simple = _from_index(branches.simple, "level")
        in_words = self._branches.in_blocks(question, branches.in_words)
        for part in in_parts([*simple, *in_words]):
            pipelines = [[{"$match": one.terms}, {"$group": group}] for one in part]
            for found in question.watched(self._branches.united(part, pipelines)):
                yield int(found["_id"]["start"]), found["_id"]["level"], found["count"]

    # -- values

    def top(self, question: Question, query: Query, field: str, limit: int) -> Top:
        """The most frequent values of a field.

        Raises:
            QueryError: it has too many different ones.
        """
        with self._branches.access.limited(COUNT_TIMEOUT):
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
            branches = self._branches.sorted_out(query)
            simple = _from_index(branches.simple, column) if column in INDEXED else branches.simple
            asked = [*simple, *self._branches.in_blocks(question, branches.in_words)]
            read = branches.undecided
            if not paths.exact or paths.has_index:
                read, asked = [*read, *asked], []
            values, records = self._counted(question, read, field)
            # All but the first part are counted here: a hint keeps them from being one question.
            first, *others = [*in_parts(asked)] or [[]]
            for part in others:
                for value, count in self._grouped(question, part, paths):
                    values[type(value), value] += count
                    records += count if column else 0
                    _check_values(values, field)
            distinct = 0

            def counted() -> Iterator[tuple[Scalar, int]]:
                nonlocal distinct, records
                for value, count in self._grouped(question, first, paths):
                    distinct += 1
                    records += count if column else 0
                    yield value, count + values.pop((type(value), value), 0)
                for (_, value), count in values.items():
                    distinct += 1
                    yield value, count

            top = heapq.nsmallest(limit, counted(), key=lambda item: value_order(*item))
            if column is None:  # what is an array has many values, and an object none
                for part in in_parts(asked):
                    pipelines: list[list[Stage]] = [
                        [{"$match": one.terms}, {"$count": "count"}] for one in part
                    ]
                    records += sum(one["count"] for one in self._branches.united(part, pipelines))
            return Top(top, distinct, records)

    def _counted(
        self, question: Question, branches: Sequence[Branch], field: str
    ) -> tuple[Counter[tuple[type, Scalar]], int]:
        """By type and value, and how many records; what MongoDB cannot count."""
        values: Counter[tuple[type, Scalar]] = Counter()
        records = 0
        for branch in branches:
            for record in self._branches.decided(question, branch):
                records += 1
                values.update((type(value), value) for value in field_values(record, field))
                _check_values(values, field)
        return values, records

    def _grouped(
        self, question: Question, branches: Sequence[Branch], paths: Paths
    ) -> Iterator[tuple[Scalar, int]]:
        if not branches or not paths.paths:
            return
        pipelines = [[{"$match": one.terms}, *_values_of(paths)] for one in branches]
        group: Stage = {"_id": "$value", "count": {"$sum": 1}}
        if not _is_column(paths):
            # Doubles and integers that are equal are one value for MongoDB.
            is_double = {"$eq": [{"$type": "$value"}, "double"]}
            group["_id"] = {"value": "$value", "double": is_double}
        for found in question.watched(
            self._branches.united(branches, pipelines, [{"$group": group}])
        ):
            value = found["_id"] if _is_column(paths) else found["_id"]["value"]
            yield _own(value), found["count"]


def _check_values(values: Counter[tuple[type, Scalar]], field: str) -> None:
    if len(values) > MAX_VALUES:
        raise QueryError(f"{field[:64]} has more than {MAX_VALUES} different values")


def _from_index(branches: Sequence[Branch], column: str) -> list[Branch]:
    """The same branches; those that are about times alone say what is true of all records, and so
    let MongoDB read the index of that column and no record."""
    terms = {column: INDEXED[column]}
    return [
        one.narrowed(terms) if columns_of(one.terms) <= {column, "time"} else one
        for one in branches
    ]


def _own(value: Any) -> Scalar:  # noqa: ANN401 - a value of BSON
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return plain(int(value) if isinstance(value, int) else value)  # not bson.Int64


def _is_column(paths: Paths) -> bool:
    return not paths.paths[0].startswith("json.")


def _values_of(paths: Paths) -> list[Stage]:
    """Stages that make of each record a document for each `value` at the paths."""
    if _is_column(paths):
        return [{"$project": {"_id": 0, "value": f"${paths.paths[0]}"}}]
    values = [f"${path}" for path in paths.paths]
    value: Any = values[0]
    if len(values) > 1:
        value = {"$concatArrays": [_as_array(one) for one in values]}
    stages: list[Stage] = [{"$project": {"_id": 0, "value": value}}]
    # An array of arrays comes of each array on the way, and of several ways.
    unwind = {"$unwind": {"path": "$value", "preserveNullAndEmptyArrays": True}}
    stages += [unwind] * (paths.paths[0].count(".") + (len(values) > 1))
    stages.append({"$match": {"value": {"$exists": True, "$not": {"$type": "object"}}}})
    return stages


def _as_array(value: str) -> Any:  # noqa: ANN401 - an expression
    missing = {"$eq": [{"$type": value}, "missing"]}
    several = {"$cond": [missing, [], [value]]}
    return {"$cond": [{"$isArray": value}, value, several]}
