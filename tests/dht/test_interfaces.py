"""Which addresses this machine has, and which of a peer's are worth a try."""

from __future__ import annotations

import socket

import pytest

from hyperlog.dht.interfaces import (
    is_bogon,
    is_private,
    is_reserved,
    local_addresses,
    match_address,
)

# First and last of each network, and the neighbours that do not belong to it.
PRIVATE = [
    "10.0.0.0",
    "10.255.255.255",
    "100.64.0.0",
    "100.127.255.255",
    "127.0.0.1",
    "169.254.0.1",
    "172.16.0.0",
    "172.31.255.255",
    "192.168.0.0",
    "192.168.255.255",
]
RESERVED = [
    "0.0.0.0",
    "0.255.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.0",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
PUBLIC = [
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "192.0.1.1",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "88.99.3.86",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_private_hosts(host):
    assert (is_private(host), is_reserved(host), is_bogon(host)) == (True, False, True)


@pytest.mark.parametrize("host", RESERVED)
def test_reserved_hosts(host):
    assert (is_private(host), is_reserved(host), is_bogon(host)) == (False, True, True)


@pytest.mark.parametrize("host", PUBLIC)
def test_public_hosts(host):
    assert (is_private(host), is_reserved(host), is_bogon(host)) == (False, False, False)


@pytest.mark.parametrize("host", ["", "::1", "1.2.3", "256.1.1.1", "host.example"])
def test_what_is_no_ipv4_address_is_a_bogon(host):
    assert is_bogon(host)
    assert is_reserved(host)


def test_a_socket_on_one_address_has_that_one():
    assert local_addresses(("127.0.0.1", 7)) == [("127.0.0.1", 7)]
    assert local_addresses(("192.168.1.5", 7)) == [("192.168.1.5", 7)]


def test_a_socket_on_all_addresses_has_every_one_of_this_machine_with_its_port():
    found = local_addresses(("0.0.0.0", 4242))
    assert found
    assert len(set(found)) == len(found)
    for host, port in found:
        assert port == 4242
        assert not host.startswith("127.") or len(found) == 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))  # nobody else's


@pytest.mark.parametrize(
    ("own", "remote", "expected"),
    [
        (["192.168.1.5"], ["10.0.0.1", "192.168.1.9"], "192.168.1.9"),
        (["192.168.1.5"], ["192.168.2.9", "192.168.1.9"], "192.168.1.9"),
        (["192.168.1.5"], ["192.1.1.1", "192.168.2.9"], "192.168.2.9"),
        (["192.168.1.5"], ["192.168.1.7", "192.168.1.9"], "192.168.1.7"),
        (["192.168.1.5"], ["10.0.0.1", "8.8.8.8"], None),
        (["10.0.0.1", "192.168.1.5"], ["192.168.1.9", "10.9.9.9"], "192.168.1.9"),
        ([], ["10.0.0.1"], None),
        (["10.0.0.1"], [], None),
    ],
)
def test_the_address_with_the_longest_common_prefix_is_tried(own, remote, expected):
    match = match_address([(host, 1) for host in own], [(host, 2) for host in remote])
    assert match == (None if expected is None else (expected, 2))
