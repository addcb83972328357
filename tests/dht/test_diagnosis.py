from __future__ import annotations

import os
import socket

import pytest
import trio

from hyperlog.dht import (
    Diagnosis,
    KeyPair,
    LocalProtocolError,
    addresses_of,
    firewall_kind,
    look_up,
    open_dht,
    probe_node,
    testnet,
)
from hyperlog.dht.commands.handshake import PROLOGUE
from hyperlog.dht.commands.messages import Handshake
from hyperlog.dht.constants import BOOTSTRAP_NODES, FIREWALL_CONSISTENT, REPLY
from hyperlog.dht.noise.handshake import HandshakeState

LOOPBACK = "127.0.0.1"


async def closed_port():
    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.bind((LOOPBACK, 0))
        return sock.getsockname()[1]


# -- names and nodes


async def test_an_address_needs_no_name_service():
    found = await look_up((LOOPBACK, 4))
    assert (found.address, found.source, found.failure) == ((LOOPBACK, 4), "literal", None)


async def test_a_name_is_found_or_it_is_told_why_not():
    found = await look_up(("localhost", 5))
    assert (found.address, found.failure) == ((LOOPBACK, 5), None)
    missed = await look_up(("nowhere.invalid", 6))
    assert missed.address is None
    assert missed.failure in ("unknown name", "no name service")


async def test_what_can_be_no_name_is_told_as_unknown():
    missed = await look_up((f"{'a' * 100}.example", 7))
    assert (missed.address, missed.failure) == (None, "unknown name")


async def test_public_nodes_have_an_address_without_name_service(monkeypatch):
    async def fail(*_arguments, **_options):
        raise socket.gaierror(socket.EAI_AGAIN, "")

    monkeypatch.setattr(trio.socket, "getaddrinfo", fail)
    found = await look_up(BOOTSTRAP_NODES[0])
    assert found.address is not None
    assert (found.source, found.failure) == ("program", "no name service")


async def test_a_node_answers_a_probe():
    async with testnet(1) as network:
        probe = await probe_node(network.bootstrap[0])
    assert probe.failure is None
    assert 0 < probe.round_trip_time < 3


async def test_a_port_without_a_listener_refuses_a_probe():
    probe = await probe_node((LOOPBACK, await closed_port()))
    assert (probe.failure, probe.round_trip_time) == ("refused", None)


async def test_a_socket_that_never_answers_is_silent_and_answers_of_others_do_not_count(
    autojump_clock,
):
    with trio.socket.socket(type=socket.SOCK_DGRAM) as hole:
        await hole.bind((LOOPBACK, 0))
        probe = await probe_node(hole.getsockname())
        requests = [await hole.recvfrom(2048) for _ in range(3)]
        assert probe.failure == "silent"
        assert len({data for data, _ in requests}) == 3  # a late answer tells what it is to


async def test_an_answer_to_an_earlier_try_counts_with_its_own_time(monkeypatch):
    interval = 0.2  # s
    monkeypatch.setattr("hyperlog.dht.diagnosis.PROBE_INTERVAL", interval)

    async def answer_the_first_late(sock):
        first, address = await sock.recvfrom(2048)
        await sock.recvfrom(2048)
        await sock.sendto(b"\x13\0" + b"\xff\xff" + bytes(6), address)  # no try has this number
        await sock.sendto(b"nonsense", address)
        await sock.sendto(b"\x13\0" + first[2:4] + bytes(6), address)

    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.bind((LOOPBACK, 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_the_first_late, sock)
            probe = await probe_node(sock.getsockname())
    assert probe.failure is None
    assert probe.round_trip_time > 0.9 * interval


def test_a_socket_on_all_addresses_answers_on_loopback_too():
    assert (LOOPBACK, 7) in addresses_of(("0.0.0.0", 7))
    assert addresses_of((LOOPBACK, 7)) == {(LOOPBACK, 7)}


def test_a_kind_that_is_not_known_is_told_as_unknown():
    assert firewall_kind(FIREWALL_CONSISTENT) == "consistent"
    assert firewall_kind(77) == "unknown"


# -- this side


async def test_an_open_node_is_judged_open():
    async with (
        testnet(4) as network,
        open_dht(bootstrap=network.bootstrap, ephemeral=True) as dht,
    ):
        await dht.bootstrapped()
        nat = await Diagnosis(dht).judge_nat()
        assert nat.kind == "open"
        assert nat.samples == 4
        assert {host for host, _ in nat.addresses} == {LOOPBACK}
        assert not nat.translated
        assert Diagnosis(dht).address_for_others() == (LOOPBACK, dht.address[1])


async def test_a_firewalled_node_is_judged_by_what_others_see(monkeypatch):
    monkeypatch.setattr("hyperlog.dht.diagnosis.OPEN_PATIENCE", 0.1)
    async with (
        testnet(4) as network,
        open_dht(bootstrap=network.bootstrap, host=LOOPBACK, firewalled=True) as dht,
    ):
        await dht.bootstrapped()
        nat = await Diagnosis(dht).judge_nat(network.bootstrap)
        assert nat.kind == "consistent"
        assert len(nat.addresses) == 1


async def test_two_nodes_are_too_few_to_judge(monkeypatch):
    monkeypatch.setattr("hyperlog.dht.diagnosis.OPEN_PATIENCE", 0.1)
    async with (
        testnet(2) as network,
        open_dht(bootstrap=network.bootstrap, host=LOOPBACK, firewalled=True) as dht,
    ):
        await dht.bootstrapped()
        nat = await Diagnosis(dht).judge_nat()
        assert (nat.kind, nat.samples) == ("unknown", 2)


async def test_judging_gives_its_socket_back():
    async with testnet(1) as network:
        (dht,) = network.nodes
        before = dht.statistics().sockets.sockets
        await Diagnosis(dht).judge_nat()
        assert dht.statistics().sockets.sockets == before


async def test_an_address_for_others_is_never_the_one_that_means_all():
    async with open_dht(bootstrap=[("192.0.2.1", 9)], firewalled=True, ephemeral=True) as dht:
        host, port = Diagnosis(dht).address_for_others()
        assert host != "0.0.0.0"
        assert port == dht.address[1]


# -- the peer


async def test_holders_of_a_record_are_found_nearest_first():
    async with testnet(8) as network, open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as dht:
        listener = await dht.listen()
        assert await listener.wait_announced() == 3
        looker = Diagnosis(network.nodes[0])
        found = await looker.find_holders(listener.public_key)
        # The one that looks asks everybody but itself, and may be a holder.
        assert len(found.holders) in (2, 3)
        assert found.answered >= 7
        nearest = network.nodes[0].node.closest(listener.target)
        assert list(found.holders) == sorted(found.holders, key=nearest.index)
        nobody = await looker.find_holders(KeyPair.generate().public_key)
        assert nobody.holders == ()


async def test_a_peer_answers_a_handshake_and_nothing_is_opened_for_it():
    async with (
        testnet(4) as network,
        open_dht(bootstrap=network.bootstrap, host=LOOPBACK) as server,
        open_dht(bootstrap=network.bootstrap, host=LOOPBACK, ephemeral=True) as client,
    ):
        listener = await server.listen()
        await listener.wait_announced()
        await client.bootstrapped()
        looker = Diagnosis(client)
        found = await looker.find_holders(listener.public_key)
        probe = await looker.probe_peer(listener.public_key, found.holders)
        answer = probe.answer
        assert (answer.error, answer.version, answer.kind) == (0, 1, "open")
        assert answer.node in found.holders
        assert not answer.direct
        assert server.address in answer.local_addresses
        assert server.statistics().sockets.streams == 0
        # Its own node knows it as well, and is then the other end itself.
        direct = await looker.probe_peer(listener.public_key, [server.address])
        assert direct.answer.direct


async def test_the_nat_of_a_peer_is_judged_from_the_nodes_that_it_announced_to():
    async with (
        testnet(4) as network,
        open_dht(bootstrap=network.bootstrap, host=LOOPBACK, firewalled=True) as server,
    ):
        listener = await server.listen()
        await listener.wait_announced()
        looker = Diagnosis(network.nodes[0])
        found = await looker.find_holders(listener.public_key)
        answer = (await looker.probe_peer(listener.public_key, found.holders)).answer
        assert answer.kind == "consistent"
        assert len(answer.seen_as) == 1


async def test_a_node_without_a_record_says_so():
    async with testnet(3) as network:
        looker = Diagnosis(network.nodes[0])
        node = network.nodes[1].address
        probe = await looker.probe_peer(KeyPair.generate().public_key, [node])
        assert probe.stopped == {node: "unknown to node"}


async def test_a_peer_that_answers_in_no_known_way_is_unreadable_through_every_node():
    pair = KeyPair.generate()

    def answer(request):
        message = Handshake.decode_untrusted(request.value)
        state = HandshakeState("IK", False, pair, random_bytes=os.urandom, prologue=PROLOGUE)
        state.read_message_untrusted(message.noise)
        noise = state.write_message(b"\1")  # no whole payload, though the peer's own
        request.reply(Handshake(REPLY, noise, ("10.0.0.1", 1)).encode())
        return True

    async with testnet(3) as network:
        nodes = [node.address for node in network.nodes[1:]]
        for node in network.nodes[1:]:
            node.node.on_request = answer
        probe = await Diagnosis(network.nodes[0]).probe_peer(pair.public_key, nodes)
        assert probe.answer is None
        assert probe.stopped == dict.fromkeys(nodes, "unreadable")


async def test_what_is_no_key_cannot_be_asked_for():
    async with testnet(1) as network:
        with pytest.raises(LocalProtocolError):
            await Diagnosis(network.nodes[0]).probe_peer(bytes(31), [])
