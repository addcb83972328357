"""IPv6: neighbours without a common IPv4 way find each other by it, and nobody else sees it."""

from __future__ import annotations

import socket

import pytest
import trio

from hyperlog.dht import connect as connecting
from hyperlog.dht import ipv6 as module
from hyperlog.dht import open_dht, sockets, testnet
from hyperlog.dht.ipv6 import UDP6Socket, interface_hosts6, is_neighbourly, knock
from hyperlog.dht.sockets import SERVER6
from tests.dht.peers import new_stream, open_sockets


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("fd00::2", True),
        ("2001:db8::1", True),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("nobody", False),
    ],
)
def test_what_may_be_a_neighbours_address(host, expected):
    assert is_neighbourly(host) is expected


def test_addresses_come_from_the_interfaces_but_for_those_of_no_use(tmp_path, monkeypatch):
    table = tmp_path / "if_inet6"
    monkeypatch.setattr(module, "IF_INET6", table)
    monkeypatch.setattr(module.sys, "platform", "linux")
    lines = [
        "fd000000000000000000000000000002 04 40 00 82     eth0",
        "00000000000000000000000000000001 01 80 10 80       lo",
        "fe8000000000000000fc00fffe000001 04 40 20 80     eth0",
        "20010db8000000000000000000000009 04 40 00 20     eth0",  # deprecated
    ]
    table.write_text("\n".join(lines) + "\n")
    assert interface_hosts6() == ["fd00::2"]
    table.write_text("\n".join(f"fd{n:030x} 04 40 00 82 eth{n}" for n in range(16, 26)))
    assert len(interface_hosts6()) == module.MAX_HOSTS
    table.write_text("a line of another kind\n")
    assert interface_hosts6() == []
    table.unlink()
    assert interface_hosts6() == []


@needs_ipv6
async def test_a_knock_is_answered_by_the_stream_alone():
    async with open_sockets() as (left, right):
        assert left.open_ipv6("::1")
        assert right.open_ipv6("::1")
        a, b = new_stream(left), new_stream(right)
        found = trio.Event()

        def answer(where, address):
            b.on_packet = None
            b.connect(where, a.core.local_id, address)

        def note(where, address):
            a.on_packet = None
            assert (where, address) == (SERVER6, right.local_address(SERVER6))
            a.connect(where, b.core.local_id, address)
            found.set()

        a.on_packet, b.on_packet = note, answer
        left.send(SERVER6, right.local_address(SERVER6), knock(b.core.local_id ^ 1))
        left.send(SERVER6, right.local_address(SERVER6), b"\x03 not for RPC")
        left.send(SERVER6, right.local_address(SERVER6), knock(b.core.local_id))
        with trio.fail_after(5):
            await found.wait()
            await a.send_all(b"x" * 300_000)
            received = 0
            while received < 300_000:
                received += len(await b.receive_some())
        assert right.statistics().datagrams_ignored == 2


@needs_ipv6
async def test_neighbours_without_a_common_ipv4_network_connect_by_ipv6(monkeypatch):
    monkeypatch.setattr(connecting, "is_neighbourly", lambda host: True)  # ::1, of this machine
    async with (
        testnet(4) as net,
        open_dht(bootstrap=net.bootstrap, host="127.0.0.1", firewalled=True) as server,
        open_dht(bootstrap=net.bootstrap, host="127.0.0.1", firewalled=True) as client,
    ):
        for dht in (server, client):
            assert dht.sockets.open_ipv6("::1")
            dht.local_addresses.all = list
        listener = await server.listen()
        await listener.wait_announced()
        with trio.fail_after(10):
            connection = await client.connect(listener.public_key)
            accepted = await listener.accept()
            assert connection.path == accepted.path == "lan"
            assert connection.remote_address == server.sockets.local_address(SERVER6)
            await connection.send(b"six")
            assert await accepted.receive() == b"six"
            apart = await client.connect(listener.public_key, local_connection=False)
            assert apart.path == "punched"


@needs_ipv6
async def test_the_ipv6_socket_comes_back_after_a_suspension():
    async with open_dht(bootstrap=[], host="127.0.0.1") as dht:
        dht.sockets.open_ipv6("::1")
        await dht.suspend()
        assert dht.local_addresses.ipv6() == []
        await dht.resume()
        assert dht.local_addresses.ipv6()[0][0] == "::1"


async def test_a_machine_without_ipv6_does_without(monkeypatch):
    def refuse(host, port):
        raise OSError("Address family not supported")

    monkeypatch.setattr(sockets, "UDP6Socket", refuse)
    async with open_dht(bootstrap=[], host="127.0.0.1") as dht:
        assert not dht.sockets.open_ipv6()
        assert dht.local_addresses.ipv6() == []


@needs_ipv6
async def test_a_taken_port_is_an_error():
    one = UDP6Socket("::1", 0)
    with pytest.raises(OSError, match="in use"):
        UDP6Socket("::1", one.local_address[1])
    one.close()
