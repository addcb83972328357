"""Both ends, the network, the disk and the spool as one machine that breaks at every step.

Each seed is one story: applications trace, processes are killed and started again, connections
break with messages under way, the server dies in the middle of a write, its disk is full, its
machine loses power, it is exchanged for one that speaks the JavaScript rule only. At the end all
faults stop, and then each record that was accepted stands in the log exactly once or is told in a
gap line, no client has anything left, and no acknowledgement was ever ahead of the disk.

The cores under test are the real ones; only what carries and stores is simulated. Run a story again
with HYPERLOG_SEED=n, all 10,000 of them with HYPERLOG_LONG=1.
"""

from __future__ import annotations

import io
import json
import os
import random
from bisect import bisect_left
from collections import Counter, deque

import pytest

from hyperlog.control import ServerOffer
from hyperlog.conversation import ClientConversation, Pace
from hyperlog.errors import SessionRewound
from hyperlog.keylog import KeyLog
from hyperlog.reception import ServerConversation
from hyperlog.records import iso_time
from hyperlog.resume import ResumeState
from hyperlog.session import ClientSession, KeptSession
from hyperlog.sinks.scan import Sessions, continuation_line, session_of_line
from hyperlog.trace import CallSite, Trace, TracedObject

NOW = 1795223619.131
SITE = CallSite("run", "/app/main.py", 1, 1)
SOURCE = TracedObject("Main", 1)
SEEDS = 10_000 if os.environ.get("HYPERLOG_LONG") else 500
CHUNK = 50  # seeds in one test
ONE_SEED = os.environ.get("HYPERLOG_SEED")


class Queue:
    """Traces between threads are not this model's matter: one goes in, one comes out."""

    def __init__(self):
        self.traces = []

    @property
    def pending(self):
        return len(self.traces)

    def append(self, item, text_size=0):
        self.traces.append(item)

    def take_pending(self, limit):
        taken, self.traces = self.traces[:limit], self.traces[limit:]
        return taken

    def take_overflow(self):
        return 0


class Spool:
    """One session in the spool, which outlives its process; drops, damages and counts holes."""

    def __init__(self, session_id, limit):
        self.session_id = session_id
        self.limit = limit
        self.first_number = self.next_number = 0
        self.released_through = -1
        self.kept = {}
        self.reasons = {}
        self.lock = None
        self.unreadable = False
        self.confirmed = -1

    @property
    def finished(self):
        return self.released_through + 1 >= self.next_number

    def put(self, messages):
        for message in messages:
            self.kept[self.next_number] = message
            self.next_number += 1
        while len(self.kept) > self.limit:
            self.lose(min(self.kept), "spool-full")

    def lose(self, number, reason):
        if self.kept.pop(number, None) is not None:
            self.reasons[number] = reason
        self._update_first()

    def _update_first(self):
        self.first_number = min(self.kept, default=self.next_number)

    def read(self, number, max_bytes):
        numbers = sorted(self.kept)
        at = bisect_left(numbers, number)
        if at == len(numbers):
            return self.next_number, []
        first, run = numbers[at], []
        if self.unreadable:
            return max(number, self.first_number), []
        for found in numbers[at:]:
            if found != first + len(run):
                break
            max_bytes -= len(self.kept[found])
            if run and max_bytes < 0:
                break
            run.append(self.kept[found])
        return first, run

    def hole_reason(self, number):
        return self.reasons.get(number, "spool-damaged")

    def release_through(self, number):
        assert number < self.next_number
        self.released_through = max(self.released_through, number)
        for found in [n for n in self.kept if n <= number]:
            del self.kept[found]
        self._update_first()


class Log:
    """The files of one key: bytes, of which a part is safe from a power failure."""

    def __init__(self):
        self.old = []  # rotated, safe
        self.data = bytearray()
        self.synced = 0
        self.ends = []  # (offset of a line's end, session, number)
        self.safe = {}  # session: number in the part that survives what the durability promises

    def resume(self):
        sessions = Sessions()
        for data in [self.data, *reversed(self.old)]:
            if not sessions.complete:
                sessions.read(io.BytesIO(bytes(data)))
        return list(sessions.oldest_first().items())

    def write(self, lines, rng, fault):
        """Append lines; how many are whole, which is fewer than all if the disk is full."""
        before = b"\n" if self.data and not self.data.endswith(b"\n") else b""
        data = before + b"".join(line + b"\n" for line in lines)
        room = rng.randrange(len(data)) if fault else len(data)
        self.data += data[:room]
        if not fault:
            return len(lines)
        whole, offset = 0, len(before)
        for line in lines:
            offset += len(line)
            if offset > room:
                break
            whole += 1  # whole even if its newline is missing
            offset += 1
        return whole

    def sync(self):
        self.synced = len(self.data)

    def lose_power(self, rng):
        del self.data[rng.randint(self.synced, len(self.data)) :]

    def rotate(self):
        sessions = dict(self.resume())
        self.old.append(bytes(self.data))
        self.data = bytearray(continuation_line(sessions, NOW) + b"\n")
        self.sync()

    def lines(self):
        data = b"\n".join([*self.old, bytes(self.data)])
        return [line for line in data.split(b"\n") if line]


class Connection:
    """Two ordered queues. Each end notices the break for itself, after what still arrives."""

    def __init__(self, client, key):
        self.client = client
        self.key = key
        self.up, self.down = deque(), deque()
        self.broken = False
        self.server_end = None  # a ServerConversation
        self.read_by_server = 0
        self.sent_numbers = deque()  # (messages sent up to here, last number), JavaScript rule

    def break_off(self, rng):
        """Messages under way are lost from some point on, in each direction."""
        if not self.broken:
            self.broken = True
            for queue in (self.up, self.down):
                for _ in range(rng.randint(0, len(queue))):
                    queue.pop()


class Server:
    def __init__(self, world):
        self.world = world
        self.logs = {}  # key: KeyLog
        self.connections = []
        self.accepted = 0

    def accept(self, connection):
        key = connection.key
        if key not in self.logs:
            log = self.world.log(key)
            if self.world.durability == "fsync":
                log.sync()  # what the server before this one wrote may not be safe yet
            sessions = log.resume()
            log.safe = dict(sessions)
            self.logs[key] = KeyLog(ResumeState(sessions))
        self.accepted += 1
        offer = ServerOffer(durability=self.world.durability) if self.world.acknowledges else None
        end = ServerConversation(key, self.logs[key].resume, self.accepted, offer=offer)
        connection.server_end = end
        self.connections.append(connection)
        connection.down.append(end.greeting(0.0))

    def read(self, connection, rng):
        count = rng.randint(1, max(len(connection.up), 1))
        messages = [connection.up.popleft() for _ in range(min(count, len(connection.up)))]
        connection.read_by_server += len(messages)
        if messages:
            try:
                received = connection.server_end.receive_messages(messages, NOW)
            except SessionRewound:
                self.cut(connection, rng)
                return
            assert connection.server_end.violation is None
            assert connection.server_end.bad_messages == 0
            self.logs[connection.key].add(received, connection.server_end)
        elif connection.broken:
            self.connections.remove(connection)

    def write(self, key, rng, fault=False):
        keylog, log = self.logs[key], self.world.log(key)
        lines = keylog.lines_to_write()
        count = log.write(lines, rng, fault and bool(lines))
        if self.world.durability == "fsync":
            log.sync()
        for line in lines[:count]:
            found = session_of_line(line)
            if found is not None:
                log.safe[found[0]] = max(found[1], log.safe.get(found[0], -1))
        keylog.wrote(count)

    def give_up(self, key, rng):
        self.logs[key].give_up()
        for connection in [c for c in self.connections if c.key == key]:
            self.cut(connection, rng)

    def answer(self, connection):
        for message in connection.server_end.messages_to_send():
            safe = self.world.log(connection.key).safe
            for session, number in json.loads(message).get("ack", {}).get("sessions", {}).items():
                assert number <= safe.get(session, -1), "acknowledged, but not durable"
            if not connection.broken:
                connection.down.append(message)

    def cut(self, connection, rng):
        connection.break_off(rng)
        if connection in self.connections:
            self.connections.remove(connection)


class Process:
    """One run of an application with hyperlog's client."""

    def __init__(self, world, application):
        self.world = world
        self.application = application
        self.spool = Spool(str(world.rng.randrange(10**18)), world.rng.choice([5, 20, 10**6]))
        self.spool.lock = self
        application.spools.append(self.spool)
        self.session = ClientSession(self.spool, Queue())
        self.pace = Pace(200_000, world.rng.choice([500, 5000, 10**6]))
        self.kept = []
        self.connection = self.conversation = None
        self.adopt()

    def adopt(self):
        for spool in self.application.spools:
            if spool.lock is None and not spool.finished:
                spool.lock = self
                kept = KeptSession(spool)
                self.kept.append(kept)
                if self.conversation is not None:
                    self.conversation.add_left_behind(kept)

    def trace(self, count):
        for _ in range(count):
            n = self.world.accept(self.spool.session_id, self.spool.next_number)
            text = "x" * self.world.rng.choice([0, 0, 0, 1000])
            self.session.trace(Trace(None, SOURCE, None, None, SITE, {"n": n, "t": text}), NOW)
            self.session.drain(NOW)

    def connect(self):
        self.connection = Connection(self, self.application.key)
        self.conversation = ClientConversation(self.session, self.kept, pace=self.pace)
        self.world.server.accept(self.connection)

    def disconnect(self, rng):
        if self.connection is not None:
            self.connection.break_off(rng)
            self.connection = self.conversation = None

    def receive(self, rng):
        connection = self.connection
        for _ in range(rng.randint(1, max(len(connection.down), 1))):
            if connection.down:
                self.conversation.receive_message(connection.down.popleft())
        delivered = self.conversation.take_delivered()
        self.kept = [kept for kept in self.kept if kept not in delivered]
        while (
            connection.sent_numbers and connection.sent_numbers[0][0] <= connection.read_by_server
        ):
            number = connection.sent_numbers.popleft()[1]
            self.session.transport_confirmed(number)
            self.spool.confirmed = max(self.spool.confirmed, number)
        if connection.broken and not connection.down:
            self.connection = self.conversation = None

    def send(self, rng):
        if self.connection is None:
            return
        size = rng.choice([1, 1000, 10**6])
        self.world.clock += rng.random() * 0.01
        messages = self.conversation.messages_to_send(size, NOW, self.world.clock)
        if not self.connection.broken:
            self.connection.up += messages
            if self.conversation.greeted and not self.conversation.acknowledges:
                total = self.connection.read_by_server + len(self.connection.up)
                self.connection.sent_numbers.append((total, self.session.last_sent_number))

    def kill(self, rng):
        if self.connection is not None:
            self.connection.break_off(rng)
        for spool in self.application.spools:
            if spool.lock is self:
                spool.lock = None

    @property
    def idle(self):
        return self.spool.finished and not self.kept


class JavaScriptProcess:
    """A client of the JavaScript rule: keeps everything, sends on from what the greeting says."""

    def __init__(self, world, application):
        self.world = world
        self.application = application
        self.session_id = str(world.rng.randrange(10**18))
        self.buffer = []
        self.connection = None
        self.ready = False

    def trace(self, count):
        for _ in range(count):
            n = self.world.accept(self.session_id, len(self.buffer))
            fields = {
                "traceTimestamp": iso_time(NOW),
                "traceSessionId": self.session_id,
                "traceNumber": len(self.buffer),
                "id": None,
                "props": None,
                "object": {"id": 1, "className": "Main", "props": None},
                "caller": {"filename": "f", "functionName": "run", "props": {"n": n}},
            }
            self.buffer.append(json.dumps(fields).encode())
            if self.ready and not self.connection.broken:
                self.connection.up.append(self.buffer[-1])

    def connect(self):
        self.connection = Connection(self, self.application.key)
        self.world.server.accept(self.connection)

    def disconnect(self, rng):
        if self.connection is not None:
            self.connection.break_off(rng)
            self.connection, self.ready = None, False

    def receive(self, rng):
        connection = self.connection
        if connection.down and not self.ready:
            greeting = json.loads(connection.down.popleft())
            start = 0
            if greeting["lastSeenTraceSessionId"] == self.session_id:
                start = greeting["lastSeenTraceNumber"] + 1
            self.ready = True
            if not connection.broken:
                connection.up += self.buffer[start:]
        connection.down.clear()
        if connection.broken:
            self.connection, self.ready = None, False

    def send(self, rng):
        pass

    def kill(self, rng):
        self.disconnect(rng)
        self.world.excused.add(self.session_id)

    @property
    def idle(self):
        """Only the log knows."""
        found = self.world.log(self.application.key).safe.get(self.session_id, -1)
        return found >= len(self.buffer) - 1

    def adopt(self):
        pass


class Application:
    """What shares a key and a spool."""

    def __init__(self, world, key):
        self.world = world
        self.key = key
        self.spools = []
        self.processes = []

    def start(self, rng):
        kind = JavaScriptProcess if rng.random() < 0.2 else Process
        self.processes.append(kind(self.world, self))


class World:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.durability = self.rng.choice(["write", "fsync"])
        self.acknowledges = True
        self.clock = 0.0
        self.accepted = {}  # (session, number): n
        self.excused = set()  # sessions of JavaScript clients that were killed
        self.logs = {}
        self.server = Server(self)
        self.applications = [
            Application(self, bytes([n]) * 32) for n in range(self.rng.randint(1, 2))
        ]
        self.events = Counter()

    def log(self, key):
        return self.logs.setdefault(key, Log())

    def accept(self, session_id, number):
        n = len(self.accepted)
        self.accepted[session_id, number] = n
        return n

    # -- what may happen

    def processes(self):
        return [process for app in self.applications for process in app.processes]

    def step(self):
        rng = self.rng
        name = rng.choices(list(ACTIONS), ACTIONS.values())[0]
        self.events[name] += 1
        getattr(self, name)(rng)

    def trace(self, rng):
        if processes := self.processes():
            rng.choice(processes).trace(rng.choice([1, 2, 10]))

    def connect(self, rng):
        if processes := [p for p in self.processes() if p.connection is None]:
            rng.choice(processes).connect()

    def client_moves(self, rng):
        if processes := [p for p in self.processes() if p.connection is not None]:
            process = rng.choice(processes)
            process.receive(rng)
            process.send(rng)

    def server_reads(self, rng):
        if self.server.connections:
            self.server.read(rng.choice(self.server.connections), rng)

    def server_writes(self, rng, fault=False):
        if keys := [key for key, log in self.server.logs.items() if log]:
            self.server.write(rng.choice(keys), rng, fault)

    def server_answers(self, rng):
        for connection in self.server.connections:
            if rng.random() < 0.7:
                self.server.answer(connection)

    def start_process(self, rng):
        application = rng.choice(self.applications)
        if len(application.processes) < 3:
            application.start(rng)

    def kill_process(self, rng):
        if processes := self.processes():
            process = rng.choice(processes)
            process.kill(rng)
            process.application.processes.remove(process)

    def adopt(self, rng):
        if processes := self.processes():
            rng.choice(processes).adopt()

    def client_loses_connection(self, rng):
        if processes := [p for p in self.processes() if p.connection is not None]:
            rng.choice(processes).disconnect(rng)

    def server_loses_connection(self, rng):
        if self.server.connections:
            self.server.cut(rng.choice(self.server.connections), rng)

    def kill_server(self, rng):
        for key, keylog in self.server.logs.items():
            lines = keylog.lines_to_write()
            if lines and rng.random() < 0.5:  # in the middle of a write
                self.log(key).write(lines, rng, fault=True)
        for connection in list(self.server.connections):
            self.server.cut(connection, rng)
        if self.durability == "fsync" and rng.random() < 0.5:
            for log in self.logs.values():
                log.lose_power(rng)
        self.server = Server(self)
        self.acknowledges = rng.random() < 0.8

    def disk_full(self, rng):
        self.server_writes(rng, fault=True)

    def disk_stays_full(self, rng):
        if keys := [key for key, log in self.server.logs.items() if log]:
            self.server.give_up(rng.choice(keys), rng)

    def rotate(self, rng):
        if self.logs:
            log = self.logs[rng.choice(sorted(self.logs))]
            if log.data.endswith(b"\n"):
                log.rotate()

    def damage_spool(self, rng):
        spools = [spool for app in self.applications for spool in app.spools if spool.kept]
        if spools:
            spool = rng.choice(spools)
            number = rng.choice(sorted(spool.kept))
            for lost in range(number, number + rng.randint(1, 5)):
                spool.lose(lost, "spool-damaged")

    def spool_stalls(self, rng):
        for application in self.applications:
            for spool in application.spools:
                spool.unreadable = rng.random() < 0.3

    # -- the end

    def settle(self):
        """All faults stop; what is left has to arrive."""
        rng = self.rng
        self.kill_server(rng)
        self.acknowledges = True
        for application in self.applications:
            if not any(isinstance(p, Process) for p in application.processes):
                application.processes.append(Process(self, application))
            for spool in application.spools:
                spool.unreadable = False
        for _ in range(2000):
            self.clock += 0.2
            for process in self.processes():
                process.adopt()
                if process.connection is None:
                    process.connect()
                process.receive(rng)
                process.send(rng)
            for connection in list(self.server.connections):
                if connection.up:
                    self.server.read(connection, rng)
            for key, keylog in self.server.logs.items():
                if keylog:
                    self.server.write(key, rng)
            for connection in self.server.connections:
                self.server.answer(connection)
            if all(process.idle for process in self.processes()):
                break
        for application in self.applications:
            for spool in application.spools:
                assert spool.finished, "a client has something left"
                assert not spool.kept

    def is_excused(self, number):
        """Whether a record may be lost without a word, as nobody could know better.

        A client of the JavaScript rule was killed; or, by that rule, the transport confirmed the
        record to a server that died before it wrote, and then the spool had no room for it.
        """
        session_id, n = number
        spools = [spool for app in self.applications for spool in app.spools]
        return session_id in self.excused or any(
            spool.session_id == session_id and n <= spool.confirmed and n in spool.reasons
            for spool in spools
        )

    def check(self):
        written, told, notes = Counter(), Counter(), []
        for log in self.logs.values():
            for line in log.lines():
                try:
                    fields = json.loads(line)
                except ValueError:
                    continue  # torn, and closed off
                if "caller" in fields:
                    number = fields["traceSessionId"], fields["traceNumber"]
                    assert self.accepted[number] == fields["caller"]["props"]["n"]
                    written[number] += 1
                elif "gap" in fields:
                    gap = fields["gap"]
                    assert gap["count"] == gap["to"] - gap["from"] + 1
                    for n in range(gap["from"], gap["to"] + 1):
                        told[gap["session"], n] += 1
                else:
                    notes.append(fields["note"])
        missing = 0
        for number in self.accepted:
            count = written[number] + told[number]
            assert count <= 1, f"{number} is there {written[number]} + {told[number]} times"
            assert count == 1 or self.is_excused(number), f"{number} is lost"
            missing += not count
        assert missing or not [note for note in notes if note.startswith("Skipped")]
        assert not [note for note in notes if note.startswith(("Bad", "Dropped"))]
        assert not [note for note in notes if note.startswith("Session continues")]


ACTIONS = {
    "trace": 20,
    "connect": 12,
    "client_moves": 25,
    "server_reads": 25,
    "server_writes": 20,
    "server_answers": 12,
    "start_process": 4,
    "kill_process": 2,
    "adopt": 3,
    "client_loses_connection": 3,
    "server_loses_connection": 1,
    "kill_server": 2,
    "disk_full": 3,
    "disk_stays_full": 1,
    "rotate": 1,
    "damage_spool": 1,
    "spool_stalls": 1,
}


def run(seed):
    try:
        world = World(seed)
        world.start_process(world.rng)
        for _ in range(world.rng.choice([50, 200, 1000])):
            world.step()
        world.settle()
        world.check()
    except Exception as error:
        if ONE_SEED is not None:
            raise
        raise AssertionError(f"HYPERLOG_SEED={seed}: {error}") from error
    return world


@pytest.mark.skipif(ONE_SEED is not None, reason="one seed is asked for")
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_record_is_in_the_log_once_or_told_to_be_lost(first):
    events = Counter()
    for seed in range(first, first + CHUNK):
        events += run(seed).events
    assert set(events) == set(ACTIONS)  # all of them happened


@pytest.mark.skipif(ONE_SEED is None, reason="HYPERLOG_SEED names one")
def test_one_seed():
    run(int(ONE_SEED))
