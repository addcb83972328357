"""A server with HTTP and both stores while all of them die: nothing is lost or doubled anywhere.

Records come over HyperDHT from an application and over HTTP from a sender that repeats what was not
answered, together about 2,000 a second. Meanwhile the server and MongoDB are killed, MongoDB is
stopped, and the embedded store is deleted or damaged. In the end both stores hold what the log
files hold, each record once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from hyperlog.records import instance_source
from hyperlog.store.answers import Store
from hyperlog.store.mongo import open_mongo
from hyperlog.store.query import Compare, Query
from hyperlog.store.sqlite import DATABASE, EmbeddedStore
from hyperlog.tokens import TokenAuthority
from tests.faults.processes import Scene

LONG = bool(os.environ.get("HYPERLOG_LONG"))
SEED = int(os.environ.get("HYPERLOG_SEED", random.randrange(10**6)))
SECONDS = 120 if LONG else 12
BATCH = 100
SESSION = "4711"
DATABASE_NAME = "faults"
PAGE = 1000

pytestmark = [pytest.mark.slow, pytest.mark.mongod]


def free_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Sender:
    """Posts numbered records and repeats each request until it is answered."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        self.taken = 0
        self.repeats = 0

    async def run(self, until: float) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "X-Hyperlog-Instance": "http"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=5) as client:
            while trio.current_time() < until:
                due = trio.current_time() + BATCH / 1500
                records = [
                    {"message": f"n {n}", "traceSessionId": SESSION, "traceNumber": n}
                    for n in range(self.taken, self.taken + BATCH)
                ]
                while not await self._post(client, records):
                    self.repeats += 1
                    await trio.sleep(0.1)
                self.taken += BATCH
                await trio.sleep(max(due - trio.current_time(), 0))

    async def _post(self, client: httpx.AsyncClient, records: list[dict]) -> bool:
        try:
            response = await client.post("/api/v1/logs", json=records)
        except httpx.HTTPError:
            return False  # killed before or after it was written: nobody knows
        assert response.status_code in (200, 429, 503), response.text
        return response.status_code == 200


def logged(folder) -> Counter[tuple[str, str, int]]:
    """(source, session, number) of all records in the log files."""
    found: Counter[tuple[str, str, int]] = Counter()
    for path in folder.glob("*.log*"):
        for line in path.read_bytes().splitlines():
            try:
                fields = json.loads(line)
            except ValueError:
                continue  # torn by a kill, and closed off
            if "traceNumber" in fields:
                found[path.name[:64], fields["traceSessionId"], fields["traceNumber"]] += 1
    return found


async def held(store: Store) -> Counter[tuple[str, str, int]]:
    """The same of all records in a store."""
    found: Counter[tuple[str, str, int]] = Counter()
    for kind in ("log", "trace"):
        cursor = None
        while True:
            page = await store.search(
                Query(Compare("kind", "=", kind)), limit=PAGE, cursor=cursor, order="oldest"
            )
            found.update((one.source, one.session, one.number) for one in page.records)
            cursor = page.cursor
            if cursor is None:
                break
    return found


async def until_held(store: Store, files: Counter[tuple[str, str, int]]) -> None:
    """Wait until a store has caught up; it may then hold nothing else."""
    with trio.move_on_after(60):
        while (found := await held(store)) != files:
            assert max(found.values(), default=0) <= 1, "a record is doubled"
            await trio.sleep(0.5)
        return
    lost, more = files - found, found - files
    raise AssertionError(f"{len(lost)} of {len(files)} are missing, {len(more)} are too many")


@asynccontextmanager
async def open_scene(folder, **settings):
    async with trio.open_nursery() as nursery:
        scene = Scene(folder, nursery, **settings)
        try:
            yield scene
        finally:
            await scene.close()


# httpx leaves its generators behind when a server dies in the middle of a request.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx", "ignore:Exception ignored in")
async def test_nothing_is_lost_or_doubled_in_files_and_stores(tmp_path, own_mongod):
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    data, logs = tmp_path / "logs" / ".hyperlog", tmp_path / "logs"
    authority = TokenAuthority(data)
    token, _ = authority.issue("cerco", now=time.time())
    authority.close()
    port, uri = free_tcp_port(), own_mongod.uri(DATABASE_NAME)
    options = ["--http", f"127.0.0.1:{port}", "--store", "sqlite", "--mongo", uri]
    sender = Sender(f"http://127.0.0.1:{port}", token)
    until = trio.current_time() + SECONDS

    async def hurt_server(scene: Scene) -> None:
        while trio.current_time() < until - 2:
            await trio.sleep(rng.uniform(1.5, 4))
            await scene.server.kill()
            database = data / DATABASE
            match rng.choice(["leave", "delete", "damage"]):
                case "delete":
                    database.unlink(missing_ok=True)
                case "damage":
                    if database.exists():
                        with database.open("r+b") as file:
                            file.seek(rng.randrange(max(database.stat().st_size - 4096, 1)))
                            file.write(rng.randbytes(4096))
            await scene.start_server(*options)

    async def hurt_mongod() -> None:
        (member,) = own_mongod.members
        while trio.current_time() < until - 3:
            await trio.sleep(rng.uniform(1, 3))
            if rng.random() < 0.5:
                member.send(signal.SIGSTOP)
                await trio.sleep(rng.uniform(0.5, 2))
                member.send(signal.SIGCONT)
            else:
                member.kill()
                await trio.sleep(rng.uniform(0, 1))
                member.start()

    async with open_scene(tmp_path) as scene:
        await scene.start_server(*options)
        await scene.start_application()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.run, until)
            nursery.start_soon(hurt_server, scene)
            nursery.start_soon(hurt_mongod)
        await scene.stop_application()
        assert scene.assert_nothing_lost_or_doubled() == 0
        await scene.server.kill()

    files = logged(logs)
    assert max(files.values()) == 1
    source = instance_source("cerco", "http").hex()
    numbers = sorted(number for key, _, number in files if key == source)
    assert numbers == list(range(sender.taken))
    assert sender.taken > 500 * SECONDS
    server = scene.server_key
    async with EmbeddedStore(data / DATABASE, logs, server=server) as embedded:
        await until_held(embedded, files)
    async with open_mongo(uri, logs, server=server) as mongo:
        await until_held(mongo, files)
    print(f"{len(files)} records, {sender.repeats} requests repeated")
