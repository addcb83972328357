from __future__ import annotations

import shutil
import ssl
from contextlib import asynccontextmanager
from email.utils import formatdate
from functools import partial
from time import time

import pytest
import trio

from hyperlog.doctorweb import examine_web
from hyperlog.findings import Verdict
from hyperlog.webaddress import WebAddress
from tests.tcp_proxy import tcp_proxy
from tests.web.site import site

LOOPBACK = "127.0.0.1"


class Notes:
    def __init__(self):
        self.all = {}

    def begin(self, step):
        pass

    def found(self, finding):
        self.all[finding.step] = finding

    @property
    def failed(self):
        return [step for step, finding in self.all.items() if finding.verdict is Verdict.FAILED]


async def look(address, tls=None, timeout=5.0):
    notes = Notes()
    assert await examine_web(address, notes, tls=tls, timeout=timeout) == (not notes.failed)
    return notes


@asynccontextmanager
async def answering(answer):
    """A port that gives this answer to whatever is asked."""

    async def handle(stream):
        async with stream:
            await stream.receive_some(4096)
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
        nursery.start_soon(partial(trio.serve_listeners, handle, [listener]))
        yield WebAddress(LOOPBACK, listener.socket.getsockname()[1], False)
        nursery.cancel_scope.cancel()


def head(*lines):
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()


async def test_a_server_is_well_and_its_clock_agrees(tmp_path):
    async with site(tmp_path) as there:
        notes = await look(WebAddress("localhost", there.address[1], False))
    assert list(notes.all) == ["names", "tcp", "http", "clock"]
    assert {finding.verdict for finding in notes.all.values()} == {Verdict.OK}
    assert abs(notes.all["clock"].figures["skew"]) < 2


@pytest.mark.parametrize(("ahead", "verdict"), [(300, "warning"), (-300, "warning"), (0, "ok")])
async def test_a_clock_that_goes_wrong_is_noticed(ahead, verdict):
    async with answering(head(f"Date: {formatdate(time() + ahead, usegmt=True)}")) as address:
        notes = await look(address)
    assert notes.failed == []
    assert notes.all["clock"].verdict == verdict
    assert notes.all["clock"].figures["skew"] == pytest.approx(ahead, abs=3)


@pytest.mark.parametrize("line", ["Server: x", "Date: yesterday", "Date: Mon, 99 Foo 99999 9:9:9"])
async def test_without_a_date_the_clock_cannot_be_told(line):
    async with answering(head(line)) as address:
        assert (await look(address)).all["clock"].verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 200", "ends in the middle"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 4000, "too long"),
    ],
)
async def test_what_is_no_such_server_is_told(answer, text):
    async with answering(answer) as address:
        notes = await look(address)
    assert notes.failed == ["http"]
    assert text in notes.all["http"].text


async def test_a_port_without_a_server_and_a_name_that_does_not_exist_are_told():
    async with answering(b"") as address:
        pass
    notes = await look(address)
    assert notes.failed == ["tcp"]
    assert notes.all["tcp"].text == f"no connection to port {address.port}: Connection refused"
    for name in ("nowhere.invalid", f"{'a' * 100}.invalid"):
        notes = await look(WebAddress(name, 443, True), ssl.create_default_context())
        assert notes.failed == ["names"]


async def test_a_server_that_says_nothing_is_not_waited_for_for_ever():
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with listener:
        port = listener.socket.getsockname()[1]
        assert (await look(WebAddress(LOOPBACK, port, False), timeout=0.2)).failed == ["http"]
        tls = ssl.create_default_context()
        assert (await look(WebAddress(LOOPBACK, port, True), tls, timeout=0.2)).failed == ["tls"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_certificates_are_checked(tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subject = ["-subj", "/CN=elsewhere", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    await trio.run_process([*command.split(), *subject, *files], capture_stderr=True)
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate, key)
    async with site(tmp_path) as there, tcp_proxy(there.address, server_tls) as proxy:
        address = WebAddress(LOOPBACK, int(proxy.url.rpartition(":")[2]), True)
        good = await look(address, ssl.create_default_context(cafile=certificate))
        assert list(good.all) == ["names", "tcp", "tls", "http", "clock"]
        assert good.failed == []
        strange = await look(address, ssl.create_default_context())
        assert strange.failed == ["tls"]
        assert "--ca-file" in strange.all["tls"].advice
        plain = WebAddress(LOOPBACK, there.address[1], True)
        assert (await look(plain, ssl.create_default_context())).failed == ["tls"]
