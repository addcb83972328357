"""Two cores on two paths, a relayed and a direct one, which change over at any moment."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.errors import StreamTimeout
from hyperlog.dht.udx import ClosedStreams, RemoteChanged, StreamClosed, UDXStreamCore
from hyperlog.dht.udx.packet import HEADER, HEADER_SIZE
from tests.dht.udx.conftest import Endpoint

RELAYED, DIRECT = 0, 1
LOCAL_IDS = {"a": 0xA, "b": 0xB}
RELAY_IDS = {"a": 0x1A, "b": 0x1B}  # the relay's streams towards a and towards b
RELAY = ("9.9.9.9", 9)
ADDRESSES = {"a": ("1.1.1.1", 1), "b": ("2.2.2.2", 2)}
OTHER = {"a": "b", "b": "a"}


@dataclass
class PathModel:
    delay: float = 0.01
    loss: float = 0.0
    reorder: float = 0.0
    """fraction of packets that take up to twice as long"""
    duplicates: float = 0.0
    max_datagram: int = 1472
    open: bool = True


class TwoPaths:
    """Checks that each datagram names the stream and the address that its path has."""

    def __init__(self, relayed: PathModel, direct: PathModel, seed: int = 0, **options) -> None:
        self.paths = (relayed, direct)
        self.rng = random.Random(seed)
        self.now = 100.0
        self.ends = {
            name: Endpoint(name, UDXStreamCore(LOCAL_IDS[name], **options)) for name in OTHER
        }
        self.sent: dict[str, list[tuple[int, float, bytes]]] = {"a": [], "b": []}
        self._wire: list[tuple[float, int, str, bytes]] = []
        self._count = 0
        for name, end in self.ends.items():
            end.core.connect(RELAY_IDS[name], RELAY, self.now, RELAYED)

    def change(self, name: str, path: int = DIRECT) -> bool:
        """Change one side over; False when its stream is closed already."""
        core = self.ends[name].core
        if core.closed:
            return False
        if path == DIRECT:
            core.change_remote(LOCAL_IDS[OTHER[name]], ADDRESSES[OTHER[name]], self.now, DIRECT)
        else:
            core.change_remote(RELAY_IDS[name], RELAY, self.now, RELAYED)
        return True

    def write_until_mtu_is_found(self, name: str) -> int:
        """Bytes written until one side sends the largest packets."""
        core = self.ends[name].core
        written = 0
        while core.statistics().mtu < 1500:
            self.ends[name].to_write = [bytes(100_000)]
            written += 100_000
            self.run(1)
            assert written < 10_000_000
        return written

    def _transmit(self, name: str, socket: int, address, datagram: bytes) -> None:
        other = OTHER[name]
        (_, _, _, stream_id, *_) = HEADER.unpack_from(datagram)
        if socket == RELAYED:
            assert (stream_id, address) == (RELAY_IDS[name], RELAY)
            datagram = datagram[:4] + LOCAL_IDS[other].to_bytes(4, "little") + datagram[8:]
        else:
            assert (stream_id, address) == (LOCAL_IDS[other], ADDRESSES[other])
        self.sent[name].append((socket, self.now, datagram))
        path = self.paths[socket]
        if not path.open or len(datagram) > path.max_datagram:
            return
        for _ in range(2 if self.rng.random() < path.duplicates else 1):
            if self.rng.random() < path.loss:
                continue
            at = self.now + path.delay
            if self.rng.random() < path.reorder:
                at += self.rng.random() * path.delay
            self._count += 1
            heapq.heappush(self._wire, (at, self._count, other, datagram))

    def flush(self) -> None:
        for name, end in self.ends.items():
            for _ in range(10_000):
                end.work(self.now)
                for socket, address, datagrams in end.core.datagrams_to_send(self.now):
                    for datagram in datagrams:
                        self._transmit(name, socket, address, datagram)
                timer = end.core.get_timer()
                if timer is None or timer > self.now:
                    break
            else:
                raise AssertionError("the core always wants to send")
            end.work(self.now)

    def step(self, until: float = float("inf")) -> bool:
        times = [t for e in self.ends.values() if (t := e.core.get_timer()) is not None]
        if self._wire:
            times.append(self._wire[0][0])
        if not times or min(times) > until:
            return False
        self.now = max(self.now, min(times))
        while self._wire and self._wire[0][0] <= self.now:
            _, _, name, datagram = heapq.heappop(self._wire)
            end = self.ends[name]
            if end.core.closed:
                # On a path of its own choice: what matters is that the answer arrives.
                answer = end.closed_streams.receive_datagram(datagram, self.now)
                if answer is not None:
                    address, reply = answer
                    socket = RELAYED if address == RELAY else DIRECT
                    self._transmit(name, socket, address, reply)
                continue
            end.core.receive_datagram(datagram, ("9.9.9.9", 1), self.now)
        self.flush()
        return True

    def run(self, seconds: float | None = None) -> None:
        """Until nothing is left to happen, or for some seconds."""
        self.flush()
        started = self.now
        until = started + seconds if seconds is not None else float("inf")
        while self.step(until):
            assert self.now - started < 600, "the simulated time is up"
        if seconds is not None:
            self.now = until


def changes(end: Endpoint) -> int:
    return sum(isinstance(event, RemoteChanged) for event in end.events)


paths = st.builds(
    PathModel,
    delay=st.sampled_from((0.001, 0.02, 0.1)),
    loss=st.sampled_from((0.0, 0.05, 0.2)),
    reorder=st.sampled_from((0.0, 0.3)),
    duplicates=st.sampled_from((0.0, 0.1)),
)


@settings(max_examples=200)
@given(
    relayed=paths,
    direct=paths,
    seed=st.integers(0, 2**32),
    sizes=st.tuples(*[st.sampled_from((0, 1, 5_000, 100_000, 300_000))] * 2),
    at=st.tuples(*[st.one_of(st.none(), st.floats(0, 0.8))] * 2),
    relay_ends_after=st.one_of(st.none(), st.floats(0, 0.5)),
)
def test_no_byte_is_lost_or_doubled_whenever_the_sides_change_over(
    relayed, direct, seed, sizes, at, relay_ends_after
):
    link = TwoPaths(relayed, direct, seed)
    rng = random.Random(seed)
    data = {"a": rng.randbytes(sizes[0]), "b": rng.randbytes(sizes[1])}
    for name, end in link.ends.items():
        end.to_write = [data[name][i : i + 50_000] for i in range(0, len(data[name]), 50_000)][::-1]
        end.end_after_writes = True
    moments = sorted((when, name) for when, name in zip(at, OTHER, strict=True) if when is not None)
    changed = 0
    for when, name in moments:
        link.run(max(0.0, 100.0 + when - link.now))
        changed += link.change(name)
    if relay_ends_after is not None and changed == 2:
        # Once both sides have changed, the relay may go at any moment, whatever was in flight.
        link.run(relay_ends_after)
        relayed.open = False
    link.run()
    for name, end in link.ends.items():
        assert end.received == data[OTHER[name]]
        assert end.close_event == StreamClosed(None)
        assert end.core.get_timer() is None
        assert changes(end) <= 1


def test_new_packets_take_the_new_path_at_once_and_the_old_one_is_told_to_be_free():
    link = TwoPaths(PathModel(delay=0.1), PathModel(delay=0.01))
    a = link.ends["a"]
    a.to_write = [b"old"]
    link.run(0.05)
    link.change("a")
    assert a.core.remote_is_changing
    assert a.core.remote_address == ADDRESSES["b"]
    a.to_write = [b"new"]
    link.run(0.02)
    assert link.ends["b"].received == b""
    assert [(socket, d[HEADER_SIZE:]) for socket, _, d in link.sent["a"]] == [
        (RELAYED, b"old"),
        (DIRECT, b"new"),
    ]
    assert changes(a) == 0
    link.run(0.5)
    assert link.ends["b"].received == b"oldnew"
    assert changes(a) == 1
    assert not a.core.remote_is_changing


def test_a_change_with_nothing_in_flight_is_over_at_once():
    link = TwoPaths(PathModel(), PathModel())
    a = link.ends["a"]
    link.change("a")
    assert not a.core.remote_is_changing
    a.work(link.now)
    assert changes(a) == 1


def test_what_the_slow_old_path_still_carries_is_not_repeated_because_the_new_one_is_fast():
    link = TwoPaths(PathModel(delay=0.2), PathModel(delay=0.005))
    a = link.ends["a"]
    a.to_write = [bytes(40_000)]
    link.run(3)
    a.to_write = [bytes(40_000)]
    link.run(0.05)
    link.change("a")
    a.to_write = [bytes(40_000)]
    link.run(3)
    assert len(link.ends["b"].received) == 120_000
    assert a.core.statistics().lost == 0


def test_what_was_in_flight_arrives_even_when_the_old_path_is_gone():
    link = TwoPaths(PathModel(delay=0.05), PathModel(delay=0.02))
    a = link.ends["a"]
    a.to_write = [bytes(20_000)]
    link.run(1)
    a.to_write = [b"x" * 20_000]
    link.run(0.01)
    link.paths[RELAYED].open = False
    link.change("a")
    link.change("b")
    started = link.now
    while len(link.ends["b"].received) < 40_000:
        assert link.step()
    assert link.now - started < 6.0


def test_packets_too_large_for_the_new_path_go_on_by_the_old_one():
    link = TwoPaths(PathModel(loss=0.3), PathModel(max_datagram=1172), seed=3)
    a = link.ends["a"]
    link.paths[RELAYED].loss = 0.0
    written = link.write_until_mtu_is_found("a")
    link.paths[RELAYED].loss = 0.3
    a.to_write = [b"y" * 100_000]
    link.run(0.01)
    link.change("a")
    link.run()
    assert link.ends["b"].received == bytes(written) + b"y" * 100_000


def test_the_search_for_the_mtu_starts_again_and_the_estimates_stay():
    link = TwoPaths(PathModel(), PathModel())
    a = link.ends["a"]
    link.write_until_mtu_is_found("a")
    before = a.core.statistics()
    link.change("a")
    after = a.core.statistics()
    assert (before.mtu, after.mtu) == (1500, 1200)
    assert (after.srtt, after.cwnd) == (before.srtt, before.cwnd)
    link.write_until_mtu_is_found("a")


def test_back_and_forth_many_times_in_mid_flow():
    link = TwoPaths(PathModel(loss=0.1), PathModel(loss=0.1), seed=11)
    data = random.Random(1).randbytes(600_000)
    for end in link.ends.values():
        end.to_write = [data]
        end.end_after_writes = True
    for number in range(40):
        link.run(0.03)
        link.change("ab"[number % 2], path=(RELAYED, DIRECT)[number // 2 % 2])
    link.run()
    for end in link.ends.values():
        assert end.received == data
        assert end.close_event == StreamClosed(None)


def test_a_peer_that_is_gone_on_both_paths_is_given_up_as_ever():
    link = TwoPaths(PathModel(), PathModel())
    a = link.ends["a"]
    a.to_write = [b"x"]
    link.run(0.001)
    link.paths[RELAYED].open = link.paths[DIRECT].open = False
    link.change("a")
    a.to_write = [b"y"]
    started = link.now
    link.run()
    assert isinstance(a.close_event.error, StreamTimeout)
    assert link.now - started == pytest.approx(13.0, abs=0.5)


def test_a_closed_stream_answers_on_the_path_that_it_had_last():
    link = TwoPaths(PathModel(), PathModel())
    a, b = link.ends.values()
    for name in OTHER:
        link.change(name)
    for end in (a, b):
        end.end_after_writes = True
    link.run()
    table = ClosedStreams()
    table.remember(a.core, link.now)
    assert b.close_event == StreamClosed(None)
    last = [d for socket, _, d in link.sent["b"] if d[2]][-1]
    assert table.receive_datagram(last, link.now)[0] == ADDRESSES["b"]
