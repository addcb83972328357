"""hyperlog.conversation: what a client says to a server that acknowledges, and when."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.conversation import UNREADABLE_RETRY, ClientConversation, Identity, Pace
from hyperlog.diskspool import SpooledSession, SpoolFolder
from hyperlog.errors import BadAnswer, BadGreeting, PeerProtocolError, ServerRefused
from hyperlog.session import ClientSession, KeptSession
from hyperlog.trace import CallSite, Trace, TracedObject
from hyperlog.tracequeue import TraceQueue

NOW = 1795223619.131
EVERYTHING = 2**30
SITE = CallSite("run", "/app/main.py", 1, 1)
SOURCE = TracedObject("Main", 1)
OFFER = {"version": 2, "maxMessage": 8388608, "maxRecord": 1048576, "durability": "write"}


def make_session(count: int = 0, max_bytes: int = 2**24) -> ClientSession:
    spool = SpooledSession("77", max_memory_bytes=max_bytes)
    session = ClientSession(spool, TraceQueue(2**24))
    record(session, count)
    return session


def record(session: ClientSession, count: int, **props) -> None:
    for n in range(count):
        session.trace(Trace(None, SOURCE, None, None, SITE, {"n": n, **props}), NOW)
        session.drain(NOW)


def make_kept(session_id: str, count: int, size: int = 100) -> KeptSession:
    spool = SpooledSession(session_id, max_memory_bytes=2**30)
    spool.put([b'{"x":"%b"}' % (b"x" * size)] * count)
    return KeptSession(spool)


def tell(conversation: ClientConversation, **message) -> None:
    conversation.receive_message(json.dumps(message).encode())


def greet(conversation: ClientConversation, **offer) -> dict:
    """Greet; the client's hello."""
    tell(
        conversation,
        lastSeenTraceSessionId=None,
        lastSeenTraceNumber=None,
        hyperlog={**OFFER, **offer},
    )
    (hello,) = conversation.messages_to_send(EVERYTHING, NOW, 0.0)
    return json.loads(hello)["hello"]


def welcome(conversation: ClientConversation, **sessions: int) -> None:
    tell(conversation, welcome={"sessions": {id[1:]: number for id, number in sessions.items()}})


def ack(conversation: ClientConversation, **sessions: int) -> None:
    tell(conversation, ack={"sessions": {id[1:]: number for id, number in sessions.items()}})


def sent(conversation: ClientConversation, max_bytes: int = EVERYTHING, clock: float = 0.0):
    """(session, from, lines) of each batch."""
    batches = []
    for data in conversation.messages_to_send(max_bytes, NOW, clock):
        head, *lines = data.split(b"\n")
        batch = json.loads(head)["batch"]
        assert batch["count"] == len(lines)
        batches.append((batch["session"], batch["from"], lines))
    return batches


def spans(batches) -> list[tuple[str, int, int]]:
    return [(session, first, len(lines)) for session, first, lines in batches]


def test_the_hello_names_what_was_left_behind_first_with_what_is_known():
    session = make_session(2)
    old = make_kept("11", 5)
    old.spool.release_through(2)
    conversation = ClientConversation(session, [old], identity=Identity("shop", "one", "its token"))
    assert greet(conversation) == {
        "sessions": {"11": 2, "77": -1},
        "version": 2,
        "application": "shop",
        "instance": "one",
        "token": "its token",
    }
    assert not conversation.greeted
    assert sent(conversation) == []
    welcome(conversation, s11=2, s77=-1)
    assert conversation.greeted
    assert conversation.acknowledges


def test_sending_goes_on_behind_the_resume_point_and_acknowledged_records_are_forgotten():
    session = make_session(6)
    conversation = ClientConversation(session)
    greet(conversation)
    welcome(conversation, s77=2)
    assert session.spool.first_number == 3
    assert spans(sent(conversation)) == [("77", 3, 3)]
    assert session.first_unconfirmed == 3
    ack(conversation, s77=4)
    assert session.spool.first_number == session.first_unconfirmed == 5
    ack(conversation, s77=5)
    assert session.unconfirmed == 0
    ack(conversation, s77=3)  # an old one
    assert session.unconfirmed == 0


def test_a_lone_record_leaves_at_once_and_a_burst_is_packed():
    session = make_session()
    conversation = ClientConversation(session)
    greet(conversation)
    welcome(conversation, s77=-1)
    record(session, 1)
    assert spans(sent(conversation)) == [("77", 0, 1)]
    record(session, 2000)
    batches = sent(conversation)
    assert sum(len(lines) for _, _, lines in batches) == 2000
    assert len(batches) < 10
    assert all(sum(map(len, lines)) <= 256 * 1024 for _, _, lines in batches)
    assert [first for _, first, _ in batches][:2] == [1, 1 + len(batches[0][2])]


def test_records_that_were_given_up_are_told_in_their_place():
    session = make_session(max_bytes=16 * 1024)
    record(session, 30, text="x" * 1000)
    conversation = ClientConversation(session)
    greet(conversation)
    welcome(conversation, s77=-1)
    ((_, first, lines),) = sent(conversation)
    gap = json.loads(lines[0])["gap"]
    assert first == gap["from"] == 0
    assert gap["reason"] == "buffer-full"
    assert gap["to"] + 1 == session.spool.first_number
    assert len(lines) == 30 - gap["to"]
    assert session.lost == gap["count"]


def test_what_the_server_does_not_accept_is_told_instead():
    session = make_session()
    record(session, 1)
    record(session, 1, text="x" * 5000)
    record(session, 1)
    conversation = ClientConversation(session)
    greet(conversation, maxRecord=2000)
    welcome(conversation, s77=-1)
    lines = [json.loads(line) for _, _, lines in sent(conversation) for line in lines]
    assert [line.get("gap", {}).get("reason") for line in lines] == [None, "too-large", None]
    assert [line["traceNumber"] for line in lines] == [0, 1, 2]
    assert session.lost == 1


def test_what_was_left_behind_goes_at_its_pace_and_new_records_in_between():
    session = make_session()
    old = make_kept("11", 5000, size=1000)
    conversation = ClientConversation(session, [old], pace=Pace(rate=1_000_000, burst=1_000_000))
    greet(conversation)
    welcome(conversation, s11=-1, s77=-1)
    size = sum(len(line) for _, _, lines in sent(conversation) for line in lines)
    assert 900_000 < size < 1_400_000  # the burst
    assert sent(conversation) == []
    at = conversation.next_send_at(0.0)
    assert 0 < at < 0.5
    record(session, 1)
    assert spans(sent(conversation)) == [("77", 0, 1)]
    batches = sent(conversation, clock=at)
    assert {id for id, _, _ in batches} == {"11"}
    clock, total = at, size + sum(len(line) for _, _, lines in batches for line in lines)
    while old.unsent:
        clock = max(conversation.next_send_at(clock), clock + 0.01)
        total += sum(len(line) for _, _, lines in sent(conversation, clock=clock) for line in lines)
    assert total > 5_000_000
    assert 3.5 < clock < 5.0
    assert conversation.next_send_at(clock) is None


def test_sessions_that_are_done_are_told_once_and_others_take_their_place():
    kept = [make_kept(str(100 + n), 1) for n in range(70)]
    conversation = ClientConversation(make_session(), kept)
    hello = greet(conversation)
    assert len(hello["sessions"]) == 64
    assert "77" in hello["sessions"]
    tell(conversation, welcome={"sessions": hello["sessions"]})
    assert len(sent(conversation)) == 63
    ack(conversation, s100=0, s101=0)
    done = conversation.take_delivered()
    assert [one.session_id for one in done] == ["100", "101"]
    assert conversation.take_delivered() == []
    (resume,) = conversation.messages_to_send(EVERYTHING, NOW, 0.0)
    assert json.loads(resume) == {"resume": {"sessions": {"163": -1, "164": -1}}}
    ack(conversation, s100=0)  # repeated
    tell(conversation, welcome={"sessions": {"163": -1, "164": 0}})
    assert [id for id, _, _ in sent(conversation)] == ["163"]
    assert [one.session_id for one in conversation.take_delivered()] == ["164"]


def test_a_session_found_later_is_named_then():
    conversation = ClientConversation(make_session())
    greet(conversation)
    welcome(conversation, s77=-1)
    conversation.add_left_behind(make_kept("11", 2))
    assert conversation.has_answers
    (resume,) = conversation.messages_to_send(EVERYTHING, NOW, 0.0)
    assert json.loads(resume) == {"resume": {"sessions": {"11": -1}}}
    assert sent(conversation) == []
    welcome(conversation, s11=0)
    assert spans(sent(conversation)) == [("11", 1, 1)]


def test_a_session_of_which_the_server_has_more_than_is_left_is_done():
    old = make_kept("11", 2)  # its end was damaged
    conversation = ClientConversation(make_session(), [old])
    greet(conversation)
    welcome(conversation, s11=9, s77=-1)
    assert conversation.take_delivered() == [old]


def test_by_the_javascript_rule_only_the_own_session_is_sent():
    conversation = ClientConversation(make_session(2), [make_kept("11", 2)])
    tell(conversation, lastSeenTraceSessionId=None, lastSeenTraceNumber=None)
    messages = conversation.messages_to_send(EVERYTHING, NOW, 0.0)
    assert [json.loads(data)["traceNumber"] for data in messages] == [0, 1]
    assert not conversation.acknowledges
    assert len(conversation.left_behind) == 1


def test_a_refusal_is_raised_with_its_code():
    conversation = ClientConversation(make_session())
    greet(conversation)
    with pytest.raises(ServerRefused, match="try later") as caught:
        tell(conversation, refused={"code": "LIMIT", "reason": "try later"})
    assert caught.value.refusal == "LIMIT"


@pytest.mark.parametrize(
    "answer",
    [
        {"welcome": {"sessions": {"78": 0}}},
        {"welcome": {"sessions": {"77": 2}}},
        {"welcome": {"sessions": {"77": -2}}},
        {"welcome": 5},
    ],
)
def test_a_welcome_that_cannot_be_true_is_an_error(answer):
    session = make_session(2)
    conversation = ClientConversation(session)
    greet(conversation)
    with pytest.raises(BadAnswer):
        tell(conversation, **answer)
    assert session.spool.first_number == 0


def test_nothing_of_the_own_session_is_sent_before_its_welcome():
    session = make_session(3)
    before = ClientConversation(session)
    greet(before)
    welcome(before, s77=-1)
    sent(before)  # and the connection breaks
    conversation = ClientConversation(session, [make_kept("11", 1)])
    greet(conversation)
    welcome(conversation, s11=-1)
    record(session, 1)
    assert spans(sent(conversation)) == [("11", 0, 1)]
    welcome(conversation, s77=-1)
    assert spans(sent(conversation)) == [("77", 0, 4)]


def test_an_acknowledgement_of_what_was_never_sent_is_an_error():
    session = make_session(2)
    conversation = ClientConversation(session)
    greet(conversation)
    welcome(conversation, s77=-1)
    with pytest.raises(BadAnswer, match="never sent"):
        ack(conversation, s77=0)
    assert session.spool.first_number == 0


def test_messages_of_later_versions_are_passed_over():
    session = make_session(1)
    conversation = ClientConversation(session)
    greet(conversation, version=3)
    tell(conversation, news={"x": 1})
    welcome(conversation, s77=-1)
    conversation.receive_message(b"")
    assert spans(sent(conversation)) == [("77", 0, 1)]


@given(st.lists(st.binary() | st.sampled_from([b'{"hyperlog":{}}', b'{"ack":{"sessions":{}}}'])))
def test_any_bytes_of_a_server_are_understood_or_raise(messages):
    conversation = ClientConversation(make_session(1))
    try:
        for data in messages:
            conversation.receive_message(data)
            conversation.messages_to_send(EVERYTHING, NOW, 0.0)
    except (PeerProtocolError, ServerRefused):
        pass


def test_a_bad_greeting_is_told():
    with pytest.raises(BadGreeting):
        ClientConversation(make_session()).receive_message(b"[]")


def test_a_pace_allows_a_burst_then_a_rate():
    pace = Pace(rate=100_000, burst=200_000)
    assert pace.allows(0.0)
    pace.take(250_000)
    assert not pace.allows(0.0)
    at = pace.allows_at(0.0)
    assert at == pytest.approx((65536 + 50_000) / 100_000)
    assert not pace.allows(at - 0.01)
    assert pace.allows(at + 0.01)
    assert not Pace(1.0, 1.0).allows_at(5.0) > 5.0
    with pytest.raises(ValueError, match="above zero"):
        Pace(rate=0)


def test_records_that_cannot_be_read_now_are_tried_again_by_the_javascript_rule(tmp_path):
    folder = SpoolFolder(tmp_path)
    left = folder.create("77")
    left.put([b"{}"])
    left.close()
    spool = folder.adopt("77")
    assert spool is not None
    spool._files._close_reader()
    segment = tmp_path / "77" / "00000000000000000000.seg"
    moved = segment.rename(tmp_path / "elsewhere")
    segment.symlink_to(moved)  # which is not followed: as good as a disk that does not read
    conversation = ClientConversation(ClientSession(spool, TraceQueue(2**24)))
    tell(conversation, lastSeenTraceSessionId=None, lastSeenTraceNumber=None)
    assert conversation.messages_to_send(EVERYTHING, NOW, 0.0) == []
    assert conversation.next_send_at(0.0) == UNREADABLE_RETRY
    moved.rename(segment)
    assert conversation.messages_to_send(EVERYTHING, NOW, 0.0) == [b"{}"]
    assert conversation.next_send_at(0.0) is None
    spool.close()
