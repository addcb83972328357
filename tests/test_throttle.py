import random

from hyperlog.throttle import ACCOUNT_FAILURES, MAX_REMEMBERED, SOURCE_FAILURES, LoginThrottle


def test_a_source_may_fail_a_few_times_then_waits():
    throttle = LoginThrottle()
    for _ in range(SOURCE_FAILURES):
        assert throttle.refuses("s", "ada", 0.0) is None
        throttle.failed("s", "ada", 0.0)
    wait = throttle.refuses("s", "bob", 0.0)
    assert 9 < wait <= 10
    assert throttle.refuses("t", "ada", 0.0) is None, "another source may try the same account"
    assert throttle.refuses("s", "bob", wait + 0.01) is None
    assert throttle.refused == 1


def test_an_account_waits_whoever_tries():
    throttle = LoginThrottle()
    for source in range(ACCOUNT_FAILURES):
        throttle.failed(f"s{source}", "ada", 0.0)
    wait = throttle.refuses("fresh", "ada", 0.0)
    assert 29 < wait <= 30, "never for longer: nobody can lock an account"
    assert throttle.refuses("fresh", "bob", 0.0) is None


def test_an_attempt_that_succeeds_does_not_count():
    throttle = LoginThrottle()
    for _ in range(100):
        assert throttle.refuses("s", "ada", 0.0) is None
        throttle.failed("s", "ada", 0.0)
        throttle.succeeded("s", "ada")


def test_attempts_at_one_time_are_counted_before_their_end():
    throttle = LoginThrottle()
    allowed = 0
    for _ in range(100):
        if throttle.refuses("s", "ada", 0.0) is None:
            throttle.failed("s", "ada", 0.0)
            allowed += 1
    assert allowed == SOURCE_FAILURES


def test_no_schedule_gets_more_than_the_rate():
    rng = random.Random(5)
    throttle, now, tries = LoginThrottle(), 0.0, 0
    while now < 3600:
        now += rng.expovariate(1.0)
        if throttle.refuses("s", "ada", now) is None:
            throttle.failed("s", "ada", now)
            tries += 1
    assert tries <= ACCOUNT_FAILURES + 3600 / 30 + 1


def test_what_is_remembered_is_bounded():
    throttle = LoginThrottle()
    for number in range(MAX_REMEMBERED + 10):
        throttle.failed(f"s{number}", f"a{number}", 0.0)
    assert len(throttle._sources) == len(throttle._accounts) == MAX_REMEMBERED
