import json
from pathlib import Path

import pytest

from hyperlog.dht.rpc.tickets import MAX_ISSUED, ROTATION_INTERVAL, Tickets

VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
TOKEN = json.loads((VECTORS / "ids-keys-namespaces.json").read_text())["token"]


def tickets_from(*secrets, now=0.0):
    supply = iter(secrets)
    return Tickets(lambda size: next(supply), now)


@pytest.fixture
def tickets():
    return tickets_from(b"p" * 32, b"c" * 32)


def test_a_ticket_is_the_one_that_javascript_issues():
    tickets = tickets_from(bytes(32), bytes.fromhex(TOKEN["secret"]))
    for case in TOKEN["cases"]:
        assert tickets.issue(case["host"], 0.0) == bytes.fromhex(case["token"])


def test_rotation_derives_the_same_secrets_as_javascript():
    before = [bytes.fromhex(secret) for secret in TOKEN["rotation"]["before"]]
    previous, current = [bytes.fromhex(secret) for secret in TOKEN["rotation"]["after"]]
    rotated = tickets_from(*before)
    expected = tickets_from(previous, current, now=100.0)

    host = "88.99.3.86"
    assert rotated.issue(host, ROTATION_INTERVAL) == expected.issue(host, 100.0)


def test_any_number_of_hosts_gets_tickets_and_few_are_kept(tickets):
    def issue_all():
        return [tickets.issue(f"10.0.{n // 256}.{n % 256}", 0.0) for n in range(3 * MAX_ISSUED)]

    issued = issue_all()
    assert issue_all() == issued
    assert len(set(issued)) == 3 * MAX_ISSUED
    assert len(tickets._issued) <= MAX_ISSUED


def test_a_ticket_is_valid_for_its_host_alone(tickets):
    ticket = tickets.issue("10.0.0.1", 0.0)
    assert tickets.accepts(ticket, "10.0.0.1", 1.0)
    assert not tickets.accepts(ticket, "10.0.0.2", 1.0)
    assert not tickets.accepts(bytes(32), "10.0.0.1", 1.0)
    assert not tickets.accepts(ticket[:-1], "10.0.0.1", 1.0)


@pytest.mark.parametrize("issued_at", [0.0, 3.0, 7.4])
def test_a_ticket_lives_at_least_one_interval_and_at_most_two(tickets, issued_at):
    ticket = tickets.issue("10.0.0.1", issued_at)
    assert tickets.accepts(ticket, "10.0.0.1", issued_at + ROTATION_INTERVAL)
    assert not tickets.accepts(ticket, "10.0.0.1", issued_at + 2 * ROTATION_INTERVAL)


def test_after_a_long_silence_old_tickets_are_void(tickets):
    ticket = tickets.issue("10.0.0.1", 0.0)
    assert not tickets.accepts(ticket, "10.0.0.1", 3600.0)
    fresh = tickets.issue("10.0.0.1", 3600.0)
    assert tickets.accepts(fresh, "10.0.0.1", 3600.0 + ROTATION_INTERVAL)
