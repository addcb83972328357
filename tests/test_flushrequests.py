"""hyperlog.flushrequests on a real session: who is told what, and when."""

from __future__ import annotations

import threading

import pytest

from hyperlog import flushrequests
from hyperlog.diskspool import SpooledSession
from hyperlog.flushrequests import FlushRequests
from hyperlog.logs import LogEntry
from hyperlog.session import ClientSession
from hyperlog.tracequeue import TraceQueue

NOW = 1795223619.131


class Ship:
    """What the shipper does with a session and its requests, step by step."""

    def __init__(self, max_bytes: int = 2**20):
        queue = TraceQueue(2**20)
        self.session = ClientSession(SpooledSession("77", max_memory_bytes=max_bytes), queue)
        self.requests = FlushRequests(self.session, queue)
        self.told = []

    def log(self, count, text="text"):
        for _ in range(count):
            self.session.log(LogEntry("INFO", text), NOW)

    def ask(self):
        self.requests.add(self.told.append)

    def round(self, limit=100, meanwhile=lambda: None):
        self.requests.begin_round()
        meanwhile()
        taken = self.session.drain(NOW, limit)
        self.requests.end_round(taken, emptied=taken < limit)

    def deliver(self, number):
        self.session.release_through(number)
        self.requests.resolve_delivered()


@pytest.fixture
def ship():
    return Ship()


def test_a_request_waits_for_what_came_before_it_alone(ship):
    ship.log(3)
    ship.ask()
    ship.round(meanwhile=lambda: ship.log(5))
    ship.log(5)
    ship.round()
    ship.deliver(1)
    assert ship.told == []
    ship.deliver(7)
    assert ship.told == [True]


def test_traces_that_come_without_a_pause_are_not_waited_for(ship):
    ship.log(10)
    ship.ask()
    for _ in range(3):
        assert ship.requests.is_urgent
        ship.round(limit=4, meanwhile=lambda: ship.log(6))
    assert not ship.requests.is_urgent
    ship.deliver(11)
    assert ship.told == [True]


def test_a_request_after_all_was_delivered_is_answered_at_once(ship):
    ship.log(1)
    ship.round()
    ship.deliver(0)
    ship.ask()
    assert ship.requests.has_new
    ship.round()
    assert not ship.requests.has_new
    assert ship.told == [True]


def test_records_that_gave_way_are_not_delivered():
    ship = Ship(max_bytes=10_000)
    ship.log(1)
    ship.ask()
    ship.round()
    ship.log(50, "x" * 1000)
    ship.round()
    assert ship.told == [False]


def test_of_too_many_that_wait_the_oldest_are_told_no(ship, monkeypatch):
    monkeypatch.setattr(flushrequests, "MAX_NUMBERED", 2)
    ship.log(1)
    for _ in range(5):
        ship.ask()
    ship.round()
    assert ship.told == [False] * 3
    ship.deliver(0)
    assert ship.told == [False] * 3 + [True] * 2


def test_however_many_come_at_once_they_are_told_of_what_is_delivered(ship, monkeypatch):
    monkeypatch.setattr(flushrequests, "MAX_NUMBERED", 2)
    ship.log(1)
    ship.round()
    ship.deliver(0)
    for _ in range(5):
        ship.ask()
    ship.round()
    assert ship.told == [True] * 5


@pytest.mark.parametrize("delivered", [False, True])
def test_at_the_end_all_are_told_wherever_they_are(ship, delivered):
    ship.log(1)
    ship.ask()
    ship.round()
    ship.log(4)
    ship.ask()
    ship.round(limit=2)
    ship.ask()
    if delivered:
        ship.round()
        ship.session.release_through(4)
    ship.requests.resolve_all()
    assert ship.told == [delivered] * 3


def test_requests_of_other_threads_at_the_end_are_told_once_each(ship):
    ship.log(1)
    for _ in range(100):
        ship.ask()
    ship.round()

    def ask_on():
        for _ in range(500):
            ship.ask()
            ship.requests.resolve_all()

    threads = [threading.Thread(target=ask_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ship.told == [False] * 2100
