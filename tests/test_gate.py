"""hyperlog.gate: places are given, proved, taken back; lists that change reach open connections."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import trio

from hyperlog.access import AccessPolicy
from hyperlog.errors import RateExceeded
from hyperlog.gate import REQUEST_PATIENCE, Gate
from hyperlog.limits import ServerLimits

A, B = bytes([1]) * 32, bytes([2]) * 32
HERE = ("192.0.2.1", 1000)


@dataclass(eq=False)
class Peer:
    """Stands for a connection: it is open, has proved its key or not, and can be aborted."""

    authenticated: bool = True
    aborted: bool = False
    remote_address: tuple[str, int] | None = HERE

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
async def watched(nursery):
    def start(access: AccessPolicy | None = None, **limits) -> Gate:
        gate = Gate(access or AccessPolicy(), ServerLimits(**limits), trio.current_time)
        nursery.start_soon(gate.watch)
        return gate

    return start


async def test_a_connection_has_its_place_until_it_leaves(watched, autojump_clock):
    gate = watched(connections=1)
    first = gate.enter(A, Peer())
    assert gate.enter(B, Peer()) is None
    gate.leave(first)
    assert gate.enter(B, Peer()) is not None
    assert gate.statistics().limits.connections == 1


async def test_a_peer_that_proves_nothing_is_cut_off(watched, autojump_clock):
    gate = watched(proof_time=20)
    silent, late, idle = Peer(authenticated=False), Peer(authenticated=False), Peer()
    for peer in (silent, late, idle):
        gate.enter(A, peer)
    await trio.sleep(10)
    late.authenticated = True
    await trio.sleep(9)
    assert not silent.aborted
    await trio.sleep(3)
    assert (silent.aborted, late.aborted, idle.aborted) == (True, False, False)


async def test_a_newcomer_pushes_out_who_was_silent_longest(watched, autojump_clock):
    gate = watched(unproved_connections=2)
    honest, first, second = Peer(), Peer(authenticated=False), Peer(authenticated=False)
    guests = [gate.enter(key, peer) for key, peer in ((A, honest), (B, first), (B, second))]
    assert (honest.aborted, first.aborted, second.aborted) == (False, False, False)
    assert gate.enter(A, Peer(authenticated=False)) is not None
    assert (honest.aborted, first.aborted, second.aborted) == (False, True, False)
    assert gate.statistics().limits.unproved_connections == 1
    gate.leave(guests[1])  # its task hears of it later
    assert gate.enter(A, Peer(authenticated=False)) is not None
    assert second.aborted


async def test_one_connection_too_many_of_a_key_is_ended_once_it_is_proved(watched, autojump_clock):
    gate = watched(connections_per_key=1)
    replayed, first, second = Peer(authenticated=False), Peer(), Peer()
    guests = [gate.enter(A, peer) for peer in (replayed, first, second)]
    await gate.pace(guests[1], 1, 1)
    await gate.pace(guests[2], 1, 1)
    assert (replayed.aborted, first.aborted, second.aborted) == (False, False, True)


async def test_a_connection_counts_for_whose_it_turns_out_to_be(watched, autojump_clock):
    gate = watched(connections=3, connections_per_key=1, unproved_connections=1)
    first, second, third = Peer(), Peer(), Peer()
    guests = [gate.enter(A, first)]
    gate.identify(guests[0], B)
    guests.append(gate.enter(A, second))
    await gate.pace(guests[1], 1, 1)
    assert not second.aborted, "the first does not count for this key"
    guests.append(gate.enter(A, third))
    gate.identify(guests[2], B)
    assert third.aborted
    for guest in guests:
        gate.leave(guest)
        gate.identify(guest, A)  # its task hears of it later
    for key in (A, B, bytes(32)):
        peer = Peer()
        await gate.pace(gate.enter(key, peer), 1, 1)
        assert not peer.aborted, "all places are free again"


async def test_a_fast_sender_is_read_at_its_rate(watched, autojump_clock):
    gate = watched(records_per_key=100, bytes_per_key=None)
    guest = gate.enter(A, Peer())
    begin = trio.current_time()
    for _ in range(120):
        await gate.pace(guest, 10, 10)
    assert trio.current_time() - begin == pytest.approx(10, abs=0.2)  # 1200, less a burst of 200
    other = gate.enter(B, Peer())
    begin = trio.current_time()
    await gate.pace(other, 10, 10)
    assert trio.current_time() - begin < 0.01


async def test_a_request_waits_for_a_short_while_and_the_next_is_told_for_how_long(
    watched, autojump_clock
):
    gate = watched(records_per_key=1, bytes_per_key=None)
    begin = trio.current_time()
    await gate.pace_requests(A, 100, 100)
    assert trio.current_time() - begin == REQUEST_PATIENCE
    for _ in range(3):  # what is refused does not count
        with pytest.raises(RateExceeded) as caught:
            await gate.pace_requests(A, 100, 100)
        assert caught.value.retry_after == pytest.approx(100 - 2 - REQUEST_PATIENCE)
    await gate.pace_requests(B, 1, 1)
    await trio.sleep(caught.value.retry_after)
    begin = trio.current_time()
    await gate.pace_requests(A, 3, 3)
    assert trio.current_time() - begin == pytest.approx(3)


async def test_a_key_taken_off_the_list_loses_its_connections_within_a_second(
    watched, autojump_clock, tmp_path
):
    path = tmp_path / "list"
    path.write_text(f"{A.hex()}\n{B.hex()}\n")
    gate = watched(AccessPolicy(path))
    peers = [Peer(), Peer()]
    for key, peer in zip((A, B), peers, strict=True):
        assert not gate.refuses(key, None, HERE)
        gate.enter(key, peer)
    await trio.sleep(3)
    path.write_text(f"{B.hex()}\n# gone: a\n")
    await trio.sleep(2.1)
    assert [peer.aborted for peer in peers] == [True, False]
    assert gate.refuses(A, None, HERE)
    assert gate.enter(A, Peer()) is None  # had its handshake before
    assert gate.statistics().refused_keys == 1


async def test_strangers_leave_handshakes_to_those_who_have_been_here(watched, autojump_clock):
    gate = watched(handshakes=5, handshakes_per_source=None)
    guest = gate.enter(A, Peer())
    await gate.pace(guest, 1, 1)
    strangers = [(f"198.51.100.{n}", 1) for n in range(100)]
    assert sum(gate.admits(stranger, None) for stranger in strangers) == 2
    assert gate.admits(HERE, None)
    assert gate.admits(HERE, ("203.0.113.1", 1))
    assert gate.statistics().limits.handshakes == 98


async def test_who_has_proved_nothing_is_a_stranger(watched, autojump_clock):
    gate = watched(handshakes=5, handshakes_per_source=None)
    gate.enter(A, Peer(authenticated=False))
    await trio.sleep(3)
    assert sum(gate.admits(HERE, None) for _ in range(100)) == 2
