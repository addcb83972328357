from __future__ import annotations

import json

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from hyperlog.store.evaluate import Reading, field_values, has_field
from hyperlog.store.records import decode_body
from hyperlog.store.sqlite.paths import MISSING, OTHER, path_reader

NAMES = st.sampled_from(["a", "b", "a.b", "b.a", "0", "c d", 'q"', "é", ""])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-2, 2), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=12,
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(".".join).filter(bool)


class Line(Reading):
    def __init__(self, line):
        self.members = decode_body(line)


@given(st.lists(st.dictionaries(NAMES, JSON, max_size=4), min_size=1, max_size=4), PATHS)
@example([{"a": {"b": 1}}, {"a.b": 2}, {"a": [{"b": 3}]}, {"a": {"b": [4]}}], "a.b")
def test_what_is_read_is_what_the_evaluator_finds(objects, path):
    reader = path_reader(path)
    lines = [json.dumps(members, ensure_ascii=len(path) % 2 == 0).encode() for members in objects]
    if reader is None:
        return
    values = reader.values(b"\n".join(lines))
    assert len(values) == len(lines)
    for value, line in zip(values, lines, strict=True):
        if value is OTHER:
            continue
        reading = Line(line)
        if value is MISSING:
            assert not has_field(reading, path)
            assert field_values(reading, path) == []
        else:
            assert has_field(reading, path)
            assert field_values(reading, path) == [value]


def test_plain_members_are_read_and_the_last_of_the_same_name_counts():
    reader = path_reader("a.b")
    assert reader is not None
    lines = b'{"a":{"b":1}}\n{"a":{"b":"x","b":2}}\n{"a":3}\n{"b":4}\n{"a":{"b":null}}'
    assert reader.values(lines) == [1, 2, MISSING, MISSING, None]


def test_what_paths_can_mean_beside_is_left_to_others():
    reader = path_reader("a.b")
    assert reader is not None
    lines = b'{"a":[{"b":1}]}\n{"a.b":1}\n{"a":{"b":{}}}\n{"a":{"b":[]}}\n{"a\\u002eb":1}'
    assert reader.values(lines) == [OTHER] * 5


def test_lines_that_are_no_json_are_refused():
    reader = path_reader("a")
    assert reader is not None
    for line in (b"{", b'{"a":"\xff"}', b"[]"):
        try:
            reader.values(b'{"a":1}\n' + line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        raise AssertionError(line)
