"""`hyperlog query` on a store that was made of log files."""

from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import trio

from hyperlog.cli import main
from hyperlog.store.evaluate import matches
from hyperlog.store.language import parse
from hyperlog.store.mongo import open_mongo
from hyperlog.store.sqlite import DATABASE, EmbeddedStore
from hyperlog.store.times import ms_iso
from tests.store.contract import records_of
from tests.store.population import BEGIN, SERVER, hostile_lines, realistic_lines

LINES = [*realistic_lines(1500, step=1000.0), *hostile_lines(repeats=1)]
RECORDS = records_of(LINES)


async def follow(folder: Path, task_status=trio.TASK_STATUS_IGNORED, until=None) -> None:
    """Hold the store open as a server does; without `until` only until all is in it."""
    async with EmbeddedStore(folder / ".hyperlog" / DATABASE, folder, server=SERVER) as store:
        with trio.fail_after(30):
            while store.follower.behind:  # noqa: ASYNC110 - it tells no event
                await trio.sleep(0.005)
        task_status.started()
        if until is not None:
            await until.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    for source, line in LINES:
        with open(folder / f"{source.hex()}.log", "ab") as file:
            file.write(line + b"\n")
    trio.run(follow, folder)
    return folder


@pytest.fixture
def query(folder, capsysbinary, monkeypatch):
    """Runs `hyperlog query …`: status, stdout, stderr."""
    monkeypatch.delenv("HYPERLOG_MONGO", raising=False)

    def run(*words, folder=folder):
        status = main(["query", "--folder", str(folder), *words])
        output = capsysbinary.readouterr()
        return status, output.out.decode(), output.err.decode()

    return run


def found(output):
    return [json.loads(line, parse_int=whole) for line in output.splitlines()]


def whole(digits):
    return int(digits) if len(digits) < 4000 else float(digits)  # as many as Python converts


def expected(text):
    where = parse(text)
    return [record for record in RECORDS if where is None or matches(where, record)]


def test_records_come_as_json_lines_the_newest_first(query):
    status, out, err = query("level>=warning")
    records = found(out)
    assert (status, err) == (0, "")
    assert len(records) == 100
    times = [record["time"] for record in records]
    assert times == sorted(times, reverse=True)
    newest = max(expected("level>=warning"), key=lambda record: record.time)
    assert records[0]["time"] == ms_iso(newest.time)


def test_a_record_tells_what_the_server_knows_and_its_line(query):
    record = next(record for record in RECORDS if record.kind == "trace")
    (told,) = found(query(f'id:"{record.id}"')[1])
    assert told["body"] == json.loads(record.body)
    assert (told["bucket"], told["instance"]) == (record.bucket, record.instance)
    assert (told["session"], told["number"]) == (record.session, record.number)
    assert (told["kind"], told["level"], told["message"]) == ("trace", "TRACE", record.message)
    assert told["clientTime"] == ms_iso(record.client_time)
    assert (told["server"], told["source"], told["key"]) == (SERVER, record.source, record.key)


def test_all_records_come_in_order_whatever_they_hold(query):
    status, out, _ = query("--all", "--oldest-first")
    records = found(out)
    assert status == 0
    assert sorted(record["id"] for record in records) == sorted(record.id for record in RECORDS)
    times = [record["time"] for record in records]
    assert times == sorted(times)


@pytest.mark.parametrize("limit", [1, 7, 1200])
def test_the_limit_holds_over_pages(query, limit):
    assert len(found(query("--limit", str(limit))[1])) == limit


def test_options_and_text_are_all_asked_for(query):
    wanted = expected("bucket:midas level>=error attributes.ok:true")
    options = ("--bucket", "midas", "--level", "error", "--all")
    assert {record["id"] for record in found(query("attributes.ok:true", *options)[1])} == {
        record.id for record in wanted
    }
    instance = wanted[0].instance
    records = found(query("--instance", instance, "--all")[1])
    assert {record["instance"] for record in records} == {instance}


def test_several_texts_are_joined(query):
    _, out, _ = query("kind:log", "level:error", "--count")
    assert found(out) == [{"count": len(expected("kind:log level:error"))}]


def test_a_dash_at_the_beginning(query):
    _, out, _ = query("--count", "--", "-kind:trace")
    assert found(out) == [{"count": len(expected("-kind:trace"))}]


def test_times_bound_what_is_asked(query):
    since, until = BEGIN + 100_000, BEGIN + 200_000
    wanted = [record for record in RECORDS if since <= record.time < until]
    _, out, _ = query("--since", ms_iso(since), "--until", str(until), "--count")
    assert found(out) == [{"count": len(wanted)}]
    ago = int(time.time() - BEGIN / 1000) + 3600
    _, out, _ = query("--since", f"{ago}s", "--count")
    assert found(out) == [{"count": len([r for r in RECORDS if r.time >= BEGIN - 3_600_000])}]


def test_a_histogram_counts_by_time_and_level(query):
    _, out, _ = query("kind:log", "--histogram", "1m")
    bins = found(out)
    wanted = Counter(record.time // 60_000 * 60_000 for record in expected("kind:log"))
    assert [(bin["start"], sum(bin["counts"].values())) for bin in bins] == [
        (ms_iso(start), count) for start, count in sorted(wanted.items())
    ]
    assert {level for bin in bins for level in bin["counts"]} <= {
        *("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    }


def test_the_most_frequent_values_of_a_field(query):
    _, out, _ = query("--top", "bucket", "--limit", "2")
    (top,) = found(out)
    counts = Counter(record.bucket for record in RECORDS)
    assert [(value["value"], value["count"]) for value in top["values"]] == counts.most_common(2)
    assert (top["field"], top["distinct"], top["records"]) == ("bucket", len(counts), len(RECORDS))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("error (level:loud",), "'loud' is no level"),
        (("error (b",), "  error (b\n        ^\n"),
        (("--top", "x" * 300), "the name of a field has 1 to 256 characters"),
    ],
)
def test_a_query_that_cannot_be_understood_tells_the_place(query, words, said):
    status, out, err = query(*words)
    assert (status, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    "words",
    [
        ("--since", "yesterday"),
        ("--level", "loud"),
        ("--limit", "0"),
        ("--histogram", "10ms"),
        ("--histogram", "0.5s"),
        ("--count", "--top", "bucket"),
        ("--mongo", "http://localhost"),
    ],
)
def test_wrong_usage_is_refused(query, words):
    with pytest.raises(SystemExit) as ended:
        query(*words)
    assert ended.value.code == 2


def test_without_a_store_it_says_what_to_do(query, tmp_path):
    status, out, err = query(folder=tmp_path)
    assert (status, out) == (1, "")
    assert f"there is no store at {tmp_path / '.hyperlog' / DATABASE}" in err
    assert "hyperlog reindex" in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store_is_told_and_left_alone(query, tmp_path):
    path = tmp_path / ".hyperlog" / DATABASE
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 1000)
    status, out, err = query(folder=tmp_path)
    assert (status, out) == (1, "")
    assert "store" in err
    assert path.read_bytes() == b"not a database at all" * 1000


def test_a_mongodb_that_is_away_is_told_without_its_password(query, monkeypatch):
    monkeypatch.setattr("hyperlog.store.mongo.reading.SEARCH_TIMEOUT", 0.3)
    uri = "mongodb://root:geheim@127.0.0.1:9/logs"
    status, out, err = query("--mongo", uri)
    assert (status, out) == (1, "")
    assert "MongoDB" in err
    assert "geheim" not in err


def test_records_are_found_while_the_server_runs(query, folder):
    done = trio.Event()
    started = threading.Event()
    tokens = []

    async def serve():
        tokens.append(trio.lowlevel.current_trio_token())
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(follow, folder, until=done))
            started.set()

    server = threading.Thread(target=trio.run, args=(serve,))
    server.start()
    try:
        assert started.wait(30)
        assert found(query("--count")[1]) == [{"count": len(RECORDS)}]
    finally:
        tokens[0].run_sync_soon(done.set)
        server.join()


def test_a_reader_that_has_enough_is_no_error(folder):
    command = [sys.executable, "-m", "hyperlog", "query", "--folder", str(folder), "--all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def on_terminal(folder, *words):
    """What is shown on a terminal of 100 columns."""
    terminal, end = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "hyperlog", "query", "--folder", str(folder), *words]
    with subprocess.Popen(
        command, stdout=end, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(end)
        shown = b""
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # Linux's way to say that the other end is closed
                    raise
                break
            if not data:
                break
            shown += data
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait() == 0
    os.close(terminal)
    return shown.decode().replace("\r\n", "\n"), said


def test_a_terminal_shows_a_line_for_each_record(folder):
    shown, said = on_terminal(folder, "bucket:cerco kind:trace", "--limit", "50")
    lines = shown.splitlines()
    assert len(lines) == 50
    assert all(len(line) <= 100 for line in lines)
    assert all(" TRACE    cerco ce" in line for line in lines)
    assert '{"ms": ' in lines[0]
    assert said == "50 shown; there are more: --limit, --all\n"


def test_nothing_that_was_logged_moves_the_cursor(folder):
    shown, _ = on_terminal(folder, "mallory___00000000", "--all")
    assert len(shown.splitlines()) == len(expected("mallory___00000000"))
    assert shown.replace("\n", "").isprintable()


def test_a_terminal_shows_counts_bars_and_shares(folder):
    assert on_terminal(folder, "--count")[0] == f"{len(RECORDS)}\n"
    shown, _ = on_terminal(folder, "--histogram", "5m", "kind:log")
    assert "█" in shown
    assert " INFO " in shown
    shown, said = on_terminal(folder, "--top", "attributes.http.status")
    assert shown.splitlines()[0].endswith("% 200")
    assert "5 of 5 values of attributes.http.status" in said
    assert "no records match" in on_terminal(folder, "nothingofthekind")[1]


@pytest.mark.mongod
@pytest.mark.parametrize("by_variable", [False, True])
def test_mongodb_answers_the_same(query, mongod, tmp_path, monkeypatch, by_variable):
    uri = mongod.uri(f"querying{by_variable}")

    async def mirror():
        async with open_mongo(uri, tmp_path, server=SERVER) as store:
            with trio.fail_after(30):
                while store.follower.behind:  # noqa: ASYNC110 - it tells no event
                    await trio.sleep(0.005)

    for source, line in LINES:
        with open(tmp_path / f"{source.hex()}.log", "ab") as file:
            file.write(line + b"\n")
    trio.run(mirror)
    if by_variable:
        monkeypatch.setenv("HYPERLOG_MONGO", uri)
    there = [] if by_variable else ["--mongo", uri]
    nowhere = tmp_path / "nowhere"
    try:
        for text in ("level>=error", "common OR -kind:trace", "attributes.http.status>=500"):
            _, out, err = query(text, "--all", *there, folder=nowhere)
            assert err == ""
            assert {record["id"] for record in found(out)} == {r.id for r in expected(text)}
        status, out, err = query("(", *there, folder=nowhere)
        assert (status, out) == (2, "")
    finally:
        with mongod.client() as client:
            client.drop_database(f"querying{by_variable}")
