import pytest

from hyperlog.dht.holepunch.puncher import Strategy
from hyperlog.dht.holepunch.punches import PunchCounts, Punches, PunchRecord, RandomPunchLimit


def test_one_random_punch_at_a_time():
    limit = RandomPunchLimit()
    assert limit.take(0.0)
    assert not limit.take(100.0)
    limit.give_back(100.0, used=False)
    assert limit.take(100.0)
    assert limit.running == 1


def test_random_punches_are_20_s_apart_if_they_sent_anything():
    limit = RandomPunchLimit()
    assert limit.take(0.0)
    limit.give_back(5.0, used=True)
    assert not limit.take(24.9)
    assert limit.take(25.0)
    limit.give_back(25.0, used=False)
    assert limit.take(25.0)


def test_a_node_may_have_its_own_interval():
    limit = RandomPunchLimit()
    limit.interval = 1.0
    assert limit.take(0.0)
    limit.give_back(0.0, used=True)
    assert limit.take(1.0)


@pytest.mark.parametrize("strategy", Strategy)
def test_attempts_are_counted_by_strategy_and_by_how_they_end(strategy):
    punches = Punches()
    for connected in (True, False, False):
        punches.started(strategy)
        punches.ended(PunchRecord(strategy=strategy, connected=connected))
    punches.started(strategy)
    found = punches.statistics()
    counts = {
        Strategy.CONSISTENT: found.consistent,
        Strategy.RANDOM_REMOTE: found.random_remote,
        Strategy.RANDOM_LOCAL: found.random_local,
    }
    assert counts.pop(strategy) == PunchCounts(attempted=4, succeeded=1, failed=2)
    assert set(counts.values()) == {PunchCounts()}


def test_what_ends_before_a_strategy_begins_is_counted_apart():
    punches = Punches()
    punches.ended(PunchRecord(connected=True))
    punches.ended(PunchRecord())
    punches.ended(PunchRecord())
    assert punches.limit.take(0.0)
    found = punches.statistics()
    assert (found.early, found.unstarted) == (1, 2)
    assert found.random_punches == 1
