"""hyperlog.limits: every limit is reached, counted, and told at most once a minute."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog import limits
from hyperlog.errors import ConfigError
from hyperlog.limits import Complaints, Limiter, ServerLimits, TokenBucket

A, B = bytes([1]) * 32, bytes([2]) * 32
HERE = "192.0.2.1"
NODE = "203.0.113.1"


@given(
    rate=st.floats(0.5, 1000),
    burst=st.floats(1, 100),
    steps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_a_bucket_lets_no_more_through_than_its_rate_and_burst(rate, burst, steps):
    bucket = TokenBucket.full(rate, burst, 0.0)
    now, taken = 0.0, 0
    for step in steps:
        now += step
        taken += bucket.take(now)
        assert taken <= burst + rate * now + 1e-6


def test_spending_more_than_there_is_tells_the_wait():
    bucket = TokenBucket.full(10, 20, 0.0)
    assert bucket.spend(20, 0.0) == 0
    assert bucket.spend(5, 0.0) == pytest.approx(0.5)
    assert bucket.spend(5, 0.5) == pytest.approx(0.5)
    assert bucket.spend(0, 1.0) == 0


def test_a_clock_that_goes_back_gives_nothing():
    bucket = TokenBucket.full(1, 1, 100.0)
    assert bucket.take(100.0)
    assert not bucket.take(50.0)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_is_above_zero(value):
    with pytest.raises(ConfigError, match="handshakes is"):
        ServerLimits(handshakes=value)


def test_connections_in_all_are_limited():
    limiter = Limiter(ServerLimits(connections=2))
    places = [limiter.enter(bytes([n]) * 32, 0) for n in range(3)]
    assert places[2] is None
    assert limiter.statistics().connections == 1
    limiter.leave(places[0])
    limiter.leave(places[0])
    assert limiter.connections == 1
    assert limiter.enter(A, 0) is not None


def test_connections_of_a_key_are_limited_once_they_prove_it():
    limiter = Limiter(ServerLimits(connections_per_key=2))
    replayed = [limiter.enter(A, 0) for _ in range(5)]
    assert None not in replayed  # none of them uses up what the owner of A may have
    owners = [limiter.enter(A, 0) for _ in range(3)]
    assert [limiter.prove(place, 0) for place in owners] == [True, True, False]
    assert limiter.prove(owners[0], 0)  # asked again
    assert limiter.statistics().connections_per_key == 1
    limiter.leave(owners[0])
    assert limiter.prove(replayed[0], 0)
    other = limiter.enter(B, 0)
    assert limiter.prove(other, 0)


def test_peers_that_prove_nothing_are_limited():
    limiter = Limiter(ServerLimits(unproved_connections=2))
    first = limiter.enter(A, 0)
    limiter.enter(A, 0)
    assert limiter.enter(B, 0) is None
    assert limiter.statistics().unproved_connections == 1
    assert limiter.prove(first, 0)
    third = limiter.enter(B, 0)
    assert third is not None
    limiter.cut_off(0)
    limiter.leave(third)
    assert limiter.statistics().unproved_connections == 2
    assert limiter.enter(B, 0) is not None


def strangers(count: int) -> list[str]:
    return [f"198.51.{n // 256}.{n % 256}" for n in range(count)]


def test_handshakes_from_one_address_are_limited_and_leave_the_others_theirs():
    limiter = Limiter(ServerLimits(handshakes=1000, handshakes_per_source=10))
    assert sum(limiter.refuses_handshake(HERE, None, 0.0) for _ in range(1000)) == 980
    assert not limiter.refuses_handshake("192.0.2.2", None, 0.0)
    assert limiter.statistics().handshakes_per_source == 980
    assert limiter.statistics().handshakes == 0
    assert not limiter.refuses_handshake(HERE, None, 0.2)


def test_a_node_that_names_others_uses_up_nothing_of_theirs():
    limiter = Limiter(ServerLimits(handshakes=1000, handshakes_per_source=10))
    assert sum(limiter.refuses_handshake(HERE, NODE, 0.0) for _ in range(100)) == 80
    assert not any(limiter.refuses_handshake(HERE, None, 0.0) for _ in range(20))
    assert not any(limiter.refuses_handshake(HERE, "203.0.113.2", 0.0) for _ in range(20))


def test_a_node_relays_no_more_than_half_of_all_handshakes():
    limiter = Limiter(ServerLimits(handshakes=100, handshakes_per_source=10))
    names = strangers(100)
    refused = sum(
        limiter.refuses_handshake(name, NODE, tenth / 10) for tenth in range(100) for name in names
    )
    assert 10_000 - refused == pytest.approx(25 + 9.9 * 50, abs=2)
    statistics = limiter.statistics()
    assert statistics.handshakes_per_relay + statistics.handshakes_per_source == refused
    assert statistics.handshakes == 0
    assert not any(limiter.refuses_handshake(name, None, 9.0) for name in names[:40])


def test_handshakes_of_strangers_are_limited_and_leave_some_to_known_addresses():
    limiter = Limiter(ServerLimits(handshakes=100, handshakes_per_source=10))
    limiter.recognise(HERE)
    passed = sum(not limiter.refuses_handshake(name, None, 0.0) for name in strangers(1000))
    assert passed == 50  # a quarter of what is saved up in 2 s
    assert limiter.statistics().handshakes == 950
    assert not any(limiter.refuses_handshake(HERE, None, 0.0) for _ in range(20))
    passed = sum(not limiter.refuses_handshake(name, None, 0.5) for name in strangers(1000))
    assert passed == 30  # at the full rate, once those 20 are made up for


@pytest.mark.parametrize("rate", [0.1, 1, 5])
def test_the_smallest_limit_lets_strangers_in(rate):
    limiter = Limiter(ServerLimits(handshakes=rate))
    assert not limiter.refuses_handshake(HERE, None, 0.0)
    assert not limiter.refuses_handshake(HERE, NODE, 10.0)


def test_remembered_addresses_and_keys_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "MAX_SOURCES", 50)
    monkeypatch.setattr(limits, "MAX_RELAYS", 50)
    monkeypatch.setattr(limits, "MAX_KNOWN", 50)
    monkeypatch.setattr(limits, "MAX_KEYS", 50)
    limiter = Limiter(ServerLimits(connections=5))
    held = limiter.enter(A, 0)
    limiter.prove(held, 0)
    for n in range(1000):
        host = f"198.51.{n // 256}.{n % 256}"
        limiter.refuses_handshake(host, None, 0.0)
        limiter.refuses_handshake(HERE, host, 0.0)
        limiter.recognise(host)
        limiter.spend(n.to_bytes(32, "big"), 1, 1, 0.0)
    assert len(limiter._sources) <= 50
    assert len(limiter._relays) <= 50
    assert len(limiter._known) <= 50
    assert len(limiter._keys) <= 56
    limiter.leave(held)


def test_a_key_that_sends_too_fast_is_read_more_slowly():
    limiter = Limiter(ServerLimits(records_per_key=1000, bytes_per_key=None))
    assert limiter.spend(A, 2000, 10**9, 0.0) == 0
    assert limiter.spend(A, 500, 0, 0.0) == pytest.approx(0.5)
    assert limiter.spend(B, 500, 0, 0.0) == 0
    statistics = limiter.statistics()
    assert (statistics.rates, statistics.delayed) == (1, pytest.approx(0.5))


def test_a_reconnect_does_not_renew_a_keys_rates():
    limiter = Limiter(ServerLimits(bytes_per_key=1000))
    for _ in range(2):
        place = limiter.enter(A, 0)
        limiter.prove(place, 0)
        delay = limiter.spend(A, 1, 2000, 0.0)
        limiter.leave(place)
    assert delay == pytest.approx(2.0)


def test_without_limits_nothing_is_refused():
    limiter = Limiter(
        ServerLimits(
            handshakes=None, handshakes_per_source=None, records_per_key=None, bytes_per_key=None
        )
    )
    assert not any(limiter.refuses_handshake(HERE, None, 0.0) for _ in range(10_000))
    assert limiter.spend(A, 10**9, 10**12, 0.0) == 0


def test_each_kind_is_logged_once_a_minute_with_what_was_held_back(caplog):
    complaints = Complaints(logging.getLogger("hyperlog.limits"))
    for second in range(100):
        complaints.warn("a", "too much", second)
        complaints.warn("b", "too many", second)
    texts = [entry.message for entry in caplog.records]
    assert texts == [
        "too much",
        "too many",
        "too much (and 59 times since the last such entry)",
        "too many (and 59 times since the last such entry)",
    ]
