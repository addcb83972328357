"""hyperlog.reception and hyperlog.resume: what a server makes of a connection's messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.control import Refusal, ServerOffer
from hyperlog.errors import SessionRewound
from hyperlog.reception import MAX_BAD_MESSAGES, ReceptionLimits, ServerConversation
from hyperlog.records import iso_time
from hyperlog.resume import MAX_SESSIONS, Received, ResumeState

CAPTURE = Path(__file__).parent / "vectors" / "dht" / "capture-trace-logger.json"
KEY = bytes.fromhex("8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394")
NOW = 1795223619.131


class Server(ServerConversation):
    """Remembers what it received last, for `written_all`."""

    last = Received()

    def take(self, *messages: bytes) -> list[dict]:
        self.last = self.receive_messages(messages, NOW)
        return [json.loads(line) for line in self.last.lines]

    def written_all(self) -> None:
        self.written(self.last)


def make_server(resume: ResumeState | None = None, connection_number: int = 1) -> Server:
    """Of the JavaScript rule only."""
    return Server(KEY, resume or ResumeState(), connection_number)


def received(server: Server, *messages: bytes) -> list[dict]:
    return server.take(*messages)


def message(number: int, session: str = "77", **more) -> bytes:
    fields = {
        "traceTimestamp": iso_time(NOW),
        "traceSessionId": session,
        "traceNumber": number,
        "object": {"id": 1, "className": "Main", "props": None},
        "caller": {"filename": "f", "functionName": "run"},
        **more,
    }
    return json.dumps(fields).encode()


def gap_message(first: int, last: int, count: int, session: str = "77") -> bytes:
    gap = {"session": session, "from": first, "to": last, "count": count, "reason": "buffer-full"}
    return json.dumps(
        {
            "traceTimestamp": iso_time(NOW),
            "traceSessionId": session,
            "traceNumber": last,
            "note": "Lost",
            "gap": gap,
        }
    ).encode()


def notes(lines: list[dict]) -> list[str]:
    return [line["note"] for line in lines if "note" in line]


def numbers(lines: list[dict]) -> list[int]:
    return [line["traceNumber"] for line in lines if "traceNumber" in line]


# -- the JavaScript rule


def captured(event: str) -> list[dict]:
    return [row for row in json.loads(CAPTURE.read_text())["rows"] if row.get("event") == event]


def test_greeting_equals_that_of_the_javascript_server():
    assert make_server().greeting(5.0).decode() == captured("client-data")[0]["d"]
    assert (
        make_server(ResumeState([("76", 9), ("77", 5)])).greeting(5.0)
        == b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":5}'
    )


def test_the_log_equals_that_of_the_javascript_server():
    server = make_server()
    lines = []
    for row in captured("client-write"):
        lines += server.receive_messages([row["d"].encode()], NOW).lines
    expected = []
    for line in captured("log-file-final")[0]["text"].splitlines():
        fields = json.loads(line)
        if not fields.get("note", "").startswith("Socket error"):
            expected.append({**fields, "time": iso_time(NOW)})
    assert [json.loads(line) for line in lines] == expected
    assert [list(json.loads(line)) for line in lines] == [list(fields) for fields in expected]


def test_a_socket_error_is_noted_as_in_the_original():
    (line,) = make_server().closing_lines(NOW, ("ECONNRESET", "connection reset by peer"))
    original = [json.loads(t) for t in captured("log-file-final")[0]["text"].splitlines()]
    expected = [fields["note"] for fields in original if "Socket error" in fields.get("note", "")]
    assert json.loads(line)["note"] in expected


def test_missing_numbers_are_noted():
    server = make_server(ResumeState([("77", 3)]))
    lines = received(server, message(4), message(7), message(8))
    assert notes(lines) == ["Skipped 2 messages! lastSeenTraceNumber=4 traceNumber=7"]
    assert numbers(lines) == [4, 7, 8]


def test_missing_numbers_at_the_start_of_a_session_are_noted_too():
    lines = received(make_server(), message(3072))
    assert notes(lines) == [
        f"New session from {KEY.hex()}. sessionId=77",
        "Skipped 3072 messages! lastSeenTraceNumber=null traceNumber=3072",
    ]


def test_repeats_are_counted_and_not_written():
    server = make_server()
    lines = received(server, message(0), message(1), message(0), message(1), message(2))
    assert numbers(lines) == [0, 1, 2]
    assert (server.records, server.repeats) == (3, 2)


def test_only_written_records_are_acknowledged():
    resume = ResumeState()
    server = make_server(resume)
    received(server, message(0), message(1))
    assert resume.last_seen == (None, None)
    server.written_all()
    assert resume.last_seen == ("77", 1)
    received(server, message(2))
    assert make_server(resume).greeting(5.0).endswith(b'"lastSeenTraceNumber":1}')


def test_after_a_failed_write_records_come_again_and_other_connections_must_close():
    resume = ResumeState()
    first, second = make_server(resume, 1), make_server(resume, 2)
    received(first, message(0))
    first.written_all()
    received(first, message(1))
    received(second, message(2))  # relies on the line of 1
    resume.rewind()
    first.written_all()
    second.written_all()
    assert resume.last_seen == ("77", 0)
    for old in (first, second):
        with pytest.raises(SessionRewound):
            received(old, message(3))
    third = make_server(resume, 3)
    assert numbers(received(third, message(1), message(2))) == [1, 2]


def test_a_failed_first_write_leaves_nothing_behind():
    resume = ResumeState()
    received(make_server(resume), message(0))
    resume.rewind()
    assert resume.last_seen == (None, None)
    lines = received(make_server(resume), message(0))
    assert len(notes(lines)) == 1  # the note of the new session is repeated too
    assert numbers(lines) == [0]


def test_two_sessions_of_one_key_do_not_disturb_each_other():
    resume = ResumeState()
    first, second = make_server(resume, 1), make_server(resume, 2)
    lines = []
    for n in range(3):
        lines += received(first, message(n, "1"))
        lines += received(second, message(n, "2"))
        first.written_all()
        second.written_all()
    assert len(notes(lines)) == 2
    assert numbers(lines) == [0, 0, 1, 1, 2, 2]
    assert resume.last_seen == ("2", 2)


def test_a_client_that_reconnects_beside_its_old_connection_is_written_once():
    resume = ResumeState()
    old, new = make_server(resume, 1), make_server(resume, 2)
    lines = received(old, message(0), message(1), message(2))
    lines += received(new, message(0), message(1), message(2), message(3))
    assert numbers(lines) == [0, 1, 2, 3]


def test_sessions_remembered_are_bounded_but_for_those_that_wait_to_be_written():
    resume = ResumeState((str(n), 0) for n in range(MAX_SESSIONS * 2))
    assert len(resume.sessions) == MAX_SESSIONS
    server = make_server(resume)
    waiting = server.receive_messages([message(0, "waiting")], NOW)
    for n in range(MAX_SESSIONS * 2):
        received(server, message(0, f"new-{n}"))
        server.written_all()
        assert len(resume.sessions) <= MAX_SESSIONS
    assert resume.last_seen == (f"new-{MAX_SESSIONS * 2 - 1}", 0)
    server.written(waiting)
    assert resume.written("waiting") == 0


def test_a_session_is_remembered_however_many_others_wait_to_be_written():
    resume = ResumeState()
    server = make_server(resume)
    waiting = []
    for n in range(MAX_SESSIONS + 1):
        waiting.append(server.receive_messages([message(0, str(n))], NOW))
    for lines in waiting:
        server.written(lines)
    last = str(MAX_SESSIONS)
    assert resume.written(last) == 0
    assert received(server, message(0, last)) == []  # it is there already


def test_user_ids_follow_the_props():
    server = make_server(connection_number=7)
    lines = received(
        server,
        message(0),
        message(1, props={"alias": "bob"}),
        message(2, props={"alias": "bob", "username": "ann"}),
        message(3, props=None),
    )
    short = KEY.hex()[:8]
    assert [line["userId"] for line in lines if "userId" in line] == [
        f"User-7___{short}",
        f"bob___{short}",
        f"ann___{short}",
        f"User-7___{short}",
    ]
    assert server.user_id == f"User-7___{short}"


def test_bad_messages_are_noted_once_and_do_not_stop_the_others():
    server = make_server()
    lines = received(server, message(0), b"{", b"[]", message(1))
    assert numbers(lines) == [0, 1]
    assert len([note for note in notes(lines) if note.startswith("Bad message")]) == 1
    assert server.bad_messages == 2
    assert server.violation is None
    closing = [json.loads(line)["note"] for line in server.closing_lines(NOW)]
    assert closing == ["Dropped 2 bad messages!"]


def test_too_many_bad_messages_end_the_connection():
    server = make_server()
    lines = received(server, message(0), *[b"{"] * (MAX_BAD_MESSAGES + 1), message(1))
    assert server.violation is not None
    assert numbers(lines) == [0]
    assert received(server, message(1)) == []


def test_empty_messages_are_keep_alives():
    server = make_server()
    assert received(server, b"") == []
    assert server.bad_messages == 0


@pytest.mark.parametrize(("seen", "start"), [(-1, 0), (2, 3)])
def test_a_gap_is_written_by_the_server_and_clipped_to_what_it_has_not_seen(seen, start):
    server = make_server(ResumeState([("77", seen)]))
    lines = received(server, gap_message(0, 8, 9), message(9))
    count = 9 - start
    assert lines[0] == {
        "time": iso_time(NOW),
        "note": f"Lost {count} messages before sending! from={start} to=8 reason=buffer-full",
        "gap": {"session": "77", "from": start, "to": 8, "count": count, "reason": "buffer-full"},
    }
    assert len(notes(lines)) == 1
    assert numbers(lines) == [9]


def test_numbers_missing_before_a_gap_are_noted():
    lines = received(make_server(ResumeState([("77", 5)])), gap_message(8, 8, 5))
    assert notes(lines) == [
        "Skipped 2 messages! lastSeenTraceNumber=5 traceNumber=8",
        "Lost 5 messages before sending! from=8 to=8 reason=buffer-full",
    ]


# -- version 2


def open_server(resume: ResumeState | None = None, admit=None, **limits) -> Server:
    return Server(
        KEY,
        resume or ResumeState(),
        1,
        offer=ServerOffer(),
        admit=admit,
        limits=ReceptionLimits(**limits),
    )


def hello(**sessions: int) -> bytes:
    named = {id.removeprefix("s"): number for id, number in sessions.items()}
    return json.dumps({"hello": {"version": 2, "sessions": named}}).encode()


def batch(first: int, *lines: bytes, session: str = "77", count: int | None = None) -> bytes:
    head = {"session": session, "from": first, "count": len(lines) if count is None else count}
    return b"\n".join([json.dumps({"batch": head}).encode(), *lines])


def records(first: int, last: int, session: str = "77") -> list[bytes]:
    return [message(n, session) for n in range(first, last + 1)]


def answers(server: Server) -> list[dict]:
    return [json.loads(data) for data in server.messages_to_send()]


def test_the_greeting_offers_version_2_beside_the_javascript_fields():
    greeting = json.loads(open_server(ResumeState([("77", 5)])).greeting(5.0))
    assert greeting == {
        "lastSeenTraceSessionId": "77",
        "lastSeenTraceNumber": 5,
        "hyperlog": {
            "version": 2,
            "maxMessage": 8 * 1024 * 1024,
            "maxRecord": 1024 * 1024,
            "durability": "write",
            "time": 5000,
        },
    }


def test_a_client_that_begins_with_a_record_speaks_the_javascript_rule():
    server = open_server()
    assert numbers(received(server, message(0), message(1))) == [0, 1]
    server.written_all()
    assert answers(server) == []
    assert received(server, hello(s77=-1)) == [] or server.bad_messages == 1


def test_what_another_connection_brought_is_not_acknowledged_over_this_one():
    resume = ResumeState()
    old, new = open_server(resume), open_server(resume)
    for server in (old, new):
        received(server, hello(s77=-1))
        answers(server)
    received(old, batch(0, *records(0, 9)))
    assert received(new, batch(0, *records(0, 2))) == []
    old.written_all()
    new.written_all()
    assert answers(old) == [{"ack": {"sessions": {"77": 9}}}]
    assert answers(new) == [{"ack": {"sessions": {"77": 2}}}]
    received(new, batch(3, *records(3, 11)))
    new.written_all()
    assert answers(new) == [{"ack": {"sessions": {"77": 11}}}]


def test_a_hello_is_welcomed_with_the_resume_points():
    server = open_server(ResumeState([("77", 5), ("78", 2)]))
    assert received(server, hello(s77=-1, s78=2, s79=-1)) == []
    assert answers(server) == [{"welcome": {"sessions": {"77": 5, "78": 2, "79": -1}}}]
    received(server, b'{"resume":{"sessions":{"80":-1}}}')
    assert answers(server) == [{"welcome": {"sessions": {"80": -1}}}]


def test_batches_are_acknowledged_once_they_are_written_and_together():
    server = open_server()
    received(server, hello(s77=-1))
    answers(server)
    first = server.receive_messages([batch(0, *records(0, 2))], NOW)
    second = server.receive_messages([batch(3, *records(3, 4))], NOW)
    assert len(first.lines) == 4  # a note of the new session
    assert answers(server) == []
    server.written(first)
    server.written(second)
    assert answers(server) == [{"ack": {"sessions": {"77": 4}}}]
    assert answers(server) == []


def test_repeats_are_passed_over_and_acknowledged_when_the_first_are_written():
    resume = ResumeState()
    old, new = open_server(resume), open_server(resume)
    for server in (old, new):
        received(server, hello(s77=-1))
        answers(server)
    first = old.receive_messages([batch(0, *records(0, 2))], NOW)
    again = new.receive_messages([batch(0, *records(0, 2))], NOW)
    assert again.lines == []
    assert new.repeats == 3
    old.written(first)
    new.written(again)
    assert answers(new) == [{"ack": {"sessions": {"77": 2}}}]


def test_sessions_are_acknowledged_each_for_itself():
    server = open_server()
    received(server, hello(s1=-1, s2=-1))
    answers(server)
    received(
        server, batch(0, *records(0, 2, "1"), session="1"), batch(0, message(0, "2"), session="2")
    )
    server.written_all()
    assert answers(server) == [{"ack": {"sessions": {"1": 2, "2": 0}}}]


def test_a_resume_behind_a_batch_does_not_hide_what_it_brought():
    server = open_server()
    received(server, hello(s77=-1))
    received(server, batch(0, message(0)), b'{"resume":{"sessions":{"78":-1}}}')
    server.written_all()
    assert answers(server)[-1] == {"ack": {"sessions": {"77": 0}}}


def test_a_bad_line_is_told_by_a_gap_and_the_rest_is_taken():
    server = open_server()
    received(server, hello(s77=-1))
    lines = received(server, batch(0, message(0), b"{", message(2), message(3, "78"), message(4)))
    gaps = [line["gap"] for line in lines if "gap" in line]
    assert [(gap["from"], gap["to"], gap["count"], gap["reason"]) for gap in gaps] == [
        (1, 1, 1, "server-refused"),
        (3, 3, 1, "server-refused"),
    ]
    assert numbers(lines) == [0, 2, 4]
    assert len([note for note in notes(lines) if note.startswith("Bad message")]) == 1
    server.written_all()
    assert answers(server)[-1] == {"ack": {"sessions": {"77": 4}}}


def test_a_hole_is_noted_and_numbers_never_go_back():
    server = open_server(ResumeState([("77", 1)]))
    received(server, hello(s77=1))
    lines = received(server, batch(5, message(5)), batch(2, *records(2, 4)), batch(6, message(6)))
    assert notes(lines) == ["Skipped 3 messages! lastSeenTraceNumber=1 traceNumber=5"]
    assert numbers(lines) == [5, 6]


def test_records_that_were_acknowledged_and_are_not_here_are_told():
    server = open_server(ResumeState([("77", 5)]))
    lines = received(server, hello(s77=9))
    assert [line["gap"] for line in lines] == [
        {"session": "77", "from": 6, "to": 9, "count": 4, "reason": "server-lost"}
    ]
    assert answers(server) == [{"welcome": {"sessions": {"77": 9}}}]
    assert numbers(received(server, batch(10, message(10)))) == [10]


def test_an_unknown_session_that_was_acknowledged_elsewhere_goes_on_without_a_gap():
    server = open_server()
    lines = received(server, hello(s77=9), batch(10, message(10)))
    assert notes(lines) == [
        f"New session from {KEY.hex()}. sessionId=77",
        "Session continues after 9: it was acknowledged elsewhere",
    ]
    assert numbers(lines) == [10]


def test_a_refusal_is_sent_and_ends_the_connection():
    server = open_server(admit=lambda hello: Refusal("TOKEN_REQUIRED", "bring one"))
    received(server, hello(s77=-1), batch(0, message(0)))
    assert server.violation is not None
    assert not server.has_messages
    assert [json.loads(message) for message in server.closing_messages()] == [
        {"refused": {"code": "TOKEN_REQUIRED", "reason": "bring one"}}
    ]
    assert server.last.lines == []


def test_a_later_version_is_refused():
    server = open_server()
    received(server, b'{"hello":{"version":3,"sessions":{}}}')
    assert json.loads(server.closing_messages()[0])["refused"]["code"] == "VERSION"


def test_the_token_is_not_kept():
    seen = []
    server = open_server(admit=lambda hello: seen.append(hello.token))
    received(server, b'{"hello":{"version":2,"sessions":{},"token":"secret"}}')
    assert seen == ["secret"]
    assert server.hello.token is None


@pytest.mark.parametrize(
    "data",
    [
        b'{"hello":{"version":2,"sessions":{"77":-2}}}',
        b'{"hello":{"version":2,"sessions":{"77":9007199254740992}}}',
        b'{"hello":{"version":2,"sessions":{"":1}}}',
        b'{"hello":{"version":2,"sessions":["77"]}}',
        b'{"hello":5}',
        b'{"hello":{"version":2,"sessions":{%s}}}' % b",".join(b'"%d":1' % n for n in range(65)),
    ],
    ids=range(6),
)
def test_a_malformed_hello_ends_the_connection(data):
    server = open_server()
    received(server, data)
    assert server.violation is not None


@pytest.mark.parametrize(
    "data",
    [
        batch(0, message(0), count=2),
        batch(0, count=1),
        hello(s77=-1),
        b'{"batch":{"session":"77","from":0,"count":1}}\n' + b"x" * 20_000,
    ],
    ids=["count", "nothing", "second-hello", "too-long"],
)
def test_what_breaks_the_rules_ends_the_connection(data):
    server = open_server(max_message=10_000)
    received(server, hello(s77=-1))
    received(server, data)
    assert server.violation is not None
    assert received(server, batch(0, message(0))) == []


def test_unknown_messages_are_bad_ones():
    server = open_server()
    received(server, hello(s77=-1))
    received(server, b'{"something":1}', b"{", message(0), b"")
    assert server.bad_messages == 3
    assert server.violation is None


@given(st.lists(st.binary() | st.sampled_from([hello(s77=-1), batch(0, message(0)), b"{}"])))
def test_any_bytes_make_lines_or_a_violation(messages):
    server = open_server()
    for line in received(server, *messages):
        assert "time" in line
    server.written_all()
    answers(server)


class CountedWalks(dict):
    """Counts how often somebody goes through all of it."""

    walks = 0

    def items(self):
        self.walks += 1
        return super().items()


def test_many_sessions_that_wait_to_be_written_are_not_gone_through_for_each_record():
    resume = ResumeState()
    resume.sessions = sessions = CountedWalks()
    numbers = {}
    for number in range(20 * MAX_SESSIONS):
        resume.enter(f"s{number}")[0].received = 0
        numbers[f"s{number}"] = 0
    assert sessions.walks < 10
    assert len(sessions) == len(numbers), "none that waits is forgotten"
    resume.commit(numbers)
    resume.enter("one more")
    assert len(sessions) == MAX_SESSIONS, "those that are written make room at once"
