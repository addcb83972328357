"""hyperlog.tracefields: mappings of the application's become traces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.trace import Trace, TracedObject
from hyperlog.tracefields import trace_of_fields

OWN = ["id", "object", "parent_object", "parentObject", "caller"]
INNER = ["id", "class_name", "className", "function_name", "functionName", "line", "props"]
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
PROPS = LEAVES | st.dictionaries(st.text(max_size=5), LEAVES, max_size=2)
PARTS = LEAVES | st.dictionaries(st.sampled_from(INNER), PROPS, max_size=4)
FIELDS = st.dictionaries(st.sampled_from(OWN), PARTS)


@pytest.mark.parametrize(
    ("parent", "class_name", "function_name"),
    [
        ("parent_object", "class_name", "function_name"),
        ("parentObject", "className", "functionName"),
    ],
)
def test_both_spellings_are_read(parent, class_name, function_name):
    trace = trace_of_fields(
        {
            "id": "x",
            "object": {class_name: "Cart", "id": 5, "props": {"a": 1}},
            parent: {class_name: "Shop", "id": 2},
            "caller": {function_name: "f", "filename": "c.py", "line": 3, "column": 4, "props": {}},
        }
    )
    site = trace.site
    assert trace.id == "x"
    assert (site.function_name, site.filename, site.line, site.column) == ("f", "c.py", 3, 4)
    assert (trace.object_props, trace.caller_props) == ({"a": 1}, {})
    assert (trace.source.class_name, trace.source.id) == ("Cart", 5)
    assert trace.parent_object is not None
    assert (trace.parent_object.class_name, trace.parent_object.id) == ("Shop", 2)


@given(fields=FIELDS)
def test_what_is_of_a_wrong_type_is_replaced(fields):
    trace = trace_of_fields(fields)
    assert isinstance(trace, Trace)
    assert isinstance(trace.id, str | None)
    for one in (trace.source, trace.parent_object or trace.source):
        assert isinstance(one, TracedObject)
        assert isinstance(one.class_name, str)
        assert type(one.id) is int
    for props in (trace.object_props, trace.caller_props):
        assert props is None or type(props) is dict
