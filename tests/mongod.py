"""A real mongod, a replica set with authentication, for the tests that store records in one.

bin/test fetches the program (tests/mongod.txt). One server is started when the first test asks for
it and serves them all, each with a database of its own; a set of three members is there for tests
of fail-over. Servers listen on 127.0.0.1 alone, keep their data in a temporary folder and end with
the test run, also if that is killed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

FOLDER = Path(__file__).parent.parent / ".venv" / "mongod"
USER = "root"
PASSWORD = "p@ss/w:ord%"  # has to be escaped in a URI, and must not be seen in any message
ESCAPED = "p%40ss%2Fw%3Aord%25"
START_TIMEOUT = 30.0  # s
POLL = 0.02  # s
CACHE = "0.25"  # GB, the least that it takes
PR_SET_PDEATHSIG = 1
PRIMARY_STEPPED_DOWN = 189


def why_no_mongod() -> str | None:
    """The reason why mongod cannot run here, None if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "there is a mongod for the tests on Linux with x86_64 alone"
    if not (FOLDER / "mongod").exists():
        return "mongod is not there (bin/test fetches it)"
    done = subprocess.run(
        [FOLDER / "mongod", "--version"], env=_environment(), capture_output=True, check=False
    )
    return None if done.returncode == 0 else "mongod does not run here (is libcurl4 missing?)"


def _environment() -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(FOLDER / "lib")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Member:
    """One mongod process that can be killed, stopped and started again on its port."""

    folder: Path
    key_file: Path
    port: int = field(default_factory=_free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        command = [FOLDER / "mongod", "--dbpath", self.folder, "--port", str(self.port)]
        command += ["--bind_ip", "127.0.0.1", "--nounixsocket", "--quiet"]
        command += ["--logpath", self.folder / "mongod.log", "--logappend"]
        command += ["--replSet", "rs0", "--keyFile", self.key_file]
        command += ["--wiredTigerCacheSizeGB", CACHE, "--oplogSize", "128"]
        command += ["--setParameter", "ttlMonitorSleepSecs=1"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        self.process = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
        )

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once, as if the machine had lost it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self, **options: Any) -> MongoClient[dict[str, Any]]:
        """A client for this member alone."""
        return MongoClient(self.address, directConnection=True, **options)

    def wait(self, wanted: str) -> None:
        """Until it answers `hello` with this field true."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    pass
                with self.client(serverSelectionTimeoutMS=1000) as client:
                    while not client.admin.command("hello").get(wanted):
                        assert time.monotonic() < deadline, f"{self.address} is not {wanted}"
                        time.sleep(POLL)
                return
            except (OSError, AutoReconnect):
                assert self.process is not None
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(POLL)

    def log(self) -> str:
        """The end of what the server says of itself."""
        return (self.folder / "mongod.log").read_text()[-4000:]


class ReplicaSet:
    """One or more mongods with a root user."""

    def __init__(self, folder: Path, members: int = 1) -> None:
        folder.mkdir(exist_ok=True)
        key_file = folder / "key"
        key_file.touch(0o600)
        key_file.write_text(secrets.token_hex(32))
        self.members = [Member(folder / str(n), key_file) for n in range(members)]

    def start(self) -> None:
        for member in self.members:
            member.start()
        for member in self.members:
            member.wait("ok")
        first = self.members[0]
        hosts = [
            {"_id": number, "host": member.address, "priority": 2 if member is first else 1}
            for number, member in enumerate(self.members)
        ]
        settings = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200}
        with first.client() as client:  # whom no user is asked of while there is none
            config = {"_id": "rs0", "members": hosts, "settings": settings}
            client.admin.command("replSetInitiate", config)
            first.wait("isWritablePrimary")
            client.admin.command("createUser", USER, pwd=PASSWORD, roles=["root"])

    def uri(self, database: str = "", *, user: str = USER, password: str = ESCAPED) -> str:
        hosts = ",".join(member.address for member in self.members)
        return f"mongodb://{user}:{password}@{hosts}/{database}?replicaSet=rs0&authSource=admin"

    def client(self, **options: Any) -> MongoClient[dict[str, Any]]:
        """As root."""
        return MongoClient(self.uri(), **options)

    def primary(self) -> Member:
        """Waits until there is one."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            for member in self.members:
                if member.process is None:
                    continue
                try:
                    with pymongo.timeout(1), member.client() as client:
                        if client.admin.command("hello").get("isWritablePrimary"):
                            return member
                except PyMongoError:
                    pass  # it is stopped, or starts
            time.sleep(POLL)
        raise AssertionError("no primary")

    def step_down(self) -> None:
        """Let the primary make place for another."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            member = self.primary()
            with member.client(username=USER, password=PASSWORD) as client:
                try:
                    client.admin.command("replSetStepDown", 5, secondaryCatchUpPeriodSecs=2)
                    return
                except AutoReconnect:
                    return  # it closes its connections
                except OperationFailure as error:
                    if error.code == PRIMARY_STEPPED_DOWN:  # by itself, just before
                        return
                    if time.monotonic() > deadline:
                        raise
            time.sleep(POLL)  # the others have not caught up

    def close(self) -> None:
        for member in self.members:
            if member.process is not None:
                member.send(signal.SIGCONT)
            member.kill()


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    """A replica set of one member that all tests share; leave it running."""
    yield from _running(ReplicaSet(tmp_path_factory.mktemp("mongod")))


@pytest.fixture
def own_mongod(tmp_path: Path) -> Iterator[ReplicaSet]:
    """A replica set of one member that the test may kill."""
    yield from _running(ReplicaSet(tmp_path / "mongod"))


@pytest.fixture(scope="session")
def three_mongods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    """A replica set of three members, for tests of fail-over; leave them running."""
    yield from _running(ReplicaSet(tmp_path_factory.mktemp("mongods"), 3))


def _running(members: ReplicaSet) -> Iterator[ReplicaSet]:
    try:
        members.start()
        yield members
    finally:
        members.close()
