from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import trio

from hyperlog.cli import main
from hyperlog.keyfile import create_keys
from hyperlog.store.language import parse
from hyperlog.store.query import Query
from hyperlog.store.sqlite import DATABASE, EmbeddedStore
from hyperlog.store.sqlite.locking import lock_database
from tests.store.population import realistic_lines

COUNT = 3000


@pytest.fixture
def server(tmp_path):
    return create_keys(tmp_path / "keys.dat").public_key.hex()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    for number, (source, line) in enumerate(realistic_lines(COUNT)):
        rotated = ".1" if number < COUNT // 2 else ""
        with open(folder / f"{source.hex()}.log{rotated}", "ab") as file:
            file.write(line + b"\n")
    return folder


@pytest.fixture
def reindex(tmp_path, folder, server):
    def run(*arguments: str) -> int:
        keys = str(tmp_path / "keys.dat")
        return main(["reindex", "--folder", str(folder), "--keys", keys, *arguments])

    return run


def held(folder, server) -> tuple[int, int]:
    async def count() -> tuple[int, int]:
        store = EmbeddedStore(folder / ".hyperlog" / DATABASE, folder, server=server)
        try:
            mine = Query(parse(f"server:{server}"))
            return await store.count(Query()), await store.count(mine)
        finally:
            await store.aclose()

    return trio.run(count)


def test_a_store_is_made_of_all_log_files(reindex, folder, server, capsys):
    assert reindex("--json") == 0
    *progress, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["event"] for event in progress} <= {"progress"}
    assert last["event"] == "complete"
    assert last["records"] == COUNT
    assert last["bytes"] == last["total"]
    names = {path.name for path in (folder / ".hyperlog").iterdir()}
    assert names == {DATABASE, f"{DATABASE}.lock"}
    assert held(folder, server) == (COUNT, COUNT)


def test_it_takes_the_place_of_what_was_there(reindex, folder, server, capsys):
    assert reindex() == 0
    (folder / ".hyperlog" / DATABASE).write_bytes(b"rubbish")
    assert reindex() == 0
    assert held(folder, server) == (COUNT, COUNT)
    assert f"{COUNT:,} records" in capsys.readouterr().err


def test_it_does_not_run_beside_a_server(reindex, folder, server, capsys):
    script = (
        "import sys; from pathlib import Path\n"
        "from hyperlog.store.sqlite.locking import lock_database\n"
        "lock = lock_database(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    path = folder / ".hyperlog" / DATABASE
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert reindex() == 1
        assert "stop it first" in capsys.readouterr().err
        assert not path.exists()
        process.communicate(b"")
    assert reindex() == 0


def test_what_cannot_be_written_leaves_the_old_store_as_it_was(reindex, folder, server, capsys):
    assert reindex() == 0
    (folder / ".hyperlog" / f"{DATABASE}.new").mkdir()
    assert reindex() == 1
    assert DATABASE in capsys.readouterr().err
    assert held(folder, server) == (COUNT, COUNT)


def test_a_folder_that_is_not_there_is_told(tmp_path, server, capsys):
    keys = str(tmp_path / "keys.dat")
    assert main(["reindex", "--folder", str(tmp_path / "no"), "--keys", keys]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_lock_is_given_up(reindex, folder):
    assert reindex() == 0
    lock = lock_database(folder / ".hyperlog" / DATABASE)
    lock.release()
    assert os.path.exists(folder / ".hyperlog" / f"{DATABASE}.lock")
