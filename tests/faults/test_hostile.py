"""What hostile clients can do to a server: nothing that its honest clients would notice.

Each attack of hostile.py and packets.py runs against a real `hyperlog serve`, beside an honest
client that traces a hundred times a second. Throughout, and whatever the attack, the server's
memory grows by at most 64 MB, its descriptors and files stay bounded, 99 % of the honest client's
traces stand in its file within 250 ms, none is lost or doubled, and what the attacker caused to be
written is JSON that a terminal can be shown.

Run with -s to see the figures. HYPERLOG_LONG=1 gives the attacks more time and brings all of the
10,000 fresh keys; HYPERLOG_SEED=n repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from datetime import UTC, datetime

import pytest

from tests.faults.hostile import FORGED, Target, unprintable
from tests.faults.siege import Report, Siege, serving, tracing

LONG = bool(os.environ.get("HYPERLOG_LONG"))
SEED = int(os.environ.get("HYPERLOG_SEED") or random.SystemRandom().randrange(10**6))

pytestmark = pytest.mark.skipif(
    not LONG,
    reason="HYPERLOG_LONG=1 runs the hostile clients: memory held for all connections together and "
    "handshakes before their arithmetic are not bounded yet",
)

MAX_RSS_GROWTH = 64 * 2**20  # bytes
MAX_DESCRIPTORS = 128 + 32  # open log files, and some
MAX_P99 = 0.25  # s from an honest trace to its line
MAX_LINE = 64 * 1024  # bytes

UNBOUNDED = pytest.mark.xfail(
    raises=AssertionError,
    strict=False,
    reason="what connections hold unread is bounded for each, not for all of them together",
)
UNPACED = pytest.mark.xfail(
    raises=AssertionError,
    strict=False,
    reason="handshakes are computed before they are counted, and take all of the processor",
)
NAME = re.compile(r"[0-9a-f]{64}\.log(\.[1-9][0-9]*)?")


def identity(number: int = 0) -> str:
    """The attacker's public key of that number, in hex."""
    return Target(b"", ("", 0), 0.0, SEED).pair(number).public_key.hex()


@pytest.fixture(scope="module", autouse=True)
def data_folder(tmp_path_factory):
    """The honest client's spool stays out of the user's data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server and one honest client for all attacks that should leave no trace in it."""
    folder = tmp_path_factory.mktemp("shared")
    with serving(folder) as server, tracing(server) as honest:
        yield Siege(server, honest)


@pytest.fixture
def siege(tmp_path):
    """A fresh server and an honest client."""
    with serving(tmp_path) as server, tracing(server) as honest:
        yield Siege(server, honest)


def check(report: Report, siege: Siege) -> None:
    print(f"\n{report} seed={SEED}")
    assert report.lost == 0
    assert siege.honest.doubled == 0
    assert report.rss_growth <= MAX_RSS_GROWTH
    assert report.descriptors <= MAX_DESCRIPTORS
    assert report.p99 <= MAX_P99


def lines_of(siege: Siege, key: str) -> list[dict]:
    """The parsed lines of an attacker's log, each looked at closely."""
    parsed = []
    log = siege.server.log(bytes.fromhex(key))
    assert log.endswith(b"\n")
    for line in log[:-1].split(b"\n"):
        assert len(line) <= MAX_LINE
        text = line.decode()
        assert text.isprintable(), ascii(text)
        fields = json.loads(text)
        assert isinstance(fields, dict)
        written = datetime.strptime(fields["time"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        assert abs(time.time() - written.timestamp()) < 300
        if "note" not in fields:
            assert fields["userId"].endswith(f"___{key[:8]}")
            assert fields["userId"].isascii()
        parsed.append(fields)
    return parsed


def check_folder(siege: Siege) -> None:
    """Every file has the name of a key, and every line is one."""
    for name in os.listdir(siege.server.folder):
        assert NAME.fullmatch(name)
        lines_of(siege, name[:64])


# -- what stands in a message


def test_forged_fields_are_told_apart_from_the_servers(shared):
    check(shared.attack("forged_fields", seed=SEED), shared)
    lines = lines_of(shared, identity())
    records = [line for line in lines if "note" not in line]
    assert records
    for line in records:
        assert line.get("time") != FORGED["time"]
        assert line["userId"] != FORGED["userId"]
        assert line.get("key") is None
        assert "gap" not in line
    assert [line["clientNote"] for line in records if line.get("clientNote") == FORGED["note"]]
    for line in lines:
        if "gap" in line:  # what it claims, it claims of its own sessions
            assert line["gap"]["session"] in ("1", "9")


def test_escape_sequences_never_reach_a_terminal(shared):
    report = shared.attack("escape_sequences", seed=SEED, seconds=3.0)
    check(report, shared)
    assert report.attack["messages"] > len(unprintable())
    assert not report.attack["cut_off"]
    lines = lines_of(shared, identity())
    kept = {line["id"] for line in lines if "id" in line}
    assert "\x1b[2J\x1b[H" in kept  # escaped, and not dropped


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("broken_texts_in_records", 1.0),
        ("numbers_astray", 1.0),
        ("hellos_astray", 1.0),
        ("lying_batches", 1.0),
        ("sessions_by_the_thousand", 0.7),
        ("acknowledgement_flood", 1.0),
        ("never_reads", 2.0),
        ("slow_frames", 1.5),
        ("garbage_datagrams", 1.0),
    ],
)
def test_it_harms_nobody(shared, name, seconds):
    check(shared.attack(name, seed=SEED, seconds=seconds * (5 if LONG else 1)), shared)


def test_replayed_datagrams_write_nothing_and_end_nothing(shared):
    report = shared.attack("replays", seed=SEED + 1, seconds=1.0)
    check(report, shared)
    assert report.attack["intact"]
    assert json.loads(report.attack["greeting"])["lastSeenTraceNumber"] == 19
    key = Target(b"", ("", 0), 0.0, SEED + 1).pair(0).public_key
    lines = [json.loads(line) for line in shared.server.log(key).splitlines()]
    assert [line["traceNumber"] for line in lines if "note" not in line] == list(range(20))


def test_all_that_was_written_is_json_that_can_be_shown(shared):
    """After the tests above; every file of the server they share."""
    check_folder(shared)


# -- what is dear to look at, or to keep


def test_bombs_cost_the_others_no_time(siege):
    check(siege.attack("json_bombs", seed=SEED, seconds=0.3, size=2**20 - 4096), siege)
    check_folder(siege)


@pytest.mark.skipif(not LONG, reason="takes 15 s: set HYPERLOG_LONG=1")
@UNBOUNDED
def test_the_largest_bombs_cost_the_others_no_time(siege):
    check(siege.attack("json_bombs", seed=SEED, seconds=0.3, size=8 * 2**20 - 4096), siege)
    check_folder(siege)


@UNBOUNDED
def test_large_messages_cost_no_memory(siege):
    check(siege.attack("big_messages", seed=SEED), siege)
    check_folder(siege)


@pytest.mark.parametrize("size", [2**20, 8 * 2**20])
def test_large_batches_cost_the_others_no_time(shared, size):
    check(shared.attack("batches_of_small_records", seed=SEED, size=size), shared)


@UNBOUNDED
def test_unfinished_frames_cost_no_memory(siege):
    check(siege.attack("unfinished_frames", seed=SEED, seconds=2.0), siege)


@UNBOUNDED
def test_streams_with_holes_cost_no_memory(siege):
    check(siege.attack("holes_in_streams", seed=SEED, seconds=1.5), siege)


# -- how many come


def test_fresh_keys_take_few_files_and_little_memory(siege):
    options = {"keys": 10_000 if LONG else 1000}
    report = siege.attack("fresh_keys", seed=SEED, seconds=300.0 if LONG else 6.0, **options)
    check(report, siege)
    came = report.attack["keys"]
    assert came >= (9_900 if LONG else 100)
    assert len(os.listdir(siege.server.folder)) <= options["keys"] + 1
    assert report.folder_growth <= came * 2000 + 2**20


def test_silent_connections_do_not_keep_others_out(siege):
    with siege.newcomers(seconds=4.0, seed=SEED + 1) as came:
        report = siege.attack("silent_connections", seed=SEED, seconds=4.0, sources=4)
        check(report, siege)
    assert report.attack["opened"] > 256  # unproved_connections of limits.py
    assert came["came"] > 10
    assert came["failed"] == 0


def test_handshakes_without_hello_are_no_amplifier(siege):
    report = siege.attack("handshakes_without_hello", seed=SEED, seconds=2.0)
    check(report, siege)
    assert report.attack["received"] <= 3 * report.attack["sent"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kind": "junk", "sources": 1}, id="junk"),
        pytest.param({"kind": "junk", "sources": 500}, id="junk-from-many"),
        pytest.param({"kind": "genuine", "sources": 1}, id="genuine"),
        pytest.param({"kind": "genuine", "sources": 500}, id="genuine-from-many", marks=UNPACED),
        pytest.param(
            {"kind": "genuine", "sources": 1, "named": 100},
            id="genuine-named-by-a-relay",
            marks=UNPACED,
        ),
    ],
)
def test_a_flood_of_handshakes_is_survived(siege, options):
    with siege.newcomers(seconds=2.0, seed=SEED + 1) as came:
        check(siege.attack("handshake_flood", seed=SEED, seconds=1.5, **options), siege)
    if options["sources"] == 1 and "named" not in options:
        assert came["failed"] == 0


# -- the disk


def test_a_full_quota_stops_the_attacker_alone(tmp_path):
    options = ("--key-quota", "8MB", "--quota", "64MB")
    with serving(tmp_path, *options) as server, tracing(server) as honest:
        siege = Siege(server, honest)
        report = siege.attack("fills_the_disk", seed=SEED, seconds=2.0)
        check(report, siege)
        assert report.folder_growth <= 4 * 9 * 2**20
        assert report.folder_growth >= 8 * 2**20  # it did try
