from __future__ import annotations

import json
import logging
import os
from contextlib import asynccontextmanager

import pytest
import trio

from hyperlog import keywriter, sources
from hyperlog.access import AccessPolicy
from hyperlog.dht import KeyPair, open_dht, testnet
from hyperlog.errors import ConfigError, KeyFileError, SinkError
from hyperlog.limits import ServerLimits
from hyperlog.server import Server
from hyperlog.sinks import folderlock, writer
from hyperlog.sinks.folder import FilePolicy

SESSION = "123456789"


def message(number, session=SESSION, **fields):
    return json.dumps(
        {
            "traceTimestamp": "2026-01-01T00:00:00.000Z",
            "traceSessionId": session,
            "traceNumber": number,
            "id": None,
            "props": None,
            "object": {"id": 1, "className": "Order", "props": None},
            "caller": {"filename": "a.py", "functionName": "f"},
            **fields,
        }
    ).encode()


@asynccontextmanager
async def local_server(folder, **settings):
    settings.setdefault("keys", KeyPair.generate())
    async with Server(folder, host="127.0.0.1", local=True, **settings) as server:
        yield server


@asynccontextmanager
async def peer(server):
    """A DHT node of a client."""
    async with open_dht(bootstrap=[server.address], host="127.0.0.1") as dht:
        yield dht


async def connect(dht, server, key_pair=None):
    """A greeted connection, and the greeting."""
    connection = await dht.connect(server.public_key, key_pair=key_pair)
    return connection, json.loads(await connection.receive())


async def until(condition, timeout=10.0):
    with trio.fail_after(timeout):
        while not condition():  # noqa: ASYNC110 - statistics are looked at, nobody announces them
            await trio.sleep(0.005)


async def is_cut_off(connection, within=10.0):
    with trio.move_on_after(within):
        try:
            await connection.receive()
        except (trio.EndOfChannel, trio.BrokenResourceError):
            return True
    return False


def lines(folder, key):
    path = folder / f"{key.hex()}.log"
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_the_greeting_comes_first_and_tells_what_was_seen(tmp_path):
    async with local_server(tmp_path) as server, peer(server) as dht:
        connection, greeting = await connect(dht, server)
        assert greeting.pop("hyperlog")["version"] == 2
        assert greeting == {"lastSeenTraceSessionId": None, "lastSeenTraceNumber": None}
        await connection.send_many([message(0), message(1)])
        await until(lambda: server.statistics().records == 2)
        await connection.aclose()
        _, greeting = await connect(dht, server)
        assert greeting["lastSeenTraceSessionId"] == SESSION
        assert greeting["lastSeenTraceNumber"] == 1


async def test_a_restarted_server_reads_back_what_it_has_written(tmp_path):
    keys = KeyPair.generate()
    client_keys = KeyPair.generate()
    for start in (0, 2):
        async with local_server(tmp_path, keys=keys) as server, peer(server) as dht:
            connection, greeting = await connect(dht, server, client_keys)
            assert greeting["lastSeenTraceNumber"] == (start - 1 if start else None)
            # The last one again: it is known, and not written twice.
            await connection.send_many([message(n) for n in range(max(start - 1, 0), start + 2)])
            await until(lambda: server.statistics().records == 2)
    written = lines(tmp_path, client_keys.public_key)
    assert [line["traceNumber"] for line in written if "note" not in line] == [0, 1, 2, 3]


async def test_a_hostile_peer_is_cut_off_and_harms_nobody(tmp_path, caplog):
    bad = [b"{", b"null", b"\xff" * 50, b"[" * 10_000, message(0)[:-1], b"{}"] * 20
    async with local_server(tmp_path) as server, peer(server) as dht:
        good, _ = await connect(dht, server, KeyPair.generate())
        hostile, _ = await connect(dht, server, KeyPair.generate())
        with caplog.at_level(logging.WARNING, "hyperlog"):
            await hostile.send_many(bad)
            assert await is_cut_off(hostile)
        assert "cut off: more than 100 bad messages" in caplog.text
        await good.send(message(0))
        await until(lambda: server.statistics().records == 1)
        assert server.statistics().connections == 1
        assert server.statistics().bad_messages > 100


async def test_a_record_beyond_the_limit_is_counted_and_the_next_is_written(tmp_path):
    limits = ServerLimits(max_record=100_000)
    async with local_server(tmp_path, limits=limits) as server, peer(server) as dht:
        connection, _ = await connect(dht, server)
        await connection.send(message(0, id="x" * 100_000))
        await connection.send(message(1))
        await until(lambda: server.statistics().records == 1)
        assert server.statistics().bad_messages == 1


async def test_a_connection_that_breaks_is_noted_as_the_javascript_server_does(tmp_path):
    async with local_server(tmp_path) as server, peer(server) as dht:
        connection, _ = await connect(dht, server)
        await connection.send(message(0))
        await until(lambda: server.statistics().records == 1)
        connection.abort()
        await until(lambda: server.statistics().connections == 0)
        last = lines(tmp_path, dht.key_pair.public_key)[-1]
    assert last["note"].startswith("Socket error. code=ECONNRESET message=")


async def test_what_cannot_be_written_is_given_up_in_the_end_and_asked_for_again(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(keywriter, "FAULT_PATIENCE", 0.3)
    monkeypatch.setattr(keywriter, "FAULT_RETRY", 0.1)
    folder = tmp_path / "logs"
    async with local_server(folder) as server, peer(server) as dht:
        key = dht.key_pair.public_key
        connection, _ = await connect(dht, server)
        other, _ = await connect(dht, server, KeyPair.generate())
        await connection.send(message(0))
        await until(lambda: server.statistics().records == 1)
        # From now on the key's file cannot be opened: there is a folder in its place.
        log = folder / f"{key.hex()}.log"
        log.rename(tmp_path / "kept.log")
        log.mkdir()
        number = 1
        with caplog.at_level(logging.ERROR, "hyperlog"):
            while not await is_cut_off(connection, within=0.1):
                await connection.send(message(number))  # a rotated file is noticed within a second
                number += 1
            failures = server.statistics().write_failures
            assert failures >= 3
            connection, _ = await connect(dht, server)
            await connection.send_many([message(n) for n in range(number)])
            assert await is_cut_off(connection)
            assert server.statistics().write_failures > failures
        assert caplog.text.count("Clients keep what is not written") == 1  # once a minute
        await other.send(message(0))
        await until(lambda: server.statistics().connections == 1)
        log.rmdir()
        (tmp_path / "kept.log").rename(log)
        connection, greeting = await connect(dht, server)
        seen = greeting["lastSeenTraceNumber"]
        assert seen < number - 1  # what could not be written is asked for again
        records = server.statistics().records
        await connection.send_many([message(n) for n in range(number)])
        await until(lambda: server.statistics().records == records + number - 1 - seen)
    numbers = [line["traceNumber"] for line in lines(folder, key) if "note" not in line]
    assert numbers == list(range(number))


async def test_a_fault_that_passes_costs_nobody_anything(tmp_path):
    async with local_server(tmp_path) as server, peer(server) as dht:
        log = tmp_path / f"{dht.key_pair.public_key.hex()}.log"
        connection, _ = await connect(dht, server)
        log.mkdir()  # it cannot be opened
        await connection.send(message(0))
        await until(lambda: server.statistics().write_failures >= 1)
        await connection.send(message(1))
        log.rmdir()
        await until(log.exists)
        assert server.statistics().connections == 1
    written = [line for line in lines(tmp_path, dht.key_pair.public_key) if "note" not in line]
    assert [line["traceNumber"] for line in written] == [0, 1]


async def test_one_key_cannot_take_all_connections(tmp_path):
    limits = ServerLimits(connections_per_key=2)
    async with local_server(tmp_path, limits=limits) as server, peer(server) as dht:
        kept = [await connect(dht, server) for _ in range(2)]
        for number, (connection, _) in enumerate(kept):
            await connection.send(message(number))  # proves the key
            await until(lambda: server.statistics().records > number)  # noqa: B023 - awaited here
        refused = await dht.connect(server.public_key)
        await refused.receive()
        await refused.send(message(2))
        assert await is_cut_off(refused)
        other, _ = await connect(dht, server, KeyPair.generate())
        await until(lambda: server.statistics().connections == 3)
        assert server.statistics().gate.limits.connections_per_key == 1
        for connection, _ in kept:
            connection.abort()
        other.abort()
        await until(lambda: server.statistics().connections == 0)
        await connect(dht, server)


async def test_a_key_that_is_not_on_the_list_gets_no_answer(tmp_path):
    known = KeyPair.generate()
    (tmp_path / "list").write_text(f"{known.public_key.hex()}\n")
    access = AccessPolicy(tmp_path / "list")
    async with local_server(tmp_path / "logs", access=access) as server, peer(server) as dht:
        connection, _ = await connect(dht, server, known)
        with trio.move_on_after(1) as scope:
            await dht.connect(server.public_key)
        assert scope.cancelled_caught
        assert server.statistics().gate.refused_keys >= 1
        assert server.statistics().accepted == 1
        await connection.send(message(0))
        await until(lambda: server.statistics().records == 1)


async def test_keys_are_learned_from_clients_that_prove_them(tmp_path):
    path = tmp_path / "list"
    access = AccessPolicy(path, learn_count=1)
    async with local_server(tmp_path / "logs", access=access) as server, peer(server) as dht:
        connection, _ = await connect(dht, server)
        assert not path.exists()
        await connection.send(message(0))
        await until(lambda: server.statistics().gate.allowed_keys == 1)
        assert path.read_text() == f"{dht.key_pair.public_key.hex()} # learned\n"
        with trio.move_on_after(1) as scope:
            await dht.connect(server.public_key, key_pair=KeyPair.generate())
        assert scope.cancelled_caught


async def test_a_quota_keeps_records_with_their_clients(tmp_path):
    files = FilePolicy(key_quota=1)
    async with local_server(tmp_path, files=files) as server, peer(server) as dht:
        connection, _ = await connect(dht, server)
        await connection.send(message(0))
        await until(lambda: server.statistics().records == 1)
        await connection.send(message(1))
        await until(lambda: server.statistics().files.quota_failures >= 1)
        other, _ = await connect(dht, server, KeyPair.generate())
        await other.send(message(0))
        await until(lambda: server.statistics().files.folder_keys == 2)


async def test_what_a_quota_leaves_no_room_for_is_written_once_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(keywriter, "FAULT_RETRY", 0.001)
    monkeypatch.setattr(writer, "QUOTA_INTERVAL", 0.05)
    files = FilePolicy(key_quota=3000, rotate_size=1000)
    async with local_server(tmp_path, files=files) as server, peer(server) as dht:
        connection, _ = await connect(dht, server)
        number = 0
        while not server.statistics().files.quota_failures:
            await connection.send(message(number))
            number += 1
            await until(
                lambda: (
                    server.statistics().records == number  # noqa: B023 - awaited in the loop
                    or server.statistics().files.quota_failures
                )
            )
        await trio.sleep(0.2)  # some looks at the folder
        assert server.statistics().files.quota_failures == 1, "it is tried again without room"
        (tmp_path / f"{dht.key_pair.public_key.hex()}.log.1").unlink()
        await until(lambda: server.statistics().records == number)
        assert server.statistics().connections == 1


async def test_the_number_of_connections_is_bounded(tmp_path):
    limits = ServerLimits(connections=1)
    async with local_server(tmp_path, limits=limits) as server, peer(server) as dht:
        await connect(dht, server, KeyPair.generate())
        refused = await dht.connect(server.public_key, key_pair=KeyPair.generate())
        assert await is_cut_off(refused)


async def test_idle_clients_are_forgotten_but_their_files_remember(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_SOURCES", 2)
    keys = [KeyPair.generate() for _ in range(5)]
    async with local_server(tmp_path) as server, peer(server) as dht:
        for count, pair in enumerate(keys, 1):
            connection, _ = await connect(dht, server, pair)
            await connection.send(message(0))
            await until(lambda count=count: server.statistics().records == count)
            await connection.aclose()
            await until(lambda: server.statistics().connections == 0)
        assert len(server.intake._sources) == 2
        _, greeting = await connect(dht, server, keys[0])
        assert greeting["lastSeenTraceNumber"] == 0


async def test_connections_of_one_key_share_what_was_seen(tmp_path):
    async with local_server(tmp_path) as server, peer(server) as dht:
        one, _ = await connect(dht, server)
        two, _ = await connect(dht, server)
        await one.send_many([message(0, session="1"), message(1, session="1")])
        await until(lambda: server.statistics().records == 2)
        await two.send_many([message(0, session="2")])
        await until(lambda: server.statistics().records == 3)
        await two.send_many([message(1, session="1"), message(2, session="1")])
        await until(lambda: server.statistics().records == 4)
        assert server.statistics().repeats == 1
        written = lines(tmp_path, dht.key_pair.public_key)
    sessions = [line["note"].split("sessionId=")[1] for line in written if "note" in line]
    assert sessions == ["1", "2"]


# -- how it is reached


async def test_it_announces_itself_and_withdraws_at_its_end(tmp_path):
    async with testnet(4) as network:
        keys = KeyPair.generate()
        settings = {"keys": keys, "bootstrap": network.bootstrap, "host": "127.0.0.1"}
        async with open_dht(bootstrap=network.bootstrap, host="127.0.0.1") as dht:
            async with Server(tmp_path, **settings) as server:
                assert await server.wait_announced() == 3
                assert server.statistics().announced_to == 3
                assert await dht.find_peer(keys.public_key)
            assert await dht.find_peer(keys.public_key) == []


async def test_without_any_network_it_is_its_own_bootstrap_node(tmp_path):
    settings = {"keys": KeyPair.generate(), "bootstrap": ["127.0.0.1:9"], "host": "127.0.0.1"}
    async with Server(tmp_path, **settings) as server:
        async with peer(server) as dht:
            connection, _ = await connect(dht, server)
            await connection.send(message(0))
            await until(lambda: server.statistics().records == 1)
        await until(lambda: server.statistics().bootstrap_failing, timeout=20)
        assert server.statistics().announced_to == 0


async def test_two_servers_of_one_local_network_are_both_reached(tmp_path):
    async with local_server(tmp_path / "a") as first:
        settings = {"keys": KeyPair.generate(), "bootstrap": [first.address], "host": "127.0.0.1"}
        async with Server(tmp_path / "b", **settings) as second, peer(first) as dht:
            await second.wait_announced()
            for server in (first, second):
                connection, _ = await connect(dht, server)
                await connection.aclose()


async def test_the_end_of_the_server_is_an_orderly_end_for_its_clients(tmp_path):
    server = Server(tmp_path, keys=KeyPair.generate(), host="127.0.0.1", local=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        async with peer(server) as dht:
            connection, _ = await connect(dht, server)
            await connection.send(message(0))
            await until(lambda: server.statistics().records == 1)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), pytest.raises(trio.EndOfChannel):
                await connection.receive()
    assert "note" not in lines(tmp_path, dht.key_pair.public_key)[-1]


# -- what stops it from starting


async def test_a_port_in_use_is_an_error_and_not_another_port(tmp_path):
    async with local_server(tmp_path) as server:
        port = server.address[1]
        with pytest.raises(OSError, match="in use"):
            async with local_server(tmp_path / "other", port=port):
                pytest.fail("must not run")


async def test_a_folder_that_a_server_writes_into_is_no_other_servers(tmp_path, monkeypatch):
    monkeypatch.setattr(folderlock, "PATIENCE", 0.0)
    async with local_server(tmp_path):
        with pytest.raises(SinkError, match="another server writes into"):
            async with local_server(tmp_path):
                pytest.fail("must not run")
    async with local_server(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["file", "below a file", "unwritable"])
async def test_a_folder_that_cannot_be_written_is_told_at_the_start(kind, tmp_path, monkeypatch):
    folder = tmp_path / "logs"
    if kind == "file":
        folder.write_text("")
    elif kind == "below a file":
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / "logs"
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SinkError, match="log folder"):
        async with local_server(folder):
            pytest.fail("must not run")


async def test_settings_and_keys_are_checked_before_anything_runs(tmp_path):
    (tmp_path / "keys.dat").write_text("nonsense")
    with pytest.raises(KeyFileError, match="no JSON"):
        Server(tmp_path, keys=tmp_path / "keys.dat")
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Server(tmp_path, keys=tmp_path / "new.dat", bootstrap=["nonsense"])
    assert not (tmp_path / "new.dat").exists()
    with pytest.raises(RuntimeError, match="before it runs"):
        _ = Server(tmp_path, keys=KeyPair.generate()).address


async def test_an_error_in_the_block_comes_out_as_it_was(tmp_path):
    with pytest.raises(KeyError, match="mine"):
        async with local_server(tmp_path):
            raise KeyError("mine")
