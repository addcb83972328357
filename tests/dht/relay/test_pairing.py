import random

import pytest

from hyperlog.dht.relay.messages import Pair
from hyperlog.dht.relay.pairing import Match, Pairings, Refusal


def token(number):
    return number.to_bytes(32, "big")


def ask(pairings, session, number, *, is_initiator=True, now=0.0):
    return pairings.request(session, Pair(is_initiator, token(number), 100 + number), now)


def test_two_halves_make_a_pair():
    pairings = Pairings()
    assert ask(pairings, "a", 1) is None
    match = ask(pairings, "b", 1, is_initiator=False)
    assert isinstance(match, Match)
    assert [(h.session, h.is_initiator, h.stream_id) for h in match.halves] == [
        ("a", True, 101),
        ("b", False, 101),
    ]
    assert (pairings.waiting, pairings.paired) == (0, 1)
    pairings.end(match)
    pairings.end(match)
    assert (pairings.waiting, pairings.paired) == (0, 0)
    assert pairings.count_of("a") == pairings.count_of("b") == 0


def test_the_same_role_twice_is_ignored():
    pairings = Pairings()
    ask(pairings, "a", 1)
    assert ask(pairings, "b", 1) is None
    match = ask(pairings, "b", 1, is_initiator=False)
    assert [half.session for half in match.halves] == ["a", "b"]


def test_one_session_may_be_both_halves():
    pairings = Pairings(max_pairs_per_session=1)
    ask(pairings, "a", 1)
    match = ask(pairings, "a", 1, is_initiator=False)
    assert isinstance(match, Match)
    assert pairings.leave("a") == [match]
    pairings.end(match)
    assert pairings.count_of("a") == 0


def test_limits_refuse_and_free_places_are_given_again():
    pairings = Pairings(max_pairs=1, max_pairs_per_session=2, max_waiting=3)
    assert ask(pairings, "a", 1) is None
    assert ask(pairings, "a", 2) is None
    assert ask(pairings, "a", 3) is Refusal.TOO_MANY_OF_SESSION
    assert ask(pairings, "b", 3) is None
    assert ask(pairings, "b", 4) is Refusal.TOO_MANY_WAITING
    match = ask(pairings, "c", 1, is_initiator=False)
    assert ask(pairings, "d", 1) is Refusal.TOKEN_IN_USE
    assert ask(pairings, "c", 2, is_initiator=False) is Refusal.TOO_MANY_PAIRS
    pairings.end(match)
    assert isinstance(ask(pairings, "c", 2, is_initiator=False), Match)


def test_a_half_waits_for_a_while_only():
    pairings = Pairings(wait_timeout=30.0)
    ask(pairings, "a", 1, now=0.0)
    ask(pairings, "b", 2, now=20.0)
    assert pairings.expire(29.9) == []
    [(expired, half)] = pairings.expire(30.0)
    assert (expired, half.session) == (token(1), "a")
    assert pairings.waiting == 1
    assert ask(pairings, "c", 1, is_initiator=False, now=31.0) is None


def test_whoever_leaves_waits_no_more_and_names_its_pairs():
    pairings = Pairings()
    ask(pairings, "a", 1)
    ask(pairings, "a", 2)
    match = ask(pairings, "b", 2, is_initiator=False)
    assert pairings.leave("a") == [match]
    assert pairings.waiting == 0
    assert pairings.leave("a") == [match]  # until it has ended
    assert pairings.leave("nobody") == []


def test_unpair_takes_a_waiting_half_back_and_names_a_pair_of_ones_own():
    pairings = Pairings()
    ask(pairings, "a", 1)
    assert pairings.unpair("a", token(1)) is None
    assert pairings.waiting == 0
    ask(pairings, "a", 2)
    match = ask(pairings, "b", 2, is_initiator=False)
    assert pairings.unpair("stranger", token(2)) is None
    assert pairings.unpair("b", token(2)) is match
    assert pairings.unpair("b", token(3)) is None


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_requests_keeps_the_tables_in_agreement(seed):
    rng = random.Random(seed)
    limits = {"max_pairs": 5, "max_pairs_per_session": 3, "max_waiting": 6, "wait_timeout": 10.0}
    pairings = Pairings(**limits)
    live = []
    for now in range(600):
        session, number = rng.randrange(8), rng.randrange(12)
        action = rng.choice(("ask", "ask", "ask", "unpair", "leave", "end"))
        if action == "ask":
            outcome = ask(pairings, session, number, is_initiator=rng.random() < 0.5, now=now)
            if isinstance(outcome, Match):
                live.append(outcome)
        elif action == "unpair":
            match = pairings.unpair(session, token(number))
            assert match is None or match in live
        elif action == "leave":
            assert set(pairings.leave(session)) <= set(live)
        elif live:
            pairings.end(live.pop(rng.randrange(len(live))))
        pairings.expire(now)
        assert pairings.paired == len(live) <= limits["max_pairs"]
        assert pairings.waiting <= limits["max_waiting"]
        held = {s: pairings.count_of(s) for s in range(8)}
        assert max(held.values()) <= limits["max_pairs_per_session"]
        in_pairs = [{half.session for half in match.halves} for match in live]
        assert sum(held.values()) == pairings.waiting + sum(map(len, in_pairs))
    for match in live:
        pairings.end(match)
    pairings.expire(10_000)
    assert all(pairings.count_of(session) == 0 for session in range(8))
