"""hyperlog.connections: who is there, counted right whatever comes and goes."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

import pytest

from hyperlog import connections as connections_module
from hyperlog.connections import PRESENCE, SILENCE, ConnectionManager, LiveConnection
from hyperlog.records import iso_time

EPOCH = 1_795_223_619.0
KEY = bytes(range(32))


@dataclass
class Time:
    now: float = 1000.0

    def clock(self) -> float:
        return self.now

    def wall_clock(self) -> float:
        return EPOCH + self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def manager(time):
    return ConnectionManager(time.clock, time.wall_clock)


def open_one(manager, application="cerco", instance="a2b5", **fields) -> LiveConnection:
    fields = {"transport": "hyperdht", "socket": "192.0.2.7:49737", **fields}
    return manager.opened(application, instance, **fields)


def post(manager, application="cerco", instance="a2b5", **fields) -> None:
    fields = {
        "transport": "http",
        "socket": "192.0.2.8:5000",
        "records": 1,
        "size": 100,
        **fields,
    }
    manager.posted(application, instance, **fields)


def running(manager) -> dict[str, int]:
    found = manager.applications()
    for application in found.values():
        assert application["running_instances"] == len(application["instances"])
    return {name: application["running_instances"] for name, application in found.items()}


def test_the_applications_have_the_form_that_was_agreed(manager, time):
    connection = open_one(manager, key=KEY, path="direct")
    open_one(manager, instance="c4")
    open_one(manager, "midas", "1")
    time.now += 5
    connection.records, connection.size, connection.dropped = 3, 1200, 1
    connection.round_trip_time = 0.02
    made_at = iso_time(time.wall_clock() - 1.5)
    connection.last_message = f'{{"traceTimestamp":"{made_at}","traceSessionId":"1"'.encode()
    connection.last_message_at = time.wall_clock()
    manager.heard(connection)
    found = json.loads(json.dumps(manager.applications()))
    assert list(found) == ["cerco", "midas"]
    assert found["cerco"]["running_instances"] == 2
    assert found["cerco"]["instances"]["a2b5"] == {
        "socket": "192.0.2.7:49737",
        "connected_at": iso_time(EPOCH + 1000),
        "last_seen": iso_time(EPOCH + 1005),
        "connections": 1,
        "transport": "hyperdht",
        "path": "direct",
        "round_trip_time": 0.02,
        "records": 3,
        "bytes": 1200,
        "dropped": 1,
        "lag": 1.5,
        "key": KEY.hex(),
        "last_error": None,
    }


def test_nobody_there_is_an_empty_object(manager):
    assert manager.applications() == {}
    manager.closed(open_one(manager))
    assert manager.applications() == {}


def test_two_connections_of_one_instance_are_one_that_runs(manager, time):
    first = open_one(manager)
    time.now += 10
    second = open_one(manager, socket="192.0.2.9:1", transport="websocket")
    assert running(manager) == {"cerco": 1}
    instance = manager.applications()["cerco"]["instances"]["a2b5"]
    assert instance["connections"] == 2
    assert instance["connected_at"] == iso_time(EPOCH + 1000)
    assert (instance["socket"], instance["transport"]) == ("192.0.2.9:1", "websocket")
    manager.closed(second)
    assert manager.applications()["cerco"]["instances"]["a2b5"]["socket"] == "192.0.2.7:49737"
    manager.closed(first)
    assert running(manager) == {}


def test_one_instance_name_in_two_applications_is_two_instances(manager):
    open_one(manager, "cerco", "1")
    open_one(manager, "midas", "1")
    assert running(manager) == {"cerco": 1, "midas": 1}


def test_a_reconnect_goes_on_counting_and_begins_a_new_time(manager, time):
    connection = open_one(manager)
    connection.records, connection.size, connection.dropped = 10, 1000, 2
    manager.closed(connection, "connection reset by peer")
    time.now += 30
    connection = open_one(manager)
    connection.records = 5
    instance = manager.applications()["cerco"]["instances"]["a2b5"]
    assert (instance["records"], instance["bytes"], instance["dropped"]) == (15, 1000, 2)
    assert instance["connected_at"] == iso_time(EPOCH + 1030)
    assert instance["last_error"] == "connection reset by peer"


def test_a_reconnect_before_the_old_connection_is_missed_counts_once(manager, time):
    old = open_one(manager)
    open_one(manager)
    assert running(manager) == {"cerco": 1}
    time.now += 18
    manager.closed(old, "connection timed out")
    assert running(manager) == {"cerco": 1}


def test_closing_twice_does_no_harm(manager):
    first, _ = open_one(manager), open_one(manager)
    first.records = 1
    manager.closed(first)
    manager.closed(first)
    assert running(manager) == {"cerco": 1}
    assert manager.applications()["cerco"]["instances"]["a2b5"]["records"] == 1


def test_an_instance_that_vanishes_without_a_word_no_longer_runs_after_a_while(manager, time):
    silent, lively = open_one(manager), open_one(manager, instance="b")
    time.now += SILENCE - 1
    manager.heard(lively)
    assert running(manager) == {"cerco": 2}
    time.now += 1
    assert running(manager) == {"cerco": 1}
    manager.heard(silent)
    assert running(manager) == {"cerco": 2}


def test_a_sign_of_life_of_long_ago_is_none(manager, time):
    connection = open_one(manager)
    time.now += SILENCE
    manager.heard(connection, silence=SILENCE + 1)
    assert running(manager) == {}
    manager.heard(connection, silence=SILENCE - 1)
    assert running(manager) == {"cerco": 1}


def test_an_instance_that_only_sends_requests_runs_for_a_while_after_the_last(manager, time):
    post(manager, records=2)
    time.now += PRESENCE - 1
    post(manager, records=3, socket="192.0.2.8:6000", error="the server has no room")
    time.now += PRESENCE - 1
    instance = manager.applications()["cerco"]["instances"]["a2b5"]
    assert (instance["records"], instance["bytes"]) == (5, 200)
    assert instance["connected_at"] == iso_time(EPOCH + 1000)
    assert instance["last_seen"] == iso_time(EPOCH + 1000 + PRESENCE - 1)
    assert (instance["socket"], instance["transport"]) == ("192.0.2.8:6000", "http")
    assert instance["last_error"] == "the server has no room"
    time.now += 1
    assert running(manager) == {}
    post(manager)
    instance = manager.applications()["cerco"]["instances"]["a2b5"]
    assert instance["records"] == 6
    assert instance["connected_at"] == iso_time(EPOCH + 1000 + 2 * PRESENCE - 1)


def test_an_instance_that_connects_and_sends_requests_is_one(manager):
    connection = open_one(manager)
    connection.records = 4
    post(manager)
    assert running(manager) == {"cerco": 1}
    instance = manager.applications()["cerco"]["instances"]["a2b5"]
    assert (instance["records"], instance["connections"]) == (5, 2)


def test_the_clock_of_the_day_may_be_set_back(manager, time, monkeypatch):
    open_one(manager)
    wall = time.wall_clock()
    monkeypatch.setattr(manager, "_wall_clock", lambda: wall - 86400)
    assert running(manager) == {"cerco": 1}
    instance = manager.applications()["cerco"]["instances"]["a2b5"]
    assert instance["last_seen"] == iso_time(wall - 86400)


@pytest.mark.parametrize(
    "message",
    [b"", b"{}", b'{"traceTimestamp":"yesterday, at noon or so"}', b'{"traceTimestamp":"9999',
     b'{"traceTimestamp":"2026-99-99T99:99:99.999Z"', b"\xff" * 300],
)  # fmt: skip
def test_a_message_that_tells_no_time_has_no_lag(manager, message):
    connection = open_one(manager)
    connection.last_message = message
    assert connection.lag is None


def test_what_is_remembered_is_bounded_and_who_is_connected_is_never_forgotten(
    manager, time, monkeypatch
):
    monkeypatch.setattr(connections_module, "MAX_INSTANCES", 10)
    connected = [open_one(manager, instance=f"c{number}") for number in range(20)]
    for number in range(1000):
        time.now += 0.01
        post(manager, instance=f"p{number}")
        manager.closed(open_one(manager, instance=f"g{number}"))
    assert len(manager._instances) == 30
    assert running(manager)["cerco"] == 20 + 5  # the last 5 that posted and the last 5 that left
    assert {f"c{number}" for number in range(20)} < set(
        manager.applications()["cerco"]["instances"]
    )
    for connection in connected:
        manager.closed(connection)
    assert len(manager._instances) == 10


def test_hostile_names_are_only_names(manager):
    for name in ("../../x", "__proto__", "a" * 64, "<script>"):
        open_one(manager, name, name)
    assert set(manager.applications()) == {"../../x", "__proto__", "a" * 64, "<script>"}


@dataclass
class Model:
    """What should be known, in the plainest way: everything that was ever told."""

    open: dict[LiveConnection, tuple[tuple[str, str], float]] = field(default_factory=dict)
    posts: dict[tuple[str, str], float] = field(default_factory=dict)
    records: dict[tuple[str, str], int] = field(default_factory=dict)

    def running(self, now: float) -> dict[tuple[str, str], int]:
        names = {name for name, seen in self.open.values() if now - seen < SILENCE}
        names |= {name for name, seen in self.posts.items() if now - seen < PRESENCE}
        return {name: self.records[name] for name in names}


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_events_is_counted_as_by_the_plainest_model(seed):
    rng = random.Random(seed)
    time = Time()
    manager = ConnectionManager(time.clock, time.wall_clock)
    model = Model()
    for _ in range(2000):
        time.now += rng.expovariate(1 / 5)
        name = rng.choice("ab"), rng.choice("123")
        some = rng.choice(list(model.open)) if model.open else None
        match rng.choice(["open", "close", "hear", "hear", "records", "post"]):
            case "open" if len(model.open) < 12:
                connection = open_one(manager, *name)
                model.open[connection] = (name, time.now)
                model.records.setdefault(name, 0)
            case "close" if some is not None:
                manager.closed(some, rng.choice([None, "lost"]))
                del model.open[some]
            case "hear" if some is not None:
                silence = rng.choice([0, 30, 100])
                manager.heard(some, silence)
                named, seen = model.open[some]
                model.open[some] = (named, max(seen, time.now - silence))
            case "records" if some is not None:
                some.records += 3
                model.records[model.open[some][0]] += 3
            case "post":
                post(manager, *name, records=2)
                model.posts[name] = time.now
                model.records[name] = model.records.get(name, 0) + 2
        found = manager.applications()
        listed = {
            (application, instance): told["records"]
            for application, entry in found.items()
            for instance, told in entry["instances"].items()
        }
        assert listed == model.running(time.now)
        assert manager.open_connections == len(model.open)
        running(manager)
