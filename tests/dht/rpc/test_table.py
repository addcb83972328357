import json
import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.rpc.messages import node_id, pack_address
from hyperlog.dht.rpc.table import MAX_ORDERS, Node, Table, distance

VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
ROUTING = json.loads((VECTORS / "routing-nat.json").read_text())["routingTable"]


def filled_table(seed, count, k=20):
    rng = random.Random(seed)
    table = Table(rng.randbytes(32), k)
    for _ in range(count):
        table.add(
            Node((f"10.0.{rng.randrange(256)}.{rng.randrange(256)}", rng.randrange(1, 65536)))
        )
    return table


def by_distance(nodes, target):
    return sorted(nodes, key=lambda node: distance(node.id, target))


def test_the_nodes_that_javascript_takes_in_are_taken_in():
    table = Table(bytes.fromhex(ROUTING["selfId"]), ROUTING["k"])
    for entry in ROUTING["nodes"]:
        assert table.add(Node((entry["host"], entry["port"]))) is entry["added"]
    assert len(table) == sum(entry["added"] for entry in ROUTING["nodes"])


def test_closest_has_the_nodes_that_javascript_finds_in_strict_order_of_distance():
    table = Table(bytes.fromhex(ROUTING["selfId"]), ROUTING["k"])
    for entry in ROUTING["nodes"]:
        table.add(Node((entry["host"], entry["port"])))
    for case in ROUTING["closest"]:
        target = bytes.fromhex(case["target"])
        closest = table.closest(target)
        assert closest == by_distance(table, target)[: table.k]
        # The JavaScript rows are walked in another order, so the far end may differ; the nodes of
        # the target's own row, which matter to a query, must all be there.
        javascript = {tuple(entry.rsplit(":", 1)) for entry in case["closest"]}
        ours = {(node.address[0], str(node.address[1])) for node in closest}
        nearest = {(node.address[0], str(node.address[1])) for node in table.row(target)}
        assert len(ours) == len(javascript)
        assert nearest & javascript <= ours


@given(st.integers(0, 2**32), st.integers(0, 300), st.integers(1, 40), st.integers(0, 255))
@settings(max_examples=60)
def test_closest_is_the_head_of_all_nodes_sorted_by_distance(seed, count, wanted, shared):
    table = filled_table(seed, count, k=8)
    own = int.from_bytes(table.id, "big")
    target = (own ^ (random.Random(seed).getrandbits(256) >> shared)).to_bytes(32, "big")
    assert table.closest(target, wanted) == by_distance(table, target)[:wanted]


def test_closest_to_our_own_id_works():
    table = filled_table(1, 100)
    assert table.closest(table.id) == by_distance(table, table.id)[:20]


def test_a_full_row_refuses_until_one_of_it_is_removed():
    table = filled_table(2, 500)
    refused = None
    for port in range(1, 65536):
        node = Node(("10.9.9.9", port))
        if len(table.row(node.id)) == table.k:
            refused = node
            break
    assert refused is not None
    assert not table.add(refused)
    assert table.remove(table.row(refused.id)[0])
    assert table.add(refused)
    assert refused in table


def test_the_table_is_bounded_by_its_rows():
    table = filled_table(3, 5000)
    assert len(table) < 20 * 14
    assert all(len(table.row(node.id)) <= 20 for node in table)


def test_neither_we_nor_a_node_twice_get_in():
    address = ("10.0.0.1", 1)
    table = Table(node_id(address))
    assert not table.add(Node(address))
    other = Node(("10.0.0.2", 2))
    assert table.add(other)
    assert not table.add(Node(("10.0.0.2", 2)))
    assert list(table) == [other]


def test_iteration_goes_from_the_longest_silence_to_the_latest_sign_of_life():
    table = Table(bytes(32))
    nodes = [Node(("10.0.0.1", port)) for port in (1, 2, 3)]
    for node in nodes:
        table.add(node)
    table.touch(nodes[0])
    assert list(table) == [nodes[1], nodes[2], nodes[0]]
    assert list(table.latest()) == [nodes[0], nodes[2], nodes[1]]


def test_removing_a_node_that_was_replaced_by_its_double_does_nothing():
    table = Table(bytes(32))
    first, second = Node(("10.0.0.1", 1)), Node(("10.0.0.1", 1))
    table.add(first)
    assert not table.remove(second)
    assert table.remove(first)
    assert not table.remove(first)
    assert len(table) == 0


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 80), st.randoms(use_true_random=False))
def test_packed_addresses_are_those_of_the_closest_nodes_after_every_change(seed, count, rng):
    table = filled_table(seed, count)
    known = list(table)
    for _ in range(40):
        near = known and rng.random() < 0.7
        base = int.from_bytes(rng.choice(known).id if near else rng.randbytes(32), "big")
        target = (base ^ rng.getrandbits(rng.choice([1, 200, 240, 256]))).to_bytes(32, "big")
        expected = b"".join(pack_address(node.address) for node in table.closest(target))
        assert table.closest_packed(target) == table.closest_packed(target) == expected
        if known and rng.random() < 0.2:
            table.remove(rng.choice(known))
        elif rng.random() < 0.2:
            table.add(Node(("10.1.0.1", rng.randrange(1, 65536))))


def test_packed_addresses_are_kept_within_bounds():
    table = filled_table(3, 200)
    rng = random.Random(3)
    for _ in range(3 * MAX_ORDERS):
        table.closest_packed(rng.randbytes(32))
        assert len(table._orders) <= MAX_ORDERS


def test_moving_to_another_id_keeps_the_nodes_that_fit():
    table = filled_table(4, 300)
    moved = table.moved_to(bytes(32))
    assert moved.id == bytes(32)
    assert set(moved) <= set(table)
    assert all(len(moved.row(node.id)) <= moved.k for node in moved)
    assert len(moved) >= 2 * moved.k
