from __future__ import annotations

import pytest

from hyperlog.control import Greeting, ServerOffer
from hyperlog.dht import Announcement, KeyPair, NATJudgement, PeerAnswer, PeerProbe
from hyperlog.findings import Verdict
from hyperlog.peerjudgements import (
    judge_clock,
    judge_handshake,
    judge_no_path,
    judge_peer_nat,
    judge_record,
    judge_server,
)

OK, WARNING, FAILED, SKIPPED = Verdict
NODE = ("192.0.2.1", 1)
KEY = KeyPair.generate().public_key


def nat(kind, samples=4, translated=True):
    return NATJudgement(kind, (("203.0.113.7", 5),), samples, translated)


def answer(**changes):
    given = {
        "node": NODE,
        "direct": False,
        "round_trip_time": 0.05,
        "error": 0,
        "version": 1,
        "kind": "consistent",
        "seen_as": (("203.0.113.9", 7),),
        "local_addresses": (),
    }
    return PeerAnswer(**{**given, **changes})


@pytest.mark.parametrize(
    ("announcement", "named", "verdict", "text"),
    [
        (Announcement((NODE,) * 3, 20, 1), 0, OK, "3 nodes of 20 next to the key have it"),
        (Announcement((NODE,), 1, 0), 0, OK, "1 node of 1 next to the key has it"),
        (Announcement((NODE,), 20, 0), 0, WARNING, "a peer that is well connected"),
        (Announcement((), 20, 0), 0, FAILED, "not announced: none of 20 nodes"),
        (Announcement((), 0, 5), 0, FAILED, "nobody answered"),
        (Announcement((), 20, 0), 2, WARNING, "2 nodes named in the address"),
    ],
)
def test_the_record(announcement, named, verdict, text):
    finding = judge_record(announcement, named)
    assert finding.verdict is verdict
    assert text in finding.text


@pytest.mark.parametrize(
    ("stopped", "text"),
    [
        (["peer silent", "node silent"], "1 node passed it on, and nothing came back"),
        (["node silent"], "have gone themselves"),
        (["unknown to node", "node silent"], "do not pass anything on"),
        (["unreadable"], "cannot prove that it has this key"),
    ],
)
def test_a_handshake_that_got_stuck(stopped, text):
    reasons = {("192.0.2.1", port): reason for port, reason in enumerate(stopped, 1)}
    finding = judge_handshake(PeerProbe(None, reasons), KEY)
    assert finding.verdict is FAILED
    assert text in finding.text
    assert len(finding.details) == len(stopped)
    assert (KEY.hex() in finding.advice) == ("peer silent" in stopped)


@pytest.mark.parametrize(
    ("changes", "verdict", "text"),
    [
        ({}, OK, "answered through 192.0.2.1:1 in 50 ms"),
        ({"direct": True}, OK, "answered directly"),
        ({"version": 2}, FAILED, "version 2 of HyperDHT"),
        ({"error": 3}, FAILED, "refuses: try again later (error 3)"),
        ({"error": 99}, FAILED, "(error 99)"),
    ],
)
def test_a_handshake_that_was_answered(changes, verdict, text):
    finding = judge_handshake(PeerProbe(answer(**changes), {}), KEY)
    assert finding.verdict is verdict
    assert text in finding.text


@pytest.mark.parametrize(
    ("theirs", "ours", "verdict", "text"),
    [
        ("open", "random", OK, "everybody can reach the peer"),
        ("consistent", "consistent", OK, "same address and port of it (203.0.113.9)"),
        ("consistent", "random", OK, "by guessing ports"),
        ("random", "consistent", WARNING, "connecting takes guesses"),
        ("random", "random", WARNING, "no hole can be punched"),
        ("unknown", "open", OK, "1 view of it does not tell which kind"),
    ],
)
def test_nat_of_the_peer(theirs, ours, verdict, text):
    finding = judge_peer_nat(answer(kind=theirs), nat(ours))
    assert finding.verdict is verdict
    assert text in finding.text


def test_every_failure_to_connect_has_an_advice():
    for code in ("HOLEPUNCH_DOUBLE_RANDOMIZED_NATS", "PEER_CONNECTION_FAILED", "SOMETHING_ELSE"):
        finding = judge_no_path(code, "no")
        assert (finding.verdict, finding.text) == (FAILED, "no")
        assert finding.advice


def test_servers_are_known_by_their_greeting():
    assert judge_server(None).verdict is SKIPPED
    assert judge_server(Greeting()).figures == {"kind": "hypertrace-logger"}
    ours = judge_server(Greeting(hyperlog=ServerOffer(durability="fsync")))
    assert "outlives its machine" in ours.text


@pytest.mark.parametrize(
    ("skew", "verdict", "text"),
    [
        (0.4, OK, "agrees with the server's within 1 s"),
        (-4.4, OK, "within 4 s"),
        (61.2, WARNING, "61 s ahead of this one"),
        (-3600.0, WARNING, "3600 s behind this one"),
        (None, SKIPPED, "not measurable: why"),
    ],
)
def test_clocks(skew, verdict, text):
    finding = judge_clock(skew, "why")
    assert finding.verdict is verdict
    assert text in finding.text
