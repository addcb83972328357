"""Budgets: so much at once, so much in the long run, for each host by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.budgets import SourceBudgets


def test_a_burst_is_granted_at_once_and_the_rate_afterwards():
    budgets = SourceBudgets(10.0, 5)
    assert [budgets.take("1.1.1.1", 0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert not budgets.take("1.1.1.1", 0.09)
    assert budgets.take("1.1.1.1", 0.11)
    assert not budgets.take("1.1.1.1", 0.12)
    assert [budgets.take("1.1.1.1", 60.0) for _ in range(7)] == [True] * 5 + [False] * 2


def test_one_host_does_not_spend_what_another_has():
    budgets = SourceBudgets(1.0, 1)
    assert budgets.take("1.1.1.1", 0.0)
    assert not budgets.take("1.1.1.1", 0.0)
    assert budgets.take("2.2.2.2", 0.0)


def test_the_table_is_bounded_and_keeps_who_was_heard_of_last():
    budgets = SourceBudgets(1.0, 1, max_sources=3)
    for host in ("a", "b", "c"):
        budgets.take(host, 0.0)
    assert not budgets.take("a", 0.0)
    budgets.take("d", 0.0)
    assert len(budgets) == 3
    assert not budgets.take("a", 0.0)
    assert budgets.take("b", 0.0)  # forgotten


@given(
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 50),
    gaps=st.lists(st.floats(0, 5), max_size=100),
)
def test_never_more_than_the_burst_and_the_rate(rate, burst, gaps):
    budgets = SourceBudgets(rate, burst)
    now = granted = 0.0
    for gap in gaps:
        now += gap
        granted += budgets.take("host", now)
        assert granted <= burst + rate * now + 1e-6
