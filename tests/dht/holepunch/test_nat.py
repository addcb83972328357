import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.constants import (
    FIREWALL_CONSISTENT,
    FIREWALL_OPEN,
    FIREWALL_RANDOM,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.holepunch.nat import MAX_SAMPLES, Nat

VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
CASES = json.loads((VECTORS / "nat.json").read_text())["cases"]

HOST, OTHER = "1.1.1.1", "1.1.1.2"


def judged(*outside, firewalled=True):
    nat = Nat(firewalled)
    for index, address in enumerate(outside):
        nat.add(address, (f"2.2.2.{index}", 1))
    return nat


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_judgement_of_the_vectors(case):
    nat = Nat(case["firewalled"])
    frozen = False
    for step in case["steps"]:
        if step["frozen"] != frozen:
            frozen = step["frozen"]
            (nat.freeze if frozen else nat.unfreeze)()
        nat.add(tuple(step["to"]), tuple(step["from"]))
        assert nat.sampled == step["sampled"]
        assert nat.firewall == step["firewall"]
        addresses = step["addresses"]
        assert nat.addresses == (addresses and [tuple(address) for address in addresses])
        assert nat.settled == step["settled"]


def test_the_vectors_cover_every_kind():
    kinds = {step["firewall"] for case in CASES for step in case["steps"]}
    assert kinds == {
        FIREWALL_UNKNOWN,
        FIREWALL_OPEN,
        FIREWALL_CONSISTENT,
        FIREWALL_RANDOM,
    }


def test_three_equal_samples_are_consistent():
    nat = judged((HOST, 1), (HOST, 1), (HOST, 1))
    assert nat.firewall == FIREWALL_CONSISTENT
    assert nat.addresses == [(HOST, 1)]
    assert nat.settled


def test_three_different_ports_are_random():
    nat = judged((HOST, 1), (HOST, 2), (HOST, 3))
    assert nat.firewall == FIREWALL_RANDOM
    assert nat.addresses == [(HOST, 0)]
    assert not nat.settled  # a fourth sample may still be waited for


def test_two_of_three_equal_are_not_enough():
    assert judged((HOST, 1), (HOST, 1), (HOST, 2)).firewall == FIREWALL_UNKNOWN
    assert judged((HOST, 1), (HOST, 1), (HOST, 2), (HOST, 2)).firewall == FIREWALL_RANDOM


def test_two_uplinks_are_consistent():
    nat = judged((HOST, 1), (OTHER, 1), (HOST, 1), (OTHER, 1))
    assert nat.firewall == FIREWALL_CONSISTENT
    assert nat.addresses == [(HOST, 1), (OTHER, 1)]


def test_an_open_node_is_open():
    nat = judged((HOST, 1), (HOST, 2), (HOST, 3), firewalled=False)
    assert nat.firewall == FIREWALL_OPEN
    assert nat.addresses is None


def test_a_node_counts_once():
    nat = Nat()
    for port in (1, 2, 3):
        nat.add((HOST, port), ("2.2.2.2", 1))
    assert nat.sampled == 1


def test_a_frozen_judgement_stays_until_unfrozen():
    nat = judged((HOST, 1), (HOST, 2), (HOST, 3))
    nat.freeze()
    for index in range(4):
        nat.add((HOST, 1), (f"3.3.3.{index}", 1))
    assert nat.firewall == FIREWALL_RANDOM
    nat.unfreeze()
    assert nat.firewall == FIREWALL_CONSISTENT


def test_nodes_are_asked_once_and_the_newest_of_many_are_spared():
    nodes = [("2.2.2.2", port) for port in range(10)]
    nat = Nat()
    assert nat.nodes_to_ping(nodes) == nodes[5:9]
    nat.add((HOST, 1), nodes[5])
    assert nat.nodes_to_ping(nodes) == [nodes[9], *nodes[:2]]
    assert nat.nodes_to_ping(nodes) == nodes[2:5]
    assert nat.nodes_to_ping(nodes) == []
    assert not nat.settled
    nat.give_up()
    assert nat.settled
    assert Nat().nodes_to_ping(nodes[:7]) == nodes[:4]


def test_enough_samples_end_the_asking():
    nat = judged((HOST, 1), (HOST, 2), (HOST, 3), (HOST, 4))
    assert nat.settled
    assert nat.nodes_to_ping([("2.2.2.9", 9)]) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 200)), max_size=150))
def test_any_samples_leave_a_sane_judgement(samples):
    nat = Nat()
    for host, port, reporter in samples:
        nat.add((f"1.1.1.{host}", 1000 + port), ("2.2.2.2", reporter))
    assert nat.sampled <= MAX_SAMPLES
    assert (nat.addresses is None) == (nat.firewall == FIREWALL_UNKNOWN)
    if nat.firewall == FIREWALL_RANDOM:
        assert [port for _, port in nat.addresses] == [0]
    elif nat.addresses:
        assert len(set(nat.addresses)) == len(nat.addresses)
