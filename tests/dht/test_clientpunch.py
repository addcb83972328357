"""The client's side of a hole punch, through simulated NATs and with servers of all sorts."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
import trio

from hyperlog.dht.commands.messages import Holepunch, NoisePayload
from hyperlog.dht.commands.router import answer_holepunch
from hyperlog.dht.constants import ERROR_TRY_LATER, FIREWALL_CONSISTENT, FIREWALL_RANDOM
from hyperlog.dht.errors import (
    CannotHolepunch,
    DHTError,
    DoubleRandomizedNATs,
    HolepunchFailed,
    HolepunchInvalid,
    HolepunchProbeTimeout,
    RemoteAborted,
    RemoteNotHolepunchable,
    RemoteNotHolepunching,
    RequestTimeout,
)
from hyperlog.dht.holepunch.payload import HolepunchPayload, SecurePayload
from hyperlog.dht.holepunch.puncher import LOW_TTL, Strategy
from tests.dht.punching import SteadyNat, lose_pings, punching_pair

RANDOM = {"mapping": "random"}


def watch_probes(network):
    """Source, destination, TTL and time of each probe from now on."""
    probes = []
    transmit = network.transmit

    def watch(source, data, destination, ttl):
        if len(data) == 1:
            probes.append((source, destination, ttl, trio.current_time()))
        transmit(source, data, destination, ttl)

    network.transmit = watch
    return probes


class FickleNat(SteadyNat):
    """Random for the sockets that send through it first, and consistent for others."""

    fickle = 0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.settled = set()
        self.sockets = []

    def _key(self, inside, destination):
        if inside not in self.settled and inside not in self.sockets:
            self.sockets.append(inside)
        index = self.sockets.index(inside) if inside in self.sockets else self.fickle
        return inside if index >= self.fickle else (inside, destination)

    def be_fickle(self, sockets):
        """To the next `sockets` sockets."""
        self.settled |= {inside for inside in self._by_inside if isinstance(inside[1], int)}
        self.settled |= {inside[0] for inside in self._by_inside if not isinstance(inside[1], int)}
        self.sockets.clear()
        self.fickle = sockets


# -- the way through -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "server", "strategy"),
    [
        ({}, RANDOM, Strategy.RANDOM_REMOTE),
        (RANDOM, {}, Strategy.RANDOM_LOCAL),
        ({"mapping": "sequential"}, {}, Strategy.RANDOM_LOCAL),
    ],
)
async def test_random_ports_are_found_by_1750_probes(client, server, strategy, autojump_clock):
    async with punching_pair(client=client, server=server) as pair:
        shaken = await pair.shake_hands()
        probes = watch_probes(pair.net.network)
        await shaken.punch()
        ((socket, address),) = shaken.paths
        assert address[0] == pair.server_nat.outside_host
        record = shaken.record
        assert record.connected
        assert record.strategy is strategy
        assert record.rounds == 2
        assert record.probes_received == 1
        assert 0.0 < record.duration < 36.0
        assert record.sockets == (256 if strategy is Strategy.RANDOM_LOCAL else 1)
        assert socket not in pair.client.sockets._sockets  # nobody has taken it here
        assert pair.sockets_open()[0] == 2
        pair.server.punch.close()
        assert pair.sockets_open() == (2, 2)
        outsides = {pair.client_nat.outside_host, pair.server_nat.outside_host}
        assert {destination[0] for _, destination, _, _ in probes} == outsides
        assert pair.client.punches.limit.running == 0
        assert pair.server.dht.punches.limit.running == 0


async def test_probes_to_random_ports_are_20_ms_apart(autojump_clock):
    async with punching_pair(server=RANDOM, seed=5) as pair:
        shaken = await pair.shake_hands()
        probes = watch_probes(pair.net.network)
        await shaken.punch()
        times = [at for source, _, _, at in probes if source[0] == pair.client_nat.outside_host]
        assert len(times) == shaken.record.probes_sent
        gaps = [after - before for before, after in itertools.pairwise(times[1:])]
        assert len(gaps) > 10
        assert min(gaps) == pytest.approx(0.02)
        assert max(gaps) == pytest.approx(0.02)


async def test_a_fast_open_is_through_before_the_first_round_is_over(autojump_clock):
    async with punching_pair(delay=0.05) as pair:
        shaken = await pair.shake_hands()
        probes = watch_probes(pair.net.network)
        started = trio.current_time()
        await shaken.punch()
        (first, *_) = probes
        assert first[1] == shaken.server_address
        assert first[2] <= LOW_TTL
        assert first[3] == started
        assert shaken.record.strategy is None
        assert shaken.record.connected
        assert trio.current_time() - started < 0.3
        assert pair.client.statistics().punches.early == 1


async def test_without_fast_open_the_punch_round_does_it(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        probes = watch_probes(pair.net.network)
        await shaken.punch(fast_open=False)
        assert shaken.record.strategy is Strategy.CONSISTENT
        assert shaken.record.rounds == 2
        assert all(ttl > LOW_TTL for _, _, ttl, _ in probes)
        counts = pair.client.statistics().punches.consistent
        assert (counts.attempted, counts.succeeded, counts.failed) == (1, 1, 0)


async def test_both_random_fails_at_once_and_the_server_is_told(autojump_clock):
    async with punching_pair(client=RANDOM, server=RANDOM) as pair:
        shaken = await pair.shake_hands()
        started = trio.current_time()
        with pytest.raises(DoubleRandomizedNATs, match="relay"):
            await shaken.punch()
        assert trio.current_time() - started < 1.0
        assert shaken.record.reopened == 3  # another socket might have been luckier
        assert shaken.record.local_firewall == shaken.record.remote_firewall == FIREWALL_RANDOM
        assert not pair.server.punch.active
        assert pair.sockets_open() == (2, 2)
        assert pair.client.statistics().punches.unstarted == 1


async def test_a_client_whose_nat_treats_sockets_differently_takes_another(autojump_clock):
    async with punching_pair(client={"nat": FickleNat}, server=RANDOM, seed=2) as pair:
        shaken = await pair.shake_hands()
        pair.client_nat.be_fickle(2)
        await shaken.punch()
        assert shaken.record.reopened == 2
        assert shaken.record.rounds == 3  # the server was asked again from the third socket
        assert shaken.record.local_firewall == FIREWALL_CONSISTENT
        assert shaken.record.strategy is Strategy.RANDOM_REMOTE
        assert shaken.record.connected


async def test_a_server_whose_nat_treats_sockets_differently_takes_another(autojump_clock):
    async with punching_pair(client=RANDOM, server={"nat": FickleNat}, seed=2) as pair:
        pair.server_nat.be_fickle(1)
        shaken = await pair.shake_hands()
        # The client has judged its own NAT before it asks: then the server can tell.
        await punch_after_own_analysis(shaken)
        assert pair.server.punch.record.reopened == 1
        assert shaken.record.connected


async def punch_after_own_analysis(shaken):
    """Hold back the client's first message until it knows its NAT."""
    request = shaken.client.node.request
    held = False

    async def hold_back(command, **options):
        nonlocal held
        if not held and not options.get("internal"):
            held = True
            await trio.sleep(1)
            secure = SecurePayload(shaken.secret, random.randbytes)
            message = Holepunch.decode_untrusted(options["value"])
            payload = secure.decrypt_untrusted(message.payload)
            payload.firewall, payload.addresses = FIREWALL_RANDOM, [("5.5.5.2", 0)]
            message.payload = secure.encrypt(payload)
            options["value"] = message.encode()
        return await request(command, **options)

    shaken.client.node.request = hold_back
    try:
        await shaken.punch()
    finally:
        shaken.client.node.request = request


@pytest.mark.parametrize("kinds", [({}, {}), ({}, RANDOM), (RANDOM, {})])
async def test_every_other_probe_may_be_lost(kinds, autojump_clock):
    client, server = kinds
    async with punching_pair(client=client, server=server) as pair:
        shaken = await pair.shake_hands()
        transmit = pair.net.network.transmit
        sent = Counter()

        def lose(source, data, destination, ttl):
            if len(data) == 1:
                sent[source[0]] += 1
                if sent[source[0]] % 2:
                    return
            transmit(source, data, destination, ttl)

        pair.net.network.transmit = lose
        await shaken.punch()
        assert shaken.record.connected


# -- one random punch at a time --------------------------------------------------------------------


async def test_a_busy_server_is_asked_again_later_if_there_is_a_relay(autojump_clock):
    async with punching_pair(client=RANDOM, seed=1) as pair:
        pair.server.options["has_relay"] = True
        limit = pair.server.dht.punches.limit
        assert limit.take(trio.current_time())
        shaken = await pair.shake_hands()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def finish_the_other():
                await trio.sleep(25)
                limit.give_back(trio.current_time(), used=False)

            await shaken.punch(has_relay=True)
        assert shaken.record.connected
        assert shaken.record.delays in (2, 3)
        assert 25 < trio.current_time() - started < 25 + 20 + 36
        assert pair.server.dht.statistics().punches.try_later == shaken.record.delays


async def test_a_busy_server_refuses_a_client_without_a_relay(autojump_clock):
    async with punching_pair(client=RANDOM) as pair:
        assert pair.server.dht.punches.limit.take(trio.current_time())
        shaken = await pair.shake_hands()
        with pytest.raises(RemoteAborted, match="try again in 20 s"):
            await shaken.punch()
        assert pair.sockets_open() == (2, 2)
        assert pair.client.punches.limit.running == 0
        assert pair.server.dht.statistics().punches.try_later == 1


async def test_a_busy_client_waits_if_there_is_a_relay(autojump_clock):
    async with punching_pair(client=RANDOM, seed=1) as pair:
        pair.server.options["has_relay"] = True
        limit = pair.client.punches.limit
        assert limit.take(trio.current_time())
        shaken = await pair.shake_hands()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def finish_the_other():
                await trio.sleep(5)
                limit.give_back(trio.current_time(), used=False)

            await shaken.punch(has_relay=True)
        assert shaken.record.connected
        assert shaken.record.delays == 1
        assert shaken.record.rounds == 3  # one to exchange tokens before the pause


async def test_a_busy_client_without_a_relay_gives_up(autojump_clock):
    async with punching_pair(client=RANDOM) as pair:
        assert pair.client.punches.limit.take(trio.current_time())
        shaken = await pair.shake_hands()
        with pytest.raises(HolepunchFailed, match="try again in 20 s"):
            await shaken.punch()
        assert shaken.record.rounds == 1
        assert pair.client.punches.limit.running == 1
        assert pair.client.statistics().punches.try_later == 1


async def test_random_punches_of_one_client_are_20_s_apart(autojump_clock):
    async with punching_pair(client=RANDOM, seed=1) as pair:
        shaken = await pair.shake_hands()
        await shaken.punch()
        pair.server.punch.close()
        again = await pair.shake_hands()
        with pytest.raises(HolepunchFailed):
            await again.punch()
        pair.server.punch.close()
        await trio.sleep(20)
        again = await pair.shake_hands()
        await again.punch()
        assert again.record.connected


async def test_consistent_punches_take_no_turns(autojump_clock):
    async with punching_pair() as pair:
        assert pair.client.punches.limit.take(0.0)
        assert pair.server.dht.punches.limit.take(0.0)
        for _ in range(3):
            shaken = await pair.shake_hands()
            await shaken.punch()
            assert shaken.record.connected


# -- what goes wrong -------------------------------------------------------------------------------


async def test_the_caller_may_forbid_it_and_the_server_is_told(autojump_clock):
    asked = []

    def may_punch(*what):
        asked.append(what)
        return False

    async with punching_pair(server=RANDOM) as pair:
        shaken = await pair.shake_hands()
        with pytest.raises(HolepunchFailed, match="forbade"):
            await shaken.punch(may_punch=may_punch)
        ((remote, local, remote_addresses, local_addresses),) = asked
        assert (remote, local) == (FIREWALL_RANDOM, FIREWALL_CONSISTENT)
        assert remote_addresses == [(pair.server_nat.outside_host, 0)]
        assert local_addresses[0][0] == pair.client_nat.outside_host
        assert pair.sockets_open() == (2, 2)


async def test_a_callback_that_fails_forbids_it(autojump_clock, caplog):
    async with punching_pair(server=RANDOM) as pair:
        shaken = await pair.shake_hands()
        with pytest.raises(HolepunchFailed, match="forbade"):
            await shaken.punch(may_punch=lambda *what: 1 // 0)
        assert "may_punch callback failed" in caplog.text


async def test_a_server_that_has_gone_ends_it_in_seconds(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        pair.server.answering = False
        with trio.fail_after(10), pytest.raises(RequestTimeout):
            await shaken.punch(fast_open=False)
        assert pair.sockets_open()[0] == 2


async def test_a_client_that_nobody_tells_its_nat_says_so(autojump_clock):
    async with punching_pair(server=RANDOM) as pair:
        shaken = await pair.shake_hands()
        lose_pings(pair, pair.client_nat.outside_host)
        with trio.fail_after(30), pytest.raises(HolepunchProbeTimeout, match="our side"):
            await shaken.punch()
        assert shaken.record.reopened == 3
        assert pair.sockets_open()[0] == 2


async def test_a_firewall_that_drops_probes_ends_it_after_ten_rounds(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        transmit = pair.net.network.transmit

        def lose_probes(source, data, destination, ttl):
            if len(data) > 1:
                transmit(source, data, destination, ttl)

        pair.net.network.transmit = lose_probes
        started = trio.current_time()
        with pytest.raises(HolepunchFailed, match="no probe of the peer came through"):
            await shaken.punch()
        assert 10 <= trio.current_time() - started < 13
        counts = pair.client.statistics().punches.consistent
        assert (counts.attempted, counts.succeeded, counts.failed) == (1, 0, 1)
        await trio.sleep(3)
        assert not pair.server.punch.active
        assert pair.sockets_open() == (2, 2)


async def test_a_random_punch_that_fails_frees_all_its_sockets(autojump_clock):
    async with punching_pair(client=RANDOM) as pair:
        shaken = await pair.shake_hands()
        transmit = pair.net.network.transmit
        most = 0

        def lose_probes(source, data, destination, ttl):
            nonlocal most
            most = max(most, pair.sockets_open()[0])
            if len(data) > 1:
                transmit(source, data, destination, ttl)

        pair.net.network.transmit = lose_probes
        started = trio.current_time()
        with pytest.raises(HolepunchFailed):
            await shaken.punch()
        assert 35 <= trio.current_time() - started < 37
        assert most == 2 + 256
        assert pair.sockets_open()[0] == 2
        await trio.sleep(2)
        assert pair.sockets_open() == (2, 2)
        assert pair.server.dht.punches.limit.running == 0


async def test_a_payload_without_nodes_to_punch_through_is_refused(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        shaken.payload = NoisePayload()
        with pytest.raises(CannotHolepunch):
            await shaken.punch()


def answer_by_hand(pair, answer):
    """Let `answer(payload)` make the server's payload, or the bytes of one."""

    def on_request(request):
        action = pair.server._router.route(request, trio.current_time())
        if request.target == pair.server.announcer.target and action is not None:
            secure = SecurePayload(shaken_secret[0], random.randbytes)
            made = answer(secure.decrypt_untrusted(action.message.payload))
            sealed = secure.encrypt(made) if isinstance(made, HolepunchPayload) else made
            pair.server.dht.perform(
                request, answer_holepunch(action.message, sealed, request.address)
            )
        return True

    shaken_secret = []
    pair.server.dht.node.on_request = on_request
    return shaken_secret.append


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda payload: b"x" * 60, HolepunchInvalid),
        (lambda payload: b"", HolepunchInvalid),
        (lambda payload: HolepunchPayload(error=1), RemoteAborted),
        (lambda payload: HolepunchPayload(error=99), RemoteAborted),
        (lambda payload: HolepunchPayload(error=ERROR_TRY_LATER), RemoteAborted),
        (lambda payload: HolepunchPayload(), HolepunchProbeTimeout),
        (lambda payload: HolepunchPayload(firewall=7, token=bytes(32)), RemoteNotHolepunching),
        (
            lambda payload: HolepunchPayload(firewall=FIREWALL_CONSISTENT, token=bytes(32)),
            RemoteNotHolepunching,
        ),
        (
            lambda payload: HolepunchPayload(firewall=FIREWALL_CONSISTENT, punching=True),
            RemoteNotHolepunchable,
        ),
        (  # a host that was never proven gets no 1750 probes
            lambda payload: HolepunchPayload(
                firewall=FIREWALL_RANDOM,
                punching=True,
                addresses=[("66.66.66.66", 0)],
                token=bytes(32),
                remote_token=payload.token,
            ),
            RemoteNotHolepunchable,
        ),
    ],
)
async def test_answers_that_lead_nowhere_have_their_own_errors(answer, error, autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        answer_by_hand(pair, answer)(shaken.secret)
        probes = watch_probes(pair.net.network)
        with trio.fail_after(20), pytest.raises(error):
            await shaken.punch()
        assert {destination[0] for _, destination, _, _ in probes} <= {shaken.server_address[0]}
        assert pair.sockets_open()[0] == 2
        assert pair.client.punches.limit.running == 0


async def test_a_probe_that_comes_with_a_refusal_counts(autojump_clock):
    async with punching_pair() as pair, trio.open_nursery() as nursery:
        shaken = await pair.shake_hands()
        network = pair.net.network
        client_host = pair.client_nat.outside_host

        async def probe_later(destination):
            await trio.sleep(network.delay)  # the refusal has two hops to go
            network.transmit(shaken.server_address, b"\x00", destination, 64)

        def answer(payload):
            ports = pair.client_nat._by_port
            for port in ports:
                nursery.start_soon(probe_later, (client_host, port))
            return HolepunchPayload(error=1)

        answer_by_hand(pair, answer)(shaken.secret)
        await shaken.punch()
        assert shaken.record.connected
        assert len(shaken.paths) == 1


async def test_a_server_that_says_try_later_for_ever_is_given_up(autojump_clock):
    async with punching_pair(client=RANDOM) as pair:
        shaken = await pair.shake_hands()

        def answer(payload):
            return HolepunchPayload(
                error=ERROR_TRY_LATER if payload.punching else 0,
                firewall=FIREWALL_CONSISTENT,
                addresses=[("5.5.5.1", 1)],
                token=bytes(32),
                remote_token=payload.token,
            )

        answer_by_hand(pair, answer)(shaken.secret)
        started = trio.current_time()
        with pytest.raises(HolepunchFailed, match="too long"):
            await shaken.punch(has_relay=True)
        assert 400 < trio.current_time() - started < 1000
        assert pair.client.punches.limit.running == 0


@pytest.mark.parametrize("kinds", [({}, RANDOM), (RANDOM, {})])
async def test_it_can_be_cancelled_at_any_moment(kinds, autojump_clock):
    client, server = kinds
    rng = random.Random(8)
    async with punching_pair(client=client, server=server) as pair:
        pair.client.punches.limit.interval = pair.server.dht.punches.limit.interval = 0.0
        for _ in range(30):
            shaken = await pair.shake_hands()
            with trio.move_on_after(rng.choice((0.05, 0.3, 2.0)) * rng.random()):
                try:
                    await shaken.punch()
                except DHTError:
                    raise AssertionError("nothing was in its way") from None
            assert pair.sockets_open()[0] == 2
            assert pair.client.punches.limit.running == 0
            pair.server.punch.close()
            assert pair.sockets_open() == (2, 2)
            assert pair.server.dht.punches.limit.running == 0


async def test_a_punch_that_fails_as_it_is_cancelled_is_cancelled(autojump_clock):
    async with punching_pair(delay=0.1) as pair:
        shaken = await pair.shake_hands()
        async with trio.open_nursery() as nursery:

            async def punch():
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancel_and_fail, scope)
                    await shaken.punch()
                assert scope.cancelled_caught

            async def cancel_and_fail(scope):
                await trio.sleep(0.05)
                pair.client.node.suspend()  # what it waits for fails
                scope.cancel()

            nursery.start_soon(punch)
        assert pair.client.statistics().sockets.sockets == 2
