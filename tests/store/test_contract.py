"""The contract can be fulfilled, and it notices a store that does not fulfil it."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager

import pytest

from hyperlog.errors import QueryError
from hyperlog.store.answers import Bin, BucketUse, Page, StoreStatistics, Top
from hyperlog.store.evaluate import field_values, has_field, matcher, value_order
from hyperlog.store.query import Has, check
from tests.store.contract import StoreContract, records_of


class ListStore:
    """A store that looks at every record for every answer."""

    def __init__(self):
        self.records = {}
        self.arrivals = {}
        self.answers = {}

    def insert(self, records):
        self.answers.clear()
        for record in records:
            if record.id not in self.records:
                self.records[record.id] = record
                self.arrivals[record.id] = len(self.arrivals)

    def found(self, query):
        key = repr(query)  # 1 and True are equal
        if key not in self.answers:
            self.answers[key] = self.looked_through(query)
        return self.answers[key].copy()

    def looked_through(self, query):
        check(query.where)
        is_match = (lambda record: True) if query.where is None else matcher(query.where)
        found = [
            record
            for record in self.records.values()
            if (query.since is None or record.time >= query.since)
            and (query.until is None or record.time < query.until)
            and is_match(record)
        ]
        found.sort(key=self.place)
        return found

    def place(self, record):
        return record.time, self.arrivals[record.id]

    async def search(self, query, *, limit=100, cursor=None, order="newest"):
        if not 1 <= limit <= 1000:
            raise QueryError("limit")
        found = self.found(query)
        if cursor is not None:
            try:
                time, arrival = map(int, cursor.split(","))
            except ValueError:
                raise QueryError("cursor") from None
            after = (time, arrival)
            found = [r for r in found if (self.place(r) < after) == (order == "newest")]
            found = [r for r in found if self.place(r) != after]
        if order == "newest":
            found.reverse()
        page = found[:limit]
        cursor = "{},{}".format(*self.place(page[-1])) if len(found) > limit else None
        return Page(page, cursor)

    async def get(self, id):
        return self.records.get(id)

    async def count(self, query):
        return len(self.found(query))

    async def histogram(self, query, *, step):
        if step < 1000:
            raise QueryError("step")
        bins = {}
        for record in self.found(query):
            bins.setdefault(record.time // step * step, Counter())[record.level] += 1
        if len(bins) > 10_000:
            raise QueryError("bins")
        return [Bin(start, dict(counts)) for start, counts in sorted(bins.items())]

    async def top(self, query, field, *, limit=10, report=None):
        check(Has(field))
        if not 1 <= limit <= 1000:
            raise QueryError("limit")
        counts = Counter()
        having = 0
        for record in self.found(query):
            having += has_field(record, field)
            counts.update((type(value), value) for value in field_values(record, field))
        values = [(value, count) for (_, value), count in counts.items()]
        values.sort(key=lambda item: value_order(*item))
        return Top(values[:limit], len(values), having)

    async def buckets(self):
        records, sizes = Counter(), Counter()
        for record in self.records.values():
            records[record.bucket] += 1
            sizes[record.bucket] += len(record.body)
        return [BucketUse(name, records[name], size) for name, size in sizes.most_common()]

    def statistics(self):
        return StoreStatistics("sqlite", len(self.records), 1, 0, len(self.records), 0, None)


class ListHolder:
    def __init__(self, store, lines):
        self.store = store
        self.store.insert(records_of(lines))

    async def add(self, lines):
        self.store.insert(records_of(lines))


def holding(kind):
    @asynccontextmanager
    async def opened(lines):
        yield ListHolder(kind(), lines)

    return opened


class TestListStore(StoreContract):
    large = 10_000

    @pytest.fixture
    def store_factory(self):
        return holding(ListStore)


class OneTooMany(ListStore):
    async def count(self, query):
        return await super().count(query) + 1


class SkipsEqualTimes(ListStore):
    def place(self, record):
        return record.time, 0


class CountsTrueAsOne(ListStore):
    async def top(self, query, field, **arguments):
        top = await super().top(query, field, **arguments)
        return Top(
            [(int(v) if isinstance(v, bool) else v, n) for v, n in top.values],
            top.distinct,
            top.records,
        )


class Forgets(ListStore):
    async def get(self, id):
        record = await super().get(id)
        return None if record is not None and record.kind == "note" else record


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (OneTooMany, "test_new_records_are_answered_at_once"),
        (SkipsEqualTimes, "test_both_orders_are_each_other_backwards_whatever_the_page"),
        (Forgets, "test_records_are_found_by_their_ids_and_come_back_whole"),
    ],
)
async def test_a_wrong_store_fails(kind, test):
    with pytest.raises(AssertionError):
        await getattr(StoreContract(), test)(holding(kind))


async def test_a_store_that_mixes_up_types_fails():
    with pytest.raises(AssertionError):
        await StoreContract().test_answers_are_those_of_the_evaluator(holding(CountsTrueAsOne), 0)
