"""hyperlog.intake: records of all transports, over real connections."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from hyperlog import deliveries, keywriter
from hyperlog.access import AccessPolicy
from hyperlog.dht import KeyPair, open_dht
from hyperlog.errors import BadRecord, LogQuotaReached, SinkError, TokenError
from hyperlog.intake import Sender
from hyperlog.limits import ServerLimits
from hyperlog.records import instance_source
from hyperlog.server import Server
from hyperlog.sinks import files
from hyperlog.sinks.folder import FilePolicy
from hyperlog.tokens import TokenAuthority, TokenClaims

SESSION = "123456789"
TRACE = {"object": {"id": 1, "className": "Order", "props": None}, "caller": {"filename": "a.py"}}


def message(number, session=SESSION, **fields) -> bytes:
    return json.dumps(
        {"traceSessionId": session, "traceNumber": number, **TRACE, **fields}
    ).encode()


def hello(sessions=None, **fields) -> bytes:
    said = {"version": 2, "sessions": {SESSION: -1} if sessions is None else sessions, **fields}
    return json.dumps({"hello": said}).encode()


def batch(first, *records, session=SESSION) -> bytes:
    head = {"batch": {"session": session, "from": first, "count": len(records)}}
    return b"\n".join((json.dumps(head).encode(), *records))


@asynccontextmanager
async def local_server(folder, **settings):
    settings.setdefault("keys", KeyPair.generate())
    async with Server(folder, host="127.0.0.1", local=True, **settings) as server:
        yield server


@asynccontextmanager
async def peer(server):
    async with open_dht(bootstrap=[server.address], host="127.0.0.1") as dht:
        yield dht


async def connect(dht, server, key_pair=None):
    connection = await dht.connect(server.public_key, key_pair=key_pair)
    await connection.receive()
    return connection


async def until(condition, timeout=10.0):
    with trio.fail_after(timeout):
        while not condition():  # noqa: ASYNC110 - what is looked at is announced by nobody
            await trio.sleep(0.005)


async def said(connection) -> dict:
    with trio.fail_after(10):
        return json.loads(await connection.receive())


async def refusal(connection) -> str:
    """The code of the refusal that ends a connection; what comes before it is passed over."""
    with trio.fail_after(10):
        while True:
            told = json.loads(await connection.receive())
            if "refused" in told:
                break
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
            await connection.receive()
    return told["refused"]["code"]


def lines(folder, source) -> list[dict]:
    path = folder / f"{source.hex()}.log"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def records(folder, source) -> list[dict]:
    return [line for line in lines(folder, source) if "note" not in line]


def logs(folder) -> list[str]:
    """Wherever they are."""
    return sorted(path.name for path in folder.rglob("*.log*"))


@asynccontextmanager
async def issuing(server):
    """What `hyperlog token` does beside the server."""
    authority = TokenAuthority(server.config.data)
    try:
        yield authority
    finally:
        authority.close()


# -- applications, instances, tokens


async def test_lines_tell_the_application_and_instance_of_their_connection(tmp_path):
    keys = KeyPair.generate()
    async with local_server(tmp_path) as server, peer(server) as dht:
        # Two programs on one machine share a key, and each has its own names.
        for session, application in (("1", "cerco"), ("2", "midas")):
            connection = await connect(dht, server, keys)
            names = {"application": application, "instance": "../../x"}
            await connection.send(hello({session: -1}, **names))
            await said(connection)
            await connection.send(batch(0, message(0, session), b"{", session=session))
            assert (await said(connection))["ack"]["sessions"] == {session: 1}
        await (await connect(dht, server, keys)).send(message(0, "3"))
        await until(lambda: server.statistics().records == 3)
        found = server.connections.applications()
        assert {name: entry["running_instances"] for name, entry in found.items()} == {
            "cerco": 1,
            "midas": 1,
            "default": 1,
        }
    for line in lines(tmp_path, keys.public_key):
        session = line.get("traceSessionId") or line.get("gap", {}).get("session")
        told = {"1": ("cerco", "../../x"), "2": ("midas", "../../x"), "3": (None, None)}
        if session:
            assert (line.get("app"), line.get("instance")) == told[session]
    assert logs(tmp_path) == [f"{keys.public_key.hex()}.log"]


async def test_a_log_of_earlier_versions_goes_on_with_tags(tmp_path):
    keys = KeyPair.generate()
    async with local_server(tmp_path) as server, peer(server) as dht:
        await (await connect(dht, server, keys)).send_many([message(0), message(1)])
        await until(lambda: server.statistics().records == 2)
    async with local_server(tmp_path) as server, peer(server) as dht:
        connection = await connect(dht, server, keys)
        await connection.send(hello({SESSION: -1}, application="cerco"))
        assert (await said(connection))["welcome"]["sessions"] == {SESSION: 1}
        await connection.send(batch(1, message(1), message(2)))
        assert (await said(connection))["ack"]["sessions"] == {SESSION: 2}
    written = records(tmp_path, keys.public_key)
    assert [line["traceNumber"] for line in written] == [0, 1, 2]
    assert [line.get("app") for line in written] == [None, None, "cerco"]
    assert written[2]["instance"] == keys.public_key.hex()[:8]


async def test_who_shows_a_good_token_is_let_in_and_named_by_it(tmp_path):
    async with local_server(tmp_path) as server, peer(server) as dht, issuing(server) as authority:
        key = dht.key_pair.public_key
        token, _ = authority.issue("cerco", key=key, now=time.time())
        connection = await connect(dht, server)
        await connection.send(hello(token=token, instance="a2b5"))
        assert "welcome" in await said(connection)
        await connection.send(batch(0, message(0)))
        assert "ack" in await said(connection)
    (line,) = records(tmp_path, key)
    assert (line["app"], line["instance"]) == ("cerco", "a2b5")
    assert token not in (tmp_path / f"{key.hex()}.log").read_text()


@pytest.mark.parametrize(
    ("issued", "told", "code"),
    [
        ({"lifetime": 1.0, "now": time.time() - 3600}, {}, "TOKEN_EXPIRED"),
        ({"key": bytes(32)}, {}, "TOKEN_MISMATCH"),
        ({}, {"application": "midas"}, "TOKEN_MISMATCH"),
        ({"instances": "desk-*"}, {"instance": "a2b5"}, "TOKEN_MISMATCH"),
        ({"scopes": ["read"]}, {}, "TOKEN_MISMATCH"),
        ({}, {"token": "a.b.c"}, "TOKEN_INVALID"),
        ({}, {"token": ""}, "TOKEN_INVALID"),
        ({}, {"token": "x" * 9000}, "TOKEN_INVALID"),
        ({}, {"token": 7}, "HELLO"),
        ({}, {"version": 3}, "VERSION"),
        ({}, {"instance": "x" * 65536}, "HELLO"),
        ({}, {"application": "a\0b"}, "HELLO"),
    ],
)
async def test_who_shows_a_bad_token_is_told_why_and_nothing_is_written(
    tmp_path, issued, told, code, caplog
):
    async with (
        local_server(tmp_path / "logs") as server,
        peer(server) as dht,
        issuing(server) as authority,
    ):
        token, _ = authority.issue("cerco", **{"now": time.time(), **issued})
        for _ in range(2):
            connection = await connect(dht, server)
            with caplog.at_level(logging.DEBUG):
                await connection.send_many(
                    [
                        hello(**{"token": token, "application": "cerco", **told}),
                        batch(0, message(0)),
                    ]
                )
                assert await refusal(connection) == code
        await until(lambda: not server.statistics().connections)
        assert server.statistics().refusals == {code: 2}
        assert server.connections.applications() == {}
    assert logs(tmp_path) == []
    assert token not in caplog.text
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1


async def test_a_token_that_is_revoked_ends_its_open_connections_within_a_second(tmp_path):
    async with local_server(tmp_path) as server, peer(server) as dht, issuing(server) as authority:
        token, claims = authority.issue("cerco", now=time.time())
        kept, _ = authority.issue("cerco", now=time.time())
        connections = []
        for number, shown in enumerate((token, token, kept)):
            connection = await connect(dht, server, KeyPair.generate())
            await connection.send(hello(token=shown, instance=str(number)))
            await said(connection)
            await connection.send(batch(0, message(0)))
            connections.append(connection)
        await until(lambda: server.statistics().records == 3)
        authority.revoke(claims.jti, time.time())
        began_at = trio.current_time()
        for connection in connections[:2]:
            assert await refusal(connection) == "TOKEN_REVOKED"
        # A second is promised; a loaded machine may take a while to run us.
        assert trio.current_time() - began_at < 1.5
        await until(lambda: server.statistics().connections == 1)
        assert list(server.connections.applications()["cerco"]["instances"]) == ["2"]
        await connections[2].send(batch(1, message(1)))
        await until(lambda: server.statistics().records == 4)
        assert server.statistics().refusals == {"TOKEN_REVOKED": 2}


async def test_a_token_that_expires_ends_its_open_connection(tmp_path, monkeypatch):
    async with local_server(tmp_path) as server, peer(server) as dht, issuing(server) as authority:
        token, _ = authority.issue("cerco", lifetime=600.0, now=time.time())
        connection = await connect(dht, server)
        await connection.send(hello(token=token))
        await said(connection)
        later = time.time() + 3600
        monkeypatch.setattr("hyperlog.senders.time.time", lambda: later)
        assert await refusal(connection) == "TOKEN_EXPIRED"


async def test_a_server_that_wants_tokens_refuses_all_others_and_writes_nothing(tmp_path):
    async with (
        local_server(tmp_path / "logs", require_token=True) as server,
        peer(server) as dht,
    ):
        connection = await connect(dht, server)
        await connection.send(hello(application="cerco"))
        assert await refusal(connection) == "TOKEN_REQUIRED"
        javascript = await connect(dht, server)
        await javascript.send_many([message(0), message(1)])
        with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)), trio.fail_after(10):
            await javascript.receive()  # it would not understand a reason
        broken = await connect(dht, server)
        await broken.send(b"")
        broken.abort()
        await until(lambda: not server.statistics().connections)
        assert server.statistics().refusals == {"TOKEN_REQUIRED": 2}
        sender = requester()
        sender.claims = None
        with pytest.raises(TokenError):
            await server.intake.take(sender, [message(0)])
        assert server.tokens is not None
    assert logs(tmp_path) == []


async def test_the_tokens_of_a_server_survive_its_restart(tmp_path):
    keys = KeyPair.generate()
    async with local_server(tmp_path, keys=keys, require_token=True) as server:
        token, _ = server.tokens.issue("cerco", now=time.time())
    async with local_server(tmp_path, keys=keys, require_token=True) as server, peer(server) as dht:
        connection = await connect(dht, server)
        await connection.send(hello(token=token))
        assert "welcome" in await said(connection)


# -- who is there


async def test_who_is_connected_is_known_with_path_and_delay(tmp_path):
    async with local_server(tmp_path) as server, peer(server) as dht:
        key = dht.key_pair.public_key
        connection = await connect(dht, server)
        await connection.send(hello(application="cerco", instance="a2b5"))
        await said(connection)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - 5))
        record = b'{"traceTimestamp":"%b",%b' % (stamp.encode(), message(1)[1:])
        await connection.send_many([batch(0, b"{"), batch(1, record)])
        await said(connection)

        def told() -> dict:
            return server.connections.applications()["cerco"]["instances"]["a2b5"]

        await until(lambda: told()["round_trip_time"] is not None)
        instance = told()
        assert instance["key"] == key.hex()
        assert instance["transport"] == "hyperdht"
        assert instance["path"] in ("direct", "lan")
        assert instance["socket"].startswith("127.0.0.1:")
        assert (instance["records"], instance["dropped"]) == (1, 1)
        assert 4 < instance["lag"] < 30
        again = await connect(dht, server)
        await again.send(hello(application="cerco", instance="a2b5"))
        await until(lambda: told()["connections"] == 2)
        assert server.connections.applications()["cerco"]["running_instances"] == 1
        connection.abort()
        await until(lambda: told()["connections"] == 1)
        assert told()["last_error"] == "connection reset by peer"
        await again.aclose()
        await until(lambda: server.connections.applications() == {})


async def test_a_javascript_client_counts_as_there_before_its_first_trace(tmp_path):
    async with local_server(tmp_path) as server, peer(server) as dht:
        connection = await connect(dht, server)
        await connection.send(b"")  # a keep-alive
        await until(lambda: "default" in server.connections.applications())
        key = dht.key_pair.public_key.hex()
        assert list(server.connections.applications()["default"]["instances"]) == [key[:8]]


# -- links without a key


class MemoryLink:
    """A link in memory, such as a WebSocket is one over a network."""

    path = "direct"
    remote_address = None
    authenticated = True

    def __init__(self, send, receive) -> None:
        self._send = send
        self._receive = receive

    @classmethod
    def pair(cls):
        to_server, from_client = trio.open_memory_channel(100)
        to_client, from_server = trio.open_memory_channel(100)
        return cls(to_client, from_client), cls(to_server, from_server)

    async def send_many(self, values) -> None:
        for value in values:
            await self._send.send(value)

    async def receive_many(self) -> list[bytes]:
        return [await self._receive.receive()]

    async def receive(self) -> bytes:
        return (await self.receive_many())[0]

    async def aclose(self) -> None:
        self._send.close()
        self._receive.close()

    def abort(self) -> None:
        self._send.close()
        self._receive.close()


def claims_of(application="cerco", **fields) -> TokenClaims:
    """Of a token that somebody else has verified."""
    claims = TokenClaims("00", application, "*", frozenset(["ingest"]), None, 0.0, None, "00")
    return replace(claims, **fields)


def requester(application="cerco", instance="a2b5", claims=None, transport="http") -> Sender:
    return Sender(
        instance_source(application or "default", instance or "x"),
        None,
        application,
        instance,
        transport,
        "192.0.2.7:5000",
        claims_of(application or "cerco") if claims is None else claims,
    )


@asynccontextmanager
async def linked(server, sender):
    here, there = MemoryLink.pair()
    async with trio.open_nursery() as nursery:
        guest = server.intake.enter(here, sender)
        assert guest is not None
        nursery.start_soon(server.intake.converse, here, sender, guest)
        yield there
        await there.aclose()


async def test_a_sender_without_a_key_is_known_by_the_names_in_its_hello(tmp_path):
    source = instance_source("cerco", "a2b5")
    (tmp_path / "list").write_text(f"{'0' * 64}\n")  # it decides about those who have keys
    async with local_server(tmp_path, access=AccessPolicy(tmp_path / "list")) as server:
        for start in (0, 2):
            async with linked(server, requester(None, None, transport="websocket")) as link:
                greeting = await said(link)
                assert greeting["lastSeenTraceSessionId"] is None
                assert greeting["hyperlog"]["version"] == 2
                await link.send_many([hello(application="cerco", instance="a2b5")])
                assert await said(link) == {"welcome": {"sessions": {SESSION: start - 1}}}
                await link.send_many([batch(start, message(start), message(start + 1))])
                assert await said(link) == {"ack": {"sessions": {SESSION: start + 1}}}
                found = server.connections.applications()["cerco"]["instances"]["a2b5"]
                assert (found["transport"], found["key"]) == ("websocket", None)
    written = records(tmp_path, source)
    assert [line["traceNumber"] for line in written] == [0, 1, 2, 3]
    assert {(line["app"], line["instance"]) for line in written} == {("cerco", "a2b5")}
    assert logs(tmp_path) == [f"{source.hex()}.log"]


async def test_a_sender_without_a_key_that_tells_no_names_stays_what_it_came_as(tmp_path):
    async with local_server(tmp_path) as server, linked(server, requester()) as link:
        await said(link)
        await link.send_many([message(0)])  # the JavaScript rule
        await until(lambda: server.statistics().records == 1)
    assert [line["app"] for line in records(tmp_path, instance_source("cerco", "a2b5"))] == [
        "cerco"
    ]


async def test_a_sender_without_a_key_is_held_to_its_token(tmp_path):
    async with local_server(tmp_path / "logs", http="127.0.0.1:0") as server:
        token, claims = server.tokens.issue("cerco", instances="a*", now=time.time())
        for names, code in (
            ({"application": "midas", "instance": "a2"}, "TOKEN_MISMATCH"),
            ({"instance": "b"}, "TOKEN_MISMATCH"),
            ({"instance": "a\0"}, "HELLO"),
        ):
            sender = requester("cerco", None, claims)
            async with linked(server, sender) as link:
                await said(link)
                await link.send_many([hello(**names)])
                assert await refusal(link) == code
        stranger = requester(None, None)
        stranger.claims = None
        async with linked(server, stranger) as link:
            await said(link)
            await link.send_many([hello()])
            assert await refusal(link) == "TOKEN_REQUIRED"
        async with linked(server, stranger) as link:
            await said(link)
            await link.send_many([hello(token=token, instance="a1")])
            assert "welcome" in await said(link)
            server.tokens.revoke(claims.jti, time.time())
            assert await refusal(link) == "TOKEN_REVOKED"
        assert server.statistics().connections == 0
    assert logs(tmp_path) == []


async def test_who_leaves_before_its_hello_leaves_nothing_behind(tmp_path):
    async with local_server(tmp_path) as server:
        async with linked(server, requester()) as link:
            await said(link)
        await until(lambda: not server.statistics().connections)
        assert server.connections.applications() == {}
    assert logs(tmp_path) == []


# -- requests


async def test_records_of_a_request_are_in_the_file_when_it_is_answered(tmp_path):
    source = instance_source("cerco", "a2b5")
    async with local_server(tmp_path) as server:
        posted = [json.dumps({**TRACE, "id": str(number)}).encode() for number in range(3000)]
        posted[7] = b"{"
        reasons = await server.intake.take(requester(), posted)
        written = records(tmp_path, source)
        assert [reason is None for reason in reasons] == [number != 7 for number in range(3000)]
        assert [line["id"] for line in written] == [str(n) for n in range(3000) if n != 7]
        assert [line["traceNumber"] for line in written] == list(range(2999))
        statistics = server.statistics()
        assert (statistics.requests, statistics.records, statistics.bad_messages) == (1, 2999, 1)
        told = server.connections.applications()["cerco"]["instances"]["a2b5"]
        assert (told["records"], told["dropped"], told["transport"]) == (2999, 1, "http")


async def test_a_request_that_is_repeated_is_written_once(tmp_path):
    source = instance_source("cerco", "a2b5")
    numbered = [message(number) for number in range(100)]
    for _ in range(2):  # also over a restart
        async with local_server(tmp_path) as server:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(server.intake.take, requester(), numbered)
            assert await server.intake.take(requester(), numbered) == [None] * 100
    assert [line["traceNumber"] for line in records(tmp_path, source)] == list(range(100))


async def test_requests_of_one_instance_and_of_many_do_not_disturb_each_other(tmp_path):
    async with local_server(tmp_path) as server:

        async def post(instance: str) -> None:
            for _ in range(10):
                given = [json.dumps(TRACE).encode()] * 20
                assert await server.intake.take(requester(instance=instance), given) == [None] * 20

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(post, f"i{number % 4}")
    for number in range(4):
        written = records(tmp_path, instance_source("cerco", f"i{number}"))
        assert [line["traceNumber"] for line in written] == list(range(400))
        assert len({line["traceSessionId"] for line in written}) == 1


async def test_names_that_cannot_be_used_are_refused_with_field_and_limit(tmp_path):
    async with local_server(tmp_path / "logs") as server:
        for application, instance, field in (
            ("x" * 65, "1", "application"),
            ("cerco", "a\0b", "instance"),
            ("cerco", "x" * 65536, "instance"),
        ):
            with pytest.raises(BadRecord, match=f"{field} has 1 to 64 printable characters"):
                await server.intake.take(requester(application, instance), [message(0)])
        await server.intake.take(requester("../../etc", "../../../passwd"), [message(0)])
    source = instance_source("../../etc", "../../../passwd")
    assert logs(tmp_path) == [f"{source.hex()}.log"]


async def test_a_quota_is_told_at_once_and_after_there_is_room_all_goes_on(tmp_path):
    source = instance_source("cerco", "a2b5")
    policy = FilePolicy(key_quota=4000, rotate_size=1000)
    async with local_server(tmp_path, files=policy) as server:
        began_at = trio.current_time()
        numbers = iter(range(100))

        async def post_on() -> None:
            for number in numbers:
                await server.intake.take(requester(), [message(number)])

        with pytest.raises(LogQuotaReached, match="no room") as caught:
            await post_on()
        assert str(tmp_path) not in str(caught.value)
        assert trio.current_time() - began_at < 10
        held = len(records(tmp_path, source))
        (await server.intake.take(requester(instance="other"), [message(0)])).count(None)
        for path in tmp_path.glob("*.log.*"):
            path.unlink()
        await until(lambda: server._writer.sink.table.size_of(source) < 4000, 40)
        assert await server.intake.take(requester(), [message(held + 200)]) == [None]


async def test_a_disk_that_fails_is_told_and_the_repeat_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(keywriter, "FAULT_PATIENCE", 0.3)
    monkeypatch.setattr(keywriter, "FAULT_RETRY", 0.05)
    source = instance_source("cerco", "a2b5")
    write, failing = os.write, threading.Event()

    def fail(descriptor: int, data: bytes) -> int:
        if failing.is_set() and b'"traceNumber"' in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(files.os, "write", fail)
    async with local_server(tmp_path) as server:
        await server.intake.take(requester(), [message(0)])
        failing.set()
        with pytest.raises(SinkError, match="send it again later"):
            await server.intake.take(requester(), [message(1), message(2)])
        with pytest.raises(SinkError):
            await server.intake.take(requester(), [json.dumps(TRACE).encode()])
        failing.clear()
        assert await server.intake.take(requester(), [message(1), message(2)]) == [None, None]
        assert await server.intake.take(requester(), [json.dumps(TRACE).encode()]) == [None]
        assert server.statistics().write_failures > 0
    written = records(tmp_path, source)
    assert [line["traceNumber"] for line in written if line["traceSessionId"] == SESSION] == [
        0,
        1,
        2,
    ]
    assert len(written) == 4


async def test_a_disk_that_stalls_holds_requests_back_and_then_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(deliveries, "ROOM_PATIENCE", 0.2)
    monkeypatch.setattr(keywriter, "MAX_QUEUED", 100_000)
    write, go = os.write, threading.Event()
    go.set()

    def stall(descriptor: int, data: bytes) -> int:
        assert threading.current_thread() is threading.main_thread() or go.wait(30)
        return write(descriptor, data)

    monkeypatch.setattr(files.os, "write", stall)
    async with local_server(tmp_path) as server:
        await server.intake.take(requester(), [message(0)])
        go.clear()
        many = [message(number) for number in range(1, 5000)]
        try:
            with pytest.raises(SinkError, match="send it again later"), trio.fail_after(20):
                await server.intake.take(requester(), many)
        finally:
            go.set()
        assert await server.intake.take(requester(), many) == [None] * 4999
    numbers = [line["traceNumber"] for line in records(tmp_path, instance_source("cerco", "a2b5"))]
    assert numbers == list(range(5000))


async def test_who_does_not_wait_for_the_answer_loses_nothing_that_was_taken(tmp_path):
    async with local_server(tmp_path) as server:
        with trio.move_on_after(0.02):
            await server.intake.take(requester(), [message(number) for number in range(20_000)])
        await server.intake.take(requester(), [message(20_000)])
    numbers = [line["traceNumber"] for line in records(tmp_path, instance_source("cerco", "a2b5"))]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 20_000


async def test_requests_are_slowed_down_above_the_rate_of_their_instance(tmp_path):
    limits = ServerLimits(records_per_key=100.0)
    async with local_server(tmp_path, limits=limits) as server:
        began_at = trio.current_time()
        await server.intake.take(requester(), [message(number) for number in range(250)])
        assert trio.current_time() - began_at >= 0.4  # 200 were saved up
        assert server.statistics().gate.limits.rates == 1
