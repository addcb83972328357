"""One side's probes, whatever happens; how two sides meet is in test_strategies.py."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.constants import (
    FIREWALL_CONSISTENT,
    FIREWALL_OPEN,
    FIREWALL_RANDOM,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.holepunch.nat import Nat
from hyperlog.dht.holepunch.puncher import (
    BIRTHDAY_SOCKETS,
    DEFAULT_TTL,
    LOW_TTL,
    MAX_REMOTE_ADDRESSES,
    MIN_BIRTHDAY_SOCKETS,
    RANDOM_PROBES,
    SPARED_SOCKETS,
    NotPunchable,
    Puncher,
    Strategy,
)

CLIENT, SERVER, STRANGER = ("1.1.1.1", 1001), ("2.2.2.2", 2002), ("3.3.3.3", 3003)


def nat_of(address, firewall=FIREWALL_CONSISTENT):
    nat = Nat(firewalled=firewall != FIREWALL_OPEN)
    if firewall != FIREWALL_UNKNOWN:
        for index in range(3):
            port = address[1] + (index if firewall == FIREWALL_RANDOM else 0)
            nat.add((address[0], port), ("9.9.9.9", index))
    assert nat.firewall == firewall
    return nat


def puncher(is_initiator=True, local=FIREWALL_CONSISTENT, seed=0):
    address = CLIENT if is_initiator else SERVER
    return Puncher(is_initiator, nat_of(address, local), rng=random.Random(seed))


def initiator(local=FIREWALL_CONSISTENT, remote=FIREWALL_CONSISTENT, **options):
    created = puncher(True, local)
    know(created, remote=remote, **options)
    return created


def know(puncher, addresses=(SERVER,), remote=FIREWALL_CONSISTENT, verified=SERVER[0]):
    puncher.update_remote(
        punching=True, firewall=remote, addresses=addresses, verified_host=verified
    )


def open_all_sockets(puncher, now=0.0):
    """Give the puncher what it asks for; the probes of that."""
    probes = []
    while puncher.sockets_missing:
        puncher.socket_opened(now)
        probes += puncher.probes_to_send(now)
    return probes


def run(puncher, until=100.0, start=0.0):
    """The probes of each moment at which there were any."""
    sent = []
    now = start
    while True:
        probes = puncher.probes_to_send(now)
        if probes:
            sent.append((now, probes))
        due_at = puncher.get_timer()
        if due_at is None or due_at > until:
            return sent
        now = due_at


# -- both consistent -------------------------------------------------------------------------------


def test_the_initiator_probes_ten_times_a_second_apart_and_fails():
    client = initiator()
    assert client.punch(0.0) is Strategy.CONSISTENT
    assert client.punching
    assert run(client) == [(float(i), [(0, SERVER, DEFAULT_TTL)]) for i in range(10)]
    assert client.failed
    assert not client.punching
    assert client.get_timer() is None


def test_the_server_leaves_the_initiator_the_first_second():
    server = puncher(False)
    know(server, [CLIENT], verified=CLIENT[0])
    assert server.punch(0.0) is Strategy.CONSISTENT
    assert [now for now, _ in run(server)] == [float(i) for i in range(1, 11)]


def test_unverified_addresses_are_probed_every_fourth_round():
    client = initiator(addresses=(SERVER, STRANGER, ("2.2.2.2", 0)))
    client.punch(0.0)
    rounds = run(client)
    assert [now for now, probes in rounds if (0, STRANGER, DEFAULT_TTL) in probes] == [3.0, 7.0]
    assert all(probe.address[1] for _, probes in rounds for probe in probes)


def test_a_verified_host_stays_verified_while_the_peer_names_it():
    client = initiator()
    know(client, [SERVER, ("2.2.2.2", 9), STRANGER], verified=None)
    assert [known.verified for known in client.remote_addresses] == [True, True, False]
    know(client, [STRANGER], verified=None)
    know(client, [SERVER], verified=None)
    assert [known.verified for known in client.remote_addresses] == [False]


def test_the_number_of_remote_addresses_is_bounded():
    client = initiator(addresses=[("2.2.2.2", port) for port in range(1, 1000)])
    client.punch(0.0)
    assert len(client.probes_to_send(0.0)) == MAX_REMOTE_ADDRESSES


def test_open_counts_as_consistent():
    assert initiator(FIREWALL_OPEN, FIREWALL_OPEN).punch(0.0) is Strategy.CONSISTENT


# -- the peer is random ----------------------------------------------------------------------------


@pytest.mark.parametrize("named_port", [0, SERVER[1]])
def test_random_ports_of_the_verified_host_are_probed_20_ms_apart(named_port):
    client = initiator(
        remote=FIREWALL_RANDOM, addresses=(STRANGER, (SERVER[0], named_port)), verified=SERVER[0]
    )
    assert client.punch(0.0) is Strategy.RANDOM_REMOTE
    assert client.sockets_missing == 0
    moments = run(client)
    assert [now for now, _ in moments] == pytest.approx([0.02 * i for i in range(RANDOM_PROBES)])
    assert all(len(probes) == 1 for _, probes in moments)
    probes = [probes[0] for _, probes in moments]
    assert {(probe.socket, probe.address[0], probe.ttl) for probe in probes} == {
        (0, SERVER[0], DEFAULT_TTL)
    }
    ports = [probe.address[1] for probe in probes]
    assert 1000 <= min(ports) < 1500
    assert 65000 < max(ports) <= 65535
    assert len(set(ports)) > 1600  # drawn, not counted up
    assert ports != sorted(ports)
    assert client.failed


def test_both_sides_probe_a_random_peer_at_once():
    server = puncher(False)
    know(server, [(CLIENT[0], 0)], remote=FIREWALL_RANDOM, verified=CLIENT[0])
    assert server.punch(5.0) is Strategy.RANDOM_REMOTE
    assert len(server.probes_to_send(5.0)) == 1


def test_a_busy_program_does_not_catch_up_in_a_burst():
    client = initiator(remote=FIREWALL_RANDOM)
    client.punch(0.0)
    client.probes_to_send(0.0)
    assert len(client.probes_to_send(7.0)) == 1
    assert client.probes_to_send(7.01) == []
    assert client.get_timer() == pytest.approx(7.02)


# -- we are random ---------------------------------------------------------------------------------


def test_256_sockets_open_our_nat_with_one_probe_each():
    client = initiator(FIREWALL_RANDOM)
    assert client.punch(0.0) is Strategy.RANDOM_LOCAL
    assert client.sockets_missing == BIRTHDAY_SOCKETS - 1
    assert client.get_timer() is None  # until the sockets are there
    assert client.probes_to_send(50.0) == []
    probes = open_all_sockets(client, now=60.0)
    assert probes == [(number, SERVER, LOW_TTL) for number in range(1, BIRTHDAY_SOCKETS)]
    assert client.get_timer() == pytest.approx(60.1)


def test_then_probes_leave_from_all_sockets_in_turn():
    client = initiator(FIREWALL_RANDOM)
    client.punch(0.0)
    open_all_sockets(client)
    moments = run(client)
    assert [now for now, _ in moments] == pytest.approx(
        [0.1 + 0.02 * i for i in range(RANDOM_PROBES)]
    )
    probes = [probe for _, probes in moments for probe in probes]
    assert [probe.socket for probe in probes] == [i % BIRTHDAY_SOCKETS for i in range(1750)]
    assert {probe.address for probe in probes} == {SERVER}
    ttls = [probe.ttl for probe in probes]
    assert ttls == [LOW_TTL] * BIRTHDAY_SOCKETS + [DEFAULT_TTL] * (1750 - BIRTHDAY_SOCKETS)
    assert client.failed


def test_a_verified_address_without_a_port_is_no_target_for_many_sockets():
    client = initiator(FIREWALL_RANDOM, addresses=((SERVER[0], 0),))
    refused = client.punch(0.0)
    assert isinstance(refused, NotPunchable)


def test_a_probe_may_come_to_any_of_the_sockets():
    client = initiator(FIREWALL_RANDOM)
    client.punch(0.0)
    open_all_sockets(client)
    client.receive_probe(200, SERVER)
    assert client.connected == (200, SERVER)
    assert client.get_timer() is None
    assert client.probes_to_send(10.0) == []


def test_the_server_answers_from_the_socket_that_was_hit():
    server = puncher(False, FIREWALL_RANDOM)
    know(server, [CLIENT], verified=CLIENT[0])
    server.punch(0.0)
    open_all_sockets(server)
    server.receive_probe(77, CLIENT)
    assert server.probes_to_send(0.0) == [(77, CLIENT, DEFAULT_TTL)]
    assert server.punching


def test_no_socket_is_asked_for_when_the_probe_came_first():
    client = initiator(FIREWALL_RANDOM)
    client.punch(0.0)
    client.socket_opened(0.0)
    client.receive_probe(1, SERVER)
    assert client.sockets_missing == 0
    with pytest.raises(LocalProtocolError):
        client.socket_opened(0.0)


def test_a_system_with_few_sockets_gets_some_back_and_the_others_do():
    client = initiator(FIREWALL_RANDOM)
    client.punch(0.0)
    for _ in range(149):
        client.socket_opened(0.0)
    assert client.sockets_exhausted(3.0) == 150 - SPARED_SOCKETS
    assert client.sockets_missing == 0
    moments = run(client, start=3.0)
    used = {probe.socket for _, probes in moments for probe in probes}
    assert used == set(range(150 - SPARED_SOCKETS))
    assert client.failed
    assert sum(len(probes) for now, probes in moments if now > 3.0) == RANDOM_PROBES


@pytest.mark.parametrize("opened", [0, 10, MIN_BIRTHDAY_SOCKETS + SPARED_SOCKETS - 2])
def test_too_few_sockets_end_the_attempt(opened):
    client = initiator(FIREWALL_RANDOM)
    client.punch(0.0)
    for _ in range(opened):
        client.socket_opened(0.0)
    assert client.sockets_exhausted(0.0) == max(opened + 1 - SPARED_SOCKETS, 1)
    assert client.failed
    assert not client.punching
    assert client.get_timer() is None


# -- what ends it ----------------------------------------------------------------------------------


def test_the_first_probe_wins_for_the_initiator():
    client = initiator()
    client.open_session(SERVER)
    assert client.probes_to_send(0.0) == [(0, SERVER, LOW_TTL)]
    client.punch(0.0)
    client.receive_probe(0, STRANGER)
    client.receive_probe(0, SERVER)
    assert client.connected == (0, STRANGER)
    assert client.over
    assert client.probes_to_send(5.0) == []
    assert client.get_timer() is None
    assert isinstance(client.punch(6.0), Strategy)
    assert not client.punching


def test_a_probe_may_come_before_punching():
    client = puncher()
    client.receive_probe(0, SERVER)
    assert client.connected == (0, SERVER)
    know(client)
    assert isinstance(client.punch(1.0), NotPunchable)


def test_the_server_answers_every_probe():
    server = puncher(False)
    for address in (CLIENT, STRANGER, CLIENT):
        server.receive_probe(0, address)
    assert server.connected is None
    assert [probe.address for probe in server.probes_to_send(0.0)] == [CLIENT, STRANGER, CLIENT]
    assert server.probes_to_send(0.0) == []


def test_answers_that_nobody_fetches_are_bounded():
    server = puncher(False)
    for port in range(1, 1000):
        server.receive_probe(0, ("1.1.1.1", port))
    assert len(server.probes_to_send(0.0)) == 64


@pytest.mark.parametrize(
    ("local", "remote", "verified", "reason"),
    [
        (FIREWALL_RANDOM, FIREWALL_RANDOM, SERVER[0], "both sides have random"),
        (FIREWALL_UNKNOWN, FIREWALL_CONSISTENT, SERVER[0], "does not know"),
        (FIREWALL_CONSISTENT, FIREWALL_UNKNOWN, SERVER[0], "does not know"),
        (FIREWALL_CONSISTENT, FIREWALL_RANDOM, None, "no address of the peer is verified"),
        (FIREWALL_CONSISTENT, FIREWALL_RANDOM, "7.7.7.7", "no address of the peer is verified"),
        (FIREWALL_RANDOM, FIREWALL_CONSISTENT, None, "no address of the peer is verified"),
    ],
)
def test_pairs_of_nats_that_cannot_be_punched(local, remote, verified, reason):
    client = initiator(local, remote, verified=verified)
    refused = client.punch(0.0)
    assert isinstance(refused, NotPunchable)
    assert reason in refused.reason
    assert not client.punching
    assert client.sockets_missing == 0
    assert client.probes_to_send(0.0) == []


def test_without_an_address_there_is_nothing_to_punch():
    assert isinstance(initiator(addresses=None).punch(0.0), NotPunchable)


@pytest.mark.parametrize(
    ("local", "remote", "unstable", "is_random"),
    [
        (FIREWALL_UNKNOWN, FIREWALL_CONSISTENT, True, False),
        (FIREWALL_RANDOM, FIREWALL_RANDOM, True, True),
        (FIREWALL_RANDOM, FIREWALL_CONSISTENT, False, True),
        (FIREWALL_CONSISTENT, FIREWALL_UNKNOWN, False, False),
        (FIREWALL_CONSISTENT, FIREWALL_RANDOM, False, True),
    ],
)
def test_a_socket_is_unstable_when_another_may_be_luckier(local, remote, unstable, is_random):
    client = initiator(local, remote)
    assert client.unstable is unstable
    assert client.random is is_random


def test_another_socket_brings_its_own_nat_until_probing_has_begun():
    client = initiator(FIREWALL_UNKNOWN)
    client.open_session(SERVER)
    client.replace_socket(nat_of(CLIENT))
    assert client.probes_to_send(0.0) == []
    assert not client.unstable
    client.punch(0.0)
    with pytest.raises(LocalProtocolError):
        client.replace_socket(nat_of(CLIENT))


def test_a_closed_puncher_is_silent():
    client = initiator()
    client.punch(0.0)
    client.ping(SERVER)
    client.close()
    client.ping(SERVER)
    client.receive_probe(0, SERVER)
    assert client.probes_to_send(0.0) == []
    assert client.get_timer() is None
    assert client.connected is None


# -- whatever happens ------------------------------------------------------------------------------

FIREWALLS = [FIREWALL_UNKNOWN, FIREWALL_OPEN, FIREWALL_CONSISTENT, FIREWALL_RANDOM, 7]
ACTIONS = ["punch", "probe", "ping", "open", "know", "close", "send", "socket", "exhausted"]


@given(
    st.booleans(),
    st.sampled_from(FIREWALLS[:4]),
    st.sampled_from(FIREWALLS),
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.floats(0, 3), st.integers(0, 3)), max_size=60),
)
def test_any_order_of_calls_ends_silent_and_spares_strangers(is_initiator, local, remote, steps):
    punching = puncher(is_initiator, local)
    asked_for, answered = 0, 0
    verified = set()
    now = 0.0

    def check(probes):
        nonlocal answered
        for probe in probes:
            assert probe.address[1] != 0
            if probe.address[0] == "5.5.5.5":
                answered += 1
            elif punching.strategy is not Strategy.CONSISTENT:
                assert probe.address[0] in verified
        return len(probes)

    for action, pause, number in steps:
        now += pause
        if action == "punch":
            punching.punch(now)
        elif action in ("probe", "ping", "open"):
            asked_for += 1
            if action == "probe":
                punching.receive_probe(0, ("5.5.5.5", number))
            elif action == "ping":
                punching.ping(("5.5.5.5", number))
            else:
                punching.open_session(("5.5.5.5", number))
        elif action == "know":
            proven = f"2.2.2.{number}" if number % 2 else None
            know(punching, [(f"2.2.2.{number}", number), ("2.2.2.9", 9)], remote, proven)
            verified.add(proven)
        elif action == "socket":
            for _ in range(min(punching.sockets_missing, 40)):
                punching.socket_opened(now)
        elif action == "exhausted" and punching.sockets_missing:
            punching.sockets_exhausted(now)
        elif action == "close":
            punching.close()
        else:
            check(punching.probes_to_send(now))
    while punching.sockets_missing:
        punching.socket_opened(now)
        check(punching.probes_to_send(now))
    total = 0
    while (due_at := punching.get_timer()) is not None:
        now = max(now, due_at)
        total += check(punching.probes_to_send(now))
    check(punching.probes_to_send(now))
    assert total <= RANDOM_PROBES + 64
    assert answered <= asked_for
    assert punching.probes_to_send(now + 1000.0) == []


@given(st.integers(0, 2**32), st.floats(0, 40))
def test_closed_at_any_moment_it_is_silent_from_then_on(seed, moment):
    rng = random.Random(seed)
    local, remote = rng.choice(
        [
            (FIREWALL_CONSISTENT, FIREWALL_CONSISTENT),
            (FIREWALL_CONSISTENT, FIREWALL_RANDOM),
            (FIREWALL_RANDOM, FIREWALL_CONSISTENT),
        ]
    )
    client = initiator(local, remote)
    client.punch(0.0)
    for _ in range(rng.randrange(300)):
        if client.sockets_missing:
            client.socket_opened(0.0)
    run(client, until=moment)
    client.close()
    assert client.over
    assert client.sockets_missing == 0
    assert client.get_timer() is None
    assert client.probes_to_send(moment + 1.0) == []
