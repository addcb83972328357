"""How fast the control panel answers, and what watching costs: ms, records/s.

Search: `hyperlog serve` with 1,000,000 records of about 418 bytes in its embedded store. Twenty
viewers who are logged in ask for the page with its first 100 records, each about every five
seconds, for different words, phrases, levels, fields and nothing at all, with what the page asks
for then (histogram and facets; as a browser does, they leave without waiting for it). What is timed
is the page, from connecting to the last byte, on a machine that the viewers need as well.

Live: the same server takes 2,000 records a second by requests of a program, for ten seconds, with
nobody watching and with twenty viewers of the live page who read all they get; then bursts of one
client over HyperDHT, both ways.

There is no JavaScript counterpart: hypertrace-logger has no pages.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import httpx
import trio

from benchmarks.figures import Figure, Measured, Target, WrongResult
from benchmarks.logfile import LogFile
from benchmarks.machine import say
from benchmarks.peers import (
    Address,
    Peer,
    network,
    run_peer,
    serve_command,
    trace_client_command,
)
from benchmarks.store import _write_files
from hyperlog.registry import Registry
from hyperlog.tokens import TokenAuthority
from hyperlog.users import Users, hash_password

Cookies = dict[str, str]

VIEWERS = 20
PAGES = 6  # of each viewer
PAUSE = 5.0  # s between two pages of a viewer
QUERIES = (
    "",
    "connection",
    "quokka",
    '"connection request"',
    "level>=error",
    "bucket:cerco payment",
    "object.className:Connection",
    "timeout OR refused",
    "-timeout level>=warning",
    "message.user.name:alice",
)
RATE = 2000  # records/s offered
BATCH = 100  # records of a request
SECONDS = 10.0
BURST = 25_000  # traces at a time, which fit into the client's queue, so that none is left out
BURSTS = 4
WARM_UP = 2_000
TIMEOUT = 300.0  # s
PASSWORD = "correct horse battery"
TITLE = "20 viewers"
NOBODY = "nobody watches"
SEARCH = "search page"
P95 = "search page, 95th percentile"
TAKEN = "taken of 2,000 records/s offered"
REQUEST = "a request of 100 records, median"
WATCHED = "records/s in a burst, of those with nobody watching"


@asynccontextmanager
async def _server(folder: Path, bootstrap: list[Address]) -> AsyncIterator[Peer]:
    command = serve_command(folder, bootstrap)
    command[command.index("--store") + 1] = "sqlite"
    command[command.index("--http") + 1] = "127.0.0.1:0"
    async with run_peer(command, ready="started") as server:
        yield server


def _add_user(folder: Path) -> None:
    registry = Registry(folder / ".hyperlog")
    Users(registry).add("ada", "admin", hash_password(PASSWORD), time.time())
    registry.close()


async def _log_in(url: str) -> Cookies:
    headers = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        answer = await client.post("/login", data={"name": "ada", "password": PASSWORD})
        if answer.status_code != 303:
            raise WrongResult(f"no login: {answer.status_code}")
        return dict(client.cookies)


def _viewer(url: str, cookies: Cookies) -> httpx.AsyncClient:
    headers = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    return httpx.AsyncClient(base_url=url, headers=headers, cookies=cookies, timeout=60)


async def _get(url: str, path: str, query: Mapping[str, str], cookies: Cookies) -> float:
    """ms until the last byte of an answer. No HTTP library: that would be most of what is timed."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())
    request = (
        f"GET {path}?{urlencode(query)} HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: {cookie}\r\n"
        "Sec-Fetch-Site: same-origin\r\nConnection: close\r\n\r\n"
    )
    began_at = trio.current_time()
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(request.encode())
        answer = b"".join([part async for part in stream])
    spent = (trio.current_time() - began_at) * 1000
    status = answer[:12]
    if status != b"HTTP/1.1 200":
        raise WrongResult(f"{path} {query}: {status!r}")
    return spent


async def _get_rest(url: str, query: Mapping[str, str], cookies: Cookies) -> None:
    """What the script of the page asks for."""

    async def get_facets() -> None:
        for field in ("level", "bucket", "instance", "kind"):
            await _get(url, "/explore/facet", {**query, "field": field}, cookies)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get_facets)
        nursery.start_soon(_get, url, "/explore/histogram", query, cookies)


async def _warm_up(url: str, cookies: Cookies) -> None:
    for q in QUERIES:
        query = {"q": q, "since": "all"}
        alone = await _get(url, "/explore", query, cookies)
        began_at = trio.current_time()
        await _get_rest(url, query, cookies)
        rest = (trio.current_time() - began_at) * 1000
        say(f"panel: {q or 'everything'}: page {alone:.0f} ms, histogram and facets {rest:.0f} ms")


async def _search(url: str, cookies: Cookies) -> list[float]:
    """ms of each page."""
    times: list[float] = []

    async def view(number: int) -> None:
        rng = random.Random(number)
        await trio.sleep(rng.uniform(0, PAUSE))
        for _ in range(PAGES):
            query = {"q": rng.choice(QUERIES), "since": "all"}
            leaves_at = trio.current_time() + rng.uniform(0.5, 1.5) * PAUSE
            times.append(await _get(url, "/explore", query, cookies))
            with trio.move_on_at(leaves_at):
                await _get_rest(url, query, cookies)
            await trio.sleep_until(leaves_at)

    async with trio.open_nursery() as nursery:
        for number in range(VIEWERS):
            nursery.start_soon(view, number)
    return times


@asynccontextmanager
async def _watched(url: str, cookies: Cookies, viewers: int) -> AsyncIterator[list[int]]:
    """While as many viewers look at the live page; how many records each was told of."""
    counts = [0] * viewers

    async def watch(number: int, *, task_status: trio.TaskStatus[None]) -> None:
        headers = {"Accept": "text/event-stream"}
        async with (
            _viewer(url, cookies) as client,
            client.stream("GET", "/live/events", headers=headers) as answer,
        ):
            lines = answer.aiter_lines()
            await anext(lines)
            task_status.started()
            async for line in lines:
                if line.startswith("data: "):
                    counts[number] += json.loads(line[6:])["count"]

    async with trio.open_nursery() as nursery:
        for number in range(viewers):
            await nursery.start(watch, number)
        yield counts
        nursery.cancel_scope.cancel()


async def _offer(url: str, token: str) -> tuple[float, list[float]]:
    """Share of the records that were taken in time; ms of each request."""
    record = {"level": "INFO", "message": "offered " * 40, "attributes": {"region": "eu"}}
    body = json.dumps([record] * BATCH).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    times: list[float] = []
    taken = 0
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        began_at = trio.current_time()
        for number in range(int(RATE * SECONDS / BATCH)):
            due = began_at + number * BATCH / RATE
            await trio.sleep_until(due)
            asked_at = trio.current_time()
            answer = await client.post("/api/v1/logs", content=body)
            if answer.json()["accepted"] != BATCH:
                raise WrongResult(answer.text)
            times.append((trio.current_time() - asked_at) * 1000)
            taken += BATCH
        await trio.sleep_until(began_at + SECONDS)
        spent = trio.current_time() - began_at
    return taken / spent / RATE, times


async def _burst(server: Peer, folder: Path, bootstrap: list[Address]) -> float:
    """Lines a second of one client over HyperDHT."""
    async with run_peer(trace_client_command("python", server.public_key, bootstrap)) as client:
        await client.event("greeting")
        log = LogFile(folder / f"{client.public_key}.log")
        await client.command(send=WARM_UP)
        await log.wait_traces(WARM_UP, TIMEOUT)
        log.check(WARM_UP)
        await client.event("sent")
        seconds = 0.0
        for _ in range(BURSTS):
            begin = time.monotonic()
            await client.command(send=BURST)
            await log.wait_traces(BURST, TIMEOUT)
            seconds += time.monotonic() - begin
            log.check(BURST)
            await client.event("sent")
        log.close()
    return BURSTS * BURST / seconds


async def _wait_caught_up(url: str, cookies: Cookies) -> None:
    with trio.fail_after(TIMEOUT):
        async with _viewer(url, cookies) as client:
            # Another process works on it:
            while "of log files behind" in (await client.get("/server/state")).text:  # noqa: ASYNC110
                await trio.sleep(0.5)


async def measure(repeats: int) -> Measured:
    measured = Measured()
    async with network() as bootstrap:
        with tempfile.TemporaryDirectory(prefix="hyperlog-benchmark-") as name:
            folder = Path(name)
            records, _ = await trio.to_thread.run_sync(_write_files, folder)
            await trio.to_thread.run_sync(_add_user, folder)
            async with _server(folder, bootstrap) as server:
                url = server.ready["http"]
                cookies = await _log_in(url)
                await trio.sleep(1)
                await _wait_caught_up(url, cookies)
                say(f"panel: {records:,} records in the store")
                await _warm_up(url, cookies)
                times = sorted(await _search(url, cookies))
                p95 = times[int(len(times) * 0.95)]
                say(f"panel: search page {times[len(times) // 2]:.0f} ms, p95 {p95:.0f} ms")
                measured.figures.append(Figure(SEARCH, TITLE, "ms", times))
                target = Target(300, at_most=True)
                measured.figures.append(Figure(P95, TITLE, "ms", [p95], target))
                await _live(measured, server, cookies, folder, bootstrap, repeats)
    return measured


async def _live(
    measured: Measured,
    server: Peer,
    cookies: Cookies,
    folder: Path,
    bootstrap: list[Address],
    repeats: int,
) -> None:
    url = server.ready["http"]
    authority = TokenAuthority(folder / ".hyperlog")
    token, _ = authority.issue("papi", now=time.time())
    authority.close()
    shares: dict[int, list[float]] = {0: [], VIEWERS: []}
    requests: dict[int, list[float]] = {0: [], VIEWERS: []}
    bursts: dict[int, list[float]] = {0: [], VIEWERS: []}
    for _ in range(repeats):
        for viewers in (0, VIEWERS):
            async with _watched(url, cookies, viewers) as counts:
                share, times = await _offer(url, token)
                await trio.sleep(1)
                if any(count < RATE * SECONDS for count in counts):
                    raise WrongResult(f"viewers were told of {counts}")
                await _wait_caught_up(url, cookies)
                shares[viewers].append(share)
                requests[viewers] += times
                bursts[viewers].append(await _burst(server, folder, bootstrap))
            say(f"panel: {viewers} viewers, {share:.3f} taken, {bursts[viewers][-1]:.0f} lines/s")
            await _wait_caught_up(url, cookies)
    for viewers, title in ((0, NOBODY), (VIEWERS, TITLE)):
        target = Target(0.9) if viewers else None
        measured.figures.append(Figure(TAKEN, title, "", shares[viewers], target))
        measured.figures.append(Figure(REQUEST, title, "ms", requests[viewers]))
    ratios = [with_ / alone for with_, alone in zip(bursts[VIEWERS], bursts[0], strict=True)]
    measured.figures.append(Figure(WATCHED, TITLE, "", ratios))
