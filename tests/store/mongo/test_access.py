from __future__ import annotations

import subprocess
import sys

import pytest

from hyperlog.errors import ConfigError
from hyperlog.store.mongo import open_mongo
from hyperlog.store.mongo.access import Access


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("mongodb://u:se:cr@et@host/db", "not a MongoDB URI"),
        ("mongodb://u:se/cret@host/db", "not a MongoDB URI"),
        ("mongodb://u:secret@host:99999/db", "not a MongoDB URI"),
        ("mongodb://u:secret@/db", "not a MongoDB URI"),
        ("mongodb://u:secret@host/a$b", "not a MongoDB URI"),
        ("http://u:secret@host/db", "not a MongoDB URI"),
        ("mongodb://u:secret@host/?nonsense=1", "unknown option: nonsense"),
        ("mongodb://u:secret@host/?maxPoolSize=secret", "not a MongoDB URI"),
    ],
)
def test_what_is_wrong_with_a_uri_is_told_without_it(uri, told):
    with pytest.raises(ConfigError, match=told) as caught:
        Access(uri)
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_uri_shows_its_hosts_and_database_alone():
    access = Access("mongodb://u:secret@one,two:27018/trace?replicaSet=rs")
    assert repr(access) == "<Access to one:27017,two:27018, database trace>"
    assert Access("mongodb+srv://u:secret@cluster.example.org").place == "cluster.example.org"
    assert Access("mongodb://host").database_name == "hyperlog"


def test_a_missing_driver_is_told_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pymongo", None)
    with pytest.raises(ConfigError, match=r"pip install 'hyperlog-p2p\[mongo\]'"):
        open_mongo("mongodb://host", tmp_path, server="00" * 32)


def test_whoever_has_no_mongodb_does_not_load_its_driver():
    program = "import sys, hyperlog.store.mongo; sys.exit('pymongo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
