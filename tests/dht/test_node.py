"""RPCNode on real UDP sockets, on simulated ones in virtual time, and with JavaScript nodes."""

import json
import logging
import os
import socket as stdlib_socket
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from hyperlog.dht.constants import BOOTSTRAP_SUGGESTED_HOSTS
from hyperlog.dht.errors import RequestDestroyed, RequestTimeout, TooFewNodes
from hyperlog.dht.node import IncomingRequest, RPCNode
from hyperlog.dht.rpc.messages import DELAYED_PING, FIND_NODE, UNKNOWN_COMMAND, node_id
from hyperlog.dht.rpc.table import distance
from hyperlog.dht.simulation import SimNetwork
from hyperlog.dht.sockets import CLIENT, SERVER, Sockets
from hyperlog.dht.udp import UDPSocket

ROOT = Path(__file__).parents[2]
NODE_MODULES = Path(
    os.environ.get("HYPERLOG_NODE_MODULES", ROOT / "tests/interop/node_modules")
).resolve()
TARGET = bytes(range(32))
COMMAND = 77


@asynccontextmanager
async def open_node(*, host="127.0.0.1", factory=UDPSocket, first=False, **options):
    """A running node; `first` makes it the first one of a network."""
    sockets = Sockets.open(host, 0, factory)
    address = sockets.local_address(SERVER)
    options = {"bootstrap": [], "ephemeral": False, "firewalled": False} | options
    node = RPCNode(sockets, outside_address=address if first else None, **options)
    node.address = address
    async with trio.open_nursery() as nursery:
        await nursery.start(sockets.run)
        await nursery.start(node.run)
        yield node
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_network(size, **options):
    """`size` persistent nodes that know each other."""
    async with open_node(first=True, **options) as first:
        nodes = [first]

        async def add(remaining):
            if not remaining:
                yield_to.set()
                await done.wait()
                return
            async with open_node(bootstrap=[first.address], **options) as node:
                await node.bootstrapped.wait()
                nodes.append(node)
                await add(remaining - 1)

        yield_to, done = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, size - 1)
            await yield_to.wait()
            yield nodes
            done.set()


@asynccontextmanager
async def sim_network(**options):
    network = SimNetwork(**options)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        yield network
        nursery.cancel_scope.cancel()


async def silent_address():
    """An address where a socket is bound that never answers."""
    sock = trio.socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))
    return sock, sock.getsockname()


def closest(nodes, target):
    return sorted((n.address for n in nodes), key=lambda a: distance(node_id(a), target))[:20]


# -- on real sockets -------------------------------------------------------------------------------


async def test_a_node_answers_ping_with_the_address_that_it_sees():
    async with open_node(first=True) as first, open_node(bootstrap=[first.address]) as node:
        await node.bootstrapped.wait()
        response = await node.ping(first.address)
        assert response.to == node.address
        assert response.id == first.id == node_id(first.address)
        by_client_socket = await node.ping(first.address, socket=CLIENT)
        assert by_client_socket.to[1] != node.address[1]


async def test_nodes_become_persistent_and_find_the_closest_to_a_target():
    async with open_network(8) as nodes:
        assert [node.id for node in nodes] == [node_id(node.address) for node in nodes]
        assert not any(node.ephemeral or node.firewalled for node in nodes)
        assert all(node.remote_address() == node.address for node in nodes)
        result = await nodes[-1].query(FIND_NODE, TARGET, internal=True)
        assert list(result.closest_nodes) == closest(nodes[:-1], TARGET)
        assert (result.successes, result.errors) == (7, 0)
        assert nodes[-1].closest(TARGET) == closest(nodes[:-1], TARGET)
        assert set(nodes[-1].known_nodes(3)) < {node.address for node in nodes}


async def test_a_default_node_finds_out_that_it_is_open_and_stays_ephemeral():
    async with open_network(4) as nodes:
        changed = trio.Event()
        async with open_node(bootstrap=[nodes[0].address], ephemeral=None, firewalled=None) as node:
            node.on_network_change = changed.set
            await node.bootstrapped.wait()
            while node.remote_address() is None:
                await changed.wait()
                changed = trio.Event()
                node.on_network_change = changed.set
            assert node.remote_address() == node.address
            assert node.ephemeral
            assert node.id is None
            assert node.request_socket == SERVER


async def test_user_commands_reach_on_request_and_get_its_reply():
    def on_request(request):
        assert isinstance(request, IncomingRequest)
        if request.command != COMMAND:
            return False
        seen.append(request)
        request.reply(b"<" + (request.value or b"") + b">")
        return True

    seen = []
    async with open_network(2) as (server, client):
        server.on_request = on_request
        response = await client.request(COMMAND, target=TARGET, value=b"hi", to=server.address)
        assert (response.value, response.error) == (b"<hi>", 0)
        assert response.token is not None
        assert response.closer_nodes == [client.address]
        again = await client.request(COMMAND, token=response.token, to=server.address)
        assert again.value == b"<>"
        assert [request.token for request in seen] == [None, response.token]
        assert seen[0].address == client.address
        assert seen[0].to == server.address
        assert seen[0].id == client.id
        assert seen[0].target == TARGET

        unknown = await client.request(COMMAND + 1, to=server.address)
        assert unknown.error == UNKNOWN_COMMAND


async def test_a_reply_may_come_later_than_the_callback():
    async with open_network(2) as (server, client), trio.open_nursery() as nursery:

        async def reply_later(request):
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            request.reply(b"late")

        def on_request(request):
            nursery.start_soon(reply_later, request)
            return True

        server.on_request = on_request
        assert (await client.request(COMMAND, to=server.address)).value == b"late"


async def test_a_relayed_request_reaches_a_third_node_which_answers_for_the_asked_one():
    async with open_network(3) as (relay, server, client):
        # As in hyperdht: client -> relay -> server -> relay -> client, all with one tid.
        def on_relay_request(request):
            if request.address == server.address:
                request.reply(request.value, to=client.address, closer_nodes=False)
            else:
                request.relay(request.value + b" relayed", server.address)
            return True

        def on_server_request(request):
            request.relay(request.value + b" served", request.address)
            return True

        relay.on_request = on_relay_request
        server.on_request = on_server_request
        response = await client.request(COMMAND, target=TARGET, value=b"hello", to=relay.address)
        assert response.value == b"hello relayed served"


async def test_a_callback_that_raises_loses_its_request_but_not_the_node(caplog):
    def on_request(request):
        raise ValueError("a bug")

    async with open_network(2) as (server, client):
        server.on_request = on_request
        with (
            caplog.at_level(logging.CRITICAL, "hyperlog.dht.node"),
            pytest.raises(RequestTimeout),
        ):
            await client.request(COMMAND, to=server.address, retries=0, timeout=0.2)
        assert server.statistics().callback_failures == 1
        assert (await client.ping(server.address)).error == 0


async def test_without_an_answer_a_request_times_out():
    sock, address = await silent_address()
    async with open_node(first=True) as node:
        with sock, pytest.raises(RequestTimeout) as info:
            await node.request(COMMAND, to=address, retries=1, timeout=0.05)
        assert info.value.code == "REQUEST_TIMEOUT"
        assert node.statistics().timeouts == 1
        assert node.statistics().requests_active == 0


async def test_a_cancelled_request_leaves_nothing_behind():
    sock, address = await silent_address()
    async with open_node(first=True) as node:
        with sock, trio.move_on_after(0.05) as scope:
            await node.request(COMMAND, to=address)
        assert scope.cancelled_caught
        assert node.statistics().requests_active == 0


async def test_closing_the_node_fails_what_is_under_way():
    sock, address = await silent_address()
    outcomes = []

    async def ask(node):
        try:
            await node.request(COMMAND, to=address)
        except RequestDestroyed:
            outcomes.append("request")

    async def look_up(node):
        try:
            await node.query(COMMAND, TARGET, nodes=[address])
        except RequestDestroyed:
            outcomes.append("query")

    with sock:
        async with trio.open_nursery() as nursery, open_node(first=True) as node:
            nursery.start_soon(ask, node)
            nursery.start_soon(look_up, node)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert sorted(outcomes) == ["query", "request"]
        with pytest.raises(RequestDestroyed):
            await node.ping(address)
        with pytest.raises(RequestDestroyed):
            await node.query(COMMAND, TARGET)


async def test_replies_come_out_of_a_query_while_it_goes_on_and_leaving_ends_it():
    async with open_network(6) as nodes:
        for node in nodes:
            node.on_request = lambda request: request.reply(b"v") or True
        seen = []
        async with nodes[-1].query_replies(COMMAND, TARGET) as replies:
            async for reply in replies:
                seen.append(reply)
        assert {reply.address for reply in seen} == {node.address for node in nodes[:-1]}
        assert all(reply.value == b"v" and reply.token for reply in seen)
        assert all(reply.id == node_id(reply.address) and reply.rtt > 0 for reply in seen)
        assert replies.result is not None
        assert len(replies.result.closest_replies) == 5

        nodes[2].on_request = lambda request: True  # takes the request and never answers
        async with nodes[-1].query_replies(COMMAND, TARGET) as replies:
            async for reply in replies:
                assert reply.address != nodes[2].address
                assert replies.result is None
                break
        assert nodes[-1].statistics().queries_active == 0
        assert nodes[-1].statistics().requests_active == 0


async def test_a_commit_runs_for_every_closest_reply_with_its_token():
    stored = []

    def on_request(request):
        if request.token is not None:
            stored.append(request.to)
        request.reply(None)
        return True

    async with open_network(5) as nodes:
        for node in nodes:
            node.on_request = on_request
        asker = nodes[-1]

        async def commit(reply):
            await asker.request(COMMAND, target=TARGET, token=reply.token, to=reply.address)

        await asker.query(COMMAND, TARGET, commit=commit)
        assert sorted(stored) == sorted(node.address for node in nodes[:-1])


async def test_a_commit_that_one_node_takes_is_a_success_and_none_is_a_failure():
    async with open_network(4) as nodes:
        for node in nodes:
            node.on_request = lambda request: request.reply(None) or True

        async def one_takes_it(reply):
            if reply.address != nodes[0].address:
                raise RequestTimeout("too busy")

        async def nobody_takes_it(reply):
            raise RequestTimeout("too busy")

        await nodes[-1].query(COMMAND, TARGET, commit=one_takes_it)
        with pytest.raises(TooFewNodes) as info:
            await nodes[-1].query(COMMAND, TARGET, commit=nobody_takes_it)
        assert isinstance(info.value.__cause__, RequestTimeout)


async def test_a_commit_without_any_node_is_too_few_nodes():
    async with open_node(first=True) as node:
        with pytest.raises(TooFewNodes):
            await node.query(COMMAND, TARGET, commit=lambda reply: node.ping(reply.address))


async def test_junk_is_counted_and_the_node_goes_on():
    async with open_node(first=True) as node:
        sock, _ = await silent_address()
        with sock:
            for junk in (b"\x03", b"\x13\xff", b"\x03" * 9, b"\x13\x04" + b"\xff" * 50, b""):
                await sock.sendto(junk, node.address)
            async with open_node(bootstrap=[node.address]) as other:
                await other.ping(node.address)
        assert node.statistics().datagrams_malformed == 3


# -- on simulated sockets, in virtual time ---------------------------------------------------------


async def test_a_delayed_ping_answers_when_asked_to(autojump_clock):
    async with sim_network() as network:
        first_host, host = network.host("10.0.0.1"), network.host("10.0.0.2")
        async with (
            open_node(factory=first_host, first=True) as first,
            open_node(factory=host, bootstrap=[first.address]) as node,
        ):
            start = trio.current_time()
            await node.request(
                DELAYED_PING,
                value=(2500).to_bytes(4, "little"),
                to=first.address,
                internal=True,
                timeout=3.5,
            )
            assert trio.current_time() - start == pytest.approx(2.52, abs=0.05)


async def test_lost_datagrams_are_sent_again(autojump_clock):
    async with (
        sim_network(seed=3, loss=0.3) as network,
        open_node(factory=network.host("10.0.0.1"), first=True) as first,
        open_node(factory=network.host("10.0.0.2"), bootstrap=[first.address]) as node,
    ):
        for _ in range(20):
            await node.request(FIND_NODE, target=TARGET, to=first.address, internal=True, retries=9)
        assert node.statistics().retries > 5
        assert node.statistics().timeouts == 0


async def test_a_node_alone_stays_up_and_joins_when_its_bootstrap_node_appears(autojump_clock):
    async with sim_network() as network:
        bootstrap = [("10.0.0.1", 49152)]
        async with open_node(factory=network.host("10.0.0.2"), bootstrap=bootstrap) as node:
            await node.bootstrapped.wait()
            assert node.table_size == 0
            assert node.statistics().bootstrap_failing
            await trio.sleep(120)
            assert node.statistics().bootstrap_attempts >= 6
            async with open_node(factory=network.host("10.0.0.1"), first=True) as first:
                assert first.address == bootstrap[0]
                await trio.sleep(40)
                assert node.table_size == 1
                assert not node.statistics().bootstrap_failing
                assert node.id == node_id(node.address)


class Names(trio.abc.HostnameResolver):
    """A name service that knows what the test says."""

    def __init__(self):
        self.known = {}
        self.asked = 0

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        self.asked += 1
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self.known:
            raise stdlib_socket.gaierror(stdlib_socket.EAI_NONAME, "unknown")
        return [(family, type, proto, "", (self.known[name], port))]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_names_of_bootstrap_nodes_are_resolved_and_tried_again_until_they_are(autojump_clock):
    names = Names()
    trio.socket.set_custom_hostname_resolver(names)
    async with (
        sim_network() as network,
        open_node(factory=network.host("10.0.0.1"), first=True) as first,
        open_node(
            factory=network.host("10.0.0.2"), bootstrap=[("boot.example", first.address[1])]
        ) as node,
    ):
        await node.bootstrapped.wait()
        assert names.asked == 1
        assert node.statistics().bootstrap_failing
        names.known["boot.example"] = "10.0.0.1"
        await trio.sleep(31)
        assert node.table_size == 1
        assert not node.statistics().bootstrap_failing


async def test_names_asked_for_before_a_node_was_suspended_are_waited_for_no_more(autojump_clock):
    class SlowNames(Names):
        async def getaddrinfo(self, *args):
            if not self.known:
                self.asked += 1
                await trio.sleep_forever()
            return await super().getaddrinfo(*args)

    names = SlowNames()
    trio.socket.set_custom_hostname_resolver(names)
    async with (
        sim_network() as network,
        open_node(factory=network.host("10.0.0.1"), first=True) as first,
        open_node(
            factory=network.host("10.0.0.2"), bootstrap=[("boot.example", first.address[1])]
        ) as node,
    ):
        await trio.sleep(1)
        assert names.asked == 1
        node.suspend()
        names.known["boot.example"] = "10.0.0.1"
        node.resume()
        await trio.sleep(20)
        assert node.table_size == 1
        assert node.statistics().bootstrap_attempts == 1
        assert node.to_start_from(bytes(32), 20) == [first.address]
        assert node._core._neighbours.bootstrap_nodes == (first.address,)


async def test_public_bootstrap_nodes_are_tried_at_their_known_addresses_before_dns(autojump_clock):
    names = Names()
    trio.socket.set_custom_hostname_resolver(names)
    suggested = BOOTSTRAP_SUGGESTED_HOSTS["node1.hyperdht.org"]
    async with (
        sim_network() as network,
        open_node(factory=network.host(suggested), first=True) as first,
        open_node(
            factory=network.host("10.0.0.2"),
            bootstrap=[("node1.hyperdht.org", first.address[1])],
        ) as node,
    ):
        await node.bootstrapped.wait()
        assert node.table_size == 1
        assert names.asked == 0


async def test_public_bootstrap_nodes_that_moved_are_found_by_dns(autojump_clock):
    names = Names()
    names.known["node1.hyperdht.org"] = "10.0.0.1"
    trio.socket.set_custom_hostname_resolver(names)
    async with (
        sim_network() as network,
        open_node(factory=network.host("10.0.0.1"), first=True) as first,
        open_node(
            factory=network.host("10.0.0.2"),
            bootstrap=[("node1.hyperdht.org", first.address[1])],
        ) as node,
    ):
        await node.bootstrapped.wait()
        assert node.table_size == 0
        await trio.sleep(5)
        assert names.asked == 1
        assert node.table_size == 1


async def test_an_hour_of_quiet_keeps_the_tables_alive_and_the_dead_leave_them(autojump_clock):
    async with (
        sim_network() as network,
        open_node(factory=network.host("10.0.0.1"), first=True) as first,
    ):
        async with (
            open_node(factory=network.host("10.0.0.2"), bootstrap=[first.address]) as second,
            open_node(factory=network.host("10.0.0.3"), bootstrap=[first.address]) as third,
        ):
            await trio.sleep(3600)
            for node in (first, second, third):
                assert node.table_size == 2
                assert node.online
                assert node.statistics().timeouts == 0
        await trio.sleep(300)
        assert first.table_size == 0


async def test_after_the_machine_slept_the_node_looks_around_again(autojump_clock, monkeypatch):
    slept = 0.0
    # trio's clock, like CLOCK_MONOTONIC, does not count the time asleep; this one does.
    monkeypatch.setattr("hyperlog.dht.surroundings.wall_clock", lambda: trio.current_time() + slept)
    changes = []
    async with (
        sim_network() as network,
        open_node(factory=network.host("10.0.0.1"), first=True) as first,
        open_node(
            factory=network.host("10.0.0.2"),
            bootstrap=[first.address],
            ephemeral=None,
            firewalled=None,
        ) as node,
    ):
        await trio.sleep(1500)
        assert not node.ephemeral
        node.on_network_change = lambda: changes.append(trio.current_time())
        before = node.statistics().requests_sent
        slept = 8 * 3600.0
        await trio.sleep(20)
        assert changes
        assert node.ephemeral
        assert node.statistics().requests_sent > before
        assert node.table_size == 1


# -- with JavaScript nodes -------------------------------------------------------------------------

TESTNET = """
const modules = process.argv[1]
const createTestnet = require(modules + '/hyperdht/testnet')
createTestnet(Number(process.argv[2])).then(async (testnet) => {
  console.log(JSON.stringify(testnet.nodes.map((node) => node.address().port)))
  process.stdin.on('data', () => {}).on('end', () => process.exit(0))
})
"""

JOIN = """
const DHT = require(process.argv[1] + '/dht-rpc')
const port = Number(process.argv[2])
const node = new DHT({
  bootstrap: [{ host: '127.0.0.1', port }], host: '127.0.0.1',
  ephemeral: false, firewalled: false, quickFirewall: false
})
node.fullyBootstrapped().then(async () => {
  const pong = await node.ping({ host: '127.0.0.1', port })
  const target = Buffer.from(process.argv[3], 'hex')
  const query = node.findNode(target)
  await query.finished()
  const late = Date.now()
  await node.delayedPing({ host: '127.0.0.1', port }, 100)
  const echo = await node.request(
    { command: 77, target, value: Buffer.from('hi') }, { host: '127.0.0.1', port })
  const again = await node.request(
    { command: 77, target, token: echo.token }, { host: '127.0.0.1', port })
  const refused = await node.request(
    { command: 77, target, token: Buffer.alloc(32) }, { host: '127.0.0.1', port })
  console.log(JSON.stringify({
    id: node.id && node.id.toString('hex'),
    port: node.address().port,
    pong: pong.to,
    waited: Date.now() - late >= 100,
    closest: query.closestNodes.map((node) => node.port),
    echo: echo.value.toString(),
    again: again.error,
    refused: refused.error
  }))
  process.stdin.on('data', () => {}).on('end', () => process.exit(0))
})
"""

ADAPTIVE = """
const DHT = require(process.argv[1] + '/dht-rpc')
const node = new DHT({
  bootstrap: [{ host: '127.0.0.1', port: Number(process.argv[2]) }], host: '127.0.0.1',
  ephemeral: false
})
node.on('persistent', () => {
  console.log(JSON.stringify({ firewalled: node.firewalled, remote: node.remoteAddress() }))
  process.stdin.on('data', () => {}).on('end', () => process.exit(0))
})
"""

needs_javascript = pytest.mark.skipif(
    not NODE_MODULES.exists(), reason="the JavaScript packages are not installed"
)


@asynccontextmanager
async def javascript(script, *arguments):
    """A running script; gives what its first line of output says. It ends with its stdin."""
    command = ["node", "-e", script, str(NODE_MODULES), *map(str, arguments)]
    run = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(run)
        line = b""
        with trio.fail_after(30):
            while not line.endswith(b"\n"):
                chunk = await process.stdout.receive_some()
                assert chunk, "the script ended too early"
                line += chunk
        yield json.loads(line)
        await process.stdin.aclose()


@pytest.mark.interop
@needs_javascript
async def test_a_node_joins_a_javascript_network_and_its_lookups_converge():
    async with javascript(TESTNET, 12) as ports:
        addresses = [("127.0.0.1", port) for port in ports]
        async with open_node(bootstrap=addresses[:1]) as node:
            with trio.fail_after(30):
                await node.bootstrapped.wait()
                assert node.id == node_id(node.address)
                for address in addresses:
                    assert (await node.ping(address)).to == node.address
                result = await node.query(FIND_NODE, TARGET, internal=True)
            # The first node of the JavaScript helper never gets an id (dht-rpc.md section 9).
            persistent = sorted(addresses[1:], key=lambda a: distance(node_id(a), TARGET))
            assert list(result.closest_nodes) == persistent
            assert node.statistics().timeouts == 0


@pytest.mark.interop
@needs_javascript
async def test_a_javascript_node_joins_a_network_of_ours():
    def echo(request):
        if request.command != COMMAND:
            return False
        request.reply(b"echo " + (request.value or b""))
        return True

    async with open_network(5) as nodes:
        nodes[0].on_request = echo
        async with javascript(JOIN, nodes[0].address[1], TARGET.hex()) as told:
            address = ("127.0.0.1", told["port"])
            assert bytes.fromhex(told["id"]) == node_id(address)
            assert (told["pong"]["host"], told["pong"]["port"]) == address
            assert told["waited"]
            assert told["closest"] == [port for _, port in closest(nodes, TARGET)]
            assert (told["echo"], told["again"], told["refused"]) == ("echo hi", 0, 2)
            response = await nodes[3].ping(address)
            assert response.id == node_id(address)
            assert address in nodes[0].closest(node_id(address))


@pytest.mark.interop
@needs_javascript
async def test_a_javascript_node_proves_by_our_answers_that_it_is_open():
    async with (
        open_network(6) as nodes,
        javascript(ADAPTIVE, nodes[0].address[1]) as told,
    ):
        assert told["firewalled"] is False
        address = (told["remote"]["host"], told["remote"]["port"])
        assert (await nodes[1].ping(address)).id == node_id(address)


@pytest.mark.interop
@needs_javascript
async def test_a_default_node_proves_by_javascript_answers_that_it_is_open():
    async with (
        javascript(TESTNET, 6) as ports,
        open_node(bootstrap=[("127.0.0.1", ports[0])], firewalled=None) as node,
    ):
        with trio.fail_after(30):
            await node.bootstrapped.wait()
        assert not node.firewalled
        assert node.id == node_id(node.address)


@pytest.mark.datagrams_fail
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_node_outlives_whatever_raises_as_it_answers(at_once):
    def fail(*arguments):
        raise ValueError("a fault of our own")

    async with open_network(2) as (asker, server):
        if at_once:
            server.answer_at_once({COMMAND: fail})
        server.on_request = fail
        # From the client socket: only what shows no id is answered at once.
        ask = partial(asker.request, COMMAND, to=server.address, target=TARGET, socket=CLIENT)
        with pytest.raises(RequestTimeout):
            await ask(retries=0, timeout=0.1)
        assert server.statistics().callback_failures == 1
        server.answer_at_once({})
        server.on_request = lambda request: request.reply(b"alive") or True
        assert (await ask()).value == b"alive"
