import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.rpc.identity import Identity
from hyperlog.dht.rpc.messages import PING, Request, Response, decode_untrusted
from hyperlog.dht.rpc.requests import (
    MAX_PENDING,
    MAX_WINDOW,
    WINDOW_SLOT,
    CongestionWindow,
    Requests,
    Responded,
    Slow,
    TimedOut,
)

PEER = ("10.0.0.1", 1000)
US = ("10.0.0.9", 9)


def identity():
    """An ephemeral node that asks from its client socket, 1."""
    return Identity(bytes(32), 4000, firewalled=True, events=deque())


@pytest.fixture
def requests():
    return Requests(identity(), random.Random(1).randbytes, 0.0)


def events(requests):
    found = []
    while (event := requests.next_event()) is not None:
        found.append(event)
    return found


def run_until_idle(requests, now=0.0):
    """Everything sent and every event until the requests need no timer, as (time, what) pairs."""
    sent, seen = [], []
    while True:
        sent += [(now, data) for _, _, data in requests.datagrams_to_send(now)]
        seen += [(now, event) for event in events(requests)]
        timer = requests.get_timer()
        if timer is None:
            return sent, seen
        assert timer >= now
        now = timer
        requests.handle_timer(now)


def test_a_request_leaves_with_its_fields(requests):
    request = requests.start(PEER, 7, target=b"t" * 32, token=b"k" * 32, value=b"v")
    [(socket, address, data)] = requests.datagrams_to_send(0.0)
    assert (socket, address) == (1, PEER)
    assert decode_untrusted(data) == Request(
        request.tid, PEER, 7, token=b"k" * 32, target=b"t" * 32, value=b"v"
    )
    assert requests.datagrams_to_send(0.5) == []


def test_the_id_goes_along_only_from_the_server_socket_of_a_persistent_node():
    ours = identity()
    requests = Requests(ours, random.Random(1).randbytes, 0.0)
    ours.own_id = b"i" * 32
    requests.start(PEER, PING, socket=0)
    ours.set_ephemeral(False)
    requests.start(PEER, PING)
    requests.start(PEER, PING, socket=0)
    ours.firewalled = False
    requests.start(PEER, PING)
    sent = requests.datagrams_to_send(0.0)
    assert [socket for socket, _, _ in sent] == [0, 1, 0, 0]
    assert [decode_untrusted(data).id for _, _, data in sent] == [None, None, *[b"i" * 32] * 2]


def test_without_an_answer_the_same_bytes_leave_again_and_the_request_fails_after_4_s(
    requests,
):
    request = requests.start(PEER, PING, internal=True)
    sent, seen = run_until_idle(requests)
    assert [time for time, _ in sent] == [0.0, 0.3, 1.0, 2.0, 3.0]
    assert len({data for _, data in sent}) == 1
    assert seen == [(1.0, Slow(request)), (4.0, TimedOut(request))]
    assert len(requests) == 0
    assert (requests.timeouts, requests.retries, requests.total) == (1, 4, 1)


def test_without_retries_one_try_is_all(requests):
    request = requests.start(PEER, PING, retries=0, timeout=2.5)
    sent, seen = run_until_idle(requests)
    assert [time for time, _ in sent] == [0.0]
    assert seen[-1] == (2.5, TimedOut(request))


def test_a_response_from_the_address_asked_ends_the_request(requests):
    request = requests.start(PEER, PING)
    requests.datagrams_to_send(0.0)
    response = Response(request.tid, US)
    assert requests.receive_response(response, PEER, 0, 0.25) is request
    assert events(requests) == [Responded(request, response, 0, 0.25)]
    assert requests.get_timer() is None
    assert requests.receive_response(response, PEER, 0, 0.3) is None


@pytest.mark.parametrize("other", [("10.0.0.1", 1001), ("10.0.0.2", 1000)])
def test_a_response_from_another_host_or_port_is_ignored(requests, other):
    request = requests.start(PEER, PING)
    requests.datagrams_to_send(0.0)
    assert requests.receive_response(Response(request.tid, US), other, 1, 0.1) is None
    assert requests.receive_response(Response(request.tid ^ 1, US), PEER, 1, 0.1) is None
    assert events(requests) == []
    assert len(requests) == 1


def test_a_response_before_the_request_has_left_is_ignored(requests):
    request = requests.start(PEER, PING)
    assert requests.receive_response(Response(request.tid, US), PEER, 1, 0.0) is None


def test_a_response_while_the_retry_waits_ends_the_request_for_good(requests):
    request = requests.start(PEER, PING)
    requests.datagrams_to_send(0.0)
    requests.handle_timer(1.0)
    assert requests.receive_response(Response(request.tid, US), PEER, 1, 1.0) is request
    assert requests.datagrams_to_send(1.0) == []
    assert requests.get_timer() is None


def test_a_cancelled_request_sends_nothing_more_and_tells_nothing(requests):
    waiting = requests.start(PEER, PING)
    requests.cancel(waiting)
    flying = requests.start(PEER, PING)
    assert len(requests.datagrams_to_send(0.0)) == 1
    requests.cancel(flying)
    requests.cancel(flying)
    assert run_until_idle(requests) == ([], [])


def test_tids_in_flight_are_all_different():
    requests = Requests(identity(), lambda size: b"\xff" * size, 0.0)
    tids = [requests.start(PEER, PING).tid for _ in range(5)]
    assert tids == [0xFFFF, 0, 1, 2, 3]


def test_at_most_max_window_requests_leave_in_one_slot_and_twice_that_in_all(requests):
    for _ in range(400):
        requests.start(PEER, PING, retries=0, timeout=60.0)
    assert len(requests.datagrams_to_send(0.0)) == MAX_WINDOW
    assert requests.datagrams_to_send(0.5) == []
    assert requests.get_timer() == WINDOW_SLOT
    counts = [len(requests.datagrams_to_send(WINDOW_SLOT * slot)) for slot in range(1, 6)]
    assert counts == [MAX_WINDOW, 0, 0, MAX_WINDOW, MAX_WINDOW]


def test_responses_make_room_in_the_window(requests):
    started = [requests.start(PEER, PING) for _ in range(MAX_WINDOW + 5)]
    assert len(requests.datagrams_to_send(0.0)) == MAX_WINDOW
    for request in started[:3]:
        requests.receive_response(Response(request.tid, US), PEER, 1, 0.1)
    assert len(requests.datagrams_to_send(0.1)) == 3


def test_the_queue_is_bounded(requests):
    for _ in range(MAX_PENDING):
        requests.start(PEER, PING)
    assert requests.room == 0
    with pytest.raises(LocalProtocolError):
        requests.start(PEER, PING)


def test_answered_requests_do_not_pile_up_behind_their_deadlines(requests):
    for _ in range(40_000):
        request = requests.start(PEER, PING)
        requests.datagrams_to_send(0.0)
        requests.receive_response(Response(request.tid, US), PEER, 1, 0.0)
        requests.next_event()
    assert len(requests._deadlines) <= 2 * MAX_PENDING + 1


def test_a_long_pause_empties_the_window():
    window = CongestionWindow(0.0)
    for _ in range(MAX_WINDOW):
        window.sent()
    assert window.is_full(0.7)
    assert not window.is_full(1000.0)
    assert window.next_slot_at() > 1000.0
    for _ in range(2 * MAX_WINDOW):
        window.sent()
    assert window.is_full(1000.1)


@given(st.integers(0, 2**32), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_every_request_ends_once_whatever_gets_lost(seed, count):
    rng = random.Random(seed)
    requests = Requests(identity(), rng.randbytes, 0.0)
    started = [requests.start(PEER, PING, retries=rng.randrange(3)) for _ in range(count)]
    now, ended, steps = 0.0, [], 0
    while len(requests):
        for _, address, data in requests.datagrams_to_send(now):
            if rng.random() < 0.5:
                response = Response(decode_untrusted(data).tid, US)
                requests.receive_response(response, address, 1, now + 0.001)
        ended += [event.request for event in events(requests) if not isinstance(event, Slow)]
        timer = requests.get_timer()
        if timer is None:
            break
        assert timer >= now
        now = timer
        requests.handle_timer(now)
        ended += [event.request for event in events(requests) if not isinstance(event, Slow)]
        steps += 1
        assert steps < 20 * count + 100
    assert len(ended) == count
    assert set(ended) == set(started)
