"""What a node learns of its own address."""

from hyperlog.dht.rpc.messages import Response, decode_untrusted, node_id

PEER = ("10.0.0.2", 2000)


def test_a_bootstrap_node_without_an_id_teaches_our_address_all_the_same(simulate):
    simulation = simulate(9)
    first = simulation.add(ephemeral=True, firewalled=False)
    node = simulation.add(ephemeral=False, firewalled=False)
    simulation.run(5.0)
    assert first.core.id is None
    assert node.core.id == node_id(node.address)
    assert node.core.identity.remote_address() == node.address


def test_strangers_without_an_id_give_only_a_few_nat_samples(simulate, make_core):
    core = make_core(outside_address=None)
    core.bootstrap([PEER, ("10.0.0.3", 3)], 0.0)
    for i in range(6):
        core.request(("10.5.0.1", 1 + i), 50)
    answered = 0
    for socket, address, data in core.datagrams_to_send(0.0):
        lie = ("6.6.6.6", answered + 1)
        tid = decode_untrusted(data).tid
        core.receive_datagram(Response(tid, lie).encode(), address, socket, 0.1)
        answered += 1
    assert answered > 6
    assert core.identity.nat.size == 2
