"""The handshakes that a listener remembers: found by message and number, bounded, expired."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hyperlog.dht import handshakes as module
from hyperlog.dht.handshakes import HandshakeTable, dispensable


@dataclass
class Remembered:
    host: str = "1.1.1.1"
    expires_at: float = 10.0
    number: int | None = None
    dropped: int = 0

    def expired(self, now):
        return now >= self.expires_at

    def drop(self):
        self.dropped += 1


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "MAX_HANDSHAKES", 4)
    monkeypatch.setattr(module, "FAIR_SHARE", 2)
    return HandshakeTable()


def test_a_handshake_is_found_by_its_message_and_its_number():
    table = HandshakeTable()
    one, other = Remembered(), Remembered()
    assert table.add(b"one", one)
    assert table.add(b"other", other)
    assert (table.number(one), table.number(other)) == (0, 1)
    assert table.find(b"one") is one
    assert table.numbered(1) is other
    assert table.find(b"third") is table.numbered(2) is None
    assert list(table) == [one, other]


def test_what_has_expired_is_dropped_once_and_found_no_more():
    table = HandshakeTable()
    one, other = Remembered(expires_at=5.0), Remembered()
    table.add(b"one", one)
    table.add(b"other", other)
    table.number(one)
    table.expire(5.0)
    table.expire(6.0)
    assert (one.dropped, other.dropped) == (1, 0)
    assert table.find(b"one") is table.numbered(0) is None
    assert len(table) == 1


def test_a_full_table_forgets_its_oldest(small):
    entries = [Remembered(host=f"1.1.1.{number}") for number in range(6)]
    added = [small.add(b"%d" % number, entry) for number, entry in enumerate(entries)]
    assert added == [True] * 4 + [False] * 2
    assert [entry.dropped for entry in entries] == [1, 1, 0, 0, 0, 0]
    assert list(small) == entries[2:]


def test_a_host_that_fills_the_table_makes_room_itself(small):
    honest = Remembered(host="2.2.2.2")
    small.add(b"honest", honest)
    flood = [Remembered() for _ in range(20)]
    for number, entry in enumerate(flood):
        small.add(b"%d" % number, entry)
    assert not honest.dropped
    assert list(small) == [honest, *flood[-3:]]


def test_many_hosts_with_a_few_each_lose_the_oldest():
    handshakes = [Remembered(host=f"1.1.1.{number % 10}") for number in range(50)]
    assert dispensable(handshakes) == 0
    handshakes += [Remembered(host="2.2.2.2") for _ in range(module.FAIR_SHARE + 1)]
    assert dispensable(handshakes) == 50
