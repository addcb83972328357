"""The server's side of a hole punch, asked by hand: by honest clients and by others."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
import trio

from hyperlog.dht.constants import (
    ERROR_ABORTED,
    ERROR_NONE,
    ERROR_TRY_LATER,
    FIREWALL_CONSISTENT,
    FIREWALL_RANDOM,
    FIREWALL_UNKNOWN,
)
from hyperlog.dht.errors import RequestTimeout
from hyperlog.dht.holepunch.payload import HolepunchPayload
from hyperlog.dht.holepunch.puncher import Strategy
from tests.dht.punching import lose_pings, punching_pair

RANDOM = {"mapping": "random"}
CLIENT_HOST = "5.5.5.2"


def asking(firewall=FIREWALL_CONSISTENT, **fields):
    """What a client behind the second NAT says."""
    fields = {"addresses": [(CLIENT_HOST, 4000)], "token": os.urandom(32)} | fields
    return HolepunchPayload(firewall=firewall, **fields)


async def ask_for_token(shaken):
    answer = await shaken.say(asking())
    assert answer.error == ERROR_NONE
    return answer.token


async def test_it_tells_its_nat_and_a_token_and_echoes_ours(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        payload = asking()
        answer = await shaken.say(payload)
        assert answer.firewall == FIREWALL_CONSISTENT
        assert answer.addresses == [shaken.server_address]
        assert len(answer.token) == 32
        assert answer.remote_token == payload.token
        assert not answer.punching
        assert pair.server.punch.record.rounds == 1


async def test_a_random_nat_names_its_host_alone(autojump_clock):
    async with punching_pair(server=RANDOM) as pair:
        shaken = await pair.shake_hands()
        answer = await shaken.say(asking())
        assert answer.firewall == FIREWALL_RANDOM
        assert answer.addresses == [(pair.server_nat.outside_host, 0)]


async def test_the_same_message_twice_is_answered_twice_while_it_punches(autojump_clock):
    """A node that loses the first answer has the client repeat its message."""
    async with punching_pair(server=RANDOM) as pair:
        shaken = await pair.shake_hands()
        token = await ask_for_token(shaken)
        message = asking(punching=True, round=1, remote_token=token)
        for _ in range(3):
            answer = await shaken.say(message)
            assert answer.error == ERROR_NONE
            assert answer.punching
        counts = pair.server.dht.statistics().punches.random_local
        assert (counts.attempted, counts.failed) == (1, 0)


async def test_a_punch_that_nobody_answers_ends_and_gives_everything_back(autojump_clock):
    async with punching_pair(server=RANDOM) as pair:
        shaken = await pair.shake_hands()
        token = await ask_for_token(shaken)
        await shaken.say(asking(punching=True, round=1, remote_token=token))
        punch = pair.server.punch
        assert punch.record.strategy is Strategy.RANDOM_LOCAL
        assert pair.sockets_open()[1] == 2 + 256
        await trio.sleep(34)
        assert punch.active
        await trio.sleep(2)
        assert not punch.active
        assert pair.sockets_open()[1] == 2
        assert punch.record.probes_sent == 255 + 1750
        assert punch.record.duration == pytest.approx(35.1, abs=0.5)
        assert pair.server.dht.punches.limit.running == 0


async def test_a_client_that_does_not_punch_within_10_s_is_forgotten(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        for number in range(3):
            await shaken.say(asking(round=number))
            assert pair.server.punch.active
            await trio.sleep(3)
        await trio.sleep(2)
        assert not pair.server.punch.active
        assert pair.sockets_open()[1] == 2
        with pytest.raises(RequestTimeout):
            await shaken.say(asking(round=4))


async def test_with_a_relay_it_waits_for_as_long_as_the_client_asks(autojump_clock):
    async with punching_pair() as pair:
        pair.server.options["has_relay"] = True
        shaken = await pair.shake_hands()
        for number in range(5):
            await trio.sleep(20)
            await shaken.say(asking(round=number))
            assert pair.server.punch.active
        await trio.sleep(31)
        assert not pair.server.punch.active


async def test_but_not_for_ever(autojump_clock):
    async with punching_pair() as pair:
        pair.server.options["has_relay"] = True
        shaken = await pair.shake_hands()
        started = trio.current_time()
        while pair.server.punch.active:
            await trio.sleep(20)
            with suppress(RequestTimeout):
                await shaken.say(asking())
        assert 900 < trio.current_time() - started < 1000


@pytest.mark.parametrize("has_relay", [False, True])
async def test_a_second_random_punch_is_put_off(has_relay, autojump_clock):
    async with punching_pair(server=RANDOM) as pair:
        pair.server.options["has_relay"] = has_relay
        first, second = await pair.shake_hands(), await pair.shake_hands()
        token = await ask_for_token(first)
        await first.say(asking(punching=True, round=1, remote_token=token))
        token = await ask_for_token(second)
        answer = await second.say(asking(punching=True, round=1, remote_token=token))
        assert answer.error == ERROR_TRY_LATER
        assert not answer.punching
        assert pair.server.dht.statistics().punches.try_later == 1
        assert pair.server.punches[0].active
        assert pair.server.punches[1].active is has_relay
        if has_relay:
            assert answer.firewall == FIREWALL_RANDOM
            assert len(answer.token) == 32
            pair.server.punches[0].close()
            await trio.sleep(21)
            answer = await second.say(asking(punching=True, round=2, remote_token=token))
            assert answer.error == ERROR_NONE
            assert answer.punching


async def test_a_client_that_gives_up_ends_it_at_once(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        await ask_for_token(shaken)
        answer = await shaken.say(HolepunchPayload(error=ERROR_ABORTED, round=1))
        assert answer.error == ERROR_ABORTED
        assert not pair.server.punch.active
        assert pair.sockets_open()[1] == 2


async def test_the_owner_may_forbid_it(autojump_clock):
    asked = []

    def may_punch(*what):
        asked.append(what)
        return False

    async with punching_pair() as pair:
        pair.server.options["may_punch"] = may_punch
        shaken = await pair.shake_hands()
        token = await ask_for_token(shaken)
        assert not asked
        answer = await shaken.say(asking(punching=True, round=1, remote_token=token))
        assert answer.error == ERROR_ABORTED
        ((remote, local, remote_addresses, local_addresses),) = asked
        assert (remote, local) == (FIREWALL_CONSISTENT, FIREWALL_CONSISTENT)
        assert remote_addresses == [(CLIENT_HOST, 4000)]
        assert local_addresses == [shaken.server_address]


# -- who is believed -------------------------------------------------------------------------------


def other_node(pair):
    """A node that the server did not choose."""
    relays = {relay.relay_address for relay in pair.server.announcer.relays}
    return next(node.address for node in pair.net.nodes if node.address not in relays)


async def meet(pair, shaken, node):
    """Let the server's NAT admit what comes from a node of the client's choice."""
    pair.server.dht.sockets.send(pair.server.punch.socket, node, b"\x00\x00")
    await trio.sleep(0.1)


async def test_a_node_of_the_clients_choice_proves_nothing(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        token = await ask_for_token(shaken)
        node = other_node(pair)
        await meet(pair, shaken, node)
        answer = await shaken.say(asking(round=1, remote_token=token), relay=node)
        assert answer.token is None
        known = pair.server.punch._sockets.puncher.remote_addresses
        assert [address.verified for address in known] == [False]
        # Without proof there is no random punch.
        message = asking(FIREWALL_RANDOM, punching=True, round=2, remote_token=token)
        answer = await shaken.say(message, relay=node)
        assert answer.error == ERROR_ABORTED
        assert pair.server.dht.punches.limit.running == 0


@pytest.mark.parametrize("token", [None, bytes(32)])
async def test_nobody_gets_1750_probes_at_a_host_that_was_not_proven(token, autojump_clock):
    victim = ("66.66.66.66", 4000)
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        own = await ask_for_token(shaken)
        sent = []
        transmit = pair.net.network.transmit

        def watch(source, data, destination, ttl):
            if destination[0] == victim[0]:
                sent.append(data)
            transmit(source, data, destination, ttl)

        pair.net.network.transmit = watch
        message = asking(
            FIREWALL_RANDOM,
            punching=True,
            round=1,
            addresses=[victim],
            remote_token=token or own,  # proves the client's own host, which it does not name
        )
        answer = await shaken.say(message)
        assert answer.error == ERROR_ABORTED
        await trio.sleep(40)
        assert not sent


async def test_many_addresses_and_hosts_get_few_probes(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        token = await ask_for_token(shaken)
        sent = []
        transmit = pair.net.network.transmit

        def watch(source, data, destination, ttl):
            if source[0] == pair.server_nat.outside_host and len(data) == 1:
                sent.append(destination)
            transmit(source, data, destination, ttl)

        pair.net.network.transmit = watch
        strangers = [(f"66.66.66.{number}", 1000 + number) for number in range(200)]
        await shaken.say(asking(punching=True, round=1, addresses=strangers, remote_token=token))
        await trio.sleep(30)
        assert len(sent) == 2 * 16  # two of the ten rounds


async def test_an_old_message_changes_nothing(autojump_clock):
    async with punching_pair() as pair:
        shaken = await pair.shake_hands()
        await shaken.say(asking(round=5))
        await shaken.say(asking(round=4, addresses=[("66.66.66.66", 1)]))
        (known,) = pair.server.punch._sockets.puncher.remote_addresses
        assert known.address == (CLIENT_HOST, 4000)


async def test_only_some_messages_are_handled_at_a_time(autojump_clock):
    """While the NAT is being judged, which takes a while when nodes do not answer."""
    async with punching_pair() as pair:
        lose_pings(pair, pair.server_nat.outside_host)
        shaken = await pair.shake_hands()
        answers = 0

        async def ask(number):
            nonlocal answers
            with suppress(RequestTimeout):
                await shaken.say(asking(round=number))
                answers += 1

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, number)
        assert answers <= 8
        assert pair.server.punch.record.rounds <= 8


async def test_one_that_nobody_tells_its_nat_takes_other_sockets_and_gives_up(autojump_clock):
    async with punching_pair() as pair:
        lose_pings(pair, pair.server_nat.outside_host)
        shaken = await pair.shake_hands()
        with pytest.raises(RequestTimeout):  # by the time of the answer the client has asked again
            await shaken.say(asking())
        await trio.sleep(20)
        assert not pair.server.punch.active
        assert pair.server.punch.record.reopened == 3
        assert pair.server.punch.record.local_firewall == FIREWALL_UNKNOWN
        assert pair.sockets_open()[1] == 2
