"""hyperlog.diskspool.segment: what was written is read back, around any damage."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.diskspool.segment import (
    CHUNK,
    HEADER_SIZE,
    SegmentReader,
    SegmentWriter,
    encode_records,
)

BATCHES = st.lists(st.lists(st.binary(max_size=60), max_size=5), max_size=6)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file that the examples of a property write one after the other."""
    return tmp_path_factory.mktemp("segment") / "s"


def read_all(path, number: int = 0, max_bytes: int = 200, first: int = 0) -> dict[int, bytes]:
    reader = SegmentReader(str(path), first)
    found: dict[int, bytes] = {}
    try:
        while (run := reader.read(number, max_bytes)) is not None:
            start, messages = run
            assert start >= number
            assert messages
            assert len(messages) == 1 or sum(map(len, messages)) <= max_bytes
            found.update(enumerate(messages, start))
            number = start + len(messages)
    finally:
        reader.close()
    return found


@given(batches=BATCHES, first=st.integers(0, 2**50), max_bytes=st.integers(0, 300))
def test_what_is_appended_is_read(path, batches, first, max_bytes):
    path.unlink(missing_ok=True)
    writer = SegmentWriter(str(path))
    written: list[bytes] = []
    for batch in batches:
        writer.append(encode_records(batch, len(written)))
        written += batch
    writer.close()
    assert writer.size == path.stat().st_size
    assert read_all(path, first, max_bytes, first) == dict(enumerate(written, first))
    half = first + len(written) // 2
    assert read_all(path, half, max_bytes, first) == dict(
        enumerate(written[len(written) // 2 :], half)
    )


@given(messages=st.lists(st.binary(max_size=60), min_size=1, max_size=12), data=st.data())
def test_any_truncation_costs_only_what_is_cut(path, messages, data):
    content = encode_records(messages, 0)
    left = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:left])
    whole, end = 0, 0
    for message in messages:
        end += HEADER_SIZE + len(message)
        if end > left:
            break
        whole += 1
    assert read_all(path) == dict(enumerate(messages[:whole]))


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=30),
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40)), max_size=4),
)
def test_damage_costs_only_the_records_that_it_touches(path, sizes, damage):
    messages = [b"%d:" % n + b"m" * size for n, size in enumerate(sizes)]
    content = encode_records(messages, 0)
    damaged = bytearray(content)
    for place, junk in damage:
        start = int(place * (len(content) - 1))
        damaged[start : start + len(junk)] = junk[: len(content) - start]
    path.write_bytes(damaged)
    untouched = {}
    at = 0
    for number, message in enumerate(messages):
        end = at + HEADER_SIZE + len(message)
        if damaged[at:end] == content[at:end]:
            untouched[number] = message
        at = end
    assert read_all(path) == untouched


def test_records_inserted_or_cut_out_in_the_middle_are_passed_over(tmp_path):
    messages = [b"%d" % n * 9 for n in range(9)]
    records = [encode_records([message], n) for n, message in enumerate(messages)]
    (tmp_path / "cut").write_bytes(b"".join(records[:3]) + records[3][5:-3] + records[5])
    assert sorted(read_all(tmp_path / "cut")) == [0, 1, 2, 5]
    (tmp_path / "junk").write_bytes(b"".join(records[:3]) + b"\xffHL" + b"".join(records[3:]))
    assert sorted(read_all(tmp_path / "junk")) == list(range(9))
    zeros = bytes(3 * CHUNK + 7)  # what a machine that lost its power leaves
    (tmp_path / "zeros").write_bytes(b"".join(records[:3]) + zeros + b"".join(records[3:]))
    assert sorted(read_all(tmp_path / "zeros")) == list(range(9))
    (tmp_path / "twice").write_bytes(b"".join(records[:5]) + b"".join(records[3:]))
    assert sorted(read_all(tmp_path / "twice")) == list(range(9))


@given(content=st.binary(max_size=400))
def test_any_bytes_are_read_without_an_error(path, content):
    path.write_bytes(content)
    assert read_all(path) == {}


def test_records_on_the_borders_of_chunks_are_found(tmp_path):
    rng = random.Random(5)
    messages = [rng.randbytes(rng.choice([0, 100, 5000, CHUNK, 3 * CHUNK])) for _ in range(60)]
    (tmp_path / "s").write_bytes(encode_records(messages, 0))
    for max_bytes in (0, CHUNK, 10 * CHUNK):
        assert read_all(tmp_path / "s", 0, max_bytes) == dict(enumerate(messages))


def test_a_header_that_claims_another_number_does_not_pass(tmp_path):
    content = bytearray(encode_records([b"message"], 3))
    content[8] = 4
    (tmp_path / "s").write_bytes(content)
    assert read_all(tmp_path / "s") == {}


def test_a_file_that_was_removed_takes_nothing(tmp_path):
    writer = SegmentWriter(str(tmp_path / "s"))
    os.unlink(tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        writer.append(b"x")
    writer.close()


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        SegmentWriter(str(tmp_path / "s"))
    assert not (tmp_path / "elsewhere").exists()
