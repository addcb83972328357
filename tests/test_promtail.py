"""The tailer configurations in promtail/, and what a real tailer makes of the log files.

No promtail or Alloy can be installed from a package registry, so their files are checked against
the keys that the programs' references list; rsyslog's imfile stands in for tailing itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import yaml

from hyperlog.sinks.files import CHECK_INTERVAL, FileSink
from hyperlog.sinks.folder import FilePolicy
from hyperlog.sinks.writer import LogWriter

FOLDER = Path(__file__).parent.parent / "promtail"

TRACE_LINE = {
    "time": "2026-01-02T03:04:05.678Z",
    "userId": "ann___abababab",
    "traceTimestamp": "2026-01-02T03:04:05.600Z",
    "traceSessionId": "4242",
    "traceNumber": 0,
    "id": "put",
    "props": {"username": "ann"},
    "object": {"id": 1, "className": "Store", "props": {}},
    "caller": {"filename": "/srv/store.js", "functionName": "put", "props": {}},
}

# Stage names and their keys: Promtail "Pipeline stages" reference, version 3.6. A stage whose keys
# are free (a map from label to source) has None.
PROMTAIL_STAGES = {
    "json": {"expressions", "source", "drop_malformed"},
    "labeldrop": None,
    "labels": None,
    "regex": {"expression", "source", "labels_from_groups"},
    "structured_metadata": None,
    "timestamp": {"source", "format", "fallback_formats", "location", "action_on_failure"},
}
PROMTAIL_KEYS = {
    "": {"clients", "limits_config", "positions", "scrape_configs", "server", "target_config"},
    "server": {
        "http_listen_address",
        "http_listen_port",
        "grpc_listen_address",
        "grpc_listen_port",
        "log_level",
    },
    "positions": {"filename", "sync_period", "ignore_invalid_yaml"},
}
SCRAPE_KEYS = {"job_name", "pipeline_stages", "static_configs"}

# Components and blocks with their arguments: Grafana Alloy component reference.
ALLOY_BLOCKS = {
    "local.file_match": {"path_targets", "ignore_older_than", "sync_period"},
    "loki.source.file": {"targets", "forward_to", "tail_from_end", "legacy_positions_file"},
    "loki.process": {"forward_to"},
    "loki.process/stage.json": {"expressions", "source", "drop_malformed"},
    "loki.process/stage.label_drop": {"values"},
    "loki.process/stage.regex": {"expression", "source", "labels_from_groups"},
    "loki.process/stage.structured_metadata": {"values", "regex"},
    "loki.process/stage.timestamp": {"source", "format", "location", "action_on_failure"},
    "loki.write": {"external_labels", "max_streams"},
    "loki.write/endpoint": {"url", "tenant_id", "batch_size", "batch_wait", "headers"},
}


class AlloySyntaxError(AssertionError):
    """The text is not the part of Alloy's syntax that our file uses."""


ALLOY_TOKEN = re.compile(
    r"""\s*(?://[^\n]*\s*)*(?P<token>"(?:[^"\\\n]|\\.)*"|[A-Za-z_][\w.]*|[{}\[\]=,]|\S|$)"""
)
NAME = re.compile(r"[A-Za-z_][\w.]*")


class AlloyParser:
    """Reads the part of Alloy's syntax that our file uses.

    A block is the tuple (name, label or None, attributes, inner blocks). Values come out as
    strings, lists and dicts, a reference such as `a.b.receiver` as the tuple ("a.b.receiver",).
    """

    def __init__(self, text):
        self.tokens = []
        for match in ALLOY_TOKEN.finditer(text):
            self.tokens.append((match["token"], text.count("\n", 0, match.start("token")) + 1))
        self.at = 0

    @property
    def next(self):
        return self.tokens[self.at][0]

    def take(self, pattern):
        token, line = self.tokens[self.at]
        if not re.fullmatch(pattern, token):
            raise AlloySyntaxError(f"line {line}: unexpected {token or 'end of file'!r}")
        self.at += 1
        return token

    def file(self):
        attributes, blocks = self.body("")
        assert not attributes
        return blocks

    def body(self, end):
        attributes, blocks = {}, []
        while self.next != end:
            name = self.take(NAME.pattern)
            if self.next == "=":
                if name in attributes:
                    raise AlloySyntaxError(f"{name} is given twice")
                self.take("=")
                attributes[name] = self.value()
                self.line_ends(end)
            else:
                label = json.loads(self.take('".*"')) if self.next.startswith('"') else None
                self.take("{")
                blocks.append((name, label, *self.body("}")))
                self.take("}")
                self.line_ends(end)
        return attributes, blocks

    def line_ends(self, end):
        """A line holds one attribute or block: nothing but the closing brace may follow on it."""
        (_, line), (token, next_line) = self.tokens[self.at - 1 : self.at + 1]
        if token not in (end, "") and line == next_line:
            raise AlloySyntaxError(f"line {line}: {token!r} needs a line of its own")

    def value(self):
        if self.next == "[":
            return self.separated("[", "]", self.value)
        if self.next == "{":
            return dict(self.separated("{", "}", self.pair))
        if self.next.startswith('"'):
            return json.loads(self.take('".*"'))
        return (self.take(NAME.pattern),)

    def pair(self):
        key = self.take(r'\w+|".*"').strip('"')
        self.take("=")
        return key, self.value()

    def separated(self, begin, end, item):
        self.take(re.escape(begin))
        items = []
        while self.next != end:
            items.append(item())
            if self.next != end:
                self.take(",")
        self.take(re.escape(end))
        return items


@pytest.fixture(scope="module")
def promtail():
    return yaml.safe_load((FOLDER / "promtail-config.yaml").read_text())


@pytest.fixture(scope="module")
def alloy():
    return AlloyParser((FOLDER / "config.alloy").read_text()).file()


def promtail_stages(promtail):
    (scrape,) = promtail["scrape_configs"]
    stages = {}
    for stage in scrape["pipeline_stages"]:
        ((name, settings),) = stage.items()
        assert name not in stages
        stages[name] = settings
    return stages


def alloy_stages(alloy):
    (process,) = (block for block in alloy if block[0] == "loki.process")
    return {name: attributes for name, _, attributes, _ in process[3]}


def test_promtail_knows_every_key(promtail):
    for section, known in PROMTAIL_KEYS.items():
        assert set(promtail[section] if section else promtail) <= known
    assert [set(client) for client in promtail["clients"]] == [{"url"}]
    (scrape,) = promtail["scrape_configs"]
    assert set(scrape) == SCRAPE_KEYS
    for name, settings in promtail_stages(promtail).items():
        keys = PROMTAIL_STAGES[name]
        assert keys is None or set(settings) <= keys


def test_alloy_knows_every_component_and_argument(alloy):
    for name, label, attributes, inner in alloy:
        assert label is not None
        assert set(attributes) <= ALLOY_BLOCKS[name]
        for inner_name, inner_label, inner_attributes, rest in inner:
            assert inner_label is None
            assert not rest
            assert set(inner_attributes) <= ALLOY_BLOCKS[f"{name}/{inner_name}"]


def test_the_components_of_alloy_form_one_chain(alloy):
    by_name = {f"{name}.{label}": attributes for name, label, attributes, _ in alloy}
    assert by_name["loki.source.file.hyperlog"]["targets"] == ("local.file_match.hyperlog.targets",)
    assert by_name["loki.source.file.hyperlog"]["forward_to"] == [
        ("loki.process.hyperlog.receiver",)
    ]
    assert by_name["loki.process.hyperlog"]["forward_to"] == [("loki.write.loki.receiver",)]
    assert set(by_name) == {
        "local.file_match.hyperlog",
        "loki.source.file.hyperlog",
        "loki.process.hyperlog",
        "loki.write.loki",
    }


def test_both_read_the_same_files_and_do_the_same(promtail, alloy):
    labels = promtail["scrape_configs"][0]["static_configs"][0]["labels"]
    matched = next(attributes for name, _, attributes, _ in alloy if name == "local.file_match")
    assert matched["path_targets"] == [labels]

    old, new = promtail_stages(promtail), alloy_stages(alloy)
    assert list(old) == ["regex", "json", "timestamp", "structured_metadata", "labeldrop"]
    assert old["regex"] == new["stage.regex"]
    assert old["json"] == new["stage.json"]
    assert old["timestamp"] == new["stage.timestamp"]
    assert list(old["structured_metadata"]) == list(new["stage.structured_metadata"]["values"])
    assert old["labeldrop"] == new["stage.label_drop"]["values"]

    url = promtail["clients"][0]["url"]
    write = next(block for block in alloy if block[0] == "loki.write")
    assert write[3] == [("endpoint", None, {"url": url}, [])]


def test_each_expression_finds_its_field_in_a_trace_line(promtail):
    stages = promtail_stages(promtail)
    for expression in stages["json"]["expressions"].values():
        found = TRACE_LINE
        for part in expression.split("."):
            found = found[part]
        assert found is not None
    sources = {*stages["json"]["expressions"], "key"}
    assert set(stages["structured_metadata"]) == sources - {"time"}
    assert stages["timestamp"]["source"] == "time"


def test_only_the_job_becomes_a_label(promtail):
    labels = promtail["scrape_configs"][0]["static_configs"][0]["labels"]
    assert set(labels) == {"job", "__path__"}
    assert not {"labels", "static_labels"} & set(promtail_stages(promtail))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("/var/lib/hyperlog/" + "0a" * 32 + ".log", "0a" * 32),
        ("/var/lib/hyperlog/server.log", None),
        ("/var/lib/hyperlog/" + "0a" * 32 + ".log.1", None),
    ],
)
def test_the_key_is_read_from_the_file_name(promtail, name, key):
    match = re.search(promtail_stages(promtail)["regex"]["expression"], name)
    assert (match and match["key"]) == key


def test_the_compose_file_mounts_what_the_configurations_read(promtail):
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    pattern = promtail["scrape_configs"][0]["static_configs"][0]["labels"]["__path__"]
    loki = promtail["clients"][0]["url"].split("/")[2].split(":")[0]
    assert loki in compose["services"]
    for service, configuration in (("alloy", "config.alloy"), ("promtail", "promtail-config.yaml")):
        volumes = compose["services"][service]["volumes"]
        assert any(f"./{configuration}:" in volume for volume in volumes)
        assert (FOLDER / configuration).is_file()
        assert any(volume.endswith(f":{os.path.dirname(pattern)}:ro") for volume in volumes)
    named = {volume.split(":")[0] for s in compose["services"].values() for volume in s["volumes"]}
    assert set(compose["volumes"]) == {name for name in named if not name.startswith((".", "$"))}
    assert compose["services"]["promtail"]["profiles"], "never beside Alloy by default"


@pytest.mark.parametrize(
    "text",
    [
        'a "b" {',
        'a "b" { c = "d" e = "f" }',
        'a "b" {\n c = \n}',
        'a "b" {\n c = "d"\n c = "e"\n}',
        'a "b" {\n c = ["d" "e"]\n}',
        'a "b" {\n c = "d\n}',
        'a "b" {\n} }',
        'a "b" {\n} c "d" {\n}',
    ],
)
def test_the_alloy_parser_refuses_broken_text(text):
    with pytest.raises(AlloySyntaxError):
        AlloyParser(text).file()


KEYS = ["0a" * 32, "0b" * 32, "0c" * 32]
RSYSLOG_CONFIGURATION = """
global(workDirectory="{work}" maxMessageSize="256k")
module(load="imfile" mode="inotify")
template(name="line" type="string" string="%msg%\\n")
input(type="imfile" file="{logs}/*.log" tag="hyperlog" ruleset="out")
ruleset(name="out") {{ action(type="omfile" file="{out}" template="line" asyncWriting="off") }}
"""


@asynccontextmanager
async def running_rsyslogd(command, folder, logs):
    """A rsyslogd that copies every line of `logs`/*.log into the file that comes out."""
    (folder / "work").mkdir(exist_ok=True)
    out = folder / "out"
    configuration = folder / "rsyslog.conf"
    configuration.write_text(
        RSYSLOG_CONFIGURATION.format(work=folder / "work", logs=logs, out=out), encoding="utf-8"
    )
    talk = folder / "rsyslogd.out"
    with talk.open("wb") as stdout:
        process = await trio.lowlevel.open_process(
            [*command, "-n", "-f", str(configuration), "-i", str(folder / "pid")],
            stdout=stdout,
            stderr=subprocess.STDOUT,
        )
    try:
        yield out
        assert process.returncode is None, talk.read_text()
    finally:
        process.terminate()
        with trio.move_on_after(10, shield=True):
            await process.wait()
        process.kill()


async def arrived(out, count):
    """The lines that the tailer wrote, once there are `count` of them.

    The lines that a file begins with after a rotation are left out.
    """
    lines = []
    with trio.move_on_after(20):
        while len(lines) < count:
            await trio.sleep(0.02)  # the tailer is another process
            lines = out.read_bytes().splitlines() if out.exists() else []
            lines = [line for line in lines if b'"note":"Log continues"' not in line]
    assert len(lines) >= count, f"only {len(lines)} of {count} lines came through"
    return lines


class Rotated:
    """One client's lines in the server's sink, and a logrotate that renames the file."""

    def __init__(self, folder, key):
        self.sink = FileSink(folder)
        self.key = bytes.fromhex(key)
        self.path = self.sink.path(self.key)
        self.now = 0.0
        self.rotations = 0
        self.written = []

    def write(self, count, padding=0):
        lines = []
        for number in range(len(self.written), len(self.written) + count):
            line = TRACE_LINE | {"traceNumber": number, "userId": self.path.name[:8]}
            line["caller"] = line["caller"] | {"props": {"text": "Jørgen \u2028" + "x" * padding}}
            lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode())
        self.sink.write(self.key, lines, self.now)
        self.written += lines

    def rotate(self):
        self.rotations += 1
        self.path.rename(self.path.with_name(f"{self.path.name}.{self.rotations}"))

    def notice(self):
        """Let the time pass after which the sink begins the new file."""
        self.now += CHECK_INTERVAL

    def close(self):
        self.sink.close()


@pytest.mark.tailer
async def test_a_tailer_gets_every_line_once_across_growth_and_rotation(tmp_path, rsyslogd):
    logs = tmp_path / "logs"
    logs.mkdir()
    writers = [Rotated(logs, key) for key in KEYS[:2]]
    writers[0].write(300)  # before the tailer runs
    writers[1].write(1)
    async with running_rsyslogd(rsyslogd, tmp_path, logs) as out:
        await arrived(out, 301)  # no tailer could know of a file that is renamed before it looks
        for _ in range(3):
            for writer in writers:
                writer.write(100)
                await trio.lowlevel.checkpoint()
                writer.rotate()
                writer.write(30)  # still into the renamed file
                writer.notice()
                writer.write(50)
            await arrived(out, sum(len(writer.written) for writer in writers))
        writers.append(Rotated(logs, KEYS[2]))  # a client that comes later
        writers[2].write(20, padding=64 * 1024)
        expected = Counter(line for writer in writers for line in writer.written)
        lines = await arrived(out, expected.total())
    assert Counter(lines) == expected
    for writer in writers:
        writer.close()


@pytest.mark.tailer
@pytest.mark.parametrize("durability", ["write", "fsync"])
async def test_a_tailer_gets_every_line_once_across_the_servers_own_rotation(
    tmp_path, rsyslogd, durability
):
    logs = tmp_path / "logs"
    policy = FilePolicy(rotate_size=60_000)
    keys = [bytes.fromhex(key) for key in KEYS[:2]]
    sink = FileSink(logs, policy=policy, synced=durability == "fsync")
    sent = Counter()
    async with LogWriter(sink, durability=durability) as writer:

        async def write(key, numbers):
            lines = [
                json.dumps(TRACE_LINE | {"traceNumber": n, "userId": key.hex()[:8]}).encode()
                for n in numbers
            ]
            await writer.write(key, lines)
            sent.update(lines)

        for key in keys:
            await write(key, range(10))
        async with running_rsyslogd(rsyslogd, tmp_path, logs) as out:
            await arrived(out, 20)
            for start in range(10, 1500, 50):
                for key in keys:
                    await write(key, range(start, start + 50))
                # A tailer finds the new name by inotify; it may miss one that comes and goes.
                await arrived(out, sent.total())
            lines = await arrived(out, sent.total())
        assert sink.rotations >= 6
    assert Counter(lines) == sent


@pytest.mark.tailer
async def test_a_restarted_tailer_goes_on_where_it_was(tmp_path, rsyslogd):
    logs = tmp_path / "logs"
    logs.mkdir()
    writer = Rotated(logs, KEYS[0])
    writer.write(100)
    async with running_rsyslogd(rsyslogd, tmp_path, logs) as out:
        await arrived(out, 100)
    writer.write(100)
    async with running_rsyslogd(rsyslogd, tmp_path, logs) as out:
        lines = await arrived(out, 200)
        writer.write(1)
        lines = await arrived(out, 201)
    assert lines == writer.written
    writer.close()
