from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.store.evaluate import plain, value_order
from hyperlog.store.sqlite import tally
from hyperlog.store.sqlite.tally import Tally

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(2**53 - 2, 2**53 + 2),
    st.sampled_from([-0.0, 0.0, 1.0, 1.5, 2.0**53, 2.0**60, 1e300, -(2.0**63), -(2**63)]),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.sampled_from(["true", "null", "1", "1.5", "0"]),
)


def expected(batches, limit):
    counts: Counter = Counter()
    for batch in batches:
        for value in batch:
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = plain(value)
            counts[type(value).__name__, value] += 1
    values = [(value, count) for (_, value), count in counts.items()]
    values.sort(key=lambda item: value_order(*item))
    return [(type(value), value, count) for value, count in values[:limit]], len(values)


def typed(values):
    return [(type(value), value, count) for value, count in values]


@given(st.lists(st.lists(VALUES, max_size=20), max_size=6), st.integers(1, 8))
def test_counts_are_those_of_the_values(batches, limit):
    counted = Tally()
    for batch in batches:
        counted.add(batch)
    values, distinct = counted.top(limit)
    assert (typed(values), distinct) == expected(batches, limit)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tally, "MAX_VALUES", 5)


@pytest.mark.usefixtures("small")
def test_counts_are_the_same_beyond_what_memory_is_to_hold():
    @given(st.lists(st.lists(VALUES, max_size=20), max_size=6), st.integers(1, 8))
    def check(batches, limit):
        counted = Tally()
        try:
            for batch in batches:
                counted.add(batch)
            values, distinct = counted.top(limit)
            assert (typed(values), distinct) == expected(batches, limit)
        finally:
            counted.close()

    check()


def test_memory_is_bounded_by_the_length_of_texts_too(monkeypatch):
    monkeypatch.setattr(tally, "MAX_TEXT", 10_000)
    counted = Tally()
    for number in range(100):
        counted.add([f"{number}" + "x" * 1000])
        assert len(counted._counts) <= 12
    values, distinct = counted.top(1)
    assert distinct == 100
    assert values == [("0" + "x" * 1000, 1)]
    counted.close()
