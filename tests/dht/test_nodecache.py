"""Nodes kept on disk: files good and bad, and starts without any bootstrap node."""

from __future__ import annotations

import json
import logging
import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.nodecache import MAX_FILE, MAX_NODES, NodeCache, _parse
from hyperlog.dht.opening import open_dht
from hyperlog.dht.testing import testnet

GOOD = [("10.0.0.1", 49737), ("203.0.113.9", 1)]


def contents(nodes):
    return json.dumps({"nodes": nodes}).encode()


async def test_a_client_finds_a_server_though_all_bootstrap_nodes_have_died(tmp_path):
    cache = tmp_path / "folder" / "nodes.json"
    async with testnet(6, host="127.0.0.1") as net:
        live = net.nodes[1:]
        async with open_dht(bootstrap=net.bootstrap, host="127.0.0.1", cache=cache) as dht:
            await dht.bootstrapped()
        assert set(NodeCache(cache).load()) == {node.address for node in net.nodes}
        await net.nodes[0].suspend()  # as good as dead

        async with (
            open_dht(bootstrap=net.bootstrap, host="127.0.0.1", cache=cache) as server,
            open_dht(bootstrap=net.bootstrap, host="127.0.0.1", cache=cache) as client,
        ):
            with trio.fail_after(10):
                listener = await server.listen()
                assert await listener.wait_announced() == 3
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(listener.accept)
                    connection = await client.connect(listener.public_key)
                await connection.aclose()
            assert set(client.node.known_nodes(99)) <= {node.address for node in live}
        await net.nodes[0].resume()


async def test_nodes_that_are_gone_do_not_keep_a_node_from_its_bootstrap_nodes(tmp_path):
    cache = tmp_path / "nodes.json"
    cache.write_bytes(contents([("127.0.0.1", port) for port in range(1, MAX_NODES + 1)]))
    async with testnet(3) as net:
        async with open_dht(bootstrap=net.bootstrap, host="127.0.0.1", cache=cache) as dht:
            with trio.fail_after(10):
                while dht.node.table_size < 3:  # noqa: ASYNC110 - nothing tells of it
                    await trio.sleep(0.01)
        assert set(NodeCache(cache).load()) == {node.address for node in net.nodes}


async def test_the_file_is_kept_up_to_date_and_never_emptied(tmp_path, autojump_clock, monkeypatch):
    async def run_at_once(call, *args, **_):  # simulated time does not wait for threads
        return call(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_at_once)

    class Node:
        def __init__(self):
            self.bootstrapped = trio.Event()
            self.nodes = []
            self.remembered = []

        def known_nodes(self, limit):
            return self.nodes[:limit]

        def remember(self, nodes):
            self.remembered = nodes

    node, path = Node(), tmp_path / "nodes.json"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(NodeCache(path).run, node)
        await trio.sleep(100)
        assert not path.exists()
        node.bootstrapped.set()
        node.nodes = GOOD
        await trio.sleep(31)
        assert NodeCache(path).load() == node.remembered == GOOD
        changed_at = path.stat().st_mtime_ns
        node.nodes = GOOD[::-1]  # no news
        await trio.sleep(301)
        assert path.stat().st_mtime_ns == changed_at
        node.nodes = []
        await trio.sleep(301)
        assert NodeCache(path).load() == GOOD
        node.nodes = [("10.0.0.9", 9)]
        nursery.cancel_scope.cancel()
    assert NodeCache(path).load() == [("10.0.0.9", 9)]
    assert os.listdir(tmp_path) == ["nodes.json"]


async def test_a_file_that_cannot_be_written_is_told_and_stops_nobody(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "file" / "nodes.json"
    path.parent.write_text("no folder")
    async with (
        testnet(2) as net,
        open_dht(bootstrap=net.bootstrap, host="127.0.0.1", cache=path) as dht,
    ):
        await dht.bootstrapped()
    assert "cannot be kept" in caplog.text


async def test_what_could_not_be_written_is_written_the_next_time(tmp_path):
    path = tmp_path / "file" / "nodes.json"
    path.parent.write_text("no folder")
    cache = NodeCache(path)
    async with testnet(3) as net:
        await cache._save(net.nodes[0].node)
        path.parent.unlink()
        await cache._save(net.nodes[0].node)
        assert set(NodeCache(path).load()) == {node.address for node in net.nodes[1:]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"nodes": 7}',
        b'{"nodes": {"a": 1}}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        contents([["10.0.0.1"], [1, 2], "10.0.0.1:1", None]),
        contents([["10.0.0.1", 0], ["10.0.0.1", 65536], ["10.0.0.1", True], ["10.0.0.1", 1.5]]),
        contents([["::1", 1], ["example.org", 1], ["10.0.0.01", 1], ["", 1]]),
        contents(GOOD) + b" " * MAX_FILE,
    ],
    ids=range(13),
)
def test_a_damaged_file_gives_nothing_and_a_warning(tmp_path, caplog, data):
    path = tmp_path / "nodes.json"
    path.write_bytes(data)
    assert NodeCache(path).load() == []
    assert "will be replaced" in caplog.text


def test_what_is_good_in_a_file_is_used_once_each_and_not_without_end():
    assert _parse(contents([["x", 1], *GOOD, *GOOD])) == GOOD
    many = [(f"10.0.{n >> 8}.{n & 255}", 1) for n in range(400)]
    assert _parse(contents(many)) == many[:MAX_NODES]


def test_no_file_is_no_reason_to_warn(tmp_path, caplog):
    assert NodeCache(tmp_path / "nodes.json").load() == []
    assert not caplog.records


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(data):
    for host, port in _parse(data) + _parse(b'{"nodes": [' + data + b"]}"):
        assert host.count(".") == 3
        assert 0 < port < 65536
