from hyperlog.dht.rpc.witnesses import MAX_WITNESSES, PATIENCE, Witnesses

HOME = ("1.1.1.1", 4000)
AWAY = ("2.2.2.2", 4000)


def node(number):
    return (f"10.0.0.{number}", 1)


def hear_all(witnesses, words, known=HOME, now=0.0):
    return [witnesses.hear(node(n), to, known, now) for n, to in enumerate(words)]


def test_three_nodes_in_a_row_that_agree_are_believed():
    assert hear_all(Witnesses(), [AWAY] * 3) == [False, False, True]


def test_one_node_is_not_believed_however_often_it_says_so():
    witnesses = Witnesses()
    assert not any(witnesses.hear(node(1), AWAY, HOME, 0.0) for _ in range(20))


def test_one_host_is_not_believed_through_however_many_nodes():
    witnesses = Witnesses()
    nodes = [("9.9.9.9", port) for port in range(1, 20)]
    for to in (AWAY, ("9.9.9.9", 5)):
        assert not any(witnesses.hear(node, to, HOME, 0.0) for node in nodes)


def test_nodes_on_our_own_host_count_each_for_itself():
    witnesses = Witnesses()
    nodes = [(HOME[0], port) for port in (1, 2, 3)]
    assert [witnesses.hear(node, AWAY, HOME, 0.0) for node in nodes] == [False, False, True]


def test_a_node_that_sees_us_where_we_were_contradicts_the_others():
    assert not any(hear_all(Witnesses(), [AWAY, AWAY, HOME, AWAY, AWAY]))


def test_nodes_that_disagree_among_themselves_prove_nothing():
    assert not any(hear_all(Witnesses(), [("2.2.2.2", 1), ("3.3.3.3", 1), ("4.4.4.4", 1)] * 3))


def test_another_port_is_another_address_unless_the_nat_uses_many():
    ports = [("1.1.1.1", port) for port in (5, 6, 7)]
    assert hear_all(Witnesses(), ports) == [False, False, True]
    assert not any(hear_all(Witnesses(), ports, known=("1.1.1.1", 0)))
    assert hear_all(Witnesses(), [AWAY] * 3, known=("1.1.1.1", 0))[-1]


def test_having_moved_is_not_found_again_for_some_time():
    witnesses = Witnesses()
    hear_all(witnesses, [AWAY] * 3)
    assert not any(hear_all(witnesses, [HOME] * 8, known=AWAY, now=PATIENCE - 1))
    assert hear_all(witnesses, [HOME] * 3, known=AWAY, now=PATIENCE)[-1]


def test_only_so_many_nodes_are_remembered():
    witnesses = Witnesses()
    hear_all(witnesses, [HOME] * 1000)
    assert len(witnesses._said) == MAX_WITNESSES
