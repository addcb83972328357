"""LAN: which of our addresses peers on our network are told, and the short cut through them."""

from __future__ import annotations

import pytest
import trio

from hyperlog.dht import lan as module
from hyperlog.dht.acceptance import Acceptance
from hyperlog.dht.commands.messages import NoisePayload
from hyperlog.dht.connect import LAN_HEAD_START
from hyperlog.dht.lan import LocalAddresses
from hyperlog.dht.simnat import SimNat
from hyperlog.dht.sockets import Sockets
from hyperlog.dht.testing import sim_testnet
from tests.dht.peers import open_sockets, sim_network


@pytest.fixture
def hosts(monkeypatch):
    """The addresses that this machine seems to have."""
    found = ["127.0.0.1", "127.0.0.2"]
    monkeypatch.setattr(
        module, "local_addresses", lambda bound: [(host, bound[1]) for host in found]
    )
    return found


async def test_an_address_that_a_byte_comes_back_through_is_usable(hosts):
    async with open_sockets(1) as (sockets,):
        addresses = LocalAddresses(sockets)
        assert addresses.unchecked
        await addresses.check()
        assert not addresses.unchecked
        assert addresses.usable() == addresses.all()
        assert [host for host, _ in addresses.all()] == hosts


async def test_an_address_that_cannot_be_bound_is_not_told(hosts):
    hosts.append("192.0.2.77")
    async with open_sockets(1) as (sockets,):
        addresses = LocalAddresses(sockets)
        assert len(addresses.usable()) == 3  # nothing is known yet
        await addresses.check()
        assert [host for host, _ in addresses.usable()] == ["127.0.0.1", "127.0.0.2"]
        addresses.forget()
        assert addresses.unchecked


async def test_a_machine_with_hundreds_of_interfaces_tells_of_as_many_as_a_handshake_holds(hosts):
    hosts[:] = [f"127.0.{n >> 8}.{n & 255}" for n in range(1, 400)]
    async with open_sockets(1) as (sockets,):
        addresses = LocalAddresses(sockets)
        await addresses.check()
        assert not addresses.unchecked
        payload = NoisePayload(addresses4=addresses.usable())
        assert len(payload.addresses4) == module.MAX_HOSTS
        assert len(payload.encode()) < 500


async def test_a_process_without_a_descriptor_left_checks_its_addresses_later(hosts):
    resource = pytest.importorskip("resource")
    async with open_sockets(1) as (sockets,):
        addresses = LocalAddresses(sockets)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            await addresses.check()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert addresses.unchecked
        await addresses.check()
        assert not addresses.unchecked
        assert addresses.usable() == addresses.all()


async def test_an_address_that_swallows_everything_is_found_out_in_half_a_second(
    hosts, autojump_clock
):
    async with sim_network() as network:
        factory = network.host("1.1.1.1")
        sockets = Sockets.open("1.1.1.1", 0, factory)
        addresses = LocalAddresses(sockets)
        network.loss = 1.0
        started = trio.current_time()
        await addresses.check()
        assert trio.current_time() - started == pytest.approx(module.CHECK_TIMEOUT)
        assert addresses.usable() == []
        await addresses.check()  # known: nothing is sent again
        assert trio.current_time() - started == pytest.approx(module.CHECK_TIMEOUT)
        assert len(factory.segment.sockets_of("1.1.1.1")) == 2


async def test_the_number_of_addresses_looked_at_is_bounded(hosts, autojump_clock):
    hosts.extend(f"127.0.{number}.1" for number in range(1, 200))
    async with open_sockets(1) as (sockets,):
        addresses = LocalAddresses(sockets)
        await addresses.check()
        assert len(addresses._works) == module.MAX_HOSTS


async def at_home(net):
    """Two machines behind one NAT."""
    home = SimNat(net.network, "5.5.5.5")
    machines = [home.host("192.168.1.2"), home.host("192.168.1.3")]
    return [await net.add(one, ephemeral=None, firewalled=None) for one in machines], machines


async def test_neighbours_connect_through_their_own_network(autojump_clock):
    async with sim_testnet(6, delay=0.05) as net:
        (server, client), _ = await at_home(net)
        listener = await server.listen()
        await listener.wait_announced()
        connection = await client.connect(listener.public_key)
        accepted = await listener.accept()
        assert connection.path == accepted.path == "lan"
        assert connection.remote_address == server.address
        assert connection.statistics().opening.punches == 0
        assert server.statistics().sockets.sockets == client.statistics().sockets.sockets == 2
        await connection.send(b"over the fence")
        assert await accepted.receive() == b"over the fence"


@pytest.mark.parametrize("says", ["itself open", "nothing to neighbours"])
async def test_a_neighbour_with_a_forwarded_port_is_met_inside(says, monkeypatch, autojump_clock):
    if says == "itself open":  # as a JavaScript server
        monkeypatch.setattr(Acceptance, "_address_for", lambda self, _: self._dht.remote_address())
    async with sim_testnet(6) as net:
        # A router that lets everybody in, and turns nothing round.
        home = SimNat(net.network, "5.5.5.5", filtering="endpoint")
        server, neighbour = [
            await net.add(home.host(f"192.168.1.{number}"), ephemeral=None, firewalled=firewalled)
            for number, firewalled in ((2, False), (3, None))
        ]
        stranger = await net.add(firewalled=True)
        assert server.remote_address() is not None
        listener = await server.listen()
        await listener.wait_announced()
        for client, path in ((neighbour, "lan"), (stranger, "direct")):
            with trio.fail_after(5):
                connection = await client.connect(listener.public_key)
            assert connection.path == (await listener.accept()).path == path
            connection.abort()


@pytest.mark.parametrize("side", ["server", "client"])
async def test_whoever_keeps_its_addresses_to_itself_gets_no_lan_connection(side, autojump_clock):
    async with sim_testnet(6) as net:
        home = SimNat(net.network, "5.5.5.5", hairpin=True)
        server, client = [
            await net.add(home.host(f"192.168.1.{number}"), ephemeral=None, firewalled=None)
            for number in (2, 3)
        ]
        listener = await server.listen(share_local_address=side != "server")
        await listener.wait_announced()
        connection = await client.connect(listener.public_key, local_connection=side != "client")
        assert connection.path == (await listener.accept()).path == "punched"


async def test_a_lan_that_keeps_its_machines_apart_costs_a_moment(autojump_clock):
    async with sim_testnet(6) as net:
        home = SimNat(net.network, "5.5.5.5", hairpin=True)
        machines = [home.host("192.168.1.2"), home.host("192.168.1.3")]
        server, client = [await net.add(one, ephemeral=None, firewalled=None) for one in machines]
        transmit = home.transmit

        def keep_apart(source, data, destination, ttl=64):
            if not destination[0].startswith("192.168."):
                transmit(source, data, destination, ttl)

        home.transmit = keep_apart
        listener = await server.listen()
        await listener.wait_announced()
        started = trio.current_time()
        connection = await client.connect(listener.public_key)
        assert connection.path == "punched"
        assert trio.current_time() - started < LAN_HEAD_START + 2
