"""hyperlog.session and what carries it by the JavaScript rule: both ends joined by a list."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hyperlog.conversation import ClientConversation
from hyperlog.diskspool import SpooledSession
from hyperlog.errors import BadGreeting
from hyperlog.logs import LogEntry
from hyperlog.reception import ServerConversation
from hyperlog.records import iso_time
from hyperlog.resume import Received, ResumeState
from hyperlog.session import ClientSession
from hyperlog.trace import CallSite, Trace, TracedObject
from hyperlog.tracequeue import TraceQueue

KEY = bytes.fromhex("8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394")
NOW = 1795223619.131
EVERYTHING = 2**30
SITE = CallSite("run", "/app/main.py", 1, 1)
SOURCE = TracedObject("Main", 1)


def make_trace(n: int = 0, **props) -> Trace:
    return Trace(None, SOURCE, None, None, SITE, {"n": n, **props})


class Client(ClientSession):
    """A session with a connection at a time, to a server of the JavaScript rule."""

    conversation: ClientConversation | None = None

    def open(self) -> None:
        self.conversation = ClientConversation(self)

    def close(self) -> None:
        self.conversation = None

    def messages_to_send(self, max_bytes: int) -> list[bytes]:
        if self.conversation is None:
            return []
        return self.conversation.messages_to_send(max_bytes, NOW, 0.0)

    def receive(self, data: bytes) -> None:
        self.conversation.receive_message(data)


def make_client(max_bytes: int = 2**20, session_id: str = "77", props=None) -> Client:
    queue = TraceQueue(max_bytes)
    return Client(SpooledSession(session_id, max_memory_bytes=max_bytes * 3 // 4), queue, props)


def record(client: Client, numbers, **props) -> None:
    for n in numbers:
        client.trace(make_trace(n, **props), NOW)
        client.drain(NOW)


def greet(client: Client, session_id=None, number=None) -> None:
    client.open()
    client.receive(
        json.dumps({"lastSeenTraceSessionId": session_id, "lastSeenTraceNumber": number}).encode()
    )


def sent(client: Client, max_bytes: int = EVERYTHING) -> list[dict]:
    return [json.loads(data) for data in client.messages_to_send(max_bytes)]


def sent_numbers(client: Client, max_bytes: int = EVERYTHING) -> list[int]:
    return [message["traceNumber"] for message in sent(client, max_bytes)]


def notes(lines: list[dict]) -> list[str]:
    return [line["note"] for line in lines if "note" in line]


# -- the client's end


def test_nothing_is_sent_before_the_greeting():
    client = make_client()
    record(client, range(3))
    assert sent(client) == []
    client.open()
    assert sent(client) == []
    client.receive(b'{"lastSeenTraceSessionId":null,"lastSeenTraceNumber":null}')
    assert sent_numbers(client) == [0, 1, 2]
    record(client, [3])
    assert sent_numbers(client) == [3]
    assert sent(client) == []


def test_sending_resumes_after_what_the_server_has_seen():
    client = make_client()
    record(client, range(6))
    greet(client, "77", 2)
    assert sent_numbers(client) == [3, 4, 5]


def test_another_session_seen_means_sending_everything():
    client = make_client()
    record(client, range(3))
    greet(client, "78", 9)
    assert sent_numbers(client) == [0, 1, 2]


def test_after_a_reconnect_the_unseen_comes_again():
    client = make_client()
    record(client, range(6))
    greet(client)
    assert sent_numbers(client) == list(range(6))
    client.transport_confirmed(5)
    client.close()
    assert sent(client) == []
    greet(client, "77", 3)
    assert sent_numbers(client) == [4, 5]  # delivered, but not written


def test_a_greeting_frees_the_buffer_and_delivery_alone_does_not():
    client = make_client()
    record(client, range(6))
    greet(client)
    sent(client)
    client.transport_confirmed(5)
    assert client.unconfirmed == 0
    assert client.spool.first_number == 0
    client.close()
    greet(client, "77", 5)
    assert client.spool.first_number == 6


def test_unconfirmed_counts_what_may_be_missing():
    client = make_client()
    assert client.unconfirmed == 0
    client.trace(make_trace(), NOW)
    assert client.unconfirmed == 1
    client.drain(NOW)
    record(client, range(3))
    assert client.unconfirmed == 4
    greet(client)
    sent(client)
    assert client.last_sent_number == 3
    client.transport_confirmed(1)
    assert client.unconfirmed == 2
    client.transport_confirmed(0)
    assert client.unconfirmed == 2
    client.transport_confirmed(99)  # never sent: not believed
    assert client.unconfirmed == 2
    client.transport_confirmed(3)
    assert client.unconfirmed == 0


def test_a_server_that_forgot_makes_records_unconfirmed_again():
    client = make_client()
    record(client, range(4))
    greet(client)
    sent(client)
    client.transport_confirmed(3)
    client.close()
    greet(client, None, None)
    assert client.unconfirmed == 4
    assert sent_numbers(client) == [0, 1, 2, 3]


def test_batches_are_bounded():
    client = make_client()
    record(client, range(10))
    greet(client)
    assert sent_numbers(client, 1) == [0]
    assert sent_numbers(client, 600) == [1, 2]
    assert sent_numbers(client) == list(range(3, 10))


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"null",
        b'{"lastSeenTraceSessionId":5}',
        b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":"1"}',
        b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":1.5}',
        b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":-2}',
        b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":3}',
        b'{"lastSeenTraceSessionId":"\xff"}',
        b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b" " * 100_000 + b"{}",
    ],
    ids=range(11),
)
def test_a_bad_greeting_raises_and_changes_nothing(data):
    client = make_client()
    record(client, range(3))
    client.open()
    with pytest.raises(BadGreeting):
        client.receive(data)
    assert sent(client) == []
    greet(client, "77", 0)
    assert sent_numbers(client) == [1, 2]


@given(st.binary())
def test_any_bytes_are_a_greeting_or_raise_bad_greeting(data):
    client = make_client()
    client.open()
    try:
        client.receive(data)
    except BadGreeting:
        pass


def test_later_fields_and_messages_of_the_server_are_ignored():
    client = make_client()
    record(client, range(2))
    client.open()
    client.receive(b"")
    client.receive(b'{"lastSeenTraceSessionId":"77","lastSeenTraceNumber":0,"v":2}')
    client.receive(b"whatever")
    assert sent_numbers(client) == [1]


def test_client_props_go_along_from_the_time_they_were_added():
    client = make_client(props={"app": "x"})
    client.trace(make_trace(), NOW)
    client.add_props({"alias": "bob", "app": "y"})
    client.trace(make_trace(), NOW)
    assert client.drain(NOW) == 2
    greet(client)
    assert [m["props"] for m in sent(client)] == [{"app": "x"}, {"app": "y", "alias": "bob"}]


def test_drain_numbers_in_the_order_of_arrival():
    client = make_client()
    for n in range(10):
        client.trace(make_trace(n), NOW + n)
    assert client.drain(NOW, limit=4) == 4
    assert client.drain(NOW) == 6
    greet(client)
    messages = sent(client)
    assert [m["caller"]["props"]["n"] for m in messages] == list(range(10))
    assert [m["traceNumber"] for m in messages] == list(range(10))
    assert messages[9]["traceTimestamp"] == iso_time(NOW + 9)


def test_numbers_never_contradict_the_order_of_a_thread():
    client = make_client(2**24)

    def run(thread: int) -> None:
        for n in range(500):
            client.trace(make_trace(n, thread=thread), NOW)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        client.drain(NOW)
    while client.drain(NOW):
        pass
    greet(client)
    props = [m["caller"]["props"] for m in sent(client)]
    assert len(props) == 2000
    for thread in range(4):
        assert [p["n"] for p in props if p["thread"] == thread] == list(range(500))


# -- what had to be given up

SMALL = 16 * 1024
PADDING = "x" * 1000


def test_records_given_up_before_the_connection_are_told_first():
    client = make_client(SMALL)
    for n in range(20):
        record(client, [n], text=PADDING)
    greet(client)
    first, *rest = sent(client)
    assert first["gap"] == {
        "session": "77",
        "from": 0,
        "to": rest[0]["traceNumber"] - 1,
        "count": rest[0]["traceNumber"],
        "reason": "buffer-full",
    }
    assert first["traceNumber"] == first["gap"]["to"]
    assert rest[-1]["traceNumber"] == 19
    assert client.lost == first["gap"]["count"]


def test_records_given_up_after_delivery_are_no_loss():
    client = make_client(SMALL)
    record(client, range(5))
    greet(client)
    sent(client)
    client.transport_confirmed(4)
    for n in range(5, 25):
        record(client, [n], text=PADDING)
        sent(client)
        client.transport_confirmed(n)
    client.close()
    greet(client)  # a server that knows nothing
    assert "gap" not in sent(client)[0]
    assert client.lost == 0


def test_a_server_that_lost_delivered_records_is_told_that_they_are_gone():
    client = make_client(SMALL)
    greet(client)
    for n in range(25):
        record(client, [n], text=PADDING)
        sent(client)
        client.transport_confirmed(n)
    client.close()
    greet(client, "77", 3)
    first = sent(client)[0]
    assert first["gap"]["from"] == 4
    assert client.lost == first["gap"]["count"]


def test_records_given_up_while_connected_are_told_in_their_place():
    client = make_client(SMALL)
    record(client, range(3))
    greet(client)
    assert sent_numbers(client) == [0, 1, 2]
    for n in range(3, 30):
        record(client, [n], text=PADDING)
    messages = sent(client)
    assert messages[0]["gap"]["from"] == 3
    assert messages[0]["gap"]["to"] + 1 == messages[1]["traceNumber"]
    # Told again on the next connection, as the server has not seen it, but counted once.
    lost = client.lost
    client.close()
    greet(client, "77", 2)
    assert sent(client)[0]["gap"]["from"] == 3
    assert client.lost == lost


def test_traces_given_up_before_they_had_numbers_are_told_in_their_place():
    client = make_client(SMALL)
    for n in range(20):
        client.trace(make_trace(n), NOW)
    client.drain(NOW)
    greet(client)
    first, second, *_ = sent(client)
    assert first["gap"] == {
        "session": "77",
        "from": 0,
        "to": 0,
        "count": 4,
        "reason": "queue-full",
    }
    assert second["traceNumber"] == 1
    assert second["caller"]["props"]["n"] == 4
    assert client.lost == 4


def test_a_trace_that_gives_way_while_traces_are_taken_out_is_told_with_them():
    class BusyQueue(TraceQueue):
        def take_pending(self, limit):
            for n in range(1, 20):  # another thread's
                client.trace(make_trace(n), NOW)
            return super().take_pending(limit)

    queue = BusyQueue(SMALL)
    client = Client(SpooledSession("77", max_memory_bytes=SMALL), queue)
    client.trace(make_trace(0), NOW)
    assert client.drain(NOW, limit=1) == 1
    greet(client)
    first, second = sent(client)
    assert first["gap"]["count"] == 4
    assert second["caller"]["props"]["n"] == 4


# -- both ends


class Ends(RuleBasedStateMachine):
    """Whatever happens to connections, writes and servers, each record is in the log once, or is
    told to be lost, or is still with the client."""

    def __init__(self) -> None:
        super().__init__()
        self.client = make_client(SMALL)
        self.log: list[dict] = []
        self.resume = ResumeState()
        self.server: ServerConversation | None = None
        self.wire: list[bytes] = []
        self.made = 0

    @rule(size=st.integers(0, 3000), count=st.integers(1, 8))
    def trace(self, size, count):
        for _ in range(count):
            self.client.trace(make_trace(self.made, text="x" * size), NOW)
            self.made += 1

    @rule(limit=st.integers(1, 20))
    def drain(self, limit):
        self.client.drain(NOW, limit)

    @rule()
    def connect(self):
        self.disconnect()
        self.server = ServerConversation(KEY, self.resume, 1)
        self.client.open()
        self.client.receive(self.server.greeting(0.0))

    @precondition(lambda self: self.server)
    @rule(size=st.integers(1, 8000))
    def send(self, size):
        self.wire += self.client.messages_to_send(size)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def deliver(self, data):
        count = data.draw(st.integers(1, len(self.wire)))
        received = self.receive(count)
        if data.draw(st.booleans(), label="written"):
            self.log += map(json.loads, received.lines)
            self.server.written(received)
            if not self.wire:
                self.client.transport_confirmed(self.client.last_sent_number)
        else:
            self.resume.rewind()
            self.disconnect()

    def receive(self, count: int) -> Received:
        received = self.server.receive_messages(self.wire[:count], NOW)
        del self.wire[:count]
        return received

    @rule()
    def disconnect(self):
        self.client.close()
        self.server = None
        self.wire.clear()

    @rule()
    def restart_server(self):
        self.disconnect()
        seen: dict[str, int] = {}
        for line in self.log:
            if "traceNumber" in line:
                seen[line["traceSessionId"]] = line["traceNumber"]
            elif "gap" in line:
                seen[line["gap"]["session"]] = line["gap"]["to"]
        self.resume = ResumeState(seen.items())

    @invariant()
    def the_log_is_in_order_without_repeats(self):
        written = [line["caller"]["props"]["n"] for line in self.log if "caller" in line]
        assert written == sorted(set(written))
        assert not [note for note in notes(self.log) if note.startswith("Skipped")]

    def teardown(self):
        while self.client.drain(NOW):
            pass
        self.connect()
        self.wire = self.client.messages_to_send(EVERYTHING)
        self.log += map(json.loads, self.receive(len(self.wire)).lines)
        written = [line for line in self.log if "caller" in line]
        gaps = [line["gap"] for line in self.log if "gap" in line]
        lost = sum(gap["count"] for gap in gaps)
        assert len(written) + lost == self.made
        assert self.client.lost == lost
        # Numbers are complete without exception.
        covered = {line["traceNumber"] for line in written}
        for gap in gaps:
            covered.update(range(gap["from"], gap["to"] + 1))
        assert covered == set(range(self.client.last_sent_number + 1))


TestEnds = Ends.TestCase
TestEnds.settings = settings(max_examples=80, deadline=None)


# -- log messages


def test_traces_and_log_messages_are_numbered_in_one_sequence():
    client = make_client(props={"username": "Kim"})
    for n in range(6):
        if n % 2:
            client.trace(make_trace(n), NOW)
        else:
            client.log(LogEntry("INFO", f"message {n}"), NOW + n)
    assert client.drain(NOW) == 6
    messages = [json.loads(message) for message in client.spool.read(0, EVERYTHING)[1]]
    assert [message["traceNumber"] for message in messages] == list(range(6))
    assert [message.get("message") for message in messages[::2]] == [
        "message 0",
        "message 2",
        "message 4",
    ]
    assert [message["traceTimestamp"] for message in messages[::2]] == [
        iso_time(NOW + n) for n in (0, 2, 4)
    ]
    assert {message["props"]["username"] for message in messages} == {"Kim"}


def test_a_server_of_the_javascript_rule_gets_log_messages_in_the_form_of_traces():
    client = make_client()
    client.open()
    client.receive(b'{"lastSeenTraceSessionId":null,"lastSeenTraceNumber":null}')
    client.log(LogEntry("ERROR", "x", None, ("a.py", "f", 3)), NOW)
    client.drain(NOW)
    (message,) = map(json.loads, client.messages_to_send(EVERYTHING))
    assert (message["message"], message["level"], message["id"]) == ("x", "ERROR", "ERROR")
    assert message["object"]["className"] == "log"


def test_large_log_messages_use_up_the_room_that_they_take():
    client = make_client(2**20)
    for _ in range(40):
        client.log(LogEntry("INFO", "x" * 100_000), NOW)
    assert client.drain(NOW, 1000) < 20
    assert client.lost > 20
