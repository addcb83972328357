"""Listener: handshakes that are refused, repeated, flooded, abandoned or left half done."""

from __future__ import annotations

import logging
import os
import time

import pytest
import trio
import trio.testing

from hyperlog.dht import listener as module
from hyperlog.dht.acceptance import HANDSHAKE_MEMORY
from hyperlog.dht.commands.handshake import HandshakeInitiator
from hyperlog.dht.commands.messages import (
    Handshake,
    Holepunch,
    HolepunchInfo,
    NoisePayload,
    UDXInfo,
)
from hyperlog.dht.constants import (
    ERROR_ABORTED,
    ERROR_VERSION_MISMATCH,
    FIREWALL_OPEN,
    FIREWALL_UNKNOWN,
    FROM_CLIENT,
    FROM_RELAY,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
)
from hyperlog.dht.errors import PeerConnectionFailed, RequestTimeout
from hyperlog.dht.handshakes import MAX_HANDSHAKES
from hyperlog.dht.ipv6 import knock
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.opening import open_dht
from hyperlog.dht.rpc.messages import Request
from hyperlog.dht.sockets import SERVER
from tests.dht.peers import new_stream, sim_dht, sim_network

EXPIRED = HANDSHAKE_MEMORY + 2  # s


class RawClient:
    """Makes first messages by hand and sends them from a node of its own."""

    def __init__(self, dht, server_key, *, key_pair=None):
        self.dht = dht
        self.server_key = server_key
        self.initiator = HandshakeInitiator(
            key_pair or KeyPair.generate(), server_key, dht.random_bytes
        )

    def first_message(self, **fields):
        fields = {"udx": UDXInfo(id=1), "secret_stream": True} | fields
        version = fields.pop("version", 1)
        payload = bytes((version,)) + NoisePayload(**fields).encode()[1:]
        return self.initiator._state.write_message(payload)

    async def ask(self, noise, to, *, mode=FROM_CLIENT, peer=None, retries=0):
        message = Handshake(mode, noise, peer)
        return await self.dht.node.request(
            PEER_HANDSHAKE,
            target=generic_hash(self.server_key),
            value=message.encode(),
            to=to,
            socket=SERVER,
            retries=retries,
        )

    async def shake_hands(self, to, **fields):
        response = await self.ask(self.first_message(**fields), to)
        reply = Handshake.decode_untrusted(response.value)
        return self.initiator.receive_untrusted(reply.noise)


def table_sizes(listener):
    return len(listener._handshakes), len(listener._handshakes._by_number)


# -- a handshake and what follows ------------------------------------------------------------------


async def test_a_peer_that_never_sends_its_hello_is_forgotten(autojump_clock):
    async with sim_dht(2) as net:
        server, client = await net.add(firewalled=False), await net.add(firewalled=False)
        listener = await server.listen()
        await RawClient(client, listener.public_key).shake_hands(server.address)
        await trio.sleep(1)
        assert server.statistics().sockets.streams == 1
        assert table_sizes(listener) == (1, 1)
        await trio.sleep(EXPIRED)
        assert server.statistics().sockets.streams == 0
        assert table_sizes(listener) == (0, 0)
        statistics = listener.statistics()
        assert (statistics.handshakes, statistics.failed, statistics.accepted) == (1, 1, 0)


@pytest.mark.parametrize("ticks", range(8))
async def test_a_peer_that_comes_while_the_listener_closes_is_turned_away(ticks, autojump_clock):
    async with sim_dht(3) as net:
        server, client = await net.add(firewalled=True), await net.add(firewalled=True)
        listener = await server.listen()
        await listener.wait_announced()
        relay = listener.announcer.relays[0]
        payload = await RawClient(client, listener.public_key).shake_hands(relay.relay_address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.aclose)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            first_packet = knock(payload.udx.id)
            server.sockets._dispatch(SERVER, [(first_packet, client.address)])
        await trio.sleep(1)
        assert server.statistics().sockets.streams == 0
        assert await server.node.ping(client.address)


async def test_a_peer_that_resets_instead_of_a_hello_only_fails_itself(autojump_clock):
    async with sim_dht(3) as net:
        server = await net.add(firewalled=True)
        client = await net.add(firewalled=True)
        listener = await server.listen()
        await listener.wait_announced()
        relay = listener.announcer.relays[0]
        payload = await RawClient(client, listener.public_key).shake_hands(relay.relay_address)
        stream = new_stream(client.sockets)
        stream.connect(SERVER, payload.udx.id, relay.peer_address)
        stream.destroy()
        await trio.sleep(1)
        connection = await client.connect(listener.public_key)
        accepted = await listener.accept()
        await connection.send(b"unharmed")
        assert await accepted.receive() == b"unharmed"


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"udx": None}, ERROR_ABORTED), ({"version": 2}, ERROR_VERSION_MISMATCH)],
    ids=["no-stream", "other-version"],
)
async def test_an_unusable_peer_is_told_why(fields, error, autojump_clock):
    async with sim_dht(2) as net:
        server, client = await net.add(firewalled=False), await net.add()
        listener = await server.listen()
        payload = await RawClient(client, listener.public_key).shake_hands(server.address, **fields)
        assert payload.error == error
        assert server.statistics().sockets.streams == 0
        await trio.sleep(EXPIRED)
        assert table_sizes(listener) == (0, 0)


async def test_a_first_message_for_another_key_gets_no_answer(autojump_clock):
    async with sim_dht(2) as net:
        server, client = await net.add(firewalled=False), await net.add()
        listener = await server.listen()
        other = RawClient(client, KeyPair.generate().public_key)
        raw = RawClient(client, listener.public_key)
        for noise in (other.first_message(), os.urandom(200), b"", b"x"):
            with pytest.raises(RequestTimeout):
                await raw.ask(noise, server.address)
        assert table_sizes(listener) == (0, 0)
        assert listener.statistics().failed == 3  # an empty one does not come so far


# -- repeats ---------------------------------------------------------------------------------------


async def test_a_repeated_first_message_gets_the_same_answer_and_one_stream(autojump_clock):
    async with sim_dht(2) as net:
        server, client = await net.add(firewalled=False), await net.add(firewalled=False)
        listener = await server.listen()
        raw = RawClient(client, listener.public_key)
        noise = raw.first_message()
        answers = {(await raw.ask(noise, server.address)).value for _ in range(5)}
        assert len(answers) == 1
        assert server.statistics().sockets.streams == 1
        assert listener.statistics().handshakes == 1


async def test_a_recorded_first_message_never_becomes_an_authenticated_connection(autojump_clock):
    async with sim_dht(2) as net:
        server, client = await net.add(firewalled=False), await net.add(firewalled=False)
        listener = await server.listen()
        honest = RawClient(client, listener.public_key)
        noise = honest.first_message()
        first = (await honest.ask(noise, server.address)).value
        await trio.sleep(EXPIRED)
        second = (await honest.ask(noise, server.address)).value
        assert first != second  # fresh keys, which only the owner of the first message could know
        await trio.sleep(EXPIRED)
        assert server.statistics().sockets.streams == 0
        assert listener.statistics().accepted == 0


# -- the firewall ----------------------------------------------------------------------------------


async def test_a_refused_peer_gets_no_datagram_back(autojump_clock):
    async with (
        sim_network() as network,
        open_dht(bootstrap=[], host="1.1.1.1", socket_factory=network.host("1.1.1.1")) as server,
    ):
        asked = []

        def refuse(key, payload, address):
            asked.append((key, address[0]))
            return True

        listener = await server.listen(firewall=refuse)
        await trio.sleep(30)
        back = []
        transmit = network.transmit

        def count(source, data, destination, ttl):
            if source[0] == "1.1.1.1" and destination[0] == "2.2.2.2":
                back.append(data)
            transmit(source, data, destination, ttl)

        pair = KeyPair.generate()
        raw = network.host("2.2.2.2")("", 50)
        initiator = HandshakeInitiator(pair, listener.public_key, os.urandom)
        request = Request(
            tid=7,
            to=server.address,
            command=PEER_HANDSHAKE,
            target=listener.target,
            value=Handshake(FROM_CLIENT, initiator.send(NoisePayload(udx=UDXInfo(id=3)))).encode(),
        )
        network.transmit = count
        for _ in range(3):
            raw.send(request.encode(), server.address)
            await trio.sleep(1)
        await trio.sleep(15)
        assert back == []
        assert asked == [(pair.public_key, "2.2.2.2")]
        assert listener.statistics().refused == 1
        assert server.statistics().sockets.streams == 0


async def test_a_firewall_that_raises_lets_nobody_in(autojump_clock, caplog):
    async with sim_dht(2) as net:
        server, client = await net.add(firewalled=False), await net.add()

        def broken(key, payload, address):
            raise ZeroDivisionError

        listener = await server.listen(firewall=broken)
        await listener.wait_announced()
        caplog.set_level(logging.CRITICAL, "hyperlog.dht.listener")
        with pytest.raises(PeerConnectionFailed, match="firewall"):
            await client.connect(listener.public_key)
        assert listener.statistics().refused >= 1


async def test_a_refused_peer_does_not_take_another_peers_hole_punch_away(autojump_clock):
    async with sim_dht(3) as net:
        server = await net.add(firewalled=True)
        client = await net.add(firewalled=True)
        refused = set()
        listener = await server.listen(firewall=lambda key, payload, address: key in refused)
        await listener.wait_announced()
        relay = listener.announcer.relays[0].relay_address
        bad = KeyPair.generate()
        refused.add(bad.public_key)
        outcast = RawClient(client, listener.public_key, key_pair=bad)
        with pytest.raises(RequestTimeout):
            await outcast.ask(outcast.first_message(), relay)
        await trio.sleep(5)
        await RawClient(client, listener.public_key).shake_hands(relay)
        await trio.sleep(6)  # the refused one expires, the other lives
        assert table_sizes(listener) == (1, 1)


# -- floods ----------------------------------------------------------------------------------------


async def test_a_flood_of_handshakes_is_bounded_and_an_honest_client_connects_right_after(
    autojump_clock,
):
    async with sim_dht(2) as net:
        server, client = await net.add(firewalled=False), await net.add(firewalled=False)
        listener = await server.listen()
        await listener.wait_announced()
        target = generic_hash(listener.public_key)
        pair = KeyPair.generate()
        values = []
        for _ in range(3000):
            initiator = HandshakeInitiator(pair, listener.public_key, os.urandom)
            noise = initiator.send(NoisePayload(udx=UDXInfo(id=9), secret_stream=True))
            values.append(Handshake(FROM_CLIENT, noise).encode())

        class Flood:
            command = PEER_HANDSHAKE
            socket = SERVER
            token = None
            to = server.address
            id = None

            def __init__(self, value, source):
                self.target = target
                self.value = value
                self.address = (f"9.9.9.{source % 250}", 9)

            def reply(self, *_args, **_fields):
                pass

        took = []
        for start in (0, MAX_HANDSHAKES):
            begin = time.perf_counter()
            stop = MAX_HANDSHAKES if start == 0 else 3000
            for source, value in enumerate(values[start:stop]):
                server._on_request(Flood(value, source))
            took.append((time.perf_counter() - begin) / (stop - start))
        print(f"\naccepted: {took[0] * 1e6:.0f} us each; table full: {took[1] * 1e6:.0f} us each")
        assert table_sizes(listener) == (MAX_HANDSHAKES, MAX_HANDSHAKES)
        assert listener.statistics().dropped == 3000 - MAX_HANDSHAKES
        assert server.statistics().sockets.streams == MAX_HANDSHAKES
        connection = await client.connect(listener.public_key)
        accepted = await listener.accept()
        await connection.send(b"at once")
        assert await accepted.receive() == b"at once"
        await trio.sleep(EXPIRED)
        assert table_sizes(listener) == (0, 0)
        assert server.statistics().sockets.streams == 1


async def flood(attacker, listener, to, *, count, mode=FROM_CLIENT, peer=None):
    """Fresh first messages as fast as they can be sent, without waiting for answers."""
    raw = RawClient(attacker, listener.public_key)
    for number in range(count):
        raw.initiator = HandshakeInitiator(
            KeyPair.generate(), listener.public_key, attacker.random_bytes
        )
        message = Handshake(mode, raw.first_message(), peer)
        request = Request(
            tid=number & 0xFFFF,
            to=to,
            command=PEER_HANDSHAKE,
            target=listener.target,
            value=message.encode(),
        )
        attacker.sockets.send(SERVER, to, request.encode())
        if number % 50 == 49:
            await trio.sleep(0.01)


async def test_one_host_that_floods_is_held_to_its_budget_and_others_connect(autojump_clock):
    async with sim_dht(3) as net:
        server, attacker = await net.add(firewalled=False), await net.add(firewalled=False)
        client = await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        count = 3 * module.CLIENT_BURST
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def attack():
                await flood(attacker, listener, server.address, count=count)

            nursery.start_soon(attack)
            await trio.sleep(0.1)
            connection = await client.connect(listener.public_key)
            await connection.send(b"undisturbed")
            assert await (await listener.accept()).receive() == b"undisturbed"
        await trio.sleep(0.1)
        statistics = listener.statistics()
        took = trio.current_time() - started
        allowed = module.CLIENT_BURST + took * module.CLIENT_RATE + 1
        assert statistics.handshakes <= allowed + 1
        assert statistics.over_budget >= count - allowed
        assert statistics.dropped == 0


async def test_a_node_that_makes_up_clients_is_held_to_its_own_budget(autojump_clock, monkeypatch):
    monkeypatch.setattr(module, "NODE_BURST", 100)
    monkeypatch.setattr(module, "NODE_RATE", 10.0)
    async with sim_dht(3) as net:
        server, attacker = await net.add(firewalled=False), await net.add(firewalled=False)
        listener = await server.listen()
        for number in range(40):
            await flood(
                attacker,
                listener,
                server.address,
                count=10,
                mode=FROM_RELAY,
                peer=(f"7.7.{number}.7", 7),
            )
        await trio.sleep(0.1)
        statistics = listener.statistics()
        assert 100 <= statistics.handshakes <= 110
        assert statistics.over_budget == 400 - statistics.handshakes


async def test_hole_punch_messages_have_a_budget_too(autojump_clock, monkeypatch):
    monkeypatch.setattr(module, "HOLEPUNCH_BURST", 50)
    async with sim_dht(3) as net:
        server, attacker = await net.add(firewalled=False), await net.add(firewalled=False)
        listener = await server.listen()
        for number in range(120):
            message = Holepunch(FROM_RELAY, number, os.urandom(100), ("7.7.7.7", 7))
            request = Request(
                tid=number,
                to=server.address,
                command=PEER_HOLEPUNCH,
                target=listener.target,
                value=message.encode(),
            )
            attacker.sockets.send(SERVER, server.address, request.encode())
        await trio.sleep(0.1)
        assert 60 <= listener.statistics().over_budget <= 70
        assert table_sizes(listener) == (0, 0)


async def test_two_hundred_clients_behind_one_nat_are_within_their_budget(autojump_clock):
    async with sim_dht(3) as net:
        server, home = await net.add(firewalled=False), await net.add(firewalled=False)
        listener = await server.listen()
        await flood(home, listener, server.address, count=200)
        await trio.sleep(0.1)
        assert listener.statistics().handshakes == 200
        assert listener.statistics().over_budget == 0


async def test_what_is_not_admitted_costs_nothing_and_gets_no_answer(autojump_clock):
    async with sim_dht(3) as net:
        server, client = await net.add(firewalled=False), await net.add(firewalled=False)
        asked = []

        def admit(source, relay):
            asked.append((source, relay))
            return len(asked) > 2

        listener = await server.listen(admit=admit)
        raw = RawClient(client, listener.public_key)
        noise = raw.first_message()
        with pytest.raises(RequestTimeout):
            await raw.ask(noise, server.address)
        with pytest.raises(RequestTimeout):
            await raw.ask(noise, server.address, mode=FROM_RELAY, peer=("7.7.7.7", 7))
        assert asked == [(client.address, None), (("7.7.7.7", 7), client.address)]
        statistics = listener.statistics()
        assert (statistics.held_off, statistics.handshakes) == (2, 0)
        assert table_sizes(listener) == (0, 0)
        assert server.statistics().sockets.streams == 0
        assert (await raw.ask(noise, server.address)).value  # the very same message, later
        await raw.ask(noise, server.address)  # known: not asked again
        assert len(asked) == 3
        assert listener.statistics().handshakes == 1


async def test_an_admission_that_fails_lets_nobody_in(autojump_clock, caplog):
    async with sim_dht(2) as net:
        server, client = await net.add(firewalled=False), await net.add()

        def broken(source, relay):
            raise ZeroDivisionError

        listener = await server.listen(admit=broken)
        raw = RawClient(client, listener.public_key)
        caplog.set_level(logging.CRITICAL, "hyperlog.dht.listener")
        with pytest.raises(RequestTimeout):
            await raw.ask(raw.first_message(), server.address)
        assert listener.statistics().held_off == 1


async def test_a_client_that_is_held_off_for_a_moment_still_connects(autojump_clock):
    async with sim_dht(3) as net:
        server, client = await net.add(firewalled=False), await net.add()
        calls = []
        listener = await server.listen(admit=lambda *source: calls.append(source) or len(calls) > 2)
        await listener.wait_announced()
        connection = await client.connect(listener.public_key, relay_addresses=[server.address])
        await connection.send(b"patient")
        assert await (await listener.accept()).receive() == b"patient"


async def flood_for_hole_punches(net, server, listener, count):
    client = await net.add(firewalled=True)
    relay = listener.announcer.relays[0].relay_address
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            raw = RawClient(client, listener.public_key)
            noise = raw.first_message(firewall=FIREWALL_UNKNOWN)

            async def ask(raw=raw, noise=noise):
                try:
                    await raw.ask(noise, relay)
                except RequestTimeout:
                    pass

            nursery.start_soon(ask)


async def test_a_flood_of_hole_punches_takes_a_bounded_number_of_sockets(autojump_clock):
    async with sim_dht(3) as net:
        server = await net.add(firewalled=True)
        listener = await server.listen(share_local_address=False)
        await listener.wait_announced()
        await flood_for_hole_punches(net, server, listener, module.MAX_PUNCHES + 70)
        most = server.statistics().sockets.sockets
        assert most == 2 + module.MAX_PUNCHES
        await trio.sleep(EXPIRED + 10)
        assert server.statistics().sockets.sockets == 2
        assert server.statistics().sockets.streams == 0
        assert table_sizes(listener) == (0, 0)


async def test_a_host_that_takes_all_punchers_gives_up_its_own_first(autojump_clock, monkeypatch):
    monkeypatch.setattr(module, "MAX_PUNCHES", 40)
    async with sim_dht(3) as net:
        server = await net.add(firewalled=True)
        listener = await server.listen(share_local_address=False)
        await listener.wait_announced()
        honest = await net.add(firewalled=True)
        relay = listener.announcer.relays[0].relay_address
        await RawClient(honest, listener.public_key).shake_hands(relay)
        await flood_for_hole_punches(net, server, listener, 100)
        assert next(iter(listener._handshakes)).punching  # the oldest of all
        assert sum(handshake.punching for handshake in listener._handshakes) == 40


async def test_a_server_out_of_sockets_goes_on(autojump_clock):
    async with sim_dht(3) as net:
        server = await net.add(firewalled=True)
        listener = await server.listen(share_local_address=False)
        await listener.wait_announced()

        def none_left(_host, _port):
            raise OSError(24, "Too many open files")

        factory, server.sockets._factory = server.sockets._factory, none_left
        await flood_for_hole_punches(net, server, listener, 20)
        assert server.statistics().rpc.callback_failures == 0
        await trio.sleep(EXPIRED)
        assert table_sizes(listener) == (0, 0)
        assert server.statistics().sockets.streams == 0
        server.sockets._factory = factory
        client = await net.add(firewalled=True)
        connection = await client.connect(listener.public_key, local_connection=False)
        await connection.send(b"again")
        assert await (await listener.accept()).receive() == b"again"


async def test_peers_that_name_strange_addresses_do_no_harm(autojump_clock):
    async with sim_dht(3) as net:
        server = await net.add(firewalled=True)
        client = await net.add(firewalled=True)
        listener = await server.listen()
        await listener.wait_announced()
        strange = [("0.0.0.0", 1), ("255.255.255.255", 65535), ("224.0.0.1", 1), server.address]
        for address in strange:
            for firewall in (FIREWALL_OPEN, FIREWALL_UNKNOWN, 77):
                raw = RawClient(client, listener.public_key)
                noise = raw.first_message(
                    firewall=firewall, addresses4=strange, holepunch=HolepunchInfo(0, [])
                )
                with trio.move_on_after(2):
                    try:
                        await raw.ask(noise, server.address, mode=FROM_RELAY, peer=address)
                    except RequestTimeout:
                        pass
        await trio.sleep(30)
        assert server.statistics().sockets.streams == 0
        connection = await client.connect(listener.public_key)
        await connection.send(b"fine")
        assert await (await listener.accept()).receive() == b"fine"


# -- closing ---------------------------------------------------------------------------------------


async def test_a_connection_outlives_its_listener(autojump_clock):
    async with sim_dht(3) as net:
        server, client = await net.add(firewalled=False), await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        connection = await client.connect(listener.public_key)
        accepted = await listener.accept()
        await listener.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        await trio.sleep(60)
        await connection.send(b"still here")
        assert await accepted.receive() == b"still here"
        again = await server.listen()
        await again.aclose()
        await again.aclose()


async def test_what_nobody_accepted_is_reset_when_the_listener_closes(autojump_clock):
    async with sim_dht(3) as net:
        server, client = await net.add(firewalled=False), await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        connection = await client.connect(listener.public_key)
        await trio.sleep(1)
        await listener.aclose()
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await connection.receive()
        assert server.statistics().sockets.streams == 0


async def test_a_task_that_accepts_hears_of_the_close(autojump_clock):
    async with sim_dht(2) as net:
        listener = await (await net.add()).listen()
        async with trio.open_nursery() as nursery:

            async def accept():
                with pytest.raises(trio.ClosedResourceError):
                    await listener.accept()

            nursery.start_soon(accept)
            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            await listener.aclose()
