import socket as stdlib_socket

import pytest
import trio

from hyperlog.dht.constants import BOOTSTRAP_SUGGESTED_HOSTS
from hyperlog.dht.resolver import RESOLVE_TIMEOUT, known_addresses, resolve


class Names(trio.abc.HostnameResolver):
    """A name service: known names, one that never answers, and nothing else."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        name = host.decode() if isinstance(host, bytes) else host
        if name == "silent.example":
            await trio.sleep_forever()
        if name != "known.example":
            raise stdlib_socket.gaierror(stdlib_socket.EAI_NONAME, "unknown")
        return [(family, type, proto, "", ("192.0.2.7", port))]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.fixture
async def names():
    trio.socket.set_custom_hostname_resolver(Names())


def test_addresses_and_public_nodes_need_no_name_service():
    name = "node2.hyperdht.org"
    nodes = [("192.0.2.1", 1), (name, 2), ("boot.example", 3)]
    assert known_addresses(nodes) == (
        [("192.0.2.1", 1), (BOOTSTRAP_SUGGESTED_HOSTS[name], 2)],
        [("boot.example", 3)],
    )


async def test_names_that_do_not_resolve_are_left_out(names):
    nodes = [("unknown.example", 1), ("known.example", 2)]
    assert await resolve(nodes) == [("192.0.2.7", 2)]


async def test_literal_addresses_resolve_to_themselves(names):
    assert await resolve([("192.0.2.1", 1)]) == [("192.0.2.1", 1)]


async def test_a_silent_name_service_costs_its_time_limit_and_no_more(names, autojump_clock):
    start = trio.current_time()
    assert await resolve([("silent.example", 1), ("known.example", 2)]) == [("192.0.2.7", 2)]
    assert trio.current_time() - start == pytest.approx(RESOLVE_TIMEOUT)


async def test_what_can_be_no_name_is_left_out():
    assert await resolve([(f"{'a' * 100}.example", 1), ("192.0.2.1", 2)]) == [("192.0.2.1", 2)]
