"""hyperlog.diskspool.session: a session's records against a plain model, through crashes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hyperlog.diskspool import SpooledSession, SpoolFolder
from hyperlog.diskspool.files import segments_in
from hyperlog.diskspool.segment import HEADER_SIZE
from hyperlog.diskspool.session import CACHE, MESSAGE_OVERHEAD

LIMIT = 64 * 1024  # of the model's spool: segments of 4 KiB


def read_all(session: SpooledSession, number: int = 0, max_bytes: int = 5000) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while True:
        first, messages = session.read(number, max_bytes)
        assert first >= number
        if not messages:
            assert first == session.next_number
            return found
        found.update(enumerate(messages, first))
        number = first + len(messages)


def crash(session: SpooledSession) -> None:
    """Leave the files as they are when the process ends here."""
    files = session._files
    assert files is not None
    files.close_descriptors()
    if files.lock is not None:
        files.lock.release()
    session._files = None


def messages_of(first: int, count: int, size: int = 100) -> list[bytes]:
    return [b"%d:" % n + b"x" * size for n in range(first, first + count)]


# -- memory only


def test_without_files_a_session_is_a_bounded_memory():
    session = SpooledSession("1", max_memory_bytes=10 * (102 + MESSAGE_OVERHEAD))
    session.put(messages_of(0, 8))
    assert session.read(3, 250) == (3, messages_of(3, 2))
    session.put(messages_of(8, 2) + messages_of(0, 2))
    assert session.first_number == 2
    assert session.read(0, 1)[0] == 2
    assert session.hole_reason(1) == "buffer-full"
    assert session.unsaved == 10
    session.release_through(10)
    assert (session.first_number, session.next_number) == (11, 12)
    session.release_through(11)
    assert session.finished
    assert session.memory_bytes == 0
    assert session.read(0, 1000) == (12, [])


def test_a_message_above_the_memory_is_a_hole():
    session = SpooledSession("1", max_memory_bytes=1000)
    session.put([b"a", b"x" * 1001, b"c"])
    assert session.next_number == 3
    assert read_all(session) == {2: b"c"}
    assert session.hole_reason(1) == "buffer-full"


# -- on disk


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path / "spool")


def test_the_newest_messages_are_read_from_memory_the_others_from_disk(folder):
    session = folder.create("1")
    everything = messages_of(0, 8000, 400)
    for start in range(0, 8000, 256):
        session.put(everything[start : start + 256])
    assert session.memory_bytes <= CACHE
    assert session.unsaved == 0
    assert list(read_all(session, 0, 100_000).values()) == everything
    assert session.read(7999, 1) == (7999, everything[-1:])
    session.close()


def test_a_reader_can_go_back_and_go_on_where_records_are_appended(folder):
    session = folder.create("1")
    session._memory_bytes = 2 * CACHE  # so that nothing stays in memory
    session.put(messages_of(0, 10))
    assert not session._memory
    assert session.read(4, 250) == (4, messages_of(4, 2))
    assert session.read(8, 10_000) == (8, messages_of(8, 2))
    session.put(messages_of(10, 3))
    assert session.read(10, 10_000) == (10, messages_of(10, 3))
    assert session.read(1, 1) == (1, messages_of(1, 1))
    session.close()


def test_a_message_longer_than_a_segment_comes_back(tmp_path):
    folder = SpoolFolder(tmp_path / "spool", max_bytes=40_000_000)
    session = folder.create("1")
    large = [b"a" * 3_000_000, b"b", b"c" * 5_000_000]
    session.put(large)
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert list(read_all(adopted).values()) == large


def test_a_message_above_half_of_the_spool_is_a_hole(tmp_path):
    folder = SpoolFolder(tmp_path / "spool", max_bytes=100_000)
    session = folder.create("1")
    session.put([b"a", b"x" * 50_001, b"c"])
    assert read_all(session) == {0: b"a", 2: b"c"}
    assert session.hole_reason(1) == "spool-full"
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert read_all(adopted) == {0: b"a", 2: b"c"}
    assert adopted.hole_reason(1) == "spool-full"


@pytest.mark.parametrize("end", [SpooledSession.close, crash])
def test_a_session_that_ends_with_a_message_above_its_limit_tells_so(tmp_path, end):
    folder = SpoolFolder(tmp_path / "spool", max_bytes=100_000)
    session = folder.create("1")
    session.put([b"x" * 50_001])
    end(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert adopted.read(0, 1000) == (1, [])
    assert adopted.hole_reason(0) == "spool-full"
    adopted.release_through(0)
    assert os.listdir(folder.path) == []


def test_a_session_without_a_record_leaves_nothing(folder):
    folder.create("1").close()
    assert not os.path.exists(folder.path)


def test_a_session_that_is_acknowledged_leaves_nothing(folder):
    session = folder.create("1")
    session.put(messages_of(0, 3))
    assert sorted(os.listdir(folder.path)) == ["1", "1.lock"]
    session.release_through(2)
    session.close()
    assert os.listdir(folder.path) == []


def test_an_adopted_session_goes_as_soon_as_it_is_acknowledged(folder):
    session = folder.create("1")
    session.put(messages_of(0, 3))
    session.close()
    adopted = folder.adopt("1")
    assert adopted is not None
    adopted.release_through(1)
    assert read_all(adopted) == {2: b"2:" + b"x" * 100}
    adopted.release_through(2)
    assert os.listdir(folder.path) == []


def test_the_server_may_know_of_records_that_never_reached_the_disk(folder):
    session = folder.create("1")
    session.put(messages_of(0, 3))
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    adopted.release_through(9)
    assert (adopted.first_number, adopted.next_number) == (10, 10)
    assert os.listdir(folder.path) == []


def test_what_was_acknowledged_is_remembered_beyond_the_process(folder):
    session = folder.create("1")
    session.put(messages_of(0, 10))
    session.release_through(6)
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    assert adopted.released_through == 6
    assert (adopted.first_number, adopted.next_number) == (7, 10)
    assert sorted(read_all(adopted)) == [7, 8, 9]


def test_an_adopted_session_can_be_appended_to(folder):
    session = folder.create("1")
    session.put(messages_of(0, 3))
    crash(session)
    adopted = folder.adopt("1")
    assert adopted is not None
    adopted.put(messages_of(3, 3))
    crash(adopted)
    again = folder.adopt("1")
    assert again is not None
    assert list(read_all(again).values()) == messages_of(0, 6)


def test_files_are_for_their_owner_only(folder):
    session = folder.create("1")
    session.put(messages_of(0, 3))
    session.release_through(1)
    for place, _, files in os.walk(folder.path):
        assert os.stat(place).st_mode & 0o777 == 0o700
        for name in files:
            assert os.stat(os.path.join(place, name)).st_mode & 0o777 == 0o600
    session.close()


class SessionAgainstModel(RuleBasedStateMachine):
    """One session through any number of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="hyperlog-spool-"))
        self.folder = SpoolFolder(self.path / "spool", max_bytes=LIMIT)
        self.messages: dict[int, bytes] = {}  # all that were ever put, by number
        self.damaged: set[int] = set()
        self.released = -1
        self.next = 0
        self.session: SpooledSession

    @initialize()
    def begin(self):
        self.session = self.folder.create("7")

    def teardown(self):
        self.session.close()
        shutil.rmtree(self.path)

    @property
    def segment_paths(self) -> list[tuple[int, Path]]:
        place = Path(self.folder.path, "7")
        if not place.is_dir():
            return []
        return [(first, place / f"{first:020d}.seg") for first in segments_in(os.listdir(place))]

    def record_at(self, first: int, offset: int) -> int:
        """Number of the record that the byte at `offset` of a segment belongs to."""
        number = first
        while offset >= (size := HEADER_SIZE + len(self.messages[number])):
            offset -= size
            number += 1
        return number

    def uncached(self):
        """Whatever is in memory has to come from the disk."""
        session = self.session
        session._memory.clear()
        session._memory_bytes = 0
        session._memory_first = session.next_number

    @rule(sizes=st.lists(st.integers(0, 1500), min_size=1, max_size=12), cached=st.booleans())
    def put(self, sizes, cached):
        batch = [b"%d:" % n + b"x" * size for n, size in enumerate(sizes, self.next)]
        self.messages.update(enumerate(batch, self.next))
        self.session.put(batch)
        self.next += len(batch)
        if not cached:
            self.uncached()

    @rule(back=st.integers(-2, 60), max_bytes=st.integers(0, 20_000))
    def read(self, back, max_bytes):
        number = self.next - back
        first, run = self.session.read(number, max_bytes)
        assert first >= number or first == self.next
        for found, message in enumerate(run, first):
            assert message == self.messages[found]
            assert found > self.released
        assert len(run) <= 1 or sum(map(len, run)) <= max_bytes
        assert run or first == self.next
        self.explain_missing(range(max(number, self.released + 1), first))

    @rule()
    def read_everything(self):
        found = read_all(self.session)
        assert all(self.messages[number] == message for number, message in found.items())
        self.explain_missing(set(range(self.released + 1, self.next)) - set(found))

    def explain_missing(self, numbers):
        full = set()
        for number in numbers:
            if self.session.hole_reason(number) == "spool-full":
                full.add(number)
            else:
                assert number in self.damaged
        if full:
            # Nothing gives way before the spool is full, in blocks.
            newer = range(max(full) + 1, self.next)
            size = sum(HEADER_SIZE + len(self.messages[number]) for number in newer)
            assert size > LIMIT / 4

    @rule(back=st.integers(0, 60))
    def release(self, back):
        number = self.next - back - 1
        if number < 0 or self.next == 0:
            return
        self.session.release_through(number)
        self.released = max(self.released, number)
        if self.session._files is None:  # it was adopted, and all of it is acknowledged
            self.over()

    def over(self):
        assert not os.path.exists(self.folder.path) or os.listdir(self.folder.path) == []
        self.begin()
        self.messages.clear()
        self.damaged.clear()
        self.released, self.next = -1, 0

    @precondition(lambda self: self.segment_paths)
    @rule(data=st.data())
    def damage(self, data):
        first, path = data.draw(st.sampled_from(self.segment_paths))
        content = bytearray(path.read_bytes())
        if not content or self.record_is_known_damaged(first, len(content)):
            return
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        with open(path, "r+b") as file:
            file.write(content)
        self.damaged.add(self.record_at(first, place))
        self.uncached()

    def record_is_known_damaged(self, first, size) -> bool:
        """A segment that was written on after a torn record does not have the plain layout."""
        end, number = 0, first
        while end < size:
            if number not in self.messages:
                return True
            end += HEADER_SIZE + len(self.messages[number])
            number += 1
        return end != size

    @rule(torn=st.integers(0, 400))
    def kill(self, torn):
        crash(self.session)
        paths = self.segment_paths
        if paths and torn:
            first, path = paths[-1]
            size = path.stat().st_size
            plain = size and not self.record_is_known_damaged(first, size)
            if plain:
                left = max(size - torn, 0)
                os.truncate(path, left)
                cut = self.record_at(first, left)
                for number in range(max(cut, self.released + 1), self.next):
                    del self.messages[number]
                if cut == first and left:
                    self.damaged.add(first)  # that there was one can be seen
                    self.messages[first] = b""
                self.next = max(self.released + 1, cut + (cut == first and left > 0))
        adopted = self.folder.adopt("7")
        if adopted is None:
            # A damaged end looks like a torn one.
            assert set(range(self.released + 1, self.next)) <= self.damaged
            self.over()
            return
        self.session = adopted
        assert set(range(adopted.next_number, self.next)) <= self.damaged
        self.next = adopted.next_number
        assert adopted.released_through == self.released

    @invariant()
    def state_agrees(self):
        session = self.session
        assert session.next_number == self.next
        assert session.released_through == self.released
        assert self.released + 1 <= session.first_number <= self.next
        assert self.folder.usage() <= LIMIT
        assert session.memory_bytes == sum(len(m) + MESSAGE_OVERHEAD for m in session._memory)
        assert session.fault is None


TestSessionAgainstModel = SessionAgainstModel.TestCase
TestSessionAgainstModel.settings = settings(
    max_examples=1500 if os.environ.get("HYPERLOG_LONG") else 150,
    stateful_step_count=40,
    deadline=None,
)
