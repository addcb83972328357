from __future__ import annotations

import json
import sqlite3
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.store.records import record_of
from hyperlog.store.words import SEPARATOR, number_text, searched_text, searched_words, words_of
from tests.store.population import SERVER, hostile_lines, realistic_lines


def record(**members):
    line = json.dumps({"time": "2026-11-20T23:41:09.954Z", **members}).encode()
    found = record_of(line, bytes(32), SERVER)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("-- !? \x00\n", []),
        ("Hello, World", ["hello", "world"]),
        ("createUser create_user", ["createuser", "create_user"]),
        ("/var/log/app.log", ["var", "log", "app", "log"]),
        ("10.0.0.1:8080", ["10", "0", "0", "1", "8080"]),
        ("5e3c-ab12", ["5e3c", "ab12"]),
        ("a\x00b", ["a", "b"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("ΣΊΣΥΦΟΣ σίσυφος", ["σίσυφοσ", "σίσυφοσ"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("ﬁne ＡＢＣ ①", ["fine", "abc", "1"]),
        ("東京 tower", ["東", "京", "tower"]),
        ("한국어 слово", ["한국어", "слово"]),
        ("x·y", ["x", "y"]),
        ("x" * 100, ["x" * 64]),
        ("é" * 100, ["é" * 64]),
        ("🙂 ok", ["ok"]),
        ("\ud83d half", ["half"]),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


@given(st.text())
def test_words_consist_of_themselves(text):
    words = words_of(text)
    assert words_of(" ".join(words)) == words
    assert [words_of(word) for word in words] == [[word] for word in words]


@pytest.mark.parametrize(
    "marks",
    [
        "\u0301" * 50_000 + "\u0316" * 50_000,
        "\u0f73" * 50_000,  # each is taken apart into two that are in the wrong order
        "\uff9e" * 50_000 + "\u0316" * 50_000,
        "\u0345\u0316" * 50_000,
    ],
)
def test_combining_marks_without_end_take_no_time(marks):
    began = time.thread_time()
    assert words_of(f"one a{marks} b")[0] == "one"
    assert words_of(f"one a{marks} b")[-1] == "b"
    assert time.thread_time() - began < 1  # in order they would be put after minutes


@pytest.mark.parametrize("count", [0, 1, 29])
def test_marks_of_a_letter_are_put_in_order(count):
    assert words_of("a" + "\u0316" * count + "\u0301 b") == ["á", "b"]


def test_every_character_gives_words_that_consist_of_themselves():
    for code in range(sys.maxunicode + 1):
        if not 0xD800 <= code < 0xE000:
            words = words_of(f"{chr(code)} a{chr(code)}b")
            assert words_of(" ".join(words)) == words, hex(code)


@given(st.text())
def test_case_makes_no_difference(text):
    assert words_of(text.casefold()) == words_of(text)


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_needs_no_unicode_to_be_split(text):
    beyond = words_of(text + " é")
    assert words_of(text) == beyond[:-1]


def test_the_values_of_a_record_are_its_texts_and_numbers():
    found = record(
        userId="alice___1",
        traceTimestamp="2026-11-20T23:41:09.950Z",
        traceSessionId="873",
        traceNumber=4711,
        level="INFO",
        message={"name": "User created", "ok": True, "none": None, "items": [1.5, [-7, "x y"]]},
    )
    assert searched_words(found) == [
        ["alice___1"],
        ["873"],
        ["info"],
        ["user", "created"],
        ["1", "5"],
        ["7"],
        ["x", "y"],
        words_of(found.message),
    ]
    assert len(searched_words(record(message="told once"))) == 1


def test_a_trace_is_found_by_what_its_line_says():
    found = record(
        id="stream-open",
        object={"id": 1, "className": "Connection"},
        caller={"functionName": "open"},
    )
    assert found.message == "stream-open Connection.open"
    assert ["stream", "open", "connection", "open"] in searched_words(found)


@pytest.mark.parametrize("value", ["a\x00b", "a·b", "é a·b", "\x00", "·", ""])
def test_what_separates_values_cannot_be_smuggled_in(value):
    found = record(x=value, note="é end" if "é" in value else "end")
    words = words_of(value)
    assert words in searched_words(found) or not words
    assert searched_text(found).count(SEPARATOR) == 1


def test_numbers_are_searched_as_json_writes_them():
    assert [number_text(n) for n in (1, -1, 1.0, 1e22, 1e-7)] == [
        "1",
        "-1",
        "1.0",
        "1e+22",
        "1e-07",
    ]
    assert number_text(float("-inf")) == "-1e+9999"
    assert number_text(10**5000) == "1e+9999"
    assert float(number_text(10**5000)) == float("inf")


def test_sqlites_full_text_index_sees_the_same_words():
    lines = [*realistic_lines(200), *hostile_lines()]
    found = [record_of(line, source, SERVER) for source, line in lines]
    records = [record for record in found if record is not None]
    database = sqlite3.connect(":memory:")
    database.execute("""create virtual table t using fts5 (x, tokenize = "ascii tokenchars '_'")""")
    database.execute("create virtual table words using fts5vocab (t, instance)")
    texts = [searched_text(record) for record in records]
    database.executemany("insert into t (rowid, x) values (?, ?)", enumerate(texts))
    rows = database.execute("select doc, term from words order by doc, offset")
    indexed: dict[int, list[str]] = {}
    for document, term in rows:
        indexed.setdefault(document, []).append(term)
    database.close()
    for position, text in enumerate(texts):
        assert indexed.get(position, []) == text.split()
        words = [word for words in searched_words(records[position]) for word in words]
        assert [word for word in indexed[position] if word != SEPARATOR] == words
