from __future__ import annotations

import pytest

from hyperlog.dht import (
    NameLookup,
    NATJudgement,
    NodeProbe,
)
from hyperlog.findings import Verdict
from hyperlog.judgements import (
    judge_bootstrap,
    judge_joining,
    judge_names,
    judge_nat,
    judge_udp,
)

OK, WARNING, FAILED, _ = Verdict
NODE = ("192.0.2.1", 1)
NAMED = ("node.example", 1)


def lookup(address=NODE, source="name service", failure=None, node=NAMED):
    return NameLookup(node, address, 0.012, source, failure)


def probe(failure=None, node=NODE):
    return NodeProbe(node, None if failure else 0.031, failure)


def nat(kind, samples=4, translated=True):
    return NATJudgement(kind, (("203.0.113.7", 5),), samples, translated)


@pytest.mark.parametrize(
    ("lookups", "verdict", "text"),
    [
        ([lookup(source="literal", node=NODE)], OK, "nothing to look up"),
        ([lookup(), lookup()], OK, "2 names of bootstrap nodes found, in 12 ms"),
        ([lookup(None, failure="unknown name")], FAILED, "there is no such name as node.example"),
        (
            [lookup(None, failure="unknown name")] * 2,
            FAILED,
            "2 of 2 names cannot be found",
        ),
        ([lookup(), lookup(None, failure="unknown name")], WARNING, "1 of 2 names cannot be found"),
        ([lookup(None, failure="no name service")], FAILED, "no name server answers"),
        (
            [lookup(source="program", failure="no name service")],
            WARNING,
            "no name server answers, but their addresses are known",
        ),
    ],
)
def test_names(lookups, verdict, text):
    finding = judge_names(lookups)
    assert finding.verdict is verdict
    assert text in finding.text
    assert (finding.advice is None) == (verdict is OK)


@pytest.mark.parametrize(
    ("failures", "named", "verdict", "text"),
    [
        ([None, "silent"], False, OK, "answers come back"),
        (["refused", "silent"], False, OK, "nothing listens there"),
        (["forbidden"], False, FAILED, "this machine's own firewall"),
        (["unreachable"], False, FAILED, "not connected"),
        (["silent"], True, FAILED, "although names are found: UDP seems to be blocked"),
        (["silent", "unreachable"], False, FAILED, "or none of the nodes runs"),
    ],
)
def test_udp(failures, named, verdict, text):
    lookups = [lookup()] if named else [lookup(source="literal", node=NODE)]
    finding = judge_udp([probe(failure) for failure in failures], lookups)
    assert finding.verdict is verdict
    assert text in finding.text
    assert (finding.advice is None) == (verdict is OK)


@pytest.mark.parametrize(
    ("failures", "verdict", "text"),
    [
        ([None], OK, "192.0.2.1:1 answers in 31 ms"),
        ([None, None], OK, "all 2 answer, the nearest in 31 ms"),
        ([None, "silent"], WARNING, "1 of 2 answer"),
        (["refused"], FAILED, "192.0.2.1:1 does not answer"),
        (["refused", "silent"], FAILED, "none of 2 answers"),
    ],
)
def test_bootstrap_nodes(failures, verdict, text):
    finding = judge_bootstrap([probe(failure) for failure in failures])
    assert (finding.verdict, finding.text.startswith(text)) == (verdict, True)


def test_a_network_without_persistent_nodes_is_a_warning():
    assert judge_joining(38, 0.4).text == "joined in 400 ms; 38 nodes known"
    assert judge_joining(0, 0.4).verdict is WARNING


@pytest.mark.parametrize(
    ("judged", "verdict", "text"),
    [
        (nat("open"), OK, "everybody can reach this machine at 203.0.113.7"),
        (nat("consistent"), OK, "both sides can punch a hole"),
        (nat("consistent", translated=False), OK, "without translation of addresses"),
        (nat("random"), WARNING, "another port of 203.0.113.7"),
        (nat("unknown", 2), WARNING, "2 nodes told"),
    ],
)
def test_nat_of_this_side(judged, verdict, text):
    finding = judge_nat(judged)
    assert finding.verdict is verdict
    assert text in finding.text
