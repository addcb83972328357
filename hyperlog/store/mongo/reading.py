"""Looks up records, the newest or the oldest first. For threads.

Blocks that may have what is wanted are read in that order, ever more at a time, until no other can
hold anything that comes before what has been found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

from hyperlog.store.evaluate import Reading
from hyperlog.store.mongo.access import Document
from hyperlog.store.mongo.branches import (
    BATCH,
    MAX_BLOCKS,
    Branch,
    Branches,
    Question,
    Stage,
    in_parts,
)
from hyperlog.store.mongo.documents import RECORD_FIELDS, record_of
from hyperlog.store.mongo.filters import Terms
from hyperlog.store.query import Compare, Query
from hyperlog.store.records import StoredRecord

__all__ = ["Order", "Place", "Reader"]

SEARCH_TIMEOUT: Final = 20.0  # s
FIRST_BLOCKS: Final = 1000  # records in the blocks that are looked into first, then ever more
BLOCKS_FACTOR: Final = 4
BACKWARDS: Final = {"newest": -1, "oldest": 1}

Order: TypeAlias = Literal["newest", "oldest"]
Place: TypeAlias = tuple[int, int]
"""of a record in the order of all: time and sequence"""


class Reader:
    """Raises StoreUnavailable."""

    def __init__(self, branches: Branches) -> None:
        self._branches = branches

    def search(
        self, question: Question, query: Query, limit: int, after: Place | None, order: Order
    ) -> tuple[list[StoredRecord], Place | None]:
        """At most `limit` records behind a place, and the last one's place if there are more."""
        count = limit + 1
        found: list[Document] = []

        def bounded(branch: Branch) -> Branch:
            if after is not None:
                branch = branch.narrowed(_behind(after, order))
            if len(found) == count:
                branch = branch.narrowed(_not_behind(_place(found[-1]), order))
            return branch

        with self._branches.access.limited(SEARCH_TIMEOUT):
            branches = self._branches.sorted_out(query)
            found = self._first(map(bounded, branches.simple), count, order)
            found = self._first_in_words(
                question, map(bounded, branches.in_words), found, count, order
            )
            for branch in map(bounded, branches.undecided):
                found = _merged(found, self._first_decided(question, branch, count, order), order)
                del found[count:]
        records = [record_of(document) for document in found[:limit]]
        return records, _place(found[limit - 1]) if len(found) == count else None

    def get(self, id: str) -> StoredRecord | None:
        """The record of this id."""
        with self._branches.access.limited(SEARCH_TIMEOUT):
            branches = self._branches.sorted_out(Query(Compare("id", "=", id)), bounded=False)
            found = self._first(branches.simple, 1, "newest")
        return record_of(found[0]) if found else None

    def _first(self, branches: Iterable[Branch], count: int, order: Order) -> list[Document]:
        """The first documents of some branches that MongoDB decides."""
        ordered: list[Stage] = [{"$sort": _sort(order)}, {"$limit": count}]
        fields = {"$project": RECORD_FIELDS}
        found: list[Document] = []
        for part in in_parts(branches):
            pipelines = [[{"$match": one.terms}, *ordered, fields] for one in part]
            found = _merged(found, self._branches.united(part, pipelines, ordered), order)
        return found[:count]

    def _first_in_words(
        self,
        question: Question,
        branches: Iterable[Branch],
        found: list[Document],
        count: int,
        order: Order,
    ) -> list[Document]:
        """The first of what has been found and of branches with words."""
        by_bucket = {branch.bucket: branch for branch in branches}
        edge, direction = ("last", -1) if order == "newest" else ("first", 1)
        blocks: dict[str, list[Any]] = {}
        records, listed, wanted = 0, 0, FIRST_BLOCKS

        def read() -> list[Document]:
            documents = found
            for bucket, names in blocks.items():
                branch = by_bucket[bucket].narrowed({"block": {"$in": names}})
                part = self._ordered(replace(branch, hint="block"), order, count)
                documents = _merged(documents, part, order)[:count]
            return documents

        for block in question.watched(
            self._branches.blocks(list(by_bucket.values()), edge, direction)
        ):
            if records >= wanted or listed >= MAX_BLOCKS:  # a few records each, or a single one
                found = read()
                blocks, records, listed, wanted = {}, 0, 0, wanted * BLOCKS_FACTOR
                if len(found) == count and (found[-1]["time"] - block[edge]) * direction < 0:
                    return found
            blocks.setdefault(block["bucket"], []).append(block["_id"])
            records += block["records"]
            listed += 1
        return read()

    def _first_decided(
        self, question: Question, branch: Branch, count: int, order: Order
    ) -> list[Document]:
        assert branch.decide is not None
        found = []
        for document in question.watched(self._ordered(branch, order)):
            if branch.decide(Reading(record_of(document))):
                found.append(document)
                if len(found) == count:
                    break
        return found

    def _ordered(self, branch: Branch, order: Order, count: int = 0) -> Iterator[Document]:
        cursor = self._branches.records(branch).find(
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


# -- places


def _place(document: Document) -> Place:
    return int(document["time"]), int(document["sequence"])


def _sort(order: Order) -> dict[str, int]:
    return {"time": BACKWARDS[order], "sequence": BACKWARDS[order]}


def _merged(found: list[Document], more: Iterable[Document], order: Order) -> list[Document]:
    return sorted([*found, *more], key=_place, reverse=order == "newest")


def _behind(place: Place, order: Order) -> Terms:
    """What comes after a place in the order."""
    time, sequence = place
    beyond, bound = ("$gte", "$lte") if order == "newest" else ("$lte", "$gte")
    return {"time": {bound: time}, "$nor": [{"time": time, "sequence": {beyond: sequence}}]}


def _not_behind(place: Place, order: Order) -> Terms:
    return {"time": {"$gte" if order == "newest" else "$lte": place[0]}}
