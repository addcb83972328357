import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.constants import (
    FIREWALL_CONSISTENT,
    FIREWALL_OPEN,
    FIREWALL_RANDOM,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.holepunch.nat import Nat
from hyperlog.dht.holepunch.payload import HolepunchPayload, SecurePayload
from hyperlog.dht.holepunch.puncher import (
    DEFAULT_TTL,
    LOW_TTL,
    MAX_REMOTE_ADDRESSES,
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


def initiator(local=FIREWALL_CONSISTENT, remote=FIREWALL_CONSISTENT, **options):
    puncher = Puncher(True, nat_of(CLIENT, local))
    know(puncher, remote=remote, **options)
    return puncher


def know(puncher, addresses=(SERVER,), remote=FIREWALL_CONSISTENT, verified=SERVER[0]):
    puncher.update_remote(
        punching=True, firewall=remote, addresses=addresses, verified_host=verified
    )


def run(puncher, until):
    """The probes of each moment at which there were any."""
    sent = []
    now = 0.0
    while True:
        probes = puncher.probes_to_send(now)
        if probes:
            sent.append((now, probes))
        due_at = puncher.get_timer()
        if due_at is None or due_at > until:
            return sent
        now = due_at


def test_the_initiator_probes_ten_times_a_second_apart_and_fails():
    puncher = initiator()
    assert puncher.punch(0.0) is Strategy.CONSISTENT
    assert puncher.punching
    assert run(puncher, 100.0) == [(float(i), [(SERVER, DEFAULT_TTL)]) for i in range(10)]
    assert puncher.failed
    assert not puncher.punching
    assert puncher.get_timer() is None


def test_the_server_leaves_the_initiator_the_first_second():
    puncher = Puncher(False, nat_of(SERVER))
    know(puncher, [CLIENT], verified=CLIENT[0])
    assert puncher.punch(0.0) is Strategy.CONSISTENT
    assert [now for now, _ in run(puncher, 100.0)] == [float(i) for i in range(1, 11)]


def test_unverified_addresses_are_probed_every_fourth_round():
    puncher = initiator(addresses=(SERVER, STRANGER, ("2.2.2.2", 0)))
    puncher.punch(0.0)
    rounds = run(puncher, 100.0)
    assert [now for now, probes in rounds if (STRANGER, DEFAULT_TTL) in probes] == [3.0, 7.0]
    assert all(address[1] for _, probes in rounds for address, _ in probes)


def test_a_verified_host_stays_verified_while_the_peer_names_it():
    puncher = initiator()
    know(puncher, [SERVER, ("2.2.2.2", 9), STRANGER], verified=None)
    assert [known.verified for known in puncher.remote_addresses] == [True, True, False]
    know(puncher, [STRANGER], verified=None)
    know(puncher, [SERVER], verified=None)
    assert [known.verified for known in puncher.remote_addresses] == [False]


def test_the_number_of_remote_addresses_is_bounded():
    puncher = initiator(addresses=[("2.2.2.2", port) for port in range(1, 1000)])
    puncher.punch(0.0)
    assert len(puncher.probes_to_send(0.0)) == MAX_REMOTE_ADDRESSES


def test_the_first_probe_wins_for_the_initiator():
    puncher = initiator()
    puncher.open_session(SERVER)
    assert puncher.probes_to_send(0.0) == [(SERVER, LOW_TTL)]
    puncher.punch(0.0)
    puncher.receive_probe(STRANGER, 0.1)
    puncher.receive_probe(SERVER, 0.2)
    assert puncher.connected_address == STRANGER
    assert puncher.probes_to_send(5.0) == []
    assert puncher.get_timer() is None
    assert isinstance(puncher.punch(6.0), Strategy)
    assert not puncher.punching


def test_a_probe_may_come_before_punching():
    puncher = Puncher(True, nat_of(CLIENT))
    puncher.receive_probe(SERVER, 0.0)
    assert puncher.connected_address == SERVER
    know(puncher)
    assert isinstance(puncher.punch(1.0), NotPunchable)


def test_the_server_answers_every_probe():
    puncher = Puncher(False, nat_of(SERVER))
    for address in (CLIENT, STRANGER, CLIENT):
        puncher.receive_probe(address, 0.0)
    assert puncher.connected_address is None
    assert puncher.probes_to_send(0.0) == [
        (CLIENT, DEFAULT_TTL),
        (STRANGER, DEFAULT_TTL),
        (CLIENT, DEFAULT_TTL),
    ]
    assert puncher.probes_to_send(0.0) == []


def test_answers_that_nobody_fetches_are_bounded():
    puncher = Puncher(False, nat_of(SERVER))
    for port in range(1, 1000):
        puncher.receive_probe(("1.1.1.1", port), 0.0)
    assert len(puncher.probes_to_send(0.0)) == 64


@pytest.mark.parametrize(
    ("local", "remote", "verified", "reason"),
    [
        (FIREWALL_RANDOM, FIREWALL_RANDOM, SERVER[0], "both sides have random"),
        (FIREWALL_UNKNOWN, FIREWALL_CONSISTENT, SERVER[0], "does not know"),
        (FIREWALL_CONSISTENT, FIREWALL_UNKNOWN, SERVER[0], "does not know"),
        (FIREWALL_CONSISTENT, FIREWALL_RANDOM, None, "no address of the peer is verified"),
        (FIREWALL_CONSISTENT, FIREWALL_RANDOM, SERVER[0], "not supported yet: random ports"),
        (FIREWALL_RANDOM, FIREWALL_CONSISTENT, SERVER[0], "not supported yet: many sockets"),
    ],
)
def test_pairs_of_nats_that_cannot_be_punched(local, remote, verified, reason):
    puncher = initiator(local, remote, verified=verified)
    refused = puncher.punch(0.0)
    assert isinstance(refused, NotPunchable)
    assert reason in refused.reason
    assert not puncher.punching
    assert puncher.probes_to_send(0.0) == []


def test_without_an_address_there_is_nothing_to_punch():
    assert isinstance(initiator(addresses=None).punch(0.0), NotPunchable)


def test_open_counts_as_consistent():
    assert initiator(FIREWALL_OPEN, FIREWALL_OPEN).punch(0.0) is Strategy.CONSISTENT


@pytest.mark.parametrize(
    ("local", "remote", "unstable"),
    [
        (FIREWALL_UNKNOWN, FIREWALL_CONSISTENT, True),
        (FIREWALL_RANDOM, FIREWALL_RANDOM, True),
        (FIREWALL_RANDOM, FIREWALL_CONSISTENT, False),
        (FIREWALL_CONSISTENT, FIREWALL_UNKNOWN, False),
    ],
)
def test_a_socket_is_unstable_when_another_may_be_luckier(local, remote, unstable):
    assert initiator(local, remote).unstable is unstable


def test_a_closed_puncher_is_silent():
    puncher = initiator()
    puncher.punch(0.0)
    puncher.ping(SERVER)
    puncher.close()
    puncher.ping(SERVER)
    puncher.receive_probe(SERVER, 0.0)
    assert puncher.probes_to_send(0.0) == []
    assert puncher.get_timer() is None
    assert puncher.connected_address is None


def test_two_rounds_between_two_nats_lead_to_a_path():
    """Payloads as both sides exchange them; each NAT lets in only hosts that it has sent to."""
    secret = bytes(range(32))
    ours, theirs = SecurePayload(secret, os.urandom), SecurePayload(secret, os.urandom)
    client, server = Puncher(True, nat_of(CLIENT)), Puncher(False, nat_of(SERVER))
    opened = {CLIENT: set(), SERVER: set()}

    def deliver(now):
        moved = True
        while moved:
            moved = False
            for mine, there, sender, receiver in (
                (CLIENT, SERVER, client, server),
                (SERVER, CLIENT, server, client),
            ):
                for address, ttl in sender.probes_to_send(now):
                    opened[mine].add(address)
                    if address == there and ttl > LOW_TTL and mine in opened[there]:
                        receiver.receive_probe(mine, now)
                        moved = True

    # round 0, through the server's relay: both learn the other's addresses and a token
    probe = HolepunchPayload(firewall=client.nat.firewall, addresses=client.nat.addresses)
    said = theirs.decrypt_untrusted(ours.encrypt(probe))
    server.update_remote(punching=said.punching, firewall=said.firewall, addresses=said.addresses)
    token = theirs.token(CLIENT)
    answer = HolepunchPayload(
        firewall=server.nat.firewall, addresses=server.nat.addresses, token=token
    )
    said = ours.decrypt_untrusted(theirs.encrypt(answer))
    client.update_remote(punching=said.punching, firewall=said.firewall, addresses=said.addresses)
    # round 1, through the client's relay: the client proves that it receives at its address
    punch = HolepunchPayload(
        firewall=client.nat.firewall,
        round=1,
        punching=True,
        addresses=client.nat.addresses,
        token=ours.token(SERVER),
        remote_token=said.token,
    )
    said = theirs.decrypt_untrusted(ours.encrypt(punch))
    assert said.remote_token == theirs.token(CLIENT)
    server.update_remote(
        punching=True,
        firewall=said.firewall,
        addresses=said.addresses,
        verified_host=CLIENT[0],
    )
    assert server.punch(0.0) is Strategy.CONSISTENT
    answer = HolepunchPayload(
        firewall=server.nat.firewall,
        punching=True,
        addresses=server.nat.addresses,
        remote_token=said.token,
    )
    said = ours.decrypt_untrusted(theirs.encrypt(answer))
    assert said.remote_token == ours.token(SERVER)
    client.update_remote(
        punching=True,
        firewall=said.firewall,
        addresses=said.addresses,
        verified_host=SERVER[0],
    )
    assert client.punch(0.0) is Strategy.CONSISTENT
    deliver(0.0)
    assert client.connected_address is None  # the server's NAT was not open yet
    deliver(1.0)
    assert client.connected_address == SERVER


@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(["punch", "probe", "ping", "open", "know", "close", "send"]),
            st.floats(0, 3),
            st.integers(0, 3),
        ),
        max_size=80,
    ),
)
def test_any_order_of_calls_ends_silent(is_initiator, steps):
    puncher = Puncher(is_initiator, nat_of(CLIENT))
    now = 0.0
    for action, pause, port in steps:
        now += pause
        address = ("2.2.2.2", port)
        if action == "punch":
            puncher.punch(now)
        elif action == "probe":
            puncher.receive_probe(address, now)
        elif action == "ping":
            puncher.ping(address)
        elif action == "open":
            puncher.open_session(address)
        elif action == "know":
            know(puncher, [address])
        elif action == "close":
            puncher.close()
        else:
            assert all(to[1] != 0 for to, _ in puncher.probes_to_send(now))
    total = 0
    while (due_at := puncher.get_timer()) is not None:
        total += len(puncher.probes_to_send(max(now, due_at)))
        now = max(now, due_at)
    puncher.probes_to_send(now)
    assert total <= 10 * MAX_REMOTE_ADDRESSES + 64
    assert puncher.probes_to_send(now + 1000.0) == []
