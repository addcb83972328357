"""hyperlog.Handler: what the logging module records is shipped, and the program never notices."""

from __future__ import annotations

import json
import logging
import logging.config
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

import hyperlog
from hyperlog.client import Client
from hyperlog.dht import KeyPair
from hyperlog.errors import ConfigError
from hyperlog.handler import Handler
from hyperlog.server import Server
from hyperlog.trace import clear_trace_function
from tests.web.site import site

ROOT = Path(__file__).parent.parent
NOBODY = "5a" * 32
NOWHERE = {"bootstrap": ["127.0.0.1:9"], "keys": None}


@pytest.fixture(autouse=True)
def own_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("HYPERLOG_SERVER", "HYPERLOG_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield
    clear_trace_function()


@pytest.fixture
def log():
    """A logger of the test's own."""
    logger = logging.Logger("shop.orders", logging.DEBUG)
    yield logger
    for handler in logger.handlers:
        handler.close()


async def in_thread(function, *arguments, **named):
    return await trio.to_thread.run_sync(partial(function, *arguments, **named))


@asynccontextmanager
async def handling(folder, logger, **options):
    """A server, and a Handler for it on the logger; gives a function for the lines in the file."""
    server = Server(folder, host="127.0.0.1", local=True, keys=KeyPair.generate())
    async with server:
        host, port = server.address
        handler = Handler(
            server.public_key.hex(), bootstrap=[f"{host}:{port}"], keys=None, **options
        )
        logger.addHandler(handler)

        async def lines():
            assert await in_thread(handler.client.flush)
            path = folder / f"{handler.client.public_key.hex()}.log"
            found = [json.loads(line) for line in path.read_bytes().splitlines()]
            return [line for line in found if "note" not in line]

        try:
            yield lines
        finally:
            logger.removeHandler(handler)
            await in_thread(handler.close)


# -- what stands in the file


async def test_a_record_stands_in_the_file_with_its_fields(tmp_path, log):
    async with handling(tmp_path, log) as lines:
        log.warning("disk %s has %d bytes left", "sda", 17, extra={"disk": "sda", "free": 17})
        line = sys._getframe().f_lineno - 1
        (found,) = await lines()
    assert list(found)[4:] == [
        *("traceTimestamp", "traceSessionId", "traceNumber", "level", "logger", "message"),
        *("attributes", "caller"),
    ]
    assert (found["level"], found["logger"]) == ("WARNING", "shop.orders")
    assert found["message"] == "disk sda has 17 bytes left"
    assert found["attributes"] == {"disk": "sda", "free": 17}
    name = "test_a_record_stands_in_the_file_with_its_fields"
    assert found["caller"] == {"filename": __file__, "functionName": name, "line": line}


async def test_levels_custom_ones_among_them_are_mapped_down(tmp_path, log):
    logging.addLevelName(25, "NOTICE")
    async with handling(tmp_path, log) as lines:
        log.setLevel(1)
        for level in (5, 10, 20, 25, 30, 40, 50, 60):
            log.log(level, "x")
        found = await lines()
    assert [line["level"] for line in found] == [
        *("DEBUG", "DEBUG", "INFO", "INFO", "WARNING", "ERROR", "CRITICAL", "CRITICAL")
    ]
    told = [line.get("attributes", {}).get("levelName") for line in found]
    assert told == ["Level 5", None, None, "NOTICE", None, None, None, "Level 60"]


async def test_dictionaries_travel_as_objects(tmp_path, log):
    async with handling(tmp_path, log) as lines:
        event = {"event": "paid", "items": [1, 2], "when": None}
        log.info(event)
        event["event"] = "changed"
        log.info(ValueError("as a message"))
        log.info("%(a)s and %(b)s", {"a": 1, "b": 2})
        found = await lines()
    assert found[0]["message"] == {"event": "paid", "items": [1, 2], "when": None}
    assert [line["message"] for line in found[1:]] == ["as a message", "1 and 2"]


async def test_exceptions_and_stacks_are_told(tmp_path, log):
    async with handling(tmp_path, log) as lines:
        try:
            raise KeyError("missing")
        except KeyError:
            log.exception("lookup failed")
        log.error("no exception", exc_info=True)
        log.info("where", stack_info=True)
        found = await lines()
    assert found[0]["exception"]["type"] == "KeyError"
    assert 'raise KeyError("missing")' in found[0]["exception"]["stack"]
    assert "exception" not in found[1]
    assert found[2]["attributes"]["stackInfo"].startswith("Stack (most recent call last):")


async def test_threads_and_processes_with_names_are_told(tmp_path, log):
    async with handling(tmp_path, log) as lines:
        thread = threading.Thread(target=log.info, args=("x",), name="worker-3")
        thread.start()
        await in_thread(thread.join)
        (found,) = await lines()
    assert found["attributes"] == {"threadName": "worker-3"}


async def test_levels_and_filters_of_the_handler_count(tmp_path, log):
    async with handling(tmp_path, log, level="WARNING") as lines:
        log.handlers[0].addFilter(lambda record: "secret" not in record.getMessage())
        log.info("too low")
        log.error("secret")
        log.error("told")
        assert [line["message"] for line in await lines()] == ["told"]


async def test_a_client_that_runs_is_used_and_left_to_its_owner(tmp_path, log):
    async with site(tmp_path) as there:
        client = Client()
        client.start(there.url, token=there.token("cerco"), keys=None)
        for handler in (Handler(client), Handler()):
            log.addHandler(handler)
            log.info("x")
            log.removeHandler(handler)
            await in_thread(handler.close)
        client.info("still there")
        assert await in_thread(client.flush)
        await in_thread(client.stop, 0.5)
        assert [line["message"] for line in there.lines()] == ["x", "x", "still there"]


async def test_server_and_token_may_come_from_the_environment(tmp_path, log, monkeypatch):
    async with site(tmp_path) as there:
        monkeypatch.setenv("HYPERLOG_SERVER", there.url)
        monkeypatch.setenv("HYPERLOG_TOKEN", there.token("cerco"))
        handler = Handler()
        log.addHandler(handler)
        log.info("x")
        await in_thread(handler.flush)
        assert [line["app"] for line in there.lines()] == ["cerco"]
        await in_thread(handler.close)


def test_what_cannot_be_used_is_told_when_it_is_made():
    with pytest.raises(ConfigError, match="64 hex digits"):
        Handler("5a")
    with pytest.raises(TypeError, match="no option 'tokne'"):
        Handler(NOBODY, tokne="x")
    with pytest.raises(TypeError, match="takes no options: token"):
        Handler(Client(), token="x")


def test_without_a_server_and_a_client_records_go_nowhere(log):
    handler = Handler()
    log.addHandler(handler)
    log.info("x")
    handler.flush()
    assert handler.client is None


# -- what must not happen


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Echo:
    """Logs itself whenever somebody asks for its text."""

    def __init__(self, log: logging.Logger) -> None:
        self.log = log

    def __str__(self) -> str:
        self.log.info("echo of %s", self)
        return "an echo"

    __repr__ = __str__


async def test_arguments_that_do_not_fit_are_no_error(tmp_path, log, capsys):
    async with handling(tmp_path, log) as lines:
        log.info("%d bytes", "many")
        log.info("%s %s", 1)
        log.info("%s", Hostile())
        log.info(Hostile())
        log.info(Hostile(), 1)
        log.info("x", extra={"odd": Hostile(), "set": {1}})
        found = [line["message"] for line in await lines()]
    assert found == [
        "%d bytes [arguments do not fit: TypeError]",
        "%s %s [arguments do not fit: TypeError]",
        "%s [arguments do not fit: RuntimeError]",
        "[unserialisable Hostile]",
        "[unserialisable Hostile] [arguments do not fit: RuntimeError]",
        "x",
    ]
    assert capsys.readouterr().err == ""


async def test_an_argument_that_logs_itself_ends(tmp_path, log):
    async with handling(tmp_path, log) as lines:
        log.info("start %s", Echo(log))
        log.info(Echo(log))
        log.info("start", extra={"echo": Echo(log)})
        for _ in range(20):
            found = [line["message"] for line in await lines()]
    assert len(found) < 20
    assert found.count("start an echo") == 1
    assert "echo of %s [arguments left out]" in found


async def test_hyperlogs_own_records_are_never_shipped(tmp_path, log):
    async with handling(tmp_path, log) as lines:
        root = logging.getLogger("hyperlog")
        root.addHandler(log.handlers[0])
        root.setLevel(logging.DEBUG)
        try:
            logging.getLogger("hyperlog.client").error("own")
            root.error("own")
            log.info("other")
            found = await lines()
        finally:
            root.removeHandler(log.handlers[0])
            root.setLevel(logging.NOTSET)
    assert [line["message"] for line in found] == ["other"]


def test_what_packages_log_in_the_thread_that_ships_is_not_shipped(log):
    def call(_error):
        logging.getLogger("trio.something").error("of the transport")
        logging.getLogger("shop.callback").error("of the application")
        called.set()

    called = threading.Event()
    handler = Handler(NOBODY, **NOWHERE, on_connection_error=call)
    put = []
    handler.client.put_log = lambda entry, now: put.append(entry)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        log.addHandler(handler)
        logging.getLogger("trio.something").error("of the application's own loop")
        assert called.wait(10)
    finally:
        root.removeHandler(handler)
    told = [entry.message for entry in put]
    assert told == ["of the application's own loop", "of the application"]


def test_records_of_any_kind_do_not_raise(log, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = Handler(NOBODY, **NOWHERE)
    log.addHandler(handler)
    for fields in (
        {},
        {"name": 3},
        {"created": "then", "msg": "x"},
        {"created": float("nan"), "msg": "x"},
        {"created": 1e300, "msg": "x"},
        {"levelno": "x", "msg": "x"},
        {"exc_info": "text", "msg": "x"},
        {"exc_info": (1, 2, 3), "msg": "x"},
        {"lineno": "x", "pathname": None, "funcName": 3, "msg": "x"},
        {3: 4, "msg": "x", "threadName": 3, "processName": 3, "levelname": [3]},
        {"args": ("a", "b"), "msg": None},
    ):
        handler.handle(logging.makeLogRecord(fields))
    log.info("alive")
    deadline = time.monotonic() + 5
    while handler.client.statistics().waiting < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not handler.client.flush(0.3)  # the thread lives, and has no server
    assert handler.client._worker._thread.is_alive()


def test_threads_that_log_do_not_wait_for_each_other(log):
    handler = Handler(NOBODY, **NOWHERE)
    assert handler.lock is None
    log.addHandler(handler)
    inside = threading.Event()
    go_on = threading.Event()

    class Slow:
        def __str__(self) -> str:
            inside.set()
            assert go_on.wait(10)
            return "slow"

    thread = threading.Thread(target=log.info, args=("%s", Slow()))
    thread.start()
    assert inside.wait(10)
    log.info("quick")
    assert handler.client.statistics().waiting >= 1
    go_on.set()
    thread.join()


def test_closing_is_short_and_twice_is_fine(log):
    handler = Handler(NOBODY, **NOWHERE)
    log.addHandler(handler)
    log.info("x")
    began_at = time.monotonic()
    handler.close()
    handler.close()
    log.info("late")
    handler.flush()
    assert time.monotonic() - began_at < 2.0


# -- real programs

DICT = """
import logging, logging.config, os, sys, threading
logging.config.dictConfig({
    "version": 1,
    "formatters": {"plain": {"format": "%(message)s"}},
    "handlers": {
        "hyperlog": {
            "class": "hyperlog.Handler", "server": sys.argv[1], "token": sys.argv[2],
            "level": "INFO", "instance": "1", "formatter": "plain",
        },
    },
    "root": {"level": "DEBUG", "handlers": ["hyperlog"]},
})
log = logging.getLogger("shop")
log.debug("not this")
for n in range(100):
    log.info("order %d", n, extra={"n": n, "by": "main"})
"""

THREADS = """
def work(name):
    for n in range(100):
        log.info("in a thread", extra={"n": n, "by": name})
threads = [threading.Thread(target=work, args=(f"t{k}",)) for k in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""

FORK = """
children = []
for k in range(2):
    child = os.fork()
    if child == 0:
        for n in range(50):
            log.info("in a child", extra={"n": n, "by": f"child{k}"})
        sys.exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
for n in range(50):
    log.info("after it", extra={"n": n, "by": "parent"})
"""

FILE = """
import logging, logging.config, sys
open("logging.ini", "w").write('''
[loggers]
keys=root
[handlers]
keys=hyperlog
[formatters]
keys=
[logger_root]
level=INFO
handlers=hyperlog
[handler_hyperlog]
class=hyperlog.Handler
args=("%s",)
kwargs={"token": "%s", "instance": "1"}
''' % (sys.argv[1], sys.argv[2]))
logging.config.fileConfig("logging.ini")
for n in range(100):
    logging.info("x", extra={"n": n, "by": "main"})
"""

SHUTDOWN = """
import atexit
class Late:
    def __del__(self):
        log.info("from a finaliser", extra={"n": 0, "by": "late"})
atexit.register(log.info, "from atexit", extra={"n": 0, "by": "atexit"})
kept = Late()
kept.me = kept
logging.shutdown()
log.info("after shutdown", extra={"n": 0, "by": "shutdown"})
"""


async def program(text: str, *arguments: str) -> subprocess.CompletedProcess:
    await trio.Path("shop.py").write_text(text)
    command = [sys.executable, "-W", "ignore", "shop.py", *arguments]
    with trio.fail_after(60):
        return await trio.run_process(
            command, check=False, capture_stdout=True, capture_stderr=True
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DICT, {"main": 100}),
        (DICT + THREADS, {"main": 100, **{f"t{k}": 100 for k in range(4)}}),
        (DICT + FORK, {"main": 100, "child0": 50, "child1": 50, "parent": 50}),
        (FILE, {"main": 100}),
    ],
    ids=["dictConfig", "threads", "fork", "fileConfig"],
)
async def test_a_program_that_just_ends_has_shipped_everything_in_order(tmp_path, text, expected):
    async with site(tmp_path) as there:
        done = await program(text, there.url, there.token("cerco"))
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""
        lines = [line["attributes"] for line in there.lines()]
    assert Counter(line["by"] for line in lines) == expected
    for by, count in expected.items():
        assert [line["n"] for line in lines if line["by"] == by] == list(range(count))


async def test_logging_at_the_very_end_of_a_program_is_harmless(tmp_path):
    async with site(tmp_path) as there:
        done = await program(DICT + SHUTDOWN, there.url, there.token("cerco"))
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""
        assert Counter(line["attributes"]["by"] for line in there.lines())["main"] == 100


async def test_without_a_server_a_program_ends_in_time_and_the_next_ships_its_records(tmp_path):
    ending = "import time; print(time.monotonic(), flush=True)\n"
    async with site(tmp_path) as there:
        token = there.token("cerco")
        done = await program(DICT + ending, "http://127.0.0.1:9", token)
        assert time.monotonic() - float(done.stdout) < 2.5
        assert done.stderr == b""
        killing = f"import os, time; time.sleep(0.3); os.kill(os.getpid(), {signal.SIGKILL})\n"
        done = await program(DICT + killing, there.url, token)
        assert len(there.lines()) == 100
        done = await program(DICT, there.url, token)
        assert len(there.lines()) == 200


async def test_a_burst_at_once_is_shipped_whole(tmp_path):
    burst = "for n in range(20000): log.warning('x' * 100, extra={'n': n, 'by': 'burst'})\n"
    burst += "logging.getLogger().handlers[0].client.flush(20)\n"
    async with site(tmp_path) as there:
        done = await program(DICT + burst, there.url, there.token("cerco"))
        assert done.returncode == 0, done.stderr
        lines = [line["attributes"] for line in there.lines()]
    assert [line["n"] for line in lines if line["by"] == "burst"] == list(range(20000))


def test_the_name_is_public():
    assert hyperlog.Handler is Handler
    assert "Handler" in dir(hyperlog)
