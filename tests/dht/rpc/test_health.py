import pytest

from hyperlog.dht.rpc.health import Health


@pytest.fixture
def health():
    return Health()


def feed(health, *ticks):
    """Ticks of (responses, timeouts); gives (online, degraded) after the last one."""
    responses = timeouts = 0
    for more_responses, more_timeouts in ticks:
        responses += more_responses
        timeouts += more_timeouts
        health.update(responses, timeouts)
    return health.online, health.degraded


WARM_UP = [(0, 0)] * 3


def test_two_busy_ticks_without_any_response_mean_offline(health):
    assert feed(health, *WARM_UP, (0, 4)) == (True, False)
    health = Health()
    assert feed(health, *WARM_UP, (0, 4), (0, 4)) == (False, False)


def test_nothing_is_judged_before_the_window_is_full(health):
    assert feed(health, (0, 9), (0, 9), (0, 9)) == (True, False)


def test_idle_ticks_prove_nothing(health):
    assert feed(health, *WARM_UP, *[(0, 3)] * 20) == (True, False)


def test_one_response_is_enough_to_be_online_again(health):
    assert feed(health, *WARM_UP, (0, 9), (0, 9), (1, 0)) == (True, False)


def test_mostly_timeouts_over_the_whole_window_mean_degraded(health):
    assert feed(health, *WARM_UP, *[(2, 3)] * 3) == (True, False)
    health = Health()
    assert feed(health, *WARM_UP, *[(2, 3)] * 4) == (True, True)


def test_degraded_ends_after_a_window_of_good_ticks(health):
    bad, good = [(2, 3)] * 4, [(9, 0)]
    assert feed(health, *WARM_UP, *bad, *good * 3) == (True, True)
    health = Health()
    assert feed(health, *WARM_UP, *bad, *good * 4) == (True, False)


def test_a_change_is_reported_once(health):
    ticks = [(0, 0), (0, 0), (0, 0), (0, 4), (0, 8), (0, 12)]
    assert [health.update(*totals) for totals in ticks] == [False] * 4 + [True, False]
