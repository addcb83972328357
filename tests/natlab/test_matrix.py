"""Peers in both languages reach each other through the same NATs, on both networks, as fast.

By default: every pair of NATs with Python peers on Python nodes; each pair once more with one of
the six other choices of languages that have Python in them, going round; and JavaScript alone to
compare with, where that is over at once. HYPERLOG_LONG=1 takes the whole matrix, and repeats it.

How sure this is. What is no lottery (see matrix.Case) must succeed the first time. In a lottery
that needs the hit, one side sends 1,750 probes to random ports out of 64,536, of which 256 are
open: all miss with a probability of (1 - 256/64536) ** 1750 = 0.1 %, for JavaScript as for us. So a
case that failed is tried again, at most twice: 1e-9 for one case, 1e-7 for the hundred of a run.

How fast. Most of these times are a few milliseconds of processor time in a laboratory without
distances, where the packets of a connection that needs eight turns take 0.1 ms; there only a wait
that has no place would show, so that less than FLOOR is good enough. test_paths.py compares over
distances. The time of a lottery is geometrically distributed, with the same mean for the same
number of probes a second: that is compared, here, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import pytest
import trio

from tests.natlab.conftest import RESULTS
from tests.natlab.drivers import JAVASCRIPT, LANGUAGES, PYTHON
from tests.natlab.matrix import (
    ISOLATED,
    SAME_NAT,
    Case,
    Outcome,
    Results,
    all_cases,
    cases_of,
    run_cases,
    typical,
)
from tests.natlab.nats import FORWARDED, PORT_RESTRICTED, RANDOM, SYMMETRIC

LONG = bool(os.environ.get("HYPERLOG_LONG"))
REPEATS = 5 if LONG else 1
LABS = 5  # at a time, for each network
LOTTERY_TRIES = 3
SLOWER = 1.5  # times as long as JavaScript's
FLOOR = 1000.0  # ms
RELAY_DROPS = 1000.0  # ms
LIMIT = 1800 if LONG else 400  # s, for all cases together; they take 60 s by default

pytestmark = [pytest.mark.natlab, pytest.mark.interop, pytest.mark.timeout(LIMIT)]

BASELINE = cases_of(JAVASCRIPT, JAVASCRIPT, JAVASCRIPT)
OURS = cases_of(PYTHON, PYTHON, PYTHON)
MIXED = [
    (network, server, client)
    for network in LANGUAGES
    for server in LANGUAGES
    for client in LANGUAGES
    if PYTHON in (server, client) and (network, server, client) != (PYTHON, PYTHON, PYTHON)
]
HERE_AND_THERE = [
    Case(case.server_nat, case.client_nat, *MIXED[number % len(MIXED)])
    for number, case in enumerate(OURS)
]
CASES = (
    all_cases()
    if LONG
    else [
        *(case for case in BASELINE if not case.is_lottery),
        *OURS,
        *HERE_AND_THERE,
    ]
)


RELAYED_PAIRS = [(SYMMETRIC, SYMMETRIC), (PORT_RESTRICTED, ISOLATED)]
RELAYED = [
    Case(server_nat, client_nat, network, server, client, relay, relay_of)
    for server_nat, client_nat in RELAYED_PAIRS
    for network in (LANGUAGES if LONG else [PYTHON])
    for server in LANGUAGES
    for client in LANGUAGES
    for relay in LANGUAGES
    for relay_of in ("client", "server")
    if LONG or PYTHON in (server, client, relay)
]


def is_a_race(case: Case) -> bool:
    """Whether JavaScript alone now connects and now does not.

    Both find out meanwhile whether the server's port is open to the internet. Once it knows that, a
    client is told of its public address only, which behind the same router leads nowhere. A Python
    peer at either end tries the local address all the same.
    """
    alone = (case.server, case.client) == (JAVASCRIPT, JAVASCRIPT)
    return alone and (case.server_nat, case.client_nat) == (FORWARDED, SAME_NAT)


async def try_all(cases: Sequence[Case]) -> Results:
    results = await run_cases(cases, repeats=REPEATS, labs=LABS)
    for _ in range(LOTTERY_TRIES - 1):
        unlucky = [c for c in cases if c.is_lottery and not typical(results[c]).connected]
        if not unlucky:
            break
        for case, outcomes in (await run_cases(unlucky, labs=LABS)).items():
            results[case] = outcomes
    return results


@pytest.fixture(scope="module", name="results")
def fixture_results(request) -> Results:
    """Everything that was asked for, in one go: laboratories work side by side."""
    items = [item for item in request.session.items if item.module is request.module]
    wanted = {item.callspec.params["case"] for item in items if hasattr(item, "callspec")}
    if len(wanted) < len(items):  # those without a case of their own look at all
        wanted.update(CASES)
    wanted |= {case.baseline for case in wanted if not case.baseline.is_lottery}
    results = trio.run(try_all, [case for case in CASES + RELAYED if case in wanted])
    request.config.stash[RESULTS] = results
    return results


def describe(case: Case, outcomes: Sequence[Outcome]) -> str:
    return f"{case}: {', '.join(map(str, outcomes))}\n{outcomes[-1].message}"


def ids(case: Case) -> str:
    words = [case.server_nat, case.client_nat, case.network, case.server, case.client]
    return "-".join([*words, case.relay, case.relay_of] if case.relay else words)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_pair_connects_unless_only_a_relay_can_help(results, case):
    outcomes = results[case]
    if case.is_impossible:
        assert not any(outcome.connected for outcome in outcomes), describe(case, outcomes)
        assert all(outcome.error.startswith("HOLEPUNCH_") for outcome in outcomes)
        return
    if is_a_race(case):
        return
    assert all(outcome.connected for outcome in outcomes), describe(case, outcomes)
    if case.client_nat == SAME_NAT:
        assert {outcome.path for outcome in outcomes} <= {"lan"}, describe(case, outcomes)
    else:
        assert {o.path for o in outcomes} <= {"direct", "punched"}, describe(case, outcomes)
    if not case.is_lottery and case.baseline in results and not is_a_race(case.baseline):
        ours, theirs = typical(outcomes), typical(results[case.baseline])
        assert ours.milliseconds <= max(SLOWER * theirs.milliseconds, FLOOR), (
            f"{describe(case, outcomes)}\n{describe(case.baseline, results[case.baseline])}"
        )


@pytest.mark.parametrize("case", RELAYED, ids=ids)
def test_a_relay_connects_whom_nothing_else_does(results, case):
    """In no time: JavaScript peers and relay need 10 ms, or 1 s when the relay drops a packet.

    A JavaScript relay does so with what the first of the two sends before the second is heard of.
    """
    outcomes = results[case]
    assert {outcome.path for outcome in outcomes} == {"relayed"}, describe(case, outcomes)
    assert typical(outcomes).milliseconds <= RELAY_DROPS + FLOOR, describe(case, outcomes)


def probes_per_second(outcomes: Iterable[tuple[Case, Outcome]]) -> float:
    """Of the side that probes random ports, over all punches of a second or more."""
    probes, seconds = 0, 0.0
    for case, outcome in outcomes:
        number = outcome.probes[case.server_nat in RANDOM]
        if outcome.path == "punched" and outcome.milliseconds > 1000 and number:
            probes += number
            seconds += outcome.milliseconds / 1000
    return probes / seconds if seconds else 0.0


def test_random_ports_are_probed_as_fast(results):
    """The chance of a lottery is that of a probe, so that the rate tells the time it takes.

    48 a second with JavaScript peers on a machine at rest, which busy ones slow down alike.
    """
    lotteries = [(c, o) for c, outcomes in results.items() if c.is_lottery for o in outcomes]
    by_us = [(c, o) for c, o in lotteries if _prober(c) == PYTHON]
    by_others = [(c, o) for c, o in lotteries if _prober(c) == JAVASCRIPT]
    ours, theirs = probes_per_second(by_us), probes_per_second(by_others)
    assert ours * SLOWER >= min(theirs, 48.0), (ours, theirs)


def _prober(case: Case) -> str:
    return case.client if case.server_nat in RANDOM else case.server
