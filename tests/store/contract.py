"""What every store has to answer, measured by `evaluate` over a list of the same records.

A store's own tests inherit StoreContract and provide the fixture `store_factory`:

    class TestSqlite(StoreContract):
        @pytest.fixture
        def store_factory(self, tmp_path):
            @asynccontextmanager
            async def opened(lines):
                ...
                yield holder
            return opened

It is called with lines as `population` makes them and gives a Holder: the open store, and a way to
add more. All lines are of one server, whose key is population.SERVER.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, Literal, Protocol

import pytest
import trio

from hyperlog.errors import QueryError
from hyperlog.store.answers import Bin, Store, Top
from hyperlog.store.evaluate import (
    Reading,
    field_values,
    has_field,
    plain,
    predicate,
    value_order,
)
from hyperlog.store.language import parse, to_text
from hyperlog.store.levels import LEVELS
from hyperlog.store.query import (
    FIELDS,
    MAX_FIELD,
    MAX_VALUE,
    And,
    Compare,
    Expression,
    Has,
    Not,
    Or,
    Query,
    Text,
    check,
)
from hyperlog.store.records import StoredRecord, decode_body, record_of
from hyperlog.store.times import ms_iso
from hyperlog.store.words import searched_words
from tests.store.population import (
    BEGIN,
    SERVER,
    PopulationLine,
    hostile_lines,
    realistic_lines,
)

__all__ = ["Holder", "StoreContract", "StoreFactory", "mixed_lines", "random_query", "records_of"]

LONG = "HYPERLOG_LONG" in os.environ
SEEDS = range(20) if LONG else range(2)
QUERIES = 150 if LONG else 60  # for each seed
LARGE = 100_000  # records
Order = Literal["newest", "oldest"]
ORDERS: tuple[Order, ...] = ("newest", "oldest")


class Holder(Protocol):
    """An open store that can be given more."""

    store: Store

    async def add(self, lines: Sequence[PopulationLine]) -> None:
        """Append lines to the log files; returns when the store holds their records."""
        ...


StoreFactory = Callable[[Sequence[PopulationLine]], AbstractAsyncContextManager[Holder]]


def records_of(lines: Iterable[PopulationLine]) -> list[StoredRecord]:
    """The records that a store of these lines holds, in the order of their arrival."""
    records: dict[str, StoredRecord] = {}
    for source, line in lines:
        record = record_of(line, source, SERVER)
        if record is not None:
            records.setdefault(record.id, record)
    return list(records.values())


def mixed_lines(seed: int, count: int = 1500) -> list[PopulationLine]:
    """Realistic lines and hostile ones among them, those of one source in their order."""
    rng = random.Random(seed)
    ordinary = list(realistic_lines(count, seed, step=1500.0))
    hostile = list(hostile_lines(seed))
    merged = []
    while ordinary or hostile:
        chosen = (
            ordinary if rng.randrange(len(ordinary) + len(hostile)) < len(ordinary) else hostile
        )
        merged.append(chosen.pop())
    return merged[::-1]


# -- the answers


@dataclass(slots=True)
class Expected:
    """What a query finds among records, gathered in one pass over them."""

    query: Query
    step: int = 60_000
    counted: str = "level"
    records: list[StoredRecord] = field(default_factory=list)
    bins: dict[int, Counter[int]] = field(default_factory=dict)
    values: Counter[tuple[str, Any]] = field(default_factory=Counter)
    with_field: int = 0

    def histogram(self) -> list[Bin]:
        return [Bin(start, dict(counts)) for start, counts in sorted(self.bins.items())]

    def top(self, limit: int) -> Top:
        counted = [(value, count) for (_, value), count in self.values.items()]
        counted.sort(key=lambda item: value_order(*item))
        return Top(counted[:limit], len(counted), self.with_field)


def _expect(records: Iterable[StoredRecord], cases: Sequence[Expected]) -> None:
    decide = [
        (lambda reading: True) if case.query.where is None else predicate(case.query.where)
        for case in cases
    ]
    for record in records:
        reading = Reading(record)
        for case, is_match in zip(cases, decide, strict=True):
            since, until = case.query.since, case.query.until
            if (since is not None and record.time < since) or (
                until is not None and record.time >= until
            ):
                continue
            if is_match(reading):
                case.records.append(record)
                start = record.time - record.time % case.step
                case.bins.setdefault(start, Counter())[record.level] += 1
                case.with_field += has_field(reading, case.counted)
                case.values.update(
                    (type(value).__name__, value) for value in field_values(reading, case.counted)
                )


def _typed(top: Top) -> list[tuple[str, Any, int]]:
    """The values of an answer so that 1, 1.0 and True can be told."""
    result = []
    for value, count in top.values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        exact = plain(value) if is_number else value
        result.append((type(exact).__name__, exact, count))
    return result


def _assert_ordered(
    found: Sequence[StoredRecord],
    expected: Sequence[StoredRecord],
    order: Order,
    arrival: dict[str, int],
    about: str,
) -> None:
    """`found` is all of `expected`, by time; those of a time and source as they arrived."""
    assert sorted(r.id for r in found) == sorted(r.id for r in expected), about
    by_id = {record.id: record for record in expected}
    for record in found:
        assert record == by_id[record.id], about
    forward = found if order == "oldest" else found[::-1]
    times = [record.time for record in forward]
    assert times == sorted(times), about
    for _, same in groupby(forward, lambda record: record.time):
        by_source: dict[str, list[int]] = {}
        for record in same:
            by_source.setdefault(record.source, []).append(arrival[record.id])
        for positions in by_source.values():
            assert positions == sorted(positions), about


async def _all_pages(store: Store, query: Query, order: Order, limit: int) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    cursor = None
    while True:
        page = await store.search(query, limit=limit, cursor=cursor, order=order)
        assert len(page.records) <= limit
        assert page.cursor is None or len(page.records) == limit
        found += page.records
        cursor = page.cursor
        if cursor is None:
            return found
        assert cursor.isascii()
        assert cursor.isprintable()


# -- the questions


class Vocabulary:
    """What the records of a population hold, to ask for things that are there."""

    def __init__(self, records: Sequence[StoredRecord], rng: random.Random) -> None:
        self.records = records
        self.rng = rng
        self.words: list[list[str]] = []
        self.values: list[tuple[str, Any]] = []
        strange = [record for record in records if "mallory" in record.body[:120].decode("latin-1")]
        for record in [*rng.sample(records, min(len(records), 150)), *strange]:
            words = searched_words(record)
            self.words += rng.sample(words, min(len(words), 12))
            paths = list(islice(_paths(decode_body(record.body), "", rng), 4000))
            self.values += rng.sample(paths, min(len(paths), 12))

    def expression(self, depth: int = 0) -> Expression:
        """A random one that `check` accepts."""
        rng = self.rng
        chance = rng.random()
        if depth < 3 and chance < 0.35:
            kind = rng.choice((And, And, Or))
            return kind(tuple(self.expression(depth + 1) for _ in range(rng.randrange(2, 4))))
        if depth < 3 and chance < 0.45:
            return Not(self.expression(depth + 1))
        if chance < 0.65:
            return self._text()
        if chance < 0.7:
            return Has(rng.choice((rng.choice(FIELDS), self._path()[0], "nothing")))
        return self._comparison()

    def _text(self) -> Text:
        rng = self.rng
        words = rng.choice(self.words)
        first = rng.randrange(len(words))
        chosen = words[first : first + rng.choice((1, 1, 1, 2, 3))]
        prefix = rng.random() < 0.3
        if prefix:
            chosen[-1] = chosen[-1][: rng.randrange(1, len(chosen[-1]) + 1)]
        elif rng.random() < 0.05:
            chosen.append("absent")
        text = Text(tuple(chosen), prefix)
        try:
            check(text)
        except QueryError:  # half of a word may be no word
            return Text((words[first],))
        return text

    def _path(self) -> tuple[str, Any]:
        return self.rng.choice(self.values)

    def _comparison(self) -> Compare:
        rng = self.rng
        if rng.random() < 0.4:
            field = rng.choice(FIELDS)
            value = getattr(rng.choice(self.records), field)
            if field == "level" and rng.random() < 0.5:
                value = rng.choice(list(LEVELS))
            elif field in ("time", "client_time") and value is not None and rng.random() < 0.5:
                value = ms_iso(value)
        else:
            field, value = self._path()
        if rng.random() < 0.2:
            value = self._other(value) if field not in ("level", "time", "client_time") else 17
        if isinstance(value, str):
            value = value[:MAX_VALUE]
        operator = rng.choice(("=", "=", "<", "<=", ">", ">="))
        if value is None or isinstance(value, bool):
            operator = "="
        return Compare(field, operator, value)

    def _other(self, value: Any) -> Any:
        if isinstance(value, bool):
            return self.rng.choice((not value, int(value), str(value).lower()))
        if isinstance(value, int | float):
            return self.rng.choice((str(value), value * 2, value + 0.5 if abs(value) < 1e9 else 0))
        return self.rng.choice(("", "e", 0, True, None))


def _paths(node: Any, path: str, rng: random.Random) -> Iterator[tuple[str, Any]]:
    if len(path) > MAX_FIELD:
        return
    if isinstance(node, dict):
        for name, value in node.items():
            inner = f"{path}.{name}" if path or name in FIELDS or not name else name
            yield from _paths(value, inner, rng)
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _paths(item, f"{path}.{index}" if rng.random() < 0.3 else path, rng)
    elif path:
        yield path, node


def random_query(vocabulary: Vocabulary) -> Query:
    rng = vocabulary.rng
    where = None if rng.random() < 0.08 else vocabulary.expression()
    times = sorted(rng.choice(vocabulary.records).time for _ in range(2))
    since = times[0] + rng.randrange(-1, 2) if rng.random() < 0.3 else None
    until = times[1] + rng.randrange(-1, 2) if rng.random() < 0.3 else None
    return Query(where, since, until)


def _about(query: Query) -> str:
    return f"{to_text(query.where)!r} since {query.since} until {query.until}: {query.where!r}"


LARGE_QUERIES = (
    "",
    "rare",
    "common",
    "common -level>=warning",
    '"session cache" OR invoice',
    "strea* instance:ce00",
    "bucket:papi level>=error",
    "bucket:midas attributes.http.status>=404 attributes.ok:false",
    "caller.props.ms>=620 object.className:PaymentGateway",
    "message.user.name:alice (message.user.id<10 OR attributes.tags:disk)",
    "kind:gap OR kind:note",
    "-kind:trace -bucket:cerco -bucket:midas key:*",
)

HOSTILE_QUERIES = (
    "strasse OR ΣΊΣΥΦΟΣ OR ﬁne",
    "東京 天気",
    '"京都" OR สวัส*',
    "हिन्दी OR café",
    '"x y" OR "long word long" OR xxxxxxxx*',
    '"half a pair" OR "nul inside"',
    "/var/log/app.log 10.0.0.1",
    "1e OR 9007199254740993",
    "props.n:9223372036854775807 OR props.m:-9223372036854775808",
    "props.n>=9223372036854775807",
    "props.n>9223372036854775807 OR props.m<-9223372036854775808",
    "props.n:18446744073709551616 OR props.n:9007199254740993",
    "props.n:9007199254740992",
    "props.k:0.1 OR props.m:0 OR props.l:1",
    "attributes.n:1 OR attributes.n:404",
    'attributes.n:"1" OR props.n:"404"',
    "attributes.n:true OR attributes.n:false",
    "attributes.n:null OR attributes.u:null OR attributes.t:true",
    "attributes.f:1.5 -attributes.f>1",
    "attributes.list:* -attributes.list:null",
    'attributes.null:* OR attributes.text:""',
    "props.a.b.c:1 OR props.a.b.c:2 props.a.b.c:3",
    'props...:* OR "props..":* OR "props....":*',
    'props.:* OR "props...":1 OR "props..0.":1',
    "props.$set.$x:1 OR props.$:2 OR props.$where:*",
    "props.n.n:4 OR props.items.n:6 OR props.items.2.0:*",
    "props.items.2999:2999 OR props.items:2998 OR props.m2999:2999",
    "props.n.1.1:3 OR props.n.1:2",
    "level:warn OR .level:Fatal OR .level.no:level",
    ".id:7 OR .time:* OR .key:2 OR .message.user.id:7 OR message.list.id:9",
    ".message:two OR .message.three:3 OR .message:null OR .message:17",
    '(bucket:"../../etc/passwd" OR bucket:$cmd OR bucket:東京) -instance:" "',
    "bucket:Cerco OR bucket:a.b OR bucket>=x",
    'session:"a session" OR session:- number>=9007199254740900',
    "props.a.a.a.a.a:* -props.a.b:*",
    'traceTimestamp.x:"inner words" OR traceNumber.x:"inner number" OR traceNumber:7',
    'message:"(no message)" OR message:. OR message:null OR message:17',
    f'message:"{"long word " * 99}long wor…" OR message:"[1,\\"two\\",{{\\"three\\":3}}]"',
    "client_time:* -client_time>=2026-11-18T11:10:00Z",
)
HOSTILE_FIELDS = (
    *("attributes.n", "attributes.ok", "props.n", "props.m", "props.k", "props", "props.a.b.c"),
    *("message", ".message", "key", "client_time", "number", "attributes.tags", "attributes.list"),
    *("attributes.null", "attributes.text", "props.items", "props.items.n", ".level", "props.$set"),
)


class StoreContract:
    """Inherit and provide `store_factory`."""

    large = LARGE

    @pytest.fixture
    def store_factory(self) -> StoreFactory:
        raise NotImplementedError

    @pytest.mark.parametrize("seed", SEEDS)
    async def test_answers_are_those_of_the_evaluator(
        self, store_factory: StoreFactory, seed: int
    ) -> None:
        lines = mixed_lines(seed)
        records = records_of(lines)
        arrival = {record.id: position for position, record in enumerate(records)}
        rng = random.Random(seed)
        vocabulary = Vocabulary(records, rng)
        fields = [*FIELDS, *(path for path, _ in vocabulary.values)]
        cases = [
            Expected(
                random_query(vocabulary),
                rng.choice((1000, 7000, 60_000, 3_600_000, 86_400_000)),
                rng.choice(fields),
            )
            for _ in range(QUERIES)
        ]
        cases += [Expected(Query(parse(text))) for text in HOSTILE_QUERIES]
        cases += [Expected(Query(), counted=field) for field in HOSTILE_FIELDS]
        _expect(records, cases)
        async with store_factory(lines) as holder:
            store = holder.store
            for case in cases:
                about = _about(case.query)
                order = rng.choice(ORDERS)
                limit = rng.choice((1000, 300, 100, max(len(case.records), 1), 1))
                if limit < len(case.records) // 10:
                    limit = 97
                found = await _all_pages(store, case.query, order, min(limit, 1000))
                _assert_ordered(found, case.records, order, arrival, about)
                assert await store.count(case.query) == len(case.records), about
                assert await store.histogram(case.query, step=case.step) == case.histogram(), about
                top = await store.top(case.query, case.counted, limit=limit % 1000 + 1)
                expected = case.top(limit % 1000 + 1)
                about = f"top {case.counted!r} of {about}"
                assert _typed(top) == _typed(expected), about
                assert (top.distinct, top.records) == (expected.distinct, expected.records), about
                assert top.fraction == 1.0, about

    async def test_both_orders_are_each_other_backwards_whatever_the_page(
        self, store_factory: StoreFactory
    ) -> None:
        lines = mixed_lines(3, 100)
        async with store_factory(lines) as holder:
            for query in (Query(), Query(parse("cerco level>=info"))):
                whole = await _all_pages(holder.store, query, "newest", 1000)
                for limit in (1 if query.where else 5, 17, 100):
                    assert await _all_pages(holder.store, query, "newest", limit) == whole
                    assert await _all_pages(holder.store, query, "oldest", limit) == whole[::-1]

    async def test_records_are_found_by_their_ids_and_come_back_whole(
        self, store_factory: StoreFactory
    ) -> None:
        lines = mixed_lines(4, 200)
        records = records_of(lines)
        async with store_factory(lines) as holder:
            for record in records:
                assert await holder.store.get(record.id) == record
            strange = (
                "",
                "x",
                "a-b-c",
                f"{'0' * 64}-1-1",
                "\x00",
                "é",
                "$where",
                records[0].id[:-1],
            )
            for id in strange:
                assert await holder.store.get(id) is None, id

    async def test_lines_that_come_again_are_not_held_twice(
        self, store_factory: StoreFactory
    ) -> None:
        lines = mixed_lines(5, 200)
        records = records_of(lines)
        async with store_factory(lines) as holder:
            await holder.add(lines[50:])
            assert await holder.store.count(Query()) == len(records)
            found = await _all_pages(holder.store, Query(), "oldest", 1000)
            assert sorted(r.id for r in found) == sorted(r.id for r in records)
            bins = await holder.store.histogram(Query(), step=1000)
            assert sum(sum(bin.counts.values()) for bin in bins) == len(records)
            top = await holder.store.top(Query(), "bucket", limit=1000)
            assert sum(count for _, count in top.values) == len(records)

    @pytest.mark.parametrize("order", ORDERS)
    async def test_what_arrives_late_disturbs_no_page(
        self, store_factory: StoreFactory, order: Order
    ) -> None:
        lines = list(realistic_lines(300, 6))
        rng = random.Random(6)
        late = list(realistic_lines(150, 7))
        rng.shuffle(lines)  # of several sources, whose clocks disagree
        first = records_of(lines)
        query = Query(parse("-kind:note"))
        async with store_factory(lines) as holder:
            found: list[StoredRecord] = []
            cursor = None
            while True:
                page = await holder.store.search(query, limit=20, cursor=cursor, order=order)
                found += page.records
                cursor = page.cursor
                if cursor is None:
                    break
                if late:
                    await holder.add(late[:20])
                    del late[:20]
            ids = [record.id for record in found]
            assert len(ids) == len(set(ids)), "a record came twice"
            missing = {r.id for r in first if r.kind != "note"} - set(ids)
            assert not missing
            times = [record.time for record in found]
            assert times == sorted(times, reverse=order == "newest")

    async def test_new_records_are_answered_at_once(self, store_factory: StoreFactory) -> None:
        lines = list(realistic_lines(400, 8))
        arrival = {record.id: at for at, record in enumerate(records_of(lines))}
        query = Query(parse("level>=info OR stream"))
        async with store_factory([]) as holder:
            assert (await holder.store.search(Query())).records == []
            assert await holder.store.count(Query()) == 0
            assert await holder.store.histogram(Query(), step=1000) == []
            assert await holder.store.top(Query(), "bucket") == Top([], 0, 0)
            for end in range(100, 401, 100):
                await holder.add(lines[end - 100 : end])
                case = Expected(query)
                _expect(records_of(lines[:end]), [case])
                found = await _all_pages(holder.store, query, "newest", 50)
                _assert_ordered(found, case.records, "newest", arrival, f"{end} lines")
                assert await holder.store.histogram(query, step=60_000) == case.histogram()
                assert await holder.store.count(query) == len(case.records)

    async def test_what_has_no_answer_is_refused(self, store_factory: StoreFactory) -> None:
        deep: Expression = Text(("a",))
        for _ in range(40):
            deep = Not(deep)
        unanswerable = (
            deep,
            Text(()),
            Text(("Upper",)),
            Text(("two words",)),
            Compare("level", ">=", "LOUD"),
            Compare("time", ">=", "yesterday"),
            Compare("x", ">", None),
            Compare("", "=", 1),
            Compare("x", "=", "y" * 2000),
            Has("x" * 300),
            And((Text(("a",)),)),
            Or(tuple(Text((f"w{number}",)) for number in range(300))),
        )
        async with store_factory(list(realistic_lines(50, 9))) as holder:
            store = holder.store
            for where in unanswerable:
                for ask in (
                    lambda where=where: store.search(Query(where)),
                    lambda where=where: store.count(Query(where)),
                    lambda where=where: store.histogram(Query(where), step=1000),
                    lambda where=where: store.top(Query(where), "bucket"),
                ):
                    with pytest.raises(QueryError):
                        await ask()
            page = await store.search(Query(), limit=10)
            assert page.cursor is not None
            for cursor in ("", "x", "é", "0", page.cursor[:-3], "9" * 1000, "{}", "a:b:c"):
                with pytest.raises(QueryError):
                    await store.search(Query(), cursor=cursor)
            for limit in (0, -1, 1001):
                with pytest.raises(QueryError):
                    await store.search(Query(), limit=limit)
                with pytest.raises(QueryError):
                    await store.top(Query(), "bucket", limit=limit)
            for step in (0, -60_000, 999):
                with pytest.raises(QueryError):
                    await store.histogram(Query(), step=step)
            for field_name in ("", "x" * 300):
                with pytest.raises(QueryError):
                    await store.top(Query(), field_name)
            assert len((await store.search(Query())).records) == len(
                records_of(realistic_lines(50, 9))
            )

    async def test_a_histogram_of_too_many_bins_is_refused(
        self, store_factory: StoreFactory
    ) -> None:
        source = bytes(32)
        lines = [
            (source, b'{"time":"%b","note":"%d"}' % (ms_iso(BEGIN + at * 1000).encode(), at))
            for at in range(10_001)
        ]
        async with store_factory(lines) as holder:
            with pytest.raises(QueryError):
                await holder.store.histogram(Query(), step=1000)
            some = Query(until=BEGIN + 10_000_000)
            assert len(await holder.store.histogram(some, step=1000)) == 10_000

    async def test_times_without_bounds_and_turned_around(
        self, store_factory: StoreFactory
    ) -> None:
        async with store_factory(list(realistic_lines(50, 10))) as holder:
            everything = await holder.store.count(Query())
            for since, until, expected in (
                (0, None, everything),
                (-(2**62), 2**62, everything),
                (None, 0, 0),
                (BEGIN + 10**9, None, 0),
                (BEGIN + 10**9, BEGIN, 0),
                (BEGIN, BEGIN, 0),
            ):
                query = Query(None, since, until)
                assert await holder.store.count(query) == expected, query
                assert len((await holder.store.search(query)).records) == expected, query
                bins = await holder.store.histogram(query, step=60_000)
                assert sum(sum(bin.counts.values()) for bin in bins) == expected, query
                top = await holder.store.top(query, "bucket")
                assert sum(count for _, count in top.values) == expected, query

    async def test_many_ask_at_once_and_some_give_up(self, store_factory: StoreFactory) -> None:
        lines = list(realistic_lines(2000, 11))
        queries = [Query(parse(text)) for text in LARGE_QUERIES]
        cases = [Expected(query, counted="attributes.tags") for query in queries]
        _expect(records_of(lines), cases)
        async with store_factory(lines) as holder:
            store = holder.store

            async def ask(case: Expected) -> None:
                assert await store.count(case.query) == len(case.records)
                assert _typed(await store.top(case.query, case.counted)) == _typed(case.top(10))
                page = await store.search(case.query, limit=1000)
                assert len(page.records) == min(len(case.records), 1000)

            async with trio.open_nursery() as nursery:
                for case in cases:
                    nursery.start_soon(ask, case)
            for delay in (0, 0.001, 0.01):
                with trio.move_on_after(delay):
                    await store.top(Query(), "caller.props.tag", limit=1000)
            await ask(cases[0])

    async def test_progress_of_a_long_count_only_grows(self, store_factory: StoreFactory) -> None:
        lines = list(realistic_lines(3000, 12))
        reports: list[Top] = []
        async with store_factory(lines) as holder:
            top = await holder.store.top(
                Query(), "caller.props.tag", limit=5, report=reports.append
            )
        fractions = [report.fraction for report in reports]
        assert fractions == sorted(fractions)
        assert all(0 <= fraction <= 1 for fraction in fractions)
        assert all(len(report.values) <= 5 for report in reports)
        assert all(report.records <= top.records for report in reports)

    async def test_statistics_tell_what_is_held(self, store_factory: StoreFactory) -> None:
        lines = mixed_lines(13, 200)
        async with store_factory(lines) as holder:
            statistics = holder.store.statistics()
            assert statistics.records == len(records_of(lines))
            assert statistics.bytes > 0
            assert statistics.failures == 0
            assert statistics.last_error is None

    async def test_each_bucket_tells_what_it_takes_up(self, store_factory: StoreFactory) -> None:
        lines = mixed_lines(17, 300)
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for record in records_of(lines):
            counts[record.bucket] += 1
            sizes[record.bucket] += len(record.body)
        async with store_factory([]) as holder:
            assert await holder.store.buckets() == []
            await holder.add(lines)
            used = await holder.store.buckets()
        assert {one.bucket: one.records for one in used} == counts
        for one in used:
            assert sizes[one.bucket] <= one.bytes <= 4 * sizes[one.bucket] + 1000 * one.records
        assert [one.bytes for one in used] == sorted((one.bytes for one in used), reverse=True)

    async def test_a_hundred_thousand_records(self, store_factory: StoreFactory) -> None:
        lines = list(realistic_lines(self.large))
        records = records_of(lines)
        arrival = {record.id: position for position, record in enumerate(records)}
        queries = [Query(parse(text)) for text in LARGE_QUERIES]
        queries.append(Query(None, BEGIN + 600_000, BEGIN + 1_200_000))
        fields = ("level", "bucket", "instance", "caller.functionName", "attributes.http.status")
        cases = [
            Expected(query, 60_000, fields[position % len(fields)])
            for position, query in enumerate(queries)
        ]
        _expect(records, cases)
        async with store_factory(lines) as holder:
            store = holder.store
            for case in cases:
                about = _about(case.query)
                for order in ORDERS:
                    page = await store.search(case.query, limit=100, order=order)
                    expected = sorted(case.records, key=lambda record: record.time)
                    if order == "newest":
                        expected.reverse()
                    times = [record.time for record in page.records]
                    assert times == [record.time for record in expected[:100]], about
                assert await store.count(case.query) == len(case.records), about
                assert await store.histogram(case.query, step=case.step) == case.histogram(), about
                top = await store.top(case.query, case.counted)
                assert _typed(top) == _typed(case.top(10)), about
            few = min(cases, key=lambda case: len(case.records) or LARGE)
            found = await _all_pages(store, few.query, "newest", 3)
            _assert_ordered(found, few.records, "newest", arrival, _about(few.query))
