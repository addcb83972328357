"""hyperlog.websocket: a channel over a WebSocket that nobody's bytes or silence can harm."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import time
from functools import partial
from shutil import which

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionClosed, serve_websocket
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Ping, Request, TextMessage

from hyperlog import websocket
from hyperlog.control import parse_greeting_untrusted
from hyperlog.errors import BadGreeting, HyperlogError, ServerRefused
from hyperlog.webaddress import WebAddress, parse_web_address
from hyperlog.websocket import WebRoute, WebSocketChannel, connect_websocket
from tests.tcp_proxy import tcp_proxy
from tests.web.site import site, until

LOCAL = WebAddress("127.0.0.1", 80, False)


@contextlib.asynccontextmanager
async def connected(address, token=None, tls=None):
    channel = await connect_websocket(address, token=token, tls=tls)
    try:
        yield channel
    finally:
        await channel.aclose()


@contextlib.asynccontextmanager
async def websocket_server(handler):
    """A server of another make; its address."""

    async def handle(request):
        connection = await request.accept()
        try:
            await handler(connection)
        except ConnectionClosed:
            pass
        finally:
            # trio-websocket leaves it open in some cases.
            await trio.aclose_forcefully(connection._stream)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, handle, "127.0.0.1", 0, None))
        yield WebAddress("127.0.0.1", server.port, False)
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def tcp_server(handler):
    """A server of anything; its address."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield WebAddress("127.0.0.1", listeners[0].socket.getsockname()[1], False)
        nursery.cancel_scope.cancel()


async def sleep(_stream):
    await trio.sleep_forever()


def answering(answer: bytes):
    async def handler(stream):
        await stream.receive_some()
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(answer)
            await stream.receive_some()

    return handler


# -- a hyperlog server


async def test_the_first_message_of_a_server_is_its_greeting(tmp_path):
    async with site(tmp_path) as there, connected(parse_web_address(there.url)) as channel:
        greeting = parse_greeting_untrusted(await channel.receive())
        assert greeting.hyperlog.version == 2


@pytest.mark.parametrize(
    ("status", "code"), [("expired", "TOKEN_EXPIRED"), ("revoked", "TOKEN_REVOKED")]
)
async def test_a_token_that_is_no_use_is_told_with_its_reason(tmp_path, status, code):
    async with site(tmp_path) as there:
        address = parse_web_address(there.url)
        if status == "expired":
            token = there.token(now=1e9, lifetime=60.0)
        else:
            token, claims = there.server.tokens.issue("cerco", scopes=("ingest",), now=1.7e9)
            there.server.tokens.revoke(claims.jti, time.time())
        with pytest.raises(ServerRefused) as refused:
            await connect_websocket(address, token=token, tls=None)
        assert refused.value.refusal == code
        with pytest.raises(ServerRefused) as refused:
            await connect_websocket(address, token="nonsense", tls=None)
        assert refused.value.refusal == "TOKEN_INVALID"
        assert "nonsense" not in str(refused.value)


# -- what else may answer


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", BadGreeting, "HTTP status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", BadGreeting, "HTTP status 200"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /x\r\n\r\n", BadGreeting, "HTTP status 301"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", ConnectionError, "cannot take records now"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", ServerRefused, "HTTP status 403 (FORBIDDEN)"),
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n", ServerRefused, "(LIMIT)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", BadGreeting, "does not answer as a hyperlog server"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n", BadGreeting, "does not answer"),
        (b"", ConnectionError, "without an answer"),
    ],
)
async def test_what_is_no_server_is_told(answer, error, text):
    async def handler(stream):
        await stream.receive_some()
        await stream.send_all(answer)

    async with tcp_server(handler) as address:
        with pytest.raises(error) as failed:
            await connect_websocket(address, token="t", tls=None)
        assert text in str(failed.value)


async def test_a_refusal_tells_its_reason_on_one_line_without_control_characters():
    problem = {"detail": "no\x1b[31m\nway" + "y" * 9999, "code": "TOKEN_REVOKED"}
    body = json.dumps(problem).encode()
    answer = b"HTTP/1.1 401 No\r\nContent-Type: application/problem+json\r\n"
    answer += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    async with tcp_server(answering(answer)) as address:
        with pytest.raises(ServerRefused) as refused:
            await connect_websocket(address, token="t", tls=None)
    assert refused.value.refusal == "TOKEN_REVOKED"
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


async def test_an_endless_refusal_is_not_read_to_its_end():
    sent = 0

    async def handler(stream):
        nonlocal sent
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                sent += 4096

    async with tcp_server(handler) as address:
        with pytest.raises(ServerRefused):
            await connect_websocket(address, token="t", tls=None)
        await until(lambda: sent)


async def test_a_server_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(websocket, "CONNECT_TIMEOUT", 0.1)
    async with tcp_server(sleep) as address:
        with pytest.raises(trio.TooSlowError):
            await connect_websocket(address, token=None, tls=None)
        with pytest.raises(ConnectionError) as route_error:
            await WebRoute(address, token=None, tls=None).connect()
    assert "did not answer within 0.1 s" in str(route_error.value)


async def test_a_token_goes_only_into_its_header():
    seen = b""

    async def handler(stream):
        nonlocal seen
        seen = await stream.receive_some()

    async with tcp_server(handler) as address:
        with pytest.raises(ConnectionError):
            await connect_websocket(address, token="s3cret", tls=None)
    lines = seen.split(b"\r\n")
    assert lines[0] == b"GET /api/v1/ingest HTTP/1.1"
    assert [line for line in lines if b"s3cret" in line] == [b"authorization: Bearer s3cret"]
    assert b"Host: 127.0.0.1:%d" % address.port in lines


# -- TLS


@pytest.fixture
def certificate(tmp_path):
    """Files of a certificate for this machine, and of its key."""
    if which("openssl") is None:
        pytest.skip("the program openssl is not installed")
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subject = ["-subj", "/CN=elsewhere", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*command.split(), *subject, *files], check=True, capture_output=True)
    return paths


async def test_tls_is_verified_and_carries_records(tmp_path, certificate):
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(*certificate)
    trusting = ssl.create_default_context(cafile=certificate[0])
    async with site(tmp_path) as there, tcp_proxy(there.address, server_tls) as proxy:
        address = parse_web_address(proxy.url)
        assert address.is_secure
        async with connected(address, there.token(), trusting) as channel:
            assert b"hyperlog" in await channel.receive()
        with pytest.raises(ConnectionError, match=r"cannot prove who it is: .*ca_file"):
            await connect_websocket(address, token=None, tls=ssl.create_default_context())
        other = WebAddress("localhost", address.port, True)
        with pytest.raises(ConnectionError, match=r"cannot prove who it is: .*[Hh]ostname"):
            await connect_websocket(other, token=None, tls=trusting)
        plain = WebAddress("127.0.0.1", there.address[1], True)
        with pytest.raises(ConnectionError, match="no TLS connection"):
            await connect_websocket(plain, token=None, tls=trusting)


# -- messages


async def test_messages_of_all_sizes_pass_both_ways_whole_and_in_order():
    async def echo(connection):
        while True:
            await connection.send_message(await connection.get_message())

    messages = [b"x" * size for size in (1, 125, 126, 65535, 65536, 300_000)]
    async with websocket_server(echo) as address, connected(address) as channel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.send_many, messages)
            assert [await channel.receive() for _ in messages] == messages
        await channel.send("größe".encode())
        assert await channel.receive() == "größe".encode()


async def test_text_and_fragments_and_pings_between_them_are_one_message():
    async def fragments(stream):
        protocol = WSConnection(ConnectionType.SERVER)
        protocol.receive_data(await stream.receive_some())
        assert isinstance(next(iter(protocol.events())), Request)
        await stream.send_all(protocol.send(AcceptConnection()))
        for byte in (
            protocol.send(TextMessage("gr", message_finished=False))
            + protocol.send(Ping(b"mid"))
            + protocol.send(TextMessage("öße", message_finished=True))
        ):
            await stream.send_all(bytes([byte]))
        protocol.receive_data(await stream.receive_some())
        pongs.extend(protocol.events())
        await stream.receive_some()

    pongs = []
    async with tcp_server(fragments) as address, connected(address) as channel:
        assert await channel.receive() == "größe".encode()
        await until(lambda: pongs)
    assert pongs[0].payload == b"mid"


async def test_an_end_in_order_is_told_from_a_fault():
    async def close(connection):
        code = int(await connection.get_message())
        await connection.aclose(code, "because\nof that")

    async with websocket_server(close) as address:
        for code in (b"1000", b"1001"):
            async with connected(address) as channel:
                await channel.send(code)
                with pytest.raises(trio.EndOfChannel):
                    await channel.receive()
                with pytest.raises(trio.BrokenResourceError):
                    await channel.send(b"late")
        async with connected(address) as channel:
            await channel.send(b"1011")
            with pytest.raises(trio.BrokenResourceError, match="1011 becauseof that"):
                await channel.receive()


async def test_a_message_that_is_too_large_ends_the_connection():
    async def send(connection):
        await connection.send_message("x" * (websocket.MAX_MESSAGE + 1))
        await connection.get_message()

    async with websocket_server(send) as address, connected(address) as channel:
        with pytest.raises(trio.BrokenResourceError, match="more than 1048576 bytes"):
            await channel.receive()


async def test_a_channel_that_was_closed_says_so():
    async with websocket_server(lambda connection: connection.get_message()) as address:
        channel = await connect_websocket(address, token=None, tls=None)
        await channel.aclose()
        await channel.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await channel.send(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await channel.receive()


async def test_after_a_message_that_was_cut_off_nothing_is_sent():
    async with tcp_proxy_of_silence() as (address, _proxy):
        channel = await connect_websocket(address, token=None, tls=None)
        with trio.move_on_after(0.3) as scope:
            while True:
                await channel.send(b"x" * 1_000_000)
        assert scope.cancelled_caught
        with pytest.raises(trio.BrokenResourceError, match="cut off"):
            await channel.send(b"y")
        began_at = trio.current_time()
        await channel.aclose()
        assert trio.current_time() - began_at < websocket.CLOSE_TIMEOUT + 0.5


async def test_closing_does_not_wait_for_a_server_that_is_silent(monkeypatch):
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.2)
    async with tcp_proxy_of_silence() as (address, proxy):
        channel = await connect_websocket(address, token=None, tls=None)
        proxy.freeze()
        began_at = trio.current_time()
        await channel.aclose()
        assert trio.current_time() - began_at < 1.0


@contextlib.asynccontextmanager
async def tcp_proxy_of_silence():
    """A server that reads nothing, behind a proxy."""

    async def ignore(connection):
        await trio.sleep_forever()

    async with (
        websocket_server(ignore) as address,
        tcp_proxy((address.host, address.port)) as proxy,
    ):
        yield parse_web_address(proxy.url), proxy


# -- silence


@pytest.fixture
def hasty(monkeypatch):
    """All the time limits of a watch, a tenth of what they are."""
    for name in ("SILENCE_BEFORE_PING", "SILENCE_TIMEOUT", "LOOK_INTERVAL"):
        monkeypatch.setattr(websocket, name, getattr(websocket, name) / 10)


async def drain(channel):
    with contextlib.suppress(trio.BrokenResourceError, trio.EndOfChannel):
        while True:
            await channel.receive()


async def test_a_server_that_is_gone_is_noticed(hasty):
    async def answer(connection):
        while True:
            await connection.get_message()

    async with (
        websocket_server(answer) as server,
        tcp_proxy((server.host, server.port)) as proxy,
        connected(parse_web_address(proxy.url)) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(drain, channel)
        with trio.move_on_after(1.2):  # pings are answered
            await channel.watch()
            raise AssertionError("a server that answers pings counts as gone")
        proxy.freeze()
        began_at = trio.current_time()
        with trio.fail_after(5):
            await channel.watch()
        assert 0.4 < trio.current_time() - began_at < 2.0
        nursery.cancel_scope.cancel()


async def test_a_server_that_was_busy_sending_to_is_noticed_as_well(hasty):
    async with tcp_proxy_of_silence() as (address, _), trio.open_nursery() as nursery:
        channel = await connect_websocket(address, token=None, tls=None)
        nursery.start_soon(channel.send_many, [b"x" * 1_000_000] * 100)
        nursery.start_soon(drain, channel)
        with trio.fail_after(10):
            await channel.watch()
        nursery.cancel_scope.cancel()
    await channel.aclose()


async def test_a_server_that_reads_slowly_is_not_gone(hasty):
    """It answers no pings, since they wait behind the data; that the data moves is the sign."""
    read = 0

    async def slow(stream):
        nonlocal read
        protocol = WSConnection(ConnectionType.SERVER)
        protocol.receive_data(await stream.receive_some())
        list(protocol.events())
        await stream.send_all(protocol.send(AcceptConnection()))
        while read < 6_000_000:
            read += len(await stream.receive_some(100_000))
            await trio.sleep(0.03)

    async with (
        tcp_server(slow) as address,
        connected(address) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(drain, channel)
        nursery.start_soon(channel.send_many, [b"x" * 50_000] * 400)
        with trio.move_on_after(1.5):
            await channel.watch()
            raise AssertionError("a server that reads slowly counts as gone")
        nursery.cancel_scope.cancel()
    assert read > 500_000


# -- the way there


async def test_a_server_that_is_back_is_found_before_the_pause_is_over(monkeypatch):
    monkeypatch.setattr(websocket, "PROBE_INTERVAL", 0.05)
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    route = WebRoute(WebAddress("127.0.0.1", port, False), token=None, tls=None)
    with pytest.raises(ConnectionError, match=r"cannot be reached: .*refused"):
        await route.connect()
    async with trio.open_nursery() as nursery:
        began_at = trio.current_time()
        with trio.move_on_after(0.3):
            await route.wait_for_sign(60)
        assert trio.current_time() - began_at > 0.25  # nobody there yet
        await nursery.start(partial(trio.serve_tcp, sleep, port, host="127.0.0.1"))
        with trio.fail_after(5):
            await route.wait_for_sign(60)
        nursery.cancel_scope.cancel()


async def test_a_server_that_refuses_is_not_asked_before_the_pause_is_over(monkeypatch):
    monkeypatch.setattr(websocket, "PROBE_INTERVAL", 0.01)
    asked = 0

    async def refuse(stream):
        nonlocal asked
        asked += 1
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 503 No\r\n\r\n")

    async with tcp_server(refuse) as address:
        route = WebRoute(address, token=None, tls=None)
        with pytest.raises(ConnectionError):
            await route.connect()
        began_at = trio.current_time()
        await route.wait_for_sign(0.3)
        assert trio.current_time() - began_at >= 0.3
    assert asked == 1


async def test_a_name_that_does_not_exist_is_told():
    route = WebRoute(WebAddress("host.invalid", 80, False), token=None, tls=None)
    with pytest.raises(ConnectionError, match=r"http://host\.invalid cannot be reached"):
        await route.connect()


# -- hostile bytes

FRAMES = st.sampled_from(
    [
        b"\x81\x02hi",
        b"\x82\x00",
        b"\x89\x01p",
        b"\x8a\x00",
        b"\x88\x02\x03\xe8",
        b"\x01\x01a",
        b"\x80\x00",
    ]
)


async def receive_all(data: bytes, step: int) -> None:
    """Only what a receiver is told to expect comes out of the channel."""
    near, far = memory_stream_pair()
    protocol = WSConnection(ConnectionType.CLIENT)
    protocol.send(Request(host="a", target="/"))
    server = WSConnection(ConnectionType.SERVER)
    client = WSConnection(ConnectionType.CLIENT)
    server.receive_data(client.send(Request(host="a", target="/")))
    list(server.events())
    client.receive_data(server.send(AcceptConnection()))
    list(client.events())
    channel = WebSocketChannel(near, None, client)
    async with trio.open_nursery() as nursery:

        async def feed():
            for start in range(0, len(data), step):
                await far.send_all(data[start : start + step])
            await far.send_eof()

        nursery.start_soon(feed)
        with contextlib.suppress(trio.BrokenResourceError, trio.EndOfChannel):
            while True:
                assert isinstance(await channel.receive(), bytes)
        nursery.cancel_scope.cancel()


@given(st.binary(max_size=300) | st.lists(FRAMES).map(b"".join), st.integers(1, 40))
def test_any_bytes_are_messages_or_end_the_connection(data, step):
    trio.run(receive_all, data, step)


@given(
    st.binary(max_size=200)
    | st.builds(
        b"HTTP/1.1 %d X\r\n%b\r\n\r\n%b".__mod__,
        st.tuples(
            st.integers(100, 999),
            st.sampled_from(
                [b"A: b", b"Content-Length: 3", b"Content-Type: application/problem+json"]
            ),
            st.binary(max_size=60),
        ),
    )
)
def test_any_answer_to_the_upgrade_is_an_error_that_is_expected(data):
    async def run():
        near, far = memory_stream_pair()
        await far.send_all(data)
        await far.send_eof()
        await websocket._upgrade(near, LOCAL, "token")

    with pytest.raises((HyperlogError, ConnectionError)):
        trio.run(run)


def test_hostile_problem_documents_are_survived():
    for body in (b"[" * 5000, b"[]", b'{"detail":3,"code":{}}', b"\xff", b'{"code":"\\ud800"}'):
        answer = b"HTTP/1.1 403 X\r\nContent-Type: application/problem+json\r\n"
        answer += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)

        async def run(answer=answer):
            near, far = memory_stream_pair()
            await far.send_all(answer)
            await far.send_eof()
            await websocket._upgrade(near, LOCAL, None)

        with pytest.raises(ServerRefused, match="HTTP status 403"):
            trio.run(run)
