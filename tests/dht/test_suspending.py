"""A node that is suspended and resumed, sleeps, changes its network, or has none at its start."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from hyperlog.dht.announcer import ANNOUNCE_TO
from hyperlog.dht.errors import (
    ConnectError,
    PeerConnectionFailed,
    RequestSuspended,
    StreamTimeout,
    Suspended,
)
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.opening import open_dht
from hyperlog.dht.sockets import CLIENT, SERVER
from hyperlog.dht.surroundings import Surroundings
from hyperlog.dht.testing import testnet
from tests.dht.peers import host_name, sim_dht
from tests.dht.punching import open_behind_nat

SIZE = 8


async def echo(connection):
    async with connection:
        try:
            while True:
                await connection.send(await connection.receive())
        except (trio.EndOfChannel, trio.BrokenResourceError):
            pass


async def echo_all(listener, nursery):
    while True:
        nursery.start_soon(echo, await listener.accept())


@asynccontextmanager
async def echo_server(dht):
    """A listener of `dht` that is announced, and sends back what it gets."""
    async with trio.open_nursery() as nursery:
        listener = await dht.listen()
        await listener.wait_announced()
        nursery.start_soon(echo_all, listener, nursery)
        yield listener
        nursery.cancel_scope.cancel()


async def check_echo(connection, text=b"there?"):
    await connection.send(text)
    assert await connection.receive() == text


async def until(condition):
    """Return when the condition holds; limit the time around it."""
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await trio.sleep(0.02)


def holders(nodes, listener):
    """The nodes that hold the record of a listener."""
    found = []
    for node in nodes:
        route = node._router.get(listener.target, trio.current_time())
        if route is not None and route.relay is not None:
            found.append(node)
    return found


# -- suspending ------------------------------------------------------------------------------------


async def test_a_suspended_server_is_gone_and_when_resumed_it_is_back_in_a_second(autojump_clock):
    async with sim_dht(SIZE) as net:
        server, client = await net.add(), await net.add()
        listener = await net.stack.enter_async_context(echo_server(server))
        connection = await client.connect(listener.public_key)
        await check_echo(connection)

        started = trio.current_time()
        await server.suspend()
        assert trio.current_time() - started < 1.6
        assert server.suspended
        assert server.statistics().rpc.suspended
        assert holders(net.nodes, listener) == []
        with pytest.raises(trio.BrokenResourceError):  # the peer is told, and need not find out
            with trio.fail_after(0.5):
                await connection.receive()
        with pytest.raises(PeerConnectionFailed):
            await client.connect(listener.public_key)
        await trio.sleep(600)

        await server.resume()
        assert not server.suspended
        with trio.fail_after(1.5):
            await until(lambda: len(holders(net.nodes, listener)) == ANNOUNCE_TO)
            connection = await client.connect(listener.public_key)
            await check_echo(connection)


async def test_whatever_is_under_way_ends_with_an_error_of_its_own(autojump_clock):
    async with sim_dht(4) as net:
        node = await net.add()
        await node.bootstrapped()
        calls = [
            (RequestSuspended, node.node.ping, ("9.9.9.9", 9)),
            (RequestSuspended, node.delayed_ping, net.bootstrap[0], 5.0),
            (RequestSuspended, node.lookup, bytes(32)),
            (Suspended, node.connect, KeyPair.generate().public_key),
        ]

        async def ends(error, call, *args):
            with pytest.raises(error):
                await call(*args)

        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(ends, *call)
            await trio.testing.wait_all_tasks_blocked()
            await node.suspend()
            suspended_at = trio.current_time()
        for call in calls:
            await ends(*call)
        assert trio.current_time() == suspended_at
        statistics = node.statistics().rpc
        assert (statistics.requests_active, statistics.queries_active) == (0, 0)


async def test_connecting_while_suspended_leaves_nothing_behind(autojump_clock):
    async with sim_dht(2) as net:
        node = await net.add()
        await node.suspend()
        for _ in range(3):
            with pytest.raises(Suspended):
                await node.connect(KeyPair.generate().public_key)
        assert node.statistics().sockets.streams == 0


async def test_hole_punches_of_a_server_end_when_it_is_suspended(autojump_clock):
    async with (
        sim_dht(SIZE) as net,
        open_behind_nat(net, 1, mapping="random") as (router, server),
        open_behind_nat(net, 2) as (_, client),
    ):
        listener = await server.listen()
        await listener.wait_announced()
        await client.bootstrapped()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(no_way_to, client, listener.public_key)
            with trio.fail_after(5):
                await until(lambda: server.statistics().punches.random_punches)
            await server.suspend()
            assert server.statistics().punches.random_punches == 0
            assert router.sockets_of("192.168.1.2") == []
            await server.resume()
            assert len(router.sockets_of("192.168.1.2")) == 2


async def no_way_to(client, key):
    with pytest.raises(ConnectError):
        await client.connect(key)


async def test_a_server_may_listen_while_suspended_and_is_announced_when_resumed(autojump_clock):
    async with sim_dht(SIZE) as net:
        server = await net.add()
        await server.suspend()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_resume_later, server)
            listener = None
            with trio.fail_after(20):
                listener = await server.listen()
                assert await listener.wait_announced() == ANNOUNCE_TO
        assert len(holders(net.nodes, listener)) == ANNOUNCE_TO


async def _resume_later(server):
    await trio.sleep(10)
    await server.resume()


async def test_suspending_again_and_again_leaves_nothing_behind(autojump_clock):
    async with sim_dht(4) as net:
        server = await net.add()
        listener = await server.listen()
        await listener.wait_announced()
        tasks = []
        for _ in range(30):
            await server.suspend()
            await server.suspend()
            await trio.sleep(60)
            assert server.sockets.statistics().sockets == 0
            assert server.node._core.get_timer() == float("inf")
            await server.resume()
            await server.resume()
            await trio.sleep(30)
            assert len(holders(net.nodes, listener)) == ANNOUNCE_TO
            tasks.append(trio.lowlevel.current_statistics().tasks_living)
        assert max(tasks[1:]) == tasks[1]
        assert server.sockets.statistics().sockets == 2
        assert len(server.node._core.requests._deadlines) < 100
        assert server.node.table_size == 4


async def test_a_node_can_be_closed_while_suspended():
    async with testnet(3) as net, open_dht(bootstrap=net.bootstrap, host="127.0.0.1") as server:
        listener = await server.listen()
        await listener.wait_announced()
        await server.suspend()
        with trio.fail_after(1):
            await listener.aclose()


async def test_a_node_can_be_closed_while_it_is_being_suspended(autojump_clock):
    async with sim_dht(4) as net, trio.open_nursery() as nursery:
        host = "7.7.7.7"
        async with open_dht(
            bootstrap=net.bootstrap, host=host, socket_factory=net.network.host(host)
        ) as node:
            listener = await node.listen()
            await listener.wait_announced()
            net.network.cut(host)
            nursery.start_soon(node.suspend)
            await trio.sleep(0.35)  # nobody has answered, and nobody is asked again before 1 s
            net.network.heal(host)
        assert holders(net.nodes, listener) == []


async def test_the_ports_stay_the_same_where_nobody_takes_them():
    async with testnet(3) as net, open_dht(bootstrap=net.bootstrap, host="127.0.0.1") as node:
        await node.bootstrapped()
        ports = [node.sockets.local_address(socket) for socket in (SERVER, CLIENT)]
        await node.suspend()
        assert node.address == ports[0]
        # Now somebody else takes the first of them.
        thief = node.sockets.bind("127.0.0.1")
        thief.close()
        taken = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        with taken:
            await taken.bind(ports[0])
            await node.resume()
            assert node.address != ports[0]
            assert node.sockets.local_address(CLIENT) == ports[1]
            assert (await node.node.ping(net.bootstrap[0], socket=SERVER)).to == node.address
        await node.suspend()
        await node.resume()
        assert node.sockets.local_address(CLIENT) == ports[1]
        assert await node.node.ping(net.bootstrap[0])


async def test_a_node_that_wants_its_port_or_none_stays_suspended_without_it():
    async with open_dht(bootstrap=[], host="127.0.0.1", exact_port=True) as node:
        await node.suspend()
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as taken:
            await taken.bind(node.address)
            with pytest.raises(OSError, match="in use"):
                await node.resume()
            assert node.suspended
        await node.resume()
        assert not node.suspended


# -- other addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize("firewalled", [False, None], ids=["open", "default"])
async def test_a_server_that_gets_another_address_is_announced_there_in_seconds(
    autojump_clock, firewalled
):
    async with sim_dht(SIZE) as net:
        host = host_name(net.machines)
        machine = net.network.host(host)
        server = await net.add(firewalled=firewalled)
        listener = await net.stack.enter_async_context(echo_server(server))
        client = await net.add()
        connection = await client.connect(listener.public_key)
        await check_echo(connection)
        await trio.sleep(100)

        machine.move("77.1.2.3")
        with trio.fail_after(8):
            connection = await client.connect(listener.public_key)
            await check_echo(connection)
        assert connection.remote_address[0] == "77.1.2.3"


async def test_connections_that_a_move_has_killed_end_in_seconds(autojump_clock):
    async with sim_dht(SIZE) as net:
        server = await net.add()
        listener = await net.stack.enter_async_context(echo_server(server))
        machine = net.network.host(host_name(net.machines))
        client = await net.add()
        connection = await client.connect(listener.public_key)
        machine.move("77.1.2.3")
        with pytest.raises(trio.BrokenResourceError) as caught:
            with trio.fail_after(5 + 4 + 0.1):  # until it is noticed, and for the answer
                await connection.receive()
        assert isinstance(caught.value.__cause__, StreamTimeout)
        with trio.fail_after(1):
            await check_echo(await client.connect(listener.public_key))


async def test_connections_live_on_when_only_some_interface_has_come_or_gone(
    autojump_clock, monkeypatch
):
    hosts = ["1.2.3.4"]
    monkeypatch.setattr(Surroundings, "_find_hosts", lambda self: frozenset(hosts))
    async with sim_dht(SIZE) as net:
        server = await net.add()
        listener = await net.stack.enter_async_context(echo_server(server))
        client = await net.stack.enter_async_context(
            open_dht(bootstrap=net.bootstrap, socket_factory=net.network.host("77.1.2.3"))
        )
        connection = await client.connect(listener.public_key)
        sent = client.node.statistics().requests_sent
        hosts.append("172.17.0.1")
        await trio.sleep(6)
        assert client.node.statistics().requests_sent > sent  # it has looked around
        await trio.sleep(20)
        await check_echo(connection)
        hosts.clear()  # all gone: nothing can be done
        await trio.sleep(6)
        sent = client.node.statistics().requests_sent
        hosts.append("1.2.3.4")
        await trio.sleep(6)
        assert client.node.statistics().requests_sent > sent
        await check_echo(connection)


async def test_a_persistent_node_that_moves_shows_no_id_until_it_has_a_true_one(autojump_clock):
    async with sim_dht(SIZE) as net:
        host = host_name(net.machines)
        machine = net.network.host(host)
        node = await net.add(ephemeral=False)
        await node.bootstrapped()
        first = node.node.id
        assert first is not None
        machine.move("77.1.2.3")
        ids = set()
        with trio.fail_after(320):  # a NAT that we may have come behind has to forget us first
            while node.remote_address() != ("77.1.2.3", node.address[1]) or node.node.ephemeral:
                ids.add(node.node.id)
                await trio.sleep(0.1)
        assert None in ids
        assert ids <= {None, first}
        assert node.node.id != first
        await trio.sleep(60)
        known = [other for other in net.nodes if node.address in other.node.known_nodes(99)]
        assert len(known) == SIZE


async def test_after_a_sleep_servers_announce_and_dead_connections_end(autojump_clock, monkeypatch):
    slept = 0.0
    monkeypatch.setattr("hyperlog.dht.surroundings.wall_clock", lambda: trio.current_time() + slept)
    async with sim_dht(SIZE) as net:
        server, client = await net.add(), await net.add()
        listener = await net.stack.enter_async_context(echo_server(server))
        to_the_dead = await client.connect(listener.public_key)
        searches = []
        query = client.node.query

        async def count(*args, **options):
            searches.append(args)
            return await query(*args, **options)

        monkeypatch.setattr(client.node, "query", count)
        own = await client.listen()
        await own.wait_announced()
        before = len(searches)
        net.network.cut(server.address[0])
        slept = 8 * 3600.0  # trio's clock stood still meanwhile
        with pytest.raises(trio.BrokenResourceError):
            with trio.fail_after(5 + 4 + 0.1):
                await to_the_dead.receive()
        assert len(searches) > before
        net.network.heal(server.address[0])


# -- no network ------------------------------------------------------------------------------------


async def test_a_server_that_starts_without_a_network_is_announced_when_there_is_one(
    autojump_clock, monkeypatch
):
    hosts = []
    monkeypatch.setattr(Surroundings, "_find_hosts", lambda self: frozenset(hosts))
    async with sim_dht(SIZE) as net:
        net.network.cut("77.1.2.3")
        server = await net.stack.enter_async_context(
            open_dht(bootstrap=net.bootstrap, socket_factory=net.network.host("77.1.2.3"))
        )
        listener = await net.stack.enter_async_context(echo_server(server))
        assert listener.statistics().announced_to == 0
        await trio.sleep(900)
        assert server.statistics().rpc.bootstrap_failing

        net.network.heal("77.1.2.3")
        hosts.append("77.1.2.3")
        with trio.fail_after(7):
            await until(lambda: len(holders(net.nodes, listener)) == ANNOUNCE_TO)
        client = await net.add()
        await check_echo(await client.connect(listener.public_key))


async def test_a_network_that_goes_away_for_half_an_hour_and_comes_back_is_found_again(
    autojump_clock,
):
    async with sim_dht(SIZE) as net:
        server = await net.add()
        listener = await net.stack.enter_async_context(echo_server(server))
        host = server.address[0]
        net.network.cut(host)
        await trio.sleep(600)
        statistics = server.statistics().rpc
        assert not statistics.online
        await trio.sleep(1200)
        net.network.heal(host)  # and no interface tells of it
        with trio.fail_after(31):
            await until(lambda: len(holders(net.nodes, listener)) == ANNOUNCE_TO)
        client = await net.add()
        await check_echo(await client.connect(listener.public_key))
        await trio.sleep(60)
        assert server.statistics().rpc.online
