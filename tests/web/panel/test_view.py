import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import QueryError
from hyperlog.store.language import parse
from hyperlog.store.query import And, Compare, Not, Query, Text
from hyperlog.web.panel.export import safe_cell
from hyperlog.web.panel.helppage import EXAMPLES
from hyperlog.web.panel.rendering import level_mark, moment, size_text, span_text
from hyperlog.web.panel.view import View, term_of

NOW = 1_800_000_000_000


def test_an_address_tells_the_view_and_only_what_is_not_the_rule():
    view = View.of({"q": " a b ", "since": "7d", "columns": "x,,y,x", "other": "?"})
    assert view == View("a b", "7d", "", ("x", "y"))
    assert view.address() == "/explore?q=a+b&columns=x%2Cy&since=7d"
    assert View().address("/live") == "/live"
    assert View.of({}) == View()


@given(st.text(), st.text(), st.text(), st.lists(st.text(min_size=1)))
def test_a_view_survives_its_address(q, since, until, columns):
    from urllib.parse import parse_qsl

    view = View.of({"q": q, "since": since, "until": until, "columns": ",".join(columns)})
    again = View.of(dict(parse_qsl(view.address().partition("?")[2])))
    assert again == view


def test_a_view_becomes_a_query():
    view = View("level:error", "1h", "now-5m")
    where = Compare("level", "=", 40)
    assert view.query(NOW) == Query(parse("level:error"), NOW - 3_600_000, NOW - 300_000)
    assert parse("level:error") in (where, Compare("level", "=", "error"))
    assert View(since="all").query(NOW) == Query()
    assert View().between(5, 10).query(NOW) == Query(None, 5, 10)


@pytest.mark.parametrize("view", [View(since="soon"), View(until="13:99")])
def test_a_time_that_is_none_is_named(view):
    with pytest.raises(QueryError, match=r"^(From|To): "):
        view.query(NOW)


def test_terms_are_added_once_and_their_opposite_gives_way():
    term = Compare("bucket", "=", "cerco")
    view = View("timeout").with_term(term)
    assert parse(view.q) == And((Text(("timeout",)), term))
    assert view.with_term(term) == view
    without = view.with_term(term, exclude=True)
    assert parse(without.q) == And((Text(("timeout",)), Not(term)))
    assert without.with_term(term) == view
    assert parse(View().with_term(term, exclude=True).q) == Not(term)
    either = View("a OR b").with_term(term)
    assert parse(either.q).terms[1] == term


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("string", "404", "404"),
        ("number", "404", 404),
        ("number", "-1.5", -1.5),
        ("number", "123456789012345678901", 123456789012345678901),
        ("boolean", "true", True),
        ("null", "null", None),
    ],
)
def test_values_of_a_record_become_terms_that_say_the_same(kind, value, expected):
    term = term_of("a.b", value, kind)
    assert term.value == expected
    assert type(term.value) is type(expected)
    assert parse(View().with_term(term).q) == term


def test_columns_come_and_go():
    view = View().toggled("a").toggled("b").toggled("a")
    assert view.columns == ("b",)
    assert len(View.of({"columns": ",".join(map(str, range(99)))}).columns) == 12


def test_words_to_be_marked_are_those_searched_for():
    assert View('timeout ("a phrase" OR other) -not level:error').words() == [
        "timeout",
        "phrase",
        "other",
        "a",
    ]
    assert View("(").words() == []


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\r=x", "|x", "%x"])
def test_a_cell_is_no_formula(text):
    assert safe_cell(text) == f"'{text}"
    assert safe_cell("plain") == "plain"


@pytest.mark.parametrize("text", [text for text, _ in EXAMPLES])
def test_the_examples_of_the_help_are_queries(text):
    assert parse(text) is not None


def test_times_and_sizes_as_text():
    assert moment(1_763_682_069_954) == (
        '<time datetime="2025-11-20T23:41:09.954Z" data-style="time" '
        'title="2025-11-20 23:41:09.954 UTC">23:41:09.954</time>'
    )
    assert [size_text(count) for count in (0, 999, 1000, 123_456, 5e9, 7e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "123 kB",
        "5.0 GB",
        "7000 TB",
    ]
    assert [span_text(seconds) for seconds in (1, 90, 60, 7200, 90000, 86400, 30 * 86400)] == [
        "1 second",
        "90 seconds",
        "1 minute",
        "2 hours",
        "25 hours",
        "1 day",
        "30 days",
    ]
    assert 'title="ERROR"' in level_mark(40)
