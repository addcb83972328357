import pytest

from hyperlog.dht.rpc.reachability import FirewallTest

US = ("1.1.1.1", 4000)


def verdict(asked, answers, host="1.1.1.1", port=4000):
    test = FirewallTest(asked, host, port)
    for to, on_server_socket in answers:
        test.receive_answer(to, on_server_socket)
    for _ in range(asked - len(answers)):
        assert not test.finished
        test.receive_timeout()
    assert test.finished
    return test.open


@pytest.mark.parametrize(
    ("asked", "answered", "is_open"), [(5, 3, True), (5, 2, False), (4, 1, True), (4, 0, False)]
)
def test_three_of_five_or_one_of_fewer_must_get_through(asked, answered, is_open):
    assert verdict(asked, [(US, True)] * answered) is is_open


def test_answers_on_the_client_socket_prove_nothing():
    assert not verdict(5, [(US, False)] * 5)


def test_another_outside_host_than_that_of_the_client_socket_counts_as_closed():
    assert not verdict(3, [(US, True)] * 3, host="2.2.2.2")


def test_a_remapped_port_counts_as_closed():
    assert not verdict(3, [(("1.1.1.1", 777), True)] * 3)
    assert not verdict(3, [(("1.1.1.1", port), True) for port in (1, 2, 3)])


def test_nobody_to_ask_means_closed():
    assert not verdict(0, [])
