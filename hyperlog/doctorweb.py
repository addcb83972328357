"""Service: looks for the step at which the way to a server of HTTP fails."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, NoReturn

import trio

from hyperlog.findings import Finding, Progress, Verdict, milliseconds
from hyperlog.peerjudgements import judge_clock
from hyperlog.webaddress import WebAddress

__all__ = ["examine_web"]

MAX_HEAD: Final = 16 * 1024  # bytes of an answer's head
NO_DATE: Final = "the server's answer has no date"


class _Stop(Exception):
    """A step failed."""


async def examine_web(
    server: WebAddress, progress: Progress, *, tls: ssl.SSLContext | None, timeout: float
) -> bool:
    """Whether a server answers at its address; `timeout` in s is for each step.

    `tls` knows the certificates of a secure address.
    """
    try:
        await _Examination(server, progress, tls, timeout).run()
    except _Stop:
        return False
    return True


class _Examination:
    def __init__(
        self, server: WebAddress, progress: Progress, tls: ssl.SSLContext | None, timeout: float
    ) -> None:
        self._server = server
        self._progress = progress
        self._tls = tls
        self._timeout = timeout

    async def run(self) -> None:
        host = await self._look_up()
        stream: trio.abc.Stream = await self._connect(host)
        try:
            if self._tls is not None:
                stream = await self._secure(stream, self._tls)
            await self._ask(stream)
        finally:
            await trio.aclose_forcefully(stream)

    def _fail(self, step: str, text: str, advice: str) -> NoReturn:
        self._progress.found(Finding(step, Verdict.FAILED, text, advice))
        raise _Stop

    async def _look_up(self) -> str:
        self._progress.begin("names")
        host, port = self._server.host, self._server.port
        began_at = trio.current_time()
        advice = "Check how the name is spelled, and whether this machine is connected."
        try:
            with trio.fail_after(self._timeout):
                found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except OSError as err:
            self._fail("names", f"{host} cannot be found: {err.strerror or err}", advice)
        except UnicodeError:
            self._fail("names", f"{host} can be no name: a part of it is too long", advice)
        except trio.TooSlowError:
            self._fail("names", f"no name server answers for {host}", advice)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if addresses == [host]:
            text = "nothing to look up: the server is given by address"
        else:
            text = f"{host} found in {milliseconds(trio.current_time() - began_at)}"
        figures = {"addresses": addresses}
        self._progress.found(Finding("names", Verdict.OK, text, figures=figures))
        return host

    async def _connect(self, host: str) -> trio.SocketStream:
        self._progress.begin("tcp")
        port = self._server.port
        began_at = trio.current_time()
        try:
            with trio.fail_after(self._timeout):
                stream = await trio.open_tcp_stream(host, port)
        except trio.TooSlowError:
            self._fail(
                "tcp",
                f"no answer from port {port} in {self._timeout:g} s",
                "A firewall on the way may drop it, or the machine is off.",
            )
        except OSError as err:
            reason = _first(err)
            # trio's text names the address once more.
            told = os.strerror(reason.errno) if isinstance(reason, OSError) and reason.errno else ""
            self._fail(
                "tcp",
                f"no connection to port {port}: {told or reason}",
                "Does the server run, with --http at this address and port? "
                "By default it serves this machine alone.",
            )
        seconds = trio.current_time() - began_at
        text = f"port {port} answers in {milliseconds(seconds)}"
        figures = {"seconds": round(seconds, 6)}
        self._progress.found(Finding("tcp", Verdict.OK, text, figures=figures))
        return stream

    async def _secure(self, tcp: trio.abc.Stream, tls: ssl.SSLContext) -> trio.abc.Stream:
        self._progress.begin("tls")
        stream = trio.SSLStream(tcp, tls, server_hostname=self._server.host, https_compatible=True)
        try:
            with trio.fail_after(self._timeout):
                await stream.do_handshake()
        except trio.TooSlowError:
            await trio.aclose_forcefully(tcp)
            self._fail("tls", "no answer to the handshake", "Does this port serve HTTPS?")
        except trio.BrokenResourceError as err:
            await trio.aclose_forcefully(tcp)
            cause = err.__cause__
            if isinstance(cause, ssl.SSLCertVerificationError):
                self._fail(
                    "tls",
                    f"the certificate is not accepted: {cause.verify_message}",
                    "Name the certificate that signed it (--ca-file), or renew it.",
                )
            self._fail(
                "tls", f"no secure connection: {cause or err}", "Does this port serve HTTPS?"
            )
        text = f"{stream.version()}, certificate accepted"
        self._progress.found(Finding("tls", Verdict.OK, text))
        return stream

    async def _ask(self, stream: trio.abc.Stream) -> None:
        self._progress.begin("http")
        asked_at, began_at = time.time(), trio.current_time()
        try:
            with trio.fail_after(self._timeout):
                head = await _get(stream, self._server.authority, "/healthz")
        except (trio.TooSlowError, trio.BrokenResourceError, ValueError) as err:
            reason = str(err) or f"in {self._timeout:g} s"
            self._fail("http", f"no answer of HTTP: {reason}", "Is this a server of HTTP?")
        seconds = trio.current_time() - began_at
        status, headers = head
        figures: dict[str, Any] = {"status": status, "roundTrip": round(seconds, 6)}
        if status != 200:
            self._progress.found(
                Finding(
                    "http",
                    Verdict.FAILED,
                    f"/healthz answers with status {status}",
                    "Is this a hyperlog server? A proxy in front of it "
                    "has to pass on paths as they are.",
                    figures=figures,
                )
            )
            raise _Stop
        text = f"the server is well; it answers in {milliseconds(seconds)}"
        self._progress.found(Finding("http", Verdict.OK, text, figures=figures))
        self._progress.found(_clock(headers.get("date"), asked_at + seconds / 2))


async def _get(stream: trio.abc.Stream, host: str, path: str) -> tuple[int, Mapping[str, str]]:
    """The status and the headers, by their names in lower case, of an answer.

    Raises:
        ValueError: it is none.
        trio.BrokenResourceError: the connection ended.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    await stream.send_all(request.encode("ascii"))
    data = bytearray()
    while b"\r\n\r\n" not in data:
        part = await stream.receive_some(MAX_HEAD)
        data += part
        if not part or len(data) > MAX_HEAD:
            raise ValueError("it ends in the middle" if not part else "it is too long")
    first, *lines = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise ValueError("another protocol is spoken there")
    pairs = (line.partition(":") for line in lines)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _clock(date: str | None, now: float) -> Finding:
    if date is None:
        return judge_clock(None, NO_DATE)
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return judge_clock(None, NO_DATE)
    return judge_clock(theirs + 0.5 - now)  # a Date has whole seconds, cut off


def _first(error: BaseException) -> BaseException:
    """The reason below an error of trio, which names all the addresses that were tried."""
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return error if cause is None else cause
