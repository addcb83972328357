from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import QueryError
from hyperlog.store.language import MAX_QUERY, parse, to_text
from hyperlog.store.query import FIELDS, And, Compare, Has, Not, Or, Text, check
from hyperlog.store.times import ms_iso
from hyperlog.store.words import words_of

A, B, C = Text(("a",)), Text(("b",)), Text(("c",))


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("", None),
        ("  \n", None),
        ("Alice", Text(("alice",))),
        ("a b", And((A, B))),
        ("a AND b AND c", And((A, B, C))),
        ("a b OR c", Or((And((A, B)), C))),
        ("a OR b OR c", Or((A, B, C))),
        ("a (b OR c)", And((A, Or((B, C))))),
        ("((a))", A),
        ("-a", Not(A)),
        ("NOT a b", And((Not(A), B))),
        ("NOT(a b)", Not(And((A, B)))),
        ("--a", Not(Not(A))),
        ("or and not", And((Text(("or",)), Text(("and",)), Text(("not",))))),
        ('"a b"', Text(("a", "b"))),
        ('"A, b!"*', Text(("a", "b"), prefix=True)),
        ("crea*", Text(("crea",), prefix=True)),
        ("/var/log/app.log", Text(("var", "log", "app", "log"))),
        ("10.0.0.1", Text(("10", "0", "0", "1"))),
        ("12:30:45", Text(("12", "30", "45"))),
        ("http://host/x", Text(("http", "host", "x"))),
        ("fe80::1", Text(("fe80", "1"))),
        ("Class::method", Text(("class", "method"))),
        ('a"b"c', And((A, B, C))),
        ("x:1", Compare("x", "=", 1)),
        ("x=1", Compare("x", "=", 1)),
        ("x:-1.5", Compare("x", "=", -1.5)),
        ("x:1e+3", Compare("x", "=", 1000.0)),
        ("x:1e3", Compare("x", "=", "1e3")),
        ("x:007", Compare("x", "=", "007")),
        ('x:"1"', Compare("x", "=", "1")),
        ("x!=1", Not(Compare("x", "=", 1))),
        ("-x:1", Not(Compare("x", "=", 1))),
        ("x>1", Compare("x", ">", 1)),
        ("x>=1", Compare("x", ">=", 1)),
        ("x<b", Compare("x", "<", "b")),
        ("x:<=1", Compare("x", "<=", 1)),
        ("x:true", Compare("x", "=", True)),
        ("x:null", Compare("x", "=", None)),
        ('x:"null"', Compare("x", "=", "null")),
        ("x:*", Has("x")),
        ("-key:*", Not(Has("key"))),
        ("x:a:b/c", Compare("x", "=", "a:b/c")),
        ('x:"say \\"a\\" \\\\ \\d"', Compare("x", "=", 'say "a" \\ \\d')),
        ('"two words":1', Compare("two words", "=", 1)),
        ('"a.b":*', Has("a.b")),
        (".id:x", Compare(".id", "=", "x")),
        ("attributes.http.status>=500", Compare("attributes.http.status", ">=", 500)),
        ("content-type:json", Compare("content-type", "=", "json")),
        ("level>=warning", Compare("level", ">=", 30)),
        ("level:WARN", Compare("level", "=", 30)),
        ("level:25", Compare("level", "=", 25)),
        ('level:"error"', Compare("level", "=", "error")),
        ("session:8734", Compare("session", "=", "8734")),
        ("message:true", Compare("message", "=", "true")),
        ("number:8734", Compare("number", "=", 8734)),
        ("time>=2026-11-20T10:00:00Z", Compare("time", ">=", "2026-11-20T10:00:00Z")),
        ("time<1795000000000", Compare("time", "<", 1795000000000)),
        ("Straße:größer", Compare("Straße", "=", "größer")),
    ],
)
def test_what_is_typed_is_understood(text, expression):
    assert parse(text) == expression
    assert parse(to_text(expression)) == expression


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("a )", 2, "there is no ( for this )"),
        ("a (b", 2, "this ( is not closed"),
        ("()", 1, "a term is expected before )"),
        ("a OR", 4, "the query ends where a term is expected"),
        ("a AND", 5, "the query ends where a term is expected"),
        ("NOT", 3, "the query ends where a term is expected"),
        ("OR a", 0, "a term is expected before OR"),
        ("a OR OR b", 5, "a term is expected before OR"),
        ("a - b", 3, "a term is expected right after -"),
        ('a "b', 2, 'this " is not closed'),
        (r'"b\"', 0, 'this " is not closed'),
        ("!! a", 0, "there is no letter or digit to search for"),
        ('a ""', 2, "there is no letter or digit to search for"),
        ("a *", 2, "an empty query finds all records"),
        ("ab*c", 2, "* stands at the end of a word"),
        ("x: y", 2, "a value is expected after x:"),
        ('"x y": z', 6, 'a value is expected after "x y":'),
        ("x:(a OR b)", 2, "a value is expected after x:"),
        ("x:a*", 3, "* has no meaning in a value"),
        ("x>*", 2, "* has no meaning in a value"),
        ("a level>=loud", 9, "'loud' is no level"),
        ('level:"loud"', 6, "'loud' is no level"),
        ("time>yesterday", 5, "'yesterday' is no time"),
        ("number:one", 7, "a number is expected"),
        ("x>true", 2, "true is neither more nor less than anything"),
        ("x:" + "y" * 1025, 2, "at most 1024 are compared"),
        ("x" * 257 + ":1", 258, "the name of a field has 1 to 256 characters"),
        ("a " + "(" * 40 + "a" + ")" * 40, 35, "nested more than 32 deep"),
        ("-" * 40 + "a", 33, "nested more than 32 deep"),
        ("a " * 300, None, "more than 256 terms"),
        ('"' + "a " * 65 + '"', None, "a phrase has 1 to 64 words"),
        ("a" * (MAX_QUERY + 1), None, f"at most {MAX_QUERY} are read"),
        ("(" * MAX_QUERY, 33, "nested more than 32 deep"),
    ],
)
def test_errors_tell_the_place_and_what_is_expected(text, position, reason):
    with pytest.raises(QueryError) as caught:
        parse(text)
    assert reason in str(caught.value)
    assert caught.value.position == position


@given(st.text(st.sampled_from('ab1é (-)"*:=<>!\\.ORANDT'), max_size=40) | st.text(max_size=40))
def test_any_text_is_a_query_or_an_error(text):
    position: int | None = 0
    expression = None
    try:
        expression = parse(text)
    except QueryError as error:
        position = error.position
    assert position is None or 0 <= position <= len(text)
    if expression is not None:
        check(expression)
    assert parse(to_text(expression)) == expression


phrases = st.text(max_size=12).map(words_of).filter(bool)
texts = st.builds(Text, phrases.map(tuple), st.booleans())
names = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["a.b", ".id", "message.user", "OR", "-x"]
)
operators = st.sampled_from(["=", "<", "<=", ">", ">="])
numbers = st.integers() | st.floats(allow_nan=False)
values = (
    st.builds(Compare, names.filter(lambda name: name not in FIELDS), operators, numbers)
    | st.builds(Compare, names.filter(lambda name: name not in FIELDS), operators, st.text())
    | st.builds(
        Compare,
        names.filter(lambda name: name not in FIELDS),
        st.just("="),
        st.none() | st.booleans(),
    )
)
NUMERIC = ("level", "number", "time", "client_time")
own = (
    st.builds(
        Compare,
        st.sampled_from(["id", "bucket", "instance", "session", "kind", "message", "key"]),
        operators,
        st.text(),
    )
    | st.builds(
        Compare, st.sampled_from(["level", "number", "time", "client_time"]), operators, numbers
    )
    | st.builds(Compare, st.just("level"), operators, st.sampled_from(["error", "WARN", "fatal"]))
    | st.builds(
        Compare,
        st.sampled_from(["time", "client_time"]),
        operators,
        st.integers(0, 10**13).map(ms_iso),
    )
)
terms = texts | values | own | st.builds(Has, names | st.sampled_from(FIELDS))
expressions = st.recursive(
    terms,
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(And, st.lists(inner, min_size=2, max_size=3).map(tuple))
        | st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=10,
)


def exactly(expression):
    return repr(expression)  # 1, 1.0 and True are equal


@given(expressions)
def test_expressions_are_written_and_read_back(expression):
    text = to_text(expression)
    assert exactly(parse(text)) == exactly(expression)


@given(expressions, expressions)
def test_terms_can_be_added_to_what_was_typed(first, second):
    for text in (f"({to_text(first)}) {to_text(second)}", to_text(And((first, second)))):
        parsed = parse(text)
        assert parsed is not None
        check(parsed)


def test_what_is_bare_stays_bare():
    for text in (
        "level>=warning",
        "bucket:cerco -instance:a2b5",
        "x.y:1.5",
        "time>=2026-11-20T10:00:00Z",
    ):
        assert to_text(parse(text)) == text


@pytest.mark.parametrize("field", ["a", "level", "number", "time"])
def test_a_number_of_thousands_of_digits_is_refused_where_it_stands(field):
    with pytest.raises(QueryError) as caught:
        parse(f"{field}:-{'9' * 5000}")
    assert caught.value.position == len(field) + 1
